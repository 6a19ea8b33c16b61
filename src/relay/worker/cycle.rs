//! Runs one cycle of a worker, strictly serial:
//!
//! probe -> begin (lock lanes, verify) -> claim -> decide -> send -> await acks -> settle -> commit
//!
//! If a step fails, the rows that were not marked are still pending, and the producer that may hold their records is dropped. The next
//! cycle claims these rows and sends them again in order. Only rows that the brokers have acknowledged are ever marked PUBLISHED.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use sqlx::error::DatabaseError;

use crate::lane::hold::HoldKind;
use crate::relay::batch_metrics;
use crate::relay::stage_times::Stage;
use crate::relay::worker::claim::{Batch, Extent};
use crate::relay::worker::context::{Cycle, CycleError, MARKS, Waited, WorkerContext, acks_of};
use crate::relay::worker::in_doubt::InDoubt;
use crate::relay::worker::lane_assignment::LaneAssignment;
use crate::relay::worker::outcome::{Decider, Plan, Sent};
use crate::relay::worker::set_aside::patience;
use crate::relay::worker::settle::lanes_of;
use crate::sink::broker::BrokerDown;
use crate::sink::producer::KafkaProducer;
use crate::sink::transactions::{TransactionError, is_fenced};
use crate::store::claim::ClaimedRow;
use crate::store::session;
use crate::store::session::within;
use crate::store::settle::SettleError;
use event_outbox::code::Code;
use event_outbox::notice::Notice;

/// The time after refused marks during which marks are tried in a savepoint before publishing. It is longer than the time between two
/// attempts.
const REHEARSED: Duration = Duration::from_secs(60);

/// The time after which a locked event is reported.
const LOCKED_REPORT: Duration = Duration::from_secs(5);

/// The most locked events that one cycle looks at again.
const MOST_LOOKS: usize = 200;

/// The interval at which a probe asks for the highest id of the table.
const HIGHEST_INTERVAL: Duration = Duration::from_secs(1);

/// The longest probe whose snapshot is taken over in memory. After a longer one the next claim stores how far it came.
const SLOW_PROBE: Duration = Duration::from_millis(5);

impl WorkerContext<'_> {
    /// Runs one cycle. After an error the connection must be dropped, unless the error is [`CycleError::Unacknowledged`].
    ///
    /// With `goes_on` a cycle that settled rows has also begun the transaction of the next cycle. The next cycle on the same lanes takes
    /// over that transaction. Any other use of the connection needs [`WorkerContext::rollback_begun`] first.
    pub(crate) async fn cycle(
        &mut self,
        assignment: &mut LaneAssignment,
        probe_first: bool,
        goes_on: bool,
    ) -> Result<Cycle, CycleError> {
        if assignment.pauses.has_ended(Instant::now()) {
            assignment.generation = None;
        }
        self.report_in_doubt(assignment);
        // A probe looks only at the lanes that the worker has. Lanes that were not free must not wait until there is an event in these.
        let keeps_lanes = assignment.waits_for_acks(patience(self.shared.options.relay.publish_timeout));
        // To write lanes that lag ends the transaction that keeps them locked.
        let lags = !keeps_lanes && assignment.owned.as_ref().is_some_and(|owned| owned.lags_long(Instant::now()));
        let may_probe = (probe_first && !lags || assignment.pauses.blocks_everything())
            && !assignment.widens(Instant::now())
            && !assignment.in_doubt.iter().any(|records| records.is_due(self.shared.options.relay.publish_timeout));
        if may_probe && (self.begun.is_none() || keeps_lanes) && !self.probe(assignment).await? {
            return Ok(Cycle::Idle);
        }
        let done = self.cycle_in_transaction(assignment, goes_on).await;
        match &done {
            Ok(_) => {}
            // Its transaction has committed the acknowledged rows and left the lanes' rows as they were.
            Err(CycleError::Unacknowledged { .. }) if !self.shared.options.is_exactly_once() => {}
            Err(_) => self.invalidate(assignment),
        }
        done
    }

    /// Returns true when there may be work. Takes no locks and writes nothing. A transaction that keeps lanes locked stays open.
    async fn probe(&mut self, assignment: &mut LaneAssignment) -> Result<bool, CycleError> {
        let Some(owned) = &mut assignment.owned else { return Ok(true) };
        let (asked, upto) = (Instant::now(), owned.upto());
        let generation = self.shared.transaction.generation();
        // A transaction that is open has made the settings.
        let settings_hold = self.shared.options.database.prepared_statements || self.begun.is_some();
        let sql = &self.shared.claim;
        // Ids that were not allocated from the sequence may be far above its last value.
        let asks = owned.highest.1.is_none_or(|asked| asked.elapsed() >= HIGHEST_INTERVAL);
        let probe = sql.probe(self.conn, generation, &owned.progress, owned.lanes, upto, asks, settings_hold);
        let mut probed = within(probe).await?;
        if asks {
            owned.highest = (probed.highest.unwrap_or(0), Some(asked));
        }
        probed.last_allocated = probed.last_allocated.max(owned.highest.0);
        let has_changed = assignment.generation != Some(probed.generation);
        if assignment.pauses.blocks_everything() && !has_changed {
            return Ok(false);
        }
        let is_due = probed.is_due;
        if is_due {
            assignment.due_checked = None;
        }
        // If ids have begun again, a claim has to record this.
        let is_behind = probed.last_allocated > upto || probed.last_allocated < owned.progress.scanned_through;
        let is_calm = !probed.has_work && !is_behind && owned.progress.sweep.is_none();
        // A snapshot does not list the transaction that takes it, which may still make rows pending.
        if is_calm && self.begun.is_none() && asked.elapsed() < SLOW_PROBE {
            // No row came late: every event at or below `scanned_through` that this snapshot sees is settled or held.
            owned.progress.snapshot = probed.snapshot;
        }
        let sweeps = owned.progress.sweep.is_some();
        let now = Instant::now();
        self.refresh_causes(assignment, now);
        let releases = assignment.holds.releasing_from().is_some() || has_look_due(assignment, now);
        Ok(probed.has_work || is_due || is_behind || has_changed || sweeps || releases)
    }

    async fn cycle_in_transaction(
        &mut self,
        assignment: &mut LaneAssignment,
        goes_on: bool,
    ) -> Result<Cycle, CycleError> {
        let began = Instant::now();
        if !self.own(assignment).await? {
            return Ok(Cycle::Idle);
        }
        if self.settle_in_doubt(assignment).await? {
            return Ok(Cycle::Worked);
        }
        if assignment.pauses.blocks_everything() {
            within(session::commit(self.conn)).await?;
            return Ok(Cycle::Idle);
        }
        self.look_at_locked(assignment).await?;
        self.refresh_causes(assignment, Instant::now());
        let mut batch = self.claim(assignment).await?;
        let cut = self.cut(&mut batch)?;
        self.record_progress(assignment, &batch);
        if batch.rows.is_empty() && batch.skipped.is_empty() {
            let lanes = lanes_of(assignment);
            let settled = self.settle_nothing(assignment, &batch, began).await;
            settled.map_err(|error| self.not_marked(error, lanes))?;
            let went_on = self.went_on(assignment, &batch);
            assignment.walks_next = !assignment.walks_next;
            return Ok(if went_on { Cycle::Worked } else { Cycle::Idle });
        }
        self.shared.record_claim(batch.rows.len(), batch.is_full);
        self.shared.stage_times.add(Stage::Claim, began);
        let has_moved = self.publish(assignment, &batch, cut, goes_on).await?;
        assignment.walks_next = !assignment.walks_next;
        Ok(if has_moved { Cycle::Worked } else { Cycle::Idle })
    }

    /// Returns true when an empty claim has come further and there is more to look at.
    fn went_on(&self, assignment: &LaneAssignment, batch: &Batch) -> bool {
        let Some(owned) = &assignment.owned else { return false };
        match &batch.extent {
            Extent::Claim(claim) => {
                owned.progress.sweep.is_some()
                    || claim.last_allocated > owned.progress.scanned_through && claim.upto < claim.last_allocated
                    || assignment.holds.releasing_from().is_some()
            }
            Extent::Sweep { .. } | Extent::Walk { .. } => true,
            Extent::Due => false,
        }
    }

    /// Checks whether events that another session had locked are free by now. Marks the holds of free events as releasing.
    async fn look_at_locked(&mut self, assignment: &mut LaneAssignment) -> Result<(), CycleError> {
        let now = Instant::now();
        let due: Vec<(u32, i64)> = assignment
            .holds
            .iter()
            .filter(|(_, held)| held.hold.kind == HoldKind::Locked && !held.is_releasing)
            .filter(|(_, held)| held.look.is_none_or(|(at, _)| at <= now))
            .filter_map(|(index, held)| Some((index, held.hold.head_id?)))
            .take(MOST_LOOKS)
            .collect();
        if due.is_empty() {
            self.report_locked(assignment);
            return Ok(());
        }
        let Some(owned) = &assignment.owned else { return Ok(()) };
        let (lanes, persistent) = (owned.lanes, self.shared.options.database.prepared_statements);
        let ids: Vec<i64> = due.iter().map(|(_, id)| *id).collect();
        let free = within(self.shared.claim.lockable(self.conn, &ids, persistent)).await?;
        // An event that is settled, deleted or in another lane no longer needs its hold.
        let pending = within(self.shared.claim.skipped(self.conn, &ids, lanes, persistent)).await?;
        let is_locked = |id: &i64| !free.contains(id) && pending.iter().any(|row| row.id == *id);
        for (_, held) in assignment.holds.iter_mut().filter(|(index, _)| due.iter().any(|(due, _)| due == index)) {
            match held.hold.head_id.filter(|id| is_locked(id)) {
                Some(_) => held.look_later(now),
                None => held.is_releasing = true,
            }
        }
        self.report_locked(assignment);
        Ok(())
    }

    fn report_locked(&self, assignment: &mut LaneAssignment) {
        let what = lock_in(assignment.range);
        let first = assignment
            .holds
            .iter()
            .filter(|(_, held)| held.hold.kind == HoldKind::Locked && !held.is_releasing)
            .filter_map(|(_, held)| held.hold.head_id)
            .min();
        match (first, assignment.locked) {
            (Some(id), Some((known, since))) if id == known => {
                let why = format!("event {id} is locked by another session, its entity waits");
                if since.elapsed() >= LOCKED_REPORT && self.shared.obstacles.block(self.component(), &what, &why) {
                    tracing::warn!(
                        code = %Code::EventLocked,
                        event.sequence = id,
                        consequence = "its entity waits",
                        next_step = "`outbox-relay status` names the session: end its transaction",
                        "another session has locked a pending event"
                    );
                }
            }
            (Some(id), _) => assignment.locked = Some((id, Instant::now())),
            (None, Some((id, _))) => {
                assignment.locked = None;
                if self.shared.obstacles.unblock(self.component(), &what) {
                    tracing::info!(
                        notice = %Notice::Resolved,
                        code = %Code::EventLocked,
                        event.sequence = id,
                        "the event is no longer locked"
                    );
                }
            }
            (None, None) => {}
        }
    }

    fn record_progress(&self, assignment: &LaneAssignment, batch: &Batch) {
        let (Some(owned), Extent::Claim(claim)) = (&assignment.owned, &batch.extent) else { return };
        let behind = (claim.last_allocated - owned.progress.scanned_through).max(0);
        self.shared.options.telemetry.metrics.set_unscanned(self.worker, behind);
    }

    /// Sends the batch, awaits the acknowledgements, settles and commits. Returns false when all of the batch has to wait.
    async fn publish(
        &mut self,
        assignment: &mut LaneAssignment,
        batch: &Batch,
        cut: Option<Option<i64>>,
        goes_on: bool,
    ) -> Result<bool, CycleError> {
        let (options, stage_times) = (&self.shared.options, &self.shared.stage_times);
        let lanes = lanes_of(assignment);
        let began = Instant::now();
        let plan = Plan::new(&batch.rows, options)?;
        let closed = self.closed_topics(assignment, &plan.topics).await;
        let too_few = self.topics_with_too_few_partitions(assignment, &plan, &closed).await;
        self.rehearse(lanes, &batch.rows).await?;
        let mut sent = self.send(assignment, batch, plan, &closed, &too_few)?;
        sent.cut = sent.cut.or(cut);
        let began = stage_times.add(Stage::Send, began);
        let waited = if sent.records == 0 { Waited::Settled } else { self.acks(assignment).await };
        let mut reports = self.producer.as_ref().map(|producer| producer.deliveries().outcomes()).unwrap_or_default();
        if waited == Waited::Partly && options.is_exactly_once() {
            if self.leave_transaction(assignment, batch, &sent, &reports).await? {
                return Ok(true);
            }
        } else if waited == Waited::Partly {
            self.set_aside(assignment, batch, &mut sent, &reports)?;
        }
        let mut missing = self.classify_deliveries(assignment, batch, &mut sent, &reports, waited)?;
        if options.is_exactly_once() {
            missing = self.finish_transaction(assignment, batch, &sent, missing).await;
            if missing.is_some() {
                // The batch is rolled back, or its result is unknown until the progress is read.
                reports.clear();
            }
        }
        let began = stage_times.add(Stage::Acks, began);
        batch_metrics::refused(&options.telemetry.metrics, &sent);
        batch_metrics::acknowledged(&options.telemetry.metrics, &batch.rows, &sent, &reports);
        let settled = match missing {
            None => self.settle(assignment, batch, &sent, &reports, goes_on).await,
            Some(_) => {
                // Records that this producer still holds must not be sent behind records of the next producer.
                if let Some(producer) = self.producer.take() {
                    producer.retire();
                }
                self.settle_partly(assignment, batch, &sent, &reports).await.map(|()| true)
            }
        };
        if settled.is_err()
            && let Some(error @ CycleError::Transaction(_)) = missing
        {
            // The worker that fenced this one has its lanes, because this session has ended. Report the fencing as the cause.
            return Err(error);
        }
        let has_moved = settled.map_err(|error| self.not_marked(error, lanes))?;
        stage_times.add(Stage::Settle, began);
        self.log_reopened(&sent, &reports);
        self.log_open_partitions(assignment, &sent, &reports);
        match missing {
            Some(error) => Err(error),
            None => {
                self.budget.is_unproved = false;
                if self.shared.obstacles.unblock(self.component(), MARKS) {
                    tracing::info!(
                        notice = %Notice::Resolved,
                        code = %Code::MarksNotMade,
                        "published events can be marked again"
                    );
                }
                if sent.records > 0 && self.shared.obstacles.unblock(self.component(), &acks_of(self.worker)) {
                    tracing::info!(notice = %Notice::RecordsAcknowledged, "records are acknowledged again");
                }
                self.budget.grow(options.relay.batch_size);
                Ok(has_moved)
            }
        }
    }

    fn send(
        &mut self,
        assignment: &mut LaneAssignment,
        batch: &Batch,
        plan: Plan<'_>,
        closed: &HashMap<String, String>,
        too_few: &HashMap<String, i32>,
    ) -> Result<Sent, CycleError> {
        let options = &self.shared.options;
        let producer = self.producer.as_mut().ok_or(BrokerDown)?;
        if options.is_exactly_once() {
            producer.begin_transaction().map_err(TransactionError::from)?;
        }
        let avoided = assignment.in_doubt.iter().flat_map(InDoubt::partitions).collect();
        let dead = HashSet::new();
        Ok(Decider { assignment, producer, options, closed, too_few, dead, avoided }.decide(batch, plan)?)
    }

    /// Tries the marks of a batch in a savepoint before it is published. If Postgres accepts a claim but rejects the marks (disk full, a
    /// failing trigger, a policy), every retry would publish the same events again. So the first batch of a session does this, and each
    /// batch for a while after such a failure. In exactly-once mode the lanes' progress keeps events from being published again.
    async fn rehearse(&mut self, lanes: crate::lane::LaneRange, rows: &[ClaimedRow]) -> Result<(), CycleError> {
        let is_called_for = self.budget.is_unproved || self.shared.marks_refused.happened_within(REHEARSED);
        if self.shared.options.is_exactly_once() || !is_called_for || rows.is_empty() {
            return Ok(());
        }
        let ctids = rows.iter().map(ClaimedRow::ctid).collect::<Result<Vec<_>, _>>()?;
        let rehearsed = within(self.shared.transaction.rehearse_mark(self.conn, &ctids)).await;
        rehearsed.map_err(|error| self.not_marked(error, lanes))
    }

    pub(crate) fn not_marked(&self, error: SettleError, lanes: crate::lane::LaneRange) -> CycleError {
        match error {
            SettleError::Database(error) => {
                // An error that ends the session (57P..) says nothing about the marks.
                if error.as_database_error().and_then(DatabaseError::code).is_some_and(|code| !code.starts_with("57P"))
                {
                    self.shared.marks_refused.record();
                }
                CycleError::Database(error)
            }
            source => {
                self.shared.marks_refused.record();
                CycleError::NotOwned { lanes, source }
            }
        }
    }

    /// Commits the transaction of Kafka if all records are acknowledged. Only this commit publishes the batch. Returns the error, if any.
    async fn finish_transaction(
        &mut self,
        assignment: &LaneAssignment,
        batch: &Batch,
        sent: &Sent,
        missing: Option<CycleError>,
    ) -> Option<CycleError> {
        let fatal = self.producer.as_ref().and_then(KafkaProducer::fatal);
        match missing {
            Some(_) if fatal.is_some_and(is_fenced) => Some(TransactionError::Fenced.into()),
            None if sent.records > 0 => self.seal(assignment, batch, sent).await.err(),
            missing => missing,
        }
    }

    async fn acks(&self, assignment: &LaneAssignment) -> Waited {
        let Some(producer) = self.producer.as_ref() else {
            return Waited::BrokerDown;
        };
        // A cluster that does not answer the watch may acknowledge records all the same. Records dropped now would be sent twice.
        tokio::select! {
            biased;
            () = producer.deliveries().all_settled() => Waited::Settled,
            () = self.until_quiet(assignment, producer.deliveries()) => Waited::Partly,
            () = tokio::time::sleep(self.shared.options.relay.publish_timeout) => Waited::TimedOut,
        }
    }
}

/// Returns the name in [the obstacles](crate::relay::obstacles::Obstacles) of an event of these lanes that another session has locked.
pub(crate) fn lock_in(lanes: crate::lane::LaneRange) -> String {
    format!("lanes {lanes}")
}

fn has_look_due(assignment: &LaneAssignment, now: Instant) -> bool {
    assignment.holds.iter().any(|(_, held)| {
        held.hold.kind == HoldKind::Locked && !held.is_releasing && held.look.is_none_or(|(at, _)| at <= now)
    })
}
