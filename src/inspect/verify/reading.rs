//! Reads records: finds the event id, the entity id, and the payload inside the value.

use std::borrow::Cow;
use std::str::FromStr;

use rdkafka::message::{Headers, Message};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::inspect::verify::fact::Resent;
use event_outbox::envelope::Envelope;
use event_outbox::event::EventId;
use event_outbox::ledger::Fingerprint;

/// The part of a record that holds the entity's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyFrom {
    /// The record's key.
    Key,
    /// The value of a header.
    Header(String),
    /// A member of the value, by JSON pointer.
    Json(String),
}

impl FromStr for KeyFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "key" => Ok(Self::Key),
            Some(("header", name)) if !name.is_empty() => Ok(Self::Header(name.to_owned())),
            Some(("json", pointer)) if pointer.starts_with('/') => Ok(Self::Json(pointer.to_owned())),
            _ => Err("expected key, header:NAME or json:/POINTER".to_owned()),
        }
    }
}

/// The part of a record's value that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// The payload inside an envelope, byte for byte.
    Of(Envelope),
    /// No part of the value.
    Unchecked,
}

impl FromStr for Payload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::Unchecked),
            name => name.parse().map(Self::Of).map_err(|_| {
                let names = Envelope::ALL.map(|envelope| envelope.name()).join(", ");
                format!("expected {names} or none")
            }),
        }
    }
}

/// The rules for reading the records of a topic.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) id_header: String,
    pub(crate) key_from: KeyFrom,
    pub(crate) payload: Payload,
}

impl Reading {
    /// Returns the id of the record's event. The header holds a UUID as text, as 16 bytes, or as Kafka Connect's JSON converter writes it.
    pub(crate) fn event_id(&self, record: &impl Message) -> Option<EventId> {
        let bytes = header(record, &self.id_header)?;
        if let Ok(raw) = <[u8; 16]>::try_from(bytes) {
            return Some(EventId(Uuid::from_bytes(raw)));
        }
        let text = str::from_utf8(bytes).ok()?;
        Uuid::parse_str(text.trim_matches('"')).ok().map(EventId)
    }

    /// Returns the entity's id from the place that `key_from` names.
    pub(crate) fn key<'m>(&self, record: &'m impl Message) -> Option<Cow<'m, [u8]>> {
        let key = match &self.key_from {
            KeyFrom::Key => record.key().map(Cow::Borrowed),
            KeyFrom::Header(name) => header(record, name).map(Cow::Borrowed),
            KeyFrom::Json(pointer) => {
                let value: serde_json::Value = serde_json::from_slice(record.payload()?).ok()?;
                match value.pointer(pointer)? {
                    serde_json::Value::Null => None,
                    serde_json::Value::String(text) => Some(Cow::Owned(text.clone().into_bytes())),
                    other => Some(Cow::Owned(other.to_string().into_bytes())),
                }
            }
        };
        key.map(|key| self.loosened(key))
    }

    /// Returns a digest of a record's key and payload.
    pub(crate) fn record_fingerprint(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> Option<Fingerprint> {
        let Payload::Of(envelope) = self.payload else { return Some(Fingerprint::from_key_value(key, None)) };
        let value = match value {
            None => None,
            Some(value) => Some(self.unwrapped(envelope, value)?),
        };
        Some(Fingerprint::from_key_value(key, value.as_deref()))
    }

    /// Returns the same digest for a row.
    pub(crate) fn row_fingerprint(
        &self,
        key: Option<&str>,
        json: Option<&str>,
        bytes: Option<&[u8]>,
    ) -> Option<Fingerprint> {
        let key = key.map(|key| self.loosened(Cow::Borrowed(key.as_bytes())));
        let Payload::Of(envelope) = self.payload else {
            return Some(Fingerprint::from_key_value(key.as_deref(), None));
        };
        let value = match (json, bytes) {
            (Some(json), _) => Some(self.loosened(Cow::Borrowed(json.as_bytes()))),
            // Binary payloads are sent without an envelope. If the bytes look like an envelope, it is removed on both sides.
            (None, Some(bytes)) => Some(self.unwrapped(envelope, bytes)?),
            (None, None) => None,
        };
        Some(Fingerprint::from_key_value(key.as_deref(), value.as_deref()))
    }

    fn unwrapped<'v>(&self, envelope: Envelope, value: &'v [u8]) -> Option<Cow<'v, [u8]>> {
        match envelope {
            Envelope::Event => Some(Cow::Borrowed(event_data(value))),
            Envelope::Raw | Envelope::CloudeventsBinary => Some(Cow::Borrowed(value)),
            Envelope::Debezium => Some(self.loosened(Cow::Borrowed(value))),
            Envelope::CloudeventsStructured => structured_data(value).map(Cow::Borrowed),
        }
    }

    /// Undoes what the converters of Kafka Connect may do to a text: removes the schema, the quotes, and the white space of the JSON.
    /// Rows get the same treatment, so that a payload that already looks converted compares equal.
    fn loosened<'v>(&self, text: Cow<'v, [u8]>) -> Cow<'v, [u8]> {
        if self.payload != Payload::Of(Envelope::Debezium) {
            return text;
        }
        let mut text = text.into_owned();
        while let Some(inner) = converted(&text) {
            text = inner;
        }
        if serde_json::from_slice::<&RawValue>(&text).is_ok() { Cow::Owned(compact(&text)) } else { Cow::Owned(text) }
    }
}

fn header<'m>(record: &'m impl Message, name: &str) -> Option<&'m [u8]> {
    record.headers()?.iter().find(|header| header.key == name)?.value
}

/// Returns the command that sent the record again, by the record's headers.
pub(crate) fn resent(record: &impl Message) -> Option<Resent> {
    if header(record, event_outbox::envelope::headers::REPLAY_ID).is_some() {
        return Some(Resent::Replayed);
    }
    header(record, event_outbox::envelope::headers::REDRIVE_ID).map(|_| Resent::Redriven)
}

/// Returns the header `sequence`, which is the row's id in records of the relay.
pub(crate) fn sequence(record: &impl Message) -> Option<i64> {
    str::from_utf8(header(record, "sequence")?).ok()?.parse().ok()
}

/// Returns the payload inside the envelope `event`, and any other value unchanged. Quotes inside the strings before the member `data` are
/// escaped, so the first match is the member itself.
fn event_data(value: &[u8]) -> &[u8] {
    const MARK: &[u8] = b",\"data\":";
    let at = value.windows(MARK.len()).position(|window| window == MARK);
    match (at, value.strip_suffix(b"}")) {
        (Some(at), Some(inside)) if value.starts_with(b"{\"eventId\":") => &inside[at + MARK.len()..],
        _ => value,
    }
}

/// Returns the member `data` of a CloudEvent. Binary data and other values give `None`, and are not compared.
fn structured_data(value: &[u8]) -> Option<&[u8]> {
    #[derive(serde::Deserialize)]
    struct CloudEvent<'v> {
        #[serde(borrow)]
        data: Option<&'v RawValue>,
    }
    let event: CloudEvent<'_> = serde_json::from_slice(value).ok()?;
    event.data.map(|data| data.get().as_bytes())
}

/// Removes one layer of `{"schema": …, "payload": …}` or of a JSON string; returns `None` if there is no such layer.
fn converted(text: &[u8]) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct WithSchema<'v> {
        #[serde(borrow, rename = "schema")]
        _schema: &'v RawValue,
        #[serde(borrow)]
        payload: &'v RawValue,
    }
    if let Ok(with_schema) = serde_json::from_slice::<WithSchema<'_>>(text) {
        return Some(with_schema.payload.get().as_bytes().to_vec());
    }
    serde_json::from_slice::<String>(text).ok().map(String::into_bytes)
}

/// Removes the white space between the tokens of a JSON text.
fn compact(json: &[u8]) -> Vec<u8> {
    let (mut inside, mut escaped) = (false, false);
    let keep = |byte: &u8| {
        let kept = inside || !byte.is_ascii_whitespace();
        match byte {
            b'"' if !escaped => inside = !inside,
            _ => {}
        }
        escaped = inside && !escaped && *byte == b'\\';
        kept
    };
    json.iter().copied().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(payload: Payload) -> Reading {
        Reading { id_header: "event-id".to_owned(), key_from: KeyFrom::Key, payload }
    }

    #[test]
    fn the_payload_of_an_event_is_found_whatever_its_texts_say() {
        let value = br#"{"eventId":"x","eventType":",\"data\":{}","version":1,"data":{"a": ",\"data\":1"}}"#;
        assert_eq!(event_data(value), br#"{"a": ",\"data\":1"}"#);
        assert_eq!(event_data(br#"{"b":1,"data":2}"#), br#"{"b":1,"data":2}"#);
    }

    #[test]
    fn one_byte_more_is_a_difference_unless_it_is_debezium() {
        let (row, record) = (r#"{"a": 1}"#, br#"{"a":1}"#);
        for (envelope, equal) in [(Envelope::Raw, false), (Envelope::Debezium, true)] {
            let reading = reading(Payload::Of(envelope));
            let same = reading.row_fingerprint(Some("k"), Some(row), None)
                == reading.record_fingerprint(Some(b"k"), Some(record));
            assert_eq!(same, equal, "{envelope}");
        }
    }

    #[test]
    fn what_the_converters_of_connect_add_is_no_difference() {
        let reading = reading(Payload::Of(Envelope::Debezium));
        let row = reading.row_fingerprint(Some("o-1"), Some(r#"{"a": "b c\" d"}"#), None);
        for value in [
            r#"{"a": "b c\" d"}"#,
            r#""{\"a\": \"b c\\\" d\"}""#,
            r#"{"schema":{"type":"string"},"payload":"{\"a\": \"b c\\\" d\"}"}"#,
        ] {
            assert_eq!(reading.record_fingerprint(Some(b"o-1"), Some(value.as_bytes())), row, "{value}");
        }
        assert_ne!(
            reading.record_fingerprint(Some(b"o-1"), Some(br#"{"a": "b  c\" d"}"#)),
            row,
            "white space inside a text"
        );
        assert_ne!(reading.record_fingerprint(Some(b"o-2"), Some(br#"{"a": "b c\" d"}"#)), row, "another key");
    }

    #[test]
    fn a_tombstone_differs_from_an_empty_value_unless_values_are_not_compared() {
        let raw = reading(Payload::Of(Envelope::Raw));
        assert_ne!(raw.row_fingerprint(None, None, None), raw.record_fingerprint(None, Some(b"")));
        assert_eq!(raw.row_fingerprint(None, None, None), raw.record_fingerprint(None, None));
        let unchecked = reading(Payload::Unchecked);
        assert_eq!(unchecked.row_fingerprint(None, Some("1"), None), unchecked.record_fingerprint(None, Some(b"2")));
    }

    #[test]
    fn a_key_is_taken_from_where_the_user_says() {
        assert_eq!("key".parse(), Ok(KeyFrom::Key));
        assert_eq!("header:aggregate".parse(), Ok(KeyFrom::Header("aggregate".to_owned())));
        assert_eq!("json:/after/id".parse(), Ok(KeyFrom::Json("/after/id".to_owned())));
        for wrong in ["", "value", "header:", "json:after"] {
            assert!(wrong.parse::<KeyFrom>().is_err(), "{wrong}");
        }
    }
}
