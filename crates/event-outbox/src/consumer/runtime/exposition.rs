//! Writes the counters of a consumer in Prometheus' text format.

use std::fmt::Write as _;

use crate::consumer::runtime::stats::Stats;

/// A metric of one value: its name, its kind and its meaning.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&Stats) -> u64,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Stats) -> u64) -> Metric {
    Metric { name, kind: "counter", help, value }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Stats) -> u64) -> Metric {
    Metric { name, kind: "gauge", help, value }
}

/// The name of the metric of ignored events, which has a value for each type.
const IGNORED: &str = "outbox_consumer_ignored_events_total";

const METRICS: [Metric; 16] = [
    counter("outbox_consumer_applied_events_total", "Events whose effect is committed.", Stats::applied),
    counter(
        "outbox_consumer_repeated_events_total",
        "Deliveries of events that had been applied before.",
        Stats::repeated,
    ),
    counter("outbox_consumer_retries_total", "Attempts after the first.", Stats::retried),
    counter("outbox_consumer_halved_batches_total", "Batches that failed and were halved.", Stats::halved),
    counter("outbox_consumer_dead_letters_total", "Acknowledged dead letters.", Stats::dead),
    counter(
        "outbox_consumer_set_aside_events_total",
        "Events that were set aside in the database, and those behind them.",
        Stats::held,
    ),
    counter(
        "outbox_consumer_assigned_partitions_total",
        "Partitions that were assigned to this member.",
        Stats::assigned,
    ),
    counter(
        "outbox_consumer_revoked_partitions_total",
        "Partitions that were revoked from this member.",
        Stats::revoked,
    ),
    gauge("outbox_consumer_in_flight_handlers", "Handlers at work.", Stats::in_flight),
    gauge("outbox_consumer_lag_records", "Records of this member's partitions that are not finished.", Stats::lag),
    gauge("outbox_consumer_oldest_event_seconds", "Age of the oldest record at work; 0 if there is none.", |stats| {
        stats.oldest_seconds().unwrap_or(0)
    }),
    gauge(
        "outbox_consumer_held_keys",
        "Held keys of the whole group, without those that are tried again.",
        Stats::held_keys,
    ),
    gauge(
        "outbox_consumer_retrying_keys",
        "Keys of the whole group whose first event is tried again by itself.",
        Stats::retrying_keys,
    ),
    gauge("outbox_consumer_parked_events", "Events of the whole group that are set aside at present.", Stats::parked),
    gauge(
        "outbox_consumer_oldest_held_seconds",
        "Time since the oldest head of the whole group was held.",
        Stats::oldest_held_seconds,
    ),
    gauge("outbox_consumer_paused", "1 while a topic or everything is paused.", |stats| u64::from(stats.is_paused())),
];

impl Stats {
    /// Returns all counters in Prometheus' text format, with the label `group`. Answer `/metrics` with it, after metrics of your own: each
    /// name begins with `outbox_consumer_`. docs/reference/consumer.md lists them.
    ///
    /// ```
    /// # use event_outbox::consumer::Consumer;
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let consumer = Consumer::new("billing", sqlx::PgPool::connect_lazy("postgres://localhost/billing")?);
    /// let stats = consumer.stats();
    /// // … run the consumer, and in the handler of `/metrics`:
    /// assert!(stats.to_prometheus().contains("outbox_consumer_applied_events_total{group=\"billing\"} 0\n"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn to_prometheus(&self) -> String {
        let group = escaped(&self.group);
        let mut text = String::new();
        let mut head = |name: &str, kind: &str, help: &str, samples: &str| {
            // Writing to a string does not fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        };
        for Metric { name, kind, help, value } in &METRICS {
            let sample = format!("{name}{{group=\"{group}\"}} {}\n", value(self));
            head(name, kind, help, &sample);
        }
        let sample = |(event_type, count): (&str, u64)| {
            let event_type = escaped(event_type);
            format!("{IGNORED}{{group=\"{group}\",event_type=\"{event_type}\"}} {count}\n")
        };
        let types = self.ignored_types();
        let others = self.ignored().saturating_sub(types.values().sum());
        let counts = types.iter().map(|(event_type, count)| (event_type.as_str(), *count));
        let counts = counts.chain((others > 0 || types.is_empty()).then_some(("", others)));
        let samples: String = counts.map(sample).collect();
        let help = "Events whose type no handler takes, by type; types beyond the first 100 have an empty label.";
        head(IGNORED, "counter", help, &samples);
        text
    }
}

/// Escapes the value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_help_its_type_and_its_value() {
        let stats = Stats::new("a \"group\"\\");
        stats.add_applied(3);
        stats.add_ignored(7);
        stats.set_keys(1, 2, 30, 40);
        assert!(stats.is_new_type("New\nline"));
        let text = stats.to_prometheus();
        for (name, value) in [
            ("applied_events_total", 3),
            ("held_keys", 1),
            ("retrying_keys", 2),
            ("parked_events", 30),
            ("oldest_held_seconds", 40),
        ] {
            let sample = format!("\noutbox_consumer_{name}{{group=\"a \\\"group\\\"\\\\\"}} {value}\n");
            assert!(text.contains(&sample), "no {sample} in {text}");
        }
        assert!(text.contains("event_type=\"New\\nline\"} 1\n") && text.contains("event_type=\"\"} 6\n"), "{text}");
        let named = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
        assert_eq!((named("# HELP "), named("# TYPE ")), (METRICS.len() + 1, METRICS.len() + 1));
        for Metric { name, kind, .. } in METRICS {
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        }
    }
}
