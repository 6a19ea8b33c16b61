//! The heartbeat's task: says that this relay is alive, and works out its workers' shares. Nothing slow runs here: a relay that is late
//! counts as dead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::watch;

use crate::lane;
use crate::relay::assignment::WorkerAssignment;
use crate::relay::outage::{Party, Side};
use crate::relay::pauses::Told;
use crate::relay::shared::Shared;
use crate::relay::worker::context::DATABASE_TIMEOUT;
use crate::store::members::{Beat, Member};
use crate::store::session;
use event_outbox::notice::Notice;

/// The row of a relay that was killed is removed after so many times the time after which it counts as dead, and not sooner than this.
const FORGET_AFTER_TIMES: u32 = 10;
const FORGET_AFTER_LEAST: Duration = Duration::from_secs(60);

struct Register {
    shared: Arc<Shared>,
    conn: Option<PgConnection>,
    told_pauses: Told,
}

/// Runs until `stop` becomes true, then takes the relay out of the register.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let up = shared.broker.state();
    let mut register = Register { conn: None, told_pauses: Told::default(), shared };
    loop {
        // A relay that cannot reach the brokers is no help: its share goes to those that can.
        let present = *up.borrow();
        match register.look(present).await {
            Ok(()) => register.shared.outages.end(Side::Postgres, Party::Register),
            Err(error) => register.failed(&error),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(register.shared.options.heartbeat_interval) => {}
        }
    }
    register.leave().await;
}

impl Register {
    async fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        if self.conn.is_none() {
            let options = &self.shared.options;
            let conn =
                session::connect(&options.database, &options.application_name(), options.connect_timeout).await?;
            self.conn = Some(conn);
        }
        self.conn.as_mut().ok_or(sqlx::Error::PoolClosed)
    }

    fn failed(&mut self, error: &sqlx::Error) {
        self.conn = None;
        self.shared.outages.database(Party::Register, error);
    }

    async fn look(&mut self, present: bool) -> Result<(), sqlx::Error> {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        let conn = self.connection().await?;
        let beat = Beat { id: shared.id, name: &options.name, workers: options.workers };
        let forget_after = (options.alive_for() * FORGET_AFTER_TIMES).max(FORGET_AFTER_LEAST);
        let gone = shared.relays.silent_for(forget_after, Instant::now());
        let looked = shared.members.look(conn, present.then_some(beat), &gone);
        let looked = tokio::time::timeout(DATABASE_TIMEOUT, looked);
        let (mut members, paused) =
            looked.await.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))??;
        self.told_pauses.tell(&shared, &paused);
        let now = Instant::now();
        shared.relays.observe(&members, now);
        members.retain(|member| shared.relays.is_alive(member.id, options.alive_for(), now));
        if let Some(worker_assignment) = worker_assignment(&members, shared.id, options.workers) {
            let changed = shared.worker_assignment.send_if_modified(|current| {
                let worker_assignment = WorkerAssignment { single_worker: current.single_worker, ..worker_assignment };
                let changed = *current != worker_assignment;
                *current = worker_assignment;
                changed
            });
            if changed {
                tracing::info!(
                    notice = %Notice::LanesAssigned,
                    relays = members.len(),
                    lanes = shared.owned_lanes(),
                    "lanes are assigned to this relay"
                );
            }
        }
        shared.scale_in();
        Ok(())
    }

    async fn leave(mut self) {
        // One try: a database that is away forgets this relay by its missing heartbeat.
        if let Some(conn) = self.conn.as_mut() {
            let _ = tokio::time::timeout(Duration::from_secs(2), self.shared.members.leave(conn, self.shared.id)).await;
        }
    }
}

/// The assignment of `id`'s workers; `None` while it is not in the register.
fn worker_assignment(members: &[Member], id: uuid::Uuid, workers: usize) -> Option<WorkerAssignment> {
    let place = members.iter().position(|member| member.id == id)?;
    let at_work = |workers| lane::at_work(workers, members.len());
    let count = |members: &[Member]| members.iter().map(|member| at_work(member.workers)).sum::<usize>();
    let workers = at_work(workers);
    Some(WorkerAssignment {
        first: count(&members[..place]),
        of: count(members).max(workers),
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
        let members: Vec<_> = ids
            .iter()
            .zip([2, 1, 4])
            .map(|(id, workers)| Member { id: *id, workers, seen_at: 0, age_s: 0.0, has_ended: false })
            .collect();
        assert_eq!(
            worker_assignment(&members, ids[0], 2),
            Some(WorkerAssignment { first: 0, of: 4, workers: 1, single_worker: false })
        );
        assert_eq!(
            worker_assignment(&members, ids[2], 4),
            Some(WorkerAssignment { first: 2, of: 4, workers: 2, single_worker: false })
        );
        assert_eq!(worker_assignment(&members, Uuid::nil(), 2), None);
    }
}
