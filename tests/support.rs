//! What all suites share.
//!
//! - `kafka`: a real Kafka. Stands by itself, so that a benchmark can include it alone with `#[path]`.
//! - `shared`: one Postgres and one Kafka per run, started when the first test asks.
//! - `database`: a database per test, made from a migrated template.
//! - `trial`: registers tests with what they need, skips those whose needs this machine cannot meet, and says so.
//! - `eventually`: waiting without sleeping.

#[path = "support/database.rs"]
mod database;
#[path = "support/eventually.rs"]
mod eventually;
#[path = "support/kafka.rs"]
pub(crate) mod kafka;
#[path = "support/shared.rs"]
mod shared;
#[path = "support/trial.rs"]
mod trial;

pub(crate) use database::TestDatabase;
pub(crate) use eventually::{SOON, eventually};
pub(crate) use shared::{migrate_template_with, options_for_tests};
pub(crate) use trial::{alone, run, trials, with_both, with_kafka, with_postgres};
