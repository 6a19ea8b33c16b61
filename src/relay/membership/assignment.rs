//! Computes which lanes each of this relay's workers gets. With little to do one worker has all of them. Two workers would claim, send and
//! commit twice as often for the same events, and would wait for each other on a small machine. A large batch or a failed cycle scales out
//! to all workers.

use std::time::Duration;

use crate::fault::{Fault, classify_database, describe};
use crate::lane::LaneRange;
use crate::relay::shared::Shared;
use event_outbox::notice::Notice;

/// The time without a large batch after which one worker takes all lanes. A change of owner is not free, so it should not happen every few
/// seconds: the new owner forgets what it remembers and reads the lanes' rows, holds and pauses again.
const SCALE_IN_AFTER: Duration = Duration::from_secs(60);

/// A batch counts as large from `batch_size / LARGE` events on.
const LARGE: usize = 4;

/// The SQLSTATE of a server, a database or a role that has no connection left.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// The time after which a relay that was refused a connection asks for connections for all of its workers again.
const FEW_CONNECTIONS: Duration = Duration::from_secs(600);

impl Shared {
    /// Returns the lanes of worker `index`.
    pub(crate) fn share(&self, index: usize) -> Option<LaneRange> {
        self.shares().get(index).copied().flatten()
    }

    /// Returns the lanes of this relay.
    pub(crate) fn own_lanes(&self) -> Option<LaneRange> {
        LaneRange::spanning(self.shares().iter().flatten())
    }

    /// Returns the lanes of each worker at present.
    pub(crate) fn shares(&self) -> Vec<Option<LaneRange>> {
        let worker_assignment = *self.worker_assignment.borrow();
        worker_assignment.shares(self.lanes)
    }

    /// Records that a batch of `events` events was claimed. A large batch scales out.
    pub(crate) fn record_claim(&self, events: usize, full: bool) {
        if full {
            self.full_claim.record();
        }
        if full || events * LARGE >= self.options.relay.batch_size {
            self.scale_out();
        }
    }

    /// Gives lanes to all workers. Called when there is enough to do for all, or when one worker is in trouble and must not keep back the
    /// events of the others.
    pub(crate) fn scale_out(&self) {
        self.busy.record();
        if !self.has_few_connections() {
            self.set_single_worker(false);
        }
    }

    /// Gives all lanes to one worker for a while if the server has no more connections for this relay. The others give theirs back, so that
    /// one worker and the heartbeat have what they need.
    pub(crate) fn connection_failed(&self, error: &sqlx::Error) {
        if error.as_database_error().and_then(|error| error.code()).as_deref() == Some(TOO_MANY_CONNECTIONS) {
            let is_known = self.has_few_connections();
            self.connection_refused.record();
            self.set_single_worker(true);
            if !is_known {
                let Fault { code, next_step, .. } = classify_database(error);
                tracing::warn!(
                    code = %code,
                    notice = %Notice::ConnectionRefused,
                    reason = describe(error),
                    consequence = "one worker does all the work, and lone events wait for the next poll",
                    next_step,
                    "no connection is left for the relay"
                );
            }
        }
    }

    /// Returns true if the server has refused a connection recently because there are too many.
    pub(crate) fn has_few_connections(&self) -> bool {
        self.connection_refused.happened_within(FEW_CONNECTIONS)
    }

    /// Gives all lanes to one worker if there has been little to do. The heartbeat calls this.
    pub(crate) fn scale_in(&self) {
        if !self.busy.happened_within(SCALE_IN_AFTER) {
            self.set_single_worker(true);
        }
    }

    fn set_single_worker(&self, single_worker: bool) {
        self.worker_assignment.send_if_modified(|worker_assignment| {
            let changes = worker_assignment.single_worker != single_worker && self.options.relay.workers > 1;
            if changes {
                worker_assignment.single_worker = single_worker;
            }
            changes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::WorkerAssignment;

    #[test]
    fn a_single_worker_has_what_all_would_have() {
        let all = WorkerAssignment { first: 2, of: 6, workers: 2, single_worker: false };
        let single = WorkerAssignment { single_worker: true, ..all };
        let range = |first, last| Some(LaneRange { first, last });
        assert_eq!(all.shares(16), [range(5, 7), range(8, 9)]);
        assert_eq!(single.shares(16), [range(5, 9), None]);
    }

    #[test]
    fn more_workers_than_lanes_leave_the_first_without_any() {
        let worker_assignment = WorkerAssignment { first: 0, of: 40, workers: 2, single_worker: true };
        assert_eq!(worker_assignment.shares(16), [None, None]);
        assert_eq!(
            WorkerAssignment { first: 1, ..worker_assignment }.shares(16),
            [Some(LaneRange { first: 0, last: 0 }), None]
        );
    }
}
