//! The claim of a turn: which rows, from where, and what to make of those that another session has locked.

use std::time::{Duration, Instant};

use crate::event::OutboxId;
use crate::lane::LaneRange;
use crate::observe::code::Code;
use crate::relay::stint::Stint;
use crate::relay::turn::{Hands, TurnError, within};
use crate::store::claim::{Claimed, ClaimedRow, Reach, Skipped};

/// How often scheduled rows are looked for while a backlog keeps the probe from doing so.
const DUE_INTERVAL: Duration = Duration::from_millis(100);

/// A row that another session has locked is told after this long.
const LOCKED_TELL: Duration = Duration::from_secs(5);

/// How long claims go around the entities that wait behind a locked row.
const AROUND_TIME: Duration = Duration::from_millis(250);

/// What [`Shared::block`](crate::relay::shared::Shared::block) calls a row of these lanes that another session has locked.
pub(crate) fn lock_in(lanes: LaneRange) -> String {
    format!("lanes {lanes}")
}

/// The claimed rows of a turn.
pub(super) struct Claim {
    pub(super) rows: Vec<ClaimedRow>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) start: i64,
    /// It looked no higher.
    pub(super) upto: Option<i64>,
    /// Last id of the claim proper; scheduled rows do not count.
    pub(super) last: Option<OutboxId>,
    pub(super) full: bool,
}

impl Hands<'_> {
    /// Locks the rows of the batch; `None` when the claim may have overlooked a row and has to be made again.
    pub(super) async fn claim(&mut self, stint: &mut Stint, lanes: LaneRange) -> Result<Option<Claim>, TurnError> {
        let Self { shared, conn, limit, .. } = self;
        let (sql, options) = (&shared.claim, &shared.options);
        let persistent = options.prepared_statements;
        let mut due = Claimed::default();
        if stint.due_checked.is_none_or(|checked| checked.elapsed() >= DUE_INTERVAL) {
            stint.due_checked = Some(Instant::now());
            due = within(sql.claim_due(conn, lanes, **limit, options.batch_bytes, persistent)).await?;
        }
        if stint.around_since.elapsed() >= AROUND_TIME {
            stint.stop_going_around();
        }
        let start = stint.frontier.start(Instant::now());
        // Nothing is noted of a part of the lanes: a slice of it would be walked again and again.
        let upto = stint.frontier.upto(start).filter(|_| lanes == stint.range);
        let reach = Reach { start, upto, lanes, around: &stint.around };
        // Both together are a batch, so that a record that is refused is alone in the smallest one.
        let room = **limit - due.rows.len();
        let mut claimed = Claimed { full: true, ..Claimed::default() };
        if room > 0 && !due.cut {
            let began = Instant::now();
            claimed = within(sql.claim(conn, reach, room, options.batch_bytes, persistent)).await?;
            if upto.is_some() && !claimed.full {
                // Where rows are dense the time is theirs, and the slice was too small for a batch.
                let is_dense = claimed.rows.len() * 4 >= room;
                stint.frontier.walked(if is_dense { Duration::ZERO } else { began.elapsed() });
            }
        }
        if due.cut || claimed.cut {
            // All rows of a claim are read, so one that was cut is made smaller.
            **limit = (due.rows.len() + claimed.rows.len()).max(1);
        }
        let last = claimed.rows.last().map(ClaimedRow::id).transpose()?;
        let mut skipped = Vec::new();
        if let Some(tally) = &claimed.tally {
            if stint.frontier.overlooks(start, &tally.snapshot, Instant::now()) {
                return Ok(None);
            }
            if claimed.has_passed_over() {
                // A claim that found all there was may have passed over the last row of all.
                let beyond = match upto.filter(|_| !claimed.full) {
                    Some(upto) => Some(OutboxId(upto)),
                    None if claimed.full => None,
                    None => tally.last.max(Some(OutboxId(stint.frontier.seen()))),
                };
                let highest = last.max(beyond).unwrap_or(OutboxId(start));
                let ids = claimed.rows.iter().map(|row| row.id().map(|id| id.0)).collect::<Result<Vec<_>, _>>()?;
                skipped = within(sql.skipped(conn, reach, highest, &ids, persistent)).await?;
            }
        }
        let mut rows = due.rows;
        let due = rows.len();
        rows.extend(claimed.rows);
        let mut claim = Claim { rows, skipped, start, upto, last, full: claimed.full };
        if self.shared.options.is_exactly_once() {
            self.cut(&mut claim, due)?;
        }
        Ok(Some(claim))
    }

    /// Notes how far the claim came, once its transaction has committed.
    pub(super) fn advance(&self, stint: &mut Stint, lanes: LaneRange, claim: &Claim, left: Option<OutboxId>) {
        if stint.around_from.is_none() {
            self.tell_locked(stint, &claim.skipped);
        }
        if lanes != stint.range {
            // Rows of the lanes that were taken were not seen.
            return;
        }
        stint.reached = stint.reached.max(claim.last.map_or(0, |last| last.0));
        let first_left = [claim.skipped.first().map(|row| row.id), stint.around_from, left];
        match first_left.into_iter().flatten().min() {
            // It and its successors are pending still: the next claim has to look from before it.
            Some(first) => stint.frontier.advance(first.0 - 1, true),
            None => match claim.upto.filter(|_| !claim.full) {
                Some(upto) => stint.frontier.advance(upto, true),
                None => stint.frontier.advance(claim.last.map_or(claim.start, |last| last.0), claim.full),
            },
        }
    }

    /// Looks again at a part of what needs no looking at, when it is time for it.
    pub(super) async fn sweep(&mut self, stint: &mut Stint) -> Result<(), TurnError> {
        let began = Instant::now();
        if let Some(slice) = stint.frontier.sweep(began) {
            let reach = Reach { start: slice.after, upto: Some(slice.upto), lanes: stint.range, around: &[] };
            let first = within(self.shared.claim.first(self.conn, reach)).await?;
            stint.frontier.swept(slice, first, began.elapsed(), Instant::now());
        }
        Ok(())
    }

    fn tell_locked(&self, stint: &mut Stint, skipped: &[Skipped]) {
        let what = lock_in(stint.range);
        match (skipped.first(), stint.locked) {
            (Some(row), Some((id, since))) if row.id == id => {
                let why = format!("event {id} is locked by another session, its entity waits");
                if since.elapsed() >= LOCKED_TELL && self.shared.block(&what, &why) {
                    tracing::warn!(
                        code = %Code::EventLocked,
                        event.sequence = id.0,
                        next_step = "`outbox-relay status` names the session: end its transaction",
                        "another session has locked a pending event: its entity waits"
                    );
                }
            }
            (Some(row), _) => stint.locked = Some((row.id, Instant::now())),
            (None, Some((id, _))) => {
                stint.locked = None;
                if self.shared.unblock(&what) {
                    tracing::info!(event.sequence = id.0, "the event is no longer locked by another session");
                }
            }
            (None, None) => {}
        }
    }
}

/// Most of a batch waits behind rows that could not be claimed: their entities are passed by for a moment.
pub(super) fn go_around(stint: &mut Stint, skipped: &[Skipped]) {
    let Some(first) = skipped.first() else { return };
    if stint.around_from.is_none() {
        stint.around_since = Instant::now();
    }
    stint.around_from = Some(stint.around_from.map_or(first.id, |from| from.min(first.id)));
    stint.around.extend(skipped.iter().filter_map(|row| row.entity_id.clone()));
    stint.around.sort_unstable();
    stint.around.dedup();
}
