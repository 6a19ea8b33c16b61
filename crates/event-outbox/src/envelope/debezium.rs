//! Writes the records of `io.debezium.transforms.outbox.EventRouter` with its default options, for consumers that read such topics today.
//!
//! The rules come from Debezium's documentation of the router ("Outbox Event Router", basic outbox table and configuration options):
//! - The value is the `payload` column alone, unchanged. Only `table.fields.additional.placement`, which has no default, puts an envelope
//!   around it. The bytes equal those of a converter that does not change them (`StringConverter`, `BinaryDataConverter`). Connect's
//!   `JsonConverter` would quote the payload once more.
//! - A NULL payload becomes a record without a value.
//! - The key is `aggregateid`, our `entity_id`.
//! - The topic is `outbox.event.` and `aggregatetype`, our `entity_type`, as written (`route.topic.replacement`).
//! - The only header is `id`, the event's id. A row whose id is no UUID has it in a header `id` of its own, which is sent instead.
//!
//! Two differences are intended. Besides `id` we send the four headers of every record and the row's own headers: consumers of the router's
//! topics ignore unknown headers, but `verify` and our consumers need `event-id` and `sequence`. The record's timestamp is `created_at`,
//! while the router's default is the time at which Debezium processed the change.

use super::digits;
use crate::event::StoredEvent;

/// The header that the router adds.
pub(super) const ID: &str = "id";

/// The default of `route.topic.replacement`: `outbox.event.${routedByValue}`.
pub(super) const DEFAULT_TOPIC: &str = "outbox.event.{entity_type}";

pub(super) fn headers(event: &StoredEvent<'_>, emit: &mut dyn FnMut(&str, &[u8])) {
    if event.headers.get(ID).is_none() {
        emit(ID, digits::uuid(event.event_id.0, &mut [0; 36]));
    }
}
