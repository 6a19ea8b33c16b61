//! Defines every metric with its name and meaning, and the calls by which the relay's tasks update them. Labels are fixed words, workers
//! and a limited number of topics, never an entity or an event.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::health::Cause;
use super::latency::{Latency, Shown};
use crate::fault::{self, Class};
use event_outbox::code::Code;

/// The prefix of every name.
const PREFIX: &str = "outbox_relay";

/// The number of topics with their own label. All others share [`OTHER_TOPICS`].
const MOST_TOPICS: usize = 50;

/// The label of all other topics. No topic can have this name, because Kafka does not allow `/` in a name.
const OTHER_TOPICS: &str = "other/";

/// The name of a metric without prefix and `_total`, and its meaning without a full stop.
type Named = (&'static str, &'static str);

const BUILD: Named = ("build_info", "Always 1; the version is a label");
const PUBLISHED: Named =
    ("published_events", "Events that this relay has marked PUBLISHED; its rate is the publish rate");
const ACKNOWLEDGED: Named = (
    "acknowledged_records",
    "Records that all in-sync replicas have acknowledged; a record sent again counts again. 50 topics have their own label, the others share other/",
);
const UNACKNOWLEDGED: Named = (
    "unacknowledged_records",
    "Records that Kafka refused or did not acknowledge, by the runbook code of the reason, OR-3014 if there was no answer; a record sent again counts again",
);
const BATCHES: Named = ("batches", "Settled batches");
const LATENCY: Named = (
    "insert_to_ack_seconds",
    "Time from the start of an event's transaction to its acknowledgement, by the clocks of database and relay; batches are sampled",
);
const FAILURES: Named = (
    "failures",
    "Failures by class: row, events refused by their own fault; destination, topics found closed; outage, cycles that met an unavailable server; action_required, cycles that met a fault that somebody has to fix",
);
const LANES: Named = ("lanes", "Lanes of the whole outbox");
const OWNED: Named = ("owned_lanes", "Lanes assigned to this relay; zero is possible with more workers than lanes");
const IN_DOUBT: Named = ("in_doubt_records", "Records that were sent, not acknowledged for a second, and set aside");
const UNSCANNED: Named = ("unscanned_events", "Event ids that were allocated, but not yet reached by claims");
const PENDING: Named = ("pending_events", "Events of the whole outbox that can be claimed; counting stops at 1000000");
const OLDEST: Named = ("oldest_pending_seconds", "Age of the oldest event of the whole outbox that can be claimed");
const SCHEDULED: Named = ("scheduled_events", "Events of the whole outbox that wait for their available_at");
const HELD: Named =
    ("held_events", "Events of the whole outbox that wait for a topic, an entity or the end of a pause");
const DEAD: Named = ("dead_events", "Events of the whole outbox that need a decision");
const PAUSES: Named = ("pauses", "Pauses in force, by scope: all, topic or entity");
const DEAD_TUPLES: Named =
    ("dead_tuples", "Dead rows of the outbox table that vacuum has not removed, estimated by Postgres");
const LIVE_TUPLES: Named = ("live_tuples", "Live rows of the outbox table, estimated by Postgres");
const VACUUM: Named = (
    "vacuum_held_back_seconds",
    "Age of the oldest transaction that keeps vacuum from removing dead rows, among those that this user may see",
);
const LOOKED_AT: Named = (
    "looked_at_timestamp_seconds",
    "Time at which the metrics of the whole outbox were last read, in seconds since 1970",
);
const REACHABLE: Named = ("reachable", "1 while the relay can work with the server");
const READY: Named = ("ready", "1 while /readyz answers ready");
const STALLED: Named = ("stalled", "1 for the cause of a stall: events wait, and none has moved for RELAY_STALL_AFTER");

const CONFLICT: Named = (
    "conflict_seconds",
    "Age of a conflict between live relays of this outbox, by its runbook code: OR-5007, they have different settings or brokers; OR-5008, they have the same name. 0 without a conflict",
);

/// The codes of conflicts between relays.
const CONFLICTS: [Code; 2] = [Code::RelaysDiffer, Code::RelayNameShared];

type Word = [(&'static str, &'static str); 1];
type Text = [(&'static str, String); 1];
type Seconds = Gauge<f64, AtomicU64>;

/// The state of the whole outbox. Every relay reports the same.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Outbox {
    pub(crate) pending: i64,
    pub(crate) oldest: Duration,
    pub(crate) scheduled: i64,
    pub(crate) held: i64,
    pub(crate) dead: i64,
    /// The number of pauses of everything, of topics and of entities.
    pub(crate) pauses: [i64; 3],
    pub(crate) dead_tuples: i64,
    pub(crate) live_tuples: i64,
    pub(crate) vacuum_held_back: Duration,
}

/// The metrics of one relay.
pub(crate) struct Metrics {
    registry: Registry,
    published: Counter,
    acknowledged: Family<Text, Counter>,
    topics: Mutex<Vec<(String, Counter)>>,
    unacknowledged: Family<Text, Counter>,
    batches: Counter,
    latency: Arc<Latency>,
    failures: Family<Word, Counter>,
    lanes: Gauge,
    owned: Gauge,
    in_doubt: Family<Text, Gauge>,
    unscanned: Family<Text, Gauge>,
    pending: Gauge,
    oldest: Seconds,
    scheduled: Gauge,
    held: Gauge,
    dead: Gauge,
    pauses: Family<Word, Gauge>,
    dead_tuples: Gauge,
    live_tuples: Gauge,
    vacuum: Seconds,
    looked_at: Seconds,
    reachable: Family<Word, Gauge>,
    ready: Gauge,
    stalled: Family<Word, Gauge>,
    conflict: Family<Text, Seconds>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Family::<Word, Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register(BUILD.0, BUILD.1, build);
        let latency = Arc::new(Latency::default());
        let metrics = Self {
            published: register(&mut registry, PUBLISHED),
            acknowledged: register(&mut registry, ACKNOWLEDGED),
            topics: Mutex::default(),
            unacknowledged: register(&mut registry, UNACKNOWLEDGED),
            batches: register(&mut registry, BATCHES),
            latency: Arc::clone(&latency),
            failures: register(&mut registry, FAILURES),
            lanes: register(&mut registry, LANES),
            owned: register(&mut registry, OWNED),
            in_doubt: register(&mut registry, IN_DOUBT),
            unscanned: register(&mut registry, UNSCANNED),
            pending: register(&mut registry, PENDING),
            oldest: register(&mut registry, OLDEST),
            scheduled: register(&mut registry, SCHEDULED),
            held: register(&mut registry, HELD),
            dead: register(&mut registry, DEAD),
            pauses: register(&mut registry, PAUSES),
            dead_tuples: register(&mut registry, DEAD_TUPLES),
            live_tuples: register(&mut registry, LIVE_TUPLES),
            vacuum: register(&mut registry, VACUUM),
            looked_at: register(&mut registry, LOOKED_AT),
            reachable: register(&mut registry, REACHABLE),
            ready: register(&mut registry, READY),
            stalled: register(&mut registry, STALLED),
            conflict: register(&mut registry, CONFLICT),
            registry,
        };
        metrics.with_all_words(latency)
    }
}

fn register<M: prometheus_client::registry::Metric + Clone + Default>(registry: &mut Registry, named: Named) -> M {
    let metric = M::default();
    registry.register(named.0, named.1, metric.clone());
    metric
}

fn class(class: Class) -> Word {
    let word = match class {
        Class::Outage => "outage",
        Class::Destination => "destination",
        Class::Row => "row",
        Class::ActionRequired => "action_required",
    };
    [("class", word)]
}

const SCOPES: [&str; 3] = ["all", "topic", "entity"];

impl Metrics {
    /// Creates every label value at the start. A rate over a counter that appeared with its first failure would miss that failure.
    fn with_all_words(mut self, latency: Arc<Latency>) -> Self {
        self.registry.register_collector(Box::new(Shown { name: LATENCY.0, help: LATENCY.1, latency }));
        for of in [Class::Outage, Class::Destination, Class::Row, Class::ActionRequired] {
            self.failed(of, 0);
        }
        for code in fault::kafka_runbook_codes() {
            self.unacknowledged(code, 0);
        }
        self.set_reachable(false, false);
        self.set_stalled(None);
        self.set_outbox_pauses([0; 3]);
        self.set_conflicts([].into_iter());
        self
    }

    /// Counts a batch that was committed.
    pub(crate) fn settled(&self, published: usize) {
        self.published.inc_by(published as u64);
        self.batches.inc();
    }

    /// Counts the latency of `events` acknowledged events of a batch. `age` returns the age of one of them.
    pub(crate) fn acknowledged_after(&self, events: usize, age: impl Fn(usize) -> Duration) {
        self.latency.observe(events, age);
    }

    /// Counts acknowledged records of a topic.
    pub(crate) fn acknowledged(&self, topic: &str, records: u64) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = topics.iter().find(|(known, _)| known == topic) {
            counter.inc_by(records);
            return;
        }
        let is_own = topics.len() < MOST_TOPICS;
        let label = if is_own { topic } else { OTHER_TOPICS };
        let counter = self.acknowledged.get_or_create(&[("topic", label.to_owned())]).clone();
        counter.inc_by(records);
        if is_own {
            topics.push((topic.to_owned(), counter));
        }
    }

    /// Counts records that Kafka refused or did not acknowledge. The fault table limits the number of codes.
    pub(crate) fn unacknowledged(&self, code: Code, records: usize) {
        self.unacknowledged.get_or_create(&[("code", code.to_string())]).inc_by(records as u64);
    }

    /// Counts failures of a class.
    pub(crate) fn failed(&self, of: Class, failures: u64) {
        self.failures.get_or_create(&class(of)).inc_by(failures);
    }

    /// Sets the number of a worker's records that are set aside.
    pub(crate) fn set_in_doubt(&self, worker: usize, records: usize) {
        self.in_doubt.get_or_create(&[("worker", worker.to_string())]).set(records as i64);
    }

    /// Sets the distance between the start of a worker's next claim and the highest id that the worker has seen.
    pub(crate) fn set_unscanned(&self, worker: usize, events: i64) {
        self.unscanned.get_or_create(&[("worker", worker.to_string())]).set(events);
    }

    /// Sets the number of this relay's lanes and of all lanes.
    pub(crate) fn set_lanes(&self, owned: usize, of: u16) {
        self.owned.set(owned as i64);
        self.lanes.set(i64::from(of));
    }

    /// Sets the metrics of the whole outbox, as read at time `at`.
    pub(crate) fn set_outbox(&self, seen: &Outbox, at: Duration) {
        self.pending.set(seen.pending);
        self.oldest.set(seen.oldest.as_secs_f64());
        self.scheduled.set(seen.scheduled);
        self.held.set(seen.held);
        self.dead.set(seen.dead);
        self.set_outbox_pauses(seen.pauses);
        self.dead_tuples.set(seen.dead_tuples);
        self.live_tuples.set(seen.live_tuples);
        self.vacuum.set(seen.vacuum_held_back.as_secs_f64());
        self.looked_at.set(at.as_secs_f64());
    }

    fn set_outbox_pauses(&self, pauses: [i64; 3]) {
        for (scope, pauses) in SCOPES.into_iter().zip(pauses) {
            self.pauses.get_or_create(&[("scope", scope)]).set(pauses);
        }
    }

    /// Sets whether the relay can work with each server.
    pub(crate) fn set_reachable(&self, postgres: bool, kafka: bool) {
        for (server, reachable) in [("postgres", postgres), ("kafka", kafka)] {
            self.reachable.get_or_create(&[("server", server)]).set(i64::from(reachable));
        }
    }

    /// Sets whether /readyz answers ready.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// Sets the cause of a stall; `None` if there is no stall.
    pub(crate) fn set_stalled(&self, why: Option<Cause>) {
        for cause in Cause::OF_STALL {
            self.stalled.get_or_create(&[("cause", cause.word())]).set(i64::from(why == Some(cause)));
        }
    }

    /// Sets the ages in seconds of the conflicts between live relays. A code that is not in `conflicts` has none.
    pub(crate) fn set_conflicts(&self, conflicts: impl Iterator<Item = (Code, f64)>) {
        let ages: BTreeMap<Code, f64> = conflicts.collect();
        for code in CONFLICTS {
            let age = ages.get(&code).copied().unwrap_or_default();
            self.conflict.get_or_create(&[("code", code.to_string())]).set(age);
        }
    }

    /// Returns metrics that have one sample each, for the reference: a family without a sample is not rendered.
    pub(crate) fn with_samples() -> Self {
        let metrics = Self::default();
        metrics.acknowledged("order-events", 0);
        metrics.set_in_doubt(0, 0);
        metrics.set_unscanned(0, 0);
        metrics
    }

    /// Renders all metrics in Prometheus' text format, version 0.0.4.
    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        let mut open_metrics = String::new();
        text::encode(&mut open_metrics, &self.registry)?;
        Ok(classic(&open_metrics))
    }
}

/// Converts OpenMetrics, which the library writes, to the classic format. In OpenMetrics the family of a counter lacks the `_total` of its
/// samples, so tools that know only the classic format see two families.
fn classic(open_metrics: &str) -> String {
    let lines = || open_metrics.lines();
    let counters: Vec<&str> =
        lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open_metrics.len() + 256);
    for line in lines().filter(|line| *line != "# EOF") {
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match described.and_then(|rest| rest.split_once(' ')) {
            Some((name, rest)) if counters.contains(&name) => {
                text += &format!("{}{name}_total {rest}\n", &line[.."# HELP ".len()]);
            }
            _ => text = text + line + "\n",
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_in_the_classic_format() {
        let metrics = Metrics::default();
        metrics.settled(3);
        metrics.acknowledged("orders", 3);
        metrics.acknowledged_after(3, |_| Duration::from_millis(2));
        let text = metrics.render().expect("text");
        for line in [
            "# TYPE outbox_relay_published_events_total counter",
            "outbox_relay_published_events_total 3",
            "outbox_relay_acknowledged_records_total{topic=\"orders\"} 3",
            "# TYPE outbox_relay_insert_to_ack_seconds histogram",
            "outbox_relay_insert_to_ack_seconds_bucket{le=\"0.002\"} 3",
            "outbox_relay_insert_to_ack_seconds_count 3",
            "outbox_relay_stalled{cause=\"lock\"} 0",
            "outbox_relay_failures_total{class=\"outage\"} 0",
            "outbox_relay_unacknowledged_records_total{code=\"OR-3106\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    }

    #[test]
    fn topics_beyond_the_bound_share_one_label() {
        let metrics = Metrics::default();
        for topic in 0..MOST_TOPICS + 10 {
            metrics.acknowledged(&format!("topic-{topic}"), 2);
        }
        metrics.acknowledged("topic-0", 1);
        let text = metrics.render().expect("text");
        let of = |topic: &str| format!("outbox_relay_acknowledged_records_total{{topic=\"{topic}\"}}");
        assert_eq!(text.matches("outbox_relay_acknowledged_records_total{").count(), MOST_TOPICS + 1);
        assert!(text.contains(&format!("{} 3\n", of("topic-0"))), "{text}");
        assert!(text.contains(&format!("{} 20\n", of(OTHER_TOPICS))), "{text}");
    }
}
