//! Claims the rows of a cycle: selects the rows and where the search begins, and decides how far the progress may move with them.

use std::collections::HashSet;
use std::time::Instant;

use sqlx::error::DatabaseError;

use crate::lane::LaneRange;
use crate::lane::progress::{Progress, Scan};
use crate::lane::snapshot::Snapshot;
use crate::relay::worker::context::{CycleError, WorkerContext};
use crate::relay::worker::lane_assignment::{LaneAssignment, OwnedLanes, next_slice};
use crate::store::claim::{Claimed, ClaimedRow, Limits, RowFault, Skipped};
use crate::store::session::within;

/// The interval between looks for scheduled rows while a backlog keeps the probe from looking.
const DUE_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

/// The most ids of a sweep that are kept in memory. They are listed once, so that the claims of the sweep need not search for them.
const SWEEP_IDS: usize = 65_536;

/// The most attempts of a claim whose text does not fit into memory. Each attempt asks for fewer rows.
const OVERFLOWS: usize = 6;

/// The bytes that are kept in memory before rows are dropped, as a multiple of the bytes of a batch.
const KEPT_BATCHES: usize = 2;

/// The claimed rows of a cycle.
pub(crate) struct Batch {
    /// The claimed rows. The first `due` rows are scheduled ones; the others are in the order of their ids.
    pub(crate) rows: Vec<ClaimedRow>,
    pub(super) due: usize,
    /// The rows that belong in the batch but are locked by another session, in the order of their ids.
    pub(super) skipped: Vec<Skipped>,
    pub(super) extent: Extent,
    /// True when the claim took as much as it may.
    pub(super) is_full: bool,
}

/// The source of a batch's rows, and the range that was searched.
pub(crate) enum Extent {
    /// Late and new events.
    Claim(ClaimExtent),
    /// The next events of a sweep: `ids`. With `is_all` no others are left.
    Sweep { ids: Vec<i64>, is_all: bool, cut_at: Option<i64> },
    /// Events that holds have released, up to the id `upto`.
    Walk { upto: i64, cut_at: Option<i64> },
    /// Scheduled events alone.
    Due,
}

/// The result of a claim of late and new events.
pub(crate) struct ClaimExtent {
    pub(super) snapshot: Snapshot,
    /// The first late ids. They are one more than `rows` if there are more than `rows`.
    pub(super) late: Vec<i64>,
    /// The most events that the claim may take.
    pub(super) rows: usize,
    /// The ids of the events that the claim chose, ascending.
    pub(super) chosen: Vec<i64>,
    /// True when the limit of bytes cut the claim.
    pub(super) is_cut: bool,
    pub(super) upto: i64,
    pub(super) last_allocated: i64,
}

impl ClaimExtent {
    /// Returns how the progress moves. `cut` is the last id that was taken: nothing behind it was taken. `Some(None)` means that nothing at
    /// all was taken.
    pub(super) fn scan(&self, scanned_through: i64, cut: Option<Option<i64>>) -> Scan {
        let (late_cut_at, new_cut_at) = match cut.or_else(|| self.is_cut.then(|| self.chosen.last().copied())) {
            Some(last) => self.cut_behind(scanned_through, last),
            None if self.late.len() > self.rows => (self.late.get(self.rows.saturating_sub(1)).copied(), None),
            None => (None, self.new_limit(scanned_through)),
        };
        Scan {
            snapshot: self.snapshot.clone(),
            late_cut_at,
            new_cut_at,
            upto: self.upto,
            last_allocated: self.last_allocated,
        }
    }

    fn cut_behind(&self, scanned_through: i64, last: Option<i64>) -> (Option<i64>, Option<i64>) {
        let taken = last.unwrap_or(i64::MIN);
        if self.late.iter().any(|id| *id > taken) {
            let first = self.late.first().copied().unwrap_or_default();
            return (Some(last.unwrap_or(first.saturating_sub(1))), None);
        }
        (None, Some(taken.max(scanned_through)))
    }

    /// Returns the last new event if the claim took as many events as it may.
    fn new_limit(&self, scanned_through: i64) -> Option<i64> {
        let new = self.chosen.iter().filter(|id| **id > scanned_through).count();
        let is_limited = new >= self.rows.saturating_sub(self.late.len());
        is_limited.then(|| self.chosen.last().copied().unwrap_or(scanned_through).max(scanned_through))
    }
}

/// Returns the progress after a batch, with the cut that the batch was given. A walk and scheduled events do not change the progress.
pub(super) fn progress_after(before: &Progress, extent: &Extent, cut: Option<Option<i64>>) -> Progress {
    match extent {
        Extent::Claim(claim) => before.after(&claim.scan(before.scanned_through, cut)),
        Extent::Sweep { ids, is_all, cut_at } => {
            let before_first = || ids.first().map_or(0, |first| first - 1);
            match cut.or(cut_at.map(Some)) {
                Some(last) => before.swept(Some(last.unwrap_or_else(before_first))),
                None if *is_all => before.swept(None),
                None => before.swept(ids.last().copied().or(before.sweep.as_ref().map(|sweep| sweep.through))),
            }
        }
        Extent::Walk { .. } | Extent::Due => before.clone(),
    }
}

/// The rows that a statement claims.
enum Rows<'a> {
    Due,
    New { progress: &'a Progress, upto: i64 },
    Ids { ids: &'a [i64], snapshot: &'a Snapshot },
    Walk { from: i64, upto: i64, snapshot: &'a Snapshot },
}

impl WorkerContext<'_> {
    /// Locks the rows of a batch. After an error that one row may cause, the next claims ask for less.
    pub(super) async fn claim(&mut self, assignment: &mut LaneAssignment) -> Result<Batch, CycleError> {
        let claimed = self.claim_rows(assignment).await;
        if let Err(error) = &claimed
            && may_be_a_row(error)
        {
            // A timeout and an error of one row look alike here. So ask for fewer rows, and read them one by one for a while.
            self.budget.shrink();
        }
        claimed
    }

    async fn claim_rows(&mut self, assignment: &mut LaneAssignment) -> Result<Batch, CycleError> {
        let rows = self.budget.next_rows();
        let due = self.claim_due(assignment, rows).await?;
        let room = rows - due.rows.len().min(rows);
        let Some(owned) = assignment.owned.as_mut() else { return Err(sqlx::Error::PoolClosed.into()) };
        let due_rows = due.rows.len();
        let mut batch = if room == 0 {
            Batch { rows: Vec::new(), due: 0, skipped: Vec::new(), extent: Extent::Due, is_full: true }
        } else if owned.progress.sweep.is_some() {
            self.claim_sweep(owned, room).await?
        } else if let Some(from) = assignment.holds.releasing_from().filter(|_| assignment.walks_next) {
            let slice = &mut assignment.walk_slice;
            self.claim_walk(owned, from, slice, room).await?
        } else {
            self.claim_new(owned, room).await?
        };
        batch.due = due_rows;
        batch.rows.splice(0..0, due.rows);
        Ok(batch)
    }

    /// Leaves out the rows that do not fit into the progress of an exactly-once batch. Returns the resulting cut.
    pub(super) fn cut(&mut self, batch: &mut Batch) -> Result<Option<Option<i64>>, CycleError> {
        let fitting = self.fitting_rows(batch)?;
        if fitting == batch.rows.len() {
            return Ok(None);
        }
        batch.rows.truncate(fitting);
        batch.is_full = true;
        batch.due = batch.due.min(fitting);
        let last = batch.rows.get(batch.due..).and_then(<[_]>::last).map(ClaimedRow::id).transpose()?.map(|id| id.0);
        // The next claim takes the events behind the last row.
        batch.skipped.retain(|row| last.is_some_and(|last| row.id <= last));
        Ok(Some(last))
    }

    fn limits(&self, rows: usize) -> Limits {
        let options = &self.shared.options;
        Limits {
            rows,
            stored_bytes: self.budget.stored_bytes(options.relay.batch_bytes),
            row_bytes: options.kafka.message_max_bytes() as i64,
            kept_bytes: options.relay.batch_bytes.saturating_mul(KEPT_BATCHES),
            heads_only: self.budget.careful > 0,
            persistent: options.database.prepared_statements,
        }
    }

    async fn claim_due(&mut self, assignment: &mut LaneAssignment, rows: usize) -> Result<Claimed, CycleError> {
        let Some(owned) = &assignment.owned else { return Ok(Claimed::default()) };
        if assignment.due_checked.is_some_and(|checked| checked.elapsed() < DUE_INTERVAL) {
            return Ok(Claimed::default());
        }
        assignment.due_checked = Some(Instant::now());
        let lanes = owned.lanes;
        // Scheduled events get half of a batch, so that others do not wait for a million events that become due at once.
        let (claimed, _) = self.fitting(rows.div_ceil(2), &Rows::Due, lanes).await?;
        if !claimed.rows.is_empty() {
            assignment.due_checked = None;
        }
        Ok(claimed)
    }

    /// Claims late and new events.
    async fn claim_new(&mut self, owned: &mut OwnedLanes, rows: usize) -> Result<Batch, CycleError> {
        let (upto, lanes, began) = (owned.upto(), owned.lanes, Instant::now());
        let progress = owned.progress.clone();
        let (claimed, asked) = self.fitting(rows, &Rows::New { progress: &progress, upto }, lanes).await?;
        let summary = &claimed.summary;
        let is_cut = (summary.chosen.len() as i64) < summary.candidates;
        let extent = ClaimExtent {
            snapshot: summary.own_xid.map_or_else(
                || summary.snapshot.clone(),
                // The transaction does not see itself as running. The rows that it makes pending have to come late.
                |own| summary.snapshot.clone().without(own),
            ),
            late: summary.late.clone(),
            rows: asked,
            chosen: summary.chosen.clone(),
            is_cut,
            upto,
            last_allocated: summary.last_allocated.max(owned.highest.0),
        };
        let scan = extent.scan(progress.scanned_through, None);
        let is_full = scan.late_cut_at.is_some() || scan.new_cut_at.is_some();
        if !is_full {
            owned.walked(began.elapsed());
        }
        let skipped = self.skipped(&claimed, lanes).await?;
        Ok(Batch { rows: claimed.rows, due: 0, skipped, extent: Extent::Claim(extent), is_full })
    }

    /// Claims the next events of a sweep.
    async fn claim_sweep(&mut self, owned: &mut OwnedLanes, rows: usize) -> Result<Batch, CycleError> {
        let persistent = self.shared.options.database.prepared_statements;
        if owned.late.is_empty() && !owned.late_is_all {
            let sql = &self.shared.claim;
            let ids = within(sql.late_ids(self.conn, &owned.progress, owned.lanes, SWEEP_IDS, persistent)).await?;
            owned.late_is_all = ids.len() < SWEEP_IDS;
            owned.late = ids.into();
        }
        let lanes = owned.lanes;
        let mut ids: Vec<i64> = owned.late.iter().take(rows).copied().collect();
        let Some(sweep) = &owned.progress.sweep else { return Err(sqlx::Error::RowNotFound.into()) };
        let which = Rows::Ids { ids: &ids, snapshot: &sweep.snapshot };
        let (claimed, asked) = self.fitting(rows, &which, lanes).await?;
        ids.truncate(asked);
        let is_all = owned.late_is_all && ids.len() == owned.late.len();
        let summary = &claimed.summary;
        let is_cut = (summary.chosen.len() as i64) < summary.candidates;
        let cut_at = is_cut.then(|| summary.chosen.last().copied()).flatten();
        let skipped = self.skipped(&claimed, lanes).await?;
        let extent = Extent::Sweep { ids, is_all, cut_at };
        Ok(Batch { rows: claimed.rows, due: 0, skipped, extent, is_full: true })
    }

    /// Claims the events that holds have released, from the id `from` on.
    async fn claim_walk(
        &mut self,
        owned: &OwnedLanes,
        from: i64,
        slice: &mut i64,
        rows: usize,
    ) -> Result<Batch, CycleError> {
        let progress = &owned.progress;
        let (lanes, began) = (owned.lanes, Instant::now());
        let upto = from.saturating_add(*slice).min(progress.scanned_through);
        let walk = Rows::Walk { from, upto, snapshot: &progress.snapshot };
        let (claimed, asked) = self.fitting(rows, &walk, lanes).await?;
        let summary = &claimed.summary;
        let is_cut = (summary.chosen.len() as i64) < summary.candidates || summary.chosen.len() == asked;
        let cut_at = is_cut.then(|| summary.chosen.last().copied()).flatten();
        if !is_cut {
            *slice = next_slice(*slice, began.elapsed());
        }
        let skipped = self.skipped(&claimed, lanes).await?;
        Ok(Batch { rows: claimed.rows, due: 0, skipped, extent: Extent::Walk { upto, cut_at }, is_full: is_cut })
    }

    /// Claims so few rows that their text fits into memory, and reads them one by one if the budget demands it. Also returns the number of
    /// rows that it asked for.
    async fn fitting(
        &mut self,
        rows: usize,
        which: &Rows<'_>,
        lanes: LaneRange,
    ) -> Result<(Claimed, usize), CycleError> {
        let (mut rows, shared) = (rows, self.shared);
        let sql = &shared.claim;
        for _ in 0..OVERFLOWS {
            let limits = self.limits(rows);
            let conn = &mut *self.conn;
            let mut claimed = match which {
                Rows::Due => within(sql.due(conn, lanes, limits)).await?,
                Rows::New { progress, upto } => within(sql.claim(conn, progress, lanes, *upto, limits)).await?,
                Rows::Ids { ids, snapshot } => {
                    within(sql.by_id(conn, &ids[..rows.min(ids.len())], snapshot, lanes, limits)).await?
                }
                Rows::Walk { from, upto, snapshot } => {
                    within(sql.walk(conn, *from, *upto, snapshot, lanes, limits)).await?
                }
            };
            self.budget.has_read(claimed.text_bytes, claimed.summary.stored_bytes);
            if claimed.overflowed {
                rows = (rows / 4).max(1);
                continue;
            }
            if limits.heads_only {
                self.read_one_by_one(&mut claimed, limits).await?;
            }
            return Ok((claimed, rows));
        }
        Err(sqlx::Error::Decode("the rows of a claim do not fit into memory".into()).into())
    }

    /// Reads the claimed rows one by one. This identifies a row that Postgres cannot read, or not as text.
    async fn read_one_by_one(&mut self, claimed: &mut Claimed, limits: Limits) -> Result<(), CycleError> {
        for head in std::mem::take(&mut claimed.rows) {
            let read = within(self.shared.claim.read(self.conn, head.ctid()?, limits.row_bytes)).await;
            match read {
                Ok(Some(row)) => claimed.rows.push(row),
                // The row is locked, so it must exist.
                Ok(None) => return Err(sqlx::Error::RowNotFound.into()),
                Err(error) => match unreadable(&error) {
                    Some(fault) => {
                        // Reads the row's names if possible, because its successors have to wait for its outcome.
                        let ctid = head.ctid()?;
                        let named = within(self.shared.claim.read_names(self.conn, ctid, limits.row_bytes)).await;
                        claimed.rows.push(readable(named)?.unwrap_or(head).with_fault(fault));
                    }
                    None => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    /// Returns the rows that were chosen and not locked, in their present state. Rows that are settled or gone are left out.
    async fn skipped(&mut self, claimed: &Claimed, lanes: LaneRange) -> Result<Vec<Skipped>, CycleError> {
        if claimed.rows.len() == claimed.summary.chosen.len() {
            return Ok(Vec::new());
        }
        let mut locked = HashSet::with_capacity(claimed.rows.len());
        for row in &claimed.rows {
            locked.insert(row.id()?.0);
        }
        let ids: Vec<i64> = claimed.summary.chosen.iter().copied().filter(|id| !locked.contains(id)).collect();
        let persistent = self.shared.options.database.prepared_statements;
        Ok(within(self.shared.claim.skipped(self.conn, &ids, lanes, persistent)).await?)
    }
}

/// Returns `None` instead of an error if the names cannot be read either.
fn readable(named: Result<Option<ClaimedRow>, sqlx::Error>) -> Result<Option<ClaimedRow>, sqlx::Error> {
    match named {
        Err(error) if unreadable(&error).is_some() => Ok(None),
        named => named,
    }
}

/// Returns true for an error of the database that one row may cause.
fn may_be_a_row(error: &CycleError) -> bool {
    let CycleError::Database(error) = error else { return false };
    let timed_out = matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut);
    let code = error.as_database_error().and_then(DatabaseError::code);
    // 57014 query_canceled: the statement has timed out.
    timed_out
        || code.is_some_and(|code| code == "57014" || is_of_a_value(&code))
        || matches!(error, sqlx::Error::Decode(_))
}

/// Returns true for an SQLSTATE of a value that Postgres cannot print, convert or hold: 22 data exception, 53200 out of memory, 54 a limit
/// of the program, XX000 an allocation that is too large, XX001 and XX002 damaged data.
fn is_of_a_value(code: &str) -> bool {
    ["22", "54"].iter().any(|class| code.starts_with(class)) || matches!(code, "53200" | "XX000" | "XX001" | "XX002")
}

/// Returns the fault of a row that was read alone.
fn unreadable(error: &sqlx::Error) -> Option<RowFault> {
    let code = error.as_database_error()?.code()?;
    is_of_a_value(&code).then(|| RowFault::Unreadable { sqlstate: code.into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::progress::Sweep;

    fn extent(late: &[i64], chosen: &[i64]) -> ClaimExtent {
        ClaimExtent {
            snapshot: Snapshot { xmin: 50, xmax: 50, running: Vec::new() },
            late: late.to_vec(),
            rows: 4,
            chosen: chosen.to_vec(),
            is_cut: false,
            upto: 200,
            last_allocated: 150,
        }
    }

    fn cuts(extent: &ClaimExtent, cut: Option<Option<i64>>) -> (Option<i64>, Option<i64>) {
        let scan = extent.scan(100, cut);
        (scan.late_cut_at, scan.new_cut_at)
    }

    #[test]
    fn a_claim_with_room_left_is_not_cut() {
        assert_eq!(cuts(&extent(&[7], &[7, 101, 102]), None), (None, None));
        assert_eq!(cuts(&extent(&[], &[]), None), (None, None));
    }

    #[test]
    fn as_many_new_events_as_it_may_take_cut_a_claim_at_the_last() {
        assert_eq!(cuts(&extent(&[], &[101, 102, 103, 104]), None), (None, Some(104)));
        assert_eq!(cuts(&extent(&[7, 8], &[8, 103, 104]), None), (None, Some(104)), "one of the late ones was settled");
        assert_eq!(cuts(&extent(&[6, 7, 8, 9], &[6, 7, 8, 9]), None), (None, Some(100)), "no room for new ones");
    }

    #[test]
    fn more_late_events_than_it_may_take_begin_a_sweep() {
        assert_eq!(cuts(&extent(&[5, 6, 7, 8, 9], &[6, 8]), None), (Some(8), None));
    }

    #[test]
    fn bytes_cut_a_claim_behind_what_was_chosen() {
        let cut = |late: &[i64], chosen: &[i64]| cuts(&ClaimExtent { is_cut: true, ..extent(late, chosen) }, None);
        assert_eq!(cut(&[5, 6, 7], &[5, 6]), (Some(6), None));
        assert_eq!(cut(&[5, 6], &[5, 6, 101]), (None, Some(101)));
        assert_eq!(cut(&[5, 6], &[5, 6]), (None, Some(100)), "all late ones, no new one");
    }

    #[test]
    fn a_cut_in_front_of_everything_takes_nothing() {
        assert_eq!(cuts(&extent(&[5, 6], &[5, 6, 101]), Some(None)), (Some(4), None));
        assert_eq!(cuts(&extent(&[], &[101, 102]), Some(None)), (None, Some(100)));
        assert_eq!(cuts(&extent(&[5], &[5, 101, 102]), Some(Some(101))), (None, Some(101)));
    }

    #[test]
    fn a_sweep_ends_with_its_last_event() {
        let snapshot = |text: &str| text.parse::<Snapshot>().unwrap();
        let before = Progress {
            scanned_through: 100,
            snapshot: snapshot("10:10:"),
            sweep: Some(Sweep { through: 5, snapshot: snapshot("40:40:") }),
        };
        let after = |ids: &[i64], is_all, cut_at, cut| {
            progress_after(&before, &Extent::Sweep { ids: ids.to_vec(), is_all, cut_at }, cut)
        };
        let through = |progress: Progress| progress.sweep.map(|sweep| sweep.through);
        assert_eq!(through(after(&[6, 8], false, None, None)), Some(8));
        assert_eq!(after(&[6, 8], true, None, None).snapshot, snapshot("40:40:"));
        assert_eq!(through(after(&[6, 8], true, Some(6), None)), Some(6));
        assert_eq!(through(after(&[6, 8], true, None, Some(None))), Some(5));
        assert_eq!(through(after(&[], true, None, None)), None);
    }
}
