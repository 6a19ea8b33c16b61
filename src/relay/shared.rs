//! What the tasks of a relay share.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use uuid::Uuid;

use crate::config::Delivery;
use crate::fault::Class;
use crate::relay::Fixed;
use crate::relay::crew::Standing;
use crate::relay::options::RelayOptions;
use crate::relay::outage::Outages;
use crate::relay::stages::Stages;
use crate::sink::broker::Broker;
use crate::sink::topics::Topics;
use crate::sink::transactions::ProgressGroup;
use crate::store::claim::ClaimSql;
use crate::store::delivery::DeliverySql;
use crate::store::holds::HoldSql;
use crate::store::session::Transaction;
use crate::store::settle::{Ctid, SettleSql};

pub(crate) struct Shared {
    pub(crate) id: Uuid,
    pub(crate) options: RelayOptions,
    pub(crate) lanes: u16,
    pub(crate) broker: Arc<Broker>,
    pub(crate) topics: Topics,
    pub(crate) outages: Arc<Outages>,
    pub(crate) transaction: Transaction,
    pub(crate) claim: ClaimSql,
    pub(crate) settle: SettleSql,
    pub(crate) delivery: DeliverySql,
    pub(crate) progress: ProgressGroup,
    pub(crate) holds: HoldSql,
    pub(crate) standing: watch::Sender<Standing>,
    published: AtomicU64,
    reached: AtomicI64,
    pub(crate) stages: Stages,
    /// When a claim last came back full.
    full_claim: Mutex<Option<Instant>>,
    /// When there was last enough to do for all workers.
    crowd: Mutex<Option<Instant>>,
    /// What blocks a part of the events, by what it is, for the status line.
    obstacles: Mutex<BTreeMap<String, String>>,
}

impl Shared {
    pub(crate) fn new(options: RelayOptions, found: &Fixed, broker: Arc<Broker>, outages: Arc<Outages>) -> Self {
        let (names, prepared) = (&options.names, options.prepared_statements);
        let (lanes, sequence) = (found.lanes, &found.sequence);
        let durable = options.delivery == Delivery::ExactlyOnce;
        // The broker's bound, and time for the statements around it.
        let longest = options.publish_timeout + super::turn::DATABASE_TIMEOUT;
        Self {
            id: Uuid::new_v4(),
            lanes,
            broker,
            topics: Topics::default(),
            outages,
            transaction: Transaction::new(names, sequence, longest, prepared, durable),
            claim: ClaimSql::new(names, sequence),
            settle: SettleSql::new(names),
            delivery: DeliverySql::new(names),
            progress: ProgressGroup::new(options.kafka.clone(), found.identity, lanes),
            holds: HoldSql::new(names),
            // Alone until the register has looked: others' locks keep it from doing harm.
            standing: watch::Sender::new(Standing {
                first: 0,
                of: options.workers,
                workers: options.workers,
                alone: options.workers > 1,
            }),
            published: AtomicU64::new(0),
            reached: AtomicI64::new(0),
            stages: Stages::default(),
            full_claim: Mutex::default(),
            crowd: Mutex::default(),
            obstacles: Mutex::default(),
            options,
        }
    }

    /// Events are published in transactions.
    pub(crate) fn is_exactly_once(&self) -> bool {
        self.options.delivery == Delivery::ExactlyOnce
    }

    /// A batch has been committed; `held` are its held rows by reason and by attempts counted.
    pub(crate) fn settled(&self, published: usize, dead: usize, held: &HashMap<(&str, i32), Vec<Ctid>>) {
        self.published.fetch_add(published as u64, Ordering::Relaxed);
        let metrics = &self.options.vitals.metrics;
        metrics.settled(published);
        let refused = held.iter().filter(|((_, attempts), _)| *attempts > 0).map(|(_, rows)| rows.len());
        let refused = dead + refused.sum::<usize>();
        if refused > 0 {
            metrics.failed(Class::Row, refused as u64);
        }
    }

    /// A worker has got as far as this id; returns how far any has.
    pub(crate) fn reach(&self, id: i64) -> i64 {
        self.reached.fetch_max(id, Ordering::Relaxed).max(id)
    }

    /// Events marked PUBLISHED since the start.
    pub(crate) fn published_total(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// A claim came back full: there is a backlog.
    pub(crate) fn note_full_claim(&self) {
        *self.full_claim.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// True when one did within that time.
    pub(crate) fn had_a_full_claim(&self, within: Duration) -> bool {
        let full_claim = self.full_claim.lock().unwrap_or_else(PoisonError::into_inner);
        full_claim.is_some_and(|at| at.elapsed() < within)
    }

    /// There is enough to do for all workers.
    pub(crate) fn note_crowd(&self) {
        *self.crowd.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// True when there was within that time.
    pub(crate) fn was_crowded(&self, within: Duration) -> bool {
        let crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        crowd.is_some_and(|at| at.elapsed() < within)
    }

    /// Something blocks a part of the events; true when it is new and has to be told.
    pub(crate) fn block(&self, what: &str, why: &str) -> bool {
        let mut obstacles = self.obstacles.lock().unwrap_or_else(PoisonError::into_inner);
        obstacles.insert(what.to_owned(), why.to_owned()).is_none()
    }

    /// It does no more; true when it did.
    pub(crate) fn unblock(&self, what: &str) -> bool {
        self.obstacles.lock().unwrap_or_else(PoisonError::into_inner).remove(what).is_some()
    }

    /// Why it blocks, if it does.
    pub(crate) fn obstacle(&self, what: &str) -> Option<String> {
        self.obstacles.lock().unwrap_or_else(PoisonError::into_inner).get(what).cloned()
    }

    /// All that blocks now.
    pub(crate) fn blocked(&self) -> Vec<String> {
        let obstacles = self.obstacles.lock().unwrap_or_else(PoisonError::into_inner);
        let obstacles = obstacles.iter().map(|(what, why)| format!("{what}: {why}"));
        self.outages.current().into_iter().chain(obstacles).collect()
    }
}
