//! Outbox Relay.

pub mod event;
mod lane;
pub mod store;
