//! Writes events in a service's own Postgres transaction and applies each event once: the transactional outbox for services. A separate
//! program, `outbox-relay`, brings the events to Kafka.
//!
//! - [`event`]: an event, and how to build one
//! - [`outbox`]: writes events in the service's own transaction
//! - [`consumer`]: applies each event once; handlers on Kafka partitions need the feature `consumer-kafka`
//! - `schemas`: checks payloads against JSON Schema (feature `schema`)
//! - [`transaction`]: commits only what Postgres keeps
//! - [`envelope`], [`route`]: turn an event into a record and find its topic, without I/O
//! - [`ledger`]: compares committed events with the records of a topic, without I/O
//! - `msk_iam`: logs in to Amazon MSK with IAM (feature `msk-iam`)
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
#[cfg(feature = "msk-iam")]
pub mod msk_iam;
pub mod names;
pub mod notice;
pub mod outbox;
pub mod route;
pub mod schema;
#[cfg(feature = "schema")]
pub mod schemas;
pub mod transaction;

pub use names::Names;
