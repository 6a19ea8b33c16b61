//! Records what operators do: one row in the audit table for each command. The functions of migration 0015 that change rows write it in the
//! transaction of the change, so that nobody can change rows without an entry or write an entry for another user.

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

/// Writes the entry of a command whose work is not one transaction. All other commands change rows through functions that write their
/// entries.
///
/// # Errors
/// Any database error.
pub(crate) async fn note(
    conn: &mut PgConnection,
    names: &Names,
    author: &Author,
    entry: &Entry<'_>,
) -> Result<(), sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    note_within(&mut tx, names, author, entry).await?;
    tx.commit().await
}

/// Writes such an entry in the transaction that is open.
///
/// # Errors
/// Any database error.
pub(crate) async fn note_within(
    tx: &mut PgConnection,
    names: &Names,
    author: &Author,
    entry: &Entry<'_>,
) -> Result<(), sqlx::Error> {
    let sql = format!("select {}($1, $2::text::jsonb, $3, $4, $5)", names.companion("note"));
    let query = sqlx::query(AssertSqlSafe(sql)).bind(entry.command).bind(entry.filter.to_string());
    let query = query.bind(&author.by).bind(&author.reason).bind(entry.affected as i64);
    query.persistent(false).execute(tx).await.map(drop)
}

/// Returns a statement that writes an entry for a command of the outbox's owner, who needs no function for it. `affected` is SQL.
pub(crate) fn entry(
    names: &Names,
    command: &str,
    filter: &serde_json::Value,
    author: &Author,
    affected: &str,
) -> String {
    entry_of(names, command, &literal(&filter.to_string()), author, affected)
}

/// Returns the same statement for a filter that is SQL.
pub(crate) fn entry_of(names: &Names, command: &str, filter: &str, author: &Author, affected: &str) -> String {
    let text = |value: &Option<String>| value.as_deref().map_or_else(|| "null".to_owned(), literal);
    format!(
        "insert into {} (actor, acted_by, command, filter, reason, affected)\nselect session_user, {}, {}, {filter}, {}, {affected}",
        names.companion("audit"),
        text(&author.by),
        literal(command),
        text(&author.reason),
    )
}

/// Returns true if this user may write such an entry.
///
/// # Errors
/// Any database error.
pub(crate) async fn may_note(conn: &mut PgConnection, names: &Names) -> Result<bool, sqlx::Error> {
    let function = literal(&format!("{}(text, jsonb, text, text, bigint)", names.companion("note")));
    let sql = format!("select coalesce(has_function_privilege(to_regprocedure({function}), 'execute'), false)");
    read(conn, &sql).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}
