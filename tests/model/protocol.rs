//! The lane protocol, step by step. Every step of a relay is one message to a server or one answer, and between any two of them
//! anything else may happen: so a relay that SIGSTOP freezes is one that takes no step for a while.
//!
//! idle -> begun -> claimed -> sent -> marked -> idle
//!
//! Steps that no other party can tell apart are one: recount and send, the end of the wait and the marks.

use stateright::{Model, Property};

use crate::properties;
use crate::rows::Rows;
use crate::state::{Claim, Delivery, Faults, Phase, Record, Relay, Row, Session, State};

/// A mistake built in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A claim starts where the last one ended, whatever transactions are running.
    FrontierTooEarly,
    /// A record that failed is sent again by the same producer, behind those that went through.
    RetryOfAMiddleEvent,
    /// Marks are made in a new session when the old one is gone.
    MarkWithoutOwnership,
    /// The recount is left out.
    OvertakeLockedRows,
    /// A report counts for the batch of its slot, whichever producer it comes from.
    AcksOfAnEarlierProducer,
    /// A relay whose turn failed writes its rows back as pending.
    GiveBackWithoutOwnership,
}

/// An outbox, the relays that work on it, and what may go wrong.
#[derive(Debug, Clone)]
pub(crate) struct Protocol {
    /// Entity and lane of each row, in id order.
    pub(crate) rows: &'static [(char, u8)],
    /// Transactions on one entity wait for each other before they draw ids, as in `outbox_emit`.
    pub(crate) emit: bool,
    /// Rows whose transaction may roll back.
    pub(crate) rollbacks: &'static [u8],
    /// The lanes each relay is due at first.
    pub(crate) shares: &'static [(u8, u8)],
    /// Rows of a claim.
    pub(crate) batch: usize,
    /// Between turns a relay's connection is to a pooler, and survives a crash of Postgres.
    pub(crate) pooler: bool,
    pub(crate) faults: Faults,
    pub(crate) flaw: Option<Flaw>,
}

/// A step. The first number is the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    // The application, by the row.
    Insert(u8),
    InsertCommits(u8),
    InsertRollsBack(u8),
    // The relay's turn.
    Probe(usize),
    Begin(usize),
    Claim(usize),
    RecountAndSend(usize),
    /// All is acknowledged.
    Mark(usize),
    Commit(usize),
    // Kafka.
    Append(usize, u8),
    /// A record of a dropped producer arrives after all.
    ArriveLate(usize, u8),
    // Time.
    StragglersAge(usize),
    // Faults.
    Crash(usize),
    SessionEnds(usize),
    /// The commit is made, its answer is lost.
    CommitAnswerLost(usize),
    /// The wait ends, and only these are known to be acknowledged. They are marked.
    Timeout(usize, Rows),
    Lock(u8),
    Unlock,
    DatabaseCrash {
        marks_lost: bool,
    },
    Share(usize, (u8, u8)),
    // What only a flawed protocol does.
    Refuse(usize, u8),
    AppendEarlier(usize, u8),
    AckEarlier(usize, usize),
}

impl Step {
    /// What the environment does to the protocol; without it, all must end well.
    pub(crate) fn is_fault(self) -> bool {
        use Step::{Crash, DatabaseCrash, Lock, SessionEnds, Share, Timeout};
        let fault =
            matches!(self, Crash(_) | SessionEnds(_) | Timeout(..) | Lock(_) | DatabaseCrash { .. } | Share(..));
        // A late arrival is nothing to count on.
        fault || matches!(self, Step::CommitAnswerLost(_) | Step::ArriveLate(..) | Step::Refuse(..))
    }
}

impl Protocol {
    pub(crate) fn entity(&self, row: u8) -> char {
        self.rows[usize::from(row) - 1].0
    }

    fn lane(&self, row: u8) -> u8 {
        self.rows[usize::from(row) - 1].1
    }

    pub(crate) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn start(&self, relay: &Relay) -> u8 {
        if self.has(Flaw::FrontierTooEarly) { relay.frontier.covered } else { relay.frontier.start() }
    }

    fn new_relay(&self, share: (u8, u8)) -> Relay {
        Relay {
            share,
            frontier: Default::default(),
            session: Session::Free,
            phase: Phase::Idle,
            batch: Vec::new(),
            earlier: Vec::new(),
        }
    }

    /// Pending rows above `start` in these lanes, by a snapshot taken now.
    fn pending(&self, state: &State, start: u8, lanes: impl Fn(u8) -> bool) -> Rows {
        state.all(Row::Pending).iter().filter(|row| *row > start && lanes(self.lane(*row))).collect()
    }

    /// All that `batch` has of the row's entity before it has arrived: an idempotent producer keeps the order of a partition.
    fn predecessors(&self, batch: &[Record], row: u8) -> bool {
        let before = batch.iter().take_while(|record| record.row != row);
        before
            .filter(|record| self.entity(record.row) == self.entity(row))
            .all(|record| record.delivery > Delivery::Queued)
    }

    /// What may be known to be acknowledged: reports come in the order of the partition.
    fn known(&self, batch: &[Record]) -> impl Iterator<Item = Rows> {
        let on_topic = batch.iter().filter(|record| record.delivery > Delivery::Queued);
        let on_topic: Rows = on_topic.map(|record| record.row).collect();
        let reported = batch.iter().filter(|record| record.delivery == Delivery::Acked);
        let reported: Rows = reported.map(|record| record.row).collect();
        on_topic.subsets().filter(move |known| {
            let gap = |row: u8| {
                let missing = on_topic.without(*known);
                missing.iter().any(|before| before < row && self.entity(before) == self.entity(row))
            };
            reported.without(*known).is_empty() && !known.without(reported).iter().any(gap)
        })
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            rows: vec![Row::Unwritten; self.rows.len()],
            committed: Vec::new(),
            topic: Vec::new(),
            relays: self.shares.iter().map(|share| self.new_relay(*share)).collect(),
            adrift: Vec::new(),
            locked_elsewhere: None,
            unflushed: Rows::default(),
            faults: self.faults,
            marked_by_a_stranger: false,
            regressed: false,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.application(state, steps);
        for (index, relay) in state.relays.iter().enumerate() {
            self.turn(state, index, relay, steps);
            self.kafka(index, relay, steps);
            self.faults(state, index, relay, steps);
        }
        for (index, records) in state.adrift.iter().enumerate() {
            // In order per partition, which an entity has one of.
            let first = |at: usize| !records[..at].iter().any(|row| self.entity(*row) == self.entity(records[at]));
            steps.extend((0..records.len()).filter(|at| first(*at)).map(|at| Step::ArriveLate(index, records[at])));
        }
        if state.locked_elsewhere.is_some() {
            steps.push(Step::Unlock);
        } else if state.faults.locks > 0 {
            let locked = state.relays.iter().map(locked).fold(Rows::default(), Rows::union);
            steps.extend(state.all(Row::Pending).without(locked).iter().map(Step::Lock));
        }
        if state.faults.databases > 0 {
            steps.push(Step::DatabaseCrash { marks_lost: false });
            if !state.unflushed.is_empty() {
                steps.push(Step::DatabaseCrash { marks_lost: true });
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, step);
        // Records that are on the topic already change nothing by arriving.
        for records in &mut state.adrift {
            records.retain(|row| !state.topic.contains(row));
        }
        state.adrift.retain(|records| !records.is_empty());
        state.adrift.sort();
        state.adrift.dedup();
        // Relays have no names: which of two does what makes no difference.
        if self.flaw.is_none() {
            state.relays.sort();
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

fn locked(relay: &Relay) -> Rows {
    match &relay.session {
        Session::Turn { locked, .. } => *locked,
        Session::Free | Session::Ended => Rows::default(),
    }
}

/// Which steps are possible.
impl Protocol {
    fn application(&self, state: &State, steps: &mut Vec<Step>) {
        // Ids are drawn in order, whoever draws them.
        if let Some(row) = state.all(Row::Unwritten).first() {
            let waits = |other: u8| self.emit && self.entity(other) == self.entity(row);
            if !state.all(Row::Running).iter().any(waits) {
                steps.push(Step::Insert(row));
            }
        }
        for row in state.all(Row::Running).iter() {
            steps.push(Step::InsertCommits(row));
            if self.rollbacks.contains(&row) {
                steps.push(Step::InsertRollsBack(row));
            }
        }
    }

    fn turn(&self, state: &State, index: usize, relay: &Relay, steps: &mut Vec<Step>) {
        let (from, to) = relay.share;
        let step = match &relay.phase {
            Phase::Idle => {
                let wanted = |lane| (from..=to).contains(&lane);
                if !self.pending(state, self.start(relay), wanted).is_empty() {
                    steps.push(Step::Begin(index));
                }
                Step::Probe(index)
            }
            Phase::Begun => Step::Claim(index),
            Phase::Claimed(_) => Step::RecountAndSend(index),
            Phase::Sent(_) if relay.batch.iter().all(|record| record.delivery > Delivery::Queued) => Step::Mark(index),
            Phase::Sent(_) => return,
            Phase::Marked { .. } => Step::Commit(index),
        };
        steps.push(step);
    }

    fn kafka(&self, index: usize, relay: &Relay, steps: &mut Vec<Step>) {
        for record in &relay.batch {
            if record.delivery == Delivery::Queued && self.predecessors(&relay.batch, record.row) {
                steps.push(Step::Append(index, record.row));
            }
        }
        for (slot, record) in relay.earlier.iter().enumerate() {
            match record.delivery {
                Delivery::Queued if self.predecessors(&relay.earlier, record.row) => {
                    steps.push(Step::AppendEarlier(index, record.row));
                }
                Delivery::Appended if slot < relay.batch.len() => steps.push(Step::AckEarlier(index, slot)),
                _ => {}
            }
        }
    }

    fn faults(&self, state: &State, index: usize, relay: &Relay, steps: &mut Vec<Step>) {
        let faults = &state.faults;
        let in_turn = matches!(relay.session, Session::Turn { .. });
        if relay.frontier.can_age() {
            steps.push(Step::StragglersAge(index));
        }
        if faults.crashes > 0 {
            steps.push(Step::Crash(index));
        }
        if faults.sessions > 0 && in_turn {
            steps.push(Step::SessionEnds(index));
            if matches!(relay.phase, Phase::Marked { .. }) {
                steps.push(Step::CommitAnswerLost(index));
            }
        }
        if faults.timeouts > 0 && matches!(relay.phase, Phase::Sent(_)) {
            let some_missing = self.known(&relay.batch).filter(|known| known.len() < relay.batch.len());
            steps.extend(some_missing.map(|known| Step::Timeout(index, known)));
            if self.has(Flaw::RetryOfAMiddleEvent) {
                let queued = relay.batch.iter().filter(|record| record.delivery == Delivery::Queued);
                steps.extend(queued.map(|record| Step::Refuse(index, record.row)));
            }
        }
        if faults.shares > 0 && relay.phase == Phase::Idle {
            // The first share is the widest: no lane is left without a relay that is due it.
            steps
                .extend(self.shares.first().filter(|wide| **wide != relay.share).map(|wide| Step::Share(index, *wide)));
        }
    }
}

/// What they do.
impl Protocol {
    fn apply(&self, state: &mut State, step: Step) {
        match step {
            Step::Insert(row) => state.set(row, Row::Running),
            Step::InsertCommits(row) => {
                state.set(row, Row::Pending);
                state.committed.push(row);
                // The application's commit flushes all that was written before it.
                state.unflushed = Rows::default();
            }
            Step::InsertRollsBack(row) => state.set(row, Row::RolledBack),
            Step::Probe(relay) => self.probe(state, relay),
            Step::Begin(relay) => self.begin(state, relay),
            Step::Claim(relay) => self.claim(state, relay),
            Step::RecountAndSend(relay) => self.recount(state, relay),
            Step::Mark(relay) => {
                let all = state.relays[relay].batch.iter().map(|record| record.row).collect();
                self.mark(state, relay, all);
            }
            Step::Timeout(relay, known) => {
                state.faults.timeouts -= 1;
                self.mark(state, relay, known);
            }
            Step::Commit(relay) => self.settle(state, relay, true),
            Step::CommitAnswerLost(relay) => {
                state.faults.sessions -= 1;
                self.settle(state, relay, false);
            }
            Step::Append(relay, row) => {
                state.append(row);
                deliver(&mut state.relays[relay].batch, row, Delivery::Appended);
            }
            Step::ArriveLate(list, row) => {
                state.adrift[list].retain(|other| *other != row);
                state.append(row);
            }
            Step::StragglersAge(relay) => state.relays[relay].frontier.age(),
            Step::Crash(relay) => {
                state.faults.crashes -= 1;
                self.retire(state, relay);
                let share = state.relays[relay].share;
                state.relays[relay] = self.new_relay(share);
            }
            Step::SessionEnds(relay) => {
                state.faults.sessions -= 1;
                // Rolled back: the marks are undone, the locks on rows and lanes released.
                state.relays[relay].session = Session::Ended;
            }
            Step::Lock(row) => {
                state.faults.locks -= 1;
                state.locked_elsewhere = Some(row);
            }
            Step::Unlock => state.locked_elsewhere = None,
            Step::DatabaseCrash { marks_lost } => {
                state.faults.databases -= 1;
                self.crash_database(state, marks_lost);
            }
            Step::Share(relay, share) => {
                state.faults.shares -= 1;
                // What is known of other lanes is forgotten.
                let relay = &mut state.relays[relay];
                (relay.share, relay.frontier) = (share, Default::default());
            }
            Step::Refuse(relay, row) => {
                state.faults.timeouts -= 1;
                let batch = &mut state.relays[relay].batch;
                batch.retain(|record| record.row != row);
                batch.push(Record { row, delivery: Delivery::Queued });
            }
            Step::AppendEarlier(relay, row) => {
                state.append(row);
                deliver(&mut state.relays[relay].earlier, row, Delivery::Appended);
            }
            Step::AckEarlier(relay, slot) => {
                let relay = &mut state.relays[relay];
                relay.earlier[slot].delivery = Delivery::Acked;
                relay.batch[slot].delivery = Delivery::Acked;
            }
        }
    }

    /// `Hands::probe`.
    fn probe(&self, state: &mut State, index: usize) {
        if state.relays[index].session == Session::Ended {
            return self.connection_lost(state, index);
        }
        let running = state.all(Row::Running);
        let relay = &state.relays[index];
        let (from, to) = relay.share;
        let start = self.start(relay);
        let pending = self.pending(state, start, |lane| (from..=to).contains(&lane));
        let flawed = self.has(Flaw::FrontierTooEarly);
        let relay = &mut state.relays[index];
        if !flawed {
            relay.frontier.observe(running);
        }
        let went_back = self.start(relay) < start;
        if pending.is_empty() && !went_back {
            relay.frontier.advance(start, false);
        }
    }

    /// `Beginning::begin`: takes what lanes are free, then the snapshot.
    fn begin(&self, state: &mut State, index: usize) {
        if state.relays[index].session == Session::Ended {
            return self.connection_lost(state, index);
        }
        let others = state.relays.iter().enumerate().filter(|(other, _)| *other != index);
        let taken: Vec<u8> = others
            .filter_map(|(_, relay)| match &relay.session {
                Session::Turn { lanes, .. } => Some(lanes.clone()),
                Session::Free | Session::Ended => None,
            })
            .flatten()
            .collect();
        let running = state.all(Row::Running);
        let relay = &mut state.relays[index];
        let (from, to) = relay.share;
        // `LaneRange::longest_run`: with two lanes, the first run is one of the longest.
        let lanes: Vec<u8> = (from..=to).filter(|lane| !taken.contains(lane)).collect();
        if lanes.is_empty() {
            return;
        }
        relay.session = Session::Turn { lanes, locked: Rows::default(), marked: Rows::default() };
        relay.phase = Phase::Begun;
        if !self.has(Flaw::FrontierTooEarly) {
            relay.frontier.observe(running);
        }
    }

    /// `ClaimSql::claim`.
    fn claim(&self, state: &mut State, index: usize) {
        let relay = &state.relays[index];
        let Session::Turn { lanes, .. } = &relay.session else {
            return self.connection_lost(state, index);
        };
        let start = self.start(relay);
        let elsewhere: Rows = state.locked_elsewhere.into_iter().collect();
        let free = self.pending(state, start, |lane| lanes.contains(&lane)).without(elsewhere);
        let rows: Rows = free.iter().take(self.batch).collect();
        let whole = lanes.len() == usize::from(relay.share.1 - relay.share.0) + 1;
        let full = rows.len() == self.batch;
        let relay = &mut state.relays[index];
        if let Session::Turn { locked, .. } = &mut relay.session {
            *locked = rows;
        }
        relay.phase = Phase::Claimed(Claim { whole, start, rows, full, ..Claim::default() });
    }

    /// `ClaimSql::recount` and `ClaimSql::skipped`, `Frontier::overlooks`, `Plan::new`.
    fn recount(&self, state: &mut State, index: usize) {
        let relay = &state.relays[index];
        let (Phase::Claimed(claim), Session::Turn { lanes, .. }) = (&relay.phase, &relay.session) else {
            return self.connection_lost(state, index);
        };
        let mut claim = claim.clone();
        let upto = match claim.rows.last() {
            Some(last) if claim.full => last,
            last => last.unwrap_or(0).max(relay.frontier.seen),
        };
        let flawed = self.has(Flaw::OvertakeLockedRows) || self.has(Flaw::FrontierTooEarly);
        let counts = upto > claim.start && !self.has(Flaw::OvertakeLockedRows);
        let pending = self.pending(state, claim.start, |lane| lanes.contains(&lane));
        let running = state.all(Row::Running);
        let relay = &mut state.relays[index];
        if upto > claim.start && !flawed && relay.frontier.overlooks(running) {
            relay.session = Session::Free;
            relay.phase = Phase::Idle;
            return relay.frontier.reset();
        }
        if counts {
            let skipped: Rows = pending.without(claim.rows).iter().filter(|row| *row <= upto).collect();
            claim.skipped = skipped.first();
            let behind =
                |row: &u8| skipped.iter().any(|before| before < *row && self.entity(before) == self.entity(*row));
            claim.left = claim.rows.iter().filter(behind).collect();
        }
        if claim.rows.is_empty() {
            relay.session = Session::Free;
            relay.phase = Phase::Idle;
            advance(relay, &claim);
        } else {
            self.send(relay, claim);
        }
    }

    /// `Plan::send`. No database is asked, so a relay that has lost its session does it all the same.
    fn send(&self, relay: &mut Relay, claim: Claim) {
        let rows = claim.rows.without(claim.left);
        relay.batch = rows.iter().map(|row| Record { row, delivery: Delivery::Queued }).collect();
        relay.phase = Phase::Sent(claim);
    }

    /// `KafkaProducer::retire`: it is dropped in its own time, and what it has sent may arrive at any time. Where all is
    /// acknowledged there is nothing left of the batch.
    fn retire(&self, state: &mut State, index: usize) {
        let relay = &mut state.relays[index];
        let batch = std::mem::take(&mut relay.batch);
        let queued = batch.iter().filter(|record| record.delivery == Delivery::Queued);
        state.adrift.push(queued.map(|record| record.row).collect());
    }

    /// `Hands::judge` and `SettleSql::mark_published`: what is acknowledged is marked; when anything is missing, the producer is
    /// dropped first.
    fn mark(&self, state: &mut State, index: usize, acked: Rows) {
        let relay = &mut state.relays[index];
        let Phase::Sent(claim) = relay.phase.clone() else { return };
        let missing = acked.len() < relay.batch.len();
        if missing && self.has(Flaw::AcksOfAnEarlierProducer) {
            relay.earlier = std::mem::take(&mut relay.batch);
        } else {
            self.retire(state, index);
        }
        let relay = &mut state.relays[index];
        relay.phase = Phase::Marked { claim, missing };
        match &mut relay.session {
            Session::Turn { locked, marked, .. } => {
                *marked = acked;
                state.marked_by_a_stranger |= !acked.without(*locked).is_empty();
            }
            Session::Free | Session::Ended => {
                if self.has(Flaw::MarkWithoutOwnership) {
                    acked.iter().for_each(|row| state.set(row, Row::Published));
                    state.marked_by_a_stranger |= !acked.is_empty();
                }
                self.connection_lost(state, index);
            }
        }
    }

    /// `commit`, and what the relay makes of it.
    fn settle(&self, state: &mut State, index: usize, answered: bool) {
        let relay = &mut state.relays[index];
        let Phase::Marked { claim, missing } = relay.phase.clone() else { return };
        let Session::Turn { marked, .. } = relay.session else {
            return self.connection_lost(state, index);
        };
        relay.session = Session::Free;
        relay.phase = Phase::Idle;
        if !answered {
            relay.frontier = Default::default();
        } else if missing {
            relay.frontier.reset();
        } else {
            advance(relay, &claim);
        }
        marked.iter().for_each(|row| state.set(row, Row::Published));
        state.unflushed = state.unflushed.union(marked);
    }

    /// Every session ends, what had not committed is rolled back, and of the commits that were not flushed the last may be lost.
    fn crash_database(&self, state: &mut State, marks_lost: bool) {
        for row in state.all(Row::Running).iter() {
            state.set(row, Row::RolledBack);
        }
        for relay in &mut state.relays {
            if !self.pooler || relay.session != Session::Free {
                relay.session = Session::Ended;
            }
        }
        state.locked_elsewhere = None;
        if marks_lost {
            state.unflushed.iter().for_each(|row| state.set(row, Row::Pending));
        }
        state.unflushed = Rows::default();
    }

    /// `Worker::failed` and `Worker::connect`: a new session, and nothing is known any more. The producer stays: it was dropped
    /// when anything was missing.
    fn connection_lost(&self, state: &mut State, index: usize) {
        if let (true, Phase::Marked { claim, .. }) =
            (self.has(Flaw::GiveBackWithoutOwnership), state.relays[index].phase.clone())
        {
            state.regressed |= claim.rows.iter().any(|row| state.row(row) == Row::Published);
            claim.rows.iter().for_each(|row| state.set(row, Row::Pending));
        }
        let relay = &mut state.relays[index];
        relay.session = Session::Free;
        relay.phase = Phase::Idle;
        relay.frontier = Default::default();
    }
}

/// `Hands::advance`.
fn advance(relay: &mut Relay, claim: &Claim) {
    if !claim.whole {
        return;
    }
    match [claim.skipped, claim.left.first()].into_iter().flatten().min() {
        Some(first) => relay.frontier.advance(first - 1, true),
        None => relay.frontier.advance(claim.rows.last().unwrap_or(claim.start), claim.full),
    }
}

fn deliver(batch: &mut [Record], row: u8, delivery: Delivery) {
    for record in batch {
        if record.row == row {
            record.delivery = delivery;
        }
    }
}
