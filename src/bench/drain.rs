//! Measures `drain`: the time until an existing backlog is published and marked.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::Bench;
use super::bench_schema::BenchSchema;
use super::cost::{Costs, Meter};
use super::failure::BenchError;
use super::relay_process::RelayProcess;
use super::seed_rows::{As, Keys, RowSeeder};
use super::watermarks::Watermarks;
use crate::config::{Delivery, Settle};
use crate::store::retention;
use event_outbox::Names;

/// The interval between two reads of the topic while it fills. Each read costs the broker four small requests.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// The interval between two reads that wait for the first or last record, or the last row. It is the error of the times.
const BETWEEN_SHORT_LOOKS: Duration = Duration::from_millis(5);

/// The time without a new record after which the relay counts as stuck.
const STALLED: Duration = Duration::from_secs(60);

/// The backlog to drain, and its circumstances.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) events: u64,
    pub(crate) keys: Keys,
    /// The number of published rows in the table before the drain.
    pub(crate) retained: u64,
    pub(crate) relays: usize,
    /// True if the relay removes these rows during the drain.
    pub(crate) prunes: bool,
}

/// The metrics of one drain.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Drained {
    pub(crate) events: u64,
    pub(crate) relays: usize,
    /// The rate from the first record on the topic until every row is marked.
    pub(crate) events_per_s: f64,
    /// The rate from the start of the relay's process until every row is marked.
    pub(crate) events_per_s_from_start: f64,
    pub(crate) seconds: f64,
    pub(crate) first_record_after_ms: f64,
    /// The records in each whole second since the start of the process.
    pub(crate) records_by_second: Vec<u64>,
    /// The records on the topic. The number exceeds `events` by duplicates and, with exactly-once, by the markers of transactions.
    pub(crate) records: u64,
    /// True if the relay published in transactions.
    pub(crate) in_transactions: bool,
    /// The rows marked PUBLISHED; fewer than `events` if some became DEAD.
    pub(crate) published: u64,
    /// The retained rows that the relay removed during the drain.
    pub(crate) pruned: u64,
    /// False if the bench lacks the right to run `checkpoint`: a checkpoint may have run during the measurement.
    pub(crate) checkpoint_before: bool,
    /// The autovacuum and autoanalyze runs on the outbox since it was created.
    pub(crate) autovacuums: i64,
    pub(crate) costs: Costs,
    /// The stages on which the relays' workers spent their time while they had work.
    pub(crate) stages: Option<Shares>,
    /// The last log line of each relay.
    pub(crate) relay_summaries: Vec<serde_json::Value>,
}

/// The shares of the workers' time, from 0 to 1; the sum is 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Shares {
    /// The share of locking and reading rows. If cycles follow each other, the `begin` belongs to the settle before.
    pub(crate) claim: f64,
    /// The share of building records and passing them to the producer.
    pub(crate) send: f64,
    /// The share of waiting for the brokers.
    pub(crate) acks: f64,
    /// The share of marking and committing.
    pub(crate) settle: f64,
}

/// The fields for the stages of a cycle, in seconds, in the last log line of a relay.
const STAGES: [&str; 4] = ["claim_s", "send_s", "acks_s", "settle_s"];

/// Adds up a field of the relays' last log lines; a line without the field is left out.
fn sum(summaries: &[serde_json::Value], field: &str) -> f64 {
    summaries.iter().filter_map(|summary| summary[field].as_f64()).sum()
}

impl Shares {
    /// Computes the value from the relays' last log lines; returns `None` if these lack the fields.
    fn from_summaries(summaries: &[serde_json::Value]) -> Option<Self> {
        let [claim, send, acks, settle] = STAGES.map(|stage| sum(summaries, stage));
        let all = claim + send + acks + settle;
        (all > 0.0).then(|| Self { claim: claim / all, send: send / all, acks: acks / all, settle: settle / all })
    }
}

/// The average cycle of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct MeanCycle {
    pub(crate) events: f64,
    pub(crate) claim_ms: f64,
    pub(crate) send_ms: f64,
    pub(crate) acks_ms: f64,
    pub(crate) settle_ms: f64,
}

impl MeanCycle {
    /// Computes the value from the relays' last log lines; returns `None` if these lack the fields.
    pub(crate) fn from_summaries(summaries: &[serde_json::Value]) -> Option<Self> {
        let cycles = sum(summaries, "cycles");
        let [claim_ms, send_ms, acks_ms, settle_ms] = STAGES.map(|stage| sum(summaries, stage) * 1000.0 / cycles);
        let events = sum(summaries, "published_total") / cycles;
        (cycles > 0.0).then_some(Self { events, claim_ms, send_ms, acks_ms, settle_ms })
    }
}

/// Seeds a schema, drains it and removes it.
pub(crate) async fn drain(bench: &Bench, backlog: Backlog) -> Result<Drained, BenchError> {
    let schema = bench.schemas.make().await?;
    let checkpoint = seed_backlog(bench, &schema, backlog).await?;
    let drained = drain_seeded(bench, &schema, backlog, checkpoint).await?;
    bench.schemas.remove(&schema.name).await?;
    Ok(drained)
}

async fn seed_backlog(bench: &Bench, schema: &BenchSchema, backlog: Backlog) -> Result<bool, BenchError> {
    if backlog.retained > 0 {
        let conn = bench.schemas.connect().await?;
        let mut seeder = RowSeeder::new(conn, schema, &bench.samples, backlog.keys, As::Published).await?;
        seeder.seed(backlog.retained, &bench.progress).await?;
    }
    let conn = bench.schemas.connect().await?;
    let mut seeder = RowSeeder::new(conn, schema, &bench.samples, backlog.keys, As::Pending).await?;
    seeder.seed(backlog.events, &bench.progress).await?;
    Ok(seeder.checkpoint().await)
}

async fn drain_seeded(
    bench: &Bench,
    schema: &BenchSchema,
    backlog: Backlog,
    checkpoint_before: bool,
) -> Result<Drained, BenchError> {
    let mut meter = Meter::new(&bench.schemas, schema).await?;
    let mut end = End::new(bench, schema, backlog).await?;
    let watermarks = Watermarks::new(&bench.schemas, schema)?;
    // Connect and fetch the partitions' leaders before the clock runs.
    watermarks.records().await?;
    let before = meter.read(&[]).await?;
    let started = Instant::now();
    let mut launch = bench.launch.clone();
    if backlog.prunes {
        launch.overrides.push(("retention".to_owned(), "delete".to_owned()));
    }
    let mut relays =
        (0..backlog.relays).map(|index| RelayProcess::start(&launch, schema, index)).collect::<Result<Vec<_>, _>>()?;
    let mut watch = Watch { bench, watermarks, events: backlog.events, started, first: None, samples: vec![(0.0, 0)] };
    watch.until_all_are_on_the_topic(&mut relays).await?;
    let marked = end.until_all_are_marked(&mut relays).await?;
    let mut after = meter.read(&relays).await?;
    let records = watch.watermarks.records().await?;
    let relay_summaries = stop(relays)?;
    meter.reread_images(&mut after).await;
    let first = watch.first.unwrap_or(started);
    let published = end.published(bench.settings.relay.settle, backlog.events).await?;
    Ok(Drained {
        events: backlog.events,
        relays: backlog.relays,
        events_per_s: backlog.events as f64 / marked.duration_since(first).as_secs_f64(),
        events_per_s_from_start: backlog.events as f64 / marked.duration_since(started).as_secs_f64(),
        seconds: marked.duration_since(first).as_secs_f64(),
        first_record_after_ms: first.duration_since(started).as_secs_f64() * 1e3,
        records_by_second: by_second(&watch.samples),
        records,
        in_transactions: bench.settings.relay.delivery == Delivery::ExactlyOnce,
        published,
        pruned: end.pruned().await?,
        checkpoint_before,
        autovacuums: end.autovacuums().await?,
        costs: meter.costs(&before, &after, backlog.events),
        stages: Shares::from_summaries(&relay_summaries),
        relay_summaries,
    })
}

/// Stops the relays cleanly, one after the other.
pub(crate) fn stop(relays: Vec<RelayProcess>) -> Result<Vec<serde_json::Value>, BenchError> {
    relays.into_iter().map(RelayProcess::stop).collect()
}

/// Watches the topic.
struct Watch<'b> {
    bench: &'b Bench,
    watermarks: Watermarks,
    events: u64,
    started: Instant,
    first: Option<Instant>,
    /// Pairs of seconds since the start and records up to then.
    samples: Vec<(f64, u64)>,
}

impl Watch<'_> {
    async fn until_all_are_on_the_topic(&mut self, relays: &mut [RelayProcess]) -> Result<(), BenchError> {
        let mut moved = Instant::now();
        loop {
            let records = self.watermarks.records().await?;
            let last = self.samples.last().map_or(0, |(_, records)| *records);
            if records > 0 {
                self.first.get_or_insert_with(Instant::now);
            }
            if records > last {
                moved = Instant::now();
                self.samples.push((self.started.elapsed().as_secs_f64(), records));
                self.bench.progress.set_message(progress(&self.samples, self.events));
            }
            if records >= self.events {
                return Ok(());
            }
            for relay in relays.iter_mut() {
                relay.check()?;
                if moved.elapsed() > STALLED {
                    let what = format!("records on the topic ({records} of {})", self.events);
                    return Err(BenchError::Stalled { what, within: STALLED, log: format!("\n{}", relay.log_tail()) });
                }
            }
            let is_near_an_end = records == 0 || records >= self.events / 20 * 19;
            tokio::time::sleep(if is_near_an_end { BETWEEN_SHORT_LOOKS } else { BETWEEN_LOOKS }).await;
        }
    }
}

fn progress(samples: &[(f64, u64)], events: u64) -> String {
    let (now, records) = samples.last().copied().unwrap_or_default();
    let (then, before) = samples.iter().rev().find(|(then, _)| now - then >= 1.0).copied().unwrap_or_default();
    let rate = (records - before) as f64 / (now - then).max(0.001);
    format!("{records} of {events} published, {rate:.0}/s")
}

/// Computes the records in each whole second, interpolated between the samples around its ends.
fn by_second(samples: &[(f64, u64)]) -> Vec<u64> {
    let at = |second: f64| {
        let after = samples.partition_point(|(then, _)| *then <= second);
        let (Some((t0, n0)), Some((t1, n1))) = (samples.get(after.wrapping_sub(1)), samples.get(after)) else {
            return samples.last().map_or(0.0, |(_, records)| *records as f64);
        };
        *n0 as f64 + (*n1 - *n0) as f64 * (second - t0) / (t1 - t0)
    };
    let whole = samples.last().map_or(0.0, |(then, _)| then.floor()) as u32;
    (0..whole).map(|second| (at(f64::from(second) + 1.0) - at(f64::from(second))).round() as u64).collect()
}

/// Watches for the last pending rows.
struct End {
    conn: PgConnection,
    names: Names,
    /// The number of rows in the table before the backlog.
    retained: u64,
    /// Ids above this one are checked first. The scan of all others, which are marked by then, would be part of the measured time.
    tail: i64,
}

impl End {
    async fn new(bench: &Bench, schema: &BenchSchema, backlog: Backlog) -> Result<Self, BenchError> {
        let mut conn = bench.schemas.connect().await?;
        // Use the relay's own probe, and force the index that the probe uses.
        conn.execute("set enable_seqscan = off; set enable_bitmapscan = off; set enable_sort = off").await?;
        let last = backlog.retained + backlog.events;
        Ok(Self {
            conn,
            names: schema.names.clone(),
            retained: backlog.retained,
            tail: (last - backlog.events / 20) as i64,
        })
    }

    /// Waits until every row is marked, and returns the time of the last mark.
    async fn until_all_are_marked(&mut self, relays: &mut [RelayProcess]) -> Result<Instant, BenchError> {
        let marked = self.until_marked_above(self.tail, relays).await?;
        // Rows below the tail should be marked long ago. If one is not, wait for it, or the metrics would be wrong.
        if self.is_any_pending_above(0).await? {
            return self.until_marked_above(0, relays).await;
        }
        Ok(marked)
    }

    async fn is_any_pending_above(&mut self, start: i64) -> Result<bool, sqlx::Error> {
        let sql = format!(
            "select exists (select from {} where id > {start} and status = 'PENDING' order by id limit 1)",
            self.names.outbox()
        );
        self.conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?.try_get(0)
    }

    async fn until_marked_above(&mut self, id: i64, relays: &mut [RelayProcess]) -> Result<Instant, BenchError> {
        let began = Instant::now();
        while self.is_any_pending_above(id).await? {
            for relay in relays.iter_mut() {
                relay.check()?;
                if began.elapsed() > STALLED {
                    let (what, log) = ("the last marks".to_owned(), format!("\n{}", relay.log_tail()));
                    return Err(BenchError::Stalled { what, within: STALLED, log });
                }
            }
            tokio::time::sleep(BETWEEN_SHORT_LOOKS).await;
        }
        Ok(Instant::now())
    }

    /// Counts the events of the drain that are published: marked, or deleted.
    async fn published(&mut self, settle: Settle, events: u64) -> Result<u64, BenchError> {
        let (outbox, retained) = (self.names.outbox(), self.retained);
        let (status, is_left) = match settle {
            Settle::Mark => ("status = 'PUBLISHED'", false),
            Settle::Delete => ("true", true),
        };
        let sql = format!("select count(*) from {outbox} where {status} and id > {retained}");
        let counted: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.conn).await?;
        let counted = counted.unsigned_abs();
        Ok(if is_left { events.saturating_sub(counted) } else { counted })
    }

    /// Counts the removed rows. Ids are allocated from 1, and removed from there.
    async fn pruned(&mut self) -> Result<u64, BenchError> {
        Ok(retention::pruned_up_to(&mut self.conn, &self.names).await?.unsigned_abs())
    }

    async fn autovacuums(&mut self) -> Result<i64, BenchError> {
        let sql =
            "select autovacuum_count + autoanalyze_count from pg_stat_user_tables where relid = $1::text::regclass";
        let row = sqlx::query(sql).bind(self.names.outbox()).fetch_optional(&mut self.conn).await?;
        Ok(row.map_or(Ok(0), |row| row.try_get(0))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_of_all_relays_are_shares_of_their_time() {
        let summary = serde_json::json!({"claim_s": 1.0, "send_s": 0.5, "acks_s": 0.25, "settle_s": 0.25});
        let silent = serde_json::json!({"published_total": 7});
        let shares = Shares { claim: 0.5, send: 0.25, acks: 0.125, settle: 0.125 };
        assert_eq!(Shares::from_summaries(&[summary.clone(), silent.clone(), summary]), Some(shares));
        assert_eq!(Shares::from_summaries(&[silent]), None);
    }

    #[test]
    fn a_mean_cycle_is_of_all_relays() {
        let summary = |cycles: u32| {
            serde_json::json!({
                "cycles": cycles, "published_total": 30, "claim_s": 0.1, "send_s": 0.0, "acks_s": 0.2, "settle_s": 0.3
            })
        };
        let mean = MeanCycle { events: 3.0, claim_ms: 10.0, send_ms: 0.0, acks_ms: 20.0, settle_ms: 30.0 };
        assert_eq!(MeanCycle::from_summaries(&[summary(5), summary(15)]), Some(mean));
        assert_eq!(MeanCycle::from_summaries(&[serde_json::json!({"published_total": 7})]), None);
    }

    #[test]
    fn records_are_counted_by_whole_seconds() {
        let samples = [(0.0, 0), (0.5, 50), (1.5, 250), (2.0, 300), (2.4, 300)];
        assert_eq!(by_second(&samples), [150, 150]);
        assert_eq!(by_second(&[(0.0, 0)]), Vec::<u64>::new());
    }
}
