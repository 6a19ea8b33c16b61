//! A trap: the request a proxy catches, and what it does with it.

use super::wire::Unit;

/// Where in a relay's cycle. Statements are recognised by their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// Kafka: a Produce request.
    Produce,
    /// Kafka: the progress of lanes, in a transaction.
    Offsets,
    /// Kafka: a transaction is committed, or rolled back.
    EndTransaction,
    /// Postgres: rows are marked PUBLISHED and the cycle's transaction is committed, which is one request.
    Mark,
}

impl Spot {
    pub(crate) fn is_of_kafka(self) -> bool {
        matches!(self, Self::Produce | Self::Offsets | Self::EndTransaction)
    }
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Catch {
    /// The server does not get it until the trap is released.
    HoldRequest,
    /// The server has answered; the relay gets that when the trap is released.
    HoldAnswer,
    /// The server has answered, and then the link is reset: applied, but nobody knows.
    LoseAnswer,
}

/// A trap that waits.
#[derive(Debug)]
pub(super) struct Trap {
    pub(super) spot: Spot,
    pub(super) catch: Catch,
}

/// A request went through whose answer is wanted.
#[derive(Debug)]
pub(super) struct Sprung {
    pub(super) catch: Catch,
    /// Kafka's number for the request. Postgres answers one at a time.
    pub(super) answer_to: Option<[u8; 4]>,
}

impl Sprung {
    pub(super) fn is_answered_by(&self, unit: &Unit) -> bool {
        self.answer_to.is_none_or(|number| unit.answers(number))
    }
}
