//! Stores pauses in the database, so that every relay knows of them and a restart does not lose them.
//!
//! Every change of a pause increments the counter `pauses` in the same transaction. Workers compare the counter before each claim. So once
//! a pause has committed and the batches in flight have ended ([`until_in_force`]), no event that the pause names is published.

use std::fmt;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::store::audit::Author;
use crate::store::read_only::read;
use crate::store::search_path::{self, SET_LOCAL};
use crate::text;
use event_outbox::names::Names;

/// The events that a pause names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub(crate) enum Scope {
    /// All events.
    All,
    /// The events of a topic.
    Topic { topic: String },
    /// The events of an entity; without a type, of every entity with that id.
    Entity { entity_type: Option<String>, entity_id: String },
}

impl Scope {
    /// Returns true for an event that it names.
    pub(crate) fn concerns(&self, topic: &str, entity_type: &str, entity_id: Option<&str>) -> bool {
        match self {
            Scope::All => true,
            Scope::Topic { topic: paused } => paused == topic,
            Scope::Entity { entity_type: of, entity_id: paused } => {
                Some(paused.as_str()) == entity_id && of.as_deref().is_none_or(|of| of == entity_type)
            }
        }
    }

    /// Returns the arguments that name it to `outbox-relay resume`, to paste into a shell.
    pub(crate) fn arguments(&self) -> String {
        match self {
            Scope::All => "--all".to_owned(),
            Scope::Topic { topic } => text::flag("--topic", topic),
            Scope::Entity { entity_type: None, entity_id } => text::flag("--entity", entity_id),
            Scope::Entity { entity_type: Some(of), entity_id } => {
                format!("{} {}", text::flag("--entity", entity_id), text::flag("--entity-type", of))
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::All => f.write_str("everything"),
            Scope::Topic { topic } => write!(f, "topic {}", text::name(topic)),
            Scope::Entity { entity_type: None, entity_id } => write!(f, "entity {}", text::name(entity_id)),
            Scope::Entity { entity_type: Some(of), entity_id } => {
                write!(f, "entity {}/{}", text::name(of), text::name(entity_id))
            }
        }
    }
}

/// A pause that is in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Pause {
    #[serde(flatten)]
    pub(crate) scope: Scope,
    pub(crate) reason: String,
    /// The database user, and the person it acted for.
    pub(crate) paused_by: String,
    pub(crate) since: DateTime<Utc>,
    /// How long it has lasted, by the database's clock.
    pub(crate) lasts_s: f64,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// The remaining time by the database's clock.
    #[serde(skip)]
    pub(crate) remaining: Option<Duration>,
}

/// Returns SQL for the counter of pauses, which workers compare.
pub(crate) fn counter(names: &Names) -> String {
    format!("(select value from {} where name = 'pauses')", names.companion("control"))
}

/// Returns the pauses in force, the oldest first. The query is a simple one: it may run inside a worker's transaction and behind a pooler.
///
/// # Errors
/// Any database error.
pub(crate) async fn active(conn: &mut PgConnection, names: &Names) -> Result<Vec<Pause>, sqlx::Error> {
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(SET_LOCAL.to_owned() + &active_text(names)))).await?;
    rows.iter().map(pause_of).collect()
}

/// Reads the pauses in force for people, within the limits of [`read`].
///
/// # Errors
/// Any database error.
pub(crate) async fn look(conn: &mut PgConnection, names: &Names) -> Result<Vec<Pause>, sqlx::Error> {
    read(conn, &active_text(names)).await?.iter().map(pause_of).collect()
}

/// The text of [`active`], for [`pause_of`].
pub(crate) fn active_text(names: &Names) -> String {
    format!(
        "select scope, topic, entity_type, entity_id, reason, paused_by, since, expires_at, \
         extract(epoch from expires_at - clock_timestamp())::float8, extract(epoch from clock_timestamp() - since)::float8 from {} \
         where expires_at is null or expires_at > clock_timestamp() order by since, id",
        names.companion("pause")
    )
}

/// Reads a row of [`active_text`].
///
/// # Errors
/// Any error of decoding a column.
pub(crate) fn pause_of(row: &PgRow) -> Result<Pause, sqlx::Error> {
    let scope = match row.try_get::<&str, _>(0)? {
        "topic" => Scope::Topic { topic: row.try_get(1)? },
        "entity" => Scope::Entity { entity_type: row.try_get(2)?, entity_id: row.try_get(3)? },
        _ => Scope::All,
    };
    let remaining: Option<f64> = row.try_get(8)?;
    Ok(Pause {
        scope,
        reason: row.try_get(4)?,
        paused_by: row.try_get(5)?,
        since: row.try_get(6)?,
        lasts_s: row.try_get(9)?,
        expires_at: row.try_get(7)?,
        remaining: remaining.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
    })
}

/// Pauses the events of `scope`, in its own transaction. A pause of the same scope that is in force gets the new reason and end.
///
/// # Errors
/// Any database error; nothing is changed then.
pub(crate) async fn pause(
    conn: &mut PgConnection,
    names: &Names,
    scope: &Scope,
    lasts: Option<Duration>,
    author: &Author,
) -> Result<(), sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    let (word, topic, entity_type, entity_id) = columns(scope);
    let sql = format!("select {}($1, $2, $3, $4, $5, $6, $7)", names.companion("begin_pause"));
    sqlx::query(AssertSqlSafe(sql))
        .bind(word)
        .bind(topic)
        .bind(entity_type)
        .bind(entity_id)
        .bind(lasts.map(|lasts| lasts.as_secs_f64()))
        .bind(&author.by)
        .bind(&author.reason)
        .persistent(false)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

/// Ends the pause of exactly this scope, or every pause if `None`. Returns the pauses that were in force.
///
/// # Errors
/// Any database error; nothing is changed then.
pub(crate) async fn resume(
    conn: &mut PgConnection,
    names: &Names,
    scope: Option<&Scope>,
    author: &Author,
) -> Result<Vec<Pause>, sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    let mut paused = active(&mut tx, names).await?;
    paused.retain(|pause| scope.is_none_or(|scope| pause.scope == *scope));
    let sql = format!("select {}($1, $2, $3, $4, $5, $6)", names.companion("end_pause"));
    let mut ended = Vec::new();
    for pause in paused {
        let (word, topic, entity_type, entity_id) = columns(&pause.scope);
        let query = sqlx::query_scalar(AssertSqlSafe(sql.clone()))
            .bind(word)
            .bind(topic)
            .bind(entity_type)
            .bind(entity_id)
            .bind(&author.by)
            .bind(&author.reason)
            .persistent(false);
        if query.fetch_one(&mut *tx).await? {
            ended.push(pause);
        }
    }
    tx.commit().await?;
    Ok(ended)
}

/// The interval at which the lanes are read while a batch is in flight.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The state of a lane at one time: its nonce, which each settled batch changes, and the transaction that has locked it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LaneLook {
    lane: i64,
    nonce: i64,
    locker: Option<i64>,
}

/// Waits until every batch that began earlier has ended. Returns false if one was still in flight after `longest`.
///
/// A lane's earlier batch has ended once the lane is not locked, is locked by another transaction, or has another nonce. A batch that
/// begins later sees the changes that committed before this call.
///
/// # Errors
/// Any database error.
pub(crate) async fn until_in_force(
    conn: &mut PgConnection,
    names: &Names,
    longest: Duration,
) -> Result<bool, sqlx::Error> {
    let deadline = Instant::now() + longest;
    let mut before = look_at_lanes(conn, names).await?;
    loop {
        before.retain(|look| look.locker.is_some());
        if before.is_empty() {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = look_at_lanes(conn, names).await?;
        before.retain(|look| now.contains(look));
    }
}

async fn look_at_lanes(conn: &mut PgConnection, names: &Names) -> Result<Vec<LaneLook>, sqlx::Error> {
    let sql = format!(
        "begin read only; set local search_path = pg_catalog, pg_temp; \
         select lanes.lane::int8, lanes.nonce, l.transactionid::text::int8 \
         from (select lane, nonce, xmax::text::int8 as locker from {}) lanes \
         left join pg_locks l on l.locktype = 'transactionid' and l.granted and l.transactionid::text::int8 = lanes.locker; commit",
        names.companion("lane")
    );
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    rows.iter()
        .map(|row| Ok(LaneLook { lane: row.try_get(0)?, nonce: row.try_get(1)?, locker: row.try_get(2)? }))
        .collect()
}

fn columns(scope: &Scope) -> (&'static str, Option<&str>, Option<&str>, Option<&str>) {
    match scope {
        Scope::All => ("all", None, None, None),
        Scope::Topic { topic } => ("topic", Some(topic), None, None),
        Scope::Entity { entity_type, entity_id } => ("entity", None, entity_type.as_deref(), Some(entity_id)),
    }
}
