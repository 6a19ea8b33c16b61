//! What all suites share.
//!
//! - `kafka`: a real Kafka. Stands by itself, so that a benchmark can include it alone with `#[path]`.
//! - `shared`: one Postgres and one Kafka per run, started when the first test asks.
//! - `database`: a database per test, made from a migrated template.
//! - `trial`: registers tests with what they need, skips those whose needs this machine cannot meet, and says so.
//! - `relay`: relays as processes.
//! - `admin`: a relay's probes and metrics.
//! - `languages`: the consumers of docs/examples/consumers, ready to run.
//! - `outbox`: a test's events, from the insert to the record.
//! - `load`: an application under load; `rough`: what it writes at its worst.
//! - `book`: what the application did against table and topic, by the ledger.
//! - `failover`: a server with a standby behind one address; `front`: that address.
//! - `process`: CPU time and memory of a process.
//! - `murmur2`: where Java would put a key.
//! - `pgbouncer`: a pooler before a database.
//! - `eventually`: waiting without sleeping.

#[path = "support/admin.rs"]
pub(crate) mod admin;
#[path = "support/book.rs"]
pub(crate) mod book;
#[path = "support/database.rs"]
mod database;
#[path = "support/eventually.rs"]
mod eventually;
#[path = "support/failover.rs"]
pub(crate) mod failover;
#[path = "support/front.rs"]
mod front;
#[path = "support/kafka.rs"]
pub(crate) mod kafka;
#[path = "support/languages.rs"]
pub(crate) mod languages;
#[path = "support/load.rs"]
pub(crate) mod load;
#[path = "support/murmur2.rs"]
pub(crate) mod murmur2;
#[path = "support/outbox.rs"]
pub(crate) mod outbox;
#[path = "support/pgbouncer.rs"]
pub(crate) mod pgbouncer;
#[path = "support/process.rs"]
pub(crate) mod process;
#[path = "support/relay.rs"]
pub(crate) mod relay;
#[path = "support/rough.rs"]
pub(crate) mod rough;
#[path = "support/shared.rs"]
mod shared;
#[path = "support/trial.rs"]
mod trial;

pub(crate) use database::TestDatabase;
pub(crate) use eventually::{SOON, eventually};
pub(crate) use outbox::{Outbox, PARTITIONS};
pub(crate) use relay::{Relay, RelayProcess};
pub(crate) use shared::{migrate_template_with, options_for_tests};
pub(crate) use trial::{Missing, Skip, alone, long, run, trials, with_both, with_kafka, with_postgres};
