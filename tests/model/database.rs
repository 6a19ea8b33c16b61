//! Models Postgres, as far as a claim depends on it. There is no I/O and no clock: each method is one event inside the server.
//!
//! A transaction goes through these states: open -> (on disk) -> left the running list -> locks released.
//!
//! - **Ids and transaction ids are allocated independently.** A sequence gives an id before or after the transaction has a transaction id.
//! - **A snapshot's `xmax` is the last completed transaction + 1.** Transactions from `xmax` on may be running; the snapshot does not
//!   list them. A transaction that rolls back completes too, and so does a savepoint that rolls back ([`Database::complete_another`]).
//! - **A snapshot does not list the transaction that takes it.** So `Snapshot::sees` is true for the taker's own transaction id.
//! - **A commit stalls.** After [`Database::write_commit`] the transaction is on disk, and is still running for everybody else.
//! - **A commit leaves the running list before it releases its entity locks.** Row locks count as free once their holder is not running.
//! - **A savepoint's rows carry the transaction id of the top level**, as `pg_current_xact_id()` gives it. So a row has one `xid` only.
//! - **A crash or a failover loses the last commits**, and ids and transaction ids are allocated again ([`Database::lose_tail`]).
//!   What is on disk or prepared stays.

use std::collections::{BTreeMap, BTreeSet};

/// The id of a row, which is the publishing order.
pub(crate) type Id = u8;
/// The `xid8` of a transaction.
pub(crate) type Xid = u8;
/// The permanent name of an event. After a lost tail, two events may have had the same id.
pub(crate) type Event = u8;
/// The entity of an event. Events of one entity must stay in order.
pub(crate) type Entity = char;

/// A set of events.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Events(u64);

impl Events {
    pub(crate) fn contains(self, event: Event) -> bool {
        self.0 & (1 << event) != 0
    }

    pub(crate) fn insert(&mut self, event: Event) {
        self.0 |= 1 << event;
    }

    pub(crate) fn remove(&mut self, event: Event) {
        self.0 &= !(1 << event);
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Event> {
        (0..64).filter(move |event| self.contains(*event))
    }
}

impl FromIterator<Event> for Events {
    fn from_iter<I: IntoIterator<Item = Event>>(events: I) -> Self {
        let mut set = Self::default();
        events.into_iter().for_each(|event| set.insert(event));
        set
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A `pg_snapshot`. The xmin is left out, because everything below `xmax` that is not listed has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Snapshot {
    pub(crate) xmax: Xid,
    /// The listed transactions, ascending and all below `xmax`.
    pub(crate) running: Vec<Xid>,
}

impl Snapshot {
    /// Returns the snapshot `3:3:`, which sees nothing.
    pub(crate) fn nothing() -> Self {
        Self { xmax: 0, running: Vec::new() }
    }

    /// Returns the same as `pg_visible_in_snapshot`.
    pub(crate) fn sees(&self, xid: Xid) -> bool {
        xid < self.xmax && !self.running.contains(&xid)
    }

    /// Returns a snapshot that sees exactly the transactions that both see. Progress that is true under one of the two is true under the
    /// result.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let xmax = self.xmax.min(other.xmax);
        let running: BTreeSet<Xid> = self.running.iter().chain(&other.running).copied().filter(|x| *x < xmax).collect();
        Self { xmax, running: running.into_iter().collect() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Status {
    Pending,
    Published,
    Dead,
}

/// The committed version of a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) entity: Entity,
    pub(crate) event: Event,
    /// The column `xid`: the transaction that made the row pending in its lane.
    pub(crate) xid: Xid,
    pub(crate) status: Status,
    /// Stands for the ctid: each change makes a new version.
    pub(crate) version: u8,
    /// The events of the entity that must be on the topic before this one. Their transactions were over before this row's writer began.
    pub(crate) follows: Events,
}

/// The reason why a claim steps over rows and does not send them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Why {
    /// Another session had locked a row, or had changed it.
    Locked,
    /// An operator paused the entity.
    Pause,
}

/// A row of `event_outbox_hold`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Hold {
    pub(crate) entity: Entity,
    pub(crate) from: Id,
    pub(crate) why: Why,
    pub(crate) released: bool,
}

/// The progress of lanes: which rows are settled or held.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Progress {
    pub(crate) c: Id,
    pub(crate) s: Snapshot,
    /// The sweep's k and T.
    pub(crate) sweep: Option<(Id, Snapshot)>,
}

impl Progress {
    /// Returns the progress of lanes about which nothing is known.
    pub(crate) fn none() -> Self {
        Self { c: 0, s: Snapshot::nothing(), sweep: None }
    }

    /// Returns true if the progress covers the row. By invariant I2 such a row is settled or held.
    pub(crate) fn covers(&self, id: Id, xid: Xid) -> bool {
        match &self.sweep {
            Some((k, t)) if id <= *k => t.sees(xid),
            _ => id <= self.c && self.s.sees(xid),
        }
    }
}

/// A row of `event_outbox_lane`, and the lane's holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lane {
    pub(crate) nonce: u8,
    pub(crate) progress: Progress,
    pub(crate) holds: Vec<Hold>,
}

/// The committed and visible state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Data {
    pub(crate) rows: BTreeMap<Id, Row>,
    pub(crate) lanes: Vec<Lane>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Write {
    /// Inserts a row with the transaction's `xid`.
    Insert(Id, Entity, Event, Events),
    Mark(Id, Status),
    /// Deletes a row: the relay in `delete` mode, or the application.
    Delete(Id),
    /// Changes a column that has no influence on the relay.
    Patch(Id),
    /// Moves a row to another entity, or sets a DEAD row PENDING. The trigger gives the row a new `xid`.
    Reopen(Id, Entity, Events),
    /// Runs `update … set xid`, which no operator's command does.
    SetXid(Id),
    /// Sets a `xid` that is not the transaction's, which the triggers do not allow.
    ForeignXid(Id, Xid),
    Lane(usize, Lane),
    DeleteHold(usize, Entity),
}

impl Write {
    fn row(&self) -> Option<Id> {
        match self {
            Write::Insert(id, ..) | Write::Mark(id, _) | Write::Delete(id) | Write::Patch(id) => Some(*id),
            Write::Reopen(id, ..) | Write::SetXid(id) | Write::ForeignXid(id, _) => Some(*id),
            Write::Lane(..) | Write::DeleteHold(..) => None,
        }
    }
}

/// The owner of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Session {
    Writer(usize),
    Relay(usize),
    /// The server process of a relay that was killed while its commit stalled.
    Orphan(usize),
    /// An application that locks and changes pending rows.
    Application,
    Operator,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    #[default]
    Open,
    /// Prepared: the transaction survives a crash and runs on.
    Prepared,
    /// The commit is on disk but still in the running list, for example because it waits for a synchronous standby.
    OnDisk,
    /// The writes are visible, but the entity lock is still held.
    Left,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Transaction {
    pub(crate) xid: Option<Xid>,
    pub(crate) stage: Stage,
    pub(crate) writes: Vec<Write>,
    pub(crate) rows: BTreeSet<Id>,
    pub(crate) lanes: BTreeSet<usize>,
    pub(crate) entity: Option<Entity>,
    /// True after the transaction gave up its entity lock while still running, which Postgres never does.
    pub(crate) unlocked: bool,
}

/// The state that survives a crash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Durable {
    data: Data,
    prepared: BTreeMap<Session, Transaction>,
    next_id: Id,
    next_xid: Xid,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    pub(crate) data: Data,
    pub(crate) transactions: BTreeMap<Session, Transaction>,
    /// The sequence's last value.
    pub(crate) last_id: Id,
    pub(crate) next_xid: Xid,
    /// The last completed transaction + 1.
    pub(crate) xmax: Xid,
    /// The state on disk or on the standby, after it is decided that no later commit gets there.
    durable: Option<Box<Durable>>,
    /// The number of starts of the server. A relay compares it (rule 7).
    pub(crate) started: u8,
}

impl Database {
    pub(crate) fn new(lanes: usize) -> Self {
        let lane = Lane { nonce: 0, progress: Progress::none(), holds: Vec::new() };
        Self {
            data: Data { rows: BTreeMap::new(), lanes: vec![lane; lanes] },
            transactions: BTreeMap::new(),
            last_id: 0,
            next_xid: 1,
            xmax: 1,
            durable: None,
            started: 0,
        }
    }

    /// Returns `pg_current_snapshot()` as seen by session `own`.
    pub(crate) fn snapshot(&self, own: Session) -> Snapshot {
        let others =
            self.transactions.iter().filter(|(session, _)| **session != own).map(|(_, transaction)| transaction);
        let running: BTreeSet<Xid> = others.filter_map(Transaction::running).filter(|xid| *xid < self.xmax).collect();
        Snapshot { xmax: self.xmax, running: running.into_iter().collect() }
    }

    pub(crate) fn begin(&mut self, session: Session) -> &mut Transaction {
        self.transactions.entry(session).or_default()
    }

    pub(crate) fn assign_xid(&mut self, session: Session) {
        let next = self.next_xid;
        let transaction = self.begin(session);
        if transaction.xid.is_none() {
            transaction.xid = Some(next);
            self.next_xid += 1;
        }
    }

    pub(crate) fn allocate_id(&mut self) -> Id {
        self.last_id += 1;
        self.last_id
    }

    /// Completes a transaction without outbox rows, or rolls back a savepoint of a transaction that runs on.
    pub(crate) fn complete_another(&mut self) {
        self.next_xid += 1;
        self.xmax = self.next_xid;
    }

    pub(crate) fn entity_is_locked(&self, entity: Entity) -> bool {
        self.transactions.values().any(|transaction| transaction.entity == Some(entity))
    }

    /// Returns true when a session other than `own` has the row; `SKIP LOCKED` then skips it.
    pub(crate) fn row_is_locked(&self, id: Id, own: Session) -> bool {
        let others = self.transactions.iter().filter(|(session, _)| **session != own);
        others
            .filter(|(_, transaction)| transaction.stage != Stage::Left)
            .any(|(_, transaction)| transaction.rows.contains(&id))
    }

    pub(crate) fn lane_is_locked(&self, lane: usize) -> bool {
        self.transactions.values().any(|transaction| transaction.lanes.contains(&lane))
    }

    /// Returns the entity's events with a smaller id whose transactions are over. A writer that begins now comes behind them.
    pub(crate) fn over(&self, entity: Entity, below: Id) -> Events {
        let visible = self.data.rows.range(..below).filter(|(_, row)| row.entity == entity).map(|(_, row)| row.event);
        let unlocked = self.transactions.values().filter(|transaction| transaction.unlocked);
        let unlocked = unlocked.flat_map(|transaction| &transaction.writes).filter_map(|write| match write {
            Write::Insert(id, of, event, _) if *id < below && *of == entity => Some(*event),
            _ => None,
        });
        visible.chain(unlocked).collect()
    }

    pub(crate) fn write_commit(&mut self, session: Session) {
        self.begin(session).stage = Stage::OnDisk;
    }

    /// Takes the transaction off the running list. From here on snapshots see its writes, and its row and lane locks are free; the entity
    /// lock is not.
    pub(crate) fn leave(&mut self, session: Session) {
        let Some(mut transaction) = self.transactions.remove(&session) else { return };
        self.data.apply(&transaction);
        if let Some(xid) = transaction.xid {
            self.xmax = self.xmax.max(xid + 1);
        }
        let reopened = transaction.writes.iter().filter_map(|write| match write {
            Write::Reopen(id, ..) | Write::SetXid(id) => self.data.rows.get(id).map(|row| row.event),
            _ => None,
        });
        // A writer that began before the row was reopened does not have to wait for the row.
        let reopened: Vec<Event> = reopened.collect();
        self.free_followers(&reopened);
        if transaction.entity.is_some() {
            let entity = transaction.entity.take();
            self.transactions.insert(session, Transaction { stage: Stage::Left, entity, ..Transaction::default() });
        }
    }

    /// Removes these events from every `follows`: nothing has to wait for them any more.
    fn free_followers(&mut self, events: &[Event]) {
        let written = self.transactions.values_mut().flat_map(|transaction| &mut transaction.writes);
        let written = written.filter_map(|write| match write {
            Write::Insert(_, _, _, follows) | Write::Reopen(_, _, follows) => Some(follows),
            _ => None,
        });
        for follows in self.data.rows.values_mut().map(|row| &mut row.follows).chain(written) {
            events.iter().for_each(|event| follows.remove(*event));
        }
    }

    /// Releases the entity lock: the second half of a commit.
    pub(crate) fn release_locks(&mut self, session: Session) {
        self.transactions.remove(&session);
    }

    pub(crate) fn roll_back(&mut self, session: Session) {
        if let Some(Transaction { xid: Some(xid), .. }) = self.transactions.remove(&session) {
            self.xmax = self.xmax.max(xid + 1);
        }
    }

    /// Stops flushing: no later commit gets to the disk, or to the standby.
    pub(crate) fn stop_flushing(&mut self) {
        let mut data = self.data.clone();
        let on_disk: Vec<_> = self.transactions.values().filter(|t| t.stage == Stage::OnDisk).collect();
        on_disk.iter().for_each(|transaction| data.apply(transaction));
        let prepared: BTreeMap<_, _> = self
            .transactions
            .iter()
            .filter(|(_, t)| t.stage == Stage::Prepared)
            .map(|(s, t)| (*s, t.clone()))
            .collect();
        let inserted = prepared.values().flat_map(|t| &t.writes).filter_map(Write::row);
        let kept = on_disk.into_iter().chain(prepared.values()).filter_map(|transaction| transaction.xid);
        self.durable = Some(Box::new(Durable {
            next_id: data.rows.keys().copied().chain(inserted).max().unwrap_or(0),
            next_xid: kept.map(|xid| xid + 1).fold(self.xmax, Xid::max),
            data,
            prepared,
        }));
    }

    pub(crate) fn flushes(&self) -> bool {
        self.durable.is_none()
    }

    /// Crashes or fails over and loses the last commits. Ids and transaction ids go back as far as possible. A restore takes a sequence
    /// back farther than a write-ahead log does, so the model allows this.
    pub(crate) fn lose_tail(&mut self) {
        let Some(durable) = self.durable.take() else { return };
        let before: BTreeSet<_> = self.data.rows.values().map(|row| (row.entity, row.event)).collect();
        self.data = durable.data;
        self.transactions = durable.prepared;
        // Rows whose delete or move was lost come back. Events that were sent meanwhile were right to pass them.
        let back: Vec<Event> = self
            .data
            .rows
            .values()
            .filter(|row| !before.contains(&(row.entity, row.event)))
            .map(|row| row.event)
            .collect();
        self.free_followers(&back);
        self.last_id = durable.next_id;
        self.next_xid = durable.next_xid;
        self.xmax = durable.next_xid;
        self.started += 1;
    }

    /// Returns every transaction id, to renumber them in the same order.
    pub(crate) fn xids(&mut self) -> Vec<&mut Xid> {
        let mut all = vec![&mut self.next_xid, &mut self.xmax];
        all.extend(self.data.xids());
        all.extend(self.transactions.values_mut().flat_map(Transaction::xids));
        if let Some(durable) = &mut self.durable {
            all.push(&mut durable.next_xid);
            all.extend(durable.data.xids());
            all.extend(durable.prepared.values_mut().flat_map(Transaction::xids));
        }
        all
    }

    pub(crate) fn nonces(&mut self) -> Vec<&mut u8> {
        let durable = self.durable.iter_mut().flat_map(|durable| &mut durable.data.lanes);
        let written = self.transactions.values_mut().flat_map(|t| &mut t.writes).filter_map(|write| match write {
            Write::Lane(_, lane) => Some(lane),
            _ => None,
        });
        self.data.lanes.iter_mut().chain(durable).chain(written).map(|lane| &mut lane.nonce).collect()
    }
}

impl Transaction {
    fn running(&self) -> Option<Xid> {
        self.xid.filter(|_| self.stage != Stage::Left)
    }

    fn xids(&mut self) -> Vec<&mut Xid> {
        let written = self.writes.iter_mut().map(|write| match write {
            Write::Lane(_, lane) => lane.progress.xids(),
            Write::ForeignXid(_, xid) => vec![xid],
            _ => Vec::new(),
        });
        self.xid.iter_mut().chain(written.flatten()).collect()
    }
}

impl Data {
    fn apply(&mut self, transaction: &Transaction) {
        let xid = transaction.xid.unwrap_or_default();
        for write in &transaction.writes {
            if let Write::Insert(id, entity, event, follows) = write {
                let row =
                    Row { entity: *entity, event: *event, xid, status: Status::Pending, version: 0, follows: *follows };
                self.rows.insert(*id, row);
            }
            if let Some(row) = write.row().and_then(|id| self.rows.get_mut(&id)) {
                row.apply(write, xid);
            }
            match write {
                Write::Delete(id) => _ = self.rows.remove(id),
                Write::Lane(lane, to) => self.lanes[*lane] = to.clone(),
                Write::DeleteHold(lane, entity) => self.lanes[*lane].holds.retain(|hold| hold.entity != *entity),
                _ => {}
            }
        }
    }

    fn xids(&mut self) -> Vec<&mut Xid> {
        let rows = self.rows.values_mut().map(|row| &mut row.xid);
        rows.chain(self.lanes.iter_mut().flat_map(|lane| lane.progress.xids())).collect()
    }
}

impl Row {
    fn apply(&mut self, write: &Write, xid: Xid) {
        match write {
            Write::Mark(_, status) => self.status = *status,
            Write::Patch(_) => self.version += 1,
            Write::Reopen(_, entity, follows) => {
                self.version += 1;
                self.entity = *entity;
                self.status = Status::Pending;
                self.xid = xid;
                self.follows = *follows;
            }
            Write::SetXid(_) => {
                self.version += 1;
                self.xid = xid;
            }
            Write::ForeignXid(_, foreign) => self.xid = *foreign,
            _ => {}
        }
    }
}

impl Progress {
    pub(crate) fn xids(&mut self) -> Vec<&mut Xid> {
        let sweep = self.sweep.iter_mut().map(|(_, t)| t);
        std::iter::once(&mut self.s).chain(sweep).flat_map(Snapshot::xids).collect()
    }
}

impl Snapshot {
    pub(crate) fn xids(&mut self) -> Vec<&mut Xid> {
        std::iter::once(&mut self.xmax).chain(&mut self.running).collect()
    }
}
