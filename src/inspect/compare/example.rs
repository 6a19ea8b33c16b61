//! Says what differs in the first records of each kind of difference. The facts have digests only, so the records are read again.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use chrono::DateTime;
use rdkafka::message::{Headers, Message, OwnedMessage};
use serde::Serialize;

use super::fact::{At, Side};
use super::matching::{Counts, Example, Kind};
use super::reading::{OWN_HEADERS, is_called};
use super::topic::Topic;
use super::{CompareError, Plan};
use crate::sink::reader::Part;
use crate::text;
use event_outbox::ledger::Place;

/// The longest wait for one record.
const READ_WITHIN: Duration = Duration::from_secs(20);

/// The most characters of a key, a header's value or an excerpt.
const SHOWN: usize = 80;

/// The number of bytes before the first differing one that an excerpt shows.
const BEFORE: usize = 16;

/// A difference as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) id: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) left: Option<Place>,
    pub(crate) right: Option<Place>,
    /// Says what differs.
    pub(crate) difference: String,
}

/// Reads the records of the examples again, and describes them.
pub(super) fn look(
    plan: &Plan,
    topics: &[Topic<'_>; 2],
    counts: &Counts,
) -> Result<BTreeMap<Kind, Vec<Shown>>, CompareError> {
    topics.iter().try_for_each(|topic| topic.reader.unfollow())?;
    let mut shown = BTreeMap::new();
    for (kind, examples) in &counts.examples {
        let describe = |example: &Example| one(plan, topics, *kind, example);
        shown.insert(*kind, examples.iter().map(describe).collect::<Result<_, _>>()?);
    }
    Ok(shown)
}

fn one(plan: &Plan, topics: &[Topic<'_>; 2], kind: Kind, example: &Example) -> Result<Shown, CompareError> {
    let is_late = Cell::new(false);
    let read = |side: Side, at: Option<At>| at.map_or(Ok(None), |at| fetch(&topics[side as usize], at, &is_late));
    let (left, right) = (read(Side::Left, example.left)?, read(Side::Right, example.right)?);
    // The earlier record is on the right for the order, and on the record's own side for repeated ids.
    let side = if example.right.is_some() { Side::Right } else { Side::Left };
    let before = read(side, example.before)?;
    let place = |side: Side, at: At| {
        let topic = topics[side as usize].source.topic.clone();
        Place { topic, partition: at.partition, offset: at.offset }
    };
    let of = |record: &Option<OwnedMessage>, side: Side| {
        let id = topics[side as usize].source.reading.id.id(record.as_ref()?)?;
        Some(text::of_bytes(&id))
    };
    let is_missing = example.left.is_some() && left.is_none() || example.right.is_some() && right.is_none();
    let difference = match (&left, &right) {
        _ if is_missing && is_late.get() => {
            format!("a record was not read again within {} s", READ_WITHIN.as_secs())
        }
        (None, None) => "the record is gone from the topic".to_owned(),
        _ if is_missing => "one of the two records is gone from its topic".to_owned(),
        (left, right) => {
            let records = Records { left: left.as_ref(), right: right.as_ref(), payload: plan.payload };
            let before = before
                .as_ref()
                .zip(example.before)
                .map(|(record, at)| Before { id: of(&Some(record.clone()), side).unwrap_or_default(), at });
            let ignored = &plan.left.reading.ignored_headers;
            records.difference(kind, before.as_ref(), ignored)
        }
    };
    let key = left.as_ref().or(right.as_ref()).and_then(Message::key).map(text::of_bytes);
    Ok(Shown {
        id: of(&left, Side::Left).or_else(|| of(&right, Side::Right)),
        key,
        left: example.left.map(|at| place(Side::Left, at)),
        right: example.right.map(|at| place(Side::Right, at)),
        difference,
    })
}

/// Reads one record; `None` if the topic does not have it any more. Sets `is_late` if the brokers did not return it in time.
fn fetch(topic: &Topic<'_>, at: At, is_late: &Cell<bool>) -> Result<Option<OwnedMessage>, CompareError> {
    let part = Part { partition: at.partition, from: at.offset, end: at.offset + 1 };
    let mut found = None;
    let is_read = topic.reader.read(&topic.source.topic, &[part], READ_WITHIN, |message| {
        found = Some(message.detach());
        ControlFlow::Break(())
    })?;
    is_late.set(is_late.get() || !is_read);
    Ok(found)
}

/// The record that an example names besides its own.
struct Before {
    id: String,
    at: At,
}

struct Records<'r> {
    left: Option<&'r OwnedMessage>,
    right: Option<&'r OwnedMessage>,
    /// True if header values and excerpts of values may be shown.
    payload: bool,
}

impl Records<'_> {
    fn difference(&self, kind: Kind, before: Option<&Before>, ignored: &[String]) -> String {
        let bytes = |record: &OwnedMessage| length(record.payload());
        let earlier = |before: &Before| format!("partition {} offset {}", before.at.partition, before.at.offset);
        match (kind, self.left, self.right) {
            (Kind::Key, Some(left), Some(right)) => keys(left.key(), right.key()),
            (Kind::Partition, Some(left), Some(right)) => {
                let keys = if left.key() == right.key() { "the keys are equal" } else { "the keys differ, too" };
                format!("left {}, right {}; {keys}", left.partition(), right.partition())
            }
            (Kind::Headers, Some(left), Some(right)) => self.headers(left, right, ignored),
            (Kind::Value, Some(left), Some(right)) => self.values(left.payload(), right.payload()),
            (Kind::Timestamp, Some(left), Some(right)) => format!("left {}, right {}", time(left), time(right)),
            (Kind::Order, ..) => match before {
                Some(before) => format!(
                    "follows event {} on the left, and comes before it on the right, where that is at {}",
                    text::name(&before.id).at_most(SHOWN),
                    earlier(before)
                ),
                None => "comes earlier on the right than the event before it on the left".to_owned(),
            },
            (Kind::ReusedId | Kind::Repeated, left, right) => {
                let bytes = left.or(right).map(bytes).unwrap_or_default();
                let what = if kind == Kind::Repeated { "the same key and value" } else { "another key or value" };
                let earlier = before.map_or_else(|| "an earlier record".to_owned(), earlier);
                format!("{earlier} has the same id and {what}; this value has {bytes}")
            }
            (Kind::WithoutId, left, right) => {
                let names = left.or(right).map(header_names).unwrap_or_default();
                format!("its headers are {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") })
            }
            (_, left, right) => {
                let bytes = left.or(right).map(bytes).unwrap_or_default();
                format!("value of {bytes}")
            }
        }
    }

    /// Names the headers of one side only, and those with different values.
    fn headers(&self, left: &OwnedMessage, right: &OwnedMessage, ignored: &[String]) -> String {
        let (left, right) = (headers(left, ignored), headers(right, ignored));
        let mut parts = Vec::new();
        let names: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
        for name in names {
            let shown = quoted(name.as_bytes());
            let value = |values: &Vec<Option<Vec<u8>>>| {
                let values = values.iter().map(|value| value.as_deref().map_or_else(|| "null".to_owned(), quoted));
                values.collect::<Vec<_>>().join(" and ")
            };
            let is_own = OWN_HEADERS.iter().any(|own| is_called(name, own));
            parts.extend(match (left.get(name), right.get(name)) {
                (Some(one), Some(other)) if one == other => None,
                (Some(one), Some(other)) if self.payload => {
                    Some(format!("{shown} is {} on the left and {} on the right", value(one), value(other)))
                }
                (Some(_), Some(_)) => Some(format!("{shown} has another value")),
                _ if is_own => None,
                (Some(_), None) => Some(format!("{shown} is only on the left")),
                (None, _) => Some(format!("{shown} is only on the right")),
            });
        }
        parts.join("; ")
    }

    fn values(&self, left: Option<&[u8]>, right: Option<&[u8]>) -> String {
        let sizes = format!("left {}, right {}", length(left), length(right));
        let (Some(left), Some(right)) = (left, right) else { return sizes };
        let common = left.iter().zip(right).take_while(|(one, other)| one == other).count();
        if !self.payload {
            return format!("{sizes}; they differ from byte {common} on");
        }
        let excerpt = |value: &[u8]| quoted(&value[common.saturating_sub(BEFORE)..]);
        format!("{sizes}; they differ from byte {common} on: left {}, right {}", excerpt(left), excerpt(right))
    }
}

fn keys(left: Option<&[u8]>, right: Option<&[u8]>) -> String {
    let shown = |key: Option<&[u8]>| key.map_or_else(|| "null".to_owned(), quoted);
    let is_quoted = |one: Option<&[u8]>, other: Option<&[u8]>| {
        let inside = one.and_then(|one| serde_json::from_slice::<String>(one).ok());
        inside.is_some() && inside.as_deref().map(str::as_bytes) == other
    };
    let why = if is_quoted(left, right) {
        "; the left key is in JSON quotes"
    } else if is_quoted(right, left) {
        "; the right key is in JSON quotes"
    } else {
        ""
    };
    format!("left {}, right {}{why}", shown(left), shown(right))
}

/// Returns the headers by name, without the ignored ones.
fn headers(record: &OwnedMessage, ignored: &[String]) -> BTreeMap<String, Vec<Option<Vec<u8>>>> {
    let mut found: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for header in record.headers().into_iter().flat_map(Headers::iter) {
        if !ignored.iter().any(|name| name == header.key) {
            found.entry(header.key.to_owned()).or_default().push(header.value.map(<[u8]>::to_vec));
        }
    }
    found.values_mut().for_each(|values| values.sort());
    found
}

fn header_names(record: &OwnedMessage) -> Vec<String> {
    let names = record.headers().into_iter().flat_map(Headers::iter);
    names.map(|header| text::name(header.key).at_most(SHOWN).to_string()).collect()
}

fn length(value: Option<&[u8]>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| format!("{} bytes", value.len()))
}

/// Quotes bytes as a JSON string, cut.
fn quoted(bytes: &[u8]) -> String {
    let text: String = text::of_bytes(bytes);
    let cut: String = text.chars().take(SHOWN).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{}{more}", serde_json::Value::String(cut))
}

fn time(record: &OwnedMessage) -> String {
    let time = record.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
    time.map_or_else(|| "none".to_owned(), |time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    fn record(key: &str, value: Option<&str>, headers: &[(&str, &str)]) -> OwnedMessage {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
        let value = value.map(|value| value.as_bytes().to_vec());
        OwnedMessage::new(value, Some(key.into()), "t".to_owned(), Timestamp::CreateTime(0), 1, 2, Some(headers))
    }

    fn said(kind: Kind, left: &OwnedMessage, right: &OwnedMessage, payload: bool) -> String {
        Records { left: Some(left), right: Some(right), payload }.difference(kind, None, &["trace".to_owned()])
    }

    #[test]
    fn quotes_around_a_key_are_named() {
        let (left, right) = (record("\"o-1\"", None, &[]), record("o-1", None, &[]));
        assert_eq!(
            said(Kind::Key, &left, &right, false),
            r#"left "\"o-1\"", right "o-1"; the left key is in JSON quotes"#
        );
        assert!(said(Kind::Key, &right, &left, false).ends_with("the right key is in JSON quotes"));
        assert_eq!(said(Kind::Key, &record("a", None, &[]), &right, false), r#"left "a", right "o-1""#);
    }

    #[test]
    fn headers_of_one_side_are_named_and_values_are_shown_only_if_asked_for() {
        let left = record("k", None, &[("a", "1"), ("c", "3"), ("trace", "x")]);
        let right = record("k", None, &[("b", "2"), ("c", "4"), ("sequence", "9")]);
        let hidden = said(Kind::Headers, &left, &right, false);
        assert_eq!(hidden, r#""a" is only on the left; "b" is only on the right; "c" has another value"#);
        let shown = said(Kind::Headers, &left, &right, true);
        assert!(shown.ends_with(r#""c" is "3" on the left and "4" on the right"#), "{shown}");
    }

    #[test]
    fn the_first_byte_that_differs_is_named() {
        let (left, right) = (record("k", Some("{\"a\": 1}"), &[]), record("k", Some("{\"a\":1}"), &[]));
        let hidden = said(Kind::Value, &left, &right, false);
        assert_eq!(hidden, "left 8 bytes, right 7 bytes; they differ from byte 5 on");
        assert!(said(Kind::Value, &left, &right, true).contains(r#""{\"a\": 1}""#));
        let tombstone = record("k", None, &[]);
        assert_eq!(said(Kind::Value, &left, &tombstone, true), "left 8 bytes, right null");
    }

    #[test]
    fn long_and_hostile_bytes_are_cut_and_quoted() {
        let long = quoted("\u{1b}[2J".repeat(100).as_bytes());
        assert!(long.starts_with(r#""\u001b[2J"#) && long.ends_with("\"…"), "{long}");
        assert_eq!(quoted(&[0xff]), r#""\\xff""#);
    }
}
