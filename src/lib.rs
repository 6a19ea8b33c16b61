//! Outbox Relay.

pub mod envelope;
pub mod event;
