//! Runs the application: a shop whose clerks write orders and their events in parallel, each step of an order in one transaction.
//!
//! An order is placed, paid and shipped by whichever clerk is free, so its history comes from several connections. A step that rolls back
//! is done again later, as applications do. The steps write their events in both possible ways: with `outbox_emit`, and with a plain insert
//! while the order's row is locked. Both make the order of ids the order of commits.

mod step;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use sqlx::{Executor, PgPool};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

pub(super) use step::EVENT_TYPES;
use step::{Order, Step};

/// The number of connections that write in parallel.
pub(super) const CLERKS: u32 = 4;

/// The `source` header of all the shop's events. It distinguishes them from the events that a visitor of `--serve` inserts.
pub(super) const SOURCE: &str = "/demo/shop";

/// One in N transactions rolls back.
const ROLLBACK_IN: u32 = 10;

/// The number of unfinished orders before no new one is placed. The steps of these orders mix.
const IN_HAND: usize = 50;

/// The events that the shop itself knows of, independent of the tables.
#[derive(Debug, Default, Clone)]
pub(super) struct CommitLog {
    /// Events whose transaction committed.
    pub(super) committed: Vec<Uuid>,
    /// Events whose transaction rolled back.
    pub(super) rolled_back: Vec<Uuid>,
}

/// The amount of work, and its rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workload {
    /// The number of orders to place. Each is paid and shipped before the work is done.
    pub(super) orders: u64,
    /// The transactions per second of all clerks together, as far as the database keeps up.
    pub(super) per_second: f64,
}

/// The shop, and its log of commits.
#[derive(Debug, Clone)]
pub(super) struct Shop {
    pool: PgPool,
    desk: Arc<Mutex<Desk>>,
    committed: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Desk {
    to_place: u64,
    last_number: u64,
    in_hand: Vec<(Order, Step)>,
    tickets: u32,
    commit_log: CommitLog,
}

impl Shop {
    /// Opens the shop and creates its table.
    pub(super) async fn open(pool: PgPool) -> Result<Self, sqlx::Error> {
        pool.execute(
            "create table demo_orders (order_id text primary key, state text not null, total numeric not null)",
        )
        .await?;
        Ok(Self { pool, desk: Arc::default(), committed: Arc::new(watch::Sender::new(0)) })
    }

    /// Does the work until it is done or `stop` becomes true. Another call continues.
    pub(super) async fn work(&self, load: Workload, stop: watch::Receiver<bool>) -> Result<(), sqlx::Error> {
        self.desk().begin(load.orders);
        let started = Instant::now();
        let mut clerks = JoinSet::new();
        for _ in 0..CLERKS {
            clerks.spawn(self.clone().clerk(started, load.per_second, stop.clone()));
        }
        while let Some(ended) = clerks.join_next().await {
            // A clerk is never aborted, so the error is a panic.
            ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        }
        Ok(())
    }

    /// Returns the number of events committed so far.
    pub(super) fn committed(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }

    /// Returns a copy of the log of commits.
    pub(super) fn commit_log(&self) -> CommitLog {
        self.desk().commit_log.clone()
    }

    async fn clerk(
        self,
        started: Instant,
        per_second: f64,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), sqlx::Error> {
        loop {
            let Some((ticket, order, step)) = self.desk().next() else { return Ok(()) };
            let due = started + Duration::from_secs_f64(f64::from(ticket) / per_second);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                () = sleep_until(due) => {}
            }
            let commits = !rand::rng().random_ratio(1, ROLLBACK_IN);
            let mut transaction = self.pool.begin().await?;
            let event = step.write(&mut transaction, &order).await?;
            if commits {
                transaction.commit().await?;
            } else {
                transaction.rollback().await?;
            }
            self.desk().done(order, step, event, commits);
            if commits {
                self.committed.send_modify(|committed| *committed += 1);
            }
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    fn begin(&mut self, orders: u64) {
        self.to_place = orders;
        self.tickets = 0;
    }

    /// Returns the next step with its ticket number. `None` if all that remains is in the hands of other clerks.
    fn next(&mut self) -> Option<(u32, Order, Step)> {
        let (order, step) = if self.to_place > 0 && self.in_hand.len() < IN_HAND {
            self.to_place -= 1;
            self.last_number += 1;
            (Order::new(self.last_number), Step::FIRST)
        } else if self.in_hand.is_empty() {
            return None;
        } else {
            self.in_hand.swap_remove(rand::rng().random_range(0..self.in_hand.len()))
        };
        self.tickets += 1;
        Some((self.tickets - 1, order, step))
    }

    fn done(&mut self, order: Order, step: Step, event: Uuid, committed: bool) {
        let (book, next) = match committed {
            true => (&mut self.commit_log.committed, step.next()),
            false => (&mut self.commit_log.rolled_back, Some(step)),
        };
        book.push(event);
        self.in_hand.extend(next.map(|next| (order, next)));
    }
}
