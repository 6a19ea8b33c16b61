//! The book of what operators change: a row for each command, in the transaction of the change.

use sqlx::{AssertSqlSafe, PgConnection};

use event_outbox::names::Names;

/// Who acts, and why. The session's user is written down by the database itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Author {
    /// Whom the session's user acts for.
    pub(crate) by: Option<String>,
    pub(crate) reason: Option<String>,
}

/// A command as it is written down.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// As it is typed: `dead retry`.
    pub(crate) command: &'a str,
    /// What it was asked to change.
    pub(crate) filter: serde_json::Value,
    /// How many rows it changed.
    pub(crate) affected: u64,
}

/// Writes the entry; returns its number.
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
