//! `src/lane/frontier.rs` without its clock: the guard's 50 ms are "the observation before the last one", the straggler's
//! second may end at any moment, and there is no sweep, which would only hide what a claim overlooked.

use std::collections::BTreeMap;

use crate::rows::Rows;

/// A transaction that was running when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Running {
    /// Its event ids are above.
    pub(crate) lower: u8,
    pub(crate) straggler: bool,
}

/// From which id one relay's claims look; fields as in the code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Frontier {
    pub(crate) covered: u8,
    pub(crate) seen: u8,
    pub(crate) settled: u8,
    /// What had been seen when the last snapshot was taken.
    pub(crate) observed: Option<u8>,
    pub(crate) cautious: bool,
    /// By the transaction, which is named by the one row it writes.
    pub(crate) running: BTreeMap<u8, Running>,
}

impl Frontier {
    /// Takes in a snapshot: which transactions run.
    pub(crate) fn observe(&mut self, running: Rows) {
        if let Some(observed) = self.observed.replace(self.seen) {
            self.settled = observed;
        }
        let covered = &mut self.covered;
        self.running.retain(|transaction, known| {
            let ended = !running.contains(*transaction);
            if ended {
                *covered = known.lower.min(*covered);
            }
            !ended
        });
        for transaction in running.iter() {
            let young = Running { lower: self.settled, straggler: false };
            self.running.entry(transaction).or_insert(young);
        }
    }

    /// A claim's condition is `id > start`.
    pub(crate) fn start(&self) -> u8 {
        let counted = self.running.values().filter(|running| self.cautious || !running.straggler);
        counted.map(|running| running.lower).fold(self.covered.min(self.settled), u8::min)
    }

    /// True when a straggler had ended by the recount's snapshot.
    pub(crate) fn overlooks(&mut self, running: Rows) -> bool {
        let ended = |(transaction, known): (&u8, &Running)| known.straggler && !running.contains(*transaction);
        let overlooks = !self.cautious && self.running.iter().any(ended);
        self.cautious = overlooks;
        overlooks
    }

    /// A claim has been settled.
    pub(crate) fn advance(&mut self, last: u8, full: bool) {
        self.seen = self.seen.max(last);
        self.covered = if full { last } else { self.seen };
    }

    /// Something below may be pending again.
    pub(crate) fn reset(&mut self) {
        self.covered = 0;
    }

    /// A second has passed for all that run.
    pub(crate) fn age(&mut self) {
        for running in self.running.values_mut() {
            running.straggler = true;
        }
    }

    pub(crate) fn can_age(&self) -> bool {
        self.running.values().any(|running| !running.straggler)
    }
}
