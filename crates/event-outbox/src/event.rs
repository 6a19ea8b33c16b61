//! Defines the event as an application writes it ([`NewEvent`]) and as the relay claims it, with newtypes for the two ids, which must not
//! be mixed up. Depends neither on sqlx nor on Kafka.

mod new_event;

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use new_event::NewEvent;
pub(crate) use new_event::{Body, Identity};

/// The column `event_outbox.id`: the order of publishing within an entity. Sent as the `sequence` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxId(pub i64);

/// The column `event_outbox.event_id`: the id that consumers de-duplicate on. Sent as the `event-id` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub Uuid);

impl fmt::Display for OutboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The body of a claimed row, borrowed from the row buffer and never parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// The column `payload` as Postgres prints it.
    Json(&'a [u8]),
    /// The column `payload_bytes`, for binary formats.
    Bytes(&'a [u8]),
    /// A tombstone, because both columns are NULL: a Kafka record without a value.
    Tombstone,
}

impl Payload<'_> {
    /// Returns the length in bytes; 0 for a tombstone.
    pub fn len(&self) -> usize {
        match self {
            Payload::Json(bytes) | Payload::Bytes(bytes) => bytes.len(),
            Payload::Tombstone => 0,
        }
    }

    /// Returns true for a tombstone and for an empty payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A row of `event_outbox` that the relay has claimed. Text is borrowed from the row buffer.
#[derive(Debug, Clone)]
pub struct StoredEvent<'a> {
    /// The position in the order of publishing.
    pub id: OutboxId,
    /// The id that consumers de-duplicate on.
    pub event_id: EventId,
    /// The entity type, from which the route makes the topic.
    pub entity_type: &'a str,
    /// The record key; `None` means no key and no order.
    pub entity_id: Option<&'a str>,
    /// The event type, for example `OrderPlaced`.
    pub event_type: &'a str,
    /// The schema version of the payload.
    pub event_version: i32,
    /// The record value before the envelope.
    pub payload: Payload<'a>,
    /// The row's own headers.
    pub headers: EventHeaders<'a>,
    /// The row's own topic, which takes precedence over the route.
    pub topic: Option<&'a str>,
    /// The start of the inserting transaction, used as the record's timestamp.
    pub created_at: DateTime<Utc>,
}

impl StoredEvent<'_> {
    /// Returns the partition that the row's header `outbox-partition` names; `None` if it has none.
    ///
    /// # Errors
    /// The header's value, if it is not a number of a partition.
    pub fn partition(&self) -> Result<Option<i32>, &str> {
        let Some(text) = self.headers.get(crate::envelope::headers::PARTITION) else { return Ok(None) };
        text.parse().ok().filter(|partition| *partition >= 0).map(Some).ok_or(text)
    }
}

/// The `headers` column: names and values in the order in which Postgres prints them (`jsonb` sorts by length, then bytes).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventHeaders<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// The reason why a `headers` column cannot become Kafka headers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("headers is not a JSON object of strings: {0}")]
pub struct BadHeaders(pub String);

impl<'a> EventHeaders<'a> {
    /// Parses the text of a JSON object of strings.
    ///
    /// # Errors
    /// [`BadHeaders`] if the text is not an object or a value is not a string. The error does not repeat the value.
    pub fn parse(json: &'a str) -> Result<Self, BadHeaders> {
        if json == "{}" {
            return Ok(Self::default());
        }
        let mut deserializer = serde_json::Deserializer::from_str(json);
        serde::Deserializer::deserialize_map(&mut deserializer, HeaderVisitor)
            .map_err(|error| BadHeaders(describe_without_value(&error)))
    }

    /// Returns the value of a header by its exact name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref())
    }

    /// Iterates over names and values in column order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// Returns the bytes of all names and values together.
    pub fn byte_len(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl<'a, N: Into<Cow<'a, str>>, V: Into<Cow<'a, str>>> FromIterator<(N, V)> for EventHeaders<'a> {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Describes a parse error without the value that serde_json quotes ("invalid type: string \"secret\""): payloads stay out of logs.
fn describe_without_value(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => format!("a value at column {} is not a string", error.column()),
        _ => format!("malformed JSON at column {}", error.column()),
    }
}

struct HeaderVisitor;

impl<'de> serde::de::Visitor<'de> for HeaderVisitor {
    type Value = EventHeaders<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut headers = Vec::new();
        while let Some((name, value)) = map.next_entry::<BorrowedOrOwned<'de>, BorrowedOrOwned<'de>>()? {
            headers.push((name.0, value.0));
        }
        Ok(EventHeaders(headers))
    }
}

/// A text that borrows if the JSON string has no escapes. `Cow<str>` would always deserialize to an owned string.
struct BorrowedOrOwned<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for BorrowedOrOwned<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CowVisitor;
        impl<'de> serde::de::Visitor<'de> for CowVisitor {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(CowVisitor).map(BorrowedOrOwned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_their_order_and_unescape() {
        let headers = EventHeaders::parse(r#"{"b":"1","a":"\u00e9\n","source":"shop"}"#).expect("valid headers");
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("b", "1"), ("a", "é\n"), ("source", "shop")]);
        assert_eq!(headers.get("source"), Some("shop"));
        assert_eq!(headers.get("Source"), None);
    }

    #[test]
    fn a_header_that_is_not_a_string_is_refused_without_repeating_it() {
        for json in [r#"{"a":12345}"#, r#"{"a":null}"#, r#"{"a":{"b":"c"}}"#, r#"["12345"]"#, r#""12345""#] {
            let error = EventHeaders::parse(json).expect_err(json).to_string();
            assert!(error.contains("is not a JSON object of strings"), "{error}");
            assert!(!error.contains("12345"), "{error}");
        }
    }
}
