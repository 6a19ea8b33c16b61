//! Compares what was committed with what a topic holds. Does no I/O; `verify`, the demo, the fault suite and the benchmark feed it.
//!
//! - `record`: the facts that the ledger is given
//! - `names`: interns entities and topics
//! - `check`: finds the violations
//! - `report`: counts and prints them
//!
//! Until [`Ledger::finish`] the ledger only stores facts, so they may arrive in any order. A record may be seen before its commit is
//! reported, partitions may be read in sequence or in parallel, and a record may be read twice. An event and its record take about 200
//! bytes.
//!
//! Besides the exceptions of each [`Finding`], these are no violations:
//! - a duplicate, unless there are more than [`Rules::duplicates_allowed`], because delivery is at least once;
//! - an event that arrives late because an operator retried its row ([`Ledger::retried`]);
//! - any order relative to a scheduled event, which is published when it becomes due, or between events without a key, which have no order;
//! - a DEAD row with or without its record on the topic, because the broker may have stored a record and answered with an error.
//!
//! Order is judged within one partition of one topic, because nobody can observe it across partitions. An entity on two partitions of a
//! topic is a violation itself. An entity on two topics is a matter of configuration.

mod check;
mod names;
mod record;
mod report;

use std::collections::HashMap;

pub use record::{Committed, EntityKey, Fingerprint, RowStatus, TopicRecord};
pub use report::{Example, Finding, Place, Report};

use crate::event::EventId;
use names::{Entities, Names};
use record::{Entry, Facts, Sighting, TransactionOutcome};

/// The faults that a run may have without being a violation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// The most duplicates that are allowed: batches in flight × faults injected, plus the events that operators replayed. `None` only
    /// counts them.
    pub duplicates_allowed: Option<u64>,
    /// True while the system is live: rows that are PENDING at the end are reported, but are no violation.
    pub pending_allowed: bool,
}

/// All facts of a run. See the module for their order.
#[derive(Debug, Default)]
pub struct Ledger {
    rules: Rules,
    index: HashMap<EventId, u32>,
    entries: Vec<Entry>,
    entities: Entities,
    topics: Names,
    sightings: Vec<Sighting>,
}

impl Ledger {
    /// Creates an empty ledger.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Records that the event's transaction committed. A second report of the event replaces the first. A commit takes precedence over a
    /// rollback.
    pub fn committed(&mut self, event: Committed<'_>) {
        let entity = event.entity.map(|key| self.entities.intern(key));
        self.entry(event.event_id).outcome = TransactionOutcome::Committed(Facts {
            id: event.id,
            order: event.order,
            entity,
            scheduled: event.scheduled,
            fingerprint: event.fingerprint,
        });
    }

    /// Records that the event's transaction rolled back. The event must not be on the topic.
    pub fn rolled_back(&mut self, event: EventId) {
        let entry = self.entry(event);
        if matches!(entry.outcome, TransactionOutcome::Unheard) {
            entry.outcome = TransactionOutcome::RolledBack;
        }
    }

    /// Records the row's status in the table. May be called many times per row; the last call counts as the status at the end. An event
    /// without any call is expected on the topic.
    pub fn status(&mut self, event: EventId, status: RowStatus) {
        let entry = self.entry(event);
        if entry.status.is_some_and(|before| before != RowStatus::Pending && before != status) {
            entry.left_terminal += 1;
        }
        entry.status = Some(status);
    }

    /// Records an audit entry by which an operator set the row back to PENDING. Call it once per entry, before or after the row's status is
    /// recorded.
    pub fn retried(&mut self, event: EventId) {
        self.entry(event).audits += 1;
    }

    /// Records a record of a topic. The records of a partition may come in any order and more than once, because the offset identifies a
    /// record.
    pub fn observe(&mut self, record: TopicRecord<'_>) {
        let event = record.event_id.map(|event_id| self.position(event_id));
        let topic = self.topics.intern(record.topic);
        self.sightings.push(Sighting {
            offset: record.offset,
            topic,
            partition: record.partition,
            event,
            expected_partition: record.expected_partition,
            fingerprint: record.fingerprint,
        });
    }

    /// Compares committed events and records.
    pub fn finish(self) -> Report {
        check::check(self)
    }

    fn entry(&mut self, event: EventId) -> &mut Entry {
        let position = self.position(event);
        &mut self.entries[position as usize]
    }

    fn position(&mut self, event: EventId) -> u32 {
        *self.index.entry(event).or_insert_with(|| {
            self.entries.push(Entry::unheard(event));
            names::last_index(self.entries.len())
        })
    }
}

#[cfg(test)]
mod tests;
