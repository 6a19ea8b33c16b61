//! Fetches the jars of Debezium and Kafka Connect, once per user: the ones that the trial of record parity uses.

use std::path::PathBuf;

/// Returns the directory of the jars.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
    lab::kafka::fetched("debezium", "Debezium", include_str!("../../tests/parity/pom.xml"))
}
