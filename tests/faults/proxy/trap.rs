//! Defines a trap: the request that a proxy catches, and the action on it.

use super::wire::Unit;

/// A place in a relay's cycle. Statements are recognised by their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// Kafka: a Produce request.
    Produce,
    /// Kafka: the progress of lanes, sent in a transaction.
    Offsets,
    /// Kafka: the commit or the rollback of a transaction.
    EndTransaction,
    /// Postgres: one request that settles published rows and commits the cycle's transaction.
    Mark,
}

impl Spot {
    pub(crate) fn is_of_kafka(self) -> bool {
        matches!(self, Self::Produce | Self::Offsets | Self::EndTransaction)
    }
}

/// The action on a caught request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Catch {
    /// The server receives the request only when the trap is released.
    HoldRequest,
    /// The link is reset, so that the relay sends the request again. The server receives the first one on another connection when it is
    /// delivered: see `Proxy::deliver_delayed`.
    DelayRequest,
    /// The server has answered; the relay receives the answer when the trap is released.
    HoldAnswer,
    /// The server has answered, and then the link is reset: the request is applied, but the relay does not know.
    LoseAnswer,
}

/// A trap that waits.
#[derive(Debug)]
pub(super) struct Trap {
    pub(super) spot: Spot,
    pub(super) catch: Catch,
}

/// A caught request that went through; its answer is to be caught.
#[derive(Debug)]
pub(super) struct Sprung {
    pub(super) catch: Catch,
    /// Kafka's correlation id of the request. Postgres answers one request at a time, so it needs no id.
    pub(super) answer_to: Option<[u8; 4]>,
}

impl Sprung {
    pub(super) fn is_answered_by(&self, unit: &Unit) -> bool {
        self.answer_to.is_none_or(|number| unit.answers(number))
    }
}
