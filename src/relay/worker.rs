//! The loop of a worker: wait until the broker is up, have a connection and a producer, take turns on its own lanes, and now and
//! then on lanes nobody else works on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::watch;

use crate::fault::Class;
use crate::lane::LaneRange;
use crate::observe::code::Code;
use crate::observe::health::Pulse;
use crate::relay::claiming::lock_in;
use crate::relay::exactly_once::{Ownership, class_of, describe_transaction, transactions_of};
use crate::relay::orphans::Orphans;
use crate::relay::outage::{Party, Side};
use crate::relay::pace::{Backoff, Pace};
use crate::relay::shared::Shared;
use crate::relay::stint::Stint;
use crate::relay::turn::{DATABASE_TIMEOUT, Hands, Turn, TurnError, acks_of, within};
use crate::sink::producer::KafkaProducer;
use crate::sink::transactions::TransactionError;
use crate::store::session::{self, Owned};

/// How long a transactional id may take to be had: what was left open under it has to be rolled back first.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    conn: Option<PgConnection>,
    /// A transaction that is begun on the connection, and its lanes.
    begun: Option<(Owned, LaneRange)>,
    producer: Option<KafkaProducer>,
    pub(super) stint: Option<Stint>,
    limit: usize,
    ownership: Ownership,
    pace: Pace,
    backoff: Backoff,
    /// `None`: the lanes have not been shared out yet.
    pub(super) orphans: Option<Orphans>,
}

/// Works until `stop` becomes true. A turn is never cut short: what is in flight is settled first.
pub(crate) async fn run(shared: Arc<Shared>, index: usize, mut stop: watch::Receiver<bool>) {
    let mut up = shared.broker.state();
    let mut standing = shared.standing.subscribe();
    let mut worker = Worker {
        index,
        conn: None,
        begun: None,
        producer: None,
        stint: None,
        limit: shared.options.batch_size,
        ownership: Ownership::new(shared.progress.name(), shared.id, index),
        pace: Pace::new(shared.options.poll_interval),
        backoff: Backoff::default(),
        orphans: None,
        shared,
    };
    let pulse = worker.pulse();
    let mut idle = true;
    while !*stop.borrow() {
        pulse.beat();
        if !*up.borrow_and_update() {
            // No connection, no transaction, no polling: the watch tells when to go on.
            worker.put_down();
            pulse.rest();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                _ = up.wait_for(|up| *up) => continue,
            }
        }
        let turned = worker.take_turn(idle).await;
        worker.note_floor();
        if turned.is_ok() {
            worker.shared.outages.end(Side::Postgres, Party::Worker(index)).await;
        }
        let pause = match turned {
            Ok(Turn::Worked) => {
                worker.pace.found();
                worker.backoff.reset();
                idle = false;
                continue;
            }
            Ok(Turn::Idle) => {
                idle = true;
                worker.pace.empty()
            }
            Err(error) => {
                worker.failed(error);
                worker.backoff.next()
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            _ = standing.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    worker.let_go_of_lanes(None).await;
    worker.put_down();
}

impl Worker {
    /// A round is a turn on its own lanes and perhaps one on others'. Every step of a turn has a bound, and the first that meets it ends
    /// the turn; two that wait for the brokers are the longest that works.
    fn pulse(&self) -> Pulse {
        let options = &self.shared.options;
        let longest = 2 * options.publish_timeout + 4 * DATABASE_TIMEOUT + options.connect_timeout;
        options.vitals.health.pulse(format!("worker {}", self.index), longest)
    }

    fn note_floor(&self) {
        let floor = match &self.stint {
            Some(stint) => Some(stint.frontier.start(Instant::now())),
            // What there was of it is gone with the connection.
            None => self.shared.share(self.index).map(|_| 0),
        };
        self.shared.set_floor(self.index, floor);
        // The lanes may be another worker's since it got that far.
        let reached = self.shared.reach(self.stint.as_ref().map_or(0, |stint| stint.reached));
        let lag = floor.filter(|_| self.stint.is_some()).map_or(0, |floor| reached - floor);
        self.shared.options.vitals.metrics.set_floor_lag(self.index, lag.max(0));
    }

    /// Dropping the connection ends its session, and with it any transaction.
    fn hang_up(&mut self) {
        self.conn = None;
        self.begun = None;
    }

    /// Lets go of everything.
    fn put_down(&mut self) {
        self.hang_up();
        self.end_stint();
        self.drop_producer();
    }

    /// What it has published is known from here on by the lanes' progress alone.
    fn drop_producer(&mut self) {
        self.ownership.doubt();
        if let Some(producer) = self.producer.take() {
            producer.retire();
        }
    }

    /// Gives up the lanes outside `keep`. Where that fails whoever takes them fences this worker, and no harm is done.
    async fn let_go_of_lanes(&mut self, keep: Option<LaneRange>) {
        let shared = Arc::clone(&self.shared);
        let Ok(mut hands) = self.hands(&shared) else { return };
        let gone = async {
            hands.let_go(None).await?;
            hands.let_go_of_lanes(keep).await
        };
        if gone.await.is_err() {
            self.hang_up();
        }
    }

    /// A turn on the worker's own lanes; when it is time for it, one on orphaned lanes as well.
    async fn take_turn(&mut self, probe_first: bool) -> Result<Turn, TurnError> {
        self.connect().await?;
        let shared = Arc::clone(&self.shared);
        let share = self.share();
        let is_paused = self.stint.as_ref().is_some_and(|stint| stint.gate.is_shut());
        let orphans_due = !is_paused && self.are_orphans_due();
        let settled_in = self.stint.as_ref().is_none_or(|stint| stint.generation.is_some());
        if orphans_due && probe_first && settled_in && !self.anything_waits(&shared).await? {
            return Ok(Turn::Idle);
        }
        self.hands(&shared)?.let_go(share).await?;
        self.hands(&shared)?.let_go_of_lanes(share).await?;
        let mut stint = self.stint.take();
        let mut turned = match &mut stint {
            // Orphans are looked for by transactions of their own.
            Some(stint) => self.hands(&shared)?.turn(stint, probe_first, !orphans_due, true).await,
            None => Ok(Turn::Idle),
        };
        self.stint = stint;
        if orphans_due && turned.is_ok() {
            let adopted = self.adopt(&shared, share).await?;
            turned = turned.map(|turn| if adopted == Turn::Worked { adopted } else { turn });
        }
        turned
    }

    /// The lanes this worker is due. What is known of other lanes is forgotten.
    fn share(&mut self) -> Option<LaneRange> {
        let share = self.shared.share(self.index);
        if self.orphans.is_none() || self.stint.as_ref().map(|stint| stint.range) != share {
            self.end_stint();
            self.stint = share.map(|range| Stint::new(range, Instant::now()));
            self.orphans = Some(Orphans::beside(share, self.shared.lanes, Instant::now()));
            if share.is_none() {
                // Whoever has the lanes now has its own obstacles.
                self.shared.unblock(&acks_of(self.index));
            }
            let lanes = share.map_or_else(|| "none".to_owned(), |range| range.to_string());
            tracing::debug!(worker = self.index, lanes, "lanes are shared out anew");
        }
        share
    }

    fn end_stint(&mut self) {
        if let Some(stint) = self.stint.take() {
            self.shared.unblock(&lock_in(stint.range));
        }
    }

    pub(super) fn hands<'w>(&'w mut self, shared: &'w Shared) -> Result<Hands<'w>, TurnError> {
        let conn = self.conn.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        let Self { index: worker, producer, begun, limit, ownership, .. } = self;
        Ok(Hands { worker: *worker, shared, conn, producer, begun, limit, ownership })
    }

    async fn connect(&mut self) -> Result<(), TurnError> {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        if self.conn.is_none() {
            let mut conn =
                session::connect(&options.database, &options.application_name(), options.connect_timeout).await?;
            within(shared.transaction.prepare(&mut conn)).await?;
            self.conn = Some(conn);
            self.begun = None;
            self.end_stint();
        }
        if self.producer.is_none() {
            let made = match shared.options.is_exactly_once() {
                true => KafkaProducer::transactional(
                    &options.kafka,
                    self.ownership.transactional_id(),
                    shared.options.longest_transaction(),
                    &shared.broker.suspicions(),
                ),
                false => KafkaProducer::new(&options.kafka, &shared.broker.suspicions()),
            };
            match made {
                Ok(producer) if shared.options.is_exactly_once() => self.init_transactions(producer).await?,
                Ok(producer) => self.producer = Some(producer),
                // The same settings made the watching client, so this is about threads or memory.
                Err(error) => {
                    return Err(TurnError::Unacknowledged {
                        unacknowledged: 0,
                        records: 0,
                        reason: error.to_string(),
                        class: Class::Operator,
                    });
                }
            }
        }
        Ok(())
    }

    /// Before any transaction of Postgres begins in which the lanes are looked at: see `exactly_once`.
    async fn init_transactions(&mut self, producer: KafkaProducer) -> Result<(), TurnError> {
        self.ownership.doubt();
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
        let (class, next_step) = class_of(error);
        let reason = describe_transaction(error);
        if matches!(error, TransactionError::Fenced) {
            tracing::warn!(
                code = %Code::ProducerFenced,
                worker = self.index,
                next_step,
                "another relay has taken over this worker's lanes, which did not answer in time: what it had in flight is \
                 rolled back, and it goes back to work"
            );
            return;
        }
        if class == Class::Outage {
            self.shared.broker.suspicions().raise(&reason);
        }
        if self.shared.block(&transactions_of(self.index), &reason) {
            tracing::warn!(
                code = %Code::TransactionsUnusable,
                worker = self.index,
                reason,
                next_step,
                "events cannot be published in transactions: they wait"
            );
        }
    }

    /// Tells what has to be told, and lets go of what cannot be trusted any more.
    fn failed(&mut self, error: TurnError) {
        self.shared.call_all_workers();
        if self.shared.options.is_exactly_once() {
            self.drop_producer();
        }
        // Topics and rows are counted where they are told.
        if let class @ (Class::Outage | Class::Operator) = error.class() {
            self.shared.options.vitals.metrics.failed(class, 1);
        }
        match error {
            TurnError::Database(error) => {
                self.hang_up();
                self.shared.outages.database(Party::Worker(self.index), &error);
            }
            TurnError::NotOwned { lanes, source } => {
                self.hang_up();
                tracing::error!(
                    code = %Code::MarksNotMade,
                    worker = self.index,
                    %lanes,
                    error = %source,
                    next_step = "look for another writer of the outbox's rows; the events may be sent again",
                    "the marks were not made: rows of these lanes are not this relay's any more"
                );
            }
            TurnError::BrokerDown(_) => self.hang_up(),
            TurnError::Transaction(error) => {
                self.hang_up();
                self.transaction_failed(&error);
            }
            TurnError::Unacknowledged { unacknowledged, records, reason, class } => match class {
                Class::Destination | Class::Row => {
                    tracing::debug!(worker = self.index, unacknowledged, records, reason, "records were refused");
                }
                Class::Outage | Class::Operator => {
                    self.shared.broker.suspicions().raise(&reason);
                    tracing::debug!(worker = self.index, unacknowledged, records, reason, "records are sent again");
                    if self.shared.block(&acks_of(self.index), &reason) {
                        tracing::warn!(
                            code = %Code::RecordsUnacknowledged,
                            unacknowledged,
                            records,
                            reason,
                            "records were not acknowledged: they are sent again, in order, until they are"
                        );
                    }
                }
            },
        }
    }
}
