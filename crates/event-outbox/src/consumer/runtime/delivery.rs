//! Holds a record as it was delivered, and decodes the event in it.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};

use crate::consumer::dead_letter::{DeadLetter, PREFIX};
use crate::envelope::{Undecodable, decode};
use crate::event::EventId;

/// The headers of a record, as they were delivered.
pub(super) type RecordHeaders = Arc<[(String, Option<Vec<u8>>)]>;

/// A record, owned.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    /// Shared with the event.
    pub(super) headers: RecordHeaders,
    /// Milliseconds since 1970.
    pub(super) timestamp: Option<i64>,
    /// The state of its row, if it was read from the row of a held key and not from Kafka.
    pub(super) parked: Option<Parked>,
}

/// The earlier attempts of a parked event, as its row counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parked {
    /// The attempts that have failed.
    pub(super) attempts: u32,
    pub(super) first_failed_at: Option<DateTime<Utc>>,
}

/// An event as its handler gets it.
#[derive(Debug, Clone)]
pub struct Event {
    /// The id that consumers de-duplicate on.
    pub event_id: EventId,
    /// The event type, for example `OrderPlaced`.
    pub event_type: String,
    /// The schema version that was written.
    pub event_version: i32,
    /// The outbox id, if the record has it.
    pub sequence: Option<i64>,
    /// The id shared by all events that one request caused. The event's own id if the record has none.
    pub correlation_id: String,
    /// The record key, which is the entity's id.
    pub key: Option<Vec<u8>>,
    /// The topic that the record was read from.
    pub topic: String,
    /// The partition that the record was read from.
    pub partition: i32,
    /// The offset that the record was read from.
    pub offset: i64,
    pub(super) headers: RecordHeaders,
}

impl Event {
    /// Returns the first header of this name, if its value is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(find(&self.headers, name)?).ok()
    }

    /// Returns the key, if it is text.
    pub fn key_text(&self) -> Option<&str> {
        std::str::from_utf8(self.key.as_deref()?).ok()
    }
}

impl Delivery {
    pub(super) fn new(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map_or_else(RecordHeaders::default, |headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers,
            timestamp: message.timestamp().to_millis(),
            parked: None,
        }
    }

    /// Returns the size of key, value and headers in bytes.
    pub(super) fn size(&self) -> usize {
        let of = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + of(value)).sum();
        of(&self.key) + of(&self.value) + headers
    }

    /// Decodes the event and its payload.
    pub(super) fn decode(&self) -> Result<(Event, Option<Vec<u8>>), Undecodable> {
        let decoded = decode(|name| find(&self.headers, name), self.value.as_deref())?;
        let correlation_id = decoded.correlation_id.map_or_else(|| decoded.event_id.to_string(), |id| id.into_owned());
        let event = Event {
            event_id: decoded.event_id,
            event_type: decoded.event_type.into_owned(),
            event_version: decoded.event_version,
            sequence: decoded.sequence,
            correlation_id,
            key: self.key.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
            headers: Arc::clone(&self.headers),
        };
        Ok((event, decoded.payload.map(|payload| payload.into_owned())))
    }

    /// Returns the dead letter headers if this group has redriven the record.
    pub(super) fn redriven_by(&self, group: &str) -> Option<DeadLetter> {
        DeadLetter::read(|name| find(&self.headers, name)).filter(|dead_letter| dead_letter.group == group)
    }

    /// Joins the headers of the record with those of the dead letter. Dead letter headers of an earlier failure are left out.
    pub(super) fn headers_of(&self, dead_letter: &DeadLetter) -> OwnedHeaders {
        let own = self.headers.iter().filter(|(name, _)| !name.starts_with(PREFIX));
        let headers = own
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_deref() }));
        dead_letter
            .headers()
            .iter()
            .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value.as_bytes()) }))
    }
}

fn find<'a>(headers: &'a [(String, Option<Vec<u8>>)], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|(key, _)| key == name)?.1.as_deref()
}
