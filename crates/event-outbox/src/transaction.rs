//! Commits a transaction only if Postgres will keep its effects.
//!
//! After a statement has failed, Postgres answers COMMIT with ROLLBACK. The driver reports no error for that, so a caller that ignored the
//! failed statement would take the transaction for committed.

use sqlx::{PgConnection, Postgres, Row, Transaction};

/// The SQLSTATE of each statement in a transaction that Postgres has aborted.
#[cfg(feature = "consumer-kafka")]
pub(crate) const ABORTED: &str = "25P02";

/// Commits the transaction, and fails if Postgres has aborted it because a statement failed whose error was ignored.
///
/// Use it instead of [`Transaction::commit`]. Run a statement that may fail in a savepoint, `tx.begin()`, so that the rest of the
/// transaction survives.
///
/// ```no_run
/// # async fn apply(pool: &sqlx::PgPool) -> Result<(), sqlx::Error> {
/// use sqlx::Connection;
///
/// let mut tx = pool.begin().await?;
/// let mut savepoint = tx.begin().await?;
/// match sqlx::query("insert into readers (name) values ('ann')").execute(&mut *savepoint).await {
///     Ok(_) => savepoint.commit().await?,
///     Err(error) => {
///         eprintln!("goes on without it: {error}");
///         savepoint.rollback().await?;
///     }
/// }
/// event_outbox::transaction::commit(tx).await
/// # }
/// ```
///
/// # Errors
/// Any database error; SQLSTATE `25P02` if the transaction was aborted. Nothing is committed then, unless the connection broke during the
/// commit itself.
pub async fn commit(mut tx: Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
    id(&mut tx).await?;
    tx.commit().await
}

/// Returns the id of the transaction, or `None` outside of one and before its first change. Fails in an aborted transaction, as each
/// statement does.
pub(crate) async fn id(conn: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    // A simple query needs one round trip and no prepared statement.
    let sql = sqlx::raw_sql("select pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text");
    sqlx::Executor::fetch_one(conn, sql).await?.try_get(0)
}
