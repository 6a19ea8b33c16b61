//! The table that holds how far each backfill is.

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::{KeyValues, fetch};
use crate::store::app_table::Owner;
use crate::store::read_only::read;
use crate::store::search_path;
use event_outbox::Names;
use event_outbox::names::{literal, quote};

/// The position of a backfill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The process that works on it, as a uuid.
    pub(super) run: String,
    /// The oids of the triggers at the beginning.
    pub(crate) triggers: Vec<i64>,
    pub(crate) filter: Option<String>,
    pub(crate) key: Vec<String>,
    /// The key of the last row of the last page.
    pub(crate) last: Option<KeyValues>,
    /// The last key of the table when the backfill began; `None` if the table was empty. The triggers make events of newer rows.
    pub(crate) until: Option<KeyValues>,
    /// The keys of rows that were locked.
    pub(crate) skipped: Vec<KeyValues>,
    pub(crate) failed: Vec<FailedRow>,
    pub(crate) events: i64,
    pub(crate) finished: bool,
}

/// A row that cannot become an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailedRow {
    pub(crate) key: KeyValues,
    /// The error of Postgres.
    pub(crate) reason: String,
}

/// The relation that has the name of the table of backfills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    None,
    Ours,
    /// Holds the owner. It is not the outbox's owner, or the relation is no plain table, or it has triggers or rules.
    Foreign(String),
}

/// Looks for the table of backfills in the catalog. A relation of another user could run code with the rights of whoever reads it.
///
/// # Errors
/// Any database error.
pub(crate) async fn find(conn: &mut PgConnection, names: &Names) -> Result<Found, sqlx::Error> {
    let query = format!(
        "select r.rolname::text, c.relkind = 'r' and not c.relhasrules and not c.relrowsecurity \
           and c.relowner = (select relowner from pg_class where oid = to_regclass({})) \
           and not exists (select from pg_trigger t where t.tgrelid = c.oid) \
         from pg_class c join pg_roles r on r.oid = c.relowner where c.oid = to_regclass({})",
        literal(&names.outbox()),
        literal(&names.companion("backfill"))
    );
    let rows = read(conn, &query).await?;
    let Some(row) = rows.first() else { return Ok(Found::None) };
    Ok(if row.try_get(1)? { Found::Ours } else { Found::Foreign(row.try_get(0)?) })
}

/// Creates the table of backfills.
///
/// # Errors
/// Any database error.
pub(crate) async fn create(conn: &mut PgConnection, names: &Names, owner: &Owner) -> Result<(), sqlx::Error> {
    let state = names.companion("backfill");
    let mut script = format!(
        "create table {state} (
    -- The captured table.
    relation    oid primary key,
    -- Its triggers at the beginning: if others were set since, changes may have been missed.
    triggers    oid[] not null,
    -- The process that works on it.
    run         uuid not null,
    filter      text,
    key         text[] not null,
    last        text[],
    until       text[],
    -- The keys of rows that were locked: an array of arrays.
    skipped     jsonb not null default '[]',
    -- The rows that cannot become events: an array of objects with the key and the reason.
    failed      jsonb not null default '[]',
    events      bigint not null default 0,
    started_at  timestamptz not null default now(),
    finished_at timestamptz
)"
    );
    if !owner.is_self {
        script += &format!("; alter table {state} owner to {}", quote(&owner.outbox));
    }
    let mut tx = search_path::begin(conn).await?;
    tx.execute(sqlx::raw_sql(AssertSqlSafe(script))).await?;
    tx.commit().await
}

/// Returns true if the table of backfills exists and this user may read it.
///
/// # Errors
/// Any database error.
pub(crate) async fn has_table(conn: &mut PgConnection, names: &Names) -> Result<bool, sqlx::Error> {
    if find(conn, names).await? != Found::Ours {
        return Ok(false);
    }
    let query = format!(
        "select coalesce(has_table_privilege(to_regclass({}), 'select'), false)",
        literal(&names.companion("backfill"))
    );
    read(conn, &query).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}

/// A backfill as `capture --list` shows it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// The oid of the captured table.
    pub(crate) relation: i64,
    pub(crate) events: i64,
    pub(crate) skipped: i64,
    pub(crate) failed: i64,
    pub(crate) finished: bool,
}

/// Returns all backfills.
///
/// # Errors
/// Any database error.
pub(crate) async fn list(conn: &mut PgConnection, names: &Names) -> Result<Vec<Listed>, sqlx::Error> {
    if !has_table(conn, names).await? {
        return Ok(Vec::new());
    }
    let query = format!(
        "select relation::int8, events, jsonb_array_length(skipped)::int8, jsonb_array_length(failed)::int8, \
           finished_at is not null from {}",
        names.companion("backfill")
    );
    let listed = |row: &PgRow| {
        Ok(Listed {
            relation: row.try_get(0)?,
            events: row.try_get(1)?,
            skipped: row.try_get(2)?,
            failed: row.try_get(3)?,
            finished: row.try_get(4)?,
        })
    };
    read(conn, &query).await?.iter().map(listed).collect()
}

/// Reads how far the backfill of the table `relation` is; `None` if it was never begun.
///
/// # Errors
/// Any database error.
pub(crate) async fn progress(
    conn: &mut PgConnection,
    names: &Names,
    relation: i64,
) -> Result<Option<Progress>, sqlx::Error> {
    let query = format!(
        "select run::text, triggers::int8[], filter, key, last, until, skipped::text, failed::text, events, finished_at is not null \
         from {} where relation = {relation}",
        names.companion("backfill")
    );
    let rows = read(conn, &query).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Progress {
        run: row.try_get(0)?,
        triggers: row.try_get(1)?,
        filter: row.try_get(2)?,
        key: row.try_get(3)?,
        last: row.try_get(4)?,
        until: row.try_get(5)?,
        skipped: parsed(row, 6)?,
        failed: parsed(row, 7)?,
        events: row.try_get(8)?,
        finished: row.try_get(9)?,
    }))
}

fn parsed<T: serde::de::DeserializeOwned>(row: &PgRow, column: usize) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Takes an unfinished backfill over: another process that works on it notices at its next step. Returns false if there is none.
///
/// # Errors
/// Any database error.
pub(crate) async fn take(
    conn: &mut PgConnection,
    names: &Names,
    relation: i64,
    progress: &mut Progress,
) -> Result<bool, sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    let sql = format!(
        "update {} set run = gen_random_uuid() where relation = {relation} and run = {}::uuid and finished_at is null returning run::text",
        names.companion("backfill"),
        literal(&progress.run)
    );
    let taken = fetch(&mut tx, &sql).await?;
    tx.commit().await?;
    let Some(row) = taken.first() else { return Ok(false) };
    progress.run = row.try_get(0)?;
    Ok(true)
}

/// Locks the row of the backfill until the transaction ends. Returns false if it is no longer this process's, or if a trigger that was
/// there at the beginning is not there any more: changes would be missed.
pub(super) async fn lock(
    tx: &mut PgConnection,
    names: &Names,
    relation: i64,
    progress: &Progress,
) -> Result<bool, sqlx::Error> {
    let sql = format!(
        "select 1 from {} b where b.relation = {relation} and b.run = {}::uuid and b.finished_at is null \
           and not exists (select from unnest(b.triggers) g (oid) where not exists ( \
             select from pg_trigger t where t.oid = g.oid and t.tgrelid = b.relation and t.tgenabled in ('O', 'A'))) for update",
        names.companion("backfill"),
        literal(&progress.run)
    );
    Ok(!fetch(tx, &sql).await?.is_empty())
}
