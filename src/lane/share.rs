//! Computes which lanes each worker gets. Two workers may disagree for a moment; then the locks on the lanes decide.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A contiguous range of lanes, both ends included. It is contiguous because `lane between a and b` keeps the order of the claim's index,
/// and a list of lanes does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct LaneRange {
    /// The first lane.
    pub(crate) first: i16,
    /// The last lane.
    pub(crate) last: i16,
}

impl LaneRange {
    /// Returns the number of lanes.
    pub(crate) fn len(self) -> usize {
        (self.last - self.first + 1) as usize
    }

    /// Returns the share of worker `index` of `workers`. Shares differ by at most one lane. With more workers than lanes, some shares are
    /// `None`.
    pub(crate) fn share(index: usize, workers: usize, lanes: u16) -> Option<Self> {
        let lanes = usize::from(lanes);
        let first = index * lanes / workers;
        let end = (index + 1) * lanes / workers;
        (first < end).then(|| Self { first: first as i16, last: end as i16 - 1 })
    }

    /// Returns the range from the first lane of the first range to the last lane of the last range. The ranges must be ascending.
    pub(crate) fn spanning<'r>(ranges: impl IntoIterator<Item = &'r Self>) -> Option<Self> {
        let mut ranges = ranges.into_iter();
        let first = ranges.next()?;
        Some(Self { first: first.first, last: ranges.last().unwrap_or(first).last })
    }

    /// Returns the longest run without a gap in `lanes` (ascending). A worker claims from this run when some of its lanes are taken.
    pub(crate) fn longest_run(lanes: &[i16]) -> Option<Self> {
        let mut best: Option<Self> = None;
        for run in lanes.chunk_by(|lane, next| *next == lane + 1) {
            let range = Self { first: run[0], last: run[run.len() - 1] };
            if best.is_none_or(|best| range.len() > best.len()) {
                best = Some(range);
            }
        }
        best
    }
}

/// Returns how many of a relay's `workers` get lanes when there are `relays` relays: 1/N of them, rounded up. The workers with lanes of all
/// relays together are about as many as one relay alone has. Each claim walks past the rows of others' lanes, so more workers are more work
/// for the database.
pub(crate) fn at_work(workers: usize, relays: usize) -> usize {
    workers.div_ceil(relays.max(1))
}

impl fmt::Display for LaneRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// A text that names no range of lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no range of lanes")]
pub(crate) struct BadRange;

impl FromStr for LaneRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(BadRange),
        }
    }
}

/// The assignment of this relay's workers among all workers: worker `i` is number `first + i` of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerAssignment {
    pub(crate) first: usize,
    pub(crate) of: usize,
    /// The number of workers of this relay that have lanes.
    pub(crate) workers: usize,
    /// The first worker has the lanes of all.
    pub(crate) single_worker: bool,
}

impl WorkerAssignment {
    /// The lanes of each worker.
    pub(crate) fn shares(self, lanes: u16) -> Vec<Option<LaneRange>> {
        let mut shares: Vec<_> =
            (0..self.workers).map(|index| LaneRange::share(self.first + index, self.of, lanes)).collect();
        if self.single_worker {
            let all = LaneRange::spanning(shares.iter().flatten());
            shares.fill(None);
            if let Some(first) = shares.first_mut() {
                *first = all;
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_cover_every_lane_once_and_differ_by_one_at_most(workers in 1usize..100, lanes in 1u16..300) {
            let shares: Vec<_> = (0..workers).filter_map(|index| LaneRange::share(index, workers, lanes)).collect();
            let covered: Vec<i16> = shares.iter().flat_map(|share| share.first..=share.last).collect();
            prop_assert_eq!(covered, (0..lanes as i16).collect::<Vec<_>>());
            let sizes = || shares.iter().map(|share| share.len());
            prop_assert!(sizes().max().unwrap_or(0) - sizes().min().unwrap_or(0) <= 1);
        }
    }

    #[test]
    fn a_range_is_read_as_it_is_written() {
        for (text, range) in [("7", LaneRange { first: 7, last: 7 }), ("0-15", LaneRange { first: 0, last: 15 })] {
            assert_eq!((text.parse(), range.to_string().as_str()), (Ok(range), text));
        }
        for text in ["", "-", "3-1", "-1", "0-99999", "a-b"] {
            assert_eq!(text.parse::<LaneRange>(), Err(BadRange), "{text}");
        }
    }

    #[test]
    fn the_longest_run_is_found() {
        assert_eq!(LaneRange::longest_run(&[]), None);
        assert_eq!(LaneRange::longest_run(&[0, 2, 3, 4, 7, 8]), Some(LaneRange { first: 2, last: 4 }));
    }
}
