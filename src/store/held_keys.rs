//! The keys that consumers hold: what waits, and what is given up.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::store::audit::{self, Author, Entry};
use crate::store::read_only::read;
use crate::store::search_path;
use crate::text;
use event_outbox::names::{Names, literal};

/// The most keys that are read.
const MOST_KEYS: u32 = 1_000;

/// A held key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct HeldKey {
    pub(crate) group: String,
    pub(crate) topic: String,
    /// The key, in base16 if it is no text.
    pub(crate) key: String,
    /// The id of the event that holds the key.
    pub(crate) head: Uuid,
    /// Why the head was not applied; `held` if it is the next to be applied.
    pub(crate) reason: String,
    pub(crate) error: Option<String>,
    /// The number of events, the head included.
    pub(crate) length: i64,
    /// Since when the oldest of them waits.
    pub(crate) since: DateTime<Utc>,
}

impl HeldKey {
    /// Returns true if nothing is wrong with the head, so that a consumer is about to apply it.
    pub(crate) fn is_ready(&self) -> bool {
        self.reason == "held"
    }
}

/// Returns the held keys of these groups, the oldest first.
///
/// # Errors
/// Any database error.
pub(crate) async fn keys(
    conn: &mut PgConnection,
    names: &Names,
    groups: &BTreeSet<String>,
) -> Result<Vec<HeldKey>, sqlx::Error> {
    let groups: Vec<String> = groups.iter().map(|group| literal(group)).collect();
    let query = format!(
        "select consumer_group, topic, key, (array_agg(event_id order by position))[1], (array_agg(reason order by position))[1], \
         (array_agg(error order by position))[1], count(*), min(held_at) \
         from {} where consumer_group in ({}) group by 1, 2, 3 order by 8 limit {MOST_KEYS}",
        names.held(),
        groups.join(", ")
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(HeldKey {
                group: row.try_get(0)?,
                topic: row.try_get(1)?,
                key: text::of_bytes(&row.try_get::<Vec<u8>, _>(2)?),
                head: row.try_get(3)?,
                reason: row.try_get(4)?,
                error: row.try_get(5)?,
                length: row.try_get(6)?,
                since: row.try_get(7)?,
            })
        })
        .collect()
}

/// The events that a group holds of a topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct HeldCount {
    pub(crate) group: String,
    pub(crate) topic: String,
    pub(crate) keys: i64,
    /// The events of these keys, the failed ones included.
    pub(crate) events: i64,
    pub(crate) oldest_s: f64,
}

/// Counts the held keys by group and topic, among the first 100,000 events. Empty if this user may not see them.
///
/// # Errors
/// Any database error.
pub(crate) async fn counts(conn: &mut PgConnection, names: &Names) -> Result<Vec<HeldCount>, sqlx::Error> {
    let held = names.held();
    let may = |column: &str| format!("has_column_privilege(to_regclass({}), '{column}', 'select')", literal(&held));
    let readable = format!("select coalesce({} and {}, false)", may("key"), may("held_at"));
    if !read(conn, &readable).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get::<bool, _>(0)? {
        return Ok(Vec::new());
    }
    let query = format!(
        "select consumer_group, topic, count(distinct key), count(*), extract(epoch from now() - min(held_at))::float8 \
         from (select consumer_group, topic, key, held_at from {held} limit 100000) first group by 1, 2 order by 5 desc"
    );
    let count = |row: &sqlx::postgres::PgRow| {
        Ok(HeldCount {
            group: row.try_get(0)?,
            topic: row.try_get(1)?,
            keys: row.try_get(2)?,
            events: row.try_get(3)?,
            oldest_s: row.try_get(4)?,
        })
    };
    read(conn, &query).await?.iter().map(count).collect()
}

/// What a discard has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Discarded {
    /// The number of events that had a row because their key was held.
    pub(crate) rows: u64,
    /// The number of events that the inbox did not have.
    pub(crate) marked: u64,
}

/// Gives the events of these groups up: deletes their rows, and marks them as processed, so that no later delivery applies them.
///
/// # Errors
/// Any database error; nothing is changed then.
pub(crate) async fn discard(
    conn: &mut PgConnection,
    names: &Names,
    author: &Author,
    entry: &Entry<'_>,
    events: &[(String, Uuid)],
) -> Result<Discarded, sqlx::Error> {
    let (groups, ids): (Vec<&str>, Vec<Uuid>) = events.iter().map(|(group, id)| (group.as_str(), *id)).unzip();
    let given = "unnest($1::text[], $2::uuid[]) given (consumer_group, event_id)";
    let mark = format!(
        "insert into {} (consumer_group, event_id) select distinct consumer_group, event_id from {given} order by 1, 2 on conflict do nothing",
        names.processed()
    );
    let delete = format!(
        "delete from {} held using {given} where held.consumer_group = given.consumer_group and held.event_id = given.event_id",
        names.held()
    );
    let mut tx = search_path::begin(conn).await?;
    // Marks first: a consumer that applies one of the events at this moment has marked it, and is waited for.
    let mark = sqlx::query(AssertSqlSafe(mark)).bind(&groups).bind(&ids).persistent(false);
    let marked = mark.execute(&mut *tx).await?.rows_affected();
    let delete = sqlx::query(AssertSqlSafe(delete)).bind(&groups).bind(&ids).persistent(false);
    let rows = delete.execute(&mut *tx).await?.rows_affected();
    audit::note_within(&mut tx, names, author, entry).await?;
    tx.commit().await?;
    Ok(Discarded { rows, marked })
}
