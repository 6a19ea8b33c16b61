//! The records of a batch that are set aside: see [`set_aside`](crate::relay::worker::set_aside).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::lane::hold::HoldValue;
use crate::sink::delivery::Outcome;
use crate::sink::producer::KafkaProducer;
use crate::store::settle::{Ctid, PendingRow};
use uuid::Uuid;

/// A topic, and the partition if it is known.
pub(crate) type Destination = (String, Option<i32>);

/// The records of one batch that are set aside. Dropping them drops their producer.
pub(crate) struct InDoubt {
    pub(super) producer: Option<KafkaProducer>,
    pub(super) records: Vec<Record>,
    pub(super) values: HashMap<i16, HashSet<HoldValue>>,
    pub(super) destinations: HashSet<Destination>,
    pub(super) sent_at: Instant,
    pub(super) is_reported: bool,
    /// True when nothing is in doubt any more: a report that comes later is out of date.
    pub(super) is_over: Arc<AtomicBool>,
}

/// One record that is set aside.
pub(super) struct Record {
    pub(super) id: i64,
    pub(super) event_id: Uuid,
    /// The row as it was sent. `None` if the batch has changed the row itself.
    pub(super) ctid: Option<Ctid>,
    pub(super) lane: i16,
    pub(super) slot: usize,
    pub(super) value: HoldValue,
    pub(super) topic: String,
}

impl Record {
    /// Returns true if this row is what was sent. Somebody may have changed the row, or the table may have begun again with its ids.
    pub(super) fn is(&self, row: &PendingRow) -> bool {
        row.id == self.id && row.event_id == self.event_id && self.ctid.is_none_or(|ctid| ctid == row.ctid)
    }
}

impl InDoubt {
    /// Returns true if every record has been acknowledged or refused.
    fn is_settled(&self) -> bool {
        self.producer.as_ref().is_none_or(|producer| producer.deliveries().are_settled())
    }

    /// Returns true if the records need not be waited for any longer: all are settled, or they have taken `longest`.
    pub(crate) fn is_due(&self, longest: Duration) -> bool {
        self.is_settled() || self.sent_at.elapsed() >= longest
    }

    /// Returns true if a record of this lane is covered by the hold of this value.
    pub(crate) fn are_of(&self, lane: i16, value: &HoldValue) -> bool {
        self.values.get(&lane).is_some_and(|values| values.contains(value))
    }

    /// Returns the partitions of the records.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (String, i32)> {
        self.destinations.iter().filter_map(|(topic, partition)| Some((topic.clone(), (*partition)?)))
    }

    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        self.producer.as_ref().map(|producer| producer.deliveries().outcomes()).unwrap_or_default()
    }
}

impl Drop for InDoubt {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(producer) = self.producer.take() {
            producer.retire();
        }
    }
}

impl std::fmt::Debug for InDoubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InDoubt").field("destinations", &self.destinations).finish_non_exhaustive()
    }
}

/// Returns the name of a partition that takes no records in [`Shared::block_by`](crate::relay::shared::Shared::block_by).
pub(crate) fn partition_obstacle((topic, partition): &Destination) -> String {
    match partition {
        Some(partition) => format!("partition {topic} [{partition}]"),
        None => format!("partitions of {topic}"),
    }
}
