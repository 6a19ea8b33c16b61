//! Counts for the status line, bounded so that they stay cheap on any table.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::store::claim::{PENDING, WAITING};
use crate::store::dead::DISCARDED;
use crate::store::names::Names;

/// Counting stops here; a count that reached it is "at least".
pub(crate) const COUNT_LIMIT: i64 = 1_000_000;

/// What waits in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Backlog {
    /// Rows that can be claimed.
    pub(crate) pending: i64,
    /// Age of the first of them.
    pub(crate) oldest: Option<Duration>,
    /// Rows not due yet.
    pub(crate) scheduled: i64,
    /// Rows held by the relay.
    pub(crate) held: i64,
    /// Rows that need an operator's decision; not those that somebody has discarded.
    pub(crate) dead: i64,
}

/// Counts the backlog. No event up to `floor` can be claimed.
pub(crate) async fn backlog(conn: &mut PgConnection, names: &Names, floor: i64) -> Result<Backlog, sqlx::Error> {
    let (outbox, pending) = (names.outbox(), format!("{PENDING} and (id + 0) > {floor}"));
    let count = |predicate: &str| {
        format!("(select count(*) from (select from {outbox} where {predicate} limit {COUNT_LIMIT}) counted)::int8")
    };
    let held = "available_at = 'infinity' and last_error is not null";
    // A simple query with settings of its own: without them a count of few rows may be planned as a scan of the table.
    let sql = format!(
        "begin read only; set local jit = off; set local enable_seqscan = off; set local statement_timeout = '10s'; \
         select {}, {}, {}, {}, \
         (select greatest(0, extract(epoch from clock_timestamp() - created_at))::float8 \
          from {outbox} where {pending} order by (id + 0) limit 1); \
         commit",
        count(&pending),
        count(&format!("{WAITING} and not ({held})")),
        count(&format!("{WAITING} and {held}")),
        count(&format!("status = 'DEAD' and not starts_with(coalesce(last_error, ''), '{DISCARDED}')")),
    );
    let row = conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    Ok(Backlog {
        pending: row.try_get(0)?,
        scheduled: row.try_get(1)?,
        held: row.try_get(2)?,
        dead: row.try_get(3)?,
        oldest: row.try_get::<Option<f64>, _>(4)?.and_then(|age| Duration::try_from_secs_f64(age).ok()),
    })
}
