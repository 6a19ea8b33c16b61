//! Outbox Relay: brings the rows of a Postgres table `event_outbox` to Kafka, in order per entity, with any number of relays.
//!
//! For services (`default-features = false`):
//! - [`event`]: what an event is
//! - [`outbox`]: writes events in the service's own transaction
//! - [`consumer`]: one effect per event (feature `consumer`); handlers on Kafka partitions (feature `consumer-kafka`)
//! - [`schemas`]: payloads checked against JSON Schema (feature `schema`)
//! - [`store`]: the tables, their names and migrations
//! - [`envelope`], [`route`]: from an event to a record and its topic; pure
//! - [`ledger`]: compares what was committed with what a topic holds; pure
//!
//! For the relay (feature `relay`):
//! - [`config`]: settings, read once
//! - [`relay`]: claims, publishes, settles
//! - `lane`: who works on what, and from where
//! - `sink`: Kafka
//! - `fault`: what an error means and what the operator does
//! - `observe`: logs, probes, metrics
//! - `observe`: logs, and the codes of what they warn of
//! - `verify`: compares the table with topics, in bounded memory
//! - `check`: what will go wrong, found before traffic does
//! - `dlq`: dead letters of consumers, listed and sent again
//! - `replay`: retained events, published again
//! - `window`: how far back topics can be read, against how far back consumers remember
//! - `status`, `explain`, `tail`: what goes on now, with one event, with each event that comes
//! - [`cli`]: the commands
//! - `bench`: measures the relay as a process, against real servers
//!
//! For the demo and the tests (feature `demo`):
//! - [`demo`]: servers of its own, and the flow that is shown

#[cfg(feature = "relay")]
mod bench;
#[cfg(feature = "relay")]
mod check;
#[cfg(feature = "relay")]
pub mod cli;
#[cfg(feature = "relay")]
pub mod config;
#[cfg(feature = "consumer")]
pub mod consumer;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "relay")]
mod dlq;
pub mod envelope;
pub mod event;
#[cfg(feature = "relay")]
mod explain;
#[cfg(feature = "relay")]
mod fault;
#[cfg(feature = "relay")]
mod lane;
pub mod ledger;
#[cfg(any(feature = "relay", feature = "consumer-kafka"))]
mod observe;
pub mod outbox;
#[cfg(feature = "relay")]
pub mod relay;
#[cfg(feature = "relay")]
mod replay;
pub mod route;
#[cfg(feature = "schema")]
pub mod schemas;
#[cfg(feature = "relay")]
mod sink;
#[cfg(feature = "relay")]
mod status;
pub mod store;
#[cfg(feature = "relay")]
mod tail;
#[cfg(feature = "relay")]
mod verify;
#[cfg(feature = "relay")]
mod window;
