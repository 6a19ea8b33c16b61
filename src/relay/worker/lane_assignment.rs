//! Remembers what a worker knows of its lanes. Memory that does not equal what is stored loses events (ADR 10). So everything here is
//! dropped when the lanes change and after any error. The exception is [`CycleError::Unacknowledged`] in at-least-once mode, which leaves
//! the lanes' rows as they were.
//!
//! [`CycleError::Unacknowledged`]: crate::relay::worker::context::CycleError::Unacknowledged

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::lane::LaneRange;
use crate::lane::hold::HoldSet;
use crate::lane::progress::Progress;
use crate::lane::snapshot::Snapshot;
use crate::relay::worker::in_doubt::{Destination, InDoubt};
use crate::relay::worker::pauses::PauseFilter;
use crate::store::session::{Begun, LaneState, ServerProcess};
use crate::store::settle::Ctid;

/// The first and the longest slice: the number of ids above `scanned_through` that a claim searches.
const FIRST_SLICE: i64 = 1 << 14;
const LONGEST_SLICE: i64 = 1 << 22;

/// The time of a good slice. A slice that took less makes the next one twice as long; a slice that took more than [`SLOW`] times as long
/// makes it half as long.
const SLICE_TIME: Duration = Duration::from_millis(15);
const SLOW: u32 = 4;

/// The length from which a snapshot counts as long. A long snapshot is stored only once a second: an older one is true as well.
const LONG_SNAPSHOT: usize = 64;
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);

/// How far the stored progress of lanes without events may be behind: the time since all lanes were written, and the number of ids that the
/// next owner of the lanes has to walk again.
const LAG: Duration = Duration::from_secs(1);
const LAG_IDS: i64 = 10_000;

/// The state of one worker on one range of lanes.
#[derive(Debug)]
pub(crate) struct LaneAssignment {
    /// The lanes that the worker wants.
    pub(crate) range: LaneRange,
    /// The lanes that were locked and read; `None` if nothing is known.
    pub(crate) owned: Option<OwnedLanes>,
    /// What was known of the lanes when the records in doubt were sent; `None` while `owned` says it.
    pub(crate) last_known: Option<LastKnown>,
    pub(crate) holds: HoldSet,
    pub(crate) pauses: PauseFilter,
    /// The generation at which holds and pauses were read; `None` if they have to be read.
    pub(crate) generation: Option<i64>,
    /// The time of the last look for scheduled rows.
    pub(crate) due_checked: Option<Instant>,
    /// The time of the last check of the holds' causes.
    pub(crate) causes_checked: Option<Instant>,
    /// The time at which lanes that were not free are asked for again.
    pub(crate) widen_at: Instant,
    /// True when the next cycle walks the events that holds have released. The cycle after it claims.
    pub(crate) walks_next: bool,
    /// The number of ids that a walk searches.
    pub(crate) walk_slice: i64,
    /// The first event that another session has locked, and since when.
    pub(crate) locked: Option<(i64, Instant)>,
    /// The records that were sent and set aside, because the rest of their batch was acknowledged and they were not.
    pub(crate) in_doubt: Vec<InDoubt>,
    /// The partitions that were reported because they take no records.
    pub(crate) unwritable: HashSet<Destination>,
}

/// The lanes whose rows this worker has locked, and their stored state.
#[derive(Debug)]
pub(crate) struct OwnedLanes {
    pub(crate) lanes: LaneRange,
    /// The ctids of the lanes' rows, by lane.
    pub(crate) ctids: BTreeMap<i16, Ctid>,
    /// The nonces, by lane.
    pub(crate) nonces: BTreeMap<i16, i64>,
    /// The nonce that the next settled batch writes.
    pub(crate) next_nonce: i64,
    /// The progress. It equals what is stored (for lanes of unequal progress: their common part), except that its snapshot may be newer, and
    /// that some lanes may lag.
    pub(crate) progress: Progress,
    /// True while the stored progress of the lanes is not equal: some had no event in the last batches, of this owner or the one before.
    pub(crate) lags: bool,
    /// The time at which the rows of all lanes were last written, and the id that they had come to.
    written: (Instant, i64),
    pub(crate) server: ServerProcess,
    /// The id, by lane, up to which events were already counted in holds before lanes of unequal progress were merged.
    pub(crate) counted_through: BTreeMap<i16, i64>,
    /// The nonce, by lane, of the last batch that was committed exactly once.
    pub(crate) sealed: BTreeMap<i16, i64>,
    /// The last snapshot that was stored, and when.
    pub(crate) stored: (Snapshot, Instant),
    /// The ids of a sweep that are still to be taken. With `late_is_all` no others are left.
    pub(crate) late: VecDeque<i64>,
    pub(crate) late_is_all: bool,
    /// The highest id of the table, and the time at which it was last read.
    pub(crate) highest: (i64, Option<Instant>),
    slice: i64,
}

/// The nonces of lanes whose state is read again, and the server that they were read from.
#[derive(Debug)]
pub(crate) struct LastKnown {
    started: String,
    nonces: BTreeMap<i16, i64>,
}

impl LastKnown {
    /// Returns true if nobody has settled anything in these lanes since, and all of them are locked again.
    fn is_still_true(&self, owned: &OwnedLanes) -> bool {
        let is_same = |(lane, nonce): (&i16, &i64)| owned.nonces.get(lane) == Some(nonce);
        owned.server.started == self.started && self.nonces.iter().all(is_same)
    }
}

impl OwnedLanes {
    /// Builds the state from the lanes' rows. Lanes of unequal progress go on from the one that is behind.
    pub(crate) fn new(lanes: LaneRange, states: &[LaneState], server: ServerProcess) -> Self {
        let progress = states.iter().map(|state| state.progress.clone()).reduce(Progress::merge).unwrap_or_default();
        let by_lane = |of: fn(&LaneState) -> i64| states.iter().map(|state| (state.row.lane, of(state))).collect();
        let ahead = states.iter().filter(|state| state.progress.scanned_through > progress.scanned_through);
        Self {
            lanes,
            ctids: states.iter().map(|state| (state.row.lane, state.row.ctid)).collect(),
            lags: states.iter().any(|state| state.progress != progress),
            written: (Instant::now(), progress.scanned_through),
            nonces: by_lane(|state| state.row.nonce),
            next_nonce: rand::random(),
            server,
            counted_through: ahead.map(|state| (state.row.lane, state.progress.scanned_through)).collect(),
            sealed: by_lane(|state| state.sealed),
            stored: (progress.snapshot.clone(), Instant::now()),
            progress,
            late: VecDeque::new(),
            late_is_all: false,
            highest: (0, None),
            slice: FIRST_SLICE,
        }
    }

    /// Returns true when the remembered state equals the stored one: every lane is locked and has the nonce that this worker knows.
    ///
    /// Behind a pooler another backend may answer, perhaps after the server has recovered from a crash and lost what was committed
    /// asynchronously. Then only the stored snapshot counts. A lost batch is missing in the nonce of the lanes that had its events, so a lane
    /// that lags is trusted only together with all the others.
    pub(crate) fn matches(&mut self, begun: &Begun) -> bool {
        if begun.server.pid != self.server.pid {
            self.progress.snapshot = self.stored.0.clone();
            self.server.pid = begun.server.pid;
        }
        begun.lanes.len() == self.lanes.len()
            && begun.server.started == self.server.started
            && begun.lanes.iter().all(|row| self.nonces.get(&row.lane) == Some(&row.nonce))
    }

    /// Returns the highest id that the next claim searches: `id <= upto`.
    pub(crate) fn upto(&self) -> i64 {
        self.progress.scanned_through.saturating_add(self.slice)
    }

    pub(crate) fn all_ctids(&self) -> Vec<Ctid> {
        self.ctids.values().copied().collect()
    }

    /// Splits the lanes into those whose rows a batch has to write and those that may lag. `touched` lanes had events; with `None`, all are
    /// written.
    pub(crate) fn to_write(
        &self,
        touched: Option<&BTreeSet<i16>>,
        after: &Progress,
        now: Instant,
    ) -> (BTreeMap<i16, Ctid>, BTreeMap<i16, Ctid>) {
        let (at, through) = self.written;
        let moved = after.scanned_through - through;
        let has_sweep = self.progress.sweep.is_some() || after.sweep.is_some();
        let may_lag = !has_sweep && !self.begins_again(after) && (0..LAG_IDS).contains(&moved) && now - at < LAG;
        let is_written = |lane: &i16| touched.is_none_or(|touched| !may_lag || touched.contains(lane));
        let (written, unwritten): (BTreeMap<_, _>, _) = self.ctids.iter().partition(|(lane, _)| is_written(lane));
        // A batch has to change a nonce.
        if written.is_empty() { (unwritten, written) } else { (written, unwritten) }
    }

    /// Records that a batch came to `after`, and wrote the rows of these lanes with this nonce.
    pub(crate) fn has_written(&mut self, lanes: BTreeMap<i16, Ctid>, nonce: i64, now: Instant, after: Progress) {
        self.lags = lanes.len() < self.ctids.len();
        if !self.lags {
            self.written = (now, after.scanned_through);
        }
        self.nonces.extend(lanes.keys().map(|lane| (*lane, nonce)));
        self.ctids.extend(lanes);
        self.next_nonce = rand::random();
        let begins_again = self.begins_again(&after);
        self.counted_through.retain(|_, through| !begins_again && *through > after.scanned_through);
        self.progress = after;
    }

    /// Returns true if ids have begun again.
    fn begins_again(&self, after: &Progress) -> bool {
        after.scanned_through < self.progress.scanned_through
    }

    /// Returns true when lanes that lag have to be written even if there is no event.
    pub(crate) fn lags_long(&self, now: Instant) -> bool {
        self.lags && now - self.written.0 >= LAG
    }

    /// Adapts the length of slices, after a slice was walked to its end in the time `took`.
    pub(crate) fn walked(&mut self, took: Duration) {
        self.slice = next_slice(self.slice, took);
    }

    /// Returns the progress to store. It has the stored snapshot if that is recent, the new one is long, and no sweep is under way.
    pub(crate) fn to_store(&self, progress: &Progress, now: Instant) -> Progress {
        let (stored, at) = &self.stored;
        let is_long = progress.snapshot.running.len() > LONG_SNAPSHOT;
        if is_long && progress.sweep.is_none() && now - *at < SNAPSHOT_INTERVAL {
            return Progress { snapshot: stored.clone(), ..progress.clone() };
        }
        progress.clone()
    }
}

/// Returns the length of the next slice, after one of length `slice` took the time `took`.
pub(crate) fn next_slice(slice: i64, took: Duration) -> i64 {
    if took < SLICE_TIME {
        (slice * 2).min(LONGEST_SLICE)
    } else if took > SLICE_TIME * SLOW {
        (slice / 2).max(1)
    } else {
        slice
    }
}

impl LaneAssignment {
    pub(crate) fn new(range: LaneRange, now: Instant) -> Self {
        Self {
            range,
            owned: None,
            last_known: None,
            holds: HoldSet::default(),
            pauses: PauseFilter::default(),
            generation: None,
            due_checked: None,
            causes_checked: None,
            widen_at: now,
            walks_next: false,
            walk_slice: FIRST_SLICE,
            locked: None,
            in_doubt: Vec::new(),
            unwritable: HashSet::new(),
        }
    }

    /// Returns true when lanes that were not free have to be asked for again.
    pub(crate) fn widens(&self, now: Instant) -> bool {
        self.owned.as_ref().is_some_and(|owned| owned.lanes != self.range) && now >= self.widen_at
    }

    /// Returns true if nothing waits in these lanes for a time or a cause: no hold, no record in doubt, no pause, no lanes of others.
    pub(crate) fn is_quiet(&self) -> bool {
        let is_done = |owned: &OwnedLanes| owned.lanes == self.range && owned.progress.sweep.is_none() && !owned.lags;
        self.owned.as_ref().is_some_and(is_done)
            && self.in_doubt.is_empty()
            && self.holds.iter().next().is_none()
            && self.pauses.is_empty()
    }

    /// Makes the worker read its lanes again. Records in doubt stay known until [`Self::has_read`] finds that they are not.
    pub(crate) fn read_again(&mut self) {
        if let Some(owned) = self.owned.take() {
            self.last_known = Some(LastKnown { started: owned.server.started, nonces: owned.nonces });
        }
        self.reload_holds();
    }

    /// Takes over lanes that were read. If anybody else has settled something there, nothing is known of the records in doubt.
    pub(crate) fn has_read(&mut self, owned: OwnedLanes) {
        let last_known = self.last_known.take();
        if !last_known.is_some_and(|last_known| last_known.is_still_true(&owned)) {
            self.in_doubt.retain(InDoubt::is_rolled_back);
        }
        self.owned = Some(owned);
    }

    /// Returns true if records in doubt may be acknowledged within the time that a slow cluster takes.
    pub(crate) fn waits_for_acks(&self, patience: Duration) -> bool {
        let is_awaited = |records: &InDoubt| !records.is_rolled_back() && !records.is_settled();
        self.in_doubt.iter().any(|records| is_awaited(records) && records.sent_at.elapsed() < patience)
    }

    /// Forgets everything, because it may differ from what is stored.
    pub(crate) fn invalidate(&mut self) {
        self.owned = None;
        self.last_known = None;
        // A transaction that waits for a partition says nothing about the lanes.
        self.in_doubt.retain(InDoubt::is_rolled_back);
        self.reload_holds();
    }

    /// Makes the worker read holds and pauses again before the next claim.
    pub(crate) fn reload_holds(&mut self) {
        self.generation = None;
        self.holds = HoldSet::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::progress::Sweep;
    use crate::store::session::LaneRow;
    use crate::store::settle::Ctid;

    #[test]
    fn slices_follow_the_time_they_take() {
        assert_eq!(next_slice(FIRST_SLICE, SLICE_TIME / 2), 2 * FIRST_SLICE);
        assert_eq!(next_slice(FIRST_SLICE, SLICE_TIME), FIRST_SLICE);
        assert_eq!(next_slice(FIRST_SLICE, SLICE_TIME * SLOW * 2), FIRST_SLICE / 2);
        assert_eq!(next_slice(1, SLICE_TIME * SLOW * 2), 1);
        assert_eq!(next_slice(LONGEST_SLICE, Duration::ZERO), LONGEST_SLICE);
    }

    #[test]
    fn a_long_snapshot_is_stored_now_and_then() {
        let lanes = LaneRange { first: 0, last: 3 };
        let owned = OwnedLanes::new(lanes, &[], server("now", 1));
        let long = Snapshot { xmin: 10, xmax: 200, running: (10..100).collect() };
        let progress = Progress { scanned_through: 5, snapshot: long, sweep: None };
        let (now, second) = (owned.stored.1, SNAPSHOT_INTERVAL);
        let stored = owned.to_store(&progress, now);
        assert_eq!((stored.scanned_through, stored.snapshot), (5, Snapshot::default()));
        assert_eq!(owned.to_store(&progress, now + second), progress);
        let short = Progress { snapshot: Snapshot::default(), ..progress };
        assert_eq!(owned.to_store(&short, now), short);
    }

    fn state(lane: i16, scanned_through: i64) -> LaneState {
        LaneState {
            row: LaneRow { lane, nonce: 10 + i64::from(lane), ctid: Ctid([0; 6]) },
            progress: Progress { scanned_through, ..Progress::default() },
            sealed: 0,
            is_of_here: true,
            was_of_elsewhere: false,
        }
    }

    fn server(started: &str, pid: i32) -> ServerProcess {
        ServerProcess { started: started.to_owned(), pid }
    }

    #[test]
    fn another_backend_knows_only_the_snapshot_that_is_stored() {
        let mut owned = OwnedLanes::new(LaneRange { first: 0, last: 0 }, &[], server("now", 1));
        owned.lanes = LaneRange { first: 0, last: -1 };
        owned.progress.snapshot = Snapshot { xmin: 9, xmax: 9, running: Vec::new() };
        let begun = |pid| Begun { lanes: Vec::new(), generation: 0, owners: Vec::new(), server: server("now", pid) };
        assert!(owned.matches(&begun(1)) && owned.progress.snapshot.xmax == 9);
        assert!(owned.matches(&begun(2)) && owned.progress.snapshot == Snapshot::default());
    }

    #[test]
    fn lanes_without_events_lag_for_a_while() {
        let lanes = LaneRange { first: 0, last: 2 };
        let mut owned = OwnedLanes::new(lanes, &[state(0, 0), state(1, 0), state(2, 0)], server("now", 1));
        let (now, touched) = (owned.written.0, BTreeSet::from([1]));
        let after = |scanned_through| Progress { scanned_through, ..Progress::default() };
        let written = |owned: &OwnedLanes, touched: Option<&BTreeSet<i16>>, after, now| {
            let (written, unwritten) = owned.to_write(touched, &after, now);
            assert_eq!(written.len() + unwritten.len(), 3);
            written.into_keys().collect::<Vec<_>>()
        };
        let some = Some(&touched);
        assert_eq!(written(&owned, some, after(5), now), [1]);
        assert_eq!(written(&owned, None, after(5), now), [0, 1, 2]);
        assert_eq!(written(&owned, some, after(5), now + LAG), [0, 1, 2]);
        assert_eq!(written(&owned, some, after(LAG_IDS), now), [0, 1, 2]);
        assert_eq!(written(&owned, some, after(-1), now), [0, 1, 2], "ids have begun again");
        assert_eq!(written(&owned, Some(&BTreeSet::new()), after(5), now), [0, 1, 2]);
        let sweep = Some(Sweep { through: 3, snapshot: Snapshot::default() });
        assert_eq!(written(&owned, some, Progress { sweep, ..after(5) }, now), [0, 1, 2]);
        owned.has_written(BTreeMap::from([(1, Ctid([9; 6]))]), 8, now, after(5));
        assert_eq!((owned.nonces[&0], owned.nonces[&1], owned.all_ctids()[1]), (10, 8, Ctid([9; 6])));
        assert!(!owned.lags_long(now) && owned.lags_long(now + LAG));
        owned.has_written((0..3).map(|lane| (lane, Ctid([8; 6]))).collect(), 9, now, after(5));
        assert!(!owned.lags_long(now + LAG));
    }

    #[test]
    fn lanes_of_unequal_progress_go_on_from_the_one_that_is_behind() {
        let lanes = LaneRange { first: 3, last: 5 };
        let mut owned = OwnedLanes::new(lanes, &[state(3, 40), state(4, 10), state(5, 30)], server("now", 1));
        assert_eq!(owned.progress.scanned_through, 10);
        assert_eq!(owned.counted_through, BTreeMap::from([(3, 40), (5, 30)]));
        let begun = |nonces: &[(i16, i64)], started: &str| Begun {
            lanes: nonces
                .iter()
                .map(|(lane, nonce)| LaneRow { lane: *lane, nonce: *nonce, ctid: Ctid([1; 6]) })
                .collect(),
            generation: 0,
            owners: Vec::new(),
            server: server(started, 1),
        };
        let known = [(3, 13), (4, 14), (5, 15)];
        assert!(owned.matches(&begun(&known, "now")));
        assert!(!owned.matches(&begun(&known, "later")), "another server");
        assert!(!owned.matches(&begun(&known[..2], "now")), "a lane is not free");
        assert!(!owned.matches(&begun(&[(3, 13), (4, 99), (5, 15)], "now")), "another worker has settled a batch");
    }
}
