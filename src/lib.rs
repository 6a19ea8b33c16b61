//! Outbox Relay publishes the rows of the Postgres table `event_outbox` to Kafka, in order per entity, with any number of relays. Services
//! write and consume events with the crate `event-outbox`.
//!
//! - [`config`]: reads and checks the settings, once at the start
//! - [`relay`]: claims, publishes and settles events
//! - `lane`: computes lane shares, progress and holds
//! - `store`: the statements for Postgres
//! - `sink`: the side of Kafka: clients, topics, acknowledgements
//! - `fault`: classifies errors and names the operator's next step
//! - `observe`: logs, probes, metrics, and what is printed
//! - `text`: shows text that came from users
//! - `inspect`: commands that only read
//! - `resend`: commands that send events again
//! - `adopt`: takes over tables from which other programs publish today
//! - [`cli`]: the commands
//! - `bench`: measures the relay as a process, against real servers (feature `bench`)

// The macros of the standard library panic after a reader has closed the pipe.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod adopt;
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
mod text;
