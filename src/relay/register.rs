//! The register's task: says that this relay is alive, works out its workers' shares, writes the status line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::watch;

use crate::lane;
use crate::relay::crew::Standing;
use crate::relay::outage::{Party, Side};
use crate::relay::pauses::Told;
use crate::relay::shared::Shared;
use crate::relay::worker::context::DATABASE_TIMEOUT;
use crate::store::members::{Beat, Member, MemberSql};
use crate::store::session;
use crate::store::stats::{self, Backlog, COUNT_LIMIT};

struct Register {
    shared: Arc<Shared>,
    sql: MemberSql,
    conn: Option<PgConnection>,
    told_at: Instant,
    told_published: u64,
    told_pauses: Told,
}

/// Runs until `stop` becomes true, then takes the relay out of the register.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let up = shared.broker.state();
    let sql = MemberSql::new(&shared.options.names);
    let mut register =
        Register { sql, conn: None, told_at: Instant::now(), told_published: 0, told_pauses: Told::default(), shared };
    loop {
        // A relay that cannot reach the brokers is no help: its share goes to those that can.
        let present = *up.borrow();
        match register.look(present).await {
            Ok(()) => register.shared.outages.end(Side::Postgres, Party::Register).await,
            Err(error) => register.failed(&error),
        }
        if register.told_at.elapsed() >= register.shared.options.status_interval {
            register.tell_status().await;
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
        let (shared, sql) = (Arc::clone(&self.shared), self.sql.clone());
        let options = &shared.options;
        let conn = self.connection().await?;
        let beat = Beat { id: shared.id, name: &options.name, workers: options.workers };
        let looked = sql.look(conn, present.then_some(beat), options.alive_for());
        let looked = tokio::time::timeout(DATABASE_TIMEOUT, looked);
        let (members, paused) = looked.await.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))??;
        self.told_pauses.tell(&shared, &paused);
        if let Some(standing) = standing(&members, shared.id, options.workers) {
            let changed = shared.standing.send_if_modified(|current| {
                let standing = Standing { alone: current.alone, ..standing };
                let changed = *current != standing;
                *current = standing;
                changed
            });
            if changed {
                tracing::info!(relays = members.len(), lanes = owned_lanes(&shared), "lanes are shared out");
            }
        }
        shared.dismiss_workers();
        Ok(())
    }

    async fn tell_status(&mut self) {
        let elapsed = self.told_at.elapsed();
        self.told_at = Instant::now();
        let names = self.shared.options.names.clone();
        let backlog = match self.connection().await {
            Ok(conn) => tokio::time::timeout(DATABASE_TIMEOUT, stats::backlog(conn, &names)).await.ok(),
            Err(error) => Some(Err(error)),
        };
        let backlog = match backlog {
            Some(Ok(backlog)) => Some(backlog),
            Some(Err(error)) => {
                self.failed(&error);
                None
            }
            None => {
                self.conn = None;
                None
            }
        };
        let total = self.shared.published_total();
        let published = total - self.told_published;
        self.told_published = total;
        status_line(&self.shared, published, elapsed, backlog);
    }

    async fn leave(mut self) {
        let (id, sql) = (self.shared.id, self.sql.clone());
        // One try: a database that is away forgets this relay by its missing heartbeat.
        if let Some(conn) = self.conn.as_mut() {
            let _ = tokio::time::timeout(Duration::from_secs(2), sql.leave(conn, id)).await;
        }
    }
}

/// Where `id`'s workers stand; `None` while it is not in the register.
fn standing(members: &[Member], id: uuid::Uuid, workers: usize) -> Option<Standing> {
    let place = members.iter().position(|member| member.id == id)?;
    let at_work = |workers| lane::at_work(workers, members.len());
    let count = |members: &[Member]| members.iter().map(|member| at_work(member.workers)).sum::<usize>();
    let workers = at_work(workers);
    Some(Standing { first: count(&members[..place]), of: count(members).max(workers), workers, alone: false })
}

fn owned_lanes(shared: &Shared) -> String {
    let shares: Vec<_> = shared.shares().into_iter().flatten().map(|share| share.to_string()).collect();
    if shares.is_empty() { "none".to_owned() } else { shares.join(",") }
}

fn status_line(shared: &Shared, published: u64, elapsed: Duration, backlog: Option<Backlog>) {
    let rate = published as f64 / elapsed.as_secs_f64();
    let blocked = shared.blocked();
    let blocked = if blocked.is_empty() { "nothing".to_owned() } else { blocked.join("; ") };
    let count = |count: Option<i64>| match count {
        None => "unknown".to_owned(),
        Some(count) if count >= COUNT_LIMIT => format!("{COUNT_LIMIT}+"),
        Some(count) => count.to_string(),
    };
    tracing::info!(
        published,
        rate_per_s = format!("{rate:.1}"),
        pending = count(backlog.map(|backlog| backlog.pending)),
        oldest_s = backlog.and_then(|backlog| backlog.oldest).map_or(0, |oldest| oldest.as_secs()),
        scheduled = count(backlog.map(|backlog| backlog.scheduled)),
        held = count(backlog.map(|backlog| backlog.held)),
        dead = count(backlog.map(|backlog| backlog.dead)),
        lanes = owned_lanes(shared),
        blocked,
        "status"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn workers_are_numbered_through_all_relays() {
        let ids = [Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3)];
        let members: Vec<_> = ids.iter().zip([2, 1, 4]).map(|(id, workers)| Member { id: *id, workers }).collect();
        assert_eq!(standing(&members, ids[0], 2), Some(Standing { first: 0, of: 4, workers: 1, alone: false }));
        assert_eq!(standing(&members, ids[2], 4), Some(Standing { first: 2, of: 4, workers: 2, alone: false }));
        assert_eq!(standing(&members, Uuid::nil(), 2), None);
    }
}
