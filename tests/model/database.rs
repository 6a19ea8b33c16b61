//! Postgres, as far as a claim depends on it. No I/O, no clock: each method is one event inside the server.
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

/// Of a row: the publishing order.
pub(crate) type Id = u8;
/// Of a transaction: `xid8`.
pub(crate) type Xid = u8;
/// Names an event for ever. After a lost tail, two events may have had one id.
pub(crate) type Event = u8;
/// What must stay in order.
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

/// `pg_snapshot`. The xmin is left out: nothing below `xmax` runs unless it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Snapshot {
    pub(crate) xmax: Xid,
    /// Ascending, all below `xmax`.
    pub(crate) running: Vec<Xid>,
}

impl Snapshot {
    /// Sees nothing: `3:3:`.
    pub(crate) fn nothing() -> Self {
        Self { xmax: 0, running: Vec::new() }
    }

    /// `pg_visible_in_snapshot`.
    pub(crate) fn sees(&self, xid: Xid) -> bool {
        xid < self.xmax && !self.running.contains(&xid)
    }

    /// Sees exactly what both see. True wherever one of the two is.
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
    /// The column `xid`: of the transaction that made the row pending in its lane.
    pub(crate) xid: Xid,
    pub(crate) status: Status,
    /// Stands for the ctid: each change makes a new version.
    pub(crate) version: u8,
    /// Events of the entity that must be on the topic before this one: their transactions were over before this row's writer began.
    pub(crate) follows: Events,
}

/// Why rows are stepped over and not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Why {
    /// Another session had locked a row, or changed it.
    Locked,
    /// An operator's.
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

/// Progress of lanes: which rows are settled or held.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Progress {
    pub(crate) c: Id,
    pub(crate) s: Snapshot,
    /// k and T.
    pub(crate) sweep: Option<(Id, Snapshot)>,
}

impl Progress {
    /// Nothing is known.
    pub(crate) fn none() -> Self {
        Self { c: 0, s: Snapshot::nothing(), sweep: None }
    }

    /// The invariant I2: such a row is settled or held.
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

/// What is committed and visible.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Data {
    pub(crate) rows: BTreeMap<Id, Row>,
    pub(crate) lanes: Vec<Lane>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Write {
    /// The row's `xid` is the transaction's.
    Insert(Id, Entity, Event, Events),
    Mark(Id, Status),
    /// In `delete` mode, or the application's.
    Delete(Id),
    /// A change that the relay does not care about.
    Patch(Id),
    /// The entity becomes another, or a DEAD row PENDING: the trigger gives the row a new `xid`.
    Reopen(Id, Entity, Events),
    /// `update … set xid`, which no operator's command does.
    SetXid(Id),
    /// The row keeps a `xid` that is not its transaction's, which the triggers do not allow.
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

/// Who has a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Session {
    Writer(usize),
    Relay(usize),
    /// The server's side of a relay that was killed while its commit stalled.
    Orphan(usize),
    /// Locks and changes pending rows.
    Application,
    Operator,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    #[default]
    Open,
    /// Survives a crash, and runs on.
    Prepared,
    /// The commit is on disk and still in the running list: it waits for a synchronous standby, for example.
    OnDisk,
    /// Visible; the entity lock is still held.
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
    /// Has given up its entity lock while it still runs, which Postgres never does.
    pub(crate) unlocked: bool,
}

/// What a crash leaves.
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
    /// What is on disk or on the standby, once it is decided that no later commit gets there.
    durable: Option<Box<Durable>>,
    /// How often it has started. A relay compares it (rule 7).
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

    /// `pg_current_snapshot()`, asked by `own`.
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

    /// A transaction that concerns nobody comes and goes; or a savepoint of a transaction that runs on rolls back.
    pub(crate) fn complete_another(&mut self) {
        self.next_xid += 1;
        self.xmax = self.next_xid;
    }

    pub(crate) fn entity_is_locked(&self, entity: Entity) -> bool {
        self.transactions.values().any(|transaction| transaction.entity == Some(entity))
    }

    /// True when a session other than `own` has the row; `SKIP LOCKED` skips it then.
    pub(crate) fn row_is_locked(&self, id: Id, own: Session) -> bool {
        let others = self.transactions.iter().filter(|(session, _)| **session != own);
        others
            .filter(|(_, transaction)| transaction.stage != Stage::Left)
            .any(|(_, transaction)| transaction.rows.contains(&id))
    }

    pub(crate) fn lane_is_locked(&self, lane: usize) -> bool {
        self.transactions.values().any(|transaction| transaction.lanes.contains(&lane))
    }

    /// Events of an entity with a smaller id whose transactions are over: a writer that begins now comes behind them.
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

    /// Leaves the running list: from here on snapshots see what was written, and row and lane locks are free. The entity lock is not.
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
        // Nobody who began earlier has to wait for them.
        let reopened: Vec<Event> = reopened.collect();
        self.free_followers(&reopened);
        if transaction.entity.is_some() {
            let entity = transaction.entity.take();
            self.transactions.insert(session, Transaction { stage: Stage::Left, entity, ..Transaction::default() });
        }
    }

    /// Nothing has to follow these events any more.
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

    /// The second half of a commit.
    pub(crate) fn release_locks(&mut self, session: Session) {
        self.transactions.remove(&session);
    }

    pub(crate) fn roll_back(&mut self, session: Session) {
        if let Some(Transaction { xid: Some(xid), .. }) = self.transactions.remove(&session) {
            self.xmax = self.xmax.max(xid + 1);
        }
    }

    /// No commit that comes after this one gets to the disk, or to the standby.
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

    /// The crash or the failover. Ids and transaction ids go back as far as they can: farther than a write-ahead log takes a sequence,
    /// as a restore does.
    pub(crate) fn lose_tail(&mut self) {
        let Some(durable) = self.durable.take() else { return };
        let before: BTreeSet<_> = self.data.rows.values().map(|row| (row.entity, row.event)).collect();
        self.data = durable.data;
        self.transactions = durable.prepared;
        // Rows whose delete or move was lost come back; what was sent meanwhile was right to pass them.
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

    /// Every transaction id there is, to give them new names in the same order.
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
