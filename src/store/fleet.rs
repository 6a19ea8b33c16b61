//! The relays in the registry, and who holds which lane at this moment.

use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::store::read_only::read;
use event_outbox::names::Names;

/// A relay as the registry knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RegisteredRelay {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) workers: usize,
    /// Since it entered itself.
    pub(crate) up_s: f64,
    /// Since its last heartbeat.
    pub(crate) silent_s: f64,
}

/// A lane that a session works on now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LaneHeld {
    pub(crate) lane: i16,
    pub(crate) pid: i32,
    pub(crate) application: String,
}

/// Who publishes a lane in transactions, by the lane's row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LaneDelivery {
    pub(crate) lane: i16,
    /// Grows with every change of hands.
    pub(crate) epoch: i64,
    /// A worker that publishes exactly once and has not released the lane; `None`: nobody does.
    pub(crate) transactional_id: Option<String>,
    /// It may have sent something: its progress is in Kafka.
    pub(crate) opened: bool,
}

/// Of all lanes.
pub(crate) async fn deliveries(conn: &mut PgConnection, names: &Names) -> Result<Vec<LaneDelivery>, sqlx::Error> {
    let query = format!(
        "select lane::int8, epoch, transactional_id, opened from {} order by lane limit 1024",
        names.companion("delivery")
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(LaneDelivery {
                lane: row.try_get::<i64, _>(0)? as i16,
                epoch: row.try_get(1)?,
                transactional_id: row.try_get(2)?,
                opened: row.try_get(3)?,
            })
        })
        .collect()
}

/// The relays of the registry, in the order in which they share the lanes out; those not heard of for an hour are forgotten.
pub(crate) async fn relays(conn: &mut PgConnection, names: &Names) -> Result<Vec<RegisteredRelay>, sqlx::Error> {
    let query = format!(
        "select name, version, workers::int8, extract(epoch from now() - started_at)::float8, \
         extract(epoch from now() - seen_at)::float8 from {} where seen_at > now() - interval '1 hour' \
         order by started_at, id limit 1000",
        names.companion("relay")
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(RegisteredRelay {
                name: row.try_get(0)?,
                version: row.try_get(1)?,
                workers: row.try_get::<i64, _>(2)?.max(0) as usize,
                up_s: row.try_get(3)?,
                silent_s: row.try_get(4)?,
            })
        })
        .collect()
}

/// The lanes that are locked: a worker locks its lanes' rows while a batch is under way, and none while there is nothing to do.
pub(crate) async fn lanes_held(conn: &mut PgConnection, names: &Names) -> Result<Vec<LaneHeld>, sqlx::Error> {
    let query = format!(
        "select lanes.lane::int8, l.pid::int8, coalesce(a.application_name, '') \
         from (select lane, xmax::text::int8 as locker from {}) lanes \
         join pg_locks l on l.locktype = 'transactionid' and l.granted and l.transactionid::text::int8 = lanes.locker \
         left join pg_stat_activity a using (pid) where lanes.locker <> 0 order by 1",
        names.companion("lane")
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(LaneHeld {
                lane: row.try_get::<i64, _>(0)? as i16,
                pid: row.try_get::<i64, _>(1)? as i32,
                application: row.try_get(2)?,
            })
        })
        .collect()
}
