//! The records of a batch that are set aside: see [`set_aside`](crate::relay::worker::set_aside).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use crate::lane::hold::HoldValue;
use crate::sink::delivery::Outcome;
use crate::sink::producer::KafkaProducer;
use crate::store::settle::{Ctid, PendingRow};
use uuid::Uuid;

/// A topic, and the partition if it is known.
pub(crate) type Destination = (String, Option<i32>);

/// Tells when records are in doubt no longer.
pub(crate) enum Awaited {
    /// The acknowledgements that this producer waits for.
    Acks(Box<KafkaProducer>),
    /// The roll-back of the transaction that the records were sent in: see
    /// [`leave_transaction`](crate::relay::worker::context::WorkerContext::leave_transaction).
    RollBack { is_done: Arc<AtomicBool>, error: Option<RDKafkaErrorCode> },
}

/// The records of one batch that are set aside. Dropping them drops their producer.
pub(crate) struct InDoubt {
    /// `None` once the producer was taken.
    pub(crate) awaited: Option<Awaited>,
    /// The records that may be acknowledged. Empty if their transaction is rolled back.
    pub(crate) records: Vec<Record>,
    pub(crate) values: HashMap<i16, HashSet<HoldValue>>,
    pub(crate) destinations: HashSet<Destination>,
    pub(crate) sent_at: Instant,
    pub(crate) is_reported: bool,
    /// True when nothing is in doubt any more: a report that comes later is out of date.
    pub(crate) is_over: Arc<AtomicBool>,
}

/// One record that is set aside.
pub(crate) struct Record {
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
    /// Returns true if every record has been acknowledged or refused, or is rolled back.
    pub(super) fn is_settled(&self) -> bool {
        match &self.awaited {
            Some(Awaited::Acks(producer)) => producer.deliveries().are_settled(),
            Some(Awaited::RollBack { is_done, .. }) => is_done.load(Ordering::Relaxed),
            None => true,
        }
    }

    /// Returns true if the records need not be waited for any longer: all are settled, or they have taken `longest`. Nothing is gained by
    /// another attempt if a roll-back waits for one partition alone.
    pub(crate) fn is_due(&self, longest: Duration) -> bool {
        let is_patient = self.is_rolled_back() && self.destinations.len() == 1;
        self.is_settled() || !is_patient && self.sent_at.elapsed() >= longest
    }

    /// Returns true if none of the records will be on its topic.
    pub(crate) fn is_rolled_back(&self) -> bool {
        matches!(self.awaited, Some(Awaited::RollBack { .. }))
    }

    /// Returns the last error of a broker.
    pub(super) fn error(&self) -> Option<RDKafkaErrorCode> {
        match &self.awaited {
            Some(Awaited::Acks(producer)) => producer.deliveries().retried_error(),
            Some(Awaited::RollBack { error, .. }) => *error,
            None => None,
        }
    }

    pub(super) fn take_producer(&mut self) -> Option<KafkaProducer> {
        match self.awaited.take() {
            Some(Awaited::Acks(producer)) => Some(*producer),
            _ => None,
        }
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
        match &self.awaited {
            Some(Awaited::Acks(producer)) => producer.deliveries().outcomes(),
            _ => Vec::new(),
        }
    }
}

impl Drop for InDoubt {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(producer) = self.take_producer() {
            producer.retire();
        }
    }
}

impl std::fmt::Debug for InDoubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InDoubt").field("destinations", &self.destinations).finish_non_exhaustive()
    }
}

/// Returns the name of a partition that takes no records in [the obstacles](crate::relay::obstacles::Obstacles).
pub(crate) fn partition_obstacle((topic, partition): &Destination) -> String {
    match partition {
        Some(partition) => format!("partition {topic} [{partition}]"),
        None => format!("partitions of {topic}"),
    }
}
