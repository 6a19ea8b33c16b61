//! The relays of an outbox and the share of each.
//!
//! - [`heartbeat`]: tells the other relays that this one is alive, and hears of them
//! - [`conflict_log`]: live relays with other settings or the same name, in the log
//! - [`relay_registry`]: the relays that were heard of
//! - [`assignment`]: the lanes of each worker of this relay

pub(crate) mod assignment;
mod conflict_log;
pub(crate) mod heartbeat;
pub(crate) mod relay_registry;
