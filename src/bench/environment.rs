//! Describes the machine, the servers and the settings of a run.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;
use sqlx::{Row, postgres::PgConnection};

use super::Bench;
use super::cost;
use super::failure::BenchError;
use super::process;

/// The Postgres settings that influence the metrics.
const POSTGRES_SETTINGS: &[&str] = &[
    "autovacuum",
    "fsync",
    "full_page_writes",
    "max_wal_size",
    "shared_buffers",
    "synchronous_commit",
    "wal_compression",
    "wal_level",
];

/// The relay's settings that are left out of the report, because they only name places.
const NOT_REPORTED: &[&str] = &[
    "database_url",
    "kafka_bootstrap_servers",
    "schema",
    "table",
    "processed_table",
    "topic",
    "name",
    "log_format",
    "log_level",
];

/// The machine of the bench, and the versions and settings of relay and servers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Environment {
    /// The cores of this machine; a server elsewhere has other ones.
    pub(crate) cores: usize,
    pub(crate) cpu: Option<String>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) postgres_version: String,
    pub(crate) postgres_settings: BTreeMap<String, String>,
    /// The broker's version; known only if the broker runs on this machine.
    pub(crate) broker_version: Option<String>,
    pub(crate) relay_version: &'static str,
    /// True for a build without optimization, whose metrics are meaningless.
    pub(crate) relay_is_debug_build: bool,
    /// The relay's settings that differ from their defaults.
    pub(crate) relay_settings: BTreeMap<&'static str, String>,
    pub(crate) relay_workers: usize,
}

impl Environment {
    pub(super) async fn new(bench: &Bench) -> Result<Self, BenchError> {
        let mut conn = bench.schemas.connect().await?;
        let is_reported = |name: &&str| !NOT_REPORTED.contains(name);
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: line_of("/proc/cpuinfo", "model name"),
            memory_bytes: line_of("/proc/meminfo", "MemTotal").and_then(|text| kilobytes(&text)),
            postgres_version: sqlx::query_scalar("show server_version").fetch_one(&mut conn).await?,
            postgres_settings: postgres_settings(&mut conn).await?,
            broker_version: broker_version(bench.schemas.kafka().brokers()),
            relay_version: env!("CARGO_PKG_VERSION"),
            relay_is_debug_build: cfg!(debug_assertions),
            relay_settings: bench.settings.non_defaults().into_iter().filter(|(name, _)| is_reported(name)).collect(),
            relay_workers: bench.settings.relay.workers,
        })
    }
}

async fn postgres_settings(conn: &mut PgConnection) -> Result<BTreeMap<String, String>, BenchError> {
    let sql = "select name, current_setting(name) from pg_settings where name = any ($1)";
    let names: Vec<String> = POSTGRES_SETTINGS.iter().map(|name| (*name).to_owned()).collect();
    let rows = sqlx::query(sql).bind(names).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Returns the value after `name :` in a file of `/proc`.
fn line_of(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kilobytes(text: &str) -> Option<u64> {
    Some(text.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Reads the broker's version from the name of a jar that the broker has open. The protocol does not tell the version.
fn broker_version(bootstrap: &str) -> Option<String> {
    let pid = cost::broker(bootstrap).ok()?;
    process::open_files(pid).find_map(|file| version_of_jar(file.file_name()?.to_str()?))
}

fn version_of_jar(name: &str) -> Option<String> {
    let (_, version) = name.strip_prefix("kafka_2.")?.strip_suffix(".jar")?.split_once('-')?;
    Some(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_version_is_in_the_name_of_its_jar() {
        assert_eq!(version_of_jar("kafka_2.13-4.1.1.jar").as_deref(), Some("4.1.1"));
        assert_eq!(version_of_jar("kafka-clients-4.1.1.jar"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(kilobytes("24 kB"), Some(24 * 1024));
    }
}
