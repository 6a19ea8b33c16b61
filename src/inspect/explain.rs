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

use serde::Serialize;
use sqlx::PgConnection;

pub(crate) use rows::{Row, Wanted};

use crate::config::Settings;
use crate::sink::reader::Reader;
use crate::store::activity::span;
use crate::store::routes;
use event_outbox::Names;
use why::OutboxState;

/// The maximum number of explained events of an entity. The first unpublished and the latest published ones are chosen.
pub(crate) const MOST_EVENTS: usize = 20;

/// The known facts about an event.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Explained {
    #[serde(flatten)]
    pub(crate) row: Row,
    /// The topic that the event is routed to, or the text of an error if there is no legal topic.
    pub(crate) topic: String,
    /// The place of the record on the topic; missing if the record was not found.
    pub(crate) record: Option<Place>,
    /// The reason why the record's place is unknown.
    pub(crate) record_unknown: Option<String>,
    /// The reason why the event waits; missing for a published event.
    pub(crate) why: Option<String>,
    pub(crate) next_step: Option<String>,
}

/// The place of a record on its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
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
    let topics: Vec<String> = found
        .iter()
        .map(|row| {
            routes::resolve(&settings.relay.topic, &row.entity_type, &row.event_type, row.topic.as_deref())
                .unwrap_or_else(|error| format!("none: {error}"))
        })
        .collect();
    let sought = look_on_topics(settings, &found, &topics).await;
    let state = OutboxState::look(conn, names, settings).await?;
    let mut explained = Vec::new();
    for (row, topic) in found.into_iter().zip(topics) {
        let (record, record_unknown) = match sought.get(&topic) {
            Some(Ok(places)) => (places.get(&row.event_id).copied(), None),
            Some(Err(error)) => (None, Some(error.clone())),
            None => (None, None),
        };
        let reason = why::why(conn, names, &row, &topic, record_unknown.as_deref(), &state).await?;
        let (why, next_step) = reason.map_or((None, None), |(why, next)| (Some(why), Some(next)));
        explained.push(Explained { row, topic, record, record_unknown, why, next_step });
    }
    Ok(explained)
}

type Sought = HashMap<String, Result<HashMap<uuid::Uuid, Place>, String>>;

/// Finds the places of the events by topic, or the reason why they are unknown.
async fn look_on_topics(settings: &Settings, found: &[Row], topics: &[String]) -> Sought {
    let Some(kafka) = &settings.kafka else { return Sought::new() };
    let mut wanted: HashMap<String, Vec<(uuid::Uuid, i64)>> = HashMap::new();
    for (row, topic) in found.iter().zip(topics) {
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
        let entity =
            row.entity_id.as_deref().map_or_else(|| "no entity".to_owned(), |id| format!("{}/{id}", row.entity_type));
        writeln!(f, "event {}  number {}, {entity}, {}", row.event_id, row.id, row.event_type)?;
        writeln!(f, "  written    {} ({} ago), lane {}", row.created_at, span(row.age_s), row.lane)?;
        match (&row.published_at, row.published_after_s) {
            (Some(at), Some(after)) => {
                writeln!(f, "  status     {} at {at}, {} after it was written", row.status, span(after))?
            }
            _ => writeln!(f, "  status     {}", row.status)?,
        }
        writeln!(
            f,
            "  attempts   {}{}",
            row.attempts,
            row.last_error.as_deref().map_or_else(String::new, |error| format!(", last error: {error}"))
        )?;
        match (&self.record, &self.record_unknown) {
            (Some(place), _) => writeln!(
                f,
                "  record     topic {}, partition {}, offset {}",
                self.topic, place.partition, place.offset
            )?,
            (None, Some(unknown)) => writeln!(f, "  record     topic {}: {unknown}", self.topic)?,
            (None, None) => writeln!(f, "  record     topic {}: not found there", self.topic)?,
        }
        if let Some(why) = &self.why {
            writeln!(f, "  why        {why}")?;
        }
        if let Some(next) = &self.next_step {
            writeln!(f, "  next       {next}")?;
        }
        Ok(())
    }
}
