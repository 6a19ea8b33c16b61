//! The relays of an outbox and the share of each.
//!
//! - [`heartbeat`]: tells the other relays that this one is alive, and hears of them
//! - [`relay_registry`]: the relays that were heard of
//! - [`assignment`]: the lanes of each worker of this relay

pub(crate) mod assignment;
pub(crate) mod heartbeat;
pub(crate) mod relay_registry;
