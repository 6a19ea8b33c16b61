//! Reads the settings of the relay itself.

use std::collections::BTreeMap;
use std::time::Duration;

use event_outbox::envelope::Envelope;
use event_outbox::route::{NameMistake, TopicTemplate, check_topic};

use super::kafka::KafkaSettings;
use super::live::{Live, Tunable};
use super::resolved::Resolved;
use super::retention::RetentionSettings;
use super::setting::{self, Kind};
use super::sources::Sources;
use super::topic_list::TopicList;
use super::value::{Value, words};

/// The settings of the relay itself.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// The relay's name in logs and in its heartbeat. The name is not unique: two relays of a host have the same default.
    pub name: String,
    /// The number of workers; each has its own Postgres connection.
    pub workers: usize,
    /// The most events per claim.
    pub batch_size: usize,
    /// Most payload bytes per claim.
    pub batch_bytes: usize,
    /// Longest pause between polls while there is nothing to do.
    pub poll_interval: Duration,
    /// The longest wait of a batch for its acks.
    pub publish_timeout: Duration,
    /// The longest wait for events in flight after SIGTERM.
    pub shutdown_timeout: Duration,
    /// The interval of the status line in the log.
    pub status_interval: Duration,
    /// The interval of the heartbeat. A relay counts as gone after three missed heartbeats.
    pub heartbeat_interval: Duration,
    /// The time in which no pending event moves before a stall is logged.
    pub stall_after: Duration,
    /// The form of a record's value and headers.
    pub envelope: Envelope,
    /// The topic of an event whose row names none, and the prefix of all topics.
    pub topic: TopicTemplate,
    /// The topics that events may go to; `None` means all.
    pub topics: Option<TopicList>,
    /// The source of an event whose row names none.
    pub source: Option<String>,
    /// The time that becomes a record's timestamp.
    pub timestamp: Timestamp,
    /// The delivery guarantee.
    pub delivery: Delivery,
    /// What happens to the row of a published event.
    pub settle: Settle,
    /// The effect of a row that cannot be sent on its successors.
    pub on_poison: OnPoison,
    /// The retention of published events and of the inbox.
    pub retention: RetentionSettings,
    /// The values that are in force, of those that may change while the relay runs.
    pub live: Live,
}

words! {
    /// The time that becomes a record's timestamp. Brokers delete records by it.
    Timestamp {
        /// The time at which the event was created, or became due if it was scheduled.
        Event = "event",
        /// The time at which the relay sends it.
        Publish = "publish",
    }
}

words! {
    /// Whether writers wake the relay.
    Waking {
        /// They do where it works.
        Auto = "auto",
        /// The relay polls.
        Off = "off",
    }
}

words! {
    /// How often an event may be on its topic.
    Delivery {
        /// Once, and again after a crash.
        AtLeastOnce = "at_least_once",
        /// Once, for consumers that read committed.
        ExactlyOnce = "exactly_once",
    }
}

words! {
    /// What happens to the row of an event when the brokers have acknowledged it.
    Settle {
        /// It is marked PUBLISHED and stays.
        Mark = "mark",
        /// It is deleted.
        Delete = "delete",
    }
}

words! {
    /// What a row that cannot be sent does.
    OnPoison {
        /// It goes DEAD, and its successors go on.
        DeadLetter = "dead_letter",
        /// Its successors wait until it is retried or discarded.
        HoldEntity = "hold_entity",
    }
}

/// The most bytes of a prefix of topics. The name behind it needs room in Kafka's 249.
const LONGEST_PREFIX: usize = 100;

/// The relay's name if the system has no host name.
const NAMELESS: &str = "outbox-relay";

impl RelaySettings {
    pub(super) fn read(from: &mut Resolved, sources: &Sources) -> Option<RelaySettings> {
        let envelope: Envelope = from.get(&setting::ENVELOPE);
        let topic = from.optional(&setting::TOPIC).or_else(|| envelope.default_topic().parse().ok());
        let prefix: Option<TopicPrefix> = from.optional(&setting::TOPIC_PREFIX);
        let topic = topic.and_then(|topic: TopicTemplate| match &prefix {
            Some(TopicPrefix(prefix)) => topic.with_prefix(prefix).ok(),
            None => Some(topic),
        });
        let poll_interval = from.get(&setting::POLL_INTERVAL);
        let status_interval = from.get(&setting::STATUS_INTERVAL);
        let retention = RetentionSettings::read(from);
        let settings = RelaySettings {
            name: from.optional(&setting::NAME).unwrap_or_else(|| host_name(sources)),
            workers: from.get(&setting::WORKERS),
            batch_size: from.get(&setting::BATCH_SIZE),
            batch_bytes: from.get(&setting::BATCH_BYTES),
            poll_interval,
            publish_timeout: from.get(&setting::PUBLISH_TIMEOUT),
            shutdown_timeout: from.get(&setting::SHUTDOWN_TIMEOUT),
            status_interval,
            heartbeat_interval: from.get(&setting::HEARTBEAT_INTERVAL),
            stall_after: from.get(&setting::STALL_AFTER),
            envelope,
            topic: topic?,
            topics: from.optional(&setting::TOPICS),
            source: from.optional(&setting::SOURCE),
            timestamp: from.get(&setting::TIMESTAMP),
            delivery: from.get(&setting::DELIVERY),
            settle: from.get(&setting::SETTLE),
            on_poison: from.get(&setting::ON_POISON),
            retention,
            live: Live::new(Tunable { retention, poll_interval, status_interval }),
        };
        Some(settings)
    }
}

/// The number of missed heartbeats after which a relay counts as gone.
const HEARTBEATS: u32 = 3;

impl RelaySettings {
    /// Returns the silence after which a relay counts as gone. The registry does not hold the interval of each relay, so everybody uses
    /// the configured one.
    pub fn alive_for(&self) -> Duration {
        self.heartbeat_interval * HEARTBEATS
    }

    /// Returns the longest time between two heartbeats of a relay that sleeps: two intervals, but a second less than the silence after which
    /// it counts as gone. Exactly-once mode looks for shorter silences.
    pub fn heartbeat_asleep(&self) -> Duration {
        match self.delivery {
            Delivery::AtLeastOnce => {
                let longest = self.alive_for().saturating_sub(Duration::from_secs(1));
                (self.heartbeat_interval * 2).min(longest).max(self.heartbeat_interval)
            }
            Delivery::ExactlyOnce => self.heartbeat_interval,
        }
    }

    /// Returns the settings that decide what a record holds, where it goes and what happens to its row, by name. Relays of one outbox need the same values.
    pub fn of_records(&self, kafka: &KafkaSettings) -> BTreeMap<String, String> {
        let mut settings: BTreeMap<_, _> = [
            (setting::ENVELOPE.env_name(), self.envelope.to_string()),
            (setting::TOPIC.env_name(), self.topic.without_prefix(&self.topic.to_string()).to_owned()),
            (setting::TIMESTAMP.env_name(), self.timestamp.word().to_owned()),
            (setting::DELIVERY.env_name(), self.delivery.word().to_owned()),
            (setting::ON_POISON.env_name(), self.on_poison.word().to_owned()),
            ("KAFKA_PARTITIONER".to_owned(), kafka.partitioner().to_owned()),
        ]
        .into();
        let prefix = Some(self.topic.prefix()).filter(|prefix| !prefix.is_empty());
        settings.extend(prefix.map(|prefix| (setting::TOPIC_PREFIX.env_name(), prefix.to_owned())));
        settings.extend(self.source.clone().map(|source| (setting::SOURCE.env_name(), source)));
        // Left out where it has its default: relays of versions without the setting have the same.
        let deletes = self.settle == Settle::Delete;
        settings.extend(deletes.then(|| (setting::SETTLE.env_name(), self.settle.word().to_owned())));
        settings
    }
}

impl Value for Envelope {
    fn parse(_: &Kind, text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| String::new())
    }
}

impl Value for TopicTemplate {
    fn parse(_: &Kind, text: &str) -> Result<Self, String> {
        text.parse::<TopicTemplate>().map_err(|error| {
            let mistake = error.mistake;
            format!("{mistake}, expected letters, digits, '.', '_', '-', {{entity_type}} and {{event_type}}")
        })
    }
}

/// The beginning of the name of every topic.
struct TopicPrefix(String);

impl Value for TopicPrefix {
    fn parse(_: &Kind, text: &str) -> Result<Self, String> {
        let is_legal = matches!(check_topic(text), Ok(()) | Err(NameMistake::Dots));
        // Topics that begin with __ are Kafka's own, so every event would become DEAD.
        let fits = is_legal && text.len() <= LONGEST_PREFIX && !text.starts_with("__");
        if fits { Ok(Self(text.to_owned())) } else { Err(String::new()) }
    }
}

/// Returns the host name, truncated to the length that `application_name` keeps.
fn host_name(sources: &Sources) -> String {
    let name = sources.env.get("HOSTNAME").map_or("", |name| name.trim());
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(63).collect();
    if name.is_empty() { NAMELESS.to_owned() } else { name }
}
