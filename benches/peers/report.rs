//! Prints the metrics for people and as JSON.

use std::fmt;

use serde::Serialize;
use serde_json::json;

use crate::Sizes;
use crate::drain::Drained;
use crate::latency::Latency;

pub(crate) const OURS: &str = "outbox-relay";

/// The titles of the ratios, and their names in the JSON.
const RATIOS: [(&str, &str); 5] = [
    ("drain", "drain"),
    ("from start", "drain_from_start"),
    ("memory", "memory"),
    ("CPU", "cpu_per_event"),
    ("all CPU", "all_cpu_per_event"),
];

#[derive(Debug, Serialize)]
pub(crate) struct System {
    pub(crate) name: String,
    pub(crate) drain: Drained,
    /// The latencies at each rate that was measured.
    pub(crate) latencies: Vec<Latency>,
}

impl System {
    fn peak_memory(&self) -> u64 {
        let later = self.latencies.iter().map(|latency| latency.peak_memory_bytes).max();
        self.drain.peak_memory_bytes.max(later.unwrap_or_default())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) systems: Vec<System>,
}

impl Report {
    fn ours(&self) -> Option<&System> {
        self.systems.iter().find(|system| system.name == OURS)
    }

    pub(crate) fn json(&self, sizes: &Sizes) -> anyhow::Result<String> {
        let ratios = |system: &System| Some((system.name.clone(), self.ratios(system)?));
        let report = json!({
            "peers_format": 2,
            "measured_at": chrono::Utc::now(),
            "debug_build": cfg!(debug_assertions),
            "load": {
                "events": sizes.events, "naive_events": sizes.naive_events, "payload_bytes": sizes.payload,
                "partitions": sizes.partitions, "seconds": sizes.seconds,
            },
            "systems": self.systems,
            "ratios": self.systems.iter().filter_map(ratios).collect::<serde_json::Map<_, _>>(),
        });
        Ok(serde_json::to_string_pretty(&report)? + "\n")
    }

    /// Computes the ratios: the factor by which the relay is better than `system`.
    fn ratios(&self, system: &System) -> Option<serde_json::Value> {
        let relay = self.ours()?;
        Some(json!({
            "drain": relay.drain.events_per_s / system.drain.events_per_s,
            "drain_from_start": relay.drain.events_per_s_from_start / system.drain.events_per_s_from_start,
            "memory": system.peak_memory() as f64 / relay.peak_memory() as f64,
            "cpu_per_event": system.drain.cpu_us_per_event / relay.drain.cpu_us_per_event,
            "all_cpu_per_event": system.drain.all_cpu_us_per_event() / relay.drain.all_cpu_us_per_event(),
        }))
    }

    fn write_figures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        heading(f, &["events/s", "from start", "first ms", "us/event", "PG us", "Kafka us", "peak MB"])?;
        for system in &self.systems {
            let System { name, drain, .. } = system;
            write!(f, "{name:<16}{:>11.0}{:>11.0}", drain.events_per_s, drain.events_per_s_from_start)?;
            write!(f, "{:>11.0}{:>11.1}", drain.first_record_after_ms, drain.cpu_us_per_event)?;
            write!(f, "{:>11.1}{:>11.1}", drain.postgres_cpu_us_per_event, drain.kafka_cpu_us_per_event)?;
            writeln!(f, "{:>11.0}", system.peak_memory() as f64 / 1e6)?;
        }
        Ok(())
    }

    /// Writes p50 and p99 at each rate.
    fn write_latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nMilliseconds from the time that an event was due to a consumer")?;
        heading(f, &["rate", "events", "missing", "p50", "p99", "max", "us/event"])?;
        for system in &self.systems {
            for latency in &system.latencies {
                let Latency { rate_events_per_s, events, missing, p50_ms, p99_ms, max_ms, cpu_us_per_event, .. } =
                    latency;
                write!(f, "{:<16}{rate_events_per_s:>11}{events:>11}{missing:>11}", system.name)?;
                writeln!(f, "{p50_ms:>11.1}{p99_ms:>11.1}{max_ms:>11.1}{cpu_us_per_event:>11.0}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if cfg!(debug_assertions) {
            writeln!(f, "A build without optimization: the relay's and the naive loop's metrics mean nothing.\n")?;
        }
        self.write_figures(f)?;
        self.write_latencies(f)?;
        if self.ours().is_none() {
            return Ok(());
        }
        writeln!(f, "\nThe relay is better by")?;
        heading(f, &RATIOS.map(|(title, _)| title))?;
        for system in self.systems.iter().filter(|system| system.name != OURS) {
            let Some(ratios) = self.ratios(system) else { continue };
            write!(f, "{:<16}", system.name)?;
            let mut ratios = RATIOS.iter().filter_map(|(_, name)| ratios[name].as_f64());
            ratios.try_for_each(|ratio| write!(f, "{ratio:>10.2}x"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

fn heading(f: &mut fmt::Formatter<'_>, titles: &[&str]) -> fmt::Result {
    write!(f, "{:<16}", "")?;
    titles.iter().try_for_each(|title| write!(f, "{title:>11}"))?;
    writeln!(f)
}
