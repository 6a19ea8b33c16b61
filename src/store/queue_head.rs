//! Reads the first waiting events of a relay's lanes, and the state of vacuum. The queries read only the first entries of indexes.

use std::time::Duration;

use sqlx::{PgConnection, Row};

use crate::lane::LaneRange;
use crate::store::activity::Sessions;
use crate::store::held::{self, Held};
use crate::store::pending::pending;
use crate::store::read_only::read;
use event_outbox::names::{Names, literal};

/// The first rows of a range of lanes that are due and not settled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct QueueHead {
    /// The id and lane of the first row that can be claimed.
    pub(crate) pending: Option<(i64, i16)>,
    /// The first that is held, and why.
    pub(crate) held: Option<(i64, Held)>,
    /// The first that was scheduled and is due.
    pub(crate) due: Option<i64>,
}

impl QueueHead {
    /// Returns the lowest of these ids; `None` if nothing waits.
    pub(crate) fn lowest_id(&self) -> Option<i64> {
        let (pending, held) = (self.pending.map(|(id, _)| id), self.held.as_ref().map(|(id, _)| *id));
        [pending, held, self.due].into_iter().flatten().min()
    }
}

/// Reads the first row of each kind.
pub(crate) async fn queue_head(
    conn: &mut PgConnection,
    names: &Names,
    lanes: LaneRange,
) -> Result<QueueHead, sqlx::Error> {
    let (outbox, lanes) = (names.outbox(), format!("lane between {} and {}", lanes.first, lanes.last));
    let query = format!(
        "select p.id, p.lane::int8, d.id, h.from_id, {held} from (select 1) one \
         left join lateral (select id, lane from {first} first) p on true \
         left join lateral (select h.from_id, {held} from {hold} h where h.{lanes} order by h.from_id limit 1) h on true \
         left join lateral (select id from {outbox} where status = 'PENDING' and due <= now() and {lanes} \
           order by due limit 1) d on true",
        first = pending(names, "id, lane", &lanes, 1),
        held = held::COLUMNS,
        hold = names.companion("hold"),
    );
    let rows = read(conn, &query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let lane: Option<i64> = row.try_get(1)?;
    Ok(QueueHead {
        pending: row.try_get::<Option<i64>, _>(0)?.zip(lane.map(|lane| lane as i16)),
        held: row.try_get::<Option<i64>, _>(3)?.zip(Held::from_row(row, 4)?),
        due: row.try_get(2)?,
    })
}

/// The dead and live rows of the outbox table, and the transaction that holds vacuum back.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Vacuum {
    pub(crate) dead_tuples: i64,
    pub(crate) live_tuples: i64,
    /// The age of the oldest transaction that keeps vacuum from removing dead rows.
    pub(crate) held_back: Duration,
}

/// Reads the statistics of the table, and the oldest transaction of this database that has a snapshot or a transaction id. Prepared
/// transactions count as well. Sessions of other users are visible only to members of `pg_read_all_stats`.
pub(crate) async fn vacuum(conn: &mut PgConnection, names: &Names) -> Result<Vacuum, sqlx::Error> {
    let outbox = literal(&names.outbox());
    let query = format!(
        "select coalesce(pg_stat_get_dead_tuples(to_regclass({outbox})), 0)::int8, \
         coalesce(pg_stat_get_live_tuples(to_regclass({outbox})), 0)::int8, \
         coalesce(extract(epoch from clock_timestamp() - least(\
           (select min(xact_start) from {sessions} where (backend_xid is not null or backend_xmin is not null) \
              and pid <> pg_backend_pid() and datname = current_database() and backend_type <> 'autovacuum worker'), \
           (select min(prepared) from pg_prepared_xacts where database = current_database()))), 0)::float8",
        sessions = Sessions::find(conn, names).await?.relation
    );
    let rows = read(conn, &query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let held_back: f64 = row.try_get(2)?;
    Ok(Vacuum {
        dead_tuples: row.try_get(0)?,
        live_tuples: row.try_get(1)?,
        held_back: Duration::try_from_secs_f64(held_back).unwrap_or_default(),
    })
}
