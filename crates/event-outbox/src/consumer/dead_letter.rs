//! What a dead letter says of itself: headers that are added to those of the original record. Pure.
//!
//! A dead letter has the key, the value and the headers of its record. What is redriven may keep these headers: they are written
//! anew when it dies again, except where it came from and when it failed first.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};

/// What all header names of a dead letter begin with.
pub const PREFIX: &str = "dlq-";

/// Header: why the event died, a [`Reason`].
pub const REASON: &str = "dlq-reason";
/// Header: the error of the last attempt, shortened.
pub const ERROR: &str = "dlq-error";
const PATH: &str = "dlq-path";
/// Header: the number of attempts.
pub const ATTEMPTS: &str = "dlq-attempts";
/// Header: the consumer group that gave the event up.
pub const GROUP: &str = "dlq-group";
/// Header: the topic that the record came from.
pub const TOPIC: &str = "dlq-source-topic";
/// Header: the partition that the record came from.
pub const PARTITION: &str = "dlq-source-partition";
/// Header: the record's offset in its partition.
pub const OFFSET: &str = "dlq-source-offset";
/// Header: when the event failed first, RFC 3339.
pub const FIRST_FAILED_AT: &str = "dlq-first-failed-at";

/// Brokers refuse records whose headers are too large for the topic; a stack trace is not what an operator needs here.
const LONGEST_ERROR: usize = 1000;

/// Why an event is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The handler said that another attempt cannot help.
    Permanent,
    /// The attempts are used up.
    Exhausted,
    /// The payload is not what the schema or the handler's type asks for.
    Invalid,
    /// The record names no event.
    Undecodable,
    /// No handler knows the type, and the consumer is to know all of them.
    UnknownType,
    /// Handlers know the type, none of them the version.
    UnsupportedVersion,
    /// The handler panicked.
    Panicked,
    /// An earlier event of its key is a dead letter, and the key is held.
    Held,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Permanent,
        Self::Exhausted,
        Self::Invalid,
        Self::Undecodable,
        Self::UnknownType,
        Self::UnsupportedVersion,
        Self::Panicked,
        Self::Held,
    ];

    /// The value of the header `dlq-reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Exhausted => "exhausted",
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

/// The name is not that of a reason.
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
    /// Why.
    pub reason: Reason,
    /// The error of the last attempt.
    pub error: String,
    /// JSON Pointer to what a schema refused.
    pub path: Option<String>,
    /// Attempts, those before a redrive included.
    pub attempts: u32,
    /// The consumer group that could not apply it.
    pub group: String,
    /// The topic it was read from first.
    pub source_topic: String,
    /// The partition it was read from first.
    pub source_partition: i32,
    /// The offset it was read from first.
    pub source_offset: i64,
    /// When the first attempt failed.
    pub first_failed_at: DateTime<Utc>,
}

impl DeadLetter {
    /// The default dead letter topic of a group that reads `topic`.
    pub fn default_topic(topic: &str, group: &str) -> String {
        format!("{topic}.{group}.dlq")
    }

    /// Names and values.
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

    /// Reads them back; `None` for a record that is no dead letter, or whose headers are damaged.
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

fn cut(error: &str) -> String {
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
