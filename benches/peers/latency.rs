//! Measures latencies at a fixed rate with one transaction per event: the time from when an event was due until a consumer has
//! it. A stall counts for every event that was due in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use lab::demo::ChildServer;
use rdkafka::Message;
use rdkafka::consumer::BaseConsumer;
use serde::Serialize;
use sqlx::ConnectOptions;

use crate::outbox::Outbox;
use crate::topic::Topic;
use crate::{Sizes, process};

/// The seconds at the start whose events are not counted.
const WARM_UP: f64 = 2.0;

/// The fewest events that are counted.
const FEWEST: f64 = 12.0;

/// The time to connect before the first event is due.
const LEAD: Duration = Duration::from_millis(500);

/// The time without any arrival after which the outstanding events count as missing.
const MISSING_AFTER: Duration = Duration::from_secs(30);

/// The most events per second of one connection. The rest of the time is slack, so that a slow commit does not delay the next event.
const RATE_OF_A_CONNECTION: f64 = 125.0;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    pub(crate) rate_events_per_s: f64,
    pub(crate) events: usize,
    pub(crate) missing: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) cpu_us_per_event: f64,
    pub(crate) peak_memory_bytes: u64,
}

#[derive(Clone, Copy)]
struct Schedule {
    epoch: Instant,
    rate: f64,
}

impl Schedule {
    fn due(self, event: u32) -> Instant {
        self.epoch + Duration::from_secs_f64(f64::from(event) / self.rate)
    }
}

/// Measures `system` at each rate up to `most` events per second, which is what it can keep up with.
pub(crate) fn latencies(
    outbox: &Outbox,
    topic: &Topic,
    system: &ChildServer,
    sizes: &Sizes,
    most: f64,
) -> anyhow::Result<Vec<Latency>> {
    let rates = sizes.rates.iter().copied().filter(|rate| *rate <= most);
    rates.map(|rate| latency(outbox, topic, system, rate, f64::from(sizes.seconds))).collect()
}

fn latency(outbox: &Outbox, topic: &Topic, system: &ChildServer, rate: f64, seconds: f64) -> anyhow::Result<Latency> {
    eprintln!("{}: {rate} events/s", outbox.name);
    let warm_up = (rate * WARM_UP).ceil() as u32;
    let events = warm_up + (rate * seconds).max(FEWEST) as u32;
    let consumer = topic.follow()?;
    let schedule = Schedule { epoch: Instant::now() + LEAD, rate };
    let cpu_before = process::cpu(system.pid())?;
    let stop = Arc::new(AtomicBool::new(false));
    let arrived = std::thread::scope(|scope| {
        let stopped = Arc::clone(&stop);
        let receiver = scope.spawn(move || receive(&consumer, events, &stopped));
        let writers = ((rate / RATE_OF_A_CONNECTION).ceil() as u32).clamp(2, 40);
        let writers: Vec<_> =
            (0..writers).map(|index| scope.spawn(move || write(outbox, schedule, index, writers, events))).collect();
        let written: Result<Vec<()>, _> =
            writers.into_iter().map(|writer| writer.join().map_err(|_| anyhow!("a writer panicked"))?).collect();
        stop.store(true, Ordering::Relaxed);
        let received = receiver.join().map_err(|_| anyhow!("the consumer panicked"))?;
        written.and(received)
    })?;
    let counted = warm_up..events;
    let mut times: Vec<f64> = counted
        .clone()
        .filter_map(|event| Some((arrived[event as usize]? - schedule.due(event)).as_secs_f64() * 1e3))
        .collect();
    times.sort_by(f64::total_cmp);
    let at =
        |share: f64| times.get((times.len() as f64 * share) as usize).or(times.last()).copied().unwrap_or(f64::NAN);
    Ok(Latency {
        rate_events_per_s: rate,
        events: counted.len(),
        missing: counted.len() - times.len(),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        max_ms: at(1.0),
        cpu_us_per_event: (process::cpu(system.pid())? - cpu_before).as_secs_f64() * 1e6 / f64::from(events),
        peak_memory_bytes: process::peak_memory(system.pid())?,
    })
}

/// Writes the events of one writer. Each writer is a thread that sleeps by itself, because a runtime's timer wakes up to a
/// millisecond late.
fn write(outbox: &Outbox, schedule: Schedule, index: u32, writers: u32, events: u32) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut conn = runtime.block_on(outbox.options.connect())?;
    for event in (index..events).step_by(writers as usize) {
        std::thread::sleep(schedule.due(event).saturating_duration_since(Instant::now()));
        let (entity, payload) = outbox.event(event);
        let insert = sqlx::query(
            "insert into event_outbox (entity_type, entity_id, event_type, payload) \
             values ('order', $1, 'OrderPlaced', $2::text::jsonb)",
        );
        runtime.block_on(insert.bind(entity).bind(payload).execute(&mut conn))?;
    }
    Ok(())
}

/// Consumes until all events have arrived, and returns the first arrival of each.
fn receive(consumer: &BaseConsumer, events: u32, stop: &AtomicBool) -> anyhow::Result<Vec<Option<Instant>>> {
    let mut arrived = vec![None; events as usize];
    let (mut open, mut last) = (events, Instant::now());
    while open > 0 && !(stop.load(Ordering::Relaxed) && last.elapsed() > MISSING_AFTER) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let (message, now) = (message?, Instant::now());
        last = now;
        let number = number(message.payload().unwrap_or_default()).context("a record without a number")?;
        if let Some(first @ None) = arrived.get_mut(number) {
            *first = Some(now);
            open -= 1;
        }
    }
    Ok(arrived)
}

/// Finds the event's number in the payload, `"n": 17` as Postgres prints it, at any place in the envelope.
fn number(value: &[u8]) -> Option<usize> {
    let at = value.windows(5).position(|window| window == b"\"n\": ")? + 5;
    let digits: Vec<u8> = value[at..].iter().copied().take_while(u8::is_ascii_digit).collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}
