//! Counts the events for the status line. Each count is bounded, so it stays cheap on a table of any size.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::store::discarded::is_discarded;
use crate::store::pending::pending;
use event_outbox::names::Names;

/// The number at which counting stops. A count that reached the limit means "at least".
pub(crate) const COUNT_LIMIT: i64 = 1_000_000;

/// The events of the outbox that are not settled, by state.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Backlog {
    /// Rows that no claim has reached.
    pub(crate) pending: i64,
    /// The age of the first of these rows.
    pub(crate) oldest: Option<Duration>,
    /// Scheduled rows: not due yet, or due and not claimed yet.
    pub(crate) scheduled: i64,
    /// Rows that claims have stepped over because of a hold.
    pub(crate) held: i64,
    /// Rows that need an operator's decision; without those that an operator has discarded.
    pub(crate) dead: i64,
}

/// Counts the backlog. The cost depends on the number of events that wait, not on the size of the table.
pub(crate) async fn backlog(conn: &mut PgConnection, names: &Names) -> Result<Backlog, sqlx::Error> {
    let outbox = names.outbox();
    let count = |predicate: &str| {
        format!("(select count(*) from (select from {outbox} where {predicate} limit {COUNT_LIMIT}) counted)::int8")
    };
    // A simple query with its own settings. Without them the planner may plan a count of few rows as a scan of the table.
    let sql = format!(
        "begin read only; set local search_path = pg_catalog, pg_temp; set local jit = off; set local enable_seqscan = off; \
         set local statement_timeout = '10s'; \
         select (select count(*) from {all} counted), {scheduled}, (select coalesce(sum(events), 0)::int8 from {hold}), {dead}, \
         (select greatest(0, extract(epoch from clock_timestamp() - created_at))::float8 from {first} first); \
         commit",
        all = pending(names, "id", "true", COUNT_LIMIT),
        first = pending(names, "id, created_at", "true", 1),
        hold = names.companion("hold"),
        scheduled = count("status = 'PENDING' and due is not null"),
        dead = count(&format!("status = 'DEAD' and last_error is not null and not {}", is_discarded())),
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
