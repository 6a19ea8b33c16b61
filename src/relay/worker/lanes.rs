//! Locks lanes, verifies them and takes them over.
//!
//! A cycle that has locked all its lanes and finds the nonces it knows goes on with what it remembers. In every other case it locks the lanes
//! that are free and reads them. It then still knows what it has set aside, if it has these lanes again and their nonces are the same.

use std::time::{Duration, Instant};

use crate::lane::LaneRange;
use crate::relay::worker::context::{CycleError, WorkerContext};
use crate::relay::worker::lane_assignment::{LaneAssignment, OwnedLanes};
use crate::relay::worker::pauses::PauseFilter;
use crate::sink::producer::KafkaProducer;
use crate::store::pauses;
use crate::store::session::within;
use crate::store::session::{self, Begun, LaneState, Wanted};
use crate::store::settle::SettleError;
use event_outbox::code::Code;

/// The most attempts to own lanes in one cycle. A takeover needs a transaction or two of its own, and another worker may be quicker on a
/// part of the lanes.
const ATTEMPTS: usize = 5;

/// The interval at which lanes that were not free are asked for again.
const WIDEN_INTERVAL: Duration = Duration::from_millis(100);

impl WorkerContext<'_> {
    /// Begins a transaction that has locked lanes of which everything is known. Returns false when no lane is free.
    pub(super) async fn own(&mut self, assignment: &mut LaneAssignment) -> Result<bool, CycleError> {
        for _ in 0..ATTEMPTS {
            let (begun, are_all_free) = self.begin(assignment).await?;
            let is_known = assignment.owned.as_mut().is_some_and(|owned| owned.matches(&begun));
            if is_known && self.are_settled(&begun) {
                self.load_holds(assignment, begun.generation).await?;
                return Ok(true);
            }
            assignment.read_again();
            if !are_all_free {
                within(session::rollback(self.conn)).await?;
                continue;
            }
            match self.lanes_to_work_on(&begun).await? {
                None => {
                    within(session::rollback(self.conn)).await?;
                    return Ok(false);
                }
                Some((lanes, unsettled)) if unsettled.is_empty() => {
                    if self.read_lanes(assignment, &begun, lanes).await? {
                        self.shared.topics.refresh_counts(&self.shared.broker).await?;
                        if self.producer.as_ref().is_some_and(KafkaProducer::is_outdated) {
                            // The next cycle makes a producer that knows the new partitions.
                            within(session::rollback(self.conn)).await?;
                            return Ok(false);
                        }
                        self.load_holds(assignment, begun.generation).await?;
                        return Ok(true);
                    }
                }
                // Taking the lanes commits the transaction.
                Some((lanes, unsettled)) => self.take(&begun, lanes, &unsettled).await?,
            }
        }
        Ok(false)
    }

    /// Returns the transaction that was begun with the last commit, or a new one. The flag is true when the transaction has locked every
    /// lane that was free.
    async fn begin(&mut self, assignment: &mut LaneAssignment) -> Result<(Begun, bool), CycleError> {
        if let Some((begun, _)) = self.begun.take() {
            return Ok((begun, false));
        }
        let now = Instant::now();
        if let Some(owned) = &assignment.owned
            && !assignment.widens(now)
        {
            let ctids = owned.all_ctids();
            let wanted = Wanted::Ctids(owned.lanes, &ctids);
            return Ok((within(self.shared.transaction.begin(self.conn, wanted)).await?, false));
        }
        assignment.widen_at = now + WIDEN_INTERVAL;
        let wanted = Wanted::Free(assignment.range);
        Ok((within(self.shared.transaction.begin(self.conn, wanted)).await?, true))
    }

    /// Reads the stored state of lanes that are locked. Returns false when that state was written on another server or for another table:
    /// then the transaction that resets the lanes has been committed.
    async fn read_lanes(
        &mut self,
        assignment: &mut LaneAssignment,
        begun: &Begun,
        lanes: LaneRange,
    ) -> Result<bool, CycleError> {
        let states = within(self.shared.transaction.read_lanes(self.conn, lanes)).await?;
        let foreign: Vec<_> = states.iter().filter(|state| !state.is_of_here).map(|state| state.row.ctid).collect();
        if !foreign.is_empty() {
            self.invalidate(assignment);
            let reset = self.shared.transaction.reset_lanes(self.conn, &foreign, rand::random());
            within(reset).await.map_err(|error| not_owned(error, lanes))?;
            within(session::commit(self.conn)).await?;
            log_reset(&states, lanes);
            return Ok(false);
        }
        let owned = OwnedLanes::new(lanes, &states, begun.server.clone());
        tracing::debug!(
            worker = self.worker,
            %lanes,
            scanned_through = owned.progress.scanned_through,
            "lanes are taken over"
        );
        assignment.has_read(owned);
        self.count_in_doubt(assignment);
        Ok(true)
    }

    /// Reads holds and pauses again when another session has changed them.
    async fn load_holds(&mut self, assignment: &mut LaneAssignment, generation: i64) -> Result<(), CycleError> {
        if assignment.generation == Some(generation) {
            return Ok(());
        }
        let Some(owned) = &assignment.owned else { return Ok(()) };
        let persistent = self.shared.options.database.prepared_statements;
        assignment.holds = within(self.shared.holds.load(self.conn, owned.lanes, persistent)).await?;
        let active = within(pauses::active(self.conn, &self.shared.options.names)).await?;
        assignment.pauses = PauseFilter::new(&active, Instant::now());
        assignment.generation = Some(generation);
        assignment.causes_checked = None;
        Ok(())
    }

    /// Begins a transaction that locks the lanes, if none has locked them.
    pub(crate) async fn keep_lanes(&mut self, assignment: &LaneAssignment) -> Result<(), CycleError> {
        if let (None, Some(owned)) = (&self.begun, &assignment.owned) {
            let ctids = owned.all_ctids();
            let wanted = Wanted::Ctids(owned.lanes, &ctids);
            let begun = within(self.shared.transaction.begin(self.conn, wanted)).await?;
            *self.begun = Some((begun, owned.lanes));
        }
        Ok(())
    }

    /// Rolls back a transaction that was begun for another cycle, unless its lanes are exactly `lanes`.
    pub(crate) async fn rollback_begun(&mut self, lanes: Option<LaneRange>) -> Result<(), CycleError> {
        if self.begun.as_ref().is_some_and(|(_, begun)| Some(*begun) != lanes) {
            within(session::rollback(self.conn)).await?;
            *self.begun = None;
        }
        Ok(())
    }
}

pub(super) fn not_owned(error: SettleError, lanes: LaneRange) -> CycleError {
    match error {
        SettleError::Database(error) => CycleError::Database(error),
        source => CycleError::NotOwned { lanes, source },
    }
}

fn log_reset(states: &[LaneState], lanes: LaneRange) {
    if states.iter().any(|state| state.was_of_elsewhere) {
        tracing::warn!(
            code = %Code::LanesReset,
            %lanes,
            consequence = "the relay scans all events once",
            next_step = "none after a restore or an upgrade; if this database is a copy, stop this relay: it publishes the copy's pending events",
            "the lanes' progress is of another server"
        );
    }
}
