//! How the relay works.

use std::str::FromStr;
use std::time::Duration;

use event_outbox::envelope::Envelope;
use event_outbox::route::TopicTemplate;

use super::resolved::Resolved;
use super::retention::RetentionSettings;
use super::setting::Kind;
use super::sources::Sources;

/// How the relay works.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// This relay's name in logs and in its heartbeat. Not unique: two relays on one host have the same by default.
    pub name: String,
    /// Workers, each with a connection of its own.
    pub workers: usize,
    /// Most events per claim.
    pub batch_size: usize,
    /// Most payload bytes per claim.
    pub batch_bytes: u64,
    /// Longest pause between polls while there is nothing to do.
    pub poll_interval: Duration,
    /// How long a batch waits for its acks.
    pub publish_timeout: Duration,
    /// How long SIGTERM waits for what is in flight.
    pub shutdown_timeout: Duration,
    /// How often the status line is logged.
    pub status_interval: Duration,
    /// How often a relay says that it is alive; after three without it is considered gone.
    pub heartbeat_interval: Duration,
    /// How long events may wait without any of them moving before it is logged.
    pub stall_after: Duration,
    /// What the record's value looks like.
    pub envelope: Envelope,
    /// Topic of an event whose row names none.
    pub topic: TopicTemplate,
    /// Source of an event whose row names none.
    pub source: Option<String>,
    /// How often an event may be on its topic.
    pub delivery: Delivery,
    /// What a row that cannot be sent does to its successors.
    pub on_poison: OnPoison,
    /// How long what is done with is kept.
    pub retention: RetentionSettings,
}

/// How often an event may be on its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Once, and again after a crash.
    AtLeastOnce,
    /// Once, for consumers that read committed.
    ExactlyOnce,
}

impl FromStr for Delivery {
    type Err = ();

    fn from_str(text: &str) -> Result<Delivery, ()> {
        match text {
            "at_least_once" => Ok(Delivery::AtLeastOnce),
            "exactly_once" => Ok(Delivery::ExactlyOnce),
            _ => Err(()),
        }
    }
}

/// What a row that cannot be sent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPoison {
    /// It goes DEAD, and its successors go on.
    DeadLetter,
    /// Its successors wait until it is retried or discarded.
    HoldEntity,
}

impl FromStr for OnPoison {
    type Err = ();

    fn from_str(text: &str) -> Result<OnPoison, ()> {
        match text {
            "dead_letter" => Ok(OnPoison::DeadLetter),
            "hold_entity" => Ok(OnPoison::HoldEntity),
            _ => Err(()),
        }
    }
}

/// The relay's name on a system that tells no host name.
const NAMELESS: &str = "outbox-relay";

impl RelaySettings {
    pub(super) fn read(from: &mut Resolved, sources: &Sources) -> Option<RelaySettings> {
        // Everything is read before the first `?`, so that no mistake hides another.
        let name = from.optional("name", printable);
        let workers = from.integer("workers");
        let batch_size = from.integer("batch_size");
        let batch_bytes = from.bytes("batch_bytes");
        let poll_interval = from.duration("poll_interval");
        let publish_timeout = from.duration("publish_timeout");
        let shutdown_timeout = from.duration("shutdown_timeout");
        let status_interval = from.duration("status_interval");
        let heartbeat_interval = from.duration("heartbeat_interval");
        let stall_after = from.duration("stall_after");
        let envelope = from.word::<Envelope>("envelope");
        let topic = from.optional("topic", |_, text| template(text));
        let source = from.optional("source", printable);
        let delivery = from.word("delivery");
        let on_poison = from.word("on_poison");
        let retention = RetentionSettings::read(from);
        let envelope = envelope?;
        Some(RelaySettings {
            name: name?.unwrap_or_else(|| host_name(sources)),
            workers: usize::try_from(workers?).ok()?,
            batch_size: usize::try_from(batch_size?).ok()?,
            batch_bytes: batch_bytes?,
            poll_interval: poll_interval?,
            publish_timeout: publish_timeout?,
            shutdown_timeout: shutdown_timeout?,
            status_interval: status_interval?,
            heartbeat_interval: heartbeat_interval?,
            stall_after: stall_after?,
            envelope,
            topic: match topic? {
                Some(topic) => topic,
                None => template(envelope.default_topic()).ok()?,
            },
            source: source?,
            delivery: delivery?,
            on_poison: on_poison?,
            retention: retention?,
        })
    }
}

fn template(text: &str) -> Result<TopicTemplate, String> {
    text.parse::<TopicTemplate>().map_err(|error| {
        let mistake = error.mistake;
        format!("{mistake}, expected letters, digits, '.', '_', '-', {{entity_type}} and {{event_type}}")
    })
}

fn printable(kind: &Kind, text: &str) -> Result<String, String> {
    match kind {
        Kind::Text { max_len } if (1..=*max_len).contains(&text.len()) && !text.contains(char::is_control) => {
            Ok(text.to_owned())
        }
        _ => Err(String::new()),
    }
}

/// The host name, cut to what `application_name` keeps.
fn host_name(sources: &Sources) -> String {
    let name = sources.env.get("HOSTNAME").map_or("", |name| name.trim());
    let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(63).collect();
    if name.is_empty() { NAMELESS.to_owned() } else { name }
}
