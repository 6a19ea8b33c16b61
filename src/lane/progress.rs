//! Computes the progress of a lane: how far its claims have come. ADR 10 is the specification; the model in `tests/model` checks it.
//!
//! Invariant: an event of the lane is settled or covered by a hold if
//! - no sweep is under way, its id is at or below `scanned_through`, and `snapshot` sees its transaction; or
//! - a sweep is under way, its id is at or below `sweep.through`, and `sweep.snapshot` sees its transaction; or
//! - a sweep is under way, its id is above `sweep.through` and at or below `scanned_through`, and `snapshot` sees its transaction.
//!
//! A weaker progress (a lower `scanned_through`, an older `snapshot`, no sweep) is also true, because claims skip settled events.

use super::snapshot::Snapshot;

/// The progress of lanes, with the invariant at the head of this file. All lanes of a worker share one progress.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub(crate) scanned_through: i64,
    pub(crate) snapshot: Snapshot,
    pub(crate) sweep: Option<Sweep>,
}

/// The rest of a claim that found more late events than its limit. Claims take this rest in the order of ids, under the snapshot that found
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sweep {
    pub(crate) through: i64,
    pub(crate) snapshot: Snapshot,
}

/// The snapshot of a claim, and how far the claim came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The claim's own snapshot, in which the claim's transaction counts as running.
    pub(crate) snapshot: Snapshot,
    /// The last late event that was taken, if there are more late events. It is the id before the first late event if none was taken.
    pub(crate) late_cut_at: Option<i64>,
    /// The last new event that was taken, if there may be more. It equals the old `scanned_through` if no new event was taken.
    pub(crate) new_cut_at: Option<i64>,
    /// The highest id up to which new events were searched: `scanned_through` + the slice.
    pub(crate) upto: i64,
    /// The last id that was allocated when the claim looked, or the highest id of the table if that is higher.
    pub(crate) last_allocated: i64,
}

impl Progress {
    /// Returns the progress that is true for the lanes of both. The result keeps the sweep of either: otherwise lanes that change owners
    /// often would never finish a sweep.
    pub(crate) fn merge(self, other: Self) -> Self {
        if self == other {
            return self;
        }
        let scanned_through = self.scanned_through.min(other.scanned_through);
        let snapshot = self.snapshot.intersection(&other.snapshot);
        // Without a sweep, everything that was scanned is swept, by the same snapshot.
        let (one, two) = (self.swept_so_far(), other.swept_so_far());
        let sweep = Sweep { through: one.0.min(two.0), snapshot: one.1.intersection(two.1) };
        if sweep.through >= scanned_through {
            return Self { scanned_through, snapshot: sweep.snapshot, sweep: None };
        }
        Self { scanned_through, snapshot, sweep: Some(sweep) }
    }

    fn swept_so_far(&self) -> (i64, &Snapshot) {
        match &self.sweep {
            Some(sweep) => (sweep.through, &sweep.snapshot),
            None => (self.scanned_through, &self.snapshot),
        }
    }

    /// Returns the progress after a claim. Not for progress with a sweep under way: see [`Progress::swept`].
    pub(crate) fn after(&self, scan: &Scan) -> Self {
        if let Some(through) = scan.late_cut_at {
            return Self { sweep: Some(Sweep { through, snapshot: scan.snapshot.clone() }), ..self.clone() };
        }
        let scanned_through = match scan.new_cut_at {
            Some(cut) => cut,
            // If nothing was cut, any id is correct. Ids that are allocated and not committed are passed: their events come late. Beyond
            // the last allocated id there is nothing to pass, and after `truncate … restart identity` the ids begin again.
            None => scan.last_allocated.min(scan.upto),
        };
        Self { scanned_through, snapshot: scan.snapshot.clone(), sweep: None }
    }

    /// Returns the progress after a part of a sweep. `through` is the last event that was taken; `None` means all of them.
    pub(crate) fn swept(&self, through: Option<i64>) -> Self {
        let Some(sweep) = &self.sweep else { return self.clone() };
        match through {
            Some(through) => Self { sweep: Some(Sweep { through, snapshot: sweep.snapshot.clone() }), ..self.clone() },
            None => Self { snapshot: sweep.snapshot.clone(), sweep: None, ..self.clone() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect("a snapshot")
    }

    fn progress() -> Progress {
        Progress { scanned_through: 100, snapshot: snapshot("10:20:10"), sweep: None }
    }

    fn scan() -> Scan {
        Scan { snapshot: snapshot("30:30:"), late_cut_at: None, new_cut_at: None, upto: 200, last_allocated: 150 }
    }

    #[test]
    fn a_claim_that_was_not_cut_passes_what_is_drawn_and_not_committed() {
        let after = progress().after(&scan());
        assert_eq!(after, Progress { scanned_through: 150, snapshot: snapshot("30:30:"), sweep: None });
        let sliced = progress().after(&Scan { last_allocated: 1000, ..scan() });
        assert_eq!(sliced.scanned_through, 200);
    }

    #[test]
    fn ids_that_begin_again_are_followed() {
        assert_eq!(progress().after(&Scan { last_allocated: 3, ..scan() }).scanned_through, 3);
    }

    #[test]
    fn a_cut_among_late_events_begins_a_sweep_and_keeps_the_snapshot() {
        let cut = progress().after(&Scan { late_cut_at: Some(40), ..scan() });
        assert_eq!((cut.scanned_through, &cut.snapshot), (100, &snapshot("10:20:10")));
        let further = cut.swept(Some(60));
        assert_eq!(further.sweep, Some(Sweep { through: 60, snapshot: snapshot("30:30:") }));
        assert_eq!(further.swept(None), Progress { scanned_through: 100, snapshot: snapshot("30:30:"), sweep: None });
    }

    #[test]
    fn a_cut_among_new_events_moves_the_snapshot() {
        let cut = progress().after(&Scan { new_cut_at: Some(120), ..scan() });
        assert_eq!(cut, Progress { scanned_through: 120, snapshot: snapshot("30:30:"), sweep: None });
    }

    #[test]
    fn merged_lanes_have_the_weaker_progress() {
        let other = Progress { scanned_through: 80, snapshot: snapshot("25:30:25"), sweep: None };
        let merged = Progress { scanned_through: 80, snapshot: snapshot("10:20:10"), sweep: None };
        assert_eq!(progress().merge(other.clone()), merged);
        assert_eq!(other.clone().merge(progress()), merged);
        assert_eq!(other.clone().merge(other.clone()), other);
    }

    #[test]
    fn a_sweep_of_one_lane_goes_on_in_all() {
        let sweeping = Progress {
            scanned_through: 80,
            snapshot: snapshot("8:15:8"),
            sweep: Some(Sweep { through: 5, snapshot: snapshot("40:40:") }),
        };
        let merged = Progress {
            scanned_through: 80,
            snapshot: snapshot("8:15:8,10"),
            sweep: Some(Sweep { through: 5, snapshot: snapshot("10:20:10") }),
        };
        assert_eq!(progress().merge(sweeping.clone()), merged);
        assert_eq!(sweeping.merge(progress()), merged);
        let swept = Progress {
            scanned_through: 200,
            snapshot: snapshot("8:15:8"),
            sweep: Some(Sweep { through: 150, snapshot: snapshot("40:40:") }),
        };
        assert_eq!(progress().merge(swept), progress(), "all of the common part is swept");
    }
}
