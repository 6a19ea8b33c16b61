//! Leaves transactions that wait for a partition which takes no records, so that other events need not wait for the partition.
//!
//! A transaction ends at each of its partitions. While one of them takes no records, the transactional id is busy: its next transaction cannot
//! begin. So the worker releases its lanes and goes on under a new id. The partition is held. Until the brokers have rolled the transaction
//! back, a task asks for the old id again and again. The first answer asks the brokers for the roll-back, so that consumers of the
//! other partitions need not wait. The last one tells that the partition takes records again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::lane::hold::HoldValue;
use crate::relay::shared::Shared;
use crate::relay::worker::claim::Batch;
use crate::relay::worker::context::{CycleError, WorkerContext};
use crate::relay::worker::in_doubt::{Awaited, InDoubt};
use crate::relay::worker::lane_assignment::LaneAssignment;
use crate::relay::worker::outcome::Sent;
use crate::relay::worker::set_aside::{self, SET_ASIDE_AFTER};
use crate::relay::worker::settle::lanes_of;
use crate::sink::delivery::Outcome;
use crate::store::session::{self, within};

/// The pause between two attempts to take the transactional id of a transaction that was left.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

impl WorkerContext<'_> {
    /// Leaves the open transaction. Its batch is claimed again, except the events of partitions that have not acknowledged. Returns false if
    /// a record has failed: then the cycle's error path decides.
    pub(crate) async fn leave_transaction(
        &mut self,
        assignment: &mut LaneAssignment,
        batch: &Batch,
        sent: &Sent,
        reports: &[Outcome],
    ) -> Result<bool, CycleError> {
        let Some(mut open) = set_aside::open_records(assignment, batch, sent, reports)? else { return Ok(false) };
        let Some(progress) = assignment.owned.as_ref().map(|owned| owned.progress.clone()) else { return Ok(false) };
        let Some(producer) = self.producer.take() else { return Ok(false) };
        let error = producer.deliveries().retried_error();
        producer.retire();
        // The transaction before this one may be the one that waits, so that this one has not begun.
        let is_busy = self.ownership.has_written && !reports.contains(&Outcome::Acked);
        let (mut destinations, mut values) = (set_aside::destinations(&open), HashMap::new());
        if is_busy {
            destinations.clear();
            within(session::rollback(self.conn)).await?;
        } else {
            // An event without a key goes to another partition.
            open.retain(|open| !matches!(open.value(), HoldValue::Row(_)));
            values = set_aside::hold_open(assignment, &open, error);
            let lanes = lanes_of(assignment);
            let stored = self.store(assignment, progress, &[], &[], None, false).await;
            stored.map_err(|error| self.not_marked(error, lanes))?;
        }
        self.release_lanes(None).await?;
        assignment.owned = None;
        let id = self.ownership.leave_id();
        tracing::debug!(worker = self.worker, transactional_id = id, ?destinations, "a transaction is left");
        let (is_over, is_done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        tokio::spawn(roll_back(Arc::clone(self.shared), id, Arc::clone(&is_over), Arc::clone(&is_done)));
        if !destinations.is_empty() {
            assignment.in_doubt.push(InDoubt {
                awaited: Some(Awaited::RollBack { is_done, error }),
                records: Vec::new(),
                values,
                destinations,
                sent_at: Instant::now().checked_sub(SET_ASIDE_AFTER).unwrap_or_else(Instant::now),
                is_reported: false,
                is_over,
            });
        }
        Ok(true)
    }
}

/// Takes a transactional id until this succeeds: then its transaction is rolled back at every partition. Ends early when nobody waits for it,
/// after the first attempt.
async fn roll_back(shared: Arc<Shared>, id: String, is_over: Arc<AtomicBool>, is_done: Arc<AtomicBool>) {
    loop {
        if shared.progress.fence(&id, shared.options.longest_transaction()).await.is_ok() {
            is_done.store(true, Ordering::Relaxed);
            return;
        }
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
    }
}
