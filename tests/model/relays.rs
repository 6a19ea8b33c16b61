//! Models the claim protocol of `docs/explanation/model.md`: relays that contend for lanes, writers, an application that changes pending
//! rows, an operator, Kafka, and faults. A step is one message to a server, or one answer. Between two steps anything else may happen, so a
//! relay that SIGSTOP freezes is a relay that takes no step.
//!
//! A relay's cycle: idle -> locked -> looked -> sent -> settled -> idle.
//!
//! [`Protocol`] is the model for stateright; `histories` walks through the same steps at random with larger bounds.

use std::collections::BTreeMap;

use stateright::{Model, Property};

use crate::claim::{self, Limits, Look, Taken, merge};
use crate::database::{
    Database, Entity, Event, Events, Hold, Id, Lane, Row, Session, Snapshot, Stage, Status, Why, Write, Xid,
};

/// A mistake built into the protocol on purpose; a test catches each one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    Claim(claim::Flaw),
    /// N1: the claim's own statement locks the lanes, so its snapshot is older than the lock.
    LockAndClaimTogether,
    /// B3: a row keeps its `xid` when it moves to another entity.
    MovedRowKeepsXid,
    /// B4: an insert sets a `xid` that is not its transaction's.
    ForeignXid,
    /// B5: an `update … set xid` over a hold's rows releases the hold.
    ReleaseByXid,
    /// B6: a relay trusts its memory of a lane even if the lane's nonce has changed.
    MemoryOutlivesConnection,
    /// Rule 7 taken literally: a relay compares the nonce and `pg_postmaster_start_time()`. Behind a pooler neither changes when Postgres
    /// recovers from the crash of one backend.
    ComparesPostmasterOnly,
    /// N5, N6: a relay commits the new state while records of the batch are not acknowledged.
    NewStateInFlight,
    /// An operator changes a hold and leaves the lane's nonce unchanged.
    OperatorKeepsNonce,
    /// The same producer sends a failed record again, behind the records that went through.
    RetryOfAMiddleEvent,
    /// A relay whose session has ended makes its marks in a new session.
    MarkWithoutOwnership,
    /// Postgres gives up a transaction's locks before the transaction leaves the running list. A flaw of Postgres, not of the relay.
    LocksReleasedFirst,
}

/// A transaction of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Writer {
    /// Entities of its rows, in order.
    pub(crate) rows: Vec<Entity>,
    /// Locks the first row's entity before it allocates an id, as `outbox_emit` does.
    pub(crate) locks: bool,
    pub(crate) may_roll_back: bool,
    pub(crate) may_prepare: bool,
}

/// The number of times that each fault may still happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// A relay is killed and starts again.
    pub(crate) crashes: u8,
    /// The server ends a relay's session. The relay notices with its next statement.
    pub(crate) sessions: u8,
    /// The wait for acknowledgements times out, and some results are unknown.
    pub(crate) timeouts: u8,
    /// Postgres loses its last commits.
    pub(crate) tails: u8,
    /// The application locks a pending row and may change the row.
    pub(crate) locks: u8,
    /// The application moves a row that it has locked to another entity.
    pub(crate) moves: u8,
    pub(crate) deletes: u8,
    /// An operator pauses an entity.
    pub(crate) pauses: u8,
    /// An operator makes a DEAD row PENDING.
    pub(crate) revivals: u8,
    /// A transaction without outbox rows completes.
    pub(crate) others: u8,
    /// The sequence is set back to its start.
    pub(crate) resets: u8,
    /// A relay probes for rows without locks.
    pub(crate) probes: u8,
}

#[derive(Debug, Clone)]
pub(crate) struct Protocol {
    pub(crate) writers: Vec<Writer>,
    /// The last entity of each lane: `a..=lanes[0]` are lane 0.
    pub(crate) lanes: &'static [Entity],
    /// The lanes assigned to each relay.
    pub(crate) relays: &'static [&'static [usize]],
    pub(crate) limits: Limits,
    /// Settling deletes rows.
    pub(crate) deletes: bool,
    /// A batch writes only the lanes that had events. The others keep their stored progress, and their nonce.
    pub(crate) lags: bool,
    /// Events that go DEAD instead of to the topic, as long as their row is unchanged.
    pub(crate) poison: &'static [Event],
    /// A relay connects through a pooler between cycles, so its connection survives a crash of Postgres.
    pub(crate) pooler: bool,
    /// Merges lock, look and take into one step, and a settle with the end of its commit. A claim that finds nothing is then no step.
    pub(crate) coarse: bool,
    /// The entities to which the application moves rows.
    pub(crate) moves_to: &'static [Entity],
    pub(crate) faults: Faults,
    pub(crate) flaw: Option<Flaw>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum WriterStage {
    Waiting,
    /// The transaction is open, and this many of its rows have an id.
    Open(usize),
    Ended,
}

/// A record on its way to the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Record {
    event: Event,
    entity: Entity,
}

/// The point of its cycle at which a relay believes itself to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    /// The claim's statement has its snapshot, but no lock yet.
    Snapped(Box<Database>),
    /// The relay has locked these lanes. The snapshot is the lock statement's.
    Locked(Vec<usize>, Snapshot, Option<Box<Database>>),
    Looked(Box<Look>),
    /// The producer has the records; the listed records are not on the topic yet.
    Sent(Box<Look>, Taken, Vec<Record>),
    /// The relay has sent its commit. After the answer, it knows these rows of its lanes.
    Settled(BTreeMap<usize, Lane>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Relay {
    pub(crate) phase: Phase,
    /// The lanes' rows as the relay knows them. Only S may be ahead of the table.
    pub(crate) memory: BTreeMap<usize, Lane>,
    /// The start of the server that the relay last saw.
    started: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) database: Database,
    pub(crate) writers: Vec<WriterStage>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) topic: Events,
    /// Records of dropped, killed and frozen producers. Each list may still arrive, in its order, completely or in part.
    adrift: Vec<Vec<Record>>,
    next_nonce: u8,
    faults: Faults,
    /// An event that got to the topic before an event that it follows, and the latter.
    pub(crate) inverted: Option<(Event, Event)>,
    pub(crate) marked_by_a_stranger: bool,
    pub(crate) regressed: bool,
    /// True after a row was sent although its entity is paused.
    pub(crate) sent_in_a_pause: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    // Writers.
    LockEntity(usize),
    AssignXid(usize),
    AllocateId(usize),
    Prepare(usize),
    WriteCommit(usize),
    Leave(usize),
    ReleaseLocks(usize),
    RollBack(usize),
    /// A transaction without outbox rows, or a savepoint that rolls back, completes.
    AnotherCompletes,
    SetSequenceBack,
    // A relay's cycle.
    /// Merges all steps up to [`Step::Take`].
    Claim(usize, bool),
    Probe(usize),
    Snap(usize),
    Lock(usize),
    /// The claim's statement, with a look at the `locked` holds or without.
    Look(usize, bool),
    Take(usize),
    Append(usize, Entity),
    Settle(usize),
    CommitLeaves(Session),
    // Kafka.
    ArriveLate(usize, Event),
    Refuse(usize, Entity),
    // The application and the operator.
    LockRow(Id),
    MoveRow(Id, Entity),
    PatchRow(Id),
    DeleteRow(Id),
    ApplicationEnds(bool),
    Pause(Entity),
    Release(Entity),
    ReleaseByXid(Entity),
    OperatorCommits,
    Revive(Id),
    // Faults.
    Crash(usize),
    SessionEnds(usize),
    Timeout(usize),
    /// No later commit reaches the disk.
    StopFlushing,
    LoseTail,
}

impl Step {
    /// Returns true for a step of the environment against the protocol. Without these steps, everything must be published in the end.
    pub(crate) fn is_fault(self) -> bool {
        use Step::{
            AnotherCompletes, ArriveLate, Crash, DeleteRow, LockRow, LoseTail, MoveRow, PatchRow, Pause, Prepare,
            Probe, Refuse, Revive, RollBack, SessionEnds, SetSequenceBack, StopFlushing, Timeout,
        };
        let of_servers =
            matches!(self, Crash(_) | SessionEnds(_) | Timeout(_) | StopFlushing | LoseTail | ArriveLate(..));
        let of_people =
            matches!(self, LockRow(_) | MoveRow(..) | PatchRow(_) | DeleteRow(_) | Pause(_) | Revive(_) | Refuse(..));
        of_servers
            || of_people
            || matches!(self, RollBack(_) | Prepare(_) | AnotherCompletes | SetSequenceBack | Probe(_))
    }
}

impl Protocol {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    pub(crate) fn lane_of(&self, entity: Entity) -> usize {
        self.lanes.iter().position(|last| entity <= *last).unwrap_or_default()
    }

    fn limits(&self) -> Limits {
        let flaw = match self.flaw {
            Some(Flaw::Claim(flaw)) => Some(flaw),
            _ => None,
        };
        Limits { flaw, ..self.limits }
    }

    /// Returns the relay's lanes if nobody has locked them.
    fn free_lanes(&self, world: &World, index: usize) -> Option<Vec<usize>> {
        let lanes = self.relays[index].iter().copied();
        let free: Vec<usize> = lanes.filter(|lane| !world.database.lane_is_locked(*lane)).collect();
        (!free.is_empty()).then_some(free)
    }

    /// Returns the number of the writer's event.
    fn event(&self, writer: usize, row: usize) -> Event {
        let before: usize = self.writers[..writer].iter().map(|writer| writer.rows.len()).sum();
        (before + row) as Event
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let relay = Relay { phase: Phase::Idle, memory: BTreeMap::new(), started: 0 };
        vec![World {
            database: Database::new(self.lanes.len()),
            writers: vec![WriterStage::Waiting; self.writers.len()],
            relays: vec![relay; self.relays.len()],
            topic: Events::default(),
            adrift: Vec::new(),
            next_nonce: 1,
            faults: self.faults,
            inverted: None,
            marked_by_a_stranger: false,
            regressed: false,
            sent_in_a_pause: false,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        (0..self.writers.len()).for_each(|writer| self.writer_steps(world, writer, steps));
        (0..self.relays.len()).for_each(|relay| self.relay_steps(world, relay, steps));
        for (index, records) in world.adrift.iter().enumerate() {
            steps.extend(firsts(records).map(|record| Step::ArriveLate(index, record.event)));
        }
        self.people_steps(world, steps);
        let faults = &world.faults;
        steps.extend((faults.others > 0).then_some(Step::AnotherCompletes));
        steps.extend((faults.resets > 0).then_some(Step::SetSequenceBack));
        if faults.tails > 0 {
            steps.push(if world.database.flushes() { Step::StopFlushing } else { Step::LoseTail });
        }
        for session in world.database.transactions.keys() {
            if matches!(session, Session::Orphan(_)) {
                steps.push(Step::CommitLeaves(*session));
            }
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        self.apply(&mut world, step)?;
        for (id, row) in &last.database.data.rows {
            let after = world.database.data.rows.get(id).filter(|after| after.event == row.event);
            let went_back = row.status == Status::Published && after.is_some_and(|row| row.status != Status::Published);
            world.regressed |= went_back && step != Step::LoseTail;
        }
        // A record of an event that is already on the topic changes nothing when it arrives.
        world.adrift.iter_mut().for_each(|records| records.retain(|record| !world.topic.contains(record.event)));
        world.adrift.retain(|records| !records.is_empty());
        world.adrift.sort();
        world.adrift.dedup();
        world.rename();
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        crate::properties::all()
    }
}

/// Returns the first record of each entity, because one partition's records arrive in order.
fn firsts(records: &[Record]) -> impl Iterator<Item = &Record> {
    let first = |at: usize| !records[..at].iter().any(|record| record.entity == records[at].entity);
    records.iter().enumerate().filter(move |(at, _)| first(*at)).map(|(_, record)| record)
}

/// Lists the possible steps.
impl Protocol {
    fn writer_steps(&self, world: &World, index: usize, steps: &mut Vec<Step>) {
        let writer = &self.writers[index];
        let database = &world.database;
        let transaction = database.transactions.get(&Session::Writer(index));
        let allocated = match world.writers[index] {
            WriterStage::Waiting => {
                match writer.locks {
                    true if database.entity_is_locked(writer.rows[0]) => {}
                    true => steps.push(Step::LockEntity(index)),
                    false => steps.extend([Step::AssignXid(index), Step::AllocateId(index)]),
                }
                return;
            }
            WriterStage::Open(allocated) => allocated,
            WriterStage::Ended => return,
        };
        let Some(transaction) = transaction else { return };
        let has_xid = transaction.xid.is_some();
        match transaction.stage {
            Stage::Left => return steps.push(Step::ReleaseLocks(index)),
            Stage::OnDisk if self.has(Flaw::LocksReleasedFirst) && !transaction.unlocked => {
                return steps.push(Step::ReleaseLocks(index));
            }
            Stage::OnDisk => return steps.push(Step::Leave(index)),
            Stage::Prepared => {}
            Stage::Open => {
                if !has_xid {
                    steps.push(Step::AssignXid(index));
                }
                // The transaction writes a row, and so has a transaction id, before it allocates the next id.
                if allocated < writer.rows.len() && (allocated == 0 || has_xid) {
                    steps.push(Step::AllocateId(index));
                }
            }
        }
        let whole = allocated == writer.rows.len() && has_xid;
        if whole {
            let in_two = world.faults.tails > 0 || self.has(Flaw::LocksReleasedFirst);
            steps.push(if in_two { Step::WriteCommit(index) } else { Step::Leave(index) });
            if writer.may_prepare && transaction.stage == Stage::Open {
                steps.push(Step::Prepare(index));
            }
        }
        if writer.may_roll_back && has_xid {
            steps.push(Step::RollBack(index));
        }
    }

    fn relay_steps(&self, world: &World, index: usize, steps: &mut Vec<Step>) {
        let (relay, faults) = (&world.relays[index], &world.faults);
        let in_transaction = world.database.transactions.contains_key(&Session::Relay(index));
        match &relay.phase {
            Phase::Idle => {
                if self.has(Flaw::LockAndClaimTogether) {
                    steps.push(Step::Snap(index));
                } else if let Some(lanes) = self.free_lanes(world, index) {
                    if !self.coarse {
                        steps.push(Step::Lock(index));
                    } else {
                        steps.push(Step::Claim(index, true));
                        let held = |lane: &usize| !world.database.data.lanes[*lane].holds.is_empty();
                        steps.extend(lanes.iter().any(held).then_some(Step::Claim(index, false)));
                    }
                }
                if faults.probes > 0 {
                    steps.push(Step::Probe(index));
                }
            }
            Phase::Snapped(_) => steps.push(Step::Lock(index)),
            Phase::Locked(lanes, ..) => {
                steps.push(Step::Look(index, true));
                if lanes.iter().any(|lane| !world.database.data.lanes[*lane].holds.is_empty()) {
                    steps.push(Step::Look(index, false));
                }
            }
            Phase::Looked(_) => steps.push(Step::Take(index)),
            Phase::Sent(_, _, queued) => {
                steps.extend(firsts(queued).map(|record| Step::Append(index, record.entity)));
                if queued.is_empty() {
                    steps.push(Step::Settle(index));
                } else if faults.timeouts > 0 {
                    steps.push(Step::Timeout(index));
                    if self.has(Flaw::RetryOfAMiddleEvent) {
                        steps.extend(firsts(queued).map(|record| Step::Refuse(index, record.entity)));
                    }
                }
            }
            Phase::Settled(_) => steps.push(Step::CommitLeaves(Session::Relay(index))),
        }
        if faults.crashes > 0 && (relay.phase != Phase::Idle || !relay.memory.is_empty()) {
            steps.push(Step::Crash(index));
        }
        if faults.sessions > 0 && in_transaction && !matches!(relay.phase, Phase::Settled(_)) {
            steps.push(Step::SessionEnds(index));
        }
    }

    fn people_steps(&self, world: &World, steps: &mut Vec<Step>) {
        let (database, faults) = (&world.database, &world.faults);
        let pending = database.data.rows.iter().filter(|(_, row)| row.status == Status::Pending);
        match database.transactions.get(&Session::Application) {
            Some(transaction) => {
                steps.extend([Step::ApplicationEnds(true), Step::ApplicationEnds(false)]);
                if let (Some(id), true) = (transaction.rows.first().copied(), transaction.writes.is_empty()) {
                    steps.push(Step::PatchRow(id));
                    if faults.moves > 0 {
                        steps.extend(self.moves_to.iter().map(|entity| Step::MoveRow(id, *entity)));
                    }
                    steps.extend((faults.deletes > 0).then_some(Step::DeleteRow(id)));
                }
            }
            None if faults.locks > 0 => {
                let free = pending.filter(|(id, _)| !database.row_is_locked(**id, Session::Application));
                steps.extend(free.map(|(id, _)| Step::LockRow(*id)));
            }
            None => {}
        }
        if faults.revivals > 0 {
            let dead = database.data.rows.iter().filter(|(_, row)| row.status == Status::Dead);
            steps.extend(dead.map(|(id, _)| Step::Revive(*id)));
        }
        if database.transactions.contains_key(&Session::Operator) {
            return steps.push(Step::OperatorCommits);
        }
        for lane in 0..self.lanes.len() {
            // The operator waits for the lane's lock.
            if database.lane_is_locked(lane) && !self.has(Flaw::OperatorKeepsNonce) {
                continue;
            }
            for hold in database.data.lanes[lane].holds.iter().filter(|hold| hold.why == Why::Pause && !hold.released) {
                let by_xid = self.has(Flaw::ReleaseByXid);
                steps.push(if by_xid { Step::ReleaseByXid(hold.entity) } else { Step::Release(hold.entity) });
            }
            if faults.pauses > 0 && database.data.lanes[lane].holds.is_empty() {
                let entity = self.writers.iter().map(|writer| writer.rows[0]).find(|e| self.lane_of(*e) == lane);
                steps.extend(entity.map(Step::Pause));
            }
        }
    }
}

/// Carries out the steps. A step that is not possible returns `None`.
impl Protocol {
    fn apply(&self, world: &mut World, step: Step) -> Option<()> {
        let database = &mut world.database;
        match step {
            Step::LockEntity(index) => {
                database.begin(Session::Writer(index)).entity = Some(self.writers[index].rows[0]);
                world.writers[index] = WriterStage::Open(0);
            }
            Step::AssignXid(index) => {
                database.assign_xid(Session::Writer(index));
                if world.writers[index] == WriterStage::Waiting {
                    world.writers[index] = WriterStage::Open(0);
                }
            }
            Step::AllocateId(index) => self.allocate_id(world, index),
            Step::Prepare(index) => database.begin(Session::Writer(index)).stage = Stage::Prepared,
            Step::WriteCommit(index) => database.write_commit(Session::Writer(index)),
            Step::Leave(index) => {
                database.leave(Session::Writer(index));
                if !self.writers[index].locks || self.has(Flaw::LocksReleasedFirst) {
                    world.writers[index] = WriterStage::Ended;
                }
            }
            Step::ReleaseLocks(index) if self.has(Flaw::LocksReleasedFirst) => {
                let transaction = database.begin(Session::Writer(index));
                transaction.entity = None;
                transaction.unlocked = true;
            }
            Step::ReleaseLocks(index) => {
                database.release_locks(Session::Writer(index));
                world.writers[index] = WriterStage::Ended;
            }
            Step::RollBack(index) => {
                database.roll_back(Session::Writer(index));
                world.writers[index] = WriterStage::Ended;
            }
            Step::AnotherCompletes => {
                world.faults.others -= 1;
                database.complete_another();
            }
            Step::SetSequenceBack => {
                world.faults.resets -= 1;
                // An id that is in the table cannot be allocated again.
                let allocated = |(writer, stage): (&Writer, &WriterStage)| match stage {
                    WriterStage::Open(allocated) => *allocated == writer.rows.len(),
                    stage => *stage == WriterStage::Ended,
                };
                self.writers.iter().zip(&world.writers).all(allocated).then_some(())?;
                database.last_id = 0;
            }
            Step::Claim(index, at_holds) => {
                self.lock(world, index)?;
                self.look(world, index, at_holds);
                self.take(world, index);
                (world.relays[index].phase != Phase::Idle).then_some(())?;
            }
            Step::Probe(index) => self.probe(world, index)?,
            Step::Snap(index) => world.relays[index].phase = Phase::Snapped(Box::new(database.clone())),
            Step::Lock(index) => self.lock(world, index)?,
            Step::Look(index, at_holds) => self.look(world, index, at_holds),
            Step::Take(index) => self.take(world, index),
            Step::Append(index, entity) => {
                let Phase::Sent(_, _, queued) = &mut world.relays[index].phase else { return None };
                let at = queued.iter().position(|record| record.entity == entity)?;
                let record = queued.remove(at);
                self.append(world, &record);
            }
            Step::Refuse(index, entity) => {
                world.faults.timeouts -= 1;
                let Phase::Sent(_, _, queued) = &mut world.relays[index].phase else { return None };
                let at = queued.iter().position(|record| record.entity == entity)?;
                let record = queued.remove(at);
                queued.push(record);
            }
            Step::Settle(index) => self.settle(world, index, false),
            Step::Timeout(index) => {
                world.faults.timeouts -= 1;
                self.settle(world, index, true);
            }
            Step::CommitLeaves(session) => world.commit_leaves(session),
            Step::ArriveLate(list, event) => {
                let at = world.adrift[list].iter().position(|record| record.event == event)?;
                let record = world.adrift[list].remove(at);
                self.append(world, &record);
            }
            Step::Crash(index) => {
                world.faults.crashes -= 1;
                world.drop_producer(index);
                let database = &mut world.database;
                match &world.relays[index].phase {
                    Phase::Settled(_) => {
                        if let Some(transaction) = database.transactions.remove(&Session::Relay(index)) {
                            database.transactions.insert(Session::Orphan(index), transaction);
                        }
                    }
                    _ => database.roll_back(Session::Relay(index)),
                }
                world.relays[index].phase = Phase::Idle;
                world.relays[index].memory.clear();
            }
            Step::SessionEnds(index) => {
                world.faults.sessions -= 1;
                database.roll_back(Session::Relay(index));
            }
            Step::StopFlushing => database.stop_flushing(),
            Step::LoseTail => self.lose_tail(world),
            _ => return self.people(world, step),
        }
        Some(())
    }

    fn people(&self, world: &mut World, step: Step) -> Option<()> {
        let database = &mut world.database;
        match step {
            Step::LockRow(id) => {
                world.faults.locks -= 1;
                database.assign_xid(Session::Application);
                database.begin(Session::Application).rows.insert(id);
            }
            Step::PatchRow(id) => database.begin(Session::Application).writes.push(Write::Patch(id)),
            Step::DeleteRow(id) => {
                world.faults.deletes -= 1;
                database.begin(Session::Application).writes.push(Write::Delete(id));
            }
            Step::MoveRow(id, entity) => {
                world.faults.moves -= 1;
                let row = database.data.rows.get(&id).filter(|row| row.entity != entity)?.clone();
                let follows = database.over(entity, id);
                let writes = &mut database.begin(Session::Application).writes;
                writes.push(Write::Reopen(id, entity, follows));
                if self.has(Flaw::MovedRowKeepsXid) {
                    writes.push(Write::ForeignXid(id, row.xid));
                }
            }
            Step::ApplicationEnds(true) => database.leave(Session::Application),
            Step::ApplicationEnds(false) => database.roll_back(Session::Application),
            Step::Revive(id) => {
                world.faults.revivals -= 1;
                let entity = database.data.rows.get(&id)?.entity;
                let mut follows = database.over(entity, id);
                follows.remove(database.data.rows.get(&id)?.event);
                database.assign_xid(Session::Operator);
                database.begin(Session::Operator).writes.push(Write::Reopen(id, entity, follows));
            }
            Step::Pause(entity) => {
                world.faults.pauses -= 1;
                let hold = Hold { entity, from: Id::MAX, why: Why::Pause, released: false };
                self.operate(world, entity, |holds| holds.push(hold));
            }
            Step::Release(entity) => self.operate(world, entity, |holds| {
                holds.iter_mut().filter(|hold| hold.entity == entity).for_each(|hold| hold.released = true);
            }),
            Step::ReleaseByXid(entity) => {
                let held = database.data.rows.iter();
                let held = held.filter(|(_, row)| row.entity == entity && row.status == Status::Pending);
                let mut writes: Vec<Write> = held.map(|(id, _)| Write::SetXid(*id)).collect();
                writes.push(Write::DeleteHold(self.lane_of(entity), entity));
                database.assign_xid(Session::Operator);
                database.begin(Session::Operator).writes = writes;
            }
            Step::OperatorCommits => database.leave(Session::Operator),
            _ => return None,
        }
        Some(())
    }

    /// Changes a lane's holds in an operator's transaction, which has the lane's lock and gives the lane a new nonce.
    fn operate(&self, world: &mut World, entity: Entity, change: impl FnOnce(&mut Vec<Hold>)) {
        let lane = &mut world.database.data.lanes[self.lane_of(entity)];
        change(&mut lane.holds);
        if !self.has(Flaw::OperatorKeepsNonce) {
            lane.nonce = world.next_nonce;
            world.next_nonce += 1;
        }
    }

    fn allocate_id(&self, world: &mut World, index: usize) {
        let allocated = match world.writers[index] {
            WriterStage::Open(allocated) => allocated,
            _ => 0,
        };
        let database = &mut world.database;
        let id = database.allocate_id();
        let (entity, event) = (self.writers[index].rows[allocated], self.event(index, allocated));
        let mut follows = database.over(entity, id);
        let transaction = database.begin(Session::Writer(index));
        for write in &transaction.writes {
            if let Write::Insert(_, of, event, _) = write
                && *of == entity
            {
                follows.insert(*event);
            }
        }
        transaction.writes.push(Write::Insert(id, entity, event, follows));
        if self.has(Flaw::ForeignXid) {
            transaction.writes.push(Write::ForeignXid(id, 0));
        }
        world.writers[index] = WriterStage::Open(allocated + 1);
    }

    /// Polls without a lock or a transaction id while nothing happens (rule 12). Only S in memory may move.
    fn probe(&self, world: &mut World, index: usize) -> Option<()> {
        world.faults.probes -= 1;
        let relay = &world.relays[index];
        let lanes = self.relays[index];
        let known: Vec<&Lane> = lanes.iter().filter_map(|lane| relay.memory.get(lane)).collect();
        (known.len() == lanes.len()).then_some(())?;
        let holds = known.iter().flat_map(|lane| lane.holds.clone()).collect();
        let progress = merge(&known.iter().map(|lane| &lane.progress).collect::<Vec<_>>(), None);
        let session = Session::Relay(index);
        let snapshot = world.database.snapshot(session);
        let claim = (lanes, progress, holds);
        let look = Look::new(&world.database, session, claim, (&snapshot, false), self.limits(), |e| self.lane_of(e));
        let taken = look.take(&world.database, session, self.limits(), |row| self.is_poison(row));
        if !taken.stores && known.iter().all(|lane| lane.progress.sweep.is_none()) {
            world.relays[index].memory.values_mut().for_each(|lane| lane.progress.s = snapshot.clone());
        }
        Some(())
    }

    /// Locks the lanes: the first statement of rule 7.
    fn lock(&self, world: &mut World, index: usize) -> Option<()> {
        let session = Session::Relay(index);
        let snapped = match std::mem::replace(&mut world.relays[index].phase, Phase::Idle) {
            Phase::Snapped(database) => Some(database),
            _ => None,
        };
        let Some(free) = self.free_lanes(world, index) else { return snapped.map(|_| ()) };
        world.database.assign_xid(session);
        world.database.begin(session).lanes.extend(free.iter().copied());
        let relay = &mut world.relays[index];
        let stored = |lane: &usize| &world.database.data.lanes[*lane];
        let trusted = self.has(Flaw::MemoryOutlivesConnection);
        let restarted = relay.started != world.database.started && !self.has(Flaw::ComparesPostmasterOnly);
        let same = |lane: &usize| relay.memory.get(lane).is_none_or(|known| known.nonce == stored(lane).nonce);
        if !trusted && (restarted || !free.iter().all(same)) {
            relay.memory.clear();
        }
        relay.started = world.database.started;
        for lane in &free {
            let holds_seen = snapped.as_ref().map(|snapped| snapped.data.lanes[*lane].holds.clone());
            let known = relay.memory.entry(*lane).or_insert_with(|| stored(lane).clone());
            known.nonce = stored(lane).nonce;
            known.holds = holds_seen.unwrap_or_else(|| known.holds.clone());
        }
        let snapshot = world.database.snapshot(session);
        relay.phase = Phase::Locked(free, snapshot, snapped);
        Some(())
    }

    /// Takes the snapshot of the second statement (rule 8) and reads the rows that it sees.
    fn look(&self, world: &mut World, index: usize, at_holds: bool) {
        let session = Session::Relay(index);
        if !world.database.transactions.contains_key(&session) {
            return world.fail(index);
        }
        let relay = &world.relays[index];
        let Phase::Locked(lanes, earlier, snapped) = &relay.phase else { return };
        let known: Vec<&Lane> = lanes.iter().filter_map(|lane| relay.memory.get(lane)).collect();
        let progress = merge(&known.iter().map(|lane| &lane.progress).collect::<Vec<_>>(), self.limits().flaw);
        let holds = known.iter().flat_map(|lane| lane.holds.clone()).collect();
        let database = snapped.as_deref().unwrap_or(&world.database);
        let claim = (&lanes[..], progress, holds);
        let look = Look::new(database, session, claim, (earlier, at_holds), self.limits(), |e| self.lane_of(e));
        world.relays[index].phase = Phase::Looked(Box::new(look));
    }

    /// Locks the rows and sends them: the end of the statement that [`Self::look`] began.
    fn take(&self, world: &mut World, index: usize) {
        let session = Session::Relay(index);
        if !world.database.transactions.contains_key(&session) {
            return world.fail(index);
        }
        let Phase::Looked(look) = world.relays[index].phase.clone() else { return };
        let mut taken = look.take(&world.database, session, self.limits(), |row| self.is_poison(row));
        let relay = &mut world.relays[index];
        // Lanes that were behind have something to store even if the claim found nothing.
        let equal = look.lanes.iter().all(|lane| relay.memory.get(lane).is_some_and(|l| l.progress == look.progress));
        if !taken.stores && equal {
            for lane in &look.lanes {
                relay.memory.entry(*lane).and_modify(|lane| lane.progress = taken.next.clone());
            }
            relay.phase = Phase::Idle;
            return world.database.roll_back(session);
        }
        if !taken.stores {
            taken.next = look.progress.clone();
        }
        world.sent_in_a_pause |= taken.batch.iter().any(|(_, row)| {
            let holds = &world.database.data.lanes[self.lane_of(row.entity)].holds;
            holds.iter().any(|hold| hold.entity == row.entity && hold.why == Why::Pause && !hold.released)
        });
        world.database.begin(session).rows.extend(taken.batch.iter().map(|(id, _)| *id));
        let live = taken.batch.iter().filter(|(_, row)| !self.is_poison(row));
        let queued = live.map(|(_, row)| Record { event: row.event, entity: row.entity }).collect();
        relay.phase = Phase::Sent(look, taken, queued);
    }

    fn is_poison(&self, row: &Row) -> bool {
        row.version == 0 && self.poison.contains(&row.event)
    }

    /// Settles (rules 13 to 15): marks the rows and stores the new state in one transaction. With `partial`, marks only the acknowledged
    /// rows and keeps the old state.
    fn settle(&self, world: &mut World, index: usize, partial: bool) {
        let session = Session::Relay(index);
        let Phase::Sent(look, taken, queued) = world.relays[index].phase.clone() else { return };
        let missing = |row: &Row| queued.iter().any(|record| record.event == row.event);
        // Marks only a prefix of each entity: a row that goes DEAD must not be ahead of a missing row.
        let behind = |at: usize| {
            taken.batch[..=at].iter().any(|(_, row)| row.entity == taken.batch[at].1.entity && missing(row))
        };
        let settled = (0..taken.batch.len()).filter(|at| !behind(*at)).map(|at| &taken.batch[at]);
        let status = |row: &Row| if self.is_poison(row) { Status::Dead } else { Status::Published };
        let marks: Vec<Write> = settled
            .map(|(id, row)| match self.deletes && !self.is_poison(row) {
                true => Write::Delete(*id),
                false => Write::Mark(*id, status(row)),
            })
            .collect();
        if partial {
            world.drop_producer(index);
        }
        if !world.database.transactions.contains_key(&session) {
            if self.has(Flaw::MarkWithoutOwnership) {
                world.marked_by_a_stranger |= !marks.is_empty();
            }
            return world.fail(index);
        }
        let (mut lanes, mut unwritten) = (BTreeMap::new(), Vec::new());
        if !partial || self.has(Flaw::NewStateInFlight) {
            unwritten = self.lanes_that_may_lag(&look, &taken);
            for lane in &look.lanes {
                let of_lane = taken.holds.iter().filter(|hold| self.lane_of(hold.entity) == *lane).cloned().collect();
                let known = world.relays[index].memory.get(lane).filter(|_| unwritten.contains(lane));
                let nonce = known.map_or(world.next_nonce, |known| known.nonce);
                lanes.insert(*lane, Lane { nonce, progress: taken.next.clone(), holds: of_lane });
            }
            world.next_nonce += 1;
        }
        let database = &mut world.database;
        let locked = database.begin(session).rows.clone();
        world.marked_by_a_stranger |= marks.iter().any(|write| match write {
            Write::Mark(id, _) | Write::Delete(id) => !locked.contains(id),
            _ => false,
        });
        let writes = &mut database.begin(session).writes;
        writes.extend(marks);
        let written = lanes.iter().filter(|(lane, _)| !unwritten.contains(lane));
        writes.extend(written.map(|(lane, next)| Write::Lane(*lane, next.clone())));
        database.write_commit(session);
        world.relays[index].phase = Phase::Settled(lanes);
        if self.coarse {
            world.commit_leaves(session);
        }
    }

    /// Returns the lanes that had no event. None may lag if the batch changes holds or belongs to a sweep.
    fn lanes_that_may_lag(&self, look: &Look, taken: &Taken) -> Vec<usize> {
        let touched = look.touched(|entity| self.lane_of(entity));
        let has_sweep = look.progress.sweep.is_some() || taken.next.sweep.is_some();
        let all = !self.lags || has_sweep || taken.holds != look.holds || touched.is_empty();
        look.lanes.iter().copied().filter(|lane| !all && !touched.contains(lane)).collect()
    }

    /// Appends a record to the topic. A record that is already there is a duplicate and changes no first occurrence.
    fn append(&self, world: &mut World, record: &Record) {
        if world.topic.contains(record.event) {
            return;
        }
        // The pause check ignores a row that is gone or has moved to another entity by now.
        let rows = || world.database.data.rows.values().filter(|row| row.entity == record.entity);
        let follows = rows().find(|row| row.event == record.event).map(|row| row.follows).unwrap_or_default();
        let waits = |row: &Row| row.status == Status::Pending && follows.contains(row.event) && !self.is_poison(row);
        let early = rows().find(|row| waits(row) && !world.topic.contains(row.event)).map(|row| row.event);
        world.inverted = world.inverted.or(early.map(|before| (before, record.event)));
        world.topic.insert(record.event);
    }

    /// Appends the row's record to the topic.
    pub(crate) fn append_row(&self, world: &mut World, id: Id) {
        let row = world.database.data.rows.get(&id);
        if let Some(record) = row.map(|row| Record { event: row.event, entity: row.entity }) {
            self.append(world, &record);
        }
    }

    fn lose_tail(&self, world: &mut World) {
        world.faults.tails -= 1;
        world.database.lose_tail();
        for index in 0..world.writers.len() {
            // A prepared transaction is back after the crash, although the writer may have heard of its commit.
            let prepared = world.database.transactions.contains_key(&Session::Writer(index));
            if world.writers[index] != WriterStage::Waiting {
                let rows = self.writers[index].rows.len();
                world.writers[index] = if prepared { WriterStage::Open(rows) } else { WriterStage::Ended };
            }
        }
        for relay in &mut world.relays {
            if relay.phase == Phase::Idle && !self.pooler && !self.has(Flaw::MemoryOutlivesConnection) {
                relay.memory.clear();
            }
        }
    }
}

impl World {
    /// Takes the relay's commit off the running list; the relay hears of the commit.
    fn commit_leaves(&mut self, session: Session) {
        let alive = self.database.transactions.contains_key(&session);
        self.database.leave(session);
        if let Session::Relay(index) = session {
            let relay = &mut self.relays[index];
            match std::mem::replace(&mut relay.phase, Phase::Idle) {
                Phase::Settled(lanes) if alive => relay.memory.extend(lanes),
                _ => relay.memory.clear(),
            }
        }
    }

    /// Drops the relay's producer. Its records may still arrive at any time, or never.
    fn drop_producer(&mut self, index: usize) {
        if let Phase::Sent(_, _, queued) = &mut self.relays[index].phase {
            self.adrift.push(std::mem::take(queued));
        }
    }

    /// Ends the relay's cycle after it hears that its session is gone. The relay forgets everything that it knew.
    fn fail(&mut self, index: usize) {
        self.drop_producer(index);
        self.relays[index].phase = Phase::Idle;
        self.relays[index].memory.clear();
    }

    /// Renumbers transaction ids and nonces from zero, in the same order. Snapshots depend only on the order, so states that differ only in
    /// these numbers become one.
    pub(crate) fn rename(&mut self) {
        let mut xids = self.database.xids();
        for relay in &mut self.relays {
            xids.extend(relay.memory.values_mut().flat_map(|lane| lane.progress.xids()));
            match &mut relay.phase {
                Phase::Idle => {}
                Phase::Snapped(database) => xids.extend(database.xids()),
                Phase::Locked(_, snapshot, database) => {
                    xids.extend(snapshot.xids());
                    xids.extend(database.iter_mut().flat_map(|database| database.xids()));
                }
                Phase::Looked(look) => xids.extend(look.xids()),
                Phase::Sent(look, taken, _) => xids.extend(look.xids().into_iter().chain(taken.xids())),
                Phase::Settled(lanes) => xids.extend(lanes.values_mut().flat_map(|lane| lane.progress.xids())),
            }
        }
        compact(xids);
        let mut nonces = self.database.nonces();
        nonces.push(&mut self.next_nonce);
        for relay in &mut self.relays {
            nonces.extend(relay.memory.values_mut().map(|lane| &mut lane.nonce));
            match &mut relay.phase {
                Phase::Snapped(database) | Phase::Locked(_, _, Some(database)) => nonces.extend(database.nonces()),
                Phase::Settled(lanes) => nonces.extend(lanes.values_mut().map(|lane| &mut lane.nonce)),
                _ => {}
            }
        }
        compact(nonces);
        let relays = self.relays.iter_mut().map(|relay| &mut relay.started);
        compact(relays.chain([&mut self.database.started]).collect());
    }

    /// Returns true when every row is written and every committed row is settled.
    pub(crate) fn is_done(&self) -> bool {
        self.writers.iter().all(|writer| *writer == WriterStage::Ended)
            && self.database.data.rows.values().all(|row| row.status != Status::Pending)
            && !self.database.transactions.contains_key(&Session::Application)
            && !self.database.transactions.contains_key(&Session::Operator)
    }

    /// Checks invariant I2 on the stored state. Returns the first row that is neither settled nor held although its lane's progress covers
    /// it.
    pub(crate) fn overlooked(&self, protocol: &Protocol) -> Option<Id> {
        self.database.data.rows.iter().find_map(|(id, row)| {
            let lane = &self.database.data.lanes[protocol.lane_of(row.entity)];
            let held = |hold: &Hold| hold.entity == row.entity && hold.from <= *id;
            let open = row.status == Status::Pending && lane.progress.covers(*id, row.xid);
            (open && !lane.holds.iter().any(held)).then_some(*id)
        })
    }
}

/// Renumbers from zero; zero stays zero.
fn compact(mut numbers: Vec<&mut Xid>) {
    let mut values: Vec<Xid> = std::iter::once(0).chain(numbers.iter().map(|number| **number)).collect();
    values.sort_unstable();
    values.dedup();
    for number in &mut numbers {
        let rank = values.binary_search(number).unwrap_or_default();
        **number = rank as Xid;
    }
}
