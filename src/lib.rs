//! Outbox Relay.

pub mod envelope;
pub mod event;
pub mod route;
