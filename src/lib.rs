//! Outbox Relay: brings the rows of a Postgres table `event_outbox` to Kafka, in order per entity, with any number of relays.
//!
//! For services (`default-features = false`):
//! - [`event`]: what an event is
//! - [`store`]: the tables, their names and migrations
//!
//! For the relay (feature `relay`):
//! - [`envelope`], [`route`]: from an event to a record and its topic; pure
//! - `sink`: Kafka
//! - `lane`: who works on what, and from where
//! - `fault`: what an error means and what the operator does
//! - [`ledger`]: compares what was committed with what a topic holds; pure

pub mod envelope;
#[cfg(feature = "demo")]
pub mod demo;
pub mod event;
#[cfg(feature = "relay")]
mod fault;
#[cfg(feature = "relay")]
mod lane;
pub mod ledger;
#[cfg(feature = "relay")]
pub mod relay;
pub mod route;
#[cfg(feature = "relay")]
mod sink;
pub mod store;
