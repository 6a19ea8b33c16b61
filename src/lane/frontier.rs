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
//!   claims start above its ids, and each one checks afterwards that no transaction whose ids may be below its start has ended before
//!   the claim's own snapshot.
//!
//! States of a range of ids: unseen -> covered (`id <= covered`) -> unseen again (a transaction ended, a sweep found a row, a reset).
//! Everything visible at or below `covered` had been claimed when `covered` was set.
//!
//! Under a held snapshot there is nothing but dead index entries between a start that went back and the first pending row, and a statement
//! that walked all of them could take longer than it may. So a claim that starts far below what is known to exist goes one
//! [slice](Frontier::upto) at a time, as wide as a moment's walk. A sweep is walked in slices beside the claims, which wait for one at most.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::store::snapshot::Snapshot;

/// Longer than an insert takes from drawing its event id to having a transaction id.
const GUARD: Duration = Duration::from_millis(50);

/// A transaction that has been seen running for longer is a straggler.
const STRAGGLER_AGE: Duration = Duration::from_secs(1);

/// How often all that is covered is looked at again, for what no rule above covers (rows restored by hand, for example).
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Sweeping may take this share of the time: under a held snapshot it walks all that was published since.
const SWEEP_SHARE: u32 = 50;

/// How many ids a slice begins with.
const FIRST_WIDTH: i64 = 1 << 14;

/// A slice that took less makes the next one twice as wide, one that took [`SLOW`] times as long half as wide.
const SLICE_TIME: Duration = Duration::from_millis(10);
const SLOW: u32 = 4;

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
    /// The next claim starts below running transactions that are younger. Longer than [`STRAGGLER_AGE`] when the last one was given up
    /// because of one that was older.
    horizon: Duration,
    marks: VecDeque<Mark>,
    running: BTreeMap<u64, Running>,
    /// The highest id known to have been drawn.
    drawn: i64,
    /// Ids of a slice.
    width: i64,
    /// A sweep has come so far; zero between two sweeps.
    swept: i64,
    /// When the next slice of a sweep is due.
    sweep_at: Instant,
}

/// A part of a sweep: nothing may be pending in `after < id <= upto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) after: i64,
    pub(crate) upto: i64,
}

impl Frontier {
    /// Nothing is covered: the first claim starts at zero.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            covered: 0,
            seen: 0,
            observed: None,
            settled: 0,
            horizon: STRAGGLER_AGE,
            marks: VecDeque::new(),
            running: BTreeMap::new(),
            drawn: 0,
            width: FIRST_WIDTH,
            swept: 0,
            sweep_at: now + SWEEP_INTERVAL,
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
        self.drawn = self.drawn.max(drawn.unwrap_or_default());
        self.mark(drawn, now);
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
        let base = self.base();
        let young = self.running.values().filter(|running| now - running.since < self.horizon);
        let below = young.map(|running| running.lower).fold(base, i64::min);
        // A long walk would not come on if it went back for each transaction: those that end on the way are looked for afterwards.
        if self.is_far(base) { base } else { below }
    }

    fn base(&self) -> i64 {
        self.covered.min(self.settled)
    }

    /// More than a slice lies between `id` and the last one known, or nothing is known yet.
    fn is_far(&self, id: i64) -> bool {
        self.observed.is_none() || self.is_known(id.saturating_add(self.width))
    }

    fn is_known(&self, id: i64) -> bool {
        id < self.seen.max(self.drawn)
    }

    /// How far a claim from `start` may look: `id <= upto`. `None`: to the end.
    pub(crate) fn upto(&self, start: i64) -> Option<i64> {
        (start == self.base() && self.is_far(start)).then(|| start + self.width)
    }

    /// A slice was walked to its end in this time.
    pub(crate) fn walked(&mut self, took: Duration) {
        if took < SLICE_TIME {
            self.width = self.width.saturating_mul(2);
        } else if took > SLICE_TIME * SLOW {
            self.width = (self.width / 2).max(1);
        }
    }

    /// What is to be swept now.
    pub(crate) fn sweep(&self, now: Instant) -> Option<Slice> {
        let slice = Slice { after: self.swept, upto: self.swept.saturating_add(self.width).min(self.covered) };
        (now >= self.sweep_at && slice.after < slice.upto).then_some(slice)
    }

    /// A slice of a sweep was walked; `first` is what was pending there.
    pub(crate) fn swept(&mut self, slice: Slice, first: Option<i64>, took: Duration, now: Instant) {
        self.walked(took);
        self.sweep_at = now + took * SWEEP_SHARE;
        self.swept = slice.upto;
        if let Some(first) = first {
            self.covered = self.covered.min(first - 1);
        }
        if first.is_some() || slice.upto >= self.covered {
            self.swept = 0;
            self.sweep_at = self.sweep_at.max(now + SWEEP_INTERVAL);
        }
    }

    /// The highest id ever claimed.
    pub(crate) fn seen(&self) -> i64 {
        self.seen
    }

    /// True when a transaction that may have drawn ids below the claim's `start` had ended by a snapshot taken after the claim: it may
    /// have overlooked rows, and must be given up. The next [`Frontier::observe`] goes back for them.
    pub(crate) fn overlooks(&mut self, start: i64, after_claim: &Snapshot, now: Instant) -> bool {
        let overlooked =
            self.running.iter().filter(|(xid, running)| running.lower < start && after_claim.has_ended(**xid));
        let oldest = overlooked.map(|(_, running)| now - running.since).max();
        // Where many transactions are long, one ends during every claim.
        self.horizon = oldest.map_or(STRAGGLER_AGE, |age| STRAGGLER_AGE.max(age * 2));
        oldest.is_some()
    }

    /// A claim has been settled: it took all it found up to `last`, and, unless it was `full`, found nothing above.
    pub(crate) fn advance(&mut self, last: i64, full: bool) {
        self.seen = self.seen.max(last);
        self.covered = if full { last } else { self.seen };
    }

    /// Nothing was found in `start < id <= upto`, or above `start`. What is visible of what had been `drawn` needs no looking at again,
    /// though none of it was claimed here: it had been published before these lanes were taken over. True when there is nothing above to
    /// look at.
    pub(crate) fn found_nothing(&mut self, start: i64, upto: Option<i64>, drawn: Option<i64>) -> bool {
        match upto {
            Some(upto) if self.is_known(upto) => self.advance(upto, true),
            // The first look, by somebody who may not read the sequence.
            Some(_) if drawn.is_none() => {}
            _ => {
                self.advance(drawn.map_or(start, |drawn| drawn.max(start)), false);
                return true;
            }
        }
        false
    }

    /// Something below may be pending again: a batch was given up, lanes were taken over, rows were released. The last walk may also have
    /// been too long for its statement.
    pub(crate) fn reset(&mut self) {
        self.covered = 0;
        self.width = self.width.min(FIRST_WIDTH);
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

    /// Slices are `width` ids to begin with, and become wider when there is none to walk.
    fn run(steps: &[Step], reads_sequence: bool, width: i64) -> (usize, Database) {
        let (mut database, mut now) = (Database::default(), Instant::now());
        let mut frontier = Frontier::new(now);
        frontier.width = width;
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
                    if let Some(slice) = frontier.sweep(now) {
                        let first = database.pending.range(slice.after + 1..=slice.upto).next().copied();
                        frontier.swept(slice, first, Duration::ZERO, now);
                    }
                    let start = frontier.start(now);
                    let upto = frontier.upto(start);
                    let found: Vec<i64> =
                        database.pending.range(start + 1..=upto.unwrap_or(i64::MAX)).take(*limit).copied().collect();
                    let overlooked = database.pending.iter().copied().find(|id| *id <= start);
                    let after_claim = {
                        after.iter().for_each(|step| database.apply(step));
                        database.snapshot()
                    };
                    database.pass(Duration::from_millis(1));
                    now += Duration::from_millis(1);
                    if frontier.overlooks(start, &after_claim, now) {
                        continue;
                    }
                    if let (Some(first), Some(overlooked)) = (found.first(), overlooked) {
                        panic!("claimed {first} while {overlooked} was visible below the start {start}");
                    }
                    found.iter().for_each(|id| {
                        database.pending.remove(id);
                    });
                    match (found.last(), upto) {
                        (Some(last), _) if found.len() == *limit => frontier.advance(*last, true),
                        (_, Some(upto)) => {
                            frontier.walked(Duration::ZERO);
                            frontier.advance(upto, true);
                        }
                        (Some(last), None) => frontier.advance(*last, false),
                        (None, None) => assert!(frontier.found_nothing(start, None, drawn)),
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
        fn no_claim_overtakes_a_row_that_was_visible(
            steps in prop::collection::vec(step(), 1..120),
            reads_sequence: bool,
            width in prop_oneof![Just(FIRST_WIDTH), 1i64..6],
        ) {
            run(&steps, reads_sequence, width);
        }

        #[test]
        fn all_is_claimed_in_the_end(
            mut steps in prop::collection::vec(step(), 1..60),
            reads_sequence: bool,
            width in prop_oneof![Just(FIRST_WIDTH), 1i64..6],
        ) {
            let claim = Step::Claim { limit: 100, travels: 0, reading: vec![], between: vec![], after: vec![] };
            steps.extend([const { Step::Pause(60) }, Step::Assign, Step::Assign].into_iter().cycle().take(90));
            steps.extend(std::iter::repeat_n(Step::Commit(0), 200));
            for _ in 0..12 {
                steps.extend([claim.clone(), Step::Pause(60)]);
            }
            let (_, database) = run(&steps, reads_sequence, width);
            prop_assert!(database.pending.is_empty(), "left: {:?}", database.pending);
        }
    }

    #[test]
    fn a_long_walk_comes_on_slice_by_slice_whatever_runs() {
        let mut now = Instant::now();
        let mut frontier = Frontier::new(now);
        let drawn = 100 * FIRST_WIDTH;
        let mut slices = 0;
        for xid in 1_u64.. {
            now += Duration::from_millis(60);
            // Two transactions run at any time, a new one each time; one has been running since before the first look.
            let snapshot = Snapshot { xmin: 1, xmax: xid + 3, running: vec![1, xid + 1, xid + 2] };
            frontier.observe(&snapshot, Some(drawn), now, now);
            let start = frontier.start(now);
            let Some(upto) = frontier.upto(start) else { break };
            assert!(!frontier.overlooks(start, &snapshot, now));
            frontier.advance(upto, true);
            frontier.walked(SLICE_TIME);
            slices += 1;
        }
        assert!((99..110).contains(&slices), "{slices} slices");
    }

    #[test]
    fn what_goes_back_for_a_young_transaction_looks_to_the_end() {
        let (mut now, drawn) = (Instant::now(), 10 * FIRST_WIDTH);
        let mut frontier = Frontier::new(now);
        frontier.observe(&Snapshot { xmin: 7, xmax: 8, running: vec![7] }, Some(drawn), now, now);
        for _ in 0..2 {
            now += GUARD;
            frontier.observe(&Snapshot { xmin: 7, xmax: 8, running: vec![7] }, Some(drawn), now, now);
        }
        frontier.advance(drawn, false);
        // A slice from there would be the same one for as long as the transaction is young.
        assert_eq!((frontier.start(now), frontier.upto(frontier.start(now))), (0, None));
        now += STRAGGLER_AGE;
        assert_eq!((frontier.start(now), frontier.upto(frontier.start(now))), (drawn, None));
    }

    #[test]
    fn slices_follow_the_time_they_take() {
        let mut frontier = Frontier::new(Instant::now());
        frontier.walked(SLICE_TIME / 2);
        assert_eq!(frontier.width, 2 * FIRST_WIDTH);
        frontier.walked(SLICE_TIME * SLOW * 2);
        assert_eq!(frontier.width, FIRST_WIDTH);
        frontier.walked(SLICE_TIME);
        assert_eq!(frontier.width, FIRST_WIDTH);
    }

    #[test]
    fn a_walk_that_was_too_long_for_its_statement_is_made_again_in_small_slices() {
        let now = Instant::now();
        let mut frontier = Frontier::new(now);
        let drawn = 1000 * FIRST_WIDTH;
        frontier.observe(&Snapshot::default(), Some(drawn), now, now);
        (0..20).for_each(|_| frontier.walked(Duration::ZERO));
        frontier.advance(drawn, false);
        assert_eq!(frontier.upto(0), None, "all of it at once");
        frontier.reset();
        assert_eq!(frontier.upto(frontier.start(now)), Some(FIRST_WIDTH));
    }

    #[test]
    fn the_start_follows_the_claims_while_a_long_transaction_runs() {
        let mut now = Instant::now();
        let mut frontier = Frontier::new(now);
        for id in 1..=1000i64 {
            now += Duration::from_millis(10);
            let snapshot = Snapshot { xmin: 5, xmax: 100 + id as u64, running: vec![5] };
            frontier.observe(&snapshot, None, now, now);
            frontier.advance(id, false);
        }
        assert!(frontier.start(now) > 980, "the start lags at {}", frontier.start(now));
        let ended = Snapshot { xmin: 1101, xmax: 1101, running: vec![] };
        assert!(frontier.overlooks(frontier.start(now), &ended, now));
        frontier.observe(&ended, None, now, now);
        assert_eq!(frontier.start(now), 0);
    }

    #[test]
    fn a_sweep_finds_what_was_restored_by_hand() {
        let mut now = Instant::now();
        let mut frontier = Frontier::new(now);
        let covered = 3 * FIRST_WIDTH;
        frontier.observe(&Snapshot::default(), Some(covered), now, now);
        frontier.advance(covered, false);
        let restored = 2 * FIRST_WIDTH + 5;
        assert_eq!(frontier.sweep(now), None);
        now += SWEEP_INTERVAL;
        for slice in 0..2 {
            let slice = Slice { after: slice * FIRST_WIDTH, upto: (slice + 1) * FIRST_WIDTH };
            assert_eq!(frontier.sweep(now), Some(slice));
            frontier.swept(slice, None, SLICE_TIME, now);
            assert_eq!(frontier.sweep(now), None, "it takes its share of the time");
            now += SLICE_TIME * SWEEP_SHARE;
        }
        let slice = frontier.sweep(now).expect("the last slice");
        assert_eq!(slice.upto, covered);
        frontier.swept(slice, Some(restored), SLICE_TIME, now);
        assert_eq!(frontier.covered, restored - 1);
        assert_eq!(frontier.sweep(now + SWEEP_INTERVAL - Duration::from_millis(1)), None);
        assert_eq!(frontier.sweep(now + SWEEP_INTERVAL).map(|slice| slice.after), Some(0));
    }
}
