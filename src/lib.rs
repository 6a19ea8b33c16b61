//! Outbox Relay.

pub mod event;
