//! Reads what is compared from a record: its id, and the digests of its parts.

use std::hash::{DefaultHasher, Hasher};

use rdkafka::message::{Headers, Message};
use uuid::Uuid;

use super::fact::{At, Digest, RecordFact, Side, WRITERS_OWN, digest};

/// The headers that only this relay or only a connector writes. They are compared only where both topics have them.
pub(crate) const OWN_HEADERS: [&str; WRITERS_OWN] =
    ["event-id", "event-type", "event-version", "sequence", "__debezium.context.*"];

/// The place of an event's id in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdFrom {
    Header(String),
    /// A member of the value, by JSON pointer.
    Json(String),
}

impl IdFrom {
    /// Reads `NAME` of a header, or `json:/POINTER`.
    pub(crate) fn parse(text: &str) -> Self {
        match text.strip_prefix("json:") {
            Some(pointer) if pointer.starts_with('/') => Self::Json(pointer.to_owned()),
            _ => Self::Header(text.to_owned()),
        }
    }

    /// Returns the bytes that identify the record's event. A UUID is the same id in every form: as text, as 16 bytes, or in the quotes of
    /// Kafka Connect's JSON converter.
    pub(crate) fn id(&self, record: &impl Message) -> Option<Vec<u8>> {
        match self {
            Self::Header(name) => {
                let bytes = record.headers()?.iter().find(|header| header.key == name)?.value?;
                Some(canonical(bytes))
            }
            Self::Json(pointer) => {
                let value: serde_json::Value = serde_json::from_slice(record.payload()?).ok()?;
                match value.pointer(pointer)? {
                    serde_json::Value::Null => None,
                    serde_json::Value::String(text) => Some(canonical(text.as_bytes())),
                    other => Some(other.to_string().into_bytes()),
                }
            }
        }
    }
}

fn canonical(bytes: &[u8]) -> Vec<u8> {
    let is_text = || bytes.iter().all(|byte| (0x20..0x7f).contains(byte));
    if let Ok(raw) = <[u8; 16]>::try_from(bytes)
        && !is_text()
    {
        return Uuid::from_bytes(raw).to_string().into_bytes();
    }
    let text = serde_json::from_slice::<String>(bytes).ok().or_else(|| String::from_utf8(bytes.to_vec()).ok());
    match text {
        Some(text) => Uuid::parse_str(&text).map_or(text.into_bytes(), |id| id.to_string().into_bytes()),
        None => bytes.to_vec(),
    }
}

/// The rules for reading the records of one topic.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) side: Side,
    pub(crate) id: IdFrom,
    /// The headers that are not compared.
    pub(crate) ignored_headers: Vec<String>,
    /// The key of the only records to compare, as it is or in JSON quotes.
    pub(crate) key: Option<String>,
}

impl Reading {
    /// Returns true if the record has the key that is compared.
    pub(crate) fn is_wanted(&self, record: &impl Message) -> bool {
        let Some(wanted) = &self.key else { return true };
        let Some(key) = record.key() else { return false };
        key == wanted.as_bytes() || serde_json::from_slice::<String>(key).is_ok_and(|text| text == *wanted)
    }

    /// Returns the digest of the id, and the facts; `None` for a record without an id.
    pub(crate) fn fact(&self, record: &impl Message, late: bool) -> Option<(Digest, RecordFact)> {
        let id = digest(Some(&self.id.id(record)?));
        let (headers, writers_own) = self.headers(record);
        let fact = RecordFact {
            side: self.side,
            at: At { partition: record.partition(), offset: record.offset() },
            late,
            key: record.key().map(|key| digest(Some(key))),
            value: digest(record.payload()),
            headers,
            writers_own,
            time: record.timestamp().to_millis(),
        };
        Some((id, fact))
    }

    /// Returns the digest of the headers that every writer must set, in any order, and those of [`OWN_HEADERS`].
    fn headers(&self, record: &impl Message) -> (Digest, [u32; WRITERS_OWN]) {
        let (mut shared, mut own) = (Vec::new(), [const { Vec::new() }; WRITERS_OWN]);
        for header in record.headers().into_iter().flat_map(Headers::iter) {
            if self.ignored_headers.iter().any(|ignored| ignored == header.key) {
                continue;
            }
            let fields = match OWN_HEADERS.iter().position(|name| is_called(header.key, name)) {
                Some(index) => &mut own[index],
                None => &mut shared,
            };
            fields.push((header.key, header.value));
        }
        (digest(Some(&joined(shared))), own.map(|fields| if fields.is_empty() { 0 } else { short(&joined(fields)) }))
    }
}

/// Returns true for a header of this name; a name that ends in `*` stands for all that begin so.
pub(crate) fn is_called(header: &str, name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(beginning) => header.starts_with(beginning),
        None => header == name,
    }
}

/// Joins headers, sorted, so that no two lists of headers give the same bytes.
fn joined(mut headers: Vec<(&str, Option<&[u8]>)>) -> Vec<u8> {
    headers.sort_unstable();
    let mut bytes = Vec::new();
    for (name, value) in headers {
        for part in [Some(name.as_bytes()), value] {
            bytes.extend(part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
            bytes.extend(part.unwrap_or_default());
        }
    }
    bytes
}

/// Returns a short digest, which is never 0.
fn short(bytes: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    (hasher.finish() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;

    fn record(key: Option<&str>, value: Option<&str>, headers: &[(&str, &str)]) -> OwnedMessage {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
        let bytes = |text: &str| text.as_bytes().to_vec();
        let time = Timestamp::CreateTime(7);
        OwnedMessage::new(value.map(bytes), key.map(bytes), "t".to_owned(), time, 1, 2, Some(headers))
    }

    fn reading() -> Reading {
        let id = IdFrom::parse("id");
        Reading { side: Side::Left, id, ignored_headers: vec!["trace".to_owned()], key: None }
    }

    fn fact(headers: &[(&str, &str)]) -> RecordFact {
        reading().fact(&record(Some("k"), Some("v"), headers), false).expect("an id").1
    }

    #[test]
    fn a_uuid_is_the_same_id_in_every_form() {
        let id = "3f2b8c1e-9a4d-4c7b-8e5f-6a7b8c9d0e1f";
        let upper = id.to_uppercase();
        let quoted = format!("\"{id}\"");
        let raw = Uuid::parse_str(id).expect("a UUID").into_bytes();
        for form in [id.as_bytes(), upper.as_bytes(), quoted.as_bytes(), &raw] {
            assert_eq!(canonical(form), id.as_bytes());
        }
        assert_eq!(canonical(b"order-0000000017"), b"order-0000000017", "16 letters are a text");
        assert_eq!(canonical(b"\"17\""), b"17");
        assert_eq!(canonical(&[0xff, 0xfe]), [0xff, 0xfe]);
    }

    #[test]
    fn an_id_is_in_a_header_or_in_the_value() {
        let value = record(None, Some(r#"{"meta": {"id": 17, "none": null}}"#), &[("id", "a")]);
        assert_eq!(IdFrom::parse("id").id(&value).as_deref(), Some(&b"a"[..]));
        assert_eq!(IdFrom::parse("json:/meta/id").id(&value).as_deref(), Some(&b"17"[..]));
        for missing in ["other", "json:/meta/none", "json:/x"] {
            assert_eq!(IdFrom::parse(missing).id(&value), None, "{missing}");
        }
        assert!(reading().fact(&record(None, None, &[]), false).is_none());
    }

    #[test]
    fn headers_are_compared_in_any_order_without_the_ignored_ones() {
        let one = fact(&[("id", "1"), ("a", "1"), ("b", "2"), ("trace", "x")]);
        assert_eq!(one, fact(&[("b", "2"), ("id", "1"), ("trace", "y"), ("a", "1")]));
        for other in [
            &[("id", "1"), ("a", "1")][..],
            &[("id", "1"), ("a", "2"), ("b", "2")],
            &[("id", "1"), ("a", "1"), ("b", "2"), ("b", "2")],
        ] {
            assert_ne!(one.headers, fact(other).headers, "{other:?}");
        }
    }

    #[test]
    fn the_headers_of_one_writer_are_apart() {
        let relay = fact(&[("id", "1"), ("event-id", "1"), ("sequence", "5")]);
        let connector = fact(&[("id", "1"), ("__debezium.context.taskId", "0")]);
        assert_eq!(relay.headers, connector.headers);
        assert_ne!(relay.writers_own, connector.writers_own);
        assert_ne!(relay.writers_own[3], fact(&[("id", "1"), ("sequence", "6")]).writers_own[3]);
    }

    #[test]
    fn one_key_can_be_compared_alone() {
        let only = Reading { key: Some("o-1".to_owned()), ..reading() };
        for (key, wanted) in [(Some("o-1"), true), (Some("\"o-1\""), true), (Some("o-2"), false), (None, false)] {
            assert_eq!(only.is_wanted(&record(key, None, &[])), wanted, "{key:?}");
        }
    }

    #[test]
    fn a_missing_key_or_value_differs_from_an_empty_one() {
        let fact = |key, value| reading().fact(&record(key, value, &[("id", "1")]), false).expect("an id").1;
        assert_ne!(fact(None, Some("v")).key, fact(Some(""), Some("v")).key);
        assert_ne!(fact(None, None).value, fact(None, Some("")).value);
    }
}
