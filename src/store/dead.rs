//! Lists and changes events that need a decision: DEAD events, and refused events that hold their entity. An operator finds them by cause,
//! retries them in order, or discards them.
//!
//! The states are:
//! - dead: `DEAD`
//! - held: `PENDING` with an error, named by a hold of its entity; the entity's later events wait behind it
//! - discarded: `DEAD` with a `last_error` that begins with [`DISCARDED`]; an operator has decided, so no list and no alert counts it
//!
//! Retry changes dead, held and discarded events to pending. Discard changes dead and held events to discarded. Both release the events
//! that wait behind a held one.
//!
//! A function of the outbox makes the change and writes its audit entry. Besides, it writes only rows of the outbox and the counter that
//! workers compare before each claim. A row that becomes pending reaches its lane's claims as a late row. The lane's owner releases a hold whose event has no error any more.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use uuid::Uuid;

use crate::store::audit::Author;
use crate::store::discarded::{DISCARDED, is_discard, is_discarded};
use crate::store::routes;
use crate::store::search_path::{self, SET_LOCAL};
use event_outbox::names::{Names, literal};
use event_outbox::route::TopicTemplate;

/// One of the two ids of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Id {
    Outbox(i64),
    Event(Uuid),
}

impl std::str::FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = || text.parse().ok().map(Id::Outbox);
        let event = || text.parse().ok().map(Id::Event);
        number().or_else(event).ok_or_else(|| "expected an outbox id or an event id".to_owned())
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Id::Outbox(id) => id.fmt(f),
            Id::Event(id) => id.fmt(f),
        }
    }
}

/// A filter of events. An empty filter selects all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) ids: Vec<Id>,
    pub(crate) event_type: Option<String>,
    pub(crate) entity_type: Option<String>,
    pub(crate) entity_id: Option<String>,
    pub(crate) topic: Option<String>,
    pub(crate) fingerprint: Option<String>,
    /// The earliest `created_at`.
    pub(crate) since: Option<DateTime<Utc>>,
    /// The end of the time, which is not part of it.
    pub(crate) until: Option<DateTime<Utc>>,
    /// Selects discarded events instead of the others.
    pub(crate) discarded: bool,
}

impl Filter {
    /// Returns true if the filter has no condition on single events.
    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && [&self.event_type, &self.entity_type, &self.entity_id, &self.topic, &self.fingerprint]
                .iter()
                .all(|part| part.is_none())
            && self.since.is_none()
            && self.until.is_none()
    }

    /// Returns the filter as JSON for the audit table.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({
            "id": self.ids.iter().map(Id::to_string).collect::<Vec<_>>(),
            "type": self.event_type, "entity_type": self.entity_type, "entity": self.entity_id, "topic": self.topic,
            "cause": self.fingerprint, "since": self.since, "until": self.until,
            "discarded": self.discarded.then_some(true),
        });
        if let Some(fields) = json.as_object_mut() {
            fields.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|ids| !ids.is_empty()));
        }
        json
    }

    /// Returns a table expression with the events of the filter.
    fn events(&self, names: &Names, topic: &TopicTemplate) -> String {
        let outbox = names.outbox();
        let columns = "id, event_id, entity_type, entity_id, event_type, topic, attempts, created_at, lane, last_error";
        let decided = is_discarded();
        let states = if self.discarded {
            format!(
                "select {columns}, 'discarded' as state, 0 as behind from {outbox} \
                 where status = 'DEAD' and last_error is not null and {decided}"
            )
        } else {
            format!(
                "select {columns}, 'dead' as state, 0 as behind from {outbox} \
                 where status = 'DEAD' and last_error is not null and not {decided} \
                 union all select {held}, 'held' as state, greatest(h.events - 1, 0) as behind from {outbox} o \
                   join {hold} h on h.head_id = o.id and h.why = 'poison' where o.status = 'PENDING' and o.last_error is not null",
                held = columns.split(", ").map(|column| format!("o.{column}")).collect::<Vec<_>>().join(", "),
                hold = names.companion("hold"),
            )
        };
        let topic = routes::topic_sql(topic, "");
        let (cause, conditions) = (cause("last_error"), self.conditions());
        format!(
            "(select * from (select id, event_id, entity_type, entity_id, event_type, {topic} as topic, \
              attempts, created_at, lane, last_error, state, behind, {cause} as fingerprint from ({states}) s) t where {conditions})"
        )
    }

    fn conditions(&self) -> String {
        let mut all = vec!["true".to_owned()];
        if !self.ids.is_empty() {
            let ids = self.ids.iter().map(|id| match id {
                Id::Outbox(id) => format!("id = {id}"),
                Id::Event(id) => format!("event_id = '{id}'"),
            });
            all.push(format!("({})", ids.collect::<Vec<_>>().join(" or ")));
        }
        for (column, value) in [
            ("event_type", &self.event_type),
            ("entity_type", &self.entity_type),
            ("entity_id", &self.entity_id),
            ("topic", &self.topic),
            ("fingerprint", &self.fingerprint),
        ] {
            all.extend(value.as_ref().map(|value| format!("{column} = {}", literal(value))));
        }
        for (comparison, moment) in [(">=", self.since), ("<", self.until)] {
            all.extend(moment.map(|moment| format!("created_at {comparison} '{}'", moment.to_rfc3339())));
        }
        all.join(" and ")
    }
}

/// Returns SQL for the fingerprint of an error. The parts that differ between events are left out, so that errors of one cause have one
/// fingerprint.
fn cause(error: &str) -> String {
    let plain = format!("regexp_replace(coalesce({error}, ''), '^({DISCARDED})+', '')");
    let uuid = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
    let quoted = r#"E'"[^"]*"|\'[^\']*\'|`[^`]*`'"#;
    format!(
        "left(md5(regexp_replace(regexp_replace(regexp_replace({plain}, {quoted}, '?', 'g'), '{uuid}', '?', 'g'), \
         '[0-9]+', '?', 'g')), 8)"
    )
}

/// The events of one cause and one state.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cause {
    pub(crate) fingerprint: String,
    /// `dead`, `held` or `discarded`.
    pub(crate) state: String,
    pub(crate) events: i64,
    pub(crate) entities: i64,
    /// The number of events that wait behind held ones.
    pub(crate) waiting_behind: i64,
    pub(crate) first_id: i64,
    pub(crate) last_id: i64,
    pub(crate) oldest: DateTime<Utc>,
    pub(crate) newest: DateTime<Utc>,
    /// The types of the events, at most five.
    pub(crate) event_types: Vec<String>,
    /// The error of the first event.
    pub(crate) error: String,
}

/// Returns the events of the filter by cause, the most frequent cause first.
///
/// # Errors
/// Any database error.
pub(crate) async fn causes(
    conn: &mut PgConnection,
    names: &Names,
    filter: &Filter,
    topic: &TopicTemplate,
) -> Result<Vec<Cause>, sqlx::Error> {
    let events = filter.events(names, topic);
    let sql = format!(
        "select fingerprint, state, count(*), count(distinct (entity_type, entity_id)), sum(behind)::int8, \
           min(id), max(id), min(created_at), max(created_at), \
           array_to_string((array_agg(distinct event_type))[1:5], E'\\n'), (array_agg(coalesce(last_error, '') order by id))[1] \
         from {events} c group by fingerprint, state order by count(*) desc, fingerprint, state"
    );
    let rows = read(conn, sql).await?;
    let cause = |row: &PgRow| {
        Ok(Cause {
            fingerprint: row.try_get(0)?,
            state: row.try_get(1)?,
            events: row.try_get(2)?,
            entities: row.try_get(3)?,
            waiting_behind: row.try_get(4)?,
            first_id: row.try_get(5)?,
            last_id: row.try_get(6)?,
            oldest: row.try_get(7)?,
            newest: row.try_get(8)?,
            event_types: row.try_get::<&str, _>(9)?.lines().map(str::to_owned).collect(),
            error: row.try_get(10)?,
        })
    };
    rows.iter().map(cause).collect()
}

/// An event without its contents, unless they were asked for.
#[derive(Debug, Serialize)]
pub(crate) struct Event {
    pub(crate) id: i64,
    pub(crate) event_id: Uuid,
    pub(crate) state: String,
    pub(crate) fingerprint: String,
    pub(crate) entity_type: String,
    pub(crate) entity_id: Option<String>,
    pub(crate) event_type: String,
    pub(crate) topic: String,
    pub(crate) attempts: i32,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Content>,
}

/// The contents of an event, which are shown only on request.
#[derive(Debug, Serialize)]
pub(crate) struct Content {
    pub(crate) headers: Box<RawValue>,
    /// The payload as Postgres prints it.
    pub(crate) payload: Option<Box<RawValue>>,
    pub(crate) payload_base64: Option<String>,
}

/// Returns the first `limit` events of the filter, in the order of their ids.
///
/// # Errors
/// Any database error.
pub(crate) async fn events(
    conn: &mut PgConnection,
    names: &Names,
    filter: &Filter,
    topic: &TopicTemplate,
    limit: u32,
    with_content: bool,
) -> Result<Vec<Event>, sqlx::Error> {
    let (outbox, events) = (names.outbox(), filter.events(names, topic));
    let content = if with_content {
        "o.headers::text, to_json(o.payload)::text, replace(encode(o.payload_bytes, 'base64'), E'\\n', '')"
    } else {
        "null::text, null::text, null::text"
    };
    let sql = format!(
        "select c.id, c.event_id::text, c.state, c.fingerprint, c.entity_type, c.entity_id, c.event_type, c.topic, c.attempts, \
           c.created_at, c.last_error, {content} \
         from {events} c join {outbox} o on o.id = c.id order by c.id limit {limit}"
    );
    let rows = read(conn, sql).await?;
    rows.iter().map(event_of).collect()
}

fn event_of(row: &PgRow) -> Result<Event, sqlx::Error> {
    let decode = |error| sqlx::Error::Decode(Box::new(error));
    let raw = |text: String| RawValue::from_string(text).map_err(decode);
    let headers: Option<String> = row.try_get(11)?;
    let content = match headers {
        None => None,
        Some(headers) => Some(Content {
            headers: raw(headers)?,
            payload: row.try_get::<Option<String>, _>(12)?.map(raw).transpose()?,
            payload_base64: row.try_get(13)?,
        }),
    };
    Ok(Event {
        id: row.try_get(0)?,
        event_id: row.try_get::<&str, _>(1)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        state: row.try_get(2)?,
        fingerprint: row.try_get(3)?,
        entity_type: row.try_get(4)?,
        entity_id: row.try_get(5)?,
        event_type: row.try_get(6)?,
        topic: row.try_get(7)?,
        attempts: row.try_get(8)?,
        created_at: row.try_get(9)?,
        error: row.try_get(10)?,
        content,
    })
}

/// The state of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) status: String,
    pub(crate) last_error: Option<String>,
}

impl Standing {
    pub(crate) fn is_pending(&self) -> bool {
        self.status == "PENDING"
    }

    pub(crate) fn is_discarded(&self) -> bool {
        self.status == "DEAD" && self.last_error.as_deref().is_some_and(is_discard)
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.status)?;
        self.last_error.as_ref().map_or(Ok(()), |error| write!(f, ": {error}"))
    }
}

/// Reads the state of an event that a filter names and does not find.
///
/// # Errors
/// Any database error.
pub(crate) async fn standing(conn: &mut PgConnection, names: &Names, id: Id) -> Result<Option<Standing>, sqlx::Error> {
    let condition = Filter { ids: vec![id], ..Filter::default() }.conditions();
    let sql = format!("select status, last_error from {} where {condition}", names.outbox());
    let standing = |row: &PgRow| Ok(Standing { status: row.try_get(0)?, last_error: row.try_get(1)? });
    read(conn, sql).await?.first().map(standing).transpose()
}

async fn read(conn: &mut PgConnection, sql: String) -> Result<Vec<PgRow>, sqlx::Error> {
    let script =
        format!("begin read only; {SET_LOCAL}set local jit = off; set local enable_seqscan = off; {sql}; commit");
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(script))).await;
    if rows.is_err() {
        // The rest of the script, with its commit, was not run.
        conn.execute("rollback").await?;
    }
    rows
}

/// The decision about events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Sends the events again, in order.
    Retry,
    /// Never sends the events.
    Discard,
}

impl Decision {
    /// Returns the word that the function of migration 0015 takes.
    fn word(self) -> &'static str {
        match self {
            Decision::Retry => "retry",
            Decision::Discard => "discard",
        }
    }

    /// Returns the command as it is typed.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Decision::Retry => "dead retry",
            Decision::Discard => "dead discard",
        }
    }
}

/// The changes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Changed {
    /// The number of changed events.
    pub(crate) events: i64,
    /// The number of events that waited behind them and are released.
    pub(crate) released: i64,
}

/// Retries or discards the events of the filter, with an audit entry, in one transaction. Waits at most `longest` for a batch that has one
/// of the events in flight.
///
/// # Errors
/// Any database error; nothing is changed then.
pub(crate) async fn decide(
    conn: &mut PgConnection,
    names: &Names,
    filter: &Filter,
    topic: &TopicTemplate,
    decision: Decision,
    author: &Author,
    longest: Duration,
) -> Result<Changed, sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    let events = filter.events(names, topic);
    let settings = format!(
        "set local jit = off; set local enable_seqscan = off; set local lock_timeout = {}",
        longest.as_millis().max(1)
    );
    tx.execute(sqlx::raw_sql(AssertSqlSafe(settings))).await?;
    // The function looks at the state of each event again when it has locked it.
    let sql = format!(
        "select changed, released from {}($1, array(select id from {events} e), $2::text::jsonb, $3, $4)",
        names.companion("decide")
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(decision.word())
        .bind(filter.to_json().to_string())
        .bind(&author.by)
        .bind(&author.reason)
        .persistent(false)
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Changed { events: row.try_get(0)?, released: row.try_get(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_number_or_a_uuid() {
        assert_eq!("7".parse(), Ok(Id::Outbox(7)));
        assert_eq!(Uuid::nil().to_string().parse(), Ok(Id::Event(Uuid::nil())));
        assert!("seven".parse::<Id>().is_err());
    }

    #[test]
    fn a_filter_is_written_down_without_what_it_leaves_open() {
        let filter = Filter { topic: Some("t".to_owned()), ids: vec![Id::Outbox(7)], ..Filter::default() };
        assert_eq!(filter.to_json().to_string(), r#"{"id":["7"],"topic":"t"}"#);
        assert!(Filter { discarded: true, ..Filter::default() }.is_empty() && !filter.is_empty());
    }
}
