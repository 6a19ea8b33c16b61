//! The ledger: what was committed against what the topic holds. Pure; `verify`, the demo, the fault suite and the benchmark feed it.
//!
//! `record` is what it is told, `names` interns entities and topics, `check` finds the violations, `report` counts and prints them.
//!
//! It only writes down until [`Ledger::finish`], so facts may arrive in any order: a record may be seen before its commit is
//! reported, partitions may be read one after the other or side by side, a record may be read twice. An event and its record take
//! about 200 bytes.
//!
//! What is not a violation, besides what each [`Finding`] says:
//! - a duplicate, unless [`Rules::duplicates_allowed`] is exceeded: delivery is at least once;
//! - an event that comes late because an operator retried its row ([`Ledger::retried`]);
//! - any order with a scheduled event, which goes out when it becomes due, and between keyless events, which have none;
//! - a DEAD row that is not on the topic, and one that is: the broker may have applied a record whose answer was an error.
//!
//! Order is judged within one partition of one topic, because nobody can observe it across them. An entity on two partitions
//! is itself a violation; two topics for one entity are a matter of configuration.

mod check;
mod names;
mod record;
mod report;

use std::collections::HashMap;

pub use record::{Committed, EntityKey, Fingerprint, RowStatus, TopicRecord};
pub use report::{Example, Finding, Report};

use crate::event::EventId;
use names::{Entities, Names};
use record::{Entry, Facts, Sighting, TransactionOutcome};

/// What a run is allowed to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// More duplicates than this are a violation: batches in flight × faults injected, plus what operators replayed. `None` only counts.
    pub duplicates_allowed: Option<u64>,
    /// The system is live: rows that are PENDING at the end are reported and are no violation.
    pub pending_allowed: bool,
}

/// Everything that is known of a run. See the module for what it accepts.
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
    /// An empty ledger.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// The event's transaction committed. A second report of the same event replaces the first; a commit outweighs a rollback.
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

    /// The event's transaction rolled back: it must not be on the topic.
    pub fn rolled_back(&mut self, event: EventId) {
        let entry = self.entry(event);
        if matches!(entry.outcome, TransactionOutcome::Unheard) {
            entry.outcome = TransactionOutcome::RolledBack;
        }
    }

    /// The row's status was seen in the table. Called whenever the caller looks; the last call is the status at the end. An event without
    /// any call is expected on the topic.
    pub fn status(&mut self, event: EventId, status: RowStatus) {
        let entry = self.entry(event);
        if entry.status.is_some_and(|before| before != RowStatus::Pending && before != status) {
            entry.left_terminal += 1;
        }
        entry.status = Some(status);
    }

    /// An audit entry says that an operator's command put the row back to PENDING. Called once per entry, before or after the row is seen.
    pub fn retried(&mut self, event: EventId) {
        self.entry(event).audits += 1;
    }

    /// A record was read from a topic. Records of one partition may come in any order and more than once: offsets tell.
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

    /// Compares both sides.
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
