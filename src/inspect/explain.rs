//! Explains one event or one entity: its history, its record on the topic, and why it still waits.
//!
//! - [`rows`]: finds the rows, bounded
//! - [`seek`]: finds the records on the topic, from the time the events were written
//! - [`why`]: explains why an event waits, with the next action

mod rows;
mod seek;
mod why;

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use sqlx::PgConnection;

pub(crate) use rows::{Row, Wanted};

use crate::config::Settings;
use crate::observe::terminal::{Tone, paint};
use crate::sink::reader::Reader;
use crate::store::activity::span;
use crate::store::routes;
use crate::text;
use event_outbox::Names;
use event_outbox::ledger::Place;
use why::OutboxState;

/// The maximum number of explained events of an entity. The first unpublished and the latest published ones are chosen.
pub(crate) const MOST_EVENTS: usize = 20;

/// The known facts about an event.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Explained {
    #[serde(flatten)]
    pub(crate) row: Row,
    /// The topic that the event is routed to; missing if it has no legal name.
    pub(crate) topic: Option<String>,
    /// The reason why there is no legal topic.
    pub(crate) topic_error: Option<String>,
    /// The place of the record on the topic; missing if the record was not found.
    pub(crate) record: Option<Place>,
    /// The reason why the record's place is unknown.
    pub(crate) record_unknown: Option<String>,
    /// The reason why the event waits; missing for a published event.
    pub(crate) why: Option<String>,
    pub(crate) next_step: Option<String>,
}

impl Explained {
    /// Returns true for the row with this outbox id.
    pub(crate) fn is_number(&self, id: i64) -> bool {
        self.row.id == id
    }
}

/// Explains the wanted rows in the order of their ids; empty if there are none.
///
/// # Errors
/// Returns any database error. Errors of the brokers are part of the answer.
pub(crate) async fn explain(
    conn: &mut PgConnection,
    settings: &Settings,
    names: &Names,
    wanted: &Wanted,
    full: bool,
) -> Result<Vec<Explained>, sqlx::Error> {
    let found = rows::find(conn, names, &settings.relay.topic, wanted, full).await?;
    let topics: Vec<Routed> = found
        .iter()
        .map(|row| {
            routes::resolve(&settings.relay.topic, &row.entity_type, &row.event_type, row.topic.as_deref())
                .map_err(|error| error.to_string())
        })
        .collect();
    let sought = look_on_topics(settings, &found, &topics).await;
    let state = OutboxState::look(conn, names, settings).await?;
    let mut explained = Vec::new();
    for (row, topic) in found.into_iter().zip(topics) {
        let (record, record_unknown) = match topic.as_ref().ok().and_then(|topic| sought.get(topic)) {
            Some(Ok(places)) => (places.get(&row.event_id).cloned(), None),
            Some(Err(error)) => (None, Some(error.clone())),
            None => (None, None),
        };
        let reason = why::why(conn, names, &row, &topic, record_unknown.as_deref(), &state).await?;
        let (why, next_step) = reason.map_or((None, None), |(why, next)| (Some(why), Some(next)));
        let (topic, topic_error) = match topic {
            Ok(topic) => (Some(topic), None),
            Err(error) => (None, Some(error)),
        };
        explained.push(Explained { row, topic, topic_error, record, record_unknown, why, next_step });
    }
    Ok(explained)
}

/// The topic of an event, or the reason why it has none.
type Routed = Result<String, String>;

type Sought = HashMap<String, Result<HashMap<uuid::Uuid, Place>, String>>;

/// Finds the places of the events by topic, or the reason why they are unknown.
async fn look_on_topics(settings: &Settings, found: &[Row], topics: &[Routed]) -> Sought {
    let Some(kafka) = &settings.kafka else { return Sought::new() };
    let mut wanted: HashMap<String, Vec<(uuid::Uuid, i64)>> = HashMap::new();
    for (row, topic) in found.iter().zip(topics).filter_map(|(row, topic)| Some((row, topic.as_ref().ok()?))) {
        wanted.entry(topic.clone()).or_default().push((row.event_id, row.created_ms));
    }
    let reader = match Reader::new(kafka) {
        Ok(reader) => reader,
        Err(error) => {
            let said = format!("librdkafka rejects the KAFKA_ settings ({:?})", error.rdkafka_error_code());
            return wanted.into_keys().map(|topic| (topic, Err(said.clone()))).collect();
        }
    };
    let seeking = tokio::task::spawn_blocking(move || {
        wanted
            .into_iter()
            .map(|(topic, events)| {
                let found = seek::seek(&reader, &topic, &events);
                (topic, found)
            })
            .collect()
    });
    seeking.await.unwrap_or_default()
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = &self.row;
        let (entity_type, event_type) = (text::name(&row.entity_type), text::name(&row.event_type));
        let entity = row.entity_id.as_deref();
        let entity = entity.map_or_else(|| "no entity".to_owned(), |id| format!("{entity_type}/{}", text::name(id)));
        writeln!(f, "event {}  number {}, {entity}, {event_type}", row.event_id, row.id)?;
        writeln!(f, "  written    {} ({} ago), lane {}", time(&row.created_at), span(row.age_s), row.lane)?;
        let status = match row.status.as_str() {
            "PUBLISHED" => paint(Tone::Good, row.status.as_str()),
            "DEAD" => paint(Tone::Bad, row.status.as_str()),
            _ => paint(Tone::Doubtful, row.status.as_str()),
        };
        match (&row.published_at, row.published_after_s) {
            (Some(at), Some(after)) => {
                writeln!(f, "  status     {status} at {}, {} after it was written", time(at), span(after))?
            }
            _ => writeln!(f, "  status     {status}")?,
        }
        let error = row.last_error.as_deref();
        let error = error.map_or_else(String::new, |error| format!(", last error: {}", text::sentence(error)));
        writeln!(f, "  attempts   {}{error}", row.attempts)?;
        match &self.topic {
            Some(topic) => self.write_record(f, topic)?,
            None => {
                writeln!(f, "  topic      none: {}", text::sentence(self.topic_error.as_deref().unwrap_or_default()))?
            }
        }
        if let Some(why) = &self.why {
            writeln!(f, "  why        {}", text::sentence(why))?;
        }
        if let Some(next) = &self.next_step {
            writeln!(f, "  next       {}", text::sentence(next))?;
        }
        Ok(())
    }
}

impl Explained {
    fn write_record(&self, f: &mut fmt::Formatter<'_>, topic: &str) -> fmt::Result {
        let topic = text::name(topic);
        match (&self.record, &self.record_unknown) {
            (Some(Place { partition, offset, .. }), _) => {
                writeln!(f, "  record     topic {topic}, partition {partition}, offset {offset}")
            }
            (None, Some(unknown)) => writeln!(f, "  record     topic {topic}: {}", text::sentence(unknown)),
            (None, None) => writeln!(f, "  record     topic {topic}: not found there"),
        }
    }
}

fn time(at: &DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}
