//! Reading for people: one query in a read-only transaction that gives up soon, so that looking never harms a database in trouble.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

/// The rows of one query, given as text: a simple query, which a pooler cannot tear apart.
///
/// Without sequential scans: a count of few rows may be planned as a scan of the whole table otherwise.
///
/// # Errors
/// Any database error; 57014 after five seconds, 55P03 after one second of waiting for a lock. The connection stays usable.
pub(crate) async fn read(conn: &mut PgConnection, query: &str) -> Result<Vec<PgRow>, sqlx::Error> {
    read_within(conn, query, 5).await
}

/// As [`read`], with a limit of so many seconds.
///
/// # Errors
/// As [`read`].
pub(crate) async fn read_within(conn: &mut PgConnection, query: &str, seconds: u32) -> Result<Vec<PgRow>, sqlx::Error> {
    let script = format!(
        "begin read only; set local search_path = pg_catalog, pg_temp; set local jit = off; set local enable_seqscan = off; \
         set local lock_timeout = '1s'; set local statement_timeout = '{seconds}s'; {query}; commit"
    );
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(script))).await;
    if rows.is_err() {
        // The first error is the one that counts.
        drop(conn.execute("rollback").await);
    }
    rows
}
