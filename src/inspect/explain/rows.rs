//! Finds rows by event or entity. Neither column has an index. Unpublished rows are few and are read by partial indexes; of the published
//! rows only the youngest are searched, unless the user asks for the whole table.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::MOST_EVENTS;
use crate::store::held::{self, Held};
use crate::store::pending::pending;
use crate::store::read_only::read_within;
use crate::store::routes;
use crate::text;
use event_outbox::Names;
use event_outbox::names::literal;
use event_outbox::route::TopicTemplate;

/// The number of youngest rows that are searched.
pub(crate) const YOUNGEST: u32 = 500_000;

const LOOK_S: u32 = 20;
const FULL_LOOK_S: u32 = 600;

/// The event or entity to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The outbox id of an event, or else the id of an entity.
    Number(i64),
    /// The id of an event, or else of an entity, because an entity's id may be a UUID as well.
    Event(Uuid),
    /// The id of an entity of any type.
    Entity(String),
}

impl From<String> for Wanted {
    fn from(text: String) -> Self {
        let number = || text.parse().ok().map(Self::Number);
        let event = || text.parse().ok().map(Self::Event);
        number().or_else(event).unwrap_or(Self::Entity(text))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(id) => id.fmt(f),
            Self::Event(id) => id.fmt(f),
            Self::Entity(id) => text::name(id).fmt(f),
        }
    }
}

/// A row without its payload.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) event_id: Uuid,
    pub(crate) entity_type: String,
    pub(crate) entity_id: Option<String>,
    pub(crate) event_type: String,
    #[serde(rename = "row_topic")]
    pub(crate) topic: Option<String>,
    pub(crate) status: String,
    pub(crate) attempts: i32,
    #[serde(rename = "error")]
    pub(crate) last_error: Option<String>,
    pub(crate) lane: i16,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) age_s: f64,
    pub(crate) published_at: Option<DateTime<Utc>>,
    pub(crate) published_after_s: Option<f64>,
    /// The time from which on it is published; missing also for an infinite one.
    pub(crate) available_at: Option<DateTime<Utc>>,
    /// The seconds until a scheduled event is due; negative afterwards.
    pub(crate) due_in_s: Option<f64>,
    /// Why it is held; missing while it is not.
    pub(crate) held_by: Option<Held>,
    #[serde(skip)]
    pub(crate) created_ms: i64,
}

/// The columns that are read, which operators and monitors may read.
const READ: &str = "id, event_id, entity_type, entity_id, event_type, topic, status, attempts, last_error, lane, created_at, published_at, \
     available_at, due";

const COLUMNS: &str = "id, event_id::text, entity_type, entity_id, event_type, topic, status, attempts::int8, last_error, lane::int8, \
     created_at, extract(epoch from clock_timestamp() - created_at)::float8, \
     published_at, extract(epoch from published_at - created_at)::float8, \
     case when isfinite(available_at) then available_at end, case when due is not null and isfinite(due) then extract(epoch from due - clock_timestamp())::float8 end, \
     floor(extract(epoch from created_at) * 1000)::int8";

/// Returns the wanted rows in the order of their ids: of an entity the first unpublished and the youngest published rows.
pub(super) async fn find(
    conn: &mut PgConnection,
    names: &Names,
    topic: &TopicTemplate,
    wanted: &Wanted,
    full: bool,
) -> Result<Vec<Row>, sqlx::Error> {
    match wanted {
        Wanted::Entity(entity) => look(conn, names, topic, &format!("entity_id = {}", literal(entity)), full).await,
        Wanted::Number(id) => {
            let events = by_id(conn, names, topic, *id).await?;
            if !events.is_empty() {
                return Ok(events);
            }
            look(conn, names, topic, &format!("entity_id = '{id}'"), full).await
        }
        Wanted::Event(id) => {
            let events = look(conn, names, topic, &format!("event_id = '{id}'"), full).await?;
            if !events.is_empty() {
                return Ok(events);
            }
            look(conn, names, topic, &format!("entity_id = '{id}'"), full).await
        }
    }
}

/// Returns the row with this id, by the primary key.
async fn by_id(
    conn: &mut PgConnection,
    names: &Names,
    topic: &TopicTemplate,
    id: i64,
) -> Result<Vec<Row>, sqlx::Error> {
    let join = held::join(names, &routes::topic_sql(topic, "o."));
    let query = format!(
        "select o.*, {} from (select {COLUMNS} from {} o where id = {id}) o {join}",
        held::COLUMNS,
        names.outbox()
    );
    let mut found = Vec::new();
    add(&mut found, read_within(conn, &query, LOOK_S).await?)?;
    Ok(found)
}

async fn look(
    conn: &mut PgConnection,
    names: &Names,
    topic: &TopicTemplate,
    condition: &str,
    full: bool,
) -> Result<Vec<Row>, sqlx::Error> {
    let (outbox, hold) = (names.outbox(), names.companion("hold"));
    let join = held::join(names, &routes::topic_sql(topic, "o."));
    let part = |from: &str, order: &str| {
        format!(
            "select o.*, {} from (select {COLUMNS} from {from} o where {condition} order by {order} limit {MOST_EVENTS}) o {join}",
            held::COLUMNS
        )
    };
    let of = |predicate: &str| format!("(select {READ} from {outbox} where {predicate})");
    let mut found: Vec<Row> = Vec::new();
    if full {
        let query = format!("set local enable_seqscan = on; {}", part(&outbox, "id desc"));
        add(&mut found, read_within(conn, &query, FULL_LOOK_S).await?)?;
    } else {
        for (from, order) in [
            (pending(names, READ, condition, MOST_EVENTS as i64), "id"),
            (of("status = 'PENDING' and due is not null"), "due, id"),
            (of("last_error is not null"), "id"),
            // Rows that may be held, from the first hold on: in the order of ids, within the time limit of the query.
            (of(&format!("status = 'PENDING' and due is null and id >= (select min(from_id) from {hold})")), "id"),
            (format!("(select {READ} from {outbox} order by id desc limit {YOUNGEST})"), "id desc"),
        ] {
            add(&mut found, read_within(conn, &part(&from, order), LOOK_S).await?)?;
        }
    }
    found.sort_by_key(|row| row.id);
    found.dedup_by_key(|row| row.id);
    if found.len() > MOST_EVENTS {
        // Keep unpublished rows first, because the question is about events that still wait.
        found.sort_by_key(|row| (row.status == "PUBLISHED", row.id));
        let kept = found.iter().filter(|row| row.status != "PUBLISHED").count().min(MOST_EVENTS);
        let published = found.split_off(kept);
        let youngest = published.len().saturating_sub(MOST_EVENTS - kept);
        found.extend(published.into_iter().skip(youngest));
        found.sort_by_key(|row| row.id);
    }
    Ok(found)
}

fn add(found: &mut Vec<Row>, rows: Vec<PgRow>) -> Result<(), sqlx::Error> {
    for row in rows {
        let event_id = row.try_get::<&str, _>(1)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        found.push(Row {
            id: row.try_get(0)?,
            event_id,
            entity_type: row.try_get(2)?,
            entity_id: row.try_get(3)?,
            event_type: row.try_get(4)?,
            topic: row.try_get(5)?,
            status: row.try_get(6)?,
            attempts: row.try_get::<i64, _>(7)? as i32,
            last_error: row.try_get(8)?,
            lane: row.try_get::<i64, _>(9)? as i16,
            created_at: row.try_get(10)?,
            age_s: row.try_get(11)?,
            published_at: row.try_get(12)?,
            published_after_s: row.try_get(13)?,
            available_at: row.try_get(14)?,
            due_in_s: row.try_get(15)?,
            created_ms: row.try_get(16)?,
            held_by: Held::from_row(&row, 17)?,
        });
    }
    Ok(())
}
