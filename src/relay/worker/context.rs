//! What the steps of a cycle share, and how a cycle ends.

use sqlx::PgConnection;

use crate::fault::{self, Class};
use crate::lane::LaneRange;
use crate::relay::exactly_once::ownership::{Ownership, class_of};
use crate::relay::shared::Shared;
use crate::sink::broker::BrokerDown;
use crate::sink::producer::KafkaProducer;
use crate::sink::transactions::TransactionError;
use crate::store::session::Begun;
use crate::store::settle::SettleError;

/// The parts of a worker that a cycle works with.
pub(crate) struct WorkerContext<'w> {
    pub(crate) worker: usize,
    pub(crate) shared: &'w Shared,
    pub(crate) conn: &'w mut PgConnection,
    pub(crate) producer: &'w mut Option<KafkaProducer>,
    /// A transaction that was begun with the last commit, on these lanes.
    pub(crate) begun: &'w mut Option<(Begun, LaneRange)>,
    pub(crate) budget: &'w mut Budget,
    /// The lanes it publishes in transactions.
    pub(crate) ownership: &'w mut Ownership,
}

/// How much the next claim takes.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Events: the batch size; less after a refusal, to find out which record it was, and after a claim that took too long.
    pub(crate) rows: usize,
    /// How many bytes of text a stored byte becomes, at the most, lately. TOAST compresses.
    expansion: f64,
    /// Claims that read their rows one by one: one of them cannot be read.
    pub(crate) careful: usize,
    /// The session has not shown yet that it can mark rows.
    pub(crate) is_unproved: bool,
}

/// After a claim that failed, so many claims read their rows one by one.
const CAREFUL_CLAIMS: usize = 8;

/// Rows of such a claim.
const CAREFUL_ROWS: usize = 64;

/// TOAST compresses a thousand times at the best.
const MOST_EXPANSION: f64 = 1024.0;

impl Budget {
    pub(crate) fn new(rows: usize) -> Self {
        Self { rows, expansion: 1.0, careful: 0, is_unproved: true }
    }

    /// Rows of the next claim.
    pub(crate) fn next_rows(&self) -> usize {
        if self.careful > 0 { self.rows.min(CAREFUL_ROWS) } else { self.rows }
    }

    /// Stored bytes of the next claim.
    pub(crate) fn stored_bytes(&self, batch_bytes: usize) -> i64 {
        ((batch_bytes as f64 / self.expansion) as i64).max(1)
    }

    /// A claim has read `text` bytes that are stored as `stored`.
    pub(crate) fn has_read(&mut self, text: usize, stored: i64) {
        let expansion = text as f64 / (stored.max(1) as f64);
        self.expansion = expansion.max(self.expansion * 0.9).max(1.0);
    }

    /// A claim failed for a reason that may be one of its rows: the next ones ask for less.
    pub(crate) fn shrink(&mut self) {
        self.rows = (self.rows / 4).max(1);
        self.expansion = (self.expansion * 4.0).min(MOST_EXPANSION);
        self.careful = CAREFUL_CLAIMS;
    }

    /// A batch went well.
    pub(crate) fn grow(&mut self, most: usize) {
        self.rows = (self.rows * 2).min(most);
        self.careful = self.careful.saturating_sub(1);
    }
}

/// How a cycle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cycle {
    /// Nothing to do.
    Idle,
    /// Something was settled, or there is more to look at.
    Worked,
}

/// Why a cycle did not end well. Nothing is lost: rows that were not marked are still pending.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CycleError {
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

impl CycleError {
    /// What kind of failure it is.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Database(error) => fault::classify_database(error).class,
            Self::NotOwned { .. } => Class::ActionRequired,
            Self::BrokerDown(_) => Class::Outage,
            Self::Transaction(error) => class_of(error).0,
            Self::Unacknowledged { class, .. } => *class,
        }
    }
}

/// How the wait for acks ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    Settled,
    BrokerDown,
    TimedOut,
}

/// What [`Shared::block`] calls marks that change no row.
pub(crate) const MARKS: &str = "marks";

/// What [`Shared::block`] calls records of a worker that are not acknowledged.
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
