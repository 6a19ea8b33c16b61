//! Runs the heartbeat's task: shows that this relay is alive, and computes its workers' shares. Nothing slow runs here, because a relay
//! whose heartbeat is late counts as dead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::watch;

use crate::config::RelaySettings;
use crate::lane;
use crate::lane::{LaneRange, WorkerAssignment};
use crate::relay::health::outage::{Component, Server};
use crate::relay::membership::conflict_log::ConflictLog;
use crate::relay::pauses::PauseLog;
use crate::relay::shared::Shared;
use crate::relay::sleep::Sleep;
use crate::store::relay_conflicts::{CLUSTER_ID, RecordSettings};
use crate::store::relay_registry::{Heartbeat, RelayRow};
use crate::store::session::DATABASE_TIMEOUT;
use event_outbox::notice::Notice;

/// The silence after which the row of a killed relay is removed: `REMOVE_AFTER_TIMES` times the silence after which the relay counts as
/// dead, but at least `REMOVE_AFTER_LEAST`.
const REMOVE_AFTER_TIMES: u32 = 10;
const REMOVE_AFTER_LEAST: Duration = Duration::from_secs(60);

/// The time for which the brokers must be away before a relay sends no heartbeat, so that relays that reach them get its share. A whole
/// cluster that is away for less moves no lane: relays notice it seconds apart, and records in doubt would be sent again by the new owner.
const ABSENT_AFTER: Duration = Duration::from_secs(10);

/// Gives the relay's workers their lanes.
fn assign(shared: &Shared, next: WorkerAssignment, relays: usize) {
    let is_changed = shared.worker_assignment.send_if_modified(|current| {
        let next = WorkerAssignment { single_worker: current.single_worker, ..next };
        let is_changed = *current != next;
        *current = next;
        is_changed
    });
    if is_changed {
        tracing::info!(
            notice = %Notice::LanesAssigned,
            relays,
            lanes = shared.assigned_lanes(),
            "lanes are assigned to this relay"
        );
    }
}

/// Returns true if this relay may take lanes of a relay that has fallen silent: the cluster has answered since, and is up for long enough to
/// hear from relays that were away as well. A relay whose brokers do not answer falls silent while its records are in doubt. If nobody's
/// brokers answer, the relay that notices last, or is the first to see them again, would send these records twice.
fn may_take_over(shared: &Shared, next: WorkerAssignment, up_since: Option<Instant>) -> bool {
    let (own, next) = (shared.own_lanes(), LaneRange::spanning(next.shares(shared.lanes).iter().flatten()));
    let takes_none = next.is_none_or(|next| own.is_some_and(|own| own.first <= next.first && next.last <= own.last));
    let alive_for = shared.options.relay.alive_for();
    if takes_none {
        return true;
    }
    if up_since.is_none_or(|at| at.elapsed() < alive_for) {
        return false;
    }
    if shared.broker.answered_within(alive_for) {
        return true;
    }
    shared.broker.suspicions().raise("no broker answers");
    false
}

struct HeartbeatTask {
    shared: Arc<Shared>,
    conn: Option<PgConnection>,
    pause_log: PauseLog,
    conflict_log: ConflictLog,
    /// The settings that shape this relay's records, and the cluster that takes them.
    settings: RecordSettings,
    /// Since when the cluster is up; `None` while it is not.
    up_since: Option<Instant>,
}

/// Runs until `stop` becomes true, then removes the relay from the registry.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let up = shared.broker.state();
    let mut sleep = shared.wake_up.state();
    let settings = shared.options.relay.of_records(&shared.options.brokers);
    let mut task = HeartbeatTask {
        conn: None,
        pause_log: PauseLog::default(),
        conflict_log: ConflictLog::default(),
        settings,
        up_since: None,
        shared,
    };
    let mut up_at = None;
    loop {
        let now = Instant::now();
        let is_up = *up.borrow();
        up_at = if is_up { Some(now) } else { up_at };
        task.up_since = task.up_since.filter(|_| is_up).or(is_up.then_some(now));
        let is_present = up_at.is_some_and(|at| now.duration_since(at) < ABSENT_AFTER);
        match task.look(is_present).await {
            Ok(()) => task.shared.outages.end(Server::Postgres, Component::Heartbeat),
            Err(error) => task.failed(&error),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            () = next(&task.shared.options.relay, &mut sleep) => {}
        }
    }
    task.leave().await;
}

/// Waits until the next heartbeat is due: after an interval, or later while the relay sleeps until it is notified. A notification since the
/// last heartbeat may be for the lanes of a relay that is gone.
async fn next(relay: &RelaySettings, sleep: &mut watch::Receiver<Sleep>) {
    let (interval, asleep) = (relay.heartbeat_interval, relay.heartbeat_asleep());
    let before = *sleep.borrow_and_update();
    tokio::time::sleep(interval).await;
    let is_called_for = |now: &Sleep| now.changes != before.changes || now.pause.is_none_or(|pause| pause < asleep);
    // Fails only when the relay ends.
    let _ = tokio::time::timeout(asleep - interval, sleep.wait_for(is_called_for)).await;
}

impl HeartbeatTask {
    async fn connect(&mut self) -> Result<(), sqlx::Error> {
        if self.conn.is_none() {
            let options = &self.shared.options;
            let conn = options.connect(&options.application_name()).await?;
            self.conn = Some(conn);
        }
        Ok(())
    }

    fn failed(&mut self, error: &sqlx::Error) {
        self.conn = None;
        self.shared.connection_failed(error);
        self.shared.outages.database(Component::Heartbeat, error);
    }

    async fn look(&mut self, is_present: bool) -> Result<(), sqlx::Error> {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        self.connect().await?;
        let conn = self.conn.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        // The cluster may be another after its addresses have changed.
        self.settings.extend(shared.broker.cluster_id().map(|id| (CLUSTER_ID.to_owned(), id)));
        let (lanes, settings) = (shared.owned(), &self.settings);
        let (name, workers) = (&options.relay.name, options.relay.workers);
        let heartbeat = Heartbeat { id: shared.id, name, workers, lanes: &lanes, settings };
        let remove_after = (options.relay.alive_for() * REMOVE_AFTER_TIMES).max(REMOVE_AFTER_LEAST);
        let gone = shared.relays.silent_for(remove_after, Instant::now());
        let looked = shared.registry.look(conn, is_present.then_some(heartbeat), &gone);
        let looked = tokio::time::timeout(DATABASE_TIMEOUT, looked);
        let (mut rows, paused) = looked.await.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))??;
        self.pause_log.log_changes(&shared, &paused);
        let now = Instant::now();
        shared.relays.observe(&rows, now);
        let is_alive = |row: &RelayRow| shared.relays.is_alive(row.id, options.relay.alive_for(), now);
        let is_any_silent = rows.iter().any(|row| !row.has_ended && !is_alive(row));
        rows.retain(is_alive);
        let live: Vec<_> = rows.iter().map(|row| row.facts.clone()).collect();
        shared.set_conflicts(&self.conflict_log.log_changes(&live));
        if let Some(next) = worker_assignment(&rows, shared.id, options.relay.workers)
            && (!is_any_silent || may_take_over(&shared, next, self.up_since))
        {
            assign(&shared, next, rows.len());
        }
        shared.scale_in();
        Ok(())
    }

    async fn leave(mut self) {
        // One attempt is enough: if it fails, the missing heartbeat shows that this relay is gone.
        if let Some(conn) = self.conn.as_mut() {
            let _ =
                tokio::time::timeout(Duration::from_secs(2), self.shared.registry.leave(conn, self.shared.id)).await;
        }
    }
}

/// Returns the assignment of the workers of relay `id`; `None` while the relay is not in the registry.
fn worker_assignment(rows: &[RelayRow], id: uuid::Uuid, workers: usize) -> Option<WorkerAssignment> {
    let position = rows.iter().position(|row| row.id == id)?;
    let at_work = |workers| lane::at_work(workers, rows.len());
    let count = |rows: &[RelayRow]| rows.iter().map(|row| at_work(row.workers)).sum::<usize>();
    let workers = at_work(workers);
    Some(WorkerAssignment {
        first: count(&rows[..position]),
        of: count(rows).max(workers),
        workers,
        single_worker: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn workers_are_numbered_through_all_relays() {
        let ids = [Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3)];
        let rows: Vec<_> = ids
            .iter()
            .zip([2, 1, 4])
            .map(|(id, workers)| RelayRow { id: *id, workers, ..RelayRow::default() })
            .collect();
        assert_eq!(
            worker_assignment(&rows, ids[0], 2),
            Some(WorkerAssignment { first: 0, of: 4, workers: 1, single_worker: false })
        );
        assert_eq!(
            worker_assignment(&rows, ids[2], 4),
            Some(WorkerAssignment { first: 2, of: 4, workers: 2, single_worker: false })
        );
        assert_eq!(worker_assignment(&rows, Uuid::nil(), 2), None);
    }
}
