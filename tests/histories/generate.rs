//! Draws the script of a history. The same seed, regime and number give the same script.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::script::{Action, Begin, End, History, Meddling, Regime, Session, Step, Transaction, Turns, Write};

/// One in this many histories has an application that touches pending rows.
const MEDDLING_IN: u32 = 3;

/// One in this many transactions on a busy server is larger than a claim (2,000 rows by default).
const HUGE_IN: u32 = 60;

impl History {
    /// Draws the script.
    pub(crate) fn draw(seed: u64, regime: Regime, number: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, regime.name(), number).hash(&mut hasher);
        let random = StdRng::seed_from_u64(hasher.finish());
        Generator { regime, random, entities: Vec::new() }.history(number)
    }
}

struct Generator {
    regime: Regime,
    random: StdRng,
    entities: Vec<Turns>,
}

impl Generator {
    fn history(mut self, number: u64) -> History {
        let quiet = self.regime == Regime::Quiet;
        let sessions = if quiet { self.random.random_range(1..=2) } else { self.random.random_range(2..=5) };
        // Every session has at least one entity of its own, so that there is always something to write.
        self.entities = (0..sessions).map(Turns::OneSession).collect();
        for _ in 0..self.random.random_range(1..=2) {
            let shared = [Turns::RowLock, Turns::CounterUpdate, Turns::AdvisoryLock, Turns::Emit];
            let turns = self.one_of(&shared);
            self.entities.push(turns);
        }
        let sessions = (0..sessions).map(|session| self.session(session)).collect();
        let meddling = if self.random.random_ratio(1, MEDDLING_IN) { self.meddling() } else { Vec::new() };
        History { regime: self.regime, number, entities: self.entities, sessions, meddling }
    }

    fn session(&mut self, session: usize) -> Session {
        let transactions = if self.regime == Regime::Quiet { 2..=4 } else { 3..=8 };
        let transactions = self.random.random_range(transactions);
        Session {
            waits_for_standby: self.random.random_bool(0.7),
            transactions: (0..transactions).map(|_| self.transaction(session)).collect(),
        }
    }

    fn transaction(&mut self, session: usize) -> Transaction {
        let pause = self.pause();
        if self.random.random_bool(0.2) {
            return self.autocommit(session, pause);
        }
        let begin = if self.random.random_bool(0.25) { Begin::WithTransactionId } else { Begin::Plain };
        let steps = self.steps(session);
        let end = match self.random.random_range(0..20) {
            0..3 => End::RollBack,
            3..5 => End::Prepare { waits: self.millis(0..500), commits: self.random.random_bool(0.8) },
            _ => End::Commit,
        };
        Transaction { pause, begin, steps, stays_open: self.stays_open(), end }
    }

    /// Draws one statement that is a transaction of its own.
    fn autocommit(&mut self, session: usize, pause: Duration) -> Transaction {
        let step = self.write(session, Turns::OneSession(session));
        let (begin, stays_open, end) = (Begin::Autocommit, Duration::ZERO, End::Commit);
        Transaction { pause, begin, steps: vec![step], stays_open, end }
    }

    /// Draws writes to entities in ascending order, so that no two transactions wait for each other.
    fn steps(&mut self, session: usize) -> Vec<Step> {
        let mut entities: Vec<usize> = (0..self.random.random_range(1..=3)).map(|_| self.entity_of(session)).collect();
        entities.sort_unstable();
        let (mut steps, mut savepoints) = (Vec::new(), 0);
        for entity in entities {
            if self.random.random_bool(0.2) {
                steps.push(Step::Savepoint);
                savepoints += 1;
            }
            steps.push(self.write(entity, self.entities[entity]));
            if savepoints > 0 && self.random.random_bool(0.4) {
                steps.push(Step::RollBackToSavepoint);
                savepoints -= 1;
            }
        }
        steps
    }

    fn entity_of(&mut self, session: usize) -> usize {
        let others = |index: usize, turns: &Turns| !matches!(turns, Turns::OneSession(_)) || index == session;
        let own: Vec<usize> = (0..self.entities.len()).filter(|index| others(*index, &self.entities[*index])).collect();
        self.one_of(&own)
    }

    fn write(&mut self, entity: usize, turns: Turns) -> Step {
        let how = self.how(turns);
        let events = match how {
            Write::Copy | Write::InsertSelect if self.regime == Regime::Quiet => self.random.random_range(1..=5),
            Write::Copy | Write::InsertSelect
                if self.regime != Regime::Narrow && self.random.random_ratio(1, HUGE_IN) =>
            {
                self.random.random_range(1_000..=4_000)
            }
            Write::Copy | Write::InsertSelect => self.random.random_range(1..=60),
            Write::Plain | Write::Emit => self.random.random_range(1..=3),
            _ => 1,
        };
        Step::Write { entity, how, events }
    }

    fn how(&mut self, turns: Turns) -> Write {
        let takes = self.millis(20..300);
        if turns == Turns::Emit {
            return self.one_of(&[Write::Emit, Write::Emit, Write::EmitComputed(takes)]);
        }
        if self.random.random_ratio(1, 40) {
            return Write::Poison;
        }
        let ways = [
            Write::Plain,
            Write::Plain,
            Write::Plain,
            Write::InsertSelect,
            Write::Copy,
            Write::Computed(takes),
            Write::SlowTrigger(takes),
        ];
        self.one_of(&ways)
    }

    fn meddling(&mut self) -> Vec<Meddling> {
        let actions = [Action::Lock, Action::Lock, Action::Touch, Action::Move, Action::Delete];
        let mut meddling = vec![Meddling { action: Action::Revive, locked: Duration::ZERO, commits: true }];
        for _ in 0..self.random.random_range(1..=4) {
            let longest = self.one_of(&[5, 50, 300, 300, 4_000]);
            meddling.push(Meddling {
                action: self.one_of(&actions),
                locked: self.millis(1..longest),
                commits: self.random.random_bool(0.8),
            });
        }
        meddling
    }

    fn pause(&mut self) -> Duration {
        match self.regime {
            Regime::Quiet => self.millis(10..400),
            _ => self.millis(0..60),
        }
    }

    fn stays_open(&mut self) -> Duration {
        let millis = match self.regime {
            Regime::Quiet => self.one_of(&[0, 0, 20, 300, 1_000, 1_000, 2_000]),
            _ => self.one_of(&[0, 0, 0, 0, 0, 0, 5, 20, 100, 500, 1_200]),
        };
        Duration::from_millis(millis)
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices.choose(&mut self.random).expect("there is a choice")
    }
}
