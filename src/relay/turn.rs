//! One turn of a worker, strictly serial:
//!
//! probe -> begin (own lanes) -> claim -> recount -> send -> await acks -> settle -> commit
//!
//! Whatever fails on the way, the rows that were not marked are still pending, the producer that may hold them is dropped, and
//! the next turn claims and sends them again in order. Only rows the broker has acknowledged are ever marked.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use sqlx::error::DatabaseError;

use crate::event::OutboxId;
use crate::fault::{self, Class};
use crate::lane::LaneRange;
use crate::relay::batch::{Fate, Plan, Sent};
use crate::relay::claiming::{Claim, go_around};
use crate::relay::exactly_once::{Ownership, class_of};
use crate::relay::measure;
use crate::relay::settling::first_left;
use crate::relay::shared::Shared;
use crate::relay::stages::Stage;
use crate::relay::stint::Stint;
use crate::sink::broker::BrokerDown;
use crate::sink::producer::KafkaProducer;
use crate::sink::transactions::{TransactionError, is_fenced};
use crate::store::claim::{ClaimedRow, Probed, Reach};
use crate::store::holds::{Hold, waits_for_entity};
use crate::store::session::{self, Owned};
use crate::store::settle::SettleError;

/// How long the statements of one step may take before the connection counts as dead.
pub(crate) const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);

/// Lanes are taken once a turn, and again where another worker was quicker on a part of them.
const TAKES: usize = 3;

/// Marks are rehearsed for so long after some were refused: longer than between two tries.
const REHEARSED: Duration = Duration::from_secs(60);

/// What [`Shared::block`] calls records of a worker that are not acknowledged.
pub(crate) fn acks_of(worker: usize) -> String {
    format!("acks of worker {worker}")
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing to do.
    Idle,
    /// Rows were settled.
    Worked,
}

/// Why a turn did not end well. Nothing is lost: see the head of this file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    #[error("database")]
    Database(#[from] sqlx::Error),
    #[error("lanes {lanes}: {source}")]
    NotOwned { lanes: LaneRange, source: SettleError },
    #[error(transparent)]
    BrokerDown(#[from] BrokerDown),
    /// A transaction of Kafka came to nothing, or nobody knows what it came to: the lane's progress tells.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    /// Some records were not acknowledged; those that were are marked.
    #[error("{unacknowledged} of {records} records were not acknowledged: {reason}")]
    Unacknowledged { unacknowledged: usize, records: usize, reason: String, class: Class },
}

impl TurnError {
    /// What kind of failure it is.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Database(error) => fault::of_database(error).class,
            Self::NotOwned { .. } => Class::Operator,
            Self::BrokerDown(_) => Class::Outage,
            Self::Transaction(error) => class_of(error).0,
            Self::Unacknowledged { class, .. } => *class,
        }
    }
}

/// What a look at lanes saw.
#[derive(Debug)]
pub(super) struct Looked {
    /// The first pending event.
    pub(super) first: Option<i64>,
    /// A scheduled event is due.
    pub(super) due: bool,
    generation: i64,
    /// Nothing is pending, and there is nothing else to look at.
    pub(super) is_all: bool,
}

/// How the wait for acks ended.
pub(super) enum Waited {
    Settled,
    BrokerDown,
    TimedOut,
}

/// The parts of a worker that a turn works with.
pub(crate) struct Hands<'w> {
    pub(crate) worker: usize,
    pub(crate) shared: &'w Shared,
    pub(crate) conn: &'w mut PgConnection,
    pub(crate) producer: &'w mut Option<KafkaProducer>,
    /// A transaction that was begun with the last one's commit, on these lanes.
    pub(crate) begun: &'w mut Option<(Owned, LaneRange)>,
    /// Events of the next claim: the batch size, less after a refusal, to find out which record it was.
    pub(crate) limit: &'w mut usize,
    /// The lanes it publishes in transactions.
    pub(crate) ownership: &'w mut Ownership,
}

/// Bounds a step against the database: a connection into a black hole answers never.
pub(crate) async fn within<T, E: From<sqlx::Error>>(step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    match tokio::time::timeout(DATABASE_TIMEOUT, step).await {
        Ok(done) => done,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()),
    }
}

impl Hands<'_> {
    /// One turn. After an error the connection must be dropped, unless it is [`TurnError::Unacknowledged`].
    ///
    /// With `go_on` a turn that settled rows has begun the transaction of the next one, which the next turn on the same lanes takes
    /// over; whoever does something else with the connection has to [`Hands::let_go`] first.
    ///
    /// `is_share`: the lanes are the worker's share, not only looked after for another.
    pub(crate) async fn turn(
        &mut self,
        stint: &mut Stint,
        probe_first: bool,
        go_on: bool,
        is_share: bool,
    ) -> Result<Turn, TurnError> {
        if stint.gate.has_expired(Instant::now()) {
            stint.generation = None;
        }
        if (probe_first || stint.gate.is_shut()) && self.begun.is_none() && !self.probe(stint).await? {
            return Ok(Turn::Idle);
        }
        let turned = self.turn_in_transaction(stint, go_on, is_share).await;
        if turned.is_err() {
            stint.forget();
        }
        turned
    }

    /// Ends a transaction that was begun for another turn, unless it is on `lanes`.
    pub(crate) async fn let_go(&mut self, lanes: Option<LaneRange>) -> Result<(), TurnError> {
        if self.begun.as_ref().is_some_and(|(_, begun)| Some(*begun) != lanes) {
            within(session::rollback(self.conn)).await?;
            *self.begun = None;
        }
        Ok(())
    }

    /// What waits first in the stint's lanes, by what is known of them and a look at the rest, or at a slice of it. Without locks, without
    /// writes.
    pub(super) async fn look(&mut self, stint: &mut Stint) -> Result<Looked, TurnError> {
        let asked = Instant::now();
        let start = stint.frontier.start(asked);
        let upto = stint.frontier.upto(start);
        let reach = Reach { start, upto, lanes: stint.range, around: &[] };
        let settings_hold = self.shared.options.prepared_statements;
        let probed = within(self.shared.claim.probe(self.conn, reach, settings_hold)).await?;
        if upto.is_some() && probed.first.is_none() {
            stint.frontier.walked(asked.elapsed());
        }
        stint.frontier.observe(&probed.snapshot, probed.drawn, asked, Instant::now());
        stint.count_by(probed.generation);
        let went_back = stint.frontier.start(asked) < start;
        let is_all = match probed.first {
            _ if went_back => false,
            Some(first) => {
                stint.frontier.advance(first - 1, true);
                false
            }
            None => stint.frontier.found_nothing(start, upto, probed.drawn),
        };
        let Probed { first, due, generation, .. } = probed;
        Ok(Looked { first, due, generation, is_all })
    }

    /// True when there may be work.
    async fn probe(&mut self, stint: &mut Stint) -> Result<bool, TurnError> {
        let Looked { first, due, generation, is_all } = self.look(stint).await?;
        // Not learnt yet, or somebody has held rows here since: there may be topics to ask for.
        let holds_changed = stint.generation != Some(generation);
        if stint.gate.is_shut() && !holds_changed {
            return Ok(false);
        }
        if due {
            stint.due_checked = None;
        }
        let releases = stint.gate.lifted().is_some() || self.topics_are_due(stint);
        let sweeps = stint.frontier.sweep(Instant::now()).is_some();
        Ok(first.is_some() || due || !is_all || holds_changed || releases || sweeps)
    }

    async fn turn_in_transaction(&mut self, stint: &mut Stint, go_on: bool, is_share: bool) -> Result<Turn, TurnError> {
        let began = Instant::now();
        let Some((owned, lanes, reopened)) = self.own(stint, is_share).await? else {
            return Ok(Turn::Idle);
        };
        self.learn(stint, &owned, lanes, reopened).await?;
        if stint.gate.is_shut() {
            within(session::commit(self.conn)).await?;
            return Ok(Turn::Idle);
        }
        stint.frontier.observe(&owned.snapshot, owned.drawn, owned.asked, Instant::now());
        if lanes == stint.range {
            self.sweep(stint).await?;
        }
        let Some(claim) = self.claim(stint, lanes).await? else {
            // Nothing was changed but what was learnt, and that holds.
            within(session::commit(self.conn)).await?;
            return Ok(Turn::Worked);
        };
        if claim.rows.is_empty() {
            within(session::commit(self.conn)).await?;
            self.advance(stint, lanes, &claim, None);
            let came_on = claim.upto.is_some() && stint.frontier.start(Instant::now()) > claim.start;
            return Ok(if came_on { Turn::Worked } else { Turn::Idle });
        }
        self.shared.note_claim(claim.rows.len(), claim.full);
        self.shared.stages.add(Stage::Claim, began);
        let (settled, left) = self.publish(stint, lanes, &claim, go_on).await?;
        self.advance(stint, lanes, &claim, left);
        if claim.full && settled * 2 < claim.rows.len() {
            go_around(stint, &claim.skipped);
        }
        if settled > 0 {
            return Ok(Turn::Worked);
        }
        // All of it was left behind a locked row: there is no hurry.
        self.let_go(None).await?;
        Ok(Turn::Idle)
    }

    /// Owns lanes of which nothing is in doubt, in a transaction that is begun.
    async fn own(
        &mut self,
        stint: &mut Stint,
        is_share: bool,
    ) -> Result<Option<(Owned, LaneRange, Vec<String>)>, TurnError> {
        for _ in 0..TAKES {
            let (owned, reopened) = self.begin(stint).await?;
            match self.lanes_to_work_on(&owned, is_share).await? {
                None => {
                    within(session::rollback(self.conn)).await?;
                    return Ok(None);
                }
                Some((lanes, unsettled)) if unsettled.is_empty() => return Ok(Some((owned, lanes, reopened))),
                // Its transaction is over then.
                Some((lanes, unsettled)) => self.take(&owned, lanes, &unsettled).await?,
            }
        }
        Ok(None)
    }

    /// Takes over the transaction that is begun, or begins one; with the held topics that can be written again.
    async fn begin(&mut self, stint: &mut Stint) -> Result<(Owned, Vec<String>), TurnError> {
        if let Some((owned, _)) = self.begun.take() {
            return Ok((owned, Vec::new()));
        }
        // Asked before the transaction begins: inside, only acks are waited for, and topics the relay meets for the first time.
        let reopened = self.reopened_topics(stint).await?;
        Ok((within(self.shared.transaction.begin(self.conn, stint.range)).await?, reopened))
    }

    /// Reads what is held or paused in these lanes when that changed, and releases what waited for topics that can be written
    /// again and for pauses that are over.
    async fn learn(
        &mut self,
        stint: &mut Stint,
        owned: &Owned,
        lanes: LaneRange,
        reopened: Vec<String>,
    ) -> Result<(), TurnError> {
        let persistent = self.shared.options.prepared_statements;
        if stint.generation != Some(owned.generation) {
            let holds = within(self.shared.holds.learn(self.conn, stint.range, persistent)).await?;
            self.learn_pauses(stint, &holds).await?;
            stint.holds = holds.into_iter().filter(|hold| !hold.is_pause()).collect();
            stint.generation = Some(owned.generation);
        }
        stint.count_by(owned.generation);
        if lanes != stint.range {
            return Ok(());
        }
        // One topic at a time: the rows of the others wait no longer than these take.
        if let Some(topic) = reopened.into_iter().next() {
            let limit = self.shared.options.batch_size;
            let hold = Hold::Topic(topic.clone());
            let released = self.shared.holds.release(self.conn, lanes, &hold, limit, persistent);
            match within(released).await? {
                Some(highest) => stint.releasing = Some((topic, highest)),
                None => {
                    stint.releasing = None;
                    stint.holds.remove(&hold);
                }
            }
            stint.frontier.reset();
            self.bump_generation(stint, lanes).await?;
        }
        self.release_paused(stint, lanes).await
    }

    pub(super) async fn bump_generation(&mut self, stint: &mut Stint, lanes: LaneRange) -> Result<(), TurnError> {
        let persistent = self.shared.options.prepared_statements;
        let grown = within(self.shared.settle.bump_generation(self.conn, lanes, persistent)).await?;
        stint.grow(grown);
        Ok(())
    }

    /// Sends, awaits the acks, settles and commits; returns how many rows changed, and the first that was left for the next turn.
    async fn publish(
        &mut self,
        stint: &mut Stint,
        lanes: LaneRange,
        claim: &Claim,
        go_on: bool,
    ) -> Result<(usize, Option<OutboxId>), TurnError> {
        let (options, stages) = (&self.shared.options, &self.shared.stages);
        let began = Instant::now();
        let plan = Plan::new(&claim.rows, &claim.skipped, options)?;
        let closed = self.closed_topics(stint, &plan.topics).await?;
        self.rehearse(lanes, &claim.rows).await?;
        let Some(producer) = self.producer.as_mut() else {
            return Err(BrokerDown.into());
        };
        let exactly_once = self.shared.options.is_exactly_once();
        if exactly_once {
            producer.begin_transaction().map_err(TransactionError::from)?;
        }
        let mut sent = plan.send(producer, options, &stint.gate, &closed, &mut stint.holds);
        let began = stages.add(Stage::Send, began);
        let waited = self.acks().await;
        let mut outcomes = self.producer.as_ref().map(|producer| producer.deliveries().outcomes()).unwrap_or_default();
        let mut missing = self.judge(stint, claim, &mut sent, &outcomes, &waited)?;
        if exactly_once {
            missing = self.judge_transaction(claim, &sent, missing).await;
            if missing.is_some() {
                // Rolled back, or for the progress to tell.
                outcomes.clear();
            }
        }
        let began = stages.add(Stage::Acks, began);
        measure::acknowledged(&self.shared.options.vitals.metrics, &claim.rows, &sent, &outcomes);
        if missing.is_some() && sent.records > 1 {
            // Predecessors of a refused event may be among the unacknowledged: held now, it would hold them as well.
            for fate in &mut sent.fates {
                if matches!(fate, Fate::Held { reason, .. } if waits_for_entity(reason)) {
                    *fate = Fate::Left;
                }
            }
        }
        if missing.is_some()
            && let Some(producer) = self.producer.take()
        {
            // Nothing it still holds may be sent behind what the next producer sends.
            producer.retire();
        }
        let go_on = go_on && missing.is_none() && !self.topics_are_due(stint);
        let settled = self.settle(stint, lanes, claim, &sent, &outcomes, go_on).await;
        if settled.is_err()
            && let Some(error @ TurnError::Transaction(_)) = missing
        {
            // Whoever fenced this worker has its lanes, because its session has ended: this is the cause to tell.
            return Err(error);
        }
        let settled = settled.map_err(|error| self.not_marked(error, lanes))?;
        stages.add(Stage::Settle, began);
        self.tell_topics(&sent, &outcomes);
        match missing {
            Some(error) => Err(error),
            None => {
                if self.shared.unblock(&acks_of(self.worker)) {
                    tracing::info!("records are acknowledged again");
                }
                *self.limit = (*self.limit * 2).min(options.batch_size);
                Ok((settled, first_left(claim, &sent)?))
            }
        }
    }

    /// A database that takes a claim and refuses the marks (its disk is full, a trigger of somebody's raises) would have the same events
    /// published with each retry. So for a while after that it shows first that it would take them. In exactly-once mode the lanes' progress
    /// keeps the events from being published again.
    async fn rehearse(&mut self, lanes: LaneRange, rows: &[ClaimedRow]) -> Result<(), TurnError> {
        if self.shared.options.is_exactly_once() || !self.shared.marks_refused.was(REHEARSED) {
            return Ok(());
        }
        let places = rows.iter().map(ClaimedRow::ctid).collect::<Result<Vec<_>, _>>()?;
        let rehearsed = within(self.shared.transaction.rehearse_mark(self.conn, &places)).await;
        rehearsed.map_err(|error| self.not_marked(error, lanes))
    }

    fn not_marked(&self, error: SettleError, lanes: LaneRange) -> TurnError {
        match error {
            SettleError::Database(error) => {
                // Not when the session is gone: that says nothing of the marks.
                if error.as_database_error().and_then(DatabaseError::code).is_some_and(|code| !code.starts_with("57P"))
                {
                    self.shared.marks_refused.note();
                }
                TurnError::Database(error)
            }
            source => TurnError::NotOwned { lanes, source },
        }
    }

    /// The records are there; the batch is, when its transaction is committed.
    async fn judge_transaction(&mut self, claim: &Claim, sent: &Sent, missing: Option<TurnError>) -> Option<TurnError> {
        let fatal = self.producer.as_ref().and_then(KafkaProducer::fatal);
        match missing {
            Some(_) if fatal.is_some_and(is_fenced) => Some(TransactionError::Fenced.into()),
            None if sent.records > 0 => self.seal(claim, sent).await.err(),
            missing => missing,
        }
    }

    async fn acks(&self) -> Waited {
        let Some(producer) = self.producer.as_ref() else {
            return Waited::BrokerDown;
        };
        let mut up = self.shared.broker.state();
        tokio::select! {
            // Acks first: what has arrived is marked even when the broker went away with the last one.
            biased;
            () = producer.deliveries().all_settled() => Waited::Settled,
            _ = up.wait_for(|up| !*up) => Waited::BrokerDown,
            () = tokio::time::sleep(self.shared.options.publish_timeout) => Waited::TimedOut,
        }
    }
}
