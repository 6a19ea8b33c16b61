//! Provides servers, relays and loads for the tests, the benchmarks and the demo. Not published.
//!
//! - [`demo`]: servers that end with their process, and the two flows that `outbox-relay demo` shows
//! - [`payload`]: the payloads of the benchmarks
//! - [`table`]: rows in columns, as plain text
//!
//! With the feature `kit`, for tests and benchmarks:
//! - `kafka`: a real Kafka
//! - `shared`: one Postgres and one Kafka per run, started for the first test that needs them
//! - `database`: a database per test, copied from a migrated template
//! - `trial`: registers tests with the servers that they need, and skips and reports those that this machine cannot run
//! - `relay`: relays as processes
//! - `admin`: a relay's probes and metrics
//! - `languages`: the consumers of docs/examples/consumers, ready to run
//! - `outbox`: the events of a test, from the insert to the record
//! - `load`: an application under load; `rough`: its odd events
//! - `book`: compares what the application did with table and topic, by the ledger
//! - `failover`: a server with a standby behind one address; `front`: that address
//! - `service_manager`: stands in for systemd
//! - `terminal`: a command on a terminal
//! - `process`: CPU time and memory of a process
//! - `murmur2`: the partition that Java chooses for a key
//! - `pgbouncer`: a pooler before a database
//! - `eventually`: waits without sleeping
//! - `schemas`: the JSON of commands against its schemas
//! - `token_server`: an OpenID provider
//! - `seed`: random numbers that a seed reproduces

pub mod demo;
pub mod payload;
pub mod table;

#[cfg(feature = "kit")]
pub mod admin;
#[cfg(feature = "kit")]
pub mod book;
#[cfg(feature = "kit")]
pub mod database;
#[cfg(feature = "kit")]
pub mod eventually;
#[cfg(feature = "kit")]
pub mod failover;
#[cfg(feature = "kit")]
pub mod front;
#[cfg(feature = "kit")]
pub mod kafka;
#[cfg(feature = "kit")]
pub mod languages;
#[cfg(feature = "kit")]
pub mod load;
#[cfg(feature = "kit")]
pub mod murmur2;
#[cfg(feature = "kit")]
pub mod outbox;
#[cfg(feature = "kit")]
pub mod pgbouncer;
#[cfg(feature = "kit")]
pub mod process;
#[cfg(feature = "kit")]
pub mod relay;
#[cfg(feature = "kit")]
pub mod rough;
#[cfg(feature = "kit")]
pub mod schemas;
#[cfg(feature = "kit")]
pub mod seed;
#[cfg(all(feature = "kit", target_os = "linux"))]
pub mod service_manager;
#[cfg(feature = "kit")]
pub mod shared;
#[cfg(feature = "kit")]
pub mod terminal;
#[cfg(feature = "kit")]
pub mod token_server;
#[cfg(feature = "kit")]
pub mod trial;

#[cfg(feature = "kit")]
pub use database::TestDatabase;
#[cfg(feature = "kit")]
pub use eventually::{SOON, eventually, until_nothing_is_left};
#[cfg(feature = "kit")]
pub use outbox::{Outbox, PARTITIONS};
#[cfg(feature = "kit")]
pub use relay::{Relay, RelayProcess, UnreadRelay};
#[cfg(feature = "kit")]
pub use shared::{migrate_template_with, options_for_tests};
#[cfg(feature = "kit")]
pub use trial::{Missing, Skip, alone, long, run, share, share_of, with_both, with_kafka, with_postgres};
