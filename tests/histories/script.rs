//! Defines the script of a history: its entities, how their writers take turns, and each session's actions, step by step.
//!
//! A script prints as text, so a failed run shows its actions. The servers decide the interleaving. A script fixes only each session's
//! actions and waits.

use std::fmt;
use std::time::Duration;

/// The kind of server that a history runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Regime {
    /// One relay and one history at a time: the open transaction is often the newest of the server.
    Quiet,
    /// One relay and many histories side by side.
    Busy,
    /// The regime `Busy` with claims of a few rows, so that limits cut transactions in pieces.
    Narrow,
    /// The regime `Busy` with commits that hang for a moment, because a synchronous standby is missing.
    Stalled,
    /// The regime `Busy` with two relays that are killed again and again.
    Killed,
}

impl Regime {
    /// All regimes.
    pub(crate) const ALL: [Self; 5] = [Self::Quiet, Self::Busy, Self::Narrow, Self::Stalled, Self::Killed];

    /// The name, for databases, topics and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Busy => "busy",
            Self::Narrow => "narrow",
            Self::Stalled => "stalled",
            Self::Killed => "killed",
        }
    }
}

/// A few sessions that write events of a few entities, and perhaps an application that touches pending rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) regime: Regime,
    pub(crate) number: u64,
    /// The way in which the writers of each entity take turns.
    pub(crate) entities: Vec<Turns>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) meddling: Vec<Meddling>,
}

impl History {
    /// The `entity_id` of one of the history's entities.
    pub(crate) fn entity(&self, index: usize) -> String {
        format!("{}{index}", self.prefix())
    }

    /// The prefix of every `entity_id` of the history.
    pub(crate) fn prefix(&self) -> String {
        format!("h{}-", self.number)
    }
}

/// A way for the writers of an entity to take turns. In each way, the order of commits is the order of turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turns {
    /// `select … for update` of the entity's own row.
    RowLock,
    /// An update of a counter in the entity's own row.
    CounterUpdate,
    /// An advisory lock of the application, which assigns no transaction id.
    AdvisoryLock,
    /// The lock of `outbox_emit`.
    Emit,
    /// One session is the only writer.
    OneSession(usize),
}

/// One connection and its transactions, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// True if the session's commits wait for a synchronous standby, in a regime that has one.
    pub(crate) waits_for_standby: bool,
    pub(crate) transactions: Vec<Transaction>,
}

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transaction {
    /// The time before the transaction begins.
    pub(crate) pause: Duration,
    pub(crate) begin: Begin,
    pub(crate) steps: Vec<Step>,
    /// The time between the last step and the end.
    pub(crate) stays_open: Duration,
    pub(crate) end: End,
}

/// The beginning of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// `begin`.
    Plain,
    /// `begin`, then `pg_current_xact_id()`: the transaction id is older than the ids of the rows.
    WithTransactionId,
    /// Each statement is a transaction, without `begin`. Only entities of one session are written like this.
    Autocommit,
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    RollBack,
    /// `prepare transaction`, and after a while `commit prepared` or `rollback prepared`.
    Prepare {
        waits: Duration,
        commits: bool,
    },
}

/// One step of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Write { entity: usize, how: Write, events: usize },
    Savepoint,
    RollBackToSavepoint,
}

/// A way to write events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// `insert … values`.
    Plain,
    /// `outbox_emit`.
    Emit,
    /// `outbox_emit` with a payload that takes a while to compute.
    EmitComputed(Duration),
    /// `insert … select`.
    InsertSelect,
    /// `copy … from stdin`.
    Copy,
    /// `insert … values` with a payload that takes a while to compute: the id is allocated before.
    Computed(Duration),
    /// `insert … values` with a trigger that takes a while: the id is allocated before, and so is every default.
    SlowTrigger(Duration),
    /// An event that cannot be sent: its row goes DEAD.
    Poison,
}

/// The action of an application on pending rows of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meddling {
    pub(crate) action: Action,
    /// The time for which the rows stay locked before the action.
    pub(crate) locked: Duration,
    pub(crate) commits: bool,
}

/// An action of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Locks pending rows.
    Lock,
    /// Updates a column of pending rows that has no influence on the order.
    Touch,
    /// Gives pending rows another entity.
    Move,
    /// Deletes pending rows.
    Delete,
    /// Sets DEAD rows PENDING by hand.
    Revive,
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "history {} ({})", self.number, self.regime.name())?;
        for (index, turns) in self.entities.iter().enumerate() {
            writeln!(f, "  entity {}: {turns:?}", self.entity(index))?;
        }
        for (index, session) in self.sessions.iter().enumerate() {
            let standby = if session.waits_for_standby { ", waits for a standby" } else { "" };
            writeln!(f, "  session {index}{standby}")?;
            for transaction in &session.transactions {
                let Transaction { pause, begin, steps, stays_open, end } = transaction;
                write!(f, "    after {pause:?}: {begin:?};")?;
                for step in steps {
                    write!(f, " {step:?};")?;
                }
                writeln!(f, " stays open for {stays_open:?}; {end:?}")?;
            }
        }
        for meddling in &self.meddling {
            writeln!(f, "  {meddling:?}")?;
        }
        Ok(())
    }
}
