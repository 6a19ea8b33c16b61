//! Defines what the steps of a cycle share, and how a cycle ends.

use std::sync::Arc;

use sqlx::PgConnection;

use crate::fault::{self, Class, Fault};
use crate::lane::LaneRange;
use crate::relay::exactly_once::ownership::{Ownership, fault_of};
use crate::relay::health::outage::Component;
use crate::relay::shared::Shared;
use crate::sink::broker::BrokerDown;
use crate::sink::producer::KafkaProducer;
use crate::sink::transactions::TransactionError;
use crate::store::session::Begun;
use crate::store::settle::SettleError;

/// The parts of a worker that a cycle works with.
pub(crate) struct WorkerContext<'w> {
    pub(crate) worker: usize,
    pub(crate) shared: &'w Arc<Shared>,
    pub(crate) conn: &'w mut PgConnection,
    pub(crate) producer: &'w mut Option<KafkaProducer>,
    /// A transaction that was begun with the last commit, and its lanes.
    pub(crate) begun: &'w mut Option<(Begun, LaneRange)>,
    pub(crate) budget: &'w mut Budget,
    /// The state of the lanes that the worker publishes in Kafka transactions.
    pub(crate) ownership: &'w mut Ownership,
}

/// The limits of the next claim.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// The most events: the batch size; less after a refusal, to find the refused record, and less after a claim that took too long.
    pub(crate) rows: usize,
    /// The recent maximum of text bytes per stored byte. TOAST compresses.
    expansion: f64,
    /// The number of coming claims that read their rows one by one, because one of the rows may be unreadable.
    pub(crate) careful: usize,
    /// True until the session has shown that it can mark rows.
    pub(crate) is_unproved: bool,
}

/// The number of claims that read their rows one by one after a claim that failed.
const CAREFUL_CLAIMS: usize = 8;

/// The most rows of a claim that reads rows one by one.
const CAREFUL_ROWS: usize = 64;

/// The highest assumed expansion: TOAST compresses a thousand times at best.
const MOST_EXPANSION: f64 = 1024.0;

impl Budget {
    pub(crate) fn new(rows: usize) -> Self {
        Self { rows, expansion: 1.0, careful: 0, is_unproved: true }
    }

    /// Returns the most rows of the next claim.
    pub(crate) fn next_rows(&self) -> usize {
        if self.careful > 0 { self.rows.min(CAREFUL_ROWS) } else { self.rows }
    }

    /// Returns the most stored bytes of the next claim.
    pub(crate) fn stored_bytes(&self, batch_bytes: usize) -> i64 {
        ((batch_bytes as f64 / self.expansion) as i64).max(1)
    }

    /// Records that a claim has read `text` bytes that are stored as `stored` bytes.
    pub(crate) fn has_read(&mut self, text: usize, stored: i64) {
        let expansion = text as f64 / (stored.max(1) as f64);
        self.expansion = expansion.max(self.expansion * 0.9).max(1.0);
    }

    /// Makes the next claims ask for less, after a claim failed for a reason that may be one of its rows.
    pub(crate) fn shrink(&mut self) {
        self.rows = (self.rows / 4).max(1);
        self.expansion = (self.expansion * 4.0).min(MOST_EXPANSION);
        self.careful = CAREFUL_CLAIMS;
    }

    /// Makes the next claims ask for more, after a batch that went well.
    pub(crate) fn grow(&mut self, most: usize) {
        self.rows = (self.rows * 2).min(most);
        self.careful = self.careful.saturating_sub(1);
    }
}

impl WorkerContext<'_> {
    /// Returns the name under which this worker reports obstacles.
    pub(crate) fn component(&self) -> Component {
        Component::Worker(self.worker)
    }
}

/// The result of a cycle that went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cycle {
    /// Found nothing to do.
    Idle,
    /// Settled something, or has more to look at.
    Worked,
}

/// The reason why a cycle failed. Nothing is lost: rows that were not marked are still pending.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CycleError {
    #[error("database")]
    Database(#[from] sqlx::Error),
    #[error("lanes {lanes}: {source}")]
    NotOwned { lanes: LaneRange, source: SettleError },
    #[error(transparent)]
    BrokerDown(#[from] BrokerDown),
    /// A transaction of Kafka failed, or its result is unknown: the lane's progress tells.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    /// Some records were not acknowledged. In at-least-once mode the acknowledged ones are marked.
    #[error("{unacknowledged} of {records} records were not acknowledged: {reason}")]
    Unacknowledged { unacknowledged: usize, records: usize, reason: String, fault: Fault },
}

impl CycleError {
    /// Returns the class of the failure.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Database(error) => fault::classify_database(error).class,
            Self::NotOwned { .. } => Class::ActionRequired,
            Self::BrokerDown(_) => Class::Outage,
            Self::Transaction(error) => fault_of(error).class,
            Self::Unacknowledged { fault, .. } => fault.class,
        }
    }
}

/// The result of the wait for acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    Settled,
    BrokerDown,
    TimedOut,
    /// Some records are acknowledged, and for a while no other has been.
    Partly,
}

/// What [the obstacles](crate::relay::obstacles::Obstacles) calls marks that change no row.
pub(crate) const MARKS: &str = "marks";

/// Returns the name of a worker's unacknowledged records in [the obstacles](crate::relay::obstacles::Obstacles).
pub(crate) fn acks_of(worker: usize) -> String {
    format!("acks of worker {worker}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_asks_for_less_after_a_failure_and_finds_back() {
        let mut budget = Budget::new(2000);
        budget.shrink();
        assert_eq!((budget.next_rows(), budget.stored_bytes(1000)), (64, 250));
        budget.shrink();
        budget.shrink();
        budget.shrink();
        assert_eq!(budget.next_rows(), 7);
        (0..20).for_each(|_| budget.grow(2000));
        assert_eq!((budget.next_rows(), budget.careful), (2000, 0));
    }

    #[test]
    fn text_that_was_compressed_makes_the_next_claim_smaller() {
        let mut budget = Budget::new(2000);
        budget.has_read(50_000, 500);
        assert_eq!(budget.stored_bytes(1_000_000), 10_000);
        (0..100).for_each(|_| budget.has_read(500, 500));
        assert_eq!(budget.stored_bytes(1_000_000), 1_000_000);
    }
}
