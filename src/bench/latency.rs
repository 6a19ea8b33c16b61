//! Measures `latency`: the time until a consumer has an event, at a fixed rate with one transaction per event.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::Bench;
use super::cost::{Costs, Meter};
use super::drain::{self, MeanCycle};
use super::failure::BenchError;
use super::pacer::{Pacer, Schedule, Written};
use super::percentiles::Percentiles;
use super::receiver::Received;
use super::steady::{BETWEEN_LOOKS, Steady};

/// The time after the start whose events are not counted, because connections, caches and plans are not warm yet.
const WARM_UP: Duration = Duration::from_secs(2);

/// The time without any arrival after which the outstanding events count as missing.
const MISSING_AFTER: Duration = Duration::from_secs(15);

/// The latencies at one rate. The percentiles lack events that never arrived, so `missing` must be 0.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    /// The requested rate.
    pub(crate) rate_events_per_s: u64,
    pub(crate) seconds: u64,
    pub(crate) events: u64,
    pub(crate) missing: u64,
    /// The records of an event after its first one, summed over all events.
    pub(crate) duplicates: u64,
    /// The time from an event's scheduled time to its arrival at the consumer. Includes every stall of writer, relay and broker.
    pub(crate) from_schedule: Option<Percentiles>,
    /// The time from the commit's return in the writer to the arrival; negative if the consumer was faster.
    pub(crate) from_commit: Option<Percentiles>,
    /// The time from sending the insert to the commit's return in the writer: the share of Postgres.
    pub(crate) insert: Option<Percentiles>,
    /// The delay of the writer behind its schedule: the error of the bench itself, contained in `from_schedule`.
    pub(crate) writer_lag: Option<Percentiles>,
    pub(crate) mean_cycle: Option<MeanCycle>,
    /// The costs; `postgres_cpu_us_per_event` includes the inserts.
    pub(crate) costs: Costs,
}

/// Measures the latencies at `rate` for `seconds` after the warm-up.
pub(crate) async fn latency(bench: &Bench, rate: u64, seconds: u64) -> Result<Latency, BenchError> {
    let schema = bench.schemas.make().await?;
    let mut steady = Steady::start(bench, &schema, 1).await?;
    let mut meter = Meter::new(&bench.schemas, &schema).await?;
    let before = meter.read(&steady.relays).await?;
    let events = rate * (seconds + WARM_UP.as_secs());
    let schedule = Schedule::starting_soon(rate, bench.entities());
    let pacer = steady.write(bench, &schema, schedule, Some(events))?;
    let written = until_written(bench, &mut steady, pacer, events).await?;
    until_received(&mut steady, events).await?;
    let mut after = meter.read(&steady.relays).await?;
    let received = steady.receiver.since(0);
    let mean_cycle = MeanCycle::from_summaries(&drain::stop(std::mem::take(&mut steady.relays))?);
    meter.reread_images(&mut after).await;
    bench.schemas.remove(&schema.name).await?;
    let costs = meter.costs(&before, &after, events);
    Ok(Latency { mean_cycle, ..summarize(schedule, seconds, &written, &received, costs) })
}

async fn until_written(
    bench: &Bench,
    steady: &mut Steady,
    pacer: Pacer,
    events: u64,
) -> Result<Vec<Written>, BenchError> {
    while !pacer.is_done() {
        steady.check()?;
        bench.progress.set_message(format!("received {} of {events}", steady.receiver.events()));
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    pacer.finish()
}

/// Waits until all events have arrived, or no event arrives any more.
async fn until_received(steady: &mut Steady, events: u64) -> Result<(), BenchError> {
    let (mut last, mut moved) = (0, Instant::now());
    while (steady.receiver.events() as u64) < events && moved.elapsed() < MISSING_AFTER {
        steady.check()?;
        if steady.receiver.events() > last {
            (last, moved) = (steady.receiver.events(), Instant::now());
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    Ok(())
}

fn summarize(schedule: Schedule, seconds: u64, written: &[Written], received: &[Received], costs: Costs) -> Latency {
    let mut arrived: Vec<Option<i64>> = vec![None; written.len()];
    let mut duplicates = 0;
    for record in received {
        match arrived.get_mut(record.event as usize) {
            Some(first @ None) => *first = Some(record.at_us),
            _ => duplicates += 1,
        }
    }
    let warm_up = WARM_UP.as_micros() as i64;
    let counted: Vec<&Written> = written.iter().filter(|written| schedule.due_us(written.event) >= warm_up).collect();
    let arrival = |written: &Written| arrived.get(written.event as usize).copied().flatten();
    let of = |time: &dyn Fn(&Written) -> Option<i64>| {
        Percentiles::from_micros(counted.iter().filter_map(|w| time(w)).collect())
    };
    Latency {
        rate_events_per_s: schedule.events_per_s,
        seconds,
        events: counted.len() as u64,
        missing: counted.iter().filter(|written| arrival(written).is_none()).count() as u64,
        duplicates,
        from_schedule: of(&|w| Some(arrival(w)? - schedule.due_us(w.event))),
        from_commit: of(&|w| Some(arrival(w)? - w.committed_us)),
        insert: of(&|w| Some(w.committed_us - w.started_us)),
        writer_lag: of(&|w| Some(w.started_us - schedule.due_us(w.event))),
        mean_cycle: None,
        costs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cost::Costs;

    #[test]
    fn a_stall_counts_from_the_schedule_and_a_missing_event_is_reported() {
        let schedule = Schedule::starting_soon(1000, 10);
        // A writer that stalled for 100 ms after the warm-up.
        let written: Vec<_> = (0..3000)
            .map(|event| {
                let late = if (2000..2100).contains(&event) { 2_100_000 } else { schedule.due_us(event) };
                Written { event, started_us: late, committed_us: late + 500 }
            })
            .collect();
        let mut received: Vec<_> =
            written.iter().map(|w| Received { event: w.event, at_us: w.committed_us + 1000 }).collect();
        received.push(received[0]);
        received.retain(|record| record.event != 2999);
        let latency = summarize(schedule, 1, &written, &received, Costs::default());
        assert_eq!((latency.events, latency.missing, latency.duplicates), (1000, 1, 1));
        let (scheduled, committed) = (latency.from_schedule.unwrap(), latency.from_commit.unwrap());
        assert_eq!((committed.p50_ms, committed.max_ms), (1.0, 1.0));
        assert_eq!((scheduled.p50_ms, scheduled.max_ms), (1.5, 101.5));
        assert!(scheduled.p99_ms > 80.0);
    }
}
