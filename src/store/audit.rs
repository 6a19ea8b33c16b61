//! Records what operators change: one row in the audit table for each command, in the transaction of the change.

use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::store::read_only::read;
use crate::store::search_path;
use event_outbox::names::{Names, literal};

/// The person who acts, and the reason. The database itself records the session's user.
#[derive(Debug, Clone, Default)]
pub(crate) struct Author {
    /// The person that the session's user acts for.
    pub(crate) by: Option<String>,
    pub(crate) reason: Option<String>,
}

/// The audit entry of a command.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// The command as it is typed, such as `dead retry`.
    pub(crate) command: &'a str,
    /// The filter of the command.
    pub(crate) filter: serde_json::Value,
    /// The number of changed rows.
    pub(crate) affected: u64,
}

/// Inserts the entry and returns its id.
///
/// # Errors
/// Any database error.
pub(crate) async fn record(
    conn: &mut PgConnection,
    names: &Names,
    author: &Author,
    entry: &Entry<'_>,
) -> Result<i64, sqlx::Error> {
    let sql = format!(
        "insert into {} (actor, acted_by, command, filter, reason, affected) \
         values (session_user, $1, $2, $3::text::jsonb, $4, $5) returning id",
        names.companion("audit")
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(&author.by)
        .bind(entry.command)
        .bind(entry.filter.to_string())
        .bind(&author.reason)
        .bind(entry.affected as i64)
        .persistent(false)
        .fetch_one(conn)
        .await
}

/// Does the same as [`record`], in its own transaction: for commands whose work is not one transaction.
///
/// # Errors
/// Any database error.
pub(crate) async fn record_alone(
    conn: &mut PgConnection,
    names: &Names,
    author: &Author,
    entry: &Entry<'_>,
) -> Result<(), sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    record(&mut tx, names, author, entry).await?;
    tx.commit().await
}

/// Returns true if this user may write the audit table.
///
/// # Errors
/// Any database error.
pub(crate) async fn may_record(conn: &mut PgConnection, names: &Names) -> Result<bool, sqlx::Error> {
    let sql = format!("select has_table_privilege({}, 'insert')", literal(&names.companion("audit")));
    read(conn, &sql).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}
