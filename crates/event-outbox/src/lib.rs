//! The transactional outbox for services: writes events in the service's own Postgres transaction, and applies each event once.
//! The relay that brings the events to Kafka is a program of its own, `outbox-relay`.
//!
//! - [`event`]: an event, and how to make one
//! - [`outbox`]: writes events in the service's own transaction
//! - [`consumer`]: one effect per event; handlers on Kafka partitions (feature `consumer-kafka`)
//! - [`schemas`]: payloads checked against JSON Schema (feature `schema`)
//! - [`envelope`], [`route`]: from an event to a record and its topic; pure
//! - [`ledger`]: compares what was committed with what a topic holds; pure
//! - [`backoff`]: pauses between attempts
//! - [`names`]: the tables of one outbox; [`schema`]: their migrations
//! - [`code`]: the codes of warnings and errors; [`notice`]: the names of log lines

pub mod backoff;
pub mod code;
pub mod consumer;
pub mod envelope;
pub mod event;
pub mod hash;
pub mod ledger;
pub mod names;
pub mod notice;
pub mod outbox;
pub mod route;
pub mod schema;
#[cfg(feature = "schema")]
pub mod schemas;

pub use names::Names;
