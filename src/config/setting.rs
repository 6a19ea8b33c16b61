//! The one table of settings, with a constant for each. Parsing, the check for unknown names, nearest names, `non_defaults` and
//! `.env.example` all derive from it.

use std::time::Duration;

use super::duration::GivenDuration;
use super::{Delivery, LogFormat, OnPoison, Retention, Settle, Timestamp, Waking};

/// One setting: its name in TOML and in flags, the accepted values, and the default.
#[derive(Debug)]
pub struct Setting {
    /// The lower-case name: the TOML key, and the name in `--set name=value`.
    pub name: &'static str,
    /// The kind of values that the setting accepts.
    pub kind: Kind,
    /// The value if no layer sets one; `None` if the setting is required or has a computed default.
    pub default: Option<&'static str>,
    /// A plausible value, shown in `.env.example` when there is no default.
    pub example: &'static str,
    /// One sentence for operators.
    pub doc: &'static str,
}

/// The kind of values that a setting accepts.
#[derive(Debug)]
pub enum Kind {
    /// A Postgres URL with credentials: never shown.
    DatabaseUrl,
    /// A comma-separated list of `host:port`.
    Brokers,
    /// A name of 1 to 63 bytes that Postgres accepts as an identifier.
    Identifier,
    /// Printable text, not empty.
    Text {
        /// The largest accepted length in bytes.
        max_len: usize,
    },
    /// A whole number.
    Integer {
        /// The lowest accepted value.
        min: u64,
        /// The highest accepted value.
        max: u64,
    },
    /// A number of bytes, with an optional unit.
    Bytes {
        /// The lowest accepted value.
        min: u64,
        /// The highest accepted value.
        max: u64,
    },
    /// A duration with its unit.
    Duration {
        /// The shortest accepted duration.
        min: Duration,
        /// The longest accepted duration.
        max: Duration,
    },
    /// `true` or `false`.
    Boolean,
    /// One of a few words.
    OneOf(&'static [&'static str]),
    /// A topic template.
    Topic,
    /// The beginning of topics' names.
    TopicPrefix,
    /// A comma-separated list of topics.
    Topics,
    /// Log directives.
    LogLevel,
    /// An IP address and a port.
    Address,
    /// A secret of visible ASCII: never shown.
    Secret {
        /// The smallest accepted length in bytes.
        min_len: usize,
        /// The largest accepted length in bytes.
        max_len: usize,
    },
}

impl Setting {
    /// Returns the environment variable: `RELAY_<NAME>`, except the two names that every deployment already has.
    pub fn env_name(&self) -> String {
        match self.name {
            "database_url" | "kafka_bootstrap_servers" => self.name.to_uppercase(),
            name => format!("RELAY_{}", name.to_uppercase()),
        }
    }

    /// Returns true if the value must never be shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::DatabaseUrl | Kind::Secret { .. })
    }

    /// Finds the setting with that name.
    pub fn named(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().copied().find(|setting| setting.name == name)
    }
}

impl Kind {
    /// Describes the accepted values, as the end of a sentence that begins with "expected".
    pub fn accepted(&self) -> String {
        match self {
            Kind::DatabaseUrl => {
                "a URL such as postgres://user:password@host:5432/database, with the hosts and parameters of libpq"
                    .into()
            }
            Kind::Brokers => "a comma-separated list of host:port".into(),
            Kind::Identifier => "a name of 1 to 63 bytes without NUL".into(),
            Kind::Text { max_len } => format!("1 to {max_len} bytes of text without control characters"),
            Kind::Integer { min, max } => format!("an integer from {min} to {max}"),
            Kind::Bytes { min, max } => format!("{min} to {max} bytes, such as 16777216, 512KB or 16MiB"),
            Kind::Duration { min, max } => {
                let [min, max] = [*min, *max].map(GivenDuration::from);
                format!("a duration with its unit from {min} to {max}, such as 250ms or 1m")
            }
            Kind::Boolean => "true or false".into(),
            Kind::OneOf(words) => format!("one of {}", words.join(", ")),
            Kind::Topic => "a topic template such as {entity_type}-events".into(),
            Kind::TopicPrefix => {
                "1 to 100 letters, digits, '.', '_' and '-', such as shadow., which do not begin with __".into()
            }
            Kind::Topics => "topics such as order-events,billing-*".into(),
            Kind::LogLevel => "log directives such as info or info,outbox_relay=debug".into(),
            Kind::Address => "an IP address and a port such as 127.0.0.1:9187 or [::1]:9187".into(),
            Kind::Secret { min_len, max_len } => {
                format!("{min_len} to {max_len} visible ASCII characters, without spaces")
            }
        }
    }
}

const fn required(name: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Setting {
    Setting { name, kind, default: None, example, doc }
}

const fn with_default(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Setting {
    Setting { name, kind, default: Some(default), example: default, doc }
}

const fn millis(min: u64, max: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min), max: Duration::from_millis(max) }
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
/// The length of a year in humantime.
const YEAR: u64 = 31_557_600 * SECOND;

/// Makes a constant of each setting, and the list of all.
macro_rules! settings {
    ($($key:ident: $setting:expr;)*) => {
        $(pub(super) static $key: Setting = $setting;)*

        /// Every setting, in the order of `.env.example`.
        pub static SETTINGS: &[&Setting] = &[$(&$key),*];

        #[cfg(test)]
        const KEYS: &[&str] = &[$(stringify!($key)),*];
    };
}

settings! {
    DATABASE_URL: required("database_url", Kind::DatabaseUrl, "postgres://relay:change-me@db.example.com:5432/app?sslmode=verify-full&sslrootcert=system",
        "The database of the outbox. Required. The URL has a password in it: DATABASE_URL_FILE reads it from a file instead.");
    KAFKA_BOOTSTRAP_SERVERS: required("kafka_bootstrap_servers", Kind::Brokers, "localhost:9092",
        "The Kafka brokers to ask first. Required by every command that talks to Kafka.");
    SCHEMA: with_default("schema", Kind::Identifier, "public", "Postgres schema of the outbox tables.");
    TABLE: with_default("table", Kind::Identifier, "event_outbox", "Name of the outbox table.");
    PROCESSED_TABLE: with_default("processed_table", Kind::Identifier, "processed_events",
        "Name of the table in which consumers record processed events.");
    NAME: required("name", Kind::Text { max_len: 63 }, "relay-1",
        "Name of this relay in logs and in its heartbeat. Default: the host name.");
    WORKERS: with_default("workers", Kind::Integer { min: 1, max: 64 }, "3",
        "Workers of this relay, each with its own Postgres connection. With N live relays only 1/N of a relay's workers (rounded up) get lanes.");
    BATCH_SIZE: with_default("batch_size", Kind::Integer { min: 1, max: 100_000 }, "2000",
        "Maximum number of events per claim.");
    BATCH_BYTES: with_default("batch_bytes", Kind::Bytes { min: 1 << 10, max: 1 << 30 }, "16MiB",
        "Maximum payload bytes per claim. KB, MB and GB are powers of 1000; KiB, MiB and GiB are powers of 1024.");
    POLL_INTERVAL: with_default("poll_interval", millis(1, MINUTE), "250ms",
        "Longest pause between two polls while there is nothing to do.");
    WAKE_UP: with_default("wake_up", Kind::OneOf(Waking::WORDS), "auto",
        "Whether the relay sleeps until a writer wakes it. With off, and where no notification arrives, it polls.");
    WAKE_UP_URL: required("wake_up_url", Kind::DatabaseUrl, "postgres://relay:change-me@localhost:5432/app",
        "Direct connection on which writers wake the relay, where DATABASE_URL leads to a pooler. Default: DATABASE_URL. RELAY_WAKE_UP_URL_FILE reads it from a file.");
    PUBLISH_TIMEOUT: with_default("publish_timeout", millis(SECOND, 15 * MINUTE), "30s",
        "How long a batch waits for the acknowledgements of its records.");
    SHUTDOWN_TIMEOUT: with_default("shutdown_timeout", millis(SECOND, HOUR), "40s",
        "How long the relay may take after SIGTERM to finish the batches in flight.");
    CONNECT_TIMEOUT: with_default("connect_timeout", millis(100, 5 * MINUTE), "10s",
        "How long to wait for each address of the database. The parameter connect_timeout of DATABASE_URL is stronger.");
    STATUS_INTERVAL: with_default("status_interval", millis(SECOND, HOUR), "30s",
        "How often the status line is logged.");
    HEARTBEAT_INTERVAL: with_default("heartbeat_interval", millis(100, 10 * SECOND), "1s",
        "How often the relay writes its heartbeat, every other one while it sleeps. After three missed heartbeats others take its lanes over.");
    STALL_AFTER: with_default("stall_after", millis(SECOND, HOUR), "1m",
        "How long events may wait, without any of them moving, before the relay reports that it is stalled, and why.");
    ENVELOPE: with_default("envelope",
        Kind::OneOf(&["event", "raw", "cloudevents-binary", "cloudevents-structured", "debezium"]),
        "event", "Format of a record's value and headers.");
    TOPIC: required("topic", Kind::Topic, "{entity_type}-events",
        "Topic of events whose row names no topic. Default: that of the envelope.");
    TOPIC_PREFIX: required("topic_prefix", Kind::TopicPrefix, "shadow.",
        "Beginning of the name of every topic that events go to, also of those that rows name: shadow. sends order-events to shadow.order-events. Default: none.");
    TOPICS: required("topics", Kind::Topics, "order-events,billing-*",
        "Topics that events may go to, separated by commas; billing-* is every topic that begins with billing-. Names are without RELAY_TOPIC_PREFIX. Events for others go DEAD. Default: all.");
    SOURCE: required("source", Kind::Text { max_len: 255 }, "/shop/orders",
        "Source of events whose row has no header `source`. Default: no source.");
    TIMESTAMP: with_default("timestamp", Kind::OneOf(Timestamp::WORDS), "event",
        "Timestamp of a record, by which brokers delete it: when the event was created or became due, or when it is sent.");
    DELIVERY: with_default("delivery", Kind::OneOf(Delivery::WORDS), "at_least_once",
        "Delivery guarantee. With exactly_once, consumers that read committed see no event twice, not even after a crash.");
    SETTLE: with_default("settle", Kind::OneOf(Settle::WORDS), "mark",
        "What happens to the row of a published event: it is marked and stays, or is deleted at once. Deleted events cannot be replayed or verified.");
    ON_POISON: with_default("on_poison", Kind::OneOf(OnPoison::WORDS), "dead_letter",
        "What happens behind an event that cannot be sent: with dead_letter the later events of its entity go on, with hold_entity they wait.");
    RETENTION: with_default("retention", Kind::OneOf(Retention::WORDS), "keep",
        "What happens to published events: they stay, are deleted, or are moved to the archive table.");
    RETENTION_AFTER: with_default("retention_after", millis(SECOND, 10 * YEAR), "7d",
        "How long after it was published an event is deleted or moved. DEAD and pending events are never removed.");
    PROCESSED_RETENTION: required("processed_retention", millis(SECOND, 10 * YEAR), "14d",
        "How long rows of the consumers' table are kept. Must be longer than a topic can replay. Default: for ever.");
    DEAD_LETTER_HORIZON: required("dead_letter_horizon", millis(SECOND, 10 * YEAR), "30d",
        "How long a consumer's dead letter may come back. Default: retention.ms of the topics <topic>.<group>.dlq.");
    PREPARED_STATEMENTS: with_default("prepared_statements", Kind::Boolean, "true",
        "Whether to use prepared statements. Set false behind a transaction-mode pooler that does not support them.");
    ADMIN_ADDRESS: required("admin_address", Kind::Address, "127.0.0.1:9187",
        "Address of /livez, /readyz and /metrics. Default: none. An address beyond this host needs RELAY_ADMIN_TOKEN.");
    ADMIN_TOKEN: required("admin_token", Kind::Secret { min_len: 16, max_len: 256 }, "change-me-change-me",
        "Token that callers of the admin address send: Authorization: Bearer <token>. RELAY_ADMIN_TOKEN_FILE reads it from a file.");
    LOG_FORMAT: with_default("log_format", Kind::OneOf(LogFormat::WORDS), "auto",
        "Format of the log. auto is text on a terminal and json elsewhere.");
    LOG_LEVEL: with_default("log_level", Kind::LogLevel, "info", "Log level, or target=level pairs, comma-separated.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_called_like_its_setting() {
        let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name.to_uppercase()).collect();
        assert_eq!(names, KEYS);
    }

    #[test]
    fn names_are_unique_and_their_variables_follow_the_rule() {
        let mut names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
        assert_eq!(Setting::named("database_url").unwrap().env_name(), "DATABASE_URL");
        assert_eq!(Setting::named("kafka_bootstrap_servers").unwrap().env_name(), "KAFKA_BOOTSTRAP_SERVERS");
        assert_eq!(Setting::named("batch_size").unwrap().env_name(), "RELAY_BATCH_SIZE");
    }
}
