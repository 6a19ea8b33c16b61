//! Writes CloudEvents 1.0 by the Kafka Protocol Binding and, in structured mode, the JSON Event Format.
//!
//! | attribute | from |
//! |---|---|
//! | `specversion` | `1.0` |
//! | `id` | `event_id` |
//! | `source` | the row's `source` header, else the relay's, else [`DEFAULT_SOURCE`]: the attribute is required |
//! | `type` | `event_type` |
//! | `subject` | `entity_id`; left out when NULL or empty, as the specification forbids an empty one |
//! | `time` | `created_at` |
//! | `datacontenttype` | the row's `content-type` header, else `application/json` or `application/octet-stream`; none for a tombstone |
//! | `eventversion`, `correlationid`, `causationid`, `traceparent`, `tracestate` | extensions: `event_version` and the row's headers |
//!
//! Extension names may contain only lower-case letters and digits, so `correlation-id` becomes `correlationid`. Other row headers stay
//! plain Kafka headers and do not become attributes. A row sets an attribute of its own with a header `ce_<name>`.
//!
//! In binary mode attributes are headers with the prefix `ce_`, except `datacontenttype`, which is the header `content-type`. In structured
//! mode the value is a JSON object, and `content-type` announces it.
//!
//! Tombstones are sent in binary mode, because in structured mode an event without data still has a value and could not delete its key in a
//! compacted topic. A sender may choose the mode for each record, and receivers tell the modes apart by `content-type`.

use super::{digits, push_json_string, source_of};
use crate::event::{Payload, StoredEvent};

/// The source of events if neither the row nor the configuration names one.
const DEFAULT_SOURCE: &str = "/outbox-relay";
const CONTENT_TYPE: &str = "content-type";
const STRUCTURED: &[u8] = b"application/cloudevents+json; charset=UTF-8";
const PREFIX: &str = "ce_";

/// Extensions that repeat a header of the row: the header name in binary mode, and the row header.
const FROM_ROW_HEADERS: [(&str, &str); 4] = [
    ("ce_correlationid", "correlation-id"),
    ("ce_causationid", "causation-id"),
    ("ce_traceparent", "traceparent"),
    ("ce_tracestate", "tracestate"),
];

/// Returns true for header names that this envelope sends itself.
pub(super) fn owns(name: &str) -> bool {
    const ATTRIBUTES: [&str; 7] =
        ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "ce_eventversion"];
    name == CONTENT_TYPE
        || (name.starts_with(PREFIX)
            && (ATTRIBUTES.contains(&name) || FROM_ROW_HEADERS.iter().any(|(extension, _)| *extension == name)))
}

pub(super) fn binary_headers(event: &StoredEvent<'_>, source: Option<&str>, emit: &mut dyn FnMut(&str, &[u8])) {
    if let Some(media_type) = data_content_type(event) {
        emit(CONTENT_TYPE, media_type.as_bytes());
    }
    each_attribute(event, source, &mut |name, attribute| match attribute {
        Attribute::Text(text) => emit(name, text.as_bytes()),
        Attribute::Ascii(text) | Attribute::Integer(text) => emit(name, text),
    });
}

pub(super) fn structured_headers(event: &StoredEvent<'_>, source: Option<&str>, emit: &mut dyn FnMut(&str, &[u8])) {
    match event.payload {
        Payload::Tombstone => binary_headers(event, source, emit),
        Payload::Json(_) | Payload::Bytes(_) => emit(CONTENT_TYPE, STRUCTURED),
    }
}

/// Appends the JSON object of structured mode.
pub(super) fn write(event: &StoredEvent<'_>, source: Option<&str>, payload: Payload<'_>, out: &mut Vec<u8>) {
    let mut opening = b'{';
    each_attribute(event, source, &mut |name, attribute| {
        out.extend_from_slice(&[opening, b'"']);
        opening = b',';
        out.extend_from_slice(&name.as_bytes()[PREFIX.len()..]);
        out.extend_from_slice(b"\":");
        match attribute {
            Attribute::Text(text) => push_json_string(text, out),
            Attribute::Integer(digits) => out.extend_from_slice(digits),
            Attribute::Ascii(text) => {
                out.push(b'"');
                out.extend_from_slice(text);
                out.push(b'"');
            }
        }
    });
    if let Some(media_type) = data_content_type(event) {
        out.extend_from_slice(br#","datacontenttype":"#);
        push_json_string(media_type, out);
    }
    match payload {
        Payload::Json(data) => {
            out.extend_from_slice(br#","data":"#);
            out.extend_from_slice(data);
        }
        Payload::Bytes(data) => {
            out.extend_from_slice(br#","data_base64":""#);
            push_base64(data, out);
            out.push(b'"');
        }
        Payload::Tombstone => {}
    }
    out.push(b'}');
}

/// The value of an attribute, by its form in JSON.
enum Attribute<'a> {
    /// Text of the row, which needs escaping.
    Text(&'a str),
    /// Text that we have printed, which needs only quotes.
    Ascii(&'a [u8]),
    /// A JSON number.
    Integer(&'a [u8]),
}

/// Visits the attributes, named like the headers of binary mode. Leaves out `datacontenttype`, which the two modes place differently.
fn each_attribute(event: &StoredEvent<'_>, source: Option<&str>, visit: &mut dyn FnMut(&str, Attribute<'_>)) {
    let source = source_of(event, source).filter(|source| !source.is_empty()).unwrap_or(DEFAULT_SOURCE);
    visit("ce_specversion", Attribute::Ascii(b"1.0"));
    visit("ce_id", Attribute::Ascii(digits::uuid(event.event_id.0, &mut [0; 36])));
    visit("ce_source", Attribute::Text(source));
    visit("ce_type", Attribute::Text(event.event_type));
    if let Some(subject) = event.entity_id.filter(|id| !id.is_empty()) {
        visit("ce_subject", Attribute::Text(subject));
    }
    visit("ce_time", Attribute::Ascii(digits::timestamp(event.created_at, &mut [0; 32])));
    let version = i64::from(event.event_version);
    visit("ce_eventversion", Attribute::Integer(digits::decimal(version, &mut [0; 20])));
    for (name, header) in FROM_ROW_HEADERS {
        if let Some(value) = event.headers.get(header).filter(|value| !value.is_empty()) {
            visit(name, Attribute::Text(value));
        }
    }
}

fn data_content_type<'b>(event: &'b StoredEvent<'_>) -> Option<&'b str> {
    let by_column = match event.payload {
        Payload::Json(_) => "application/json",
        Payload::Bytes(_) => "application/octet-stream",
        Payload::Tombstone => return None,
    };
    Some(event.headers.get(CONTENT_TYPE).unwrap_or(by_column))
}

/// Appends the bytes as base64 with padding (RFC 4648 section 4).
fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.reserve(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        let symbol = |shift: u32| ALPHABET[(group >> shift & 63) as usize];
        out.extend_from_slice(&[
            symbol(18),
            symbol(12),
            if chunk.len() > 1 { symbol(6) } else { b'=' },
            if chunk.len() > 2 { symbol(0) } else { b'=' },
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_vectors_of_rfc_4648() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in vectors {
            let mut out = Vec::new();
            push_base64(plain.as_bytes(), &mut out);
            assert_eq!(out, encoded.as_bytes());
        }
        let mut out = Vec::new();
        push_base64(&[0xfb, 0xff, 0x00], &mut out);
        assert_eq!(out, b"+/8A");
    }
}
