//! Runs queries for people: each in a read-only transaction with short timeouts, so that it cannot harm a busy database.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use event_outbox::names::{Names, literal};

/// Returns the rows of one query. It is sent as text in a simple query, which a pooler cannot split over two servers.
///
/// Sequential scans are off: the planner may otherwise plan a count of few rows as a scan of the whole table.
///
/// # Errors
/// Any database error: 57014 after five seconds, 55P03 after one second of waiting for a lock. The connection stays usable.
pub(crate) async fn read(conn: &mut PgConnection, query: &str) -> Result<Vec<PgRow>, sqlx::Error> {
    read_within(conn, query, 5).await
}

/// Does the same as [`read`] for a query with SQL of a user in it. It is sent by itself, and the server refuses a text of two statements.
///
/// # Errors
/// The same as [`read`].
pub(crate) async fn read_one(conn: &mut PgConnection, query: &str) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut tx = conn.begin_with(AssertSqlSafe(begin(5))).await?;
    let rows = sqlx::query(AssertSqlSafe(query.to_owned())).persistent(false).fetch_all(&mut *tx).await;
    // An error of the rollback is ignored: the first error is the cause.
    drop(tx.rollback().await);
    rows
}

/// Does the same as [`read`], with a statement timeout of `seconds`.
///
/// # Errors
/// The same as [`read`].
pub(crate) async fn read_within(conn: &mut PgConnection, query: &str, seconds: u32) -> Result<Vec<PgRow>, sqlx::Error> {
    let script = format!("{}; {query}; commit", begin(seconds));
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(script))).await;
    if rows.is_err() {
        // An error of the rollback is ignored: the first error is the cause.
        drop(conn.execute("rollback").await);
    }
    rows
}

fn begin(seconds: u32) -> String {
    format!(
        "begin read only; set local search_path = pg_catalog, pg_temp; set local jit = off; set local enable_seqscan = off; \
         set local lock_timeout = '1s'; set local statement_timeout = '{seconds}s'"
    )
}

/// Returns true if this user may read the contents of events. Operators and monitors may not.
///
/// # Errors
/// The same as [`read`].
pub(crate) async fn reads_contents(conn: &mut PgConnection, names: &Names) -> Result<bool, sqlx::Error> {
    let columns = ["payload", "payload_bytes", "headers"];
    let may = columns.map(|column| format!("has_column_privilege(t, '{column}', 'select')")).join(" and ");
    let query = format!("select coalesce({may}, false) from to_regclass({}) t", literal(&names.outbox()));
    read(conn, &query).await?.first().map_or(Ok(false), |row| row.try_get(0))
}
