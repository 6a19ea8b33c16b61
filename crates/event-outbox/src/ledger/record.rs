//! What the ledger is told, and the compact form in which it remembers.

use std::hash::{DefaultHasher, Hasher};

use crate::event::{EventId, OutboxId};

/// An entity: order and partition are per entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntityKey<'a> {
    /// `entity_type`.
    pub entity_type: &'a str,
    /// `entity_id`, the record key.
    pub entity_id: &'a str,
}

/// A committed event, as the database has it.
#[derive(Debug, Clone, Copy)]
pub struct Committed<'a> {
    /// The row.
    pub id: OutboxId,
    /// What the record's `event-id` must say.
    pub event_id: EventId,
    /// `None` for a keyless row, which has no order.
    pub entity: Option<EntityKey<'a>>,
    /// Where the event belongs among those of its entity: normally the id. Of transactions that wrote one entity concurrently without
    /// a lock the ids do not tell; a caller that knows the order of commits passes it for all events of that entity. Events with
    /// equal numbers may appear either way.
    pub order: i64,
    /// The row had an `available_at`.
    pub scheduled: bool,
    /// Key and value the record must have; `None` leaves them unchecked.
    pub fingerprint: Option<Fingerprint>,
}

/// A record of a topic.
#[derive(Debug, Clone, Copy)]
pub struct TopicRecord<'a> {
    /// Its `event-id`; `None` when it has none or an unreadable one.
    pub event_id: Option<EventId>,
    /// A topic that was deleted and created again needs a name of its own here: its offsets start anew.
    pub topic: &'a str,
    /// The partition it was read from.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Key and value as read; `None` leaves them unchecked.
    pub fingerprint: Option<Fingerprint>,
    /// The partition its key belongs to, if the caller can tell. Without it, the entity's other records tell.
    pub expected_partition: Option<i32>,
}

/// A row's `status` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowStatus {
    /// Waits.
    Pending,
    /// Acknowledged by Kafka.
    Published,
    /// Given up, until an operator retries it.
    Dead,
}

/// 128 bits that stand for a record's key and value. [`Fingerprint::from_key_value`] makes one; a caller that has digests from elsewhere, an `md5()`
/// computed by Postgres for example, makes its own on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// Digest of a key and a value. An absent one differs from an empty one, and bytes cannot move from one to the other unseen. Comparable
    /// within one process only: the hash function is the standard library's, which may change from release to release.
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

/// Everything known of one event id.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event_id: EventId,
    pub(super) outcome: TransactionOutcome,
    /// The status seen last.
    pub(super) status: Option<RowStatus>,
    /// How often the row was seen with another status after PUBLISHED or DEAD.
    pub(super) left_terminal: u32,
    /// How many audit entries explain that.
    pub(super) audits: u32,
}

/// What became of the transaction that wrote the event.
#[derive(Debug)]
pub(super) enum TransactionOutcome {
    /// Seen on the topic or in the table, never reported by the application.
    Unheard,
    RolledBack,
    Committed(Facts),
}

/// [`Committed`], interned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) id: OutboxId,
    pub(super) order: i64,
    pub(super) entity: Option<u32>,
    pub(super) scheduled: bool,
    pub(super) fingerprint: Option<Fingerprint>,
}

/// [`TopicRecord`], interned.
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
