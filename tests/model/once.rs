//! The protocol of exactly-once (`src/relay/exactly_once.rs`): two relays, one lane, one entity, whose rows are all committed. What is
//! modelled is who owns the lane, what Kafka's coordinator knows of transactions, and what Postgres knows of marks.
//!
//! A relay takes a step when it sends to a server or hears from one; frozen, it takes none. `Lock` asks Postgres for the lane's lock and
//! reads the lane's row; every later step at Postgres fails if the session, and with it the lock, has ended meanwhile.

use stateright::{Model, Property};

pub(crate) const NO_DUPLICATE: &str = "no event is on the topic twice";
pub(crate) const IN_ORDER: &str = "events are on the topic in the order of their ids";
pub(crate) const ONLY_PUBLISHED: &str = "only what is on the topic is marked";
const DONE: &str = "all is published and marked";

const RELAYS: usize = 2;

/// What is left out of the protocol, or done at the wrong moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The former owner can go on.
    NoFence,
    /// What the former owner has published is sent again.
    ClaimBeforeProgress,
    /// The progress of a batch is replaced before its marks are made.
    NextTransactionBeforeMarks,
    /// A fenced worker makes a new producer and goes on with what it saw of the lane before.
    NewProducerWithoutNewLook,
    /// A worker trusts a lane that is its own by the row, whatever happened to it since.
    OwnLaneWithoutProgress,
    /// A lost progress is taken for nothing in doubt.
    LossUnnoticed,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// A relay is killed and starts again.
    pub(crate) crashes: u8,
    /// The server ends a session.
    pub(crate) sessions: u8,
    /// A commit of Kafka is made, and its answer lost.
    pub(crate) answers: u8,
    /// The coordinator rolls a transaction back that was open for too long.
    pub(crate) timeouts: u8,
    /// The group is deleted.
    pub(crate) losses: u8,
}

#[derive(Debug, Clone)]
pub(crate) struct Once {
    pub(crate) rows: u8,
    pub(crate) batch: usize,
    pub(crate) faults: Faults,
    pub(crate) flaw: Option<Flaw>,
}

/// The lane's row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Lane {
    owner: Option<usize>,
    epoch: u8,
    opened: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Progress {
    owner: usize,
    epoch: u8,
    ids: Vec<u8>,
}

/// Where in its turn a relay is, as it believes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    /// Without a producer.
    Down,
    Idle,
    /// It has the lock and must take the lane, whose row was this.
    Looked(Lane),
    Fenced(Lane),
    /// It knows what the former owner has published.
    Read(Lane, Vec<u8>),
    /// The row is its own; Kafka does not know yet.
    Taken,
    Known,
    /// It has the lock of a lane of which nothing is in doubt. The rows: published and not marked, which a flaw allows.
    Own(Vec<u8>),
    Claimed(Vec<u8>, Vec<u8>),
    /// Its records are in an open transaction.
    Sent(Vec<u8>, Vec<u8>),
    Committed(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Relay {
    phase: Phase,
    /// Of its producer, as Kafka gave it.
    generation: u8,
    /// The epoch under which nothing of the lane is in doubt.
    settled: Option<u8>,
    /// The epoch under which it took the lane.
    epoch: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    marked: Vec<bool>,
    lane: Lane,
    locked_by: Option<usize>,
    /// What a consumer sees that reads committed.
    topic: Vec<u8>,
    progress: Option<Progress>,
    /// By transactional id: the youngest producer's generation, and the rows of the transaction that is open.
    generations: [u8; RELAYS],
    open: [Option<Vec<u8>>; RELAYS],
    relays: [Relay; RELAYS],
    faults: Faults,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Next(usize),
    LetGo(usize),
    Crash(usize),
    SessionEnds(usize),
    AnswerLost(usize),
    TimesOut(usize),
    ProgressLost,
}

impl Model for Once {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let relay = Relay { phase: Phase::Down, generation: 0, settled: None, epoch: 0 };
        vec![State {
            marked: vec![false; usize::from(self.rows)],
            lane: Lane::default(),
            locked_by: None,
            topic: Vec::new(),
            progress: None,
            generations: [0; RELAYS],
            open: [None, None],
            relays: [relay.clone(), relay],
            faults: self.faults,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let left = state.faults;
        for relay in 0..RELAYS {
            steps.extend([Step::Next(relay), Step::LetGo(relay)]);
            let faults = [
                (left.crashes, Step::Crash(relay)),
                (left.sessions, Step::SessionEnds(relay)),
                (left.answers, Step::AnswerLost(relay)),
                (left.timeouts, Step::TimesOut(relay)),
            ];
            steps.extend(faults.into_iter().filter(|(left, _)| *left > 0).map(|(_, step)| step));
        }
        steps.extend((left.losses > 0).then_some(Step::ProgressLost));
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Next(relay) => self.go_on(&mut state, relay),
            Step::LetGo(relay) => state.let_go(relay),
            Step::Crash(relay) => {
                state.faults.crashes -= 1;
                state.unlock(relay);
                state.fail(relay);
            }
            Step::SessionEnds(relay) => {
                state.faults.sessions -= 1;
                (state.locked_by == Some(relay)).then_some(())?;
                state.unlock(relay);
            }
            Step::AnswerLost(relay) => {
                state.faults.answers -= 1;
                matches!(state.relays[relay].phase, Phase::Sent(..)).then_some(())?;
                self.go_on(&mut state, relay);
                state.unlock(relay);
                state.fail(relay);
            }
            Step::TimesOut(relay) => {
                state.faults.timeouts -= 1;
                state.open[relay].as_ref()?;
                state.roll_back(relay);
            }
            Step::ProgressLost => {
                state.faults.losses -= 1;
                state.progress.take()?;
            }
        }
        // A step that changes nothing is none.
        (state != *before).then_some(state)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.lane.epoch <= EPOCHS && state.generations.iter().all(|generation| *generation <= EPOCHS + 1)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let done = |_: &Self, state: &State| state.marked.iter().all(|marked| *marked);
        vec![
            Property::always(NO_DUPLICATE, |_, state: &State| {
                state.topic.iter().enumerate().all(|(at, row)| !state.topic[..at].contains(row))
            }),
            Property::always(IN_ORDER, |_, state: &State| {
                let firsts = |at: usize| !state.topic[..at].contains(&state.topic[at]);
                let first: Vec<_> = (0..state.topic.len()).filter(|at| firsts(*at)).map(|at| state.topic[at]).collect();
                first.is_sorted()
            }),
            Property::always(ONLY_PUBLISHED, |_, state: &State| {
                (0..).zip(&state.marked).all(|(row, marked)| !marked || state.topic.contains(&row))
            }),
            Property::sometimes(DONE, done),
        ]
    }
}

/// Relays that take the lane from each other could do so for ever.
const EPOCHS: u8 = 3;

impl Once {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// The relay's next step.
    fn go_on(&self, state: &mut State, me: usize) {
        let phase = state.relays[me].phase.clone();
        let next = match phase {
            Phase::Down => {
                state.roll_back(me);
                state.relays[me].generation = state.generations[me];
                state.relays[me].settled = None;
                Some(Phase::Idle)
            }
            Phase::Idle => match state.locked_by {
                Some(_) => Some(Phase::Idle),
                None => {
                    state.locked_by = Some(me);
                    Some(self.look(state, me))
                }
            },
            Phase::Looked(lane) => {
                match lane.owner {
                    Some(former) if former != me && !self.has(Flaw::NoFence) => state.roll_back(former),
                    _ => {}
                }
                Some(Phase::Fenced(lane))
            }
            Phase::Fenced(lane) => Some(Phase::Read(lane, self.read(state, lane))),
            Phase::Read(_, ids) => state.has_lock(me).then(|| {
                state.mark(&ids);
                state.lane = Lane { owner: Some(me), epoch: state.lane.epoch + 1, opened: false };
                state.relays[me].epoch = state.lane.epoch;
                state.unlock(me);
                Phase::Taken
            }),
            Phase::Taken => state.is_current(me).then(|| {
                state.progress = Some(Progress { owner: me, epoch: state.relays[me].epoch, ids: Vec::new() });
                Phase::Known
            }),
            Phase::Known => match state.locked_by {
                Some(_) => Some(Phase::Known),
                None => {
                    let epoch = state.relays[me].epoch;
                    (state.lane.owner == Some(me) && state.lane.epoch == epoch).then(|| {
                        state.lane.opened = true;
                        state.relays[me].settled = Some(epoch);
                        Phase::Idle
                    })
                }
            },
            Phase::Own(unmarked) => state.has_lock(me).then(|| {
                let pending = |row: &u8| !state.marked[usize::from(*row)] && !unmarked.contains(row);
                let batch: Vec<u8> = (0..self.rows).filter(pending).take(self.batch).collect();
                if !batch.is_empty() {
                    return Phase::Claimed(unmarked, batch);
                }
                state.mark(&unmarked);
                state.unlock(me);
                Phase::Idle
            }),
            Phase::Claimed(unmarked, batch) => {
                if self.has(Flaw::NewProducerWithoutNewLook) && !state.is_current(me) {
                    state.roll_back(me);
                    state.relays[me].generation = state.generations[me];
                }
                state.is_current(me).then(|| {
                    state.open[me] = Some(batch.clone());
                    Phase::Sent(unmarked, batch)
                })
            }
            Phase::Sent(mut unmarked, batch) => state.is_current(me).then(|| {
                state.topic.extend(state.open[me].take().unwrap_or_default());
                state.progress = Some(Progress { owner: me, epoch: state.relays[me].epoch, ids: batch.clone() });
                unmarked.extend(batch);
                match self.has(Flaw::NextTransactionBeforeMarks) && unmarked.len() < usize::from(self.rows) {
                    true => Phase::Own(unmarked),
                    false => Phase::Committed(unmarked),
                }
            }),
            Phase::Committed(unmarked) => state.has_lock(me).then(|| {
                state.mark(&unmarked);
                state.unlock(me);
                Phase::Idle
            }),
        };
        match next {
            Some(next) => state.relays[me].phase = next,
            None => {
                state.unlock(me);
                state.fail(me);
            }
        }
    }

    fn look(&self, state: &State, me: usize) -> Phase {
        let lane = state.lane;
        let settled = state.relays[me].settled == Some(lane.epoch)
            || self.has(Flaw::OwnLaneWithoutProgress) && lane.epoch == state.relays[me].epoch;
        if lane.owner == Some(me) && lane.opened && settled { Phase::Own(Vec::new()) } else { Phase::Looked(lane) }
    }

    /// What the former owner has published and may not have marked.
    fn read(&self, state: &State, lane: Lane) -> Vec<u8> {
        if lane.owner.is_none() || !lane.opened || self.has(Flaw::ClaimBeforeProgress) {
            return Vec::new();
        }
        match &state.progress {
            Some(found) if Some(found.owner) == lane.owner && found.epoch == lane.epoch => found.ids.clone(),
            _ if self.has(Flaw::LossUnnoticed) => Vec::new(),
            // The topic's tail.
            _ => state.topic.clone(),
        }
    }
}

impl State {
    fn has_lock(&self, relay: usize) -> bool {
        self.locked_by == Some(relay)
    }

    fn unlock(&mut self, relay: usize) {
        if self.has_lock(relay) {
            self.locked_by = None;
        }
    }

    /// Nobody has taken its transactional id since.
    fn is_current(&self, relay: usize) -> bool {
        self.relays[relay].generation == self.generations[relay]
    }

    /// Takes a transactional id: what is open under it is rolled back, and who used it can go on no more.
    fn roll_back(&mut self, id: usize) {
        self.open[id] = None;
        self.generations[id] += 1;
    }

    fn mark(&mut self, rows: &[u8]) {
        rows.iter().for_each(|row| self.marked[usize::from(*row)] = true);
    }

    /// After any error a relay trusts nothing.
    fn fail(&mut self, relay: usize) {
        self.relays[relay].phase = Phase::Down;
        self.relays[relay].settled = None;
    }

    fn let_go(&mut self, me: usize) {
        let settled = self.relays[me].settled;
        if self.relays[me].phase == Phase::Idle && settled.is_some() {
            self.relays[me].settled = None;
            if self.lane.owner == Some(me) && Some(self.lane.epoch) == settled {
                self.lane.owner = None;
                self.lane.opened = false;
            }
        }
    }
}
