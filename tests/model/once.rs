//! Models exactly-once delivery: two relays, one lane and one entity, whose rows are all committed. The model holds who owns the lane, what
//! Kafka's coordinator knows of transactions, and what Postgres knows of marks.
//!
//! A relay takes a step when it sends to a server or receives an answer; a frozen relay takes no step. `Lock` asks Postgres for the lane's
//! lock and reads the lane's row. Every later step at Postgres fails if the session, and with it the lock, has ended meanwhile.
//!
//! A progress record in Kafka names the ids of a batch, the lane's nonce before and after the batch, and a digest over (id, event) of the
//! batch. A relay that takes the lane finds one of these cases:
//!
//! - the lane has the nonce after: the marks were made, and every published row is marked;
//! - the lane has the nonce before, and the digest over the PENDING rows under these ids is the same: the relay marks the ids;
//! - anything else (lost progress, or a lost tail of Postgres): the relay searches the topics for the events of PENDING rows.

use stateright::{Model, Property};

pub(crate) const NO_DUPLICATE: &str = "no event is on the topic twice";
pub(crate) const IN_ORDER: &str = "events are on the topic in the order of their ids";
pub(crate) const ONLY_PUBLISHED: &str = "only what is on the topic is marked";
const DONE: &str = "all is published and marked";

const RELAYS: usize = 2;

/// A mistake in the protocol: a step that is left out, or done at the wrong moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The former owner is not fenced and can go on writing.
    NoFence,
    /// A new owner claims before it reads the progress, so it sends the former owner's events again.
    ClaimBeforeProgress,
    /// The next batch replaces the progress before the marks of the last batch are made.
    NextTransactionBeforeMarks,
    /// A fenced worker makes a new producer and goes on with its old view of the lane.
    NewProducerWithoutNewLook,
    /// A worker trusts a lane whose row names it as owner, whatever has happened to the lane since.
    OwnLaneWithoutProgress,
    /// A relay that finds no progress assumes that nothing was published.
    LossUnnoticed,
    /// The protocol before the digest: a relay believes progress with the lane's owner and epoch, and marks its ids.
    IdsAlone,
    /// A relay compares the nonces, but not the digest.
    NoDigest,
    /// A relay fences only the owner that the lane's row names. Postgres may have forgotten the last owner.
    FenceByRowAlone,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// A relay is killed and starts again.
    pub(crate) crashes: u8,
    /// The server ends a session.
    pub(crate) sessions: u8,
    /// Kafka commits a transaction, but its answer is lost.
    pub(crate) answers: u8,
    /// The coordinator rolls back a transaction that was open for too long.
    pub(crate) timeouts: u8,
    /// The consumer group, which stores the progress, is deleted.
    pub(crate) losses: u8,
    /// Postgres loses its last commits, and the ids of rows among them are allocated again.
    pub(crate) tails: u8,
}

#[derive(Debug, Clone)]
pub(crate) struct Once {
    pub(crate) rows: u8,
    pub(crate) batch: usize,
    /// The highest epoch. Without a bound, relays could take the lane from each other for ever.
    pub(crate) epochs: u8,
    pub(crate) faults: Faults,
    pub(crate) flaw: Option<Flaw>,
}

/// The lane's row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Lane {
    owner: Option<usize>,
    epoch: u8,
    opened: bool,
    /// A random number, new with each take and each settle.
    nonce: u8,
}

/// A row's id and its event. Two events may have had the same id.
type Sent = (u8, u8);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Progress {
    owner: usize,
    epoch: u8,
    before: u8,
    after: u8,
    /// The ids and their events. In reality only a digest of these pairs is stored.
    rows: Vec<Sent>,
}

/// The state that survives on the standby.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Durable {
    /// The number of rows that survive.
    kept: usize,
    marked: Vec<bool>,
    lane: Lane,
}

/// The point of its cycle at which a relay believes itself to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    /// The relay has no producer.
    Down,
    Idle,
    /// The relay has the lock and must take the lane; holds the lane's row as it was read.
    Looked(Lane),
    Fenced(Lane),
    /// The relay knows which events the former owner has published.
    Read(Lane, Vec<u8>),
    /// The lane's row names the relay as owner; Kafka does not know yet.
    Taken,
    Known,
    /// The relay has the lock of a lane whose published rows are all marked. The rows: published but not marked, which only a flaw allows.
    Own(Vec<Sent>),
    Claimed(Vec<Sent>, Vec<Sent>),
    /// The relay's records are in an open transaction.
    Sent(Vec<Sent>, Vec<Sent>),
    /// Kafka has committed the records; the settle will give the lane this nonce.
    Committed(Vec<Sent>, u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Relay {
    phase: Phase,
    /// The generation of the relay's producer, as Kafka assigned it.
    generation: u8,
    /// The lane's nonce after the relay's last settle. While the lane has it, every published row of the lane is marked.
    settled: Option<u8>,
    /// The epoch under which the relay took the lane.
    epoch: u8,
    /// The nonce that the relay gave the lane when it took the lane. A lost tail may have set the lane's row back since.
    taken: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The event of each id.
    events: Vec<u8>,
    marked: Vec<bool>,
    lane: Lane,
    locked_by: Option<usize>,
    /// The records that a `read_committed` consumer sees.
    topic: Vec<u8>,
    progress: Option<Progress>,
    /// The youngest producer's generation by transactional id; `open` holds the rows of each id's open transaction.
    generations: [u8; RELAYS],
    open: [Option<Vec<Sent>>; RELAYS],
    next_nonce: u8,
    durable: Option<Durable>,
    relays: [Relay; RELAYS],
    faults: Faults,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Next(usize),
    Release(usize),
    Crash(usize),
    SessionEnds(usize),
    AnswerLost(usize),
    TimesOut(usize),
    ProgressLost,
    /// No later commit of Postgres gets to the standby, which has this many rows.
    StopFlushing(usize),
    LoseTail,
}

impl Model for Once {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let relay = Relay { phase: Phase::Down, generation: 0, settled: None, epoch: 0, taken: 0 };
        vec![State {
            events: (0..self.rows).collect(),
            next_nonce: 1,
            durable: None,
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
            steps.extend([Step::Next(relay), Step::Release(relay)]);
            let faults = [
                (left.crashes, Step::Crash(relay)),
                (left.sessions, Step::SessionEnds(relay)),
                (left.answers, Step::AnswerLost(relay)),
                (left.timeouts, Step::TimesOut(relay)),
            ];
            steps.extend(faults.into_iter().filter(|(left, _)| *left > 0).map(|(_, step)| step));
        }
        steps.extend((left.losses > 0).then_some(Step::ProgressLost));
        match state.durable {
            _ if left.tails == 0 => {}
            Some(_) => steps.push(Step::LoseTail),
            None => steps.extend((0..=usize::from(self.rows)).map(Step::StopFlushing)),
        }
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        match step {
            Step::Next(relay) => self.go_on(&mut state, relay),
            Step::Release(relay) => state.release(relay),
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
            Step::StopFlushing(kept) => {
                state.durable = Some(Durable { kept, marked: state.marked.clone(), lane: state.lane });
            }
            Step::LoseTail => {
                state.faults.tails -= 1;
                let Durable { kept, marked, lane } = state.durable.take()?;
                state.locked_by = None;
                state.lane = lane;
                let rows = state.marked.iter_mut().zip(&mut state.events).zip(marked).enumerate();
                for (id, ((mark, event), durable)) in rows {
                    *mark = id < kept && durable;
                    *event += if id < kept { 0 } else { self.rows };
                }
            }
        }
        // A step that changes nothing is no step.
        (state != *before).then_some(state)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.lane.epoch <= self.epochs && state.generations.iter().all(|generation| *generation <= self.epochs + 1)
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
                state.events.iter().zip(&state.marked).all(|(event, marked)| !marked || state.topic.contains(event))
            }),
            Property::sometimes(DONE, done),
        ]
    }
}

impl Once {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// Takes the relay's next step.
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
                let in_kafka = state.progress.as_ref().map(|progress| progress.owner);
                let in_kafka = in_kafka.filter(|_| !self.has(Flaw::FenceByRowAlone) && !self.has(Flaw::IdsAlone));
                let mut former: Vec<usize> = lane.owner.into_iter().chain(in_kafka).filter(|id| *id != me).collect();
                former.dedup();
                if !self.has(Flaw::NoFence) {
                    former.into_iter().for_each(|former| state.roll_back(former));
                }
                Some(Phase::Fenced(lane))
            }
            Phase::Fenced(lane) => Some(Phase::Read(lane, self.read(state, lane))),
            Phase::Read(_, ids) => state.has_lock(me).then(|| {
                state.mark(&ids);
                let nonce = state.fresh_nonce();
                state.lane = Lane { owner: Some(me), epoch: state.lane.epoch + 1, opened: false, nonce };
                state.relays[me].epoch = state.lane.epoch;
                state.relays[me].taken = nonce;
                state.unlock(me);
                Phase::Taken
            }),
            Phase::Taken => state.is_current(me).then(|| {
                let (epoch, nonce) = (state.relays[me].epoch, state.relays[me].taken);
                state.progress = Some(Progress { owner: me, epoch, before: nonce, after: nonce, rows: Vec::new() });
                Phase::Known
            }),
            Phase::Known => match state.locked_by {
                Some(_) => Some(Phase::Known),
                None => {
                    let epoch = state.relays[me].epoch;
                    let taken = self.has(Flaw::IdsAlone) || state.lane.nonce == state.relays[me].taken;
                    (state.lane.owner == Some(me) && state.lane.epoch == epoch && taken).then(|| {
                        state.lane.opened = true;
                        state.relays[me].settled = Some(state.relays[me].taken);
                        Phase::Idle
                    })
                }
            },
            Phase::Own(unmarked) => state.has_lock(me).then(|| {
                let rows = (0..self.rows).zip(state.events.iter().copied());
                let pending = |row: &Sent| !state.marked[usize::from(row.0)] && !unmarked.contains(row);
                let batch: Vec<Sent> = rows.filter(pending).take(self.batch).collect();
                if !batch.is_empty() {
                    return Phase::Claimed(unmarked, batch);
                }
                state.mark(&ids(&unmarked));
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
                let sent = state.open[me].take().unwrap_or_default();
                state.topic.extend(sent.into_iter().map(|(_, event)| event));
                let (epoch, before, after) = (state.relays[me].epoch, state.relays[me].settled, state.fresh_nonce());
                let before = before.unwrap_or_default();
                state.progress = Some(Progress { owner: me, epoch, before, after, rows: batch.clone() });
                unmarked.extend(batch);
                match self.has(Flaw::NextTransactionBeforeMarks) && unmarked.len() < usize::from(self.rows) {
                    true => Phase::Own(unmarked),
                    false => Phase::Committed(unmarked, after),
                }
            }),
            Phase::Committed(unmarked, after) => state.has_lock(me).then(|| {
                state.mark(&ids(&unmarked));
                state.lane.nonce = after;
                state.relays[me].settled = Some(after);
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
        let settled = state.relays[me].settled == Some(lane.nonce)
            || self.has(Flaw::IdsAlone) && state.relays[me].settled.is_some() && lane.epoch == state.relays[me].epoch
            || self.has(Flaw::OwnLaneWithoutProgress) && lane.epoch == state.relays[me].epoch;
        if lane.owner == Some(me) && lane.opened && settled { Phase::Own(Vec::new()) } else { Phase::Looked(lane) }
    }

    /// Returns the rows that the former owner published and may not have marked.
    fn read(&self, state: &State, lane: Lane) -> Vec<u8> {
        if self.has(Flaw::ClaimBeforeProgress) {
            return Vec::new();
        }
        if self.has(Flaw::IdsAlone) {
            return self.read_by_ids(state, lane);
        }
        match &state.progress {
            Some(found) if found.after == lane.nonce => Vec::new(),
            Some(found) if found.before == lane.nonce => {
                let pending = found.rows.iter().filter(|(id, _)| !state.marked[usize::from(*id)]);
                let now: Vec<Sent> = pending.map(|(id, _)| (*id, state.events[usize::from(*id)])).collect();
                if now == found.rows || self.has(Flaw::NoDigest) { ids(&found.rows) } else { state.search() }
            }
            // A lane in its first state has never had an owner, so nobody has sent anything.
            None if lane == Lane::default() => Vec::new(),
            None if self.has(Flaw::LossUnnoticed) => Vec::new(),
            _ => state.search(),
        }
    }

    fn read_by_ids(&self, state: &State, lane: Lane) -> Vec<u8> {
        match &state.progress {
            _ if lane.owner.is_none() || !lane.opened => Vec::new(),
            Some(found) if Some(found.owner) == lane.owner && found.epoch == lane.epoch => ids(&found.rows),
            _ => state.search(),
        }
    }
}

fn ids(rows: &[Sent]) -> Vec<u8> {
    rows.iter().map(|(id, _)| *id).collect()
}

impl State {
    fn fresh_nonce(&mut self) -> u8 {
        self.next_nonce += 1;
        self.next_nonce - 1
    }

    /// Returns the ids of rows whose events are on the topic. Searches by event id, because no event id is ever used twice.
    fn search(&self) -> Vec<u8> {
        (0..).zip(&self.events).filter(|(_, event)| self.topic.contains(event)).map(|(id, _)| id).collect()
    }

    fn has_lock(&self, relay: usize) -> bool {
        self.locked_by == Some(relay)
    }

    fn unlock(&mut self, relay: usize) {
        if self.has_lock(relay) {
            self.locked_by = None;
        }
    }

    /// Returns true while nobody else has taken the relay's transactional id.
    fn is_current(&self, relay: usize) -> bool {
        self.relays[relay].generation == self.generations[relay]
    }

    /// Takes a transactional id: rolls back its open transaction and fences its former user.
    fn roll_back(&mut self, id: usize) {
        self.open[id] = None;
        self.generations[id] += 1;
    }

    fn mark(&mut self, rows: &[u8]) {
        rows.iter().for_each(|row| self.marked[usize::from(*row)] = true);
    }

    /// Ends the relay's cycle after an error; from now on the relay trusts nothing that it knew.
    fn fail(&mut self, relay: usize) {
        self.relays[relay].phase = Phase::Down;
        self.relays[relay].settled = None;
    }

    fn release(&mut self, me: usize) {
        let settled = self.relays[me].settled;
        if self.relays[me].phase == Phase::Idle && settled.is_some() {
            self.relays[me].settled = None;
            if self.lane.owner == Some(me) && self.lane.opened && self.lane.epoch == self.relays[me].epoch {
                self.lane.owner = None;
                self.lane.opened = false;
            }
        }
    }
}
