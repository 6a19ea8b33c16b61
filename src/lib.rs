//! Outbox Relay.

#[cfg(feature = "relay")]
pub mod config;
pub mod event;
