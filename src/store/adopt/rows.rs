//! Reads the rows of the loop's table: the states that they have, and what the pending ones would become.

use std::fmt;

use sqlx::{PgConnection, Row};

use super::given::{Refusal, refusal};
use super::mapping::{Mapping, Source};
use super::role::Role;
use crate::store::app_table::AppTable;
use crate::store::pending::pending;
use crate::store::read_only::{read, read_within};
use crate::store::routes;
use crate::text;
use event_outbox::Names;
use event_outbox::names::{literal, quote};
use event_outbox::route::TopicTemplate;

/// The seconds that a scan of the table may take.
const SCAN: u32 = 60;

/// The most values of a state column.
const MOST_STATES: usize = 50;

/// The number at which counting stops.
const MOST_COUNTED: i64 = 100_000;

/// The most kinds of pending events whose topics are looked at.
const MOST_KINDS: usize = 1_000;

/// Returns the values of a state column, each with the number of its rows. `None` if there are too many for a state.
///
/// # Errors
/// Any database error.
pub(crate) async fn states(
    conn: &mut PgConnection,
    table: &AppTable,
    column: &str,
) -> Result<Option<Vec<(Option<String>, i64)>>, sqlx::Error> {
    let query = format!(
        "select {}::text, count(*) from {} group by 1 order by 2 desc limit {}",
        quote(column),
        table.quoted(),
        MOST_STATES + 1
    );
    let rows = read_within(conn, &query, SCAN).await?;
    if rows.len() > MOST_STATES {
        return Ok(None);
    }
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map(Some)
}

/// The number of pending rows, and the reasons against them.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) rows: i64,
    pub(crate) refusals: Vec<Refusal>,
}

/// Counts the pending rows, and finds those that cannot become events.
///
/// # Errors
/// Any database error.
pub(crate) async fn look(
    conn: &mut PgConnection,
    table: &AppTable,
    mapping: &Mapping,
    template: &TopicTemplate,
) -> Result<Pending, sqlx::Error> {
    let text_of = |role: Role| match mapping.part(role) {
        Some(Source::Column { name, .. }) => format!("t.{}::text", quote(name)),
        Some(Source::Constant(value)) => literal(value),
        None => "null::text".to_owned(),
    };
    let query = format!(
        "select {}, {}, {}, count(*) from {} t where {} group by 1, 2, 3 order by 4 desc",
        text_of(Role::EntityType),
        text_of(Role::EventType),
        text_of(Role::Topic),
        table.quoted(),
        mapping.flag.is_pending("t")
    );
    let mut found = Pending { rows: 0, refusals: headers(conn, table, mapping).await?.into_iter().collect() };
    for (at, row) in read_within(conn, &query, SCAN).await?.iter().enumerate() {
        let count: i64 = row.try_get(3)?;
        found.rows += count;
        if at >= MOST_KINDS || found.refusals.len() >= 10 {
            continue;
        }
        let (entity_type, event_type): (Option<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let (Some(entity_type), Some(event_type)) = (entity_type, event_type) else {
            found.refusals.push(refusal(
                format!("no type of entity or no type of event in {}", text::counted(count, "pending row")),
                "update or delete these rows; events need both",
            ));
            continue;
        };
        if let Err(error) = routes::resolve(template, &entity_type, &event_type, row.try_get(2)?) {
            found.refusals.push(refusal(
                format!(
                    "no legal topic for {} of the type {}: {}",
                    text::counted(count, "pending row"),
                    text::name(&entity_type),
                    text::sentence(&error.to_string())
                ),
                "another RELAY_TOPIC, or --map COLUMN=topic; a topic has letters, digits, '.', '_' and '-'",
            ));
        }
    }
    Ok(found)
}

/// Casts the headers of the pending rows as the trigger does. One row that fails would make the cut fail.
async fn headers(conn: &mut PgConnection, table: &AppTable, mapping: &Mapping) -> Result<Option<Refusal>, sqlx::Error> {
    let Some(Source::Column { name, base, .. }) = mapping.part(Role::Headers) else { return Ok(None) };
    if base == "jsonb" {
        return Ok(None);
    }
    let (column, id) = (quote(name), quote(&mapping.id));
    let (shown, pending) = (table.quoted(), mapping.flag.is_pending("t"));
    let query = format!("select count(t.{column}::jsonb) from {shown} t where {pending}");
    let Err(error) = read_within(conn, &query, SCAN).await else { return Ok(None) };
    // Class 22: the value of a row.
    let code = error.as_database_error().and_then(|error| error.code());
    if !code.is_some_and(|code| code.starts_with("22")) {
        return Err(error);
    }
    let query = format!(
        "select t.{id}::text from {shown} t where {pending} and t.{column}::text ~ '\\\\u(0000|[dD][89a-fA-F])' order by t.{id} limit 5"
    );
    let rows = read_within(conn, &query, SCAN).await?;
    let ids = rows.iter().map(|row| row.try_get::<String, _>(0)).collect::<Result<Vec<_>, _>>()?;
    let ids = if ids.is_empty() { String::new() } else { format!(", probably of {}", ids.join(", ")) };
    Ok(Some(refusal(
        format!("pending rows have headers in {} that jsonb cannot hold{ids}: {error}", text::name(name)),
        format!("correct these headers, or --map {name}=none to publish without headers"),
    )))
}

/// The most entity types that are named.
const MOST_TYPES: i64 = 5;

/// The events up to an id that are not published yet. Nothing in an event names the table that it comes from, so events of all tables count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unpublished {
    /// The number of events that no claim has met, and of those that are held.
    pub(crate) events: i64,
    /// The number of those that are held.
    pub(crate) held: i64,
    /// The most frequent entity types of those that no claim has met, with their numbers.
    pub(crate) types: Vec<(String, i64)>,
}

impl fmt::Display for Unpublished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::counted(self.events, "event"))?;
        let mut parts: Vec<_> =
            self.types.iter().map(|(name, events)| format!("{events} of {}", text::name(name))).collect();
        let others = self.events - self.held - self.types.iter().map(|(_, events)| events).sum::<i64>();
        parts.extend((others > 0).then(|| format!("{others} of other types")));
        parts.extend((self.held > 0).then(|| format!("{} held", self.held)));
        if parts.is_empty() { Ok(()) } else { write!(f, " ({})", parts.join(", ")) }
    }
}

/// Returns which of the events up to `id` are not published yet.
///
/// # Errors
/// Any database error.
pub(crate) async fn unpublished(conn: &mut PgConnection, names: &Names, id: i64) -> Result<Unpublished, sqlx::Error> {
    let waiting = pending(names, "id, entity_type", &format!("id <= {id}"), MOST_COUNTED);
    let query = format!(
        "with waiting as materialized (select entity_type, count(*) as events from {waiting} waiting group by 1) \
         select (select coalesce(sum(events), 0)::int8 from waiting), \
           (select coalesce(sum(events), 0)::int8 from {} where from_id <= {id}), most.entity_type, most.events \
         from (select 1) one left join (select * from waiting order by events desc, entity_type limit {MOST_TYPES}) most on true",
        names.companion("hold")
    );
    let mut found = Unpublished::default();
    for row in read(conn, &query).await? {
        found.held = row.try_get(1)?;
        found.events = row.try_get::<i64, _>(0)? + found.held;
        if let Some(entity_type) = row.try_get(2)? {
            found.types.push((entity_type, row.try_get(3)?));
        }
    }
    Ok(found)
}

/// Returns the highest id of the outbox.
///
/// # Errors
/// Any database error.
pub(crate) async fn highest(conn: &mut PgConnection, names: &Names) -> Result<i64, sqlx::Error> {
    let query = format!("select coalesce(max(id), 0) from {}", names.outbox());
    read(conn, &query).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}
