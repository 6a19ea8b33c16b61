//! The comparison, as a stream: facts come sorted by event, first records sorted by entity, and neither is held. What is found is what
//! [`Ledger`](event_outbox::ledger::Ledger) finds in the same history; a property test holds the two against each other.

use std::collections::HashMap;
use std::io;

use crate::inspect::verify::fact::{FACT_BYTES, Fact, RecordFact, Resent, RowFact, STEP_BYTES, Step};
use crate::inspect::verify::sorter::Sorter;
use crate::sink::murmur2::partition;
use event_outbox::event::EventId;
use event_outbox::ledger::{Example, Finding, Report, RowStatus};

/// Records without a row whose rows are asked for once more, at the most: a late commit explains some, never millions.
const MOST_ASKED_FOR: usize = 100_000;

/// How the topics' writer chooses partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Partitioner {
    /// As Kafka's Java client does: murmur2 of the key
    Murmur2,
    /// Any way that keeps an entity in one partition
    Any,
}

/// What is known of a topic before its records are compared.
#[derive(Debug, Clone, Default)]
pub(crate) struct TopicScope {
    pub(crate) name: String,
    pub(crate) partitions: i32,
    /// Partitions whose beginning is gone: events published up to then (microseconds since 1970) may have been there.
    pub(crate) truncated: HashMap<i32, i64>,
    /// Earlier records of a key may be gone.
    pub(crate) compacted: bool,
}

/// What rows that are gone can explain: the edge of what the table still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Horizon {
    /// The lowest id of a row that is PUBLISHED.
    pub(crate) lowest_id: i64,
    /// The earliest `published_at`, in microseconds since 1970.
    pub(crate) oldest: i64,
}

/// What is compared.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// Rows above are not looked at.
    pub(crate) upto: i64,
    /// When it began, by the database's clock, in microseconds since 1970.
    pub(crate) began: i64,
    /// Events created earlier are not compared.
    pub(crate) since: Option<i64>,
    /// Rows are expected on the topic whatever their status says.
    pub(crate) expect_pending: bool,
    /// `None` where no row is ever deleted.
    pub(crate) horizon: Option<Horizon>,
    pub(crate) partitioner: Partitioner,
    pub(crate) topics: Vec<TopicScope>,
}

/// What was seen and is no finding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tolerated {
    /// Records of events that were written after the verification began.
    pub(crate) after_start: u64,
    /// Records whose row retention may have deleted.
    pub(crate) retired: u64,
    /// Events whose record the topic's retention or compaction may have removed.
    pub(crate) unjudged: u64,
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

/// Records without a row, to be compared again when their rows were asked for.
#[derive(Debug, Default)]
pub(crate) struct UnmatchedRecords {
    pub(crate) facts: Sorter<FACT_BYTES>,
    pub(crate) ids: Vec<i64>,
}

#[derive(Debug, Default)]
struct Current {
    event: Option<EventId>,
    row: Option<RowFact>,
    audited: bool,
    /// A record of it is on its topic.
    found: bool,
    /// And one that is not said to be sent again.
    sent: bool,
    place: Option<(u16, i32)>,
}

/// Compares facts that come sorted by event.
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
    /// Keeps records without a row for a second round.
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

    /// Ends the first round; what comes from here on has its row or never will.
    ///
    /// # Errors
    /// The temporary files.
    pub(crate) fn second_round(&mut self) -> io::Result<UnmatchedRecords> {
        self.finish_event();
        Ok(self.unmatched.take().unwrap_or_default())
    }

    /// Takes the next fact.
    ///
    /// # Errors
    /// The temporary files.
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
        if let (Partitioner::Murmur2, Some(hash)) = (self.scope.partitioner, record.key_hash) {
            let expected = partition(hash, self.scope.topics[usize::from(record.topic)].partitions);
            if expected != record.partition {
                let note = format!("belongs to partition {expected}");
                self.found(Finding::WrongPartition, event, Some(row), Some(record), Some(note));
            }
        }
        // It claims no place in the order: old events come behind newer ones on purpose.
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
                }
                .encode(),
            )?;
        }
        Ok(())
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
            let note = record.sequence.map(|sequence| format!("says it is of row {sequence}"));
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
            RowStatus::Published if self.may_have_been_removed(&row) => self.tolerated.unjudged += 1,
            RowStatus::Published => self.found(Finding::Missing, event, Some(&row), None, None),
        }
    }

    /// The topic no longer holds everything that was written to it, and the row's record may be among what is gone.
    fn may_have_been_removed(&self, row: &RowFact) -> bool {
        let topic = &self.scope.topics[usize::from(row.topic)];
        let until = match (self.scope.partitioner, row.key_hash) {
            (Partitioner::Murmur2, Some(hash)) => topic.truncated.get(&partition(hash, topic.partitions)).copied(),
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

    /// Ends the second round.
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
    let record = place
        .map(|(topic, partition, offset)| format!("{}[{partition}]@{offset}", scope.topics[usize::from(topic)].name));
    Example { event_id: Some(event.0), id, entity: None, record, note }
}

/// Compares the order of first records, which come sorted by topic, entity, partition and offset.
pub(crate) fn order(scope: &Scope, steps: Sorter<STEP_BYTES>, report: &mut Report) -> io::Result<()> {
    let mut steps = steps.sorted()?;
    let mut highest: Option<Step> = None;
    let mut split = Split::default();
    while let Some(entry) = steps.next()? {
        let step = Step::decode(&entry);
        if scope.partitioner == Partitioner::Any {
            split.take(scope, step, report);
        }
        if step.scheduled {
            continue;
        }
        let place = |step: &Step| (step.topic, step.entity, step.partition);
        match highest {
            Some(above) if place(&above) == place(&step) && above.id > step.id => {
                // A retried row still counts as the highest for those that come after it: it is excused for being late only.
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

/// The partitions of an entity, where no hash tells which is right: the one with most of its events is.
#[derive(Debug, Default)]
struct Split {
    entity: Option<(u16, u128)>,
    /// Of each partition: how many events, and the first of them.
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
                let note = Some(format!("most of the entity is in partition {expected}"));
                report.add(Finding::WrongPartition, || example(scope, first.event, Some(first.id), place, note));
            }
        }
    }
}

#[cfg(test)]
mod tests;
