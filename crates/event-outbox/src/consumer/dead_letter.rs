//! Writes and reads the headers by which a dead letter explains itself. They are added to the headers of the original record. Does no I/O.
//!
//! A dead letter has the key, the value and the headers of its record. A redriven event may keep these headers. If it fails again they are
//! written again, except for its origin and the time of its first failure.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};

/// The prefix of all header names of a dead letter.
pub const PREFIX: &str = "dlq-";

/// Header: the reason of the failure, a [`Reason`].
pub const REASON: &str = "dlq-reason";
/// Header: the error of the last attempt, cut to 1,000 bytes.
pub const ERROR: &str = "dlq-error";
const PATH: &str = "dlq-path";
/// Header: the number of attempts.
pub const ATTEMPTS: &str = "dlq-attempts";
/// Header: the consumer group that could not apply the event.
pub const GROUP: &str = "dlq-group";
/// Header: the topic that the record came from.
pub const TOPIC: &str = "dlq-source-topic";
/// Header: the partition that the record came from.
pub const PARTITION: &str = "dlq-source-partition";
/// Header: the record's offset in its partition.
pub const OFFSET: &str = "dlq-source-offset";
/// Header: the time of the first failure, RFC 3339.
pub const FIRST_FAILED_AT: &str = "dlq-first-failed-at";

/// Most bytes of an error in a header. Brokers refuse records with headers too large for the topic, and an operator needs no stack trace
/// here.
const LONGEST_ERROR: usize = 1000;

/// The reason why an event is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The handler reported that another attempt cannot help.
    Permanent,
    /// All attempts have failed.
    Exhausted,
    /// The handler hid an error of the database, so Postgres rolled its effects back, or it ended the transaction itself.
    Aborted,
    /// The payload does not match the schema or the type that the handler expects.
    Invalid,
    /// The record does not name an event.
    Undecodable,
    /// No handler takes the event type, and the consumer is not to ignore it (`UnknownType`).
    UnknownType,
    /// Handlers take the event type, but none takes this version.
    UnsupportedVersion,
    /// The handler panicked.
    Panicked,
    /// An earlier event of the same key is a dead letter, and the key is held.
    Held,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Permanent,
        Self::Exhausted,
        Self::Aborted,
        Self::Invalid,
        Self::Undecodable,
        Self::UnknownType,
        Self::UnsupportedVersion,
        Self::Panicked,
        Self::Held,
    ];

    /// Returns the value of the header `dlq-reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Exhausted => "exhausted",
            Self::Aborted => "aborted",
            Self::Invalid => "invalid",
            Self::Undecodable => "undecodable",
            Self::UnknownType => "unknown-type",
            Self::UnsupportedVersion => "unsupported-version",
            Self::Panicked => "panicked",
            Self::Held => "held",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The error for a name that is not the name of a [`Reason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason {0:?}")]
pub struct UnknownReason(pub String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|reason| reason.name() == name).ok_or_else(|| UnknownReason(name.to_owned()))
    }
}

/// The headers of a dead letter, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The reason of the failure.
    pub reason: Reason,
    /// The error of the last attempt.
    pub error: String,
    /// JSON Pointer to the member that a schema refused.
    pub path: Option<String>,
    /// The number of attempts, including those before a redrive.
    pub attempts: u32,
    /// The consumer group that could not apply the event.
    pub group: String,
    /// The topic that the record was first read from.
    pub source_topic: String,
    /// The partition that the record was first read from.
    pub source_partition: i32,
    /// The offset that the record was first read from.
    pub source_offset: i64,
    /// The time at which the first attempt failed.
    pub first_failed_at: DateTime<Utc>,
}

impl DeadLetter {
    /// Returns the default dead letter topic of a group that reads `topic`: `<topic>.<group>.dlq`.
    pub fn default_topic(topic: &str, group: &str) -> String {
        format!("{topic}.{group}.dlq")
    }

    /// Returns the retry topic of a group that reads `topic`: `<topic>.<group>.retry`. The group alone reads it.
    pub fn retry_topic(topic: &str, group: &str) -> String {
        format!("{topic}.{group}.retry")
    }

    /// Returns the names and values of the headers.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (REASON, self.reason.name().to_owned()),
            (ERROR, cut(&self.error)),
            (ATTEMPTS, self.attempts.to_string()),
            (GROUP, self.group.clone()),
            (TOPIC, self.source_topic.clone()),
            (PARTITION, self.source_partition.to_string()),
            (OFFSET, self.source_offset.to_string()),
            (FIRST_FAILED_AT, self.first_failed_at.to_rfc3339_opts(SecondsFormat::Millis, true)),
        ];
        headers.extend(self.path.clone().map(|path| (PATH, path)));
        headers
    }

    /// Reads the headers of a record; `None` if the record is no dead letter or its headers are damaged.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a [u8]>) -> Option<Self> {
        let text = |name| std::str::from_utf8(header(name)?).ok();
        Some(Self {
            reason: text(REASON)?.parse().ok()?,
            error: text(ERROR)?.to_owned(),
            path: text(PATH).map(str::to_owned),
            attempts: text(ATTEMPTS)?.parse().ok()?,
            group: text(GROUP)?.to_owned(),
            source_topic: text(TOPIC)?.to_owned(),
            source_partition: text(PARTITION)?.parse().ok()?,
            source_offset: text(OFFSET)?.parse().ok()?,
            first_failed_at: text(FIRST_FAILED_AT)?.parse().ok()?,
        })
    }
}

/// Cuts an error to [`LONGEST_ERROR`] bytes.
pub(super) fn cut(error: &str) -> String {
    let mut end = error.len().min(LONGEST_ERROR);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back_and_a_long_error_is_cut() {
        for reason in Reason::ALL {
            let dead_letter = DeadLetter {
                reason,
                error: "é".repeat(LONGEST_ERROR),
                path: (reason == Reason::Invalid).then(|| "/lines/0".to_owned()),
                attempts: 3,
                group: "billing".to_owned(),
                source_topic: "order-events".to_owned(),
                source_partition: 2,
                source_offset: 17,
                first_failed_at: DateTime::from_timestamp_millis(1_700_000_000_123).expect("a time"),
            };
            let headers = dead_letter.headers();
            assert!(headers.iter().all(|(name, _)| name.starts_with(PREFIX)));
            let header = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes());
            let read = DeadLetter::read(header).expect("a dead letter");
            assert_eq!(read, DeadLetter { error: "é".repeat(LONGEST_ERROR / 2), ..dead_letter });
        }
        assert_eq!(DeadLetter::read(|_| None), None);
    }
}
