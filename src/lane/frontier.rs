//! From which id a claim has to look.
//!
//! Published rows stay in the claim's index until vacuum, so a claim that starts at zero walks ever more dead entries. A claim
//! that starts too high overlooks a row that got its id early and committed late; and when a later event of the same entity is
//! claimed meanwhile, the order of that entity is broken for good. Time alone cannot decide: a transaction may stay open for
//! minutes. Snapshots can:
//!
//! - A transaction that had no id yet when we had claimed up to `seen` draws event ids above `seen`. (Postgres assigns the
//!   transaction id before the event id when the transaction has written anything before, and in `outbox_emit`. For the other
//!   inserts there is a window inside one statement, of microseconds unless a trigger makes it longer; so what had been drawn
//!   [`GUARD`] before a snapshot counts, not what had been drawn at it. What had been seen had been drawn; where the sequence may
//!   be read its last value says more: in a backlog the claims are far below it, and need not go back for the guard.)
//! - So when a snapshot shows that a transaction has ended, the claim goes back to what had been seen before it began. One
//!   that came and went between two snapshots is covered by the guard: it looks at a snapshot before the last one.
//! - While it runs, claims of the first second start below it, which needs no going back. One that runs longer is a straggler:
//!   claims start above its ids and each one checks afterwards that no straggler has ended before the claim's own snapshot.
//!
//! States of a range of ids: unseen -> covered (`id <= covered`) -> unseen again (a transaction ended, a sweep, a reset).
//! Everything visible at or below `covered` had been claimed when `covered` was set.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::store::snapshot::Snapshot;

/// Longer than an insert takes from drawing its event id to having a transaction id.
const GUARD: Duration = Duration::from_millis(50);

/// A transaction that has been seen running for longer is a straggler.
const STRAGGLER_AGE: Duration = Duration::from_secs(1);

/// How often a claim starts at zero, to find what no rule above covers (rows restored by hand, for example).
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A sweep may take this share of the time: under a held snapshot it walks all that was published since.
const SWEEP_SHARE: u32 = 20;

/// Marks closer together than this add nothing to [`GUARD`].
const MARK_SPACING: Duration = Duration::from_millis(5);

/// What had been drawn at the latest `at`.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    drawn: i64,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    /// Its event ids are above.
    lower: i64,
    since: Instant,
}

/// The state of one worker's range of lanes.
#[derive(Debug)]
pub(crate) struct Frontier {
    covered: i64,
    seen: i64,
    /// The last snapshot is not older than this.
    observed: Option<Instant>,
    /// What had been drawn [`GUARD`] before the snapshot before this one: a transaction that is new in this one, or came and went
    /// in between, draws ids above.
    settled: i64,
    /// The next claim starts below stragglers, too: the last one was given up because of one.
    cautious: bool,
    marks: VecDeque<Mark>,
    running: BTreeMap<u64, Running>,
    sweep_at: Instant,
    sweep_began: Option<Instant>,
}

impl Frontier {
    /// Nothing is covered: the first claim starts at zero.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            covered: 0,
            seen: 0,
            observed: None,
            settled: 0,
            cautious: false,
            marks: VecDeque::new(),
            running: BTreeMap::new(),
            sweep_at: now + SWEEP_INTERVAL,
            sweep_began: None,
        }
    }

    /// Takes in a snapshot taken before the claim that follows, and the last id drawn, if that is known. Both came of a question
    /// `asked` then and answered before `now`: the time between, however long, is never taken for a part of [`GUARD`].
    pub(crate) fn observe(&mut self, snapshot: &Snapshot, drawn: Option<i64>, asked: Instant, now: Instant) {
        self.settle(asked);
        let covered = &mut self.covered;
        self.running.retain(|xid, running| {
            let ended = snapshot.has_ended(*xid);
            if ended {
                *covered = running.lower.min(*covered);
            }
            !ended
        });
        for xid in &snapshot.running {
            self.running.entry(*xid).or_insert(Running { lower: self.settled, since: now });
        }
        self.mark(drawn, now);
        if now >= self.sweep_at && self.sweep_began.is_none() {
            self.covered = 0;
            self.sweep_began = Some(now);
        }
    }

    /// Moves `settled` up to the newest mark that is old enough.
    fn settle(&mut self, asked: Instant) {
        let Some(observed) = self.observed.replace(asked) else { return };
        while let Some(mark) = self.marks.front()
            && observed.saturating_duration_since(mark.at) >= GUARD
        {
            self.settled = mark.drawn;
            self.marks.pop_front();
        }
    }

    fn mark(&mut self, drawn: Option<i64>, now: Instant) {
        if self.marks.back().is_none_or(|mark| now - mark.at >= MARK_SPACING) {
            self.marks.push_back(Mark { at: now, drawn: drawn.map_or(self.seen, |drawn| drawn.max(self.seen)) });
        }
    }

    /// The claim's condition is `id > start`.
    pub(crate) fn start(&self, now: Instant) -> i64 {
        let counted = |running: &&Running| self.cautious || now - running.since < STRAGGLER_AGE;
        let lowers = self.running.values().filter(counted).map(|running| running.lower);
        lowers.fold(self.covered.min(self.settled), i64::min)
    }

    /// The highest id ever claimed.
    pub(crate) fn seen(&self) -> i64 {
        self.seen
    }

    /// True when a straggler had ended by a snapshot taken after the claim: the claim may have overlooked its rows, and
    /// must be given up. The next [`Frontier::observe`] goes back for them.
    pub(crate) fn overlooks(&mut self, after_claim: &Snapshot, now: Instant) -> bool {
        let straggler_ended =
            |(xid, running): (&u64, &Running)| now - running.since >= STRAGGLER_AGE && after_claim.has_ended(*xid);
        // A cautious claim started below all of them: where many transactions are long, one ends during every claim.
        let overlooks = !self.cautious && self.running.iter().any(straggler_ended);
        self.cautious = overlooks;
        overlooks
    }

    /// A claim has been settled: it took all it found up to `last`, and, unless it was `full`, found nothing above.
    pub(crate) fn advance(&mut self, last: i64, full: bool, now: Instant) {
        self.seen = self.seen.max(last);
        self.covered = if full { last } else { self.seen };
        if self.covered == self.seen
            && let Some(began) = self.sweep_began.take()
        {
            self.sweep_at = now + SWEEP_INTERVAL.max((now - began) * SWEEP_SHARE);
        }
    }

    /// Nothing was found above `start`. What is visible of what had been `drawn` needs no looking at again, though none of it was claimed
    /// here: it had been published before these lanes were taken over.
    pub(crate) fn found_nothing(&mut self, start: i64, drawn: Option<i64>, now: Instant) {
        self.advance(drawn.map_or(start, |drawn| drawn.max(start)), false, now);
    }

    /// Something below may be pending again: a batch was given up, lanes were taken over, rows were released.
    pub(crate) fn reset(&mut self) {
        self.covered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A model of Postgres: transactions draw a transaction id, then event ids, then commit or roll back.
    #[derive(Default)]
    struct Database {
        /// Inserts that have drawn their event id and have no transaction id yet, since when.
        drawn: Vec<(Duration, i64)>,
        clock: Duration,
        next_xid: u64,
        next_id: i64,
        running: BTreeMap<u64, Vec<i64>>,
        pending: BTreeSet<i64>,
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin,
        Draw,
        Assign,
        Insert(usize),
        Commit(usize),
        Rollback(usize),
        /// The answer with the snapshot travels for so many milliseconds.
        Claim {
            limit: usize,
            travels: u64,
            reading: Vec<Step>,
            between: Vec<Step>,
            after: Vec<Step>,
        },
        Pause(u64),
    }

    impl Database {
        fn snapshot(&self) -> Snapshot {
            let running: Vec<u64> = self.running.keys().copied().collect();
            let xmax = self.next_xid + 1;
            Snapshot { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
        }

        fn nth(&self, index: usize) -> Option<u64> {
            let count = self.running.len();
            (count > 0).then(|| *self.running.keys().nth(index % count).expect("within bounds"))
        }

        /// Time goes by; no insert stays without a transaction id for as long as the guard.
        fn pass(&mut self, time: Duration) {
            let latest = GUARD - Duration::from_millis(5);
            while let Some((since, _)) = self.drawn.first()
                && self.clock + time - *since > latest
            {
                self.assign();
            }
            self.clock += time;
        }

        fn assign(&mut self) {
            if !self.drawn.is_empty() {
                let (_, id) = self.drawn.remove(0);
                self.next_xid += 1;
                self.running.insert(self.next_xid, vec![id]);
            }
        }

        fn apply(&mut self, step: &Step) {
            match step {
                Step::Begin => {
                    self.next_xid += 1;
                    self.running.insert(self.next_xid, Vec::new());
                }
                Step::Draw => {
                    self.next_id += 1;
                    self.drawn.push((self.clock, self.next_id));
                }
                Step::Assign => self.assign(),
                Step::Insert(index) => {
                    if let Some(xid) = self.nth(*index) {
                        self.next_id += 1;
                        self.running.get_mut(&xid).expect("running").push(self.next_id);
                    }
                }
                Step::Commit(index) => {
                    if let Some(xid) = self.nth(*index) {
                        let ids = self.running.remove(&xid).expect("running");
                        self.pending.extend(ids);
                    }
                }
                Step::Rollback(index) => {
                    if let Some(xid) = self.nth(*index) {
                        self.running.remove(&xid);
                    }
                }
                Step::Claim { .. } | Step::Pause(_) => {}
            }
        }
    }

    fn simple() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Begin),
            1 => Just(Step::Draw),
            1 => Just(Step::Assign),
            5 => (0usize..8).prop_map(Step::Insert),
            4 => (0usize..8).prop_map(Step::Commit),
            1 => (0usize..8).prop_map(Step::Rollback),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        let some = || prop::collection::vec(simple(), 0..8);
        prop_oneof![
            6 => simple(),
            3 => (1usize..5, prop_oneof![4 => Just(0), 1 => 1u64..200], some(), some(), some()).prop_map(
                |(limit, travels, reading, between, after)| Step::Claim { limit, travels, reading, between, after }
            ),
            1 => prop_oneof![1u64..20, 60u64..200, 1100u64..1200].prop_map(Step::Pause),
        ]
    }

    fn run(steps: &[Step], reads_sequence: bool) -> (usize, Database) {
        let (mut database, mut now) = (Database::default(), Instant::now());
        let mut frontier = Frontier::new(now);
        let mut claims = 0;
        for step in steps {
            database.apply(step);
            match step {
                Step::Pause(millis) => {
                    database.pass(Duration::from_millis(*millis));
                    now += Duration::from_millis(*millis);
                }
                Step::Claim { limit, travels, reading, between, after } => {
                    let (asked, snapshot) = (now, database.snapshot());
                    reading.iter().for_each(|step| database.apply(step));
                    let drawn = reads_sequence.then_some(database.next_id);
                    database.pass(Duration::from_millis(*travels));
                    now += Duration::from_millis(*travels);
                    frontier.observe(&snapshot, drawn, asked, now);
                    between.iter().for_each(|step| database.apply(step));
                    let start = frontier.start(now);
                    let found: Vec<i64> = database.pending.range(start + 1..).take(*limit).copied().collect();
                    let overlooked = database.pending.iter().copied().find(|id| *id <= start);
                    let after_claim = {
                        after.iter().for_each(|step| database.apply(step));
                        database.snapshot()
                    };
                    database.pass(Duration::from_millis(1));
                    now += Duration::from_millis(1);
                    if frontier.overlooks(&after_claim, now) {
                        continue;
                    }
                    if let (Some(first), Some(overlooked)) = (found.first(), overlooked) {
                        panic!("claimed {first} while {overlooked} was visible below the start {start}");
                    }
                    found.iter().for_each(|id| {
                        database.pending.remove(id);
                    });
                    match found.last() {
                        Some(last) => frontier.advance(*last, found.len() == *limit, now),
                        None => frontier.found_nothing(start, drawn, now),
                    }
                    claims += 1;
                }
                _ => {}
            }
        }
        (claims, database)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn no_claim_overtakes_a_row_that_was_visible(steps in prop::collection::vec(step(), 1..120), reads_sequence: bool) {
            run(&steps, reads_sequence);
        }
    }

    #[test]
    fn the_start_follows_the_claims_while_a_long_transaction_runs() {
        let mut now = Instant::now();
        let mut frontier = Frontier::new(now);
        for id in 1..=1000i64 {
            now += Duration::from_millis(10);
            let snapshot = Snapshot { xmin: 5, xmax: 100 + id as u64, running: vec![5] };
            frontier.observe(&snapshot, None, now, now);
            frontier.advance(id, false, now);
        }
        assert!(frontier.start(now) > 980, "the start lags at {}", frontier.start(now));
        let ended = Snapshot { xmin: 1101, xmax: 1101, running: vec![] };
        assert!(frontier.overlooks(&ended, now));
        frontier.observe(&ended, None, now, now);
        assert_eq!(frontier.start(now), 0);
    }

    #[test]
    fn a_long_sweep_is_followed_by_a_long_pause() {
        let mut now = Instant::now();
        let mut frontier = Frontier::new(now);
        frontier.advance(100, false, now);
        now += SWEEP_INTERVAL;
        frontier.observe(&Snapshot::default(), None, now, now);
        assert_eq!(frontier.start(now), 0);
        now += Duration::from_secs(2);
        frontier.advance(100, false, now);
        assert_eq!(frontier.sweep_at, now + Duration::from_secs(40));
    }
}
