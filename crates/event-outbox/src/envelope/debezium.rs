//! `debezium`: what `io.debezium.transforms.outbox.EventRouter` emits with its defaults, for consumers that read such topics today.
//!
//! Taken from Debezium's documentation of the router ("Outbox Event Router", basic outbox table and configuration options):
//! - the value is the `payload` column alone, passed on transparently; an envelope around it exists only with
//!   `table.fields.additional.placement`, which has no default. The bytes are those that Debezium's users get with a converter that
//!   leaves them alone (`StringConverter`, `BinaryDataConverter`); Connect's `JsonConverter` would quote the payload once more;
//! - a NULL payload gives a record without a value;
//! - the key is `aggregateid`, our `entity_id`;
//! - the topic is `outbox.event.` and `aggregatetype`, our `entity_type`, as written (`route.topic.replacement`);
//! - the one header is `id`, the event's id.
//!
//! Two things differ on purpose. The four headers every record of this relay has, and the row's own, are sent besides `id`: consumers of
//! the router's topics ignore headers they do not know, while `verify` and our consumers need `event-id` and `sequence`. And the record's
//! timestamp is `created_at`, where the router's default is the moment Debezium processed the change.

use super::digits;
use crate::event::StoredEvent;

/// The header the router adds.
pub(super) const ID: &str = "id";

/// `route.topic.replacement` by default: `outbox.event.${routedByValue}`.
pub(super) const DEFAULT_TOPIC: &str = "outbox.event.{entity_type}";

pub(super) fn headers(event: &StoredEvent<'_>, emit: &mut dyn FnMut(&str, &[u8])) {
    emit(ID, digits::uuid(event.event_id.0, &mut [0; 36]));
}
