//! Defines the facts that the ledger is given, and the compact form in which it keeps them.

use std::hash::{DefaultHasher, Hasher};

use crate::event::{EventId, OutboxId};

/// An entity, within which order and partition are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntityKey<'a> {
    /// The column `entity_type`.
    pub entity_type: &'a str,
    /// The column `entity_id`, which is the record key.
    pub entity_id: &'a str,
}

/// A committed event, as the database has it.
#[derive(Debug, Clone, Copy)]
pub struct Committed<'a> {
    /// The row's id.
    pub id: OutboxId,
    /// The id that the record's `event-id` must have.
    pub event_id: EventId,
    /// The entity; `None` for a row without a key, which has no order.
    pub entity: Option<EntityKey<'a>>,
    /// The position among the events of the entity, normally the row's id. If transactions wrote one entity concurrently without a lock,
    /// ids do not show the order. A caller that knows the order of the commits then passes it for all events of the entity. Events with
    /// equal numbers may appear in either order.
    pub order: i64,
    /// True if the row had an `available_at`.
    pub scheduled: bool,
    /// The key and value that the record must have; `None` leaves them unchecked.
    pub fingerprint: Option<Fingerprint>,
}

/// A record of a topic.
#[derive(Debug, Clone, Copy)]
pub struct TopicRecord<'a> {
    /// The record's `event-id`; `None` if it is missing or cannot be read.
    pub event_id: Option<EventId>,
    /// The topic. A topic that was deleted and created again needs another name here, because its offsets start again.
    pub topic: &'a str,
    /// The partition that the record was read from.
    pub partition: i32,
    /// The record's offset in the partition.
    pub offset: i64,
    /// The key and value of the record; `None` leaves them unchecked.
    pub fingerprint: Option<Fingerprint>,
    /// The partition that the key belongs to, if the caller knows it. Otherwise the entity's other records decide.
    pub expected_partition: Option<i32>,
}

/// The column `status` of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowStatus {
    /// Waits to be published.
    Pending,
    /// Acknowledged by Kafka.
    Published,
    /// Cannot be sent, until an operator retries it.
    Dead,
}

/// A digest of 128 bits for a record's key and value. [`Fingerprint::from_key_value`] computes one. A caller with digests from elsewhere,
/// such as an `md5()` computed by Postgres, constructs the fingerprints of both sides from these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// Computes the digest of a key and a value. An absent part differs from an empty one, and moving bytes from key to value changes the
    /// digest. Compare digests only within one process: the hash function is that of the standard library, which may change from release to
    /// release.
    pub fn from_key_value(key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        let half = |seed: u8| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u8(seed);
            for part in [key, value] {
                hasher.write_u64(part.map_or(u64::MAX, |bytes| bytes.len() as u64));
                hasher.write(part.unwrap_or_default());
            }
            u128::from(hasher.finish())
        };
        Self((half(0) << 64 | half(1)).to_be_bytes())
    }
}

/// All facts about one event id.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event_id: EventId,
    pub(super) outcome: TransactionOutcome,
    /// The status that was seen last.
    pub(super) status: Option<RowStatus>,
    /// The number of times that the row was seen with another status after PUBLISHED or DEAD.
    pub(super) left_terminal: u32,
    /// The number of audit entries of the row. Each explains one such change.
    pub(super) audits: u32,
}

/// The outcome of the transaction that wrote the event.
#[derive(Debug)]
pub(super) enum TransactionOutcome {
    /// The event was seen on the topic or in the table, but the application never reported it.
    Unheard,
    RolledBack,
    Committed(Facts),
}

/// The fields of [`Committed`], interned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) id: OutboxId,
    pub(super) order: i64,
    pub(super) entity: Option<u32>,
    pub(super) scheduled: bool,
    pub(super) fingerprint: Option<Fingerprint>,
}

/// The fields of [`TopicRecord`], interned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) offset: i64,
    pub(super) topic: u32,
    pub(super) partition: i32,
    pub(super) event: Option<u32>,
    pub(super) expected_partition: Option<i32>,
    pub(super) fingerprint: Option<Fingerprint>,
}

impl Entry {
    pub(super) fn unheard(event_id: EventId) -> Self {
        Self { event_id, outcome: TransactionOutcome::Unheard, status: None, left_terminal: 0, audits: 0 }
    }

    pub(super) fn facts(&self) -> Option<&Facts> {
        match &self.outcome {
            TransactionOutcome::Committed(facts) => Some(facts),
            TransactionOutcome::Unheard | TransactionOutcome::RolledBack => None,
        }
    }
}
