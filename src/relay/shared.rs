//! Holds the state that the tasks of a relay share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use uuid::Uuid;

use crate::fault::Class;
use crate::lane::{LaneRange, WorkerAssignment};
use crate::relay::health::outage::Outages;
use crate::relay::identity::Fixed;
use crate::relay::membership::relay_registry::RelayRegistry;
use crate::relay::obstacles::Obstacles;
use crate::relay::options::RelayOptions;
use crate::relay::sleep::WakeUp;
use crate::relay::stage_times::StageTimes;
use crate::sink::broker::Broker;
use crate::sink::topics::Topics;
use crate::sink::transactions::ProgressGroup;
use crate::store::claim::ClaimSql;
use crate::store::delivery::DeliverySql;
use crate::store::holds::HoldSql;
use crate::store::relay_conflicts::Conflict;
use crate::store::relay_registry::RegistrySql;
use crate::store::session::Transaction;
use crate::store::settle::SettleSql;
use crate::store::wake_up::WakeUpSql;

/// The most obstacles that are shown at once.
const BLOCKED_SHOWN: usize = 8;

/// The time at which something last happened.
#[derive(Debug, Default)]
pub(crate) struct RecentEvent(Mutex<Option<Instant>>);

impl RecentEvent {
    /// Records that the event happens now.
    pub(crate) fn record(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns true when the event happened within the last `time`.
    pub(crate) fn happened_within(&self, time: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < time)
    }
}

pub(crate) struct Shared {
    pub(crate) id: Uuid,
    pub(crate) options: RelayOptions,
    pub(crate) lanes: u16,
    pub(crate) broker: Arc<Broker>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) outages: Arc<Outages>,
    pub(crate) transaction: Transaction,
    pub(crate) claim: ClaimSql,
    pub(crate) settle: SettleSql,
    pub(crate) delivery: DeliverySql,
    pub(crate) progress: ProgressGroup,
    pub(crate) holds: HoldSql,
    pub(crate) registry: RegistrySql,
    pub(crate) wake_up_sql: WakeUpSql,
    pub(crate) wake_up: WakeUp,
    pub(crate) relays: RelayRegistry,
    pub(crate) worker_assignment: watch::Sender<WorkerAssignment>,
    published: AtomicU64,
    pub(crate) stage_times: StageTimes,
    /// The last time at which the database refused a worker's marks.
    pub(crate) marks_refused: RecentEvent,
    /// The last time at which a claim came back full.
    pub(crate) full_claim: RecentEvent,
    /// The last time at which there was enough to do for all workers, or a cycle failed.
    pub(crate) busy: RecentEvent,
    /// The last time at which the server refused a connection because there were too many.
    pub(crate) connection_refused: RecentEvent,
    /// The obstacles that block a part of the events.
    pub(crate) obstacles: Obstacles,
    /// The conflicts between live relays, for the status line.
    conflicts: Mutex<Option<String>>,
    /// By worker: the lanes it owns.
    owned: Mutex<BTreeMap<usize, LaneRange>>,
}

impl Shared {
    pub(crate) fn new(options: RelayOptions, found: &Fixed, broker: Arc<Broker>, outages: Arc<Outages>) -> Self {
        let (names, prepared) = (&options.names, options.database.prepared_statements);
        let (lanes, sequence) = (found.lanes, &found.sequence);
        let (longest, durable) = (options.longest_transaction(), options.is_exactly_once());
        Self {
            id: Uuid::new_v4(),
            lanes,
            broker,
            topics: Arc::new(Topics::new(options.kafka.creates_topics())),
            outages,
            transaction: Transaction::new(names, longest, prepared, durable, options.relay.settle),
            claim: ClaimSql::new(names, sequence),
            settle: SettleSql::new(names),
            delivery: DeliverySql::new(names, options.relay.settle),
            progress: ProgressGroup::new(options.kafka.clone(), found.identity, lanes),
            holds: HoldSql::new(names),
            registry: RegistrySql::new(names, options.database.prepared_statements),
            wake_up_sql: WakeUpSql::new(names),
            wake_up: WakeUp::default(),
            relays: RelayRegistry::default(),
            // A single worker has all lanes until the heartbeat has read the registry. The locks of other relays keep it from doing harm.
            worker_assignment: watch::Sender::new(WorkerAssignment {
                first: 0,
                of: options.relay.workers,
                workers: options.relay.workers,
                single_worker: options.relay.workers > 1,
            }),
            published: AtomicU64::new(0),
            stage_times: StageTimes::default(),
            marks_refused: RecentEvent::default(),
            full_claim: RecentEvent::default(),
            busy: RecentEvent::default(),
            connection_refused: RecentEvent::default(),
            obstacles: Obstacles::default(),
            conflicts: Mutex::default(),
            owned: Mutex::default(),
            options,
        }
    }

    /// Counts a committed batch. `refused` of its events were refused for their own fault.
    pub(crate) fn settled(&self, published: usize, refused: usize) {
        self.published.fetch_add(published as u64, Ordering::Relaxed);
        let metrics = &self.options.telemetry.metrics;
        metrics.settled(published);
        if refused > 0 {
            metrics.failed(Class::Row, refused as u64);
        }
    }

    /// Returns the number of events marked PUBLISHED since the start.
    pub(crate) fn published_total(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Returns all outages and obstacles except `except` as a text of bounded length; `None` when nothing blocks.
    pub(crate) fn blocked(&self, except: Option<&str>) -> Option<String> {
        let mut all = self.outages.current();
        all.extend(self.obstacles.shown(except));
        let more = all.len().saturating_sub(BLOCKED_SHOWN);
        all.truncate(BLOCKED_SHOWN);
        if more > 0 {
            all.push(format!("and {more} more"));
        }
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Records the conflicts between live relays at present, for the status line and the metrics.
    pub(crate) fn set_conflicts(&self, conflicts: &[Conflict]) {
        self.options
            .telemetry
            .metrics
            .set_conflicts(conflicts.iter().map(|conflict| (conflict.code, conflict.since_s)));
        let messages: Vec<_> = conflicts.iter().map(|conflict| conflict.message.as_str()).collect();
        let text = (!messages.is_empty()).then(|| messages.join("; "));
        *self.conflicts.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Returns the conflicts between live relays; `None` if they go together.
    pub(crate) fn conflicts(&self) -> Option<String> {
        self.conflicts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the lanes that a worker owns from now on.
    pub(crate) fn set_owned(&self, worker: usize, lanes: Option<LaneRange>) {
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        match lanes {
            Some(lanes) => owned.insert(worker, lanes),
            None => owned.remove(&worker),
        };
    }

    /// Returns the lanes of each worker that owns some, in the order of the workers.
    pub(crate) fn owned(&self) -> Vec<LaneRange> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }

    /// Returns the lanes that each worker is due, as text.
    pub(crate) fn assigned_lanes(&self) -> String {
        let shares: Vec<_> = self.shares().into_iter().flatten().map(|share| share.to_string()).collect();
        if shares.is_empty() { "none".to_owned() } else { shares.join(",") }
    }
}
