//! Measures the cost of events: WAL, and the CPU time of relays and servers. Reads before and after, and divides by the events.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::bench_schema::{BenchSchema, BenchSchemas};
use super::failure::BenchError;
use super::process;
use super::relay_process::RelayProcess;
use event_outbox::names::literal;

/// The costs of one measurement, per event. A cost that could not be measured is null, with the reason in `not_measured`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Costs {
    /// The WAL of the whole server, including that of autovacuum and of other sessions.
    pub(crate) wal_bytes_per_event: f64,
    /// The full-page images in the WAL: pages that were changed for the first time after a checkpoint. Counts the whole server.
    pub(crate) wal_full_page_images_per_event: Option<f64>,
    /// The CPU time of all relays together.
    pub(crate) relay_cpu_us_per_event: Option<f64>,
    /// The CPU time of the Postgres sessions that serve the relays.
    pub(crate) relay_sessions_cpu_us_per_event: Option<f64>,
    /// The CPU time of the whole server: sessions of relays and writers, WAL writer, autovacuum.
    pub(crate) postgres_cpu_us_per_event: Option<f64>,
    pub(crate) broker_cpu_us_per_event: Option<f64>,
    /// The peak memory of the largest relay.
    pub(crate) relay_peak_memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) not_measured: BTreeMap<&'static str, String>,
}

/// One reading of all meters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    wal: i64,
    full_page_images: Option<i64>,
    relays: Option<Duration>,
    relay_sessions: Option<Duration>,
    postgres: Option<Duration>,
    broker: Option<Duration>,
    peak: Option<u64>,
}

/// The sources of the readings: a connection, and the servers' process ids.
pub(crate) struct Meter {
    conn: PgConnection,
    relay_sessions: String,
    postmaster: Result<u32, String>,
    broker: Result<u32, String>,
}

impl Meter {
    pub(crate) async fn new(schemas: &BenchSchemas, schema: &BenchSchema) -> Result<Self, BenchError> {
        let mut conn = schemas.connect().await?;
        let relays = literal(&format!("{}-r", schema.name));
        let relay_sessions =
            format!("select pid from pg_stat_activity where position({relays} in application_name) > 0");
        let postmaster = postmaster(&mut conn).await?;
        Ok(Self { conn, relay_sessions, postmaster, broker: broker(schemas.kafka().brokers()) })
    }

    /// Takes one reading of all meters.
    pub(crate) async fn read(&mut self, relays: &[RelayProcess]) -> Result<Reading, BenchError> {
        let usage_of = |pid: &u32| process::usage(*pid).map(|usage| usage.cpu);
        let row =
            sqlx::query("select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8").fetch_one(&mut self.conn).await?;
        let sessions: Vec<i32> =
            sqlx::query_scalar(AssertSqlSafe(self.relay_sessions.as_str())).fetch_all(&mut self.conn).await?;
        let is_local = self.postmaster.is_ok();
        Ok(Reading {
            wal: row.try_get(0)?,
            full_page_images: self.images().await,
            relays: relays.iter().map(|relay| process::usage(relay.pid).map(|usage| usage.cpu)).sum(),
            relay_sessions: is_local.then(|| sessions.iter().filter_map(|pid| usage_of(&pid.unsigned_abs())).sum()),
            postgres: self.postmaster.as_ref().ok().and_then(|pid| process::usage_of_family(*pid)),
            broker: self.broker.as_ref().ok().and_then(usage_of),
            peak: relays.iter().map(|relay| process::peak_memory(relay.pid)).max().flatten(),
        })
    }

    /// Reads the full-page images again. Sessions report their counts once a second and at their end, so call it after the relays' end.
    pub(crate) async fn reread_images(&mut self, reading: &mut Reading) {
        reading.full_page_images = self.images().await;
    }

    async fn images(&mut self) -> Option<i64> {
        // The view exists since Postgres 14.
        sqlx::query_scalar("select wal_fpi from pg_stat_wal").fetch_one(&mut self.conn).await.ok()
    }

    /// Computes the costs between two readings.
    pub(crate) fn costs(&self, before: &Reading, after: &Reading, events: u64) -> Costs {
        let events = events.max(1) as f64;
        let cpu = |before: Option<Duration>, after: Option<Duration>| {
            Some(after?.saturating_sub(before?).as_secs_f64() * 1e6 / events)
        };
        let images = before.full_page_images.zip(after.full_page_images).map(|(before, after)| after - before);
        let mut not_measured = BTreeMap::new();
        if let Err(reason) = &self.postmaster {
            not_measured.insert("postgres_cpu_us_per_event", reason.clone());
            not_measured.insert("relay_sessions_cpu_us_per_event", reason.clone());
        }
        if let Err(reason) = &self.broker {
            not_measured.insert("broker_cpu_us_per_event", reason.clone());
        }
        if after.relays.is_none() {
            not_measured.insert("relay_cpu_us_per_event", "there is no /proc on this system".to_owned());
        }
        if images.is_none() {
            not_measured.insert("wal_full_page_images_per_event", "the server has no pg_stat_wal".to_owned());
        }
        Costs {
            wal_bytes_per_event: (after.wal - before.wal) as f64 / events,
            wal_full_page_images_per_event: images.map(|images| images as f64 / events),
            relay_cpu_us_per_event: cpu(before.relays, after.relays),
            relay_sessions_cpu_us_per_event: cpu(before.relay_sessions, after.relay_sessions),
            postgres_cpu_us_per_event: cpu(before.postgres, after.postgres),
            broker_cpu_us_per_event: cpu(before.broker, after.broker),
            relay_peak_memory_bytes: after.peak,
            not_measured,
        }
    }
}

impl Reading {
    /// Returns the bytes of WAL between two readings.
    pub(crate) fn wal_until(&self, after: &Reading) -> u64 {
        u64::try_from(after.wal - self.wal).unwrap_or(0)
    }

    /// Returns the CPU time of the relays between two readings.
    pub(crate) fn relay_cpu_until(&self, after: &Reading) -> Option<Duration> {
        Some(after.relays?.saturating_sub(self.relays?))
    }

    /// Returns the CPU time of the relays' sessions between two readings.
    pub(crate) fn relay_sessions_cpu_until(&self, after: &Reading) -> Option<Duration> {
        Some(after.relay_sessions?.saturating_sub(self.relay_sessions?))
    }

    pub(crate) fn peak_memory(&self) -> Option<u64> {
        self.peak
    }
}

/// Finds the postmaster's process id if it runs on this machine: the parent of the bench's own backend.
async fn postmaster(conn: &mut PgConnection) -> Result<Result<u32, String>, BenchError> {
    let row = sqlx::query("select pg_backend_pid(), current_database()").fetch_one(conn).await?;
    let (backend, database) = (row.try_get::<i32, _>(0)?.unsigned_abs(), row.try_get::<String, _>(1)?);
    let elsewhere = || Err("Postgres does not run on this machine, or not where its processes can be seen".to_owned());
    // A remote backend's id may be another process here. A backend's command line contains its database, so compare that.
    let is_backend = process::command_line(backend)
        .is_some_and(|line| line.starts_with("postgres: ") && line.contains(&format!(" {database} ")));
    Ok(match process::usage(backend) {
        Some(usage) if is_backend => Ok(usage.parent),
        _ => elsewhere(),
    })
}

/// Finds the broker's process id if it runs on this machine: the process that listens on the first bootstrap port.
pub(crate) fn broker(bootstrap: &str) -> Result<u32, String> {
    let first = bootstrap.split(',').next().unwrap_or_default();
    let (host, port) = first.rsplit_once(':').unwrap_or_default();
    if bootstrap.contains(',') || !matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
        return Err("Kafka is not one broker on this machine".to_owned());
    }
    let listener = port.parse().ok().and_then(process::listener);
    listener.ok_or_else(|| "the process that listens on the broker's port cannot be seen".to_owned())
}
