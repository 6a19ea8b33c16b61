//! Runs the loop of a worker: waits until the brokers answer, opens a connection and a producer, and runs cycles on the worker's lanes.
//!
//! - [`context`]: the parts of a worker that the steps of a cycle share
//! - [`lane_assignment`]: what a worker remembers of its lanes
//! - [`cycle`]: one serial cycle
//! - [`lanes`]: the first part of a cycle: locks lanes, verifies them, takes them over
//! - [`claim`]: selects the rows, and how far the progress may move with them
//! - [`outcome`]: decides about each row
//! - [`set_aside`]: sets records aside that are not acknowledged, so that the rest of their batch need not wait
//! - [`in_doubt`]: the records that are set aside
//! - [`settle`]: the last part of a cycle: marks, progress, holds
//! - [`pauses`]: applies what operators have paused
//! - [`topics`]: asks about topics, holds their events, releases them
//! - [`unacknowledged`]: counts the records of a batch that were not acknowledged, by the reason

pub(crate) mod claim;
pub(crate) mod context;
pub(crate) mod cycle;
pub(crate) mod in_doubt;
pub(crate) mod lane_assignment;
mod lanes;
pub(crate) mod outcome;
pub(crate) mod pauses;
pub(crate) mod set_aside;
pub(crate) mod settle;
pub(crate) mod topics;
mod unacknowledged;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use sqlx::PgConnection;
use tokio::sync::watch;

use crate::fault::{self, Class, Fault};
use crate::lane::LaneRange;
use crate::observe::health::Pulse;
use crate::relay::exactly_once::ownership::{Ownership, describe_transaction, fault_of, transactions_of};
use crate::relay::health::outage::{Component, Server};
use crate::relay::pace::{self, Pace};
use crate::relay::shared::Shared;
use crate::sink::producer::KafkaProducer;
use crate::sink::transactions::TransactionError;
use crate::store::session::Begun;
use crate::store::session::{DATABASE_TIMEOUT, within};
use context::{Budget, Cycle, CycleError, MARKS, WorkerContext, acks_of};
use cycle::lock_in;
use event_outbox::backoff::Backoff;
use event_outbox::code::Code;
use event_outbox::notice::Notice;
use in_doubt::{InDoubt, partition_obstacle};
use lane_assignment::LaneAssignment;
use set_aside::LOOK_AGAIN;

/// The longest time that taking a transactional id may take. Transactions left open under that id have to be rolled back first.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(20);

/// The interval at which a worker looks at records that are set aside while no broker answers.
const IN_DOUBT_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    conn: Option<PgConnection>,
    /// A transaction that was already begun on the connection, and its lanes.
    begun: Option<(Begun, LaneRange)>,
    producer: Option<KafkaProducer>,
    assignment: Option<LaneAssignment>,
    budget: Budget,
    ownership: Ownership,
    pace: Pace,
    backoff: Backoff,
}

/// Runs cycles until `stop` becomes true. A cycle is never cut short: events in flight are settled first.
pub(crate) async fn run(shared: Arc<Shared>, index: usize, mut stop: watch::Receiver<bool>) {
    let mut up = shared.broker.state();
    let mut worker_assignment = shared.worker_assignment.subscribe();
    let mut sleep = shared.wake_up.state();
    let mut worker = Worker {
        index,
        conn: None,
        begun: None,
        producer: None,
        assignment: None,
        budget: Budget::new(shared.options.relay.batch_size),
        ownership: Ownership::new(shared.progress.name(), shared.id, index),
        pace: Pace::new(),
        backoff: pace::backoff(),
        shared,
    };
    let pulse = worker.pulse();
    worker.shared.options.telemetry.metrics.set_in_doubt(index, 0);
    let (mut idle, mut woken) = (true, false);
    while !*stop.borrow() {
        pulse.beat();
        if !*up.borrow_and_update() && worker.has_in_doubt() {
            // The brokers may acknowledge what they have got when they return. Records dropped now would be sent twice.
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                _ = up.wait_for(|up| *up) => {}
                () = tokio::time::sleep(IN_DOUBT_PAUSE) => {}
            }
            if let Err(error) = worker.settle_in_doubt(false).await {
                worker.failed(error);
            }
            continue;
        }
        if !*up.borrow_and_update() {
            // Without brokers the worker keeps no connection and no transaction, and does not poll. The broker watch signals when to go on.
            worker.release_all();
            pulse.rest();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                _ = up.wait_for(|up| *up) => continue,
            }
        }
        // A worker may sleep only if it has looked since the relay fell asleep.
        let asleep = *sleep.borrow_and_update();
        // Whoever wakes the relay has committed an event. If all lanes are this worker's, a probe would only find that out again.
        let probe_first = idle && !(std::mem::take(&mut woken) && worker.owns_all_lanes());
        let done = worker.run_cycle(probe_first).await;
        if done.is_ok() {
            worker.shared.outages.end(Server::Postgres, Component::Worker(index));
        }
        let pause = match done {
            Ok(Cycle::Worked) => {
                worker.shared.wake_up.worked();
                worker.pace.found();
                worker.backoff.reset();
                idle = false;
                continue;
            }
            Ok(Cycle::Idle) => {
                idle = true;
                let pause = worker.pace.empty(worker.shared.options.relay.live.get().poll_interval);
                asleep.pause.filter(|_| worker.may_sleep()).unwrap_or(pause)
            }
            Err(error) => {
                worker.failed(error);
                worker.backoff.pause()
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            _ = worker_assignment.changed() => {}
            _ = sleep.changed() => woken = sleep.borrow().pause.is_none(),
            () = tokio::time::sleep(pause) => {}
        }
    }
    let patience = worker.patience().min(worker.shared.options.relay.shutdown_timeout / 4);
    worker.release_lanes(patience).await;
    worker.release_all();
}

impl Worker {
    /// Returns the worker's pulse, with the longest time between two beats. Every step of a cycle has a time limit, and the first step that
    /// exceeds its limit ends the cycle. The longest cycle that succeeds waits for the brokers twice.
    fn pulse(&self) -> Pulse {
        let options = &self.shared.options;
        let longest = 2 * options.relay.publish_timeout + 4 * DATABASE_TIMEOUT + options.database.connect_timeout;
        options.telemetry.health.pulse(format!("worker {}", self.index), longest)
    }

    /// Drops the connection. This ends its session, and with it any transaction.
    fn disconnect(&mut self) {
        self.conn = None;
        self.begun = None;
    }

    fn release_all(&mut self) {
        self.disconnect();
        self.end_assignment();
        self.drop_producer();
    }

    /// Drops the producer and forgets which lanes are settled. From here on, only the lanes' progress says what this producer has
    /// published.
    fn drop_producer(&mut self) {
        self.ownership.invalidate();
        if let Some(producer) = self.producer.take() {
            producer.retire();
        }
    }

    /// Releases all lanes, after waiting at most `patience` for records in doubt. If this fails, the worker that takes the lanes fences this
    /// one, and no harm is done.
    async fn release_lanes(&mut self, patience: Duration) {
        let shared = Arc::clone(&self.shared);
        if self.settle_before_release(patience).await.is_err() {
            self.disconnect();
        }
        let Ok(mut context) = self.context(&shared) else { return };
        let released = async {
            context.rollback_begun(None).await?;
            context.release_lanes(None).await
        };
        if released.await.is_err() {
            self.disconnect();
        }
    }

    fn owns_all_lanes(&self) -> bool {
        let owned = self.assignment.as_ref().and_then(|assignment| assignment.owned.as_ref());
        owned.is_some_and(|owned| owned.lanes.len() == usize::from(self.shared.lanes))
    }

    /// Returns true if nothing but a writer can bring work to the worker's lanes.
    fn may_sleep(&self) -> bool {
        self.assignment.as_ref().is_none_or(LaneAssignment::is_quiet)
    }

    fn has_in_doubt(&self) -> bool {
        let is_in_doubt = |records: &InDoubt| !records.is_rolled_back();
        self.assignment.as_ref().is_some_and(|assignment| assignment.in_doubt.iter().any(is_in_doubt))
    }

    /// Returns how long records that were set aside are waited for before their lanes are given away.
    fn patience(&self) -> Duration {
        set_aside::patience(self.shared.options.relay.publish_timeout)
    }

    /// Waits for records that were set aside and may soon be acknowledged, and marks the acknowledged ones. The lanes stay locked meanwhile:
    /// their next owner would send the records again.
    async fn settle_before_release(&mut self, patience: Duration) -> Result<(), CycleError> {
        if self.waits_for_acks(patience) {
            self.keep_lanes().await?;
        }
        while self.waits_for_acks(patience) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.settle_in_doubt(true).await
    }

    fn waits_for_acks(&self, patience: Duration) -> bool {
        self.assignment.as_ref().is_some_and(|assignment| assignment.waits_for_acks(patience))
    }

    /// Locks the lanes until the next cycle, or until they are released.
    async fn keep_lanes(&mut self) -> Result<(), CycleError> {
        let shared = Arc::clone(&self.shared);
        let Some(assignment) = self.assignment.take() else { return Ok(()) };
        let kept = match self.context(&shared) {
            Ok(mut context) => context.keep_lanes(&assignment).await,
            Err(error) => Err(error),
        };
        self.assignment = Some(assignment);
        kept
    }

    /// Marks the acknowledged ones of the records that were set aside: of those that are due, or of all before lanes are given back.
    async fn settle_in_doubt(&mut self, all: bool) -> Result<(), CycleError> {
        if !self.has_in_doubt() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let Some(mut assignment) = self.assignment.take() else { return Ok(()) };
        let settled = async {
            let mut context = self.context(&shared)?;
            // Lanes that are about to be given back may be locked already.
            let kept = assignment.owned.as_ref().filter(|_| all).map(|owned| owned.lanes);
            context.rollback_begun(kept).await?;
            context.settle_all_in_doubt(&mut assignment, all).await
        }
        .await;
        if settled.is_err() {
            assignment.invalidate();
            shared.options.telemetry.metrics.set_in_doubt(self.index, 0);
        }
        self.assignment = Some(assignment);
        settled
    }

    async fn run_cycle(&mut self, probe_first: bool) -> Result<Cycle, CycleError> {
        let shared = Arc::clone(&self.shared);
        if shared.share(self.index).is_none() && shared.has_few_connections() {
            // Another worker or the heartbeat needs the connection.
            self.release_lanes(Duration::ZERO).await;
            self.release_all();
            return Ok(Cycle::Idle);
        }
        self.connect().await?;
        let range = self.assignment.as_ref().map(|assignment| assignment.range);
        if range != self.shared.share(self.index) {
            self.settle_before_release(self.patience()).await?;
        }
        let share = self.share();
        self.context(&shared)?.rollback_begun(share).await?;
        self.context(&shared)?.release_lanes(share).await?;
        let mut assignment = self.assignment.take();
        let done = match &mut assignment {
            Some(assignment) => self.context(&shared)?.cycle(assignment, probe_first, true).await,
            None => Ok(Cycle::Idle),
        };
        let owned = assignment.as_ref().and_then(|assignment| assignment.owned.as_ref());
        shared.set_owned(self.index, owned.map(|owned| owned.lanes));
        self.assignment = assignment;
        if matches!(done, Ok(Cycle::Idle)) && self.waits_for_acks(self.patience()) {
            // Another worker may learn first that the lanes are its own now.
            self.keep_lanes().await?;
        }
        done
    }

    /// Returns the lanes that this worker gets. Drops what is remembered of other lanes.
    fn share(&mut self) -> Option<LaneRange> {
        let share = self.shared.share(self.index);
        if self.assignment.as_ref().map(|assignment| assignment.range) != share {
            self.end_assignment();
            self.assignment = share.map(|range| LaneAssignment::new(range, Instant::now()));
            if share.is_none() {
                // The present owner of the lanes reports its own obstacles.
                for what in [&acks_of(self.index), &transactions_of(self.index), MARKS] {
                    self.shared.obstacles.unblock(self.component(), what);
                }
            }
            let lanes = share.map_or_else(|| "none".to_owned(), |range| range.to_string());
            tracing::debug!(worker = self.index, lanes, "lanes are assigned");
        }
        share
    }

    fn component(&self) -> Component {
        Component::Worker(self.index)
    }

    fn end_assignment(&mut self) {
        if let Some(assignment) = self.assignment.take() {
            // The next owner of the lanes reports its own obstacles.
            for partition in &assignment.unwritable {
                self.shared.obstacles.unblock(self.component(), &partition_obstacle(partition));
            }
            self.shared.obstacles.unblock(self.component(), &lock_in(assignment.range));
            self.shared.set_owned(self.index, None);
            self.shared.options.telemetry.metrics.set_in_doubt(self.index, 0);
        }
    }

    fn context<'w>(&'w mut self, shared: &'w Arc<Shared>) -> Result<WorkerContext<'w>, CycleError> {
        let conn = self.conn.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        let Self { index: worker, producer, begun, budget, ownership, .. } = self;
        Ok(WorkerContext { worker: *worker, shared, conn, producer, begun, budget, ownership })
    }

    async fn connect(&mut self) -> Result<(), CycleError> {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        if self.producer.as_ref().is_some_and(KafkaProducer::is_outdated) {
            self.drop_producer();
            if options.is_exactly_once() {
                // A producer must take its transactional id before the worker reads its lanes: see `exactly_once`.
                self.disconnect();
            }
        }
        if self.conn.is_none() {
            let mut conn = options.connect(&options.application_name()).await?;
            within(shared.transaction.prepare(&mut conn)).await?;
            self.conn = Some(conn);
            self.begun = None;
            self.budget.is_unproved = true;
            self.end_assignment();
        }
        if self.producer.is_none() {
            let made = match shared.options.is_exactly_once() {
                true => KafkaProducer::transactional(
                    &options.kafka,
                    self.ownership.transactional_id(),
                    shared.options.longest_transaction(),
                    &shared.broker.suspicions(),
                    &shared.topics,
                ),
                false => KafkaProducer::new(&options.kafka, &shared.broker.suspicions(), &shared.topics),
            };
            match made {
                Ok(producer) if shared.options.is_exactly_once() => self.init_transactions(producer).await?,
                Ok(producer) => self.producer = Some(producer),
                // The same settings worked for the client of the broker watch, so threads or memory are missing.
                Err(error) => {
                    let fault = fault::classify_kafka(RDKafkaErrorCode::CriticalSystemResource);
                    let fault = Fault { class: Class::ActionRequired, ..fault };
                    let reason = error.to_string();
                    return Err(CycleError::Unacknowledged { unacknowledged: 0, records: 0, reason, fault });
                }
            }
        }
        Ok(())
    }

    /// Takes the transactional id with `producer`. This must come before any transaction of Postgres in which the worker reads its lanes:
    /// see `exactly_once`.
    async fn init_transactions(&mut self, producer: KafkaProducer) -> Result<(), CycleError> {
        self.ownership.invalidate();
        let ready = async {
            self.shared.progress.prepare().await?;
            producer.init_transactions(TRANSACTION_TIMEOUT).await
        };
        if let Err(error) = ready.await {
            producer.retire();
            return Err(error.into());
        }
        self.producer = Some(producer);
        Ok(())
    }

    fn transaction_failed(&mut self, error: &TransactionError) {
        let fault = fault_of(error);
        let (code, next_step) = (fault.code, fault.next_step);
        let reason = describe_transaction(error);
        if matches!(error, TransactionError::Fenced) {
            tracing::warn!(
                code = %Code::ProducerFenced,
                worker = self.index,
                reason = "the worker did not answer in time",
                consequence = "its batch in flight is rolled back, and the worker goes on",
                next_step,
                "another relay took over this worker's lanes"
            );
            return;
        }
        if fault.class == Class::Outage {
            self.shared.broker.suspicions().raise(&reason);
        }
        if self.shared.obstacles.block_by(self.component(), &transactions_of(self.index), &reason, fault) {
            tracing::warn!(
                code = %code,
                notice = %Notice::TransactionsUnusable,
                worker = self.index,
                reason,
                consequence = "the events wait",
                next_step,
                "events cannot be published in transactions"
            );
        }
    }

    /// Logs the error where necessary, and drops everything that can no longer be trusted.
    fn failed(&mut self, error: CycleError) {
        self.shared.scale_out();
        if self.shared.options.is_exactly_once() {
            self.drop_producer();
        }
        // Failures of topics and of rows are counted where they are logged.
        if let class @ (Class::Outage | Class::ActionRequired) = error.class() {
            self.shared.options.telemetry.metrics.failed(class, 1);
        }
        match error {
            CycleError::Database(error) => {
                self.disconnect();
                self.shared.connection_failed(&error);
                self.shared.outages.database(self.component(), &error);
            }
            CycleError::NotOwned { lanes, source } => {
                self.disconnect();
                let reason = source.to_string();
                if self.shared.obstacles.block(self.component(), MARKS, &reason) {
                    tracing::error!(
                        code = %Code::MarksNotMade,
                        worker = self.index,
                        %lanes,
                        error = reason,
                        consequence = "nothing is published until the marks succeed in a savepoint",
                        next_step = "look for a trigger, a rule or a row level security policy that keeps rows of the outbox from being \
                                     updated; `outbox-relay check` names them",
                        "published events cannot be marked"
                    );
                }
            }
            CycleError::BrokerDown(_) => self.disconnect(),
            CycleError::Transaction(error) => {
                self.disconnect();
                self.transaction_failed(&error);
            }
            CycleError::Unacknowledged { unacknowledged, records, reason, fault } => match fault.class {
                Class::Destination | Class::Row => {
                    tracing::debug!(worker = self.index, unacknowledged, records, reason, "records were refused");
                }
                Class::Outage | Class::ActionRequired => {
                    self.shared.broker.suspicions().raise(&reason);
                    tracing::debug!(worker = self.index, unacknowledged, records, reason, "records are sent again");
                    let (code, next_step) = (fault.code, fault.next_step);
                    if self.shared.obstacles.block_by(self.component(), &acks_of(self.index), &reason, fault) {
                        tracing::warn!(
                            code = %code,
                            notice = %Notice::RecordsUnacknowledged,
                            unacknowledged,
                            records,
                            reason,
                            consequence = "the records are sent again, in order, until they are acknowledged",
                            next_step,
                            "records were not acknowledged"
                        );
                    }
                }
            },
        }
    }
}
