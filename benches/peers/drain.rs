//! Measures the time that a system needs for a backlog.

use std::time::{Duration, Instant};

use anyhow::ensure;
use lab::demo::ChildServer;
use serde::Serialize;

use crate::Servers;
use crate::outbox::Outbox;
use crate::process;
use crate::topic::Topic;

/// The interval of polling, and so the error of the times. Each poll costs the broker a small request per partition.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// The time without a new record after which the system counts as stuck.
const STALLED: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Drained {
    pub(crate) events: u32,
    /// The rate from the start of the process or of the connector to the end.
    pub(crate) events_per_s_from_start: f64,
    /// The rate from the first record to the end.
    pub(crate) events_per_s: f64,
    pub(crate) first_record_after_ms: f64,
    /// The number of records minus the number of events.
    pub(crate) duplicates: u64,
    /// The system's CPU time from the start to the end, including the start of the process if it was started.
    pub(crate) cpu_us_per_event: f64,
    /// The CPU time of Postgres in the same time: the work that the system leaves to the server.
    pub(crate) postgres_cpu_us_per_event: f64,
    pub(crate) kafka_cpu_us_per_event: f64,
    pub(crate) peak_memory_bytes: u64,
}

impl Drained {
    pub(crate) fn all_cpu_us_per_event(&self) -> f64 {
        self.cpu_us_per_event + self.postgres_cpu_us_per_event + self.kafka_cpu_us_per_event
    }
}

/// Returns the CPU time of Postgres and of Kafka so far.
fn cpu_of_servers(servers: &Servers) -> anyhow::Result<[Duration; 2]> {
    Ok([process::cpu_of_family(servers.postgres.pid())?, process::cpu(servers.kafka.pid())?])
}

/// Starts the system and watches the drain. With `until_marked` the drain ends when no row is pending, else when all events are
/// on the topic.
pub(crate) fn drain(
    servers: &Servers,
    outbox: &mut Outbox,
    topic: &Topic,
    events: u32,
    until_marked: bool,
    running: Option<&ChildServer>,
    start: impl FnOnce() -> anyhow::Result<Option<ChildServer>>,
) -> anyhow::Result<(Drained, Option<ChildServer>)> {
    let before = topic.records()?;
    let cpu_before = running.map(|process| process::cpu(process.pid())).transpose()?.unwrap_or_default();
    let [postgres_before, kafka_before] = cpu_of_servers(servers)?;
    let started = Instant::now();
    let new = start()?;
    let process = running.or(new.as_ref()).expect("something runs");
    let (mut first, mut last, mut moved) = (None, 0, Instant::now());
    loop {
        let records = topic.records()? - before;
        if records > last {
            first.get_or_insert_with(Instant::now);
            (last, moved) = (records, Instant::now());
        }
        if records >= u64::from(events) && !(until_marked && outbox.any_pending(servers)?) {
            break;
        }
        ensure!(moved.elapsed() < STALLED, "no record for {STALLED:?}; the log ends with:\n{}", process.log_tail());
        std::thread::sleep(BETWEEN_LOOKS);
    }
    let (ended, first) = (Instant::now(), first.unwrap_or(started));
    let [postgres, kafka] = cpu_of_servers(servers)?;
    let per_event = |cpu: Duration| cpu.as_secs_f64() * 1e6 / f64::from(events);
    let drained = Drained {
        events,
        events_per_s_from_start: f64::from(events) / (ended - started).as_secs_f64(),
        events_per_s: f64::from(events) / (ended - first).as_secs_f64(),
        first_record_after_ms: (first - started).as_secs_f64() * 1e3,
        duplicates: topic.records()? - before - u64::from(events),
        cpu_us_per_event: per_event(process::cpu(process.pid())? - cpu_before),
        postgres_cpu_us_per_event: per_event(postgres.saturating_sub(postgres_before)),
        kafka_cpu_us_per_event: per_event(kafka.saturating_sub(kafka_before)),
        peak_memory_bytes: process::peak_memory(process.pid())?,
    };
    eprintln!("{}: {:.0} events/s", outbox.name, drained.events_per_s);
    Ok((drained, new))
}
