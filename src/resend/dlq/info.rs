//! Reads the headers of a dead letter: those of the consumer runtime, of Spring Kafka and of Kafka Connect. Pure.

use chrono::{DateTime, Utc};

use crate::sink::resend::Record;
use event_outbox::consumer::dead_letter as ours;
use event_outbox::envelope::decode;

/// The topic and place from which the consumer read the event that became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) topic: String,
    /// The partition and offset.
    pub(crate) place: Option<(i32, i64)>,
}

/// The facts about a dead letter in its headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DeadLetterInfo {
    /// The error class of the consumer runtime, or the exception of another framework.
    pub(crate) reason: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) attempts: Option<u32>,
    pub(crate) source: Option<Source>,
    pub(crate) failed_at: Option<DateTime<Utc>>,
    pub(crate) event_type: Option<String>,
    pub(crate) event_id: Option<String>,
}

/// Spring Kafka's and Kafka Connect's names for reason, error, topic, partition, offset, group.
const FOREIGN: [[&str; 6]; 2] = [
    [
        "kafka_dlt-exception-fqcn",
        "kafka_dlt-exception-message",
        "kafka_dlt-original-topic",
        "kafka_dlt-original-partition",
        "kafka_dlt-original-offset",
        "kafka_dlt-original-consumer-group",
    ],
    [
        "__connect.errors.exception.class.name",
        "__connect.errors.exception.message",
        "__connect.errors.topic",
        "__connect.errors.partition",
        "__connect.errors.offset",
        "__connect.errors.connector.name",
    ],
];

const OURS: [&str; 6] = [ours::REASON, ours::ERROR, ours::TOPIC, ours::PARTITION, ours::OFFSET, ours::GROUP];

impl DeadLetterInfo {
    pub(crate) fn from_record(record: &Record) -> Self {
        let text = |name: &str| std::str::from_utf8(record.header(name)?).ok().map(str::to_owned);
        let mut info = Self {
            attempts: text(ours::ATTEMPTS).and_then(|attempts| attempts.parse().ok()),
            failed_at: text(ours::FIRST_FAILED_AT).and_then(|at| at.parse().ok()),
            ..Self::default()
        };
        // The headers of the consumer runtime come first. A dead letter that passed two frameworks has the headers of both.
        for [reason, error, topic, partition, offset, group] in [OURS].into_iter().chain(FOREIGN) {
            let place = || Some((number(record.header(partition)?)?.try_into().ok()?, number(record.header(offset)?)?));
            info.reason = info.reason.or_else(|| text(reason));
            info.error = info.error.or_else(|| text(error));
            info.group = info.group.or_else(|| text(group));
            info.source = info.source.or_else(|| Some(Source { topic: text(topic)?, place: place() }));
        }
        match decode(|name| record.header(name), record.value.as_deref()) {
            Ok(event) => {
                info.event_id = Some(event.event_id.to_string());
                info.event_type = Some(event.event_type.into_owned());
            }
            // The headers of an event that cannot be decoded may still be useful.
            Err(_) => {
                info.event_id = text("event-id").or_else(|| text("ce_id"));
                info.event_type = text("event-type").or_else(|| text("ce_type"));
            }
        }
        info
    }
}

/// Reads a number that is written as text, or as Java's serializers write an int or a long.
fn number(bytes: &[u8]) -> Option<i64> {
    if let Some(number) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()) {
        return Some(number);
    }
    let int = || Some(i64::from(i32::from_be_bytes(bytes.try_into().ok()?)));
    int().or_else(|| Some(i64::from_be_bytes(bytes.try_into().ok()?)))
}

/// Replaces quoted texts, UUIDs and numbers in an error by `?`. These differ from event to event, and one cause must have one text.
pub(crate) fn without_particulars(error: &str) -> String {
    let mut out = String::with_capacity(error.len());
    let mut rest = error;
    while let Some(first) = rest.chars().next() {
        let quoted = || {
            let inside = &rest[first.len_utf8()..];
            matches!(first, '"' | '\'' | '`').then(|| inside.find(first)).flatten().map(|end| end + 2)
        };
        let uuid = || rest.get(..36).filter(|text| uuid::Uuid::try_parse(text).is_ok()).map(str::len);
        let digits = || Some(rest.bytes().take_while(u8::is_ascii_digit).count()).filter(|count| *count > 0);
        match quoted().or_else(uuid).or_else(digits) {
            Some(len) => {
                out.push('?');
                rest = &rest[len..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(headers: &[(&str, &[u8])]) -> Record {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), Some(value.to_vec()))).collect();
        Record { headers, ..Record::default() }
    }

    #[test]
    fn the_headers_of_this_runtime_of_spring_and_of_connect_are_understood() {
        let source = |offset| Some(Source { topic: "t".to_owned(), place: Some((2, offset)) });
        let info = DeadLetterInfo::from_record(&record(&[
            ("dlq-reason", b"exhausted"),
            ("dlq-source-topic", b"t"),
            ("dlq-source-partition", b"2"),
            ("dlq-source-offset", b"17"),
            ("dlq-attempts", b"3"),
            ("kafka_dlt-original-topic", b"another"),
            ("event-type", b"Placed"),
        ]));
        assert_eq!((info.source, info.attempts, info.reason.as_deref()), (source(17), Some(3), Some("exhausted")));
        assert_eq!((info.event_type.as_deref(), info.event_id), (Some("Placed"), None));
        let info = DeadLetterInfo::from_record(&record(&[
            ("kafka_dlt-original-topic", b"t"),
            ("kafka_dlt-original-partition", &2_i32.to_be_bytes()),
            ("kafka_dlt-original-offset", &17_i64.to_be_bytes()),
            ("kafka_dlt-exception-fqcn", b"java.lang.IllegalStateException"),
        ]));
        assert_eq!((info.source, info.reason.as_deref()), (source(17), Some("java.lang.IllegalStateException")));
        let info = DeadLetterInfo::from_record(&record(&[
            ("__connect.errors.topic", b"t"),
            ("__connect.errors.partition", b"x"),
        ]));
        assert_eq!(info.source, Some(Source { topic: "t".to_owned(), place: None }));
        assert_eq!(DeadLetterInfo::from_record(&Record::default()), DeadLetterInfo::default());
    }

    #[test]
    fn what_differs_from_event_to_event_is_left_out_of_an_error() {
        for (error, cause) in [
            ("no stock for 17 of \"ann's\"", "no stock for ? of ?"),
            ("order 6fa459ea-ee8a-3ca4-894e-db77e160355e: é1", "order ?: é?"),
            ("it's closed", "it's closed"),
            ("`a` and 'b'", "? and ?"),
            ("", ""),
        ] {
            assert_eq!(without_particulars(error), cause, "{error}");
        }
    }
}
