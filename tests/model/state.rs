//! What the world is made of: the table, the topic, the relays with their sessions and producers.

use crate::frontier::Frontier;
use crate::rows::Rows;

/// A row of the outbox and the transaction that writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Row {
    /// Its id has not been drawn.
    Unwritten,
    /// Its transaction has its id and runs.
    Running,
    RolledBack,
    Pending,
    Published,
}

/// A relay's session, as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Session {
    /// Outside of a transaction.
    Free,
    /// In the transaction of a turn: `begin` took these lanes, `claim` locked these rows, `settle` marked these.
    Turn { lanes: Vec<u8>, locked: Rows, marked: Rows },
    /// Ended by the server. The relay does not know until it asks for something.
    Ended,
}

/// What a turn claimed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Claim {
    /// Owned lanes are all that were wanted.
    pub(crate) whole: bool,
    pub(crate) start: u8,
    pub(crate) rows: Rows,
    pub(crate) full: bool,
    /// The first row the recount found and the claim did not.
    pub(crate) skipped: Option<u8>,
    /// `Fate::Left`: rows behind a skipped one of their entity.
    pub(crate) left: Rows,
}

/// Where in its turn a relay is, as it believes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    Idle,
    Begun,
    Claimed(Claim),
    /// Recounted, and the records are with the producer.
    Sent(Claim),
    /// Marked, and not committed. `missing`: not all were acknowledged, the producer has been dropped.
    Marked {
        claim: Claim,
        missing: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Delivery {
    /// With the producer or on its way.
    Queued,
    /// On the topic. Whether the relay knows is decided when it stops waiting.
    Appended,
    /// Reported, by whomever.
    Acked,
}

/// A record of a producer's batch; its place there is its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) row: u8,
    pub(crate) delivery: Delivery,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Relay {
    /// The wanted lanes: from, to.
    pub(crate) share: (u8, u8),
    pub(crate) frontier: Frontier,
    pub(crate) session: Session,
    pub(crate) phase: Phase,
    /// The batch of its producer.
    pub(crate) batch: Vec<Record>,
    /// Only where acks of an earlier producer count: what that one still holds.
    pub(crate) earlier: Vec<Record>,
}

/// How often each fault may still happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Faults {
    /// A relay is killed and starts again.
    pub(crate) crashes: u8,
    /// The server ends a session: a relay frozen for too long, a terminated backend, a lost connection.
    pub(crate) sessions: u8,
    /// The wait for acks ends with some unknown.
    pub(crate) timeouts: u8,
    /// Another session locks a row.
    pub(crate) locks: u8,
    /// Postgres crashes.
    pub(crate) databases: u8,
    /// A relay is given other lanes.
    pub(crate) shares: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// Row `id` is at `id - 1`.
    pub(crate) rows: Vec<Row>,
    /// Rows in the order in which their transactions committed.
    pub(crate) committed: Vec<u8>,
    /// Rows in the order of their first occurrence.
    pub(crate) topic: Vec<u8>,
    pub(crate) relays: Vec<Relay>,
    /// What dropped, killed and frozen producers had sent: each list may yet arrive, in its order, wholly or in part.
    pub(crate) adrift: Vec<Vec<u8>>,
    /// The row another session has locked.
    pub(crate) locked_elsewhere: Option<u8>,
    /// Marks that a crash of Postgres loses: `synchronous_commit` is off for them.
    pub(crate) unflushed: Rows,
    pub(crate) faults: Faults,
    /// A row was marked by a session that had not locked it.
    pub(crate) marked_by_a_stranger: bool,
    /// A terminal row went back, other than by a crash of Postgres.
    pub(crate) regressed: bool,
}

impl State {
    pub(crate) fn row(&self, id: u8) -> Row {
        self.rows[usize::from(id) - 1]
    }

    pub(crate) fn set(&mut self, id: u8, row: Row) {
        self.rows[usize::from(id) - 1] = row;
    }

    pub(crate) fn all(&self, wanted: Row) -> Rows {
        (1u8..).zip(&self.rows).filter(|(_, row)| **row == wanted).map(|(id, _)| id).collect()
    }

    /// A record arrives; what is there already is a duplicate and changes no first occurrence.
    pub(crate) fn append(&mut self, row: u8) {
        if !self.topic.contains(&row) {
            self.topic.push(row);
        }
    }

    /// All is written and all that committed is marked.
    pub(crate) fn is_done(&self) -> bool {
        self.rows.iter().all(|row| matches!(row, Row::RolledBack | Row::Published))
    }
}
