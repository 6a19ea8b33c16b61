//! Compares rows with records as a stream: facts arrive sorted by event, first records sorted by entity, and neither is kept in memory.
//! [`Ledger`](event_outbox::ledger::Ledger) finds the same in the same history; a property test compares the two.

use std::collections::{HashMap, HashSet};
use std::io;

use crate::inspect::sorter::Sorter;
use crate::inspect::verify::fact::{FACT_BYTES, Fact, RecordFact, Resent, RowFact, STEP_BYTES, Step};
use crate::lane::murmur2::partition;
use event_outbox::event::EventId;
use event_outbox::ledger::{Example, Finding, Place, Report, RowStatus};

/// The maximum number of records without a row whose rows are read again. A late commit explains some of them, never millions.
const MOST_ASKED_FOR: usize = 100_000;

/// The rule by which the producer of the topics chooses partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Partitioner {
    /// The rule of Kafka's Java client: murmur2 of the key
    Murmur2,
    /// Any rule that keeps an entity in one partition
    Any,
}

/// The facts about a topic that the comparison of its records needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct TopicScope {
    pub(crate) name: String,
    pub(crate) partitions: i32,
    /// The partitions whose first records are gone. Events published up to the given time (microseconds since 1970) may have been there.
    pub(crate) truncated: HashMap<i32, i64>,
    /// True when compaction may have removed earlier records of a key.
    pub(crate) compacted: bool,
}

/// The edge of what the table still holds. Deleted rows explain records beyond this edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Horizon {
    /// The lowest id of a PUBLISHED row.
    pub(crate) lowest_id: i64,
    /// The earliest `published_at` in the table, in microseconds since 1970.
    pub(crate) oldest: i64,
}

/// The limits of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// The highest id that the table had at the start. Records of higher ones were written later.
    pub(crate) upto: i64,
    /// The start of the verification by the database's clock, in microseconds since 1970.
    pub(crate) began: i64,
    /// The earliest creation time of a compared event, in microseconds since 1970.
    pub(crate) since: Option<i64>,
    /// True when every row must be on the topic, regardless of its status.
    pub(crate) expect_pending: bool,
    /// The edge of the retained rows; `None` if no row is ever deleted.
    pub(crate) horizon: Option<Horizon>,
    pub(crate) partitioner: Partitioner,
    pub(crate) topics: Vec<TopicScope>,
}

/// The counts of records, events and rows that are noticed but are no finding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tolerated {
    /// Records of events that were written after the verification began.
    pub(crate) after_start: u64,
    /// Records whose row retention may have deleted.
    pub(crate) retired: u64,
    /// Events whose record the topic's retention or compaction may have removed.
    pub(crate) expired: u64,
    /// Records that `replay` has published again.
    pub(crate) replayed: u64,
    /// Records that `dlq redrive` has sent again.
    pub(crate) redriven: u64,
    /// Rows that share their event id with another one.
    pub(crate) repeated_ids: u64,
}

impl Tolerated {
    fn resent(&mut self, record: &RecordFact) {
        match record.resent {
            None => {}
            Some(Resent::Replayed) => self.replayed += 1,
            Some(Resent::Redriven) => self.redriven += 1,
        }
    }
}

/// Records without a row. They are compared again after their rows were read a second time.
#[derive(Debug, Default)]
pub(crate) struct UnmatchedRecords {
    pub(crate) facts: Sorter<FACT_BYTES>,
    pub(crate) ids: Vec<i64>,
    /// The events whose ids are in `ids`.
    events: HashSet<EventId>,
}

impl UnmatchedRecords {
    /// Adds a row that was read for one of `ids`. After a failover the id may belong to another event, which the first round has compared.
    pub(crate) fn add_row(&mut self, event: EventId, row: RowFact) -> io::Result<()> {
        if self.events.contains(&event) { self.facts.push(Fact::Row(row).encode(event)) } else { Ok(()) }
    }
}

#[derive(Debug, Default)]
struct Current {
    event: Option<EventId>,
    row: Option<RowFact>,
    audited: bool,
    /// True when a record of the event is on its topic.
    found: bool,
    /// True when such a record has no header of `replay` or `dlq redrive`.
    sent: bool,
    place: Option<(u16, i32)>,
}

/// Compares facts that arrive sorted by event.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    scope: &'a Scope,
    current: Current,
    unmatched: Option<UnmatchedRecords>,
    pub(crate) report: Report,
    pub(crate) tolerated: Tolerated,
    pub(crate) steps: Sorter<STEP_BYTES>,
}

impl<'a> Comparison<'a> {
    /// Starts the first round, which keeps records without a row for a second round.
    pub(crate) fn new(scope: &'a Scope, report: Report) -> Self {
        Self {
            scope,
            current: Current::default(),
            unmatched: Some(UnmatchedRecords::default()),
            report,
            tolerated: Tolerated::default(),
            steps: Sorter::default(),
        }
    }

    /// Ends the first round and returns the records without a row. A record of the second round that has no row yet never gets one.
    ///
    /// # Errors
    /// Returns the error of a temporary file.
    pub(crate) fn second_round(&mut self) -> io::Result<UnmatchedRecords> {
        self.finish_event();
        Ok(self.unmatched.take().unwrap_or_default())
    }

    /// Compares the next fact with the earlier facts of the same event.
    ///
    /// # Errors
    /// Returns the error of a temporary file.
    pub(crate) fn take(&mut self, event: EventId, fact: Fact) -> io::Result<()> {
        if self.current.event != Some(event) {
            self.finish_event();
            self.current = Current { event: Some(event), ..Current::default() };
        }
        match fact {
            Fact::Row(row) => {
                self.tolerated.repeated_ids += u64::from(self.current.row.is_some());
                self.current.row = Some(row);
            }
            Fact::Audit => self.current.audited = true,
            Fact::Record(record) => match self.current.row {
                Some(row) => self.record_of(event, &row, &record)?,
                None => self.unmatched(event, record)?,
            },
        }
        Ok(())
    }

    fn record_of(&mut self, event: EventId, row: &RowFact, record: &RecordFact) -> io::Result<()> {
        if row.outside {
            return Ok(());
        }
        self.report.records += 1;
        if row.topic != record.topic {
            let note = format!("its row is routed to {}", self.scope.topics[usize::from(row.topic)].name);
            self.found(Finding::Unknown, event, Some(row), Some(record), Some(note));
            return Ok(());
        }
        self.tolerated.resent(record);
        if !std::mem::replace(&mut self.current.found, true) {
            self.report.published += 1;
        }
        if record.resent.is_none() && std::mem::replace(&mut self.current.sent, true) {
            self.found(Finding::Duplicates, event, Some(row), Some(record), None);
        }
        if let (Some(expected), Some(found)) = (row.fingerprint, record.fingerprint)
            && expected != found
        {
            self.found(Finding::Mismatched, event, Some(row), Some(record), None);
        }
        if let Some(expected) = self.home(row, record)
            && expected != record.partition
        {
            let note = format!("belongs to partition {expected}");
            self.found(Finding::WrongPartition, event, Some(row), Some(record), Some(note));
        }
        // A record that was sent again is left out of the order: it comes behind newer events on purpose.
        if record.resent.is_some() {
            return Ok(());
        }
        let place = Some((record.topic, record.partition));
        let first = std::mem::replace(&mut self.current.place, place) != place;
        if let (true, Some(entity)) = (first, row.entity) {
            self.steps.push(
                Step {
                    topic: record.topic,
                    entity,
                    partition: record.partition,
                    offset: record.offset,
                    id: row.id,
                    event,
                    scheduled: row.scheduled,
                    audited: self.current.audited,
                    placed: row.partition.is_some(),
                }
                .encode(),
            )?;
        }
        Ok(())
    }

    /// Returns the partition in which the record has to be; `None` if any is right.
    fn home(&self, row: &RowFact, record: &RecordFact) -> Option<i32> {
        match (row.partition, self.scope.partitioner, record.key_hash) {
            // The commands that send records again let the key choose.
            (Some(named), ..) if record.resent.is_none() => Some(named),
            (None, Partitioner::Murmur2, Some(hash)) => {
                Some(partition(hash, self.scope.topics[usize::from(record.topic)].partitions))
            }
            _ => None,
        }
    }

    fn unmatched(&mut self, event: EventId, record: RecordFact) -> io::Result<()> {
        let Scope { upto, began, since, horizon, .. } = *self.scope;
        let before = |moment: i64| record.time.is_some_and(|time| time < moment);
        if since.is_some_and(before) {
            return Ok(());
        }
        let later = record.sequence.map_or(record.time.is_some_and(|time| time >= began), |sequence| sequence > upto);
        if later {
            self.tolerated.after_start += 1;
            return Ok(());
        }
        if let Some(unmatched) = &mut self.unmatched {
            if let Some(sequence) = record.sequence
                && unmatched.ids.len() < MOST_ASKED_FOR
            {
                unmatched.ids.push(sequence);
                unmatched.events.insert(event);
            }
            return unmatched.facts.push(Fact::Record(record).encode(event));
        }
        self.report.records += 1;
        let deleted =
            |edge: Horizon| record.sequence.is_some_and(|sequence| sequence < edge.lowest_id) || before(edge.oldest);
        if horizon.is_some_and(deleted) {
            self.tolerated.resent(&record);
            self.tolerated.retired += 1;
        } else {
            let note = record.sequence.map(|sequence| format!("its header sequence names row {sequence}"));
            self.found(Finding::Unknown, event, None, Some(&record), note);
        }
        Ok(())
    }

    fn finish_event(&mut self) {
        let Current { event: Some(event), row: Some(row), found, .. } = std::mem::take(&mut self.current) else {
            return;
        };
        if row.outside {
            return;
        }
        self.report.committed += 1;
        let status = if self.scope.expect_pending { RowStatus::Published } else { row.status };
        match status {
            RowStatus::Dead => self.report.dead += 1,
            RowStatus::Pending => self.found(Finding::Unpublished, event, Some(&row), None, None),
            RowStatus::Published if found => {}
            RowStatus::Published if self.may_have_been_removed(&row) => self.tolerated.expired += 1,
            RowStatus::Published => self.found(Finding::Missing, event, Some(&row), None, None),
        }
    }

    /// Returns true when the topic lost records by retention or compaction and the row's record may be one of them.
    fn may_have_been_removed(&self, row: &RowFact) -> bool {
        let topic = &self.scope.topics[usize::from(row.topic)];
        let until = match (row.partition, self.scope.partitioner, row.key_hash) {
            (Some(named), ..) => topic.truncated.get(&named).copied(),
            (None, Partitioner::Murmur2, Some(hash)) => {
                topic.truncated.get(&partition(hash, topic.partitions)).copied()
            }
            _ => topic.truncated.values().copied().max(),
        };
        topic.compacted || until.is_some_and(|until| row.published_at <= until)
    }

    fn found(
        &mut self,
        finding: Finding,
        event: EventId,
        row: Option<&RowFact>,
        record: Option<&RecordFact>,
        note: Option<String>,
    ) {
        let place = record.map(|record| (record.topic, record.partition, record.offset));
        let id = row.map(|row| row.id);
        self.report.add(finding, || example(self.scope, event, id, place, note));
    }

    /// Ends the second round and returns the results.
    pub(crate) fn end(mut self) -> (Report, Tolerated, Sorter<STEP_BYTES>) {
        self.finish_event();
        (self.report, self.tolerated, self.steps)
    }
}

fn example(
    scope: &Scope,
    event: EventId,
    id: Option<i64>,
    place: Option<(u16, i32, i64)>,
    note: Option<String>,
) -> Example {
    let topic = |index: u16| scope.topics[usize::from(index)].name.clone();
    let record = place.map(|(index, partition, offset)| Place { topic: topic(index), partition, offset });
    Example { event_id: Some(event.0), id, entity: None, record, note }
}

/// Checks the order of first records, which arrive sorted by topic, entity, partition and offset.
pub(crate) fn order(scope: &Scope, steps: Sorter<STEP_BYTES>, report: &mut Report) -> io::Result<()> {
    let mut steps = steps.sorted()?;
    let mut highest: Option<Step> = None;
    let mut split = Split::default();
    while let Some(entry) = steps.next()? {
        let step = Step::decode(&entry);
        if scope.partitioner == Partitioner::Any && !step.placed {
            split.take(scope, step, report);
        }
        if step.scheduled {
            continue;
        }
        let place = |step: &Step| (step.topic, step.entity, step.partition);
        match highest {
            Some(above) if place(&above) == place(&step) && above.id > step.id => {
                // A retried row may be late, but still counts as the highest id for the rows that follow.
                if !step.audited {
                    let note = Some(format!("after id {}", above.id));
                    let place = Some((step.topic, step.partition, step.offset));
                    report.add(Finding::Inversions, || example(scope, step.event, Some(step.id), place, note));
                }
            }
            _ => highest = Some(step),
        }
    }
    split.end(scope, report);
    Ok(())
}

/// The partitions of an entity whose right partition no hash gives. The partition with most of the entity's events is the right one.
#[derive(Debug, Default)]
struct Split {
    entity: Option<(u16, u128)>,
    /// The number of events in each partition, and the first of them.
    partitions: Vec<(u64, Step)>,
}

impl Split {
    fn take(&mut self, scope: &Scope, step: Step, report: &mut Report) {
        if self.entity != Some((step.topic, step.entity)) {
            self.end(scope, report);
            self.entity = Some((step.topic, step.entity));
        }
        match self.partitions.last_mut() {
            Some((count, first)) if first.partition == step.partition => *count += 1,
            _ => self.partitions.push((1, step)),
        }
    }

    fn end(&mut self, scope: &Scope, report: &mut Report) {
        let most = self.partitions.iter().enumerate().max_by_key(|(index, (count, _))| (*count, usize::MAX - index));
        let home = most.map(|(index, (_, first))| (index, first.partition));
        for (index, (count, first)) in self.partitions.drain(..).enumerate() {
            let Some((_, expected)) = home.filter(|(home, _)| *home != index) else { continue };
            for _ in 0..count {
                let place = Some((first.topic, first.partition, first.offset));
                let note = Some(format!("most events of the entity are in partition {expected}"));
                report.add(Finding::WrongPartition, || example(scope, first.event, Some(first.id), place, note));
            }
        }
    }
}

#[cfg(test)]
mod tests;
