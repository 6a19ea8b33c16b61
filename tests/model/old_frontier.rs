//! Models the rule that decided where a claim starts before (c, S), on this model of Postgres. It checks the checker: the rule breaks the
//! order on real servers, so it has to break the order here, with one relay and no fault.
//!
//! A claim starts above the ids that had been claimed or were known to be allocated, and below the ids of transactions that a snapshot
//! shows as running. Time is left out. The guard of 50 ms becomes "two observations ago", and a transaction that ran for a second may
//! become a straggler at any moment.

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

use crate::database::{Database, Id, Session, Stage, Status, Write};
use crate::properties::IN_ORDER;
use crate::relays::{Protocol, Step, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Running {
    /// A lower bound: the transaction's event ids are above it.
    lower: Id,
    straggler: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Frontier {
    scanned_through: Id,
    highest_claimed: Id,
    settled: Id,
    /// The ids that had been allocated at the last observation, and at the one before.
    marks: Vec<Id>,
    cautious: bool,
    running: BTreeMap<Session, Running>,
}

impl Frontier {
    fn observe(&mut self, running: &BTreeSet<Session>, last_allocated: Id) {
        if self.marks.len() == 2 {
            self.settled = self.marks.remove(0);
        }
        let scanned_through = &mut self.scanned_through;
        self.running.retain(|transaction, known| {
            let runs = running.contains(transaction);
            if !runs {
                *scanned_through = known.lower.min(*scanned_through);
            }
            runs
        });
        for transaction in running {
            let young = Running { lower: self.settled, straggler: false };
            self.running.entry(*transaction).or_insert(young);
        }
        self.marks.push(last_allocated.max(self.highest_claimed));
    }

    /// Returns the start of a claim, whose condition is `id > start`.
    fn start(&self) -> Id {
        let counted = self.running.values().filter(|running| self.cautious || !running.straggler);
        counted.map(|running| running.lower).fold(self.scanned_through.min(self.settled), Id::min)
    }

    /// Returns true when a straggler has ended meanwhile: the claim must be given up.
    fn overlooks(&mut self, running: &BTreeSet<Session>) -> bool {
        let ended = |(transaction, known): (&Session, &Running)| known.straggler && !running.contains(transaction);
        self.cautious = !self.cautious && self.running.iter().any(ended);
        self.cautious
    }
}

/// The old rule, with Postgres as it is or as the rule assumed it to be.
#[derive(Debug, Clone)]
pub(crate) struct OldFrontier {
    pub(crate) protocol: Protocol,
    /// Assumes that a snapshot lists every running transaction, which is not true.
    pub(crate) lists_all: bool,
    /// Assumes that a transaction has its transaction id before its event id. That is not true where an insert computes its payload.
    pub(crate) xid_first: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    world: World,
    frontier: Frontier,
    /// The open claim's start, and the ids that the claim has found above it.
    claim: Option<(Id, Vec<Id>)>,
    /// The sequence's value when the snapshot for the next claim was taken.
    observed: Option<Id>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Writer(Step),
    Observe,
    Claim,
    Send,
    BecomesStraggler,
}

impl OldFrontier {
    fn running(&self, database: &Database) -> BTreeSet<Session> {
        let runs = |session: &Session| {
            let transaction = &database.transactions[session];
            let listed = |xid: u8| self.lists_all || xid < database.xmax;
            transaction.stage != Stage::Left && transaction.xid.is_some_and(listed)
        };
        database.transactions.keys().copied().filter(runs).collect()
    }

    fn send(&self, state: &mut State) -> Option<()> {
        let (start, rows) = state.claim.take()?;
        let last_allocated = state.observed.take()?;
        let running = self.running(&state.world.database);
        let frontier = &mut state.frontier;
        if frontier.overlooks(&running) {
            frontier.scanned_through = 0;
            return Some(());
        }
        let last = rows.last().copied();
        frontier.highest_claimed = frontier.highest_claimed.max(last.unwrap_or(last_allocated.max(start)));
        let full = rows.len() == self.protocol.limits.rows;
        frontier.scanned_through = last.filter(|_| full).unwrap_or(frontier.highest_claimed);
        if rows.is_empty() {
            return Some(());
        }
        let relay = Session::Relay(0);
        state.world.database.assign_xid(relay);
        for id in rows {
            self.protocol.append_row(&mut state.world, id);
            state.world.database.begin(relay).writes.push(Write::Mark(id, Status::Published));
        }
        state.world.database.leave(relay);
        Some(())
    }
}

impl Model for OldFrontier {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let world = self.protocol.init_states().remove(0);
        vec![State { world, frontier: Frontier::default(), claim: None, observed: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut steps = Vec::new();
        self.protocol.actions(&state.world, &mut steps);
        let has_xid = |writer: &usize| {
            let transaction = state.world.database.transactions.get(&Session::Writer(*writer));
            transaction.is_some_and(|transaction| transaction.xid.is_some())
        };
        steps.retain(|step| !matches!(step, Step::AllocateId(writer) if self.xid_first && !has_xid(writer)));
        actions.extend(steps.into_iter().map(Action::Writer));
        actions.push(match (&state.claim, state.observed) {
            (Some(_), _) => Action::Send,
            (None, Some(_)) => Action::Claim,
            (None, None) => Action::Observe,
        });
        if state.frontier.running.values().any(|running| !running.straggler) {
            actions.push(Action::BecomesStraggler);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let last_allocated = state.world.database.last_id;
        match action {
            Action::Writer(step) => state.world = self.protocol.next_state(&state.world, step)?,
            Action::Observe => {
                let running = self.running(&state.world.database);
                state.frontier.observe(&running, last_allocated);
                state.observed = Some(last_allocated);
            }
            Action::Claim => {
                let start = state.frontier.start();
                let rows = state.world.database.data.rows.range(start + 1..);
                let pending = rows.filter(|(_, row)| row.status == Status::Pending).map(|(id, _)| *id);
                state.claim = Some((start, pending.take(self.protocol.limits.rows).collect()));
            }
            Action::Send => self.send(&mut state)?,
            Action::BecomesStraggler => {
                state.frontier.running.values_mut().for_each(|running| running.straggler = true);
            }
        }
        state.world.rename();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(IN_ORDER, |_, state: &State| state.world.inverted.is_none())]
    }
}
