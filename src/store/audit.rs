//! Records what operators change: one row in the audit table for each command, in the transaction of the change.

use sqlx::{AssertSqlSafe, PgConnection};

use event_outbox::names::Names;

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
