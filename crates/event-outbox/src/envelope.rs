//! Builds the Kafka record of an event, value and headers, byte for byte.
//!
//! - `event`: the relay's own JSON object
//! - `raw`: the payload alone
//! - `cloudevents`: both modes of the CloudEvents 1.0 Kafka binding
//! - `debezium`: the records of Debezium's outbox event router
//! - `digits`: prints numbers and times into stack buffers
//! - `decode`: reads records back, for consumers
//!
//! The payload is copied as bytes and never parsed, because a JSON tree would damage big numbers, key order and duplicate keys. If the
//! outbox keeps `payload` in a `text` column, only the application can guarantee that the text is JSON.
//!
//! Two rules hold for every envelope. A row without a payload becomes a tombstone, a record without a value. `payload_bytes` are sent as
//! they are; only the structured mode of CloudEvents has to wrap them, as base64.

mod cloudevents;
mod debezium;
mod decode;
mod digits;
mod event;
pub mod headers;
mod raw;

use std::fmt;
use std::str::FromStr;

use crate::event::{Payload, StoredEvent};

pub use decode::{Decoded, Undecodable, decode};

/// The headers of every record, in the order of sending.
const ALWAYS: [&str; 4] = ["event-id", "event-type", "event-version", "sequence"];

/// The conversion of an event to a Kafka record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Envelope {
    /// `{"eventId","eventType","timestamp","version","source","correlationId","data"}`.
    #[default]
    Event,
    /// The payload, unchanged.
    Raw,
    /// CloudEvents 1.0, binary content mode: attributes are headers, the value is the payload.
    CloudeventsBinary,
    /// CloudEvents 1.0, structured content mode: one JSON object holds attributes and payload.
    CloudeventsStructured,
    /// The records of Debezium's outbox event router with its default options.
    Debezium,
}

/// The error for a name that is not the name of an [`Envelope`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown envelope {given:?}: accepted are {}", Envelope::ALL.map(|envelope| envelope.name()).join(", "))]
pub struct UnknownEnvelope {
    /// The name that was given.
    pub given: String,
}

impl Envelope {
    /// Every envelope, in the order of the documentation.
    pub const ALL: [Self; 5] =
        [Self::Event, Self::Raw, Self::CloudeventsBinary, Self::CloudeventsStructured, Self::Debezium];

    /// Returns the name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Raw => "raw",
            Self::CloudeventsBinary => "cloudevents-binary",
            Self::CloudeventsStructured => "cloudevents-structured",
            Self::Debezium => "debezium",
        }
    }

    /// Returns the topic template of an outbox whose configuration has none.
    pub const fn default_topic(&self) -> &'static str {
        match self {
            Self::Debezium => debezium::DEFAULT_TOPIC,
            _ => "{entity_type}-events",
        }
    }

    /// Returns the record's value; `None` is a tombstone. The value is borrowed from the event if the payload is sent unchanged. Otherwise
    /// it is written into `scratch`, which is cleared first and keeps its capacity from event to event.
    ///
    /// `source` is the configured source of the relay. The row's own `source` header takes precedence.
    pub fn value<'b>(
        &self,
        event: &'b StoredEvent<'_>,
        source: Option<&'b str>,
        scratch: &'b mut Vec<u8>,
    ) -> Option<&'b [u8]> {
        scratch.clear();
        match (self, event.payload) {
            (_, Payload::Tombstone) => return None,
            (Self::Event, Payload::Json(data)) => event::write(event, source, data, scratch),
            (Self::CloudeventsStructured, payload) => cloudevents::write(event, source, payload, scratch),
            (_, Payload::Json(bytes) | Payload::Bytes(bytes)) => return Some(raw::value(bytes)),
        }
        Some(scratch)
    }

    /// Calls `emit(name, value)` for every header of the record, without allocating, in this order:
    ///
    /// 1. `event-id`, `event-type`, `event-version`, `sequence` (the outbox id), in every envelope;
    /// 2. the row's own headers in column order;
    /// 3. `source`, if the row has none and one is configured;
    /// 4. the headers of the envelope: `id` for `debezium`, unless the row has one; for CloudEvents `content-type` and, unless the attributes are in the value,
    ///    `ce_specversion`, `ce_id`, `ce_source`, `ce_type`, `ce_subject`, `ce_time`, `ce_eventversion`, `ce_correlationid`,
    ///    `ce_causationid`, `ce_traceparent`, `ce_tracestate`.
    ///
    /// No name is sent twice. A row header with a name of group 1, or with a name that the envelope may send in group 4, is left out: Kafka
    /// allows repeated names, and a consumer that reads the last one would take the row's header for the event's identity. CloudEvents keep
    /// a row's `content-type` as the attribute `datacontenttype`. `outbox-partition` names a partition and is never sent.
    pub fn headers(&self, event: &StoredEvent<'_>, source: Option<&str>, emit: &mut dyn FnMut(&str, &[u8])) {
        let [id, kind, version, sequence] = ALWAYS;
        emit(id, digits::uuid(event.event_id.0, &mut [0; 36]));
        emit(kind, event.event_type.as_bytes());
        emit(version, digits::decimal(event.event_version.into(), &mut [0; 20]));
        emit(sequence, digits::decimal(event.id.0, &mut [0; 20]));
        for (name, value) in event.headers.iter().filter(|(name, _)| !self.owns(name)) {
            emit(name, value.as_bytes());
        }
        if let (None, Some(source)) = (event.headers.get("source"), source) {
            emit("source", source.as_bytes());
        }
        match self {
            Self::Event | Self::Raw => {}
            Self::CloudeventsBinary => cloudevents::binary_headers(event, source, emit),
            Self::CloudeventsStructured => cloudevents::structured_headers(event, source, emit),
            Self::Debezium => debezium::headers(event, emit),
        }
    }

    /// Returns true for a header name that only the envelope itself may send.
    fn owns(self, name: &str) -> bool {
        ALWAYS.contains(&name)
            || name == headers::PARTITION
            || match self {
                Self::Event | Self::Raw => false,
                Self::CloudeventsBinary | Self::CloudeventsStructured => cloudevents::owns(name),
                // The row's own `id` is sent in place of the envelope's.
                Self::Debezium => false,
            }
    }
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Envelope {
    type Err = UnknownEnvelope;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|envelope| envelope.name() == name)
            .ok_or_else(|| UnknownEnvelope { given: name.to_owned() })
    }
}

/// Returns the row's own source, or else the relay's.
fn source_of<'b>(event: &'b StoredEvent<'_>, configured: Option<&'b str>) -> Option<&'b str> {
    event.headers.get("source").or(configured)
}

/// Appends `text` as a JSON string, including the quotes.
fn push_json_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("writing a string to memory cannot fail");
}

#[cfg(test)]
mod tests;
