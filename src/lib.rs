//! Outbox Relay.

#[cfg(feature = "demo")]
pub mod demo;
pub mod event;
