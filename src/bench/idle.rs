//! Measures `idle`: the cost of a relay while there is nothing to do.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::{Executor, PgConnection, Row};

use super::Bench;
use super::cost::Meter;
use super::drain;
use super::failure::BenchError;
use super::steady::Steady;

/// The time for the relay to become idle after its first event, and for its sessions to report their statistics.
const REST: Duration = Duration::from_secs(5);

/// The time in which the server is watched without a relay. The work of others in this database is subtracted from the result.
const BASELINE: Duration = Duration::from_secs(10);

/// The cost of an idle relay.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Idle {
    pub(crate) seconds: f64,
    /// The relay's CPU time in percent of one core.
    pub(crate) relay_cpu_percent: Option<f64>,
    /// The CPU time of the relay's Postgres sessions in percent of one core.
    pub(crate) relay_sessions_cpu_percent: Option<f64>,
    /// The transactions of this database in `pg_stat_database`, minus the rate without a relay. An idle relay's transactions
    /// are single queries. Sessions report their counts once a second, so the error is one second's worth.
    pub(crate) queries_per_s: f64,
    pub(crate) baseline_queries_per_s: f64,
    /// The WAL of the whole server, minus the rate without a relay.
    pub(crate) wal_bytes_per_s: f64,
    pub(crate) baseline_wal_bytes_per_s: f64,
    pub(crate) relay_peak_memory_bytes: Option<u64>,
}

/// The server's counters at one time.
#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    transactions: i64,
    wal: i64,
}

pub(crate) async fn idle(bench: &Bench, seconds: u64) -> Result<Idle, BenchError> {
    let schema = bench.schemas.make().await?;
    let mut conn = bench.schemas.connect().await?;
    bench.progress.set_message("waiting for the server to rest");
    tokio::time::sleep(REST).await;
    let first = count(&mut conn).await?;
    bench.progress.set_message("without a relay");
    tokio::time::sleep(BASELINE).await;
    let baseline = first.until(&count(&mut conn).await?);

    let mut steady = Steady::start(bench, &schema, 1).await?;
    tokio::time::sleep(REST).await;
    let mut meter = Meter::new(&bench.schemas, &schema).await?;
    let (before, began) = (meter.read(&steady.relays).await?, count(&mut conn).await?);
    for second in 0..seconds {
        bench.progress.set_message(format!("idle for {second} of {seconds} s"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        steady.check()?;
    }
    let (after, ended) = (meter.read(&steady.relays).await?, count(&mut conn).await?);
    let passed = ended.at.duration_since(began.at).as_secs_f64();
    let with_relay = began.until(&ended);
    drain::stop(std::mem::take(&mut steady.relays))?;
    drop(steady);
    bench.schemas.remove(&schema.name).await?;
    let percent = |cpu: Duration| cpu.as_secs_f64() / passed * 100.0;
    Ok(Idle {
        seconds: passed,
        relay_cpu_percent: before.relay_cpu_until(&after).map(percent),
        relay_sessions_cpu_percent: before.relay_sessions_cpu_until(&after).map(percent),
        queries_per_s: (with_relay.0 - baseline.0).max(0.0),
        baseline_queries_per_s: baseline.0,
        wal_bytes_per_s: (with_relay.1 - baseline.1).max(0.0),
        baseline_wal_bytes_per_s: baseline.1,
        relay_peak_memory_bytes: after.peak_memory(),
    })
}

async fn count(conn: &mut PgConnection) -> Result<Counted, BenchError> {
    // Do not read the statistics snapshot of an earlier query.
    conn.execute("select pg_stat_clear_snapshot()").await?;
    let sql = "select xact_commit + xact_rollback, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8 \
               from pg_stat_database where datname = current_database()";
    let row = sqlx::query(sql).fetch_one(conn).await?;
    Ok(Counted { at: Instant::now(), transactions: row.try_get(0)?, wal: row.try_get(1)? })
}

impl Counted {
    /// Returns transactions and bytes of WAL per second between two readings.
    fn until(&self, later: &Self) -> (f64, f64) {
        let seconds = later.at.duration_since(self.at).as_secs_f64();
        let rate = |before: i64, after: i64| (after - before) as f64 / seconds;
        (rate(self.transactions, later.transactions), rate(self.wal, later.wal))
    }
}
