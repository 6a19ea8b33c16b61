//! Writes the default envelope `event`: `{"eventId","eventType","timestamp","version","source","correlationId","data"}`. The members are
//! always these, in this order. `source` and `correlationId` are null if unknown; `data` has the bytes of the payload.

use super::{digits, push_json_string, source_of};
use crate::event::StoredEvent;

/// The bytes of everything except the texts and the payload. One reservation replaces several; texts and payload grow the buffer
/// themselves.
const FIXED: usize = 192;

pub(super) fn write(event: &StoredEvent<'_>, source: Option<&str>, data: &[u8], out: &mut Vec<u8>) {
    out.reserve(FIXED + event.event_type.len() + data.len());
    out.extend_from_slice(br#"{"eventId":""#);
    out.extend_from_slice(digits::uuid(event.event_id.0, &mut [0; 36]));
    out.extend_from_slice(br#"","eventType":"#);
    push_json_string(event.event_type, out);
    out.extend_from_slice(br#","timestamp":""#);
    out.extend_from_slice(digits::timestamp(event.created_at, &mut [0; 32]));
    out.extend_from_slice(br#"","version":"#);
    out.extend_from_slice(digits::decimal(event.event_version.into(), &mut [0; 20]));
    out.extend_from_slice(br#","source":"#);
    push_string_or_null(source_of(event, source), out);
    out.extend_from_slice(br#","correlationId":"#);
    push_string_or_null(event.headers.get("correlation-id"), out);
    out.extend_from_slice(br#","data":"#);
    out.extend_from_slice(data);
    out.push(b'}');
}

fn push_string_or_null(text: Option<&str>, out: &mut Vec<u8>) {
    match text {
        Some(text) => push_json_string(text, out),
        None => out.extend_from_slice(b"null"),
    }
}
