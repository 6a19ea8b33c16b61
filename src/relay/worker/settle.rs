//! Ends a cycle: decides what the delivery reports mean for each row, and writes the result.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rdkafka::error::RDKafkaErrorCode;

use crate::fault::{self, Class, Fault};
use crate::lane::LaneRange;
use crate::lane::hold::{Candidate, HoldSet};
use crate::lane::progress::Progress;
use crate::relay::worker::claim::{Batch, Extent, progress_after};
use crate::relay::worker::context::{CycleError, Waited, WorkerContext};
use crate::relay::worker::lane_assignment::LaneAssignment;
use crate::relay::worker::outcome::{Decider, Poison, RowOutcome, Sent};
use crate::relay::worker::unacknowledged::Unacknowledged;
use crate::sink::broker::BrokerDown;
use crate::sink::delivery::Outcome;
use crate::sink::producer::KafkaProducer;
use crate::store::claim::ClaimedRow;
use crate::store::session::within;
use crate::store::session::{LaneUpdate, Next};
use crate::store::settle::{Ctid, SettleError};
use event_outbox::code::Code;
use event_outbox::notice::Notice;

/// The limits above which an empty claim stores its progress: the number of ids that it moved, or the time that it took.
const WORTH_STORING: i64 = 1_000;
const WORTH_STORING_TIME: std::time::Duration = std::time::Duration::from_millis(5);

/// The rows that a batch changes.
struct Changes {
    published: Vec<Ctid>,
    dead: Vec<(Ctid, String)>,
    refused: Vec<(Ctid, String)>,
    unscheduled: Vec<Ctid>,
}

impl WorkerContext<'_> {
    /// Turns refusals into outcomes. Returns the error for records that are not acknowledged, if there are any.
    pub(super) fn classify_deliveries(
        &mut self,
        assignment: &mut LaneAssignment,
        batch: &Batch,
        sent: &mut Sent,
        reports: &[Outcome],
        waited: Waited,
    ) -> Result<Option<CycleError>, sqlx::Error> {
        let mut unacknowledged = Unacknowledged::default();
        let mut class = Class::Outage;
        let fatal = self.producer.as_ref().and_then(KafkaProducer::fatal);
        // A record that is sent again until the batch times out has no report. The last error of a broker explains it.
        let retried = self.producer.as_ref().and_then(|producer| producer.deliveries().retried_error());
        for (row, outcome) in batch.rows.iter().zip(&mut sent.outcomes) {
            let RowOutcome::Sent { slot, topic, .. } = *outcome else { continue };
            let code = match reports.get(slot) {
                Some(Outcome::Acked) => continue,
                // Records that fail with a broken producer have only the code `Fatal`. The producer knows the cause.
                Some(Outcome::Failed(RDKafkaErrorCode::Fatal)) => Some(fatal.unwrap_or(RDKafkaErrorCode::Fatal)),
                Some(Outcome::Failed(code)) => Some(*code),
                _ => None,
            };
            let found = code.map(|code| fault::classify_kafka(code).class);
            if let (Some(code), Some(Class::Row), 1) = (code, found, sent.records) {
                // A record that was alone in its batch is the cause itself. Among others, the size of the batch may be the cause: the next
                // batch is smaller.
                *outcome = self.refuse_alone(assignment, row, code)?;
                continue;
            }
            unacknowledged.add(code.or(retried));
            match (code, found) {
                (Some(code), Some(Class::Destination)) => {
                    self.topic_refused(&sent.topics[topic], code);
                    class = Class::Destination;
                }
                (_, Some(Class::Row)) => {
                    self.budget.rows = (sent.records / 4).max(1);
                    class = Class::Row;
                }
                (_, Some(found)) if class == Class::Outage => class = found,
                _ => {}
            }
        }
        if unacknowledged.records() == 0 {
            return Ok(None);
        }
        for (code, records) in unacknowledged.by_fault() {
            self.shared.options.telemetry.metrics.unacknowledged(code, records);
        }
        let how = match waited {
            Waited::Settled | Waited::Partly => "",
            // The broker watch logs the outage.
            Waited::BrokerDown => return Ok(Some(BrokerDown.into())),
            Waited::TimedOut => "RELAY_PUBLISH_TIMEOUT passed; ",
        };
        // The class comes from the reports alone: a record that is sent again may be on its topic, whatever error a broker returned.
        let fault = Fault { class, ..unacknowledged.fault() };
        let reason = format!("{how}{unacknowledged}");
        Ok(Some(CycleError::Unacknowledged {
            unacknowledged: unacknowledged.records(),
            records: sent.records,
            reason,
            fault,
        }))
    }

    fn refuse_alone(
        &mut self,
        assignment: &mut LaneAssignment,
        row: &ClaimedRow,
        code: RDKafkaErrorCode,
    ) -> Result<RowOutcome, sqlx::Error> {
        let event = Candidate {
            id: row.id()?.0,
            lane: row.lane()?,
            entity_type: row.entity_type()?,
            entity_id: row.entity_id()?,
            topic: None,
        };
        let Some(producer) = self.producer.as_mut() else { return Ok(RowOutcome::Left) };
        let closed = Default::default();
        let options = &self.shared.options;
        let (too_few, dead, avoided) = Default::default();
        let mut decider = Decider { assignment, producer, options, closed: &closed, too_few: &too_few, dead, avoided };
        Ok(decider.refuse(event, Poison::of_record(code)))
    }

    /// Writes the outcomes of the whole batch with the lanes' new progress, and commits. With `goes_on` the next transaction is begun, too.
    /// Returns false when there was nothing to write, because all of the batch has to wait.
    pub(super) async fn settle(
        &mut self,
        assignment: &mut LaneAssignment,
        batch: &Batch,
        sent: &Sent,
        reports: &[Outcome],
        goes_on: bool,
    ) -> Result<bool, SettleError> {
        let changes = changes(batch, sent, reports)?;
        let Some(owned) = assignment.owned.as_ref() else { return Err(sqlx::Error::PoolClosed.into()) };
        let after = progress_after(&owned.progress, &batch.extent, sent.cut);
        if let Extent::Walk { upto, cut_at } = &batch.extent {
            let walked = sent.cut.map_or(cut_at.unwrap_or(*upto), |last| last.unwrap_or(i64::MIN));
            finish_walk(&mut assignment.holds, walked, after.scanned_through);
        }
        self.write(&changes).await?;
        let sealed = self.sealed_lanes(batch, sent)?;
        let is_unmoved = assignment.owned.as_ref().is_some_and(|owned| owned.progress == after);
        if changes.count() == 0 && is_unmoved && !assignment.holds.has_changes() {
            within(crate::store::session::commit(self.conn)).await?;
            return Ok(false);
        }
        let touched = touched_lanes(batch)?;
        self.store(assignment, after, &changes.published, &sealed, Some(&touched), goes_on).await?;
        self.shared.settled(changes.published.len(), changes.dead.len() + changes.refused.len());
        changes.log_poison(batch, sent)?;
        Ok(true)
    }

    /// Marks the acknowledged and the DEAD rows and leaves the lanes' progress as it is. The rest is claimed again.
    pub(super) async fn settle_partly(
        &mut self,
        assignment: &mut LaneAssignment,
        batch: &Batch,
        sent: &Sent,
        reports: &[Outcome],
    ) -> Result<(), SettleError> {
        let mut changes = changes(batch, sent, reports)?;
        changes.refused.clear();
        changes.unscheduled.clear();
        self.write(&changes).await?;
        let transaction = &self.shared.transaction;
        within(transaction.mark_and_commit(self.conn, &changes.published, None, Next::None)).await?;
        self.shared.settled(changes.published.len(), changes.dead.len());
        changes.log_poison(batch, sent)?;
        // Holds that began with this batch are not stored.
        assignment.reload_holds();
        Ok(())
    }

    /// Ends a transaction in which nothing was claimed. Stores the progress if finding it again would be expensive.
    pub(super) async fn settle_nothing(
        &mut self,
        assignment: &mut LaneAssignment,
        batch: &Batch,
        began: Instant,
    ) -> Result<(), SettleError> {
        let Some(owned) = assignment.owned.as_mut() else { return Err(sqlx::Error::PoolClosed.into()) };
        let before = owned.progress.clone();
        let after = progress_after(&before, &batch.extent, None);
        if let Extent::Walk { upto, cut_at } = &batch.extent {
            finish_walk(&mut assignment.holds, cut_at.unwrap_or(*upto), after.scanned_through);
        }
        if after.scanned_through < before.scanned_through {
            tracing::warn!(
                code = %Code::IdsWentBack,
                scanned_through = before.scanned_through,
                last_id = after.scanned_through,
                next_step = "none after `truncate … restart identity`; otherwise find out who has set the sequence back",
                "event ids have gone back"
            );
        }
        let moved = (after.scanned_through - before.scanned_through).abs();
        let is_worth_it = after.sweep != before.sweep
            || after.scanned_through < before.scanned_through
            || moved > WORTH_STORING
            || owned.lags_long(Instant::now())
            || began.elapsed() > WORTH_STORING_TIME;
        if assignment.holds.has_changes() || is_worth_it {
            self.store(assignment, after, &[], &[], None, false).await?;
        } else {
            within(crate::store::session::commit(self.conn)).await?;
            // Only the snapshot in memory may be ahead of what is stored: see `OwnedLanes::progress`.
            owned.progress.snapshot = after.snapshot;
        }
        Ok(())
    }

    async fn write(&mut self, changes: &Changes) -> Result<(), SettleError> {
        let (sql, persistent) = (&self.shared.settle, self.shared.options.database.prepared_statements);
        if !changes.dead.is_empty() {
            within(sql.mark_dead(self.conn, &changes.dead, persistent)).await?;
        }
        if !changes.refused.is_empty() {
            within(sql.mark_refused(self.conn, &changes.refused, persistent)).await?;
        }
        if !changes.unscheduled.is_empty() {
            within(sql.unschedule(self.conn, &changes.unscheduled, persistent)).await?;
        }
        Ok(())
    }

    /// Writes marks, progress and holds in one commit. What the worker remembers changes only with this commit.
    ///
    /// If only `touched` lanes had events, only their rows need to be written: the older progress of the others stays true (ADR 17).
    pub(crate) async fn store(
        &mut self,
        assignment: &mut LaneAssignment,
        after: Progress,
        published: &[Ctid],
        sealed: &[i16],
        touched: Option<&BTreeSet<i16>>,
        goes_on: bool,
    ) -> Result<(), SettleError> {
        let Some(owned) = assignment.owned.as_mut() else { return Err(sqlx::Error::PoolClosed.into()) };
        let options = &self.shared.options;
        let persistent = options.database.prepared_statements;
        let mut moved = Vec::new();
        // Lanes that lag were not modelled with Kafka transactions.
        let mut touched = touched.filter(|_| !options.is_exactly_once());
        if assignment.holds.has_changes() {
            // A hold may have lost its last event, or be gone, without an event of its lane in this batch.
            touched = None;
            moved = within(self.shared.holds.save(self.conn, &assignment.holds, persistent)).await?;
        }
        let (now, nonce) = (Instant::now(), owned.next_nonce);
        let stored = owned.to_store(&after, now);
        let (mut written, unwritten) = owned.to_write(touched, &after, now);
        let ctids = |lanes: &BTreeMap<i16, Ctid>| lanes.values().copied().collect::<Vec<_>>();
        let (ctids, unwritten) = (ctids(&written), ctids(&unwritten));
        let update = LaneUpdate { ctids: &ctids, unwritten: &unwritten, nonce, progress: &stored, sealed };
        let lanes = owned.lanes;
        let next = if goes_on && lanes == assignment.range { Next::Begin(lanes) } else { Next::None };
        let transaction = &self.shared.transaction;
        let settled = within(transaction.mark_and_commit(self.conn, published, Some(update), next)).await?;
        *self.begun = settled.begun.map(|begun| (begun, lanes));
        assignment.holds.stored(moved);
        written.values_mut().zip(settled.ctids).for_each(|(ctid, new)| *ctid = new);
        owned.sealed.extend(sealed.iter().map(|lane| (*lane, nonce)));
        if stored.snapshot == after.snapshot {
            owned.stored = (stored.snapshot, now);
        }
        match &after.sweep {
            Some(sweep) => owned.late.retain(|id| *id > sweep.through),
            None => {
                owned.late.clear();
                owned.late_is_all = false;
            }
        }
        owned.has_written(written, nonce, now, after);
        Ok(())
    }

    /// Returns the lanes of which this batch has committed records to Kafka.
    fn sealed_lanes(&self, batch: &Batch, sent: &Sent) -> Result<Vec<i16>, sqlx::Error> {
        if !self.shared.options.is_exactly_once() {
            return Ok(Vec::new());
        }
        let mut lanes = Vec::new();
        for (row, outcome) in batch.rows.iter().zip(&sent.outcomes) {
            if matches!(outcome, RowOutcome::Sent { .. }) {
                lanes.push(row.lane()?);
            }
        }
        lanes.sort_unstable();
        lanes.dedup();
        Ok(lanes)
    }
}

impl Changes {
    fn count(&self) -> usize {
        self.published.len() + self.dead.len() + self.refused.len() + self.unscheduled.len()
    }

    /// Logs the events that were marked as DEAD or refused.
    fn log_poison(&self, batch: &Batch, sent: &Sent) -> Result<(), sqlx::Error> {
        for (row, outcome) in batch.rows.iter().zip(&sent.outcomes) {
            match outcome {
                RowOutcome::Dead(poison) => log_poison(row, poison, DEAD)?,
                // Where not all of a batch was acknowledged no refusal is marked.
                RowOutcome::Refused(poison) if !self.refused.is_empty() => log_poison(row, poison, HELD)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns the lanes with events of this batch, whatever becomes of them.
fn touched_lanes(batch: &Batch) -> Result<BTreeSet<i16>, sqlx::Error> {
    batch.rows.iter().map(ClaimedRow::lane).chain(batch.skipped.iter().map(|row| Ok(row.lane))).collect()
}

fn changes(batch: &Batch, sent: &Sent, reports: &[Outcome]) -> Result<Changes, sqlx::Error> {
    let mut changes = Changes {
        published: Vec::with_capacity(sent.records),
        dead: Vec::new(),
        refused: Vec::new(),
        unscheduled: Vec::new(),
    };
    for (at, (row, outcome)) in batch.rows.iter().zip(&sent.outcomes).enumerate() {
        match outcome {
            RowOutcome::Sent { slot, .. } if reports.get(*slot) == Some(&Outcome::Acked) => {
                changes.published.push(row.ctid()?);
            }
            RowOutcome::Sent { .. } | RowOutcome::Left => {}
            RowOutcome::Dead(poison) => changes.dead.push((row.ctid()?, poison.error.clone())),
            RowOutcome::Refused(poison) => changes.refused.push((row.ctid()?, poison.error.clone())),
            RowOutcome::Held if at < batch.due => changes.unscheduled.push(row.ctid()?),
            RowOutcome::Held => {}
        }
    }
    Ok(changes)
}

/// Moves the start of releasing holds behind `walked`: up to this id their events have been published. Removes the holds with nothing left.
fn finish_walk(holds: &mut HoldSet, walked: i64, scanned_through: i64) {
    let releasing: Vec<u32> = holds
        .iter()
        .filter(|(_, held)| held.is_releasing && (held.hold.from_id <= walked || held.hold.from_id > scanned_through))
        .map(|(index, _)| index)
        .collect();
    for index in releasing {
        // Events above `scanned_through` are new to the claims.
        let is_beyond = holds.peek(index).is_some_and(|held| held.hold.from_id > scanned_through);
        if walked >= scanned_through || is_beyond {
            holds.remove(index);
        } else if let Some(held) = holds.get_mut(index) {
            held.hold.from_id = walked + 1;
        }
    }
}

/// Status and consequence of an event that cannot be sent.
const DEAD: (&str, &str) = ("DEAD", "its successors go on");
const HELD: (&str, &str) = ("PENDING", "its entity waits until the event is retried or discarded");

fn log_poison(row: &ClaimedRow, poison: &Poison, (status, consequence): (&str, &str)) -> Result<(), sqlx::Error> {
    let Poison { error, code, next_step } = poison;
    tracing::error!(
        code = %code,
        notice = %Notice::EventRefused,
        event.id = %row.event_id()?,
        event.sequence = row.id()?.0,
        entity.r#type = row.entity_type()?,
        entity.id = row.entity_id()?,
        event.status = status,
        error,
        next_step,
        consequence,
        "an event cannot be sent"
    );
    Ok(())
}

/// Returns the owned lanes, or the wanted ones if none are owned. Errors of a cycle that failed to mark name them.
pub(crate) fn lanes_of(assignment: &LaneAssignment) -> LaneRange {
    assignment.owned.as_ref().map_or(assignment.range, |owned| owned.lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::hold::{Hold, HoldKind, HoldValue};

    #[test]
    fn a_walk_moves_the_holds_it_has_emptied_and_removes_them_at_the_end() {
        let mut holds = HoldSet::default();
        let hold = |topic: &str, from_id| Hold {
            value: HoldValue::Topic(topic.to_owned()),
            kind: HoldKind::Topic,
            reason: String::new(),
            from_id,
            head_id: None,
            events: 9,
            released: false,
        };
        let (first, later, active) =
            (holds.insert(1, hold("a", 5)), holds.insert(1, hold("b", 50)), holds.insert(1, hold("c", 5)));
        for (_, held) in holds.iter_mut() {
            held.is_releasing = held.hold.value != HoldValue::Topic("c".to_owned());
        }
        finish_walk(&mut holds, 20, 100);
        let from = |holds: &HoldSet, index| holds.peek(index).map(|held| held.hold.from_id);
        assert_eq!([first, later, active].map(|index| from(&holds, index)), [Some(21), Some(50), Some(5)]);
        finish_walk(&mut holds, 100, 100);
        assert_eq!([first, later, active].map(|index| from(&holds, index)), [None, None, Some(5)]);
        let beyond = holds.insert(1, hold("b", 500));
        holds.iter_mut().for_each(|(_, held)| held.is_releasing = held.hold.value == HoldValue::Topic("b".to_owned()));
        finish_walk(&mut holds, i64::MIN, 100);
        assert_eq!([active, beyond].map(|index| from(&holds, index)), [Some(5), None]);
    }
}
