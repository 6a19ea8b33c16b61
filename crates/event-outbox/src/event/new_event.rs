//! Builds the event that an application writes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::EventId;

/// An event that has not been written yet. [`crate::outbox::Outbox::emit`] writes it.
///
/// An event without a body is a tombstone.
///
/// ```
/// use event_outbox::event::NewEvent;
/// use serde_json::json;
///
/// let event = NewEvent::new("order", "o-1", "OrderPlaced")
///     .json(&json!({"orderId": "o-1", "totalCents": 4200}))?
///     .version(2)
///     .header("correlation-id", "req-81f2");
/// # assert_eq!(event.event_version(), 2);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    pub(crate) entity_type: String,
    pub(crate) entity_id: Option<String>,
    pub(crate) event_type: String,
    pub(crate) event_version: i32,
    pub(crate) body: Body,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) topic: Option<String>,
    pub(crate) available_at: Option<DateTime<Utc>>,
    pub(crate) identity: Option<Identity>,
}

/// The origin of an event's id, if the database does not choose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    Id(EventId),
    DedupeKey(String),
}

/// The content of `payload` or `payload_bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Json(String),
    Bytes(Vec<u8>),
    Tombstone,
}

impl NewEvent {
    /// Creates an event of an entity with version 1.
    pub fn new(entity_type: impl Into<String>, entity_id: impl Into<String>, event_type: impl Into<String>) -> Self {
        Self { entity_id: Some(entity_id.into()), ..Self::without_entity(entity_type, event_type) }
    }

    /// Creates an event without a key, and therefore without order.
    pub fn without_entity(entity_type: impl Into<String>, event_type: impl Into<String>) -> Self {
        Self {
            entity_type: entity_type.into(),
            entity_id: None,
            event_type: event_type.into(),
            event_version: 1,
            body: Body::Tombstone,
            headers: BTreeMap::new(),
            topic: None,
            available_at: None,
            identity: None,
        }
    }

    /// Sets the payload.
    ///
    /// # Errors
    /// The error of serde_json if it cannot write the value, for example a map whose keys are not strings.
    pub fn json<T: Serialize + ?Sized>(mut self, payload: &T) -> Result<Self, serde_json::Error> {
        self.body = Body::Json(serde_json::to_string(payload)?);
        Ok(self)
    }

    /// Sets a payload in a binary format.
    pub fn bytes(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Bytes(payload.into());
        self
    }

    /// Sets the schema version of the payload.
    pub fn version(mut self, version: i32) -> Self {
        self.event_version = version;
        self
    }

    /// Sets a header of the Kafka record, such as `correlation-id`, `causation-id`, `traceparent` or `source`. A later value replaces an
    /// earlier one.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Sets a header, unless it is set already.
    pub fn default_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.entry(name.into()).or_insert_with(|| value.into());
        self
    }

    /// Sets the topic, which takes precedence over the relay's route.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Sets the earliest time of publishing. Such an event is ordered by the time at which it becomes due.
    pub fn available_at(mut self, time: DateTime<Utc>) -> Self {
        self.available_at = Some(time);
        self
    }

    /// Sets the event's id, by which consumers recognise it. It must be new. Replaces a dedupe key.
    pub fn id(mut self, id: EventId) -> Self {
        self.identity = Some(Identity::Id(id));
        self
    }

    /// Sets a key of the whole outbox that names the cause of the event, such as a request's id with the event type. While the first event
    /// with the key is in the table, writing another one changes nothing and returns the first id. Its id follows from the key, so that
    /// consumers still recognise a repetition after that. Replaces an id.
    pub fn dedupe_key(mut self, key: impl Into<String>) -> Self {
        self.identity = Some(Identity::DedupeKey(key.into()));
        self
    }

    /// Returns the event type, for example `OrderPlaced`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// Returns the schema version of the payload.
    pub fn event_version(&self) -> i32 {
        self.event_version
    }

    /// Returns the JSON payload, or `None` for bytes and tombstones.
    pub fn json_payload(&self) -> Option<&str> {
        match &self.body {
            Body::Json(text) => Some(text),
            Body::Bytes(_) | Body::Tombstone => None,
        }
    }
}
