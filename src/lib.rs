//! Outbox Relay: brings the rows of a Postgres table `event_outbox` to Kafka, in order per entity, with any number of relays. Services
//! use the crate `event-outbox`.
//!
//! - [`config`]: settings, read once
//! - [`relay`]: claims, publishes, settles
//! - `lane`: who works on what, and from where
//! - `store`: everything that is said to Postgres
//! - `sink`: Kafka
//! - `fault`: what an error means and what the operator does
//! - `observe`: logs, probes, metrics
//! - `verify`: compares the table with topics, in bounded memory
//! - `check`: what will go wrong, found before traffic does
//! - `dlq`: dead letters of consumers, listed and sent again
//! - `replay`: retained events, published again
//! - `dedup_window`: how far back topics can be read, against how far back consumers remember
//! - `status`, `explain`, `tail`: what goes on now, with one event, with each event that comes
//! - [`cli`]: the commands
//! - `bench`: measures the relay as a process, against real servers (feature `bench`)

#[cfg(feature = "bench")]
mod bench;
mod check;
pub mod cli;
pub mod config;
mod dedup_window;
mod dlq;
mod explain;
mod fault;
mod lane;
mod observe;
pub mod relay;
mod replay;
mod sink;
mod status;
pub mod store;
mod tail;
mod verify;
