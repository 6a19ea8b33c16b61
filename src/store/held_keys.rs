//! The keys that consumers hold: what waits, and what is given up.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::store::audit::{Author, Entry};
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
    /// Why the head was not applied; `held` if it is the next to be applied, `retrying` if a consumer tries it again by itself.
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

/// Counts the held keys by group and topic, among the first 100,000 events, without keys that a consumer tries again by itself. Empty if
/// this user may not see them.
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
         from (select consumer_group, topic, key, held_at, \
                      first_value(reason) over (partition by consumer_group, topic, key order by position) as head \
                 from (select consumer_group, topic, key, held_at, reason, position from {held} limit 100000) first) held \
         where head <> 'retrying' group by 1, 2 order by 5 desc"
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

/// Gives the events of these groups up: marks them as processed, so that no later delivery applies them, and deletes their rows. A function
/// of the database does it, with its audit entry.
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
    let sql =
        format!("select marked, deleted from {}($1, $2, $3::text::jsonb, $4, $5, $6)", names.companion("discard"));
    let mut tx = search_path::begin(conn).await?;
    let discard = sqlx::query(AssertSqlSafe(sql)).bind(groups).bind(ids).bind(entry.filter.to_string());
    let discard = discard.bind(&author.by).bind(&author.reason).bind(entry.affected as i64);
    let row = discard.persistent(false).fetch_one(&mut *tx).await?;
    let (marked, rows): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    tx.commit().await?;
    Ok(Discarded { rows: rows.unsigned_abs(), marked: marked.unsigned_abs() })
}
