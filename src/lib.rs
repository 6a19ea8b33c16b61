//! Outbox Relay.

pub mod envelope;
pub mod event;
pub mod ledger;
pub mod route;
