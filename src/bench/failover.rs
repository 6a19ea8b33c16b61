//! Measures `failover`: two relays run under a steady load, one is killed with SIGKILL, and its lanes take some time to go on.
//!
//! Only events that were due after the kill count. An earlier event that arrives after the kill may have been published before
//! the kill.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::Bench;
use super::bench_schema::BenchSchema;
use super::drain;
use super::failure::BenchError;
use super::pacer::{Pacer, Schedule};
use super::relay_process::RelayProcess;
use super::steady::{BETWEEN_LOOKS, Steady};
use event_outbox::names::literal;

/// The number of kills.
const KILLS: usize = 5;

/// The wait after a relay has joined. The lanes are reassigned within 5 s; the rest of the time is a steady state.
const SETTLE: Duration = Duration::from_secs(7);

/// The number of reads of the lanes' locks. Locks last only as long as a transaction, so many reads are needed.
const LOOKS: usize = 300;
const BETWEEN_LOCK_LOOKS: Duration = Duration::from_millis(5);

/// The time limit for the recovery. Lanes of a dead relay that do not go on by then make the run fail.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);

/// The entities of the load: several per lane, so that each lane has events all the time.
const ENTITIES: u64 = 200;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failover {
    pub(crate) rate_events_per_s: u64,
    pub(crate) kills: Vec<Kill>,
    /// The longest of `first_of_its_lanes_ms`.
    pub(crate) worst_ms: f64,
    pub(crate) median_ms: f64,
    /// The events that were written more than once to the topic in the whole run.
    pub(crate) duplicates: u64,
    pub(crate) missing: u64,
}

/// One SIGKILL. Times run from the kill to an event's arrival at the consumer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Kill {
    /// The lanes of the killed relay.
    pub(crate) lanes: BTreeSet<i16>,
    /// The time to the first event, of any lane, that was due after the kill.
    pub(crate) any_ms: f64,
    /// The time to the first event of a lane of the killed relay that was due after the kill.
    pub(crate) first_of_its_lanes_ms: f64,
    /// The time until each lane of the killed relay has had its first event.
    pub(crate) all_of_its_lanes_ms: f64,
}

pub(crate) async fn failover(bench: &Bench, rate: u64) -> Result<Failover, BenchError> {
    let schema = bench.schemas.make().await?;
    let mut conn = bench.schemas.connect().await?;
    let mut steady = Steady::start(bench, &schema, 2).await?;
    let schedule = Schedule::starting_soon(rate, ENTITIES);
    let pacer = steady.write(bench, &schema, schedule, None)?;
    let mut kills = Vec::new();
    for kill in 0..KILLS {
        bench.progress.set_message(format!("kill {} of {KILLS}", kill + 1));
        rest(&mut steady, &pacer, SETTLE).await?;
        kills.push(kill_one(&mut steady, &mut conn, &schema, schedule).await?);
        steady.relays.push(RelayProcess::start(&bench.launch, &schema, kill + 2)?);
    }
    let written = tokio::task::spawn_blocking(|| pacer.stop()).await.map_err(|_| BenchError::Thread)??;
    let missing = missing_after_a_while(&mut steady, written.iter().map(|written| written.event).collect()).await?;
    let duplicates = (steady.receiver.events() + missing).saturating_sub(written.len());
    drain::stop(std::mem::take(&mut steady.relays))?;
    drop(steady);
    bench.schemas.remove(&schema.name).await?;
    let times: Vec<f64> = kills.iter().map(|kill| kill.first_of_its_lanes_ms).collect();
    Ok(Failover {
        rate_events_per_s: rate,
        worst_ms: times.iter().copied().fold(0.0, f64::max),
        median_ms: super::percentiles::median(times),
        kills,
        duplicates: duplicates as u64,
        missing: missing as u64,
    })
}

async fn rest(steady: &mut Steady, pacer: &Pacer, time: Duration) -> Result<(), BenchError> {
    let began = Instant::now();
    while began.elapsed() < time {
        steady.check()?;
        if pacer.has_lost_a_thread() {
            return Err(BenchError::Thread);
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    Ok(())
}

/// Kills the oldest relay.
async fn kill_one(
    steady: &mut Steady,
    conn: &mut PgConnection,
    schema: &BenchSchema,
    schedule: Schedule,
) -> Result<Kill, BenchError> {
    let lanes = lanes_of(conn, schema, &steady.relays[0].name).await?;
    let lane_of = lanes_of_entities(conn, schema, schedule).await?;
    let seen = steady.receiver.events();
    let killed_us = schedule.now_us();
    steady.relays.remove(0).kill();
    let began = Instant::now();
    loop {
        steady.check()?;
        let arrived: Vec<(i16, i64)> = steady
            .receiver
            .since(seen)
            .into_iter()
            .filter(|record| schedule.due_us(record.event) > killed_us)
            .filter_map(|record| Some((*lane_of.get(&schedule.entity(record.event))?, record.at_us)))
            .collect();
        if let Some(kill) = recovered(&lanes, &arrived, killed_us) {
            return Ok(kill);
        }
        if began.elapsed() > RECOVERED_WITHIN {
            let what = format!("lanes {lanes:?} of the killed relay");
            return Err(BenchError::Stalled { what, within: RECOVERED_WITHIN, log: steady.log() });
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// Returns the times, once every lane has had an event. `arrived` has pairs of lane and time of arrival, ordered by time.
fn recovered(lanes: &BTreeSet<i16>, arrived: &[(i16, i64)], killed_us: i64) -> Option<Kill> {
    let ms = |at_us: i64| (at_us - killed_us) as f64 / 1e3;
    let first_of = |lane: &i16| arrived.iter().find(|(found, _)| found == lane).map(|(_, at_us)| ms(*at_us));
    let firsts = lanes.iter().map(first_of).collect::<Option<Vec<f64>>>()?;
    Some(Kill {
        lanes: lanes.clone(),
        any_ms: ms(arrived.first()?.1),
        first_of_its_lanes_ms: firsts.iter().copied().reduce(f64::min)?,
        all_of_its_lanes_ms: firsts.iter().copied().reduce(f64::max)?,
    })
}

/// Returns the lanes that this relay owns more often than the other one, by the locks of its sessions.
async fn lanes_of(conn: &mut PgConnection, schema: &BenchSchema, relay: &str) -> Result<BTreeSet<i16>, BenchError> {
    let sql = format!(
        "select lanes.lane::int8, right(a.application_name, {length}) = {relay} \
         from (select lane, xmax::text::int8 as locker from {lane_table}) lanes \
         join pg_locks l on l.locktype = 'transactionid' and l.granted and l.transactionid::text::int8 = lanes.locker \
         join pg_stat_activity a using (pid)",
        length = relay.len(),
        relay = literal(relay),
        lane_table = schema.names.companion("lane"),
    );
    let mut held: HashMap<i16, i32> = HashMap::new();
    for _ in 0..LOOKS {
        for row in sqlx::query(AssertSqlSafe(sql.as_str())).fetch_all(&mut *conn).await? {
            let vote = if row.try_get(1)? { 1 } else { -1 };
            *held.entry(row.try_get::<i64, _>(0)? as i16).or_default() += vote;
        }
        tokio::time::sleep(BETWEEN_LOCK_LOOKS).await;
    }
    let lanes: BTreeSet<i16> = held.into_iter().filter(|(_, votes)| *votes > 0).map(|(lane, _)| lane).collect();
    if lanes.is_empty() {
        let what = format!("{relay} to lock a lane");
        return Err(BenchError::Stalled { what, within: BETWEEN_LOCK_LOOKS * LOOKS as u32, log: String::new() });
    }
    Ok(lanes)
}

async fn lanes_of_entities(
    conn: &mut PgConnection,
    schema: &BenchSchema,
    schedule: Schedule,
) -> Result<HashMap<String, i16>, BenchError> {
    let sql = format!("select distinct entity_id, lane from {} where entity_id is not null", schema.names.outbox());
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(conn).await?;
    let mut lanes = HashMap::with_capacity(schedule.entities as usize);
    for row in rows {
        lanes.insert(row.try_get(0)?, row.try_get(1)?);
    }
    Ok(lanes)
}

/// Waits until no event arrives any more, and returns how many of `events` are missing.
async fn missing_after_a_while(steady: &mut Steady, events: BTreeSet<u64>) -> Result<usize, BenchError> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        steady.check()?;
        let received = steady.receiver.since(0);
        let arrived: BTreeSet<u64> = received.iter().map(|record| record.event).collect();
        let missing = events.difference(&arrived).count();
        if missing == 0 || moved.elapsed() > Duration::from_secs(15) {
            return Ok(missing);
        }
        if received.len() > last {
            (last, moved) = (received.len(), Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_replaced_when_each_of_its_lanes_has_had_an_event() {
        let lanes = BTreeSet::from([3, 4]);
        let arrived = [(9, 1_002_000), (4, 1_300_000), (9, 1_301_000)];
        assert!(recovered(&lanes, &arrived, 1_000_000).is_none());
        let arrived = [(9, 1_002_000), (4, 1_300_000), (3, 1_450_000), (4, 1_500_000)];
        let kill = recovered(&lanes, &arrived, 1_000_000).unwrap();
        assert_eq!((kill.any_ms, kill.first_of_its_lanes_ms, kill.all_of_its_lanes_ms), (2.0, 300.0, 450.0));
    }
}
