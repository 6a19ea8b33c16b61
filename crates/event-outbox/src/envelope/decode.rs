//! Reads an event back from a record of the relay. The headers and the value show which envelope the record has.
//!
//! | record | payload |
//! |---|---|
//! | `content-type: application/cloudevents+json` | member `data`, or `data_base64` |
//! | header `ce_specversion` or `event-id` | the value, unless the next line applies |
//! | value `{"eventId": …, "data": …}` with the id of the headers, or without any header that names the event | member `data` |
//!
//! A payload that happens to have members `eventId` and `data` is not mistaken for an envelope, because it would need the id of its own
//! event.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::EventId;

/// An event that was read from a record. Borrows from the record where possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The id that consumers de-duplicate on.
    pub event_id: EventId,
    /// The event type, for example `OrderPlaced`.
    pub event_type: Cow<'a, str>,
    /// The schema version of the payload.
    pub event_version: i32,
    /// The outbox id, if the record has it.
    pub sequence: Option<i64>,
    /// The id shared by all events that one request caused.
    pub correlation_id: Option<Cow<'a, str>>,
    /// The payload that the application wrote; `None` for a tombstone.
    pub payload: Option<Cow<'a, [u8]>>,
}

/// The error for a record that does not name its event. It names the member or the header, never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Undecodable {
    /// No header or member has the event's id or its type.
    #[error("the record has no {0}: it was not written by outbox-relay, or its headers were lost")]
    Missing(&'static str),
    /// The header or member exists and is damaged.
    #[error("the record's {0} is malformed")]
    Malformed(&'static str),
}

/// The value in the `event` envelope.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wrapped<'a> {
    event_id: Uuid,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    version: i32,
    #[serde(borrow)]
    correlation_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// The value in the structured mode of CloudEvents.
#[derive(Deserialize)]
struct CloudEvent<'a> {
    id: Uuid,
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    eventversion: Option<i32>,
    #[serde(borrow)]
    correlationid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_base64: Option<Cow<'a, str>>,
}

/// Reads an event from a record. `header` returns the first header of a name.
///
/// ```
/// use event_outbox::envelope::decode;
///
/// let value = br#"{"eventId":"6f1c1bd2-66cc-4a5e-9b55-02d1b6b0fdc4","eventType":"OrderPlaced","timestamp":"2026-01-01T00:00:00Z",
///     "version":1,"source":null,"correlationId":null,"data":{"orderId": "o-1"}}"#;
/// let event = decode(|_| None, Some(value))?;
/// assert_eq!(event.event_type, "OrderPlaced");
/// assert_eq!(event.payload.as_deref(), Some(&br#"{"orderId": "o-1"}"#[..]));
/// # Ok::<(), event_outbox::envelope::Undecodable>(())
/// ```
///
/// # Errors
/// [`Undecodable`] for a record that does not name its event.
pub fn decode<'a>(
    header: impl Fn(&str) -> Option<&'a [u8]>,
    value: Option<&'a [u8]>,
) -> Result<Decoded<'a>, Undecodable> {
    if let (true, Some(value)) = (is_structured(&header), value) {
        return structured(value, sequence(&header)?);
    }
    let named = text(&header, "event-id")?.or(text(&header, "ce_id")?);
    let id = named.map(|id| id.parse().map_err(|_| Undecodable::Malformed("event-id"))).transpose()?;
    if let Some(wrapped) = value.and_then(wrapped).filter(|wrapped| id.is_none_or(|id| id == wrapped.event_id)) {
        return Ok(Decoded {
            event_id: EventId(wrapped.event_id),
            event_type: wrapped.event_type,
            event_version: wrapped.version,
            sequence: sequence(&header)?,
            correlation_id: wrapped.correlation_id,
            payload: Some(Cow::Borrowed(wrapped.data.get().as_bytes())),
        });
    }
    let event_type = text(&header, "event-type")?.or(text(&header, "ce_type")?);
    let correlation = text(&header, "correlation-id")?.or(text(&header, "ce_correlationid")?);
    Ok(Decoded {
        event_id: EventId(id.ok_or(Undecodable::Missing("event-id"))?),
        event_type: Cow::Borrowed(event_type.ok_or(Undecodable::Missing("event-type"))?),
        event_version: version(&header)?,
        sequence: sequence(&header)?,
        correlation_id: correlation.map(Cow::Borrowed),
        payload: value.map(Cow::Borrowed),
    })
}

fn is_structured<'a>(header: &impl Fn(&str) -> Option<&'a [u8]>) -> bool {
    header("content-type").is_some_and(|media_type| media_type.starts_with(b"application/cloudevents+json"))
}

fn structured(value: &[u8], sequence: Option<i64>) -> Result<Decoded<'_>, Undecodable> {
    let event: CloudEvent<'_> = serde_json::from_slice(value).map_err(|_| Undecodable::Malformed("CloudEvent"))?;
    let bytes = event.data_base64.map(|text| base64(&text).ok_or(Undecodable::Malformed("data_base64"))).transpose()?;
    Ok(Decoded {
        event_id: EventId(event.id),
        event_type: event.event_type,
        event_version: event.eventversion.unwrap_or(1),
        sequence,
        correlation_id: event.correlationid,
        payload: event.data.map(|data| Cow::Borrowed(data.get().as_bytes())).or(bytes.map(Cow::Owned)),
    })
}

fn wrapped(value: &[u8]) -> Option<Wrapped<'_>> {
    // The relay writes this member first. So most raw payloads need not be parsed.
    if !value.starts_with(b"{\"eventId\"") {
        return None;
    }
    serde_json::from_slice(value).ok()
}

fn version<'a>(header: &impl Fn(&str) -> Option<&'a [u8]>) -> Result<i32, Undecodable> {
    let version = text(header, "event-version")?.or(text(header, "ce_eventversion")?);
    version.map_or(Ok(1), |version| version.parse().map_err(|_| Undecodable::Malformed("event-version")))
}

fn sequence<'a>(header: &impl Fn(&str) -> Option<&'a [u8]>) -> Result<Option<i64>, Undecodable> {
    text(header, "sequence")?.map(|id| id.parse().map_err(|_| Undecodable::Malformed("sequence"))).transpose()
}

fn text<'a>(header: &impl Fn(&str) -> Option<&'a [u8]>, name: &'static str) -> Result<Option<&'a str>, Undecodable> {
    header(name).map(|value| std::str::from_utf8(value).map_err(|_| Undecodable::Malformed(name))).transpose()
}

/// Decodes base64 with padding (RFC 4648 section 4).
fn base64(text: &str) -> Option<Vec<u8>> {
    let symbols = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(symbols.len() * 3 / 4);
    let (mut group, mut bits) = (0_u32, 0);
    for symbol in symbols.bytes() {
        let sextet = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        group = group << 6 | u32::from(sextet);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((group >> bits & 0xff) as u8);
        }
    }
    text.len().is_multiple_of(4).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;

    use super::super::Envelope;
    use super::*;
    use crate::event::{EventHeaders, OutboxId, Payload, StoredEvent};

    const ID: Uuid = Uuid::from_u128(0x6f1c_1bd2_66cc_4a5e_9b55_02d1_b6b0_fdc4);

    /// Encodes the event as the relay does and decodes it as a consumer does.
    fn there_and_back(envelope: Envelope, payload: Payload<'_>, check: impl FnOnce(Decoded<'_>)) {
        let event = StoredEvent {
            id: OutboxId(17),
            event_id: EventId(ID),
            entity_type: "order",
            entity_id: Some("o-1"),
            event_type: "Order \"Placed\"",
            event_version: 3,
            payload,
            headers: EventHeaders::parse(r#"{"correlation-id": "req-\"1\"", "traceparent": "00-1-2-01"}"#)
                .expect("headers"),
            topic: None,
            created_at: DateTime::UNIX_EPOCH,
        };
        let mut headers = Vec::new();
        envelope.headers(&event, None, &mut |name, value| headers.push((name.to_owned(), value.to_vec())));
        let mut scratch = Vec::new();
        let value = envelope.value(&event, None, &mut scratch);
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice());
        check(decode(header, value).expect("the relay's own record"));
    }

    proptest! {
        #[test]
        fn whatever_the_relay_sends_is_read_back(bytes: Vec<u8>, digits in "[1-9][0-9]{0,29}") {
            let json = format!(r#"{{"b": {digits}, "a":1, "eventId": "x", "data": 1}}"#);
            for envelope in Envelope::ALL {
                for payload in [Payload::Json(json.as_bytes()), Payload::Bytes(&bytes), Payload::Tombstone] {
                    there_and_back(envelope, payload, |event| {
                        assert_eq!(event.event_id.0, ID);
                        assert_eq!(event.event_type, "Order \"Placed\"");
                        assert_eq!(event.event_version, 3);
                        assert_eq!(event.sequence, Some(17));
                        assert_eq!(event.correlation_id.as_deref(), Some("req-\"1\""));
                        let expected = match payload {
                            Payload::Json(bytes) | Payload::Bytes(bytes) => Some(bytes),
                            Payload::Tombstone => None,
                        };
                        assert_eq!(event.payload.as_deref(), expected, "{envelope}");
                    });
                }
            }
        }
    }

    #[test]
    fn a_record_that_names_no_event_is_refused_by_what_it_lacks() {
        assert_eq!(decode(|_| None, Some(b"{}")), Err(Undecodable::Missing("event-id")));
        let damaged = |name: &str| (name == "event-id").then_some(&b"secret"[..]);
        assert_eq!(decode(damaged, None), Err(Undecodable::Malformed("event-id")));
        let without_type = |name: &str| (name == "event-id").then_some(&b"6f1c1bd2-66cc-4a5e-9b55-02d1b6b0fdc4"[..]);
        assert_eq!(decode(without_type, None), Err(Undecodable::Missing("event-type")));
    }

    #[test]
    fn a_payload_that_looks_like_the_envelope_of_another_event_is_left_whole() {
        let payload = br#"{"eventId":"00000000-0000-0000-0000-000000000001","eventType":"X","version":1,"data":1}"#;
        there_and_back(Envelope::Raw, Payload::Json(payload), |event| {
            assert_eq!(event.payload.as_deref(), Some(&payload[..]));
        });
    }
}
