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
//! - `inspect`: commands that only read
//! - `resend`: commands that send events again
//! - [`cli`]: the commands
//! - `bench`: measures the relay as a process, against real servers (feature `bench`)

#[cfg(feature = "bench")]
mod bench;
pub mod cli;
pub mod config;
mod fault;
mod inspect;
mod lane;
mod observe;
pub mod relay;
mod resend;
mod sink;
pub mod store;
