//! Follows events from the insert to the record on the topic. It only reads, and joins no consumer group.
//!
//! - [`table`]: polls the rows by their ids
//! - [`topic`]: reads the records, from the time when their event was written

mod table;
mod topic;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::error::KafkaError;
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::config::{KafkaSettings, RelaySettings, Settle};
use crate::observe::terminal::{Tone, paint};
use crate::store::routes;
use crate::text;
use event_outbox::Names;
use event_outbox::ledger::Place;
use event_outbox::route::TopicTemplate;
use table::{Row, Table};
use topic::{Follower, Sighting};

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The maximum number of followed events. Beyond this number the oldest event is dropped.
const MOST_FOLLOWED: usize = 10_000;

/// The conditions on the events to follow.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) entity_type: Option<String>,
    pub(crate) event_type: Option<String>,
    pub(crate) entity: Option<String>,
    pub(crate) topic: Option<String>,
}

/// The step of an event that a line reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    Inserted,
    Published,
    /// The record was read from the topic.
    Seen,
    Held,
    Dead,
}

/// One line of output.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) what: What,
    pub(crate) id: i64,
    pub(crate) event_id: Uuid,
    pub(crate) entity_type: String,
    pub(crate) entity_id: Option<String>,
    pub(crate) event_type: String,
    /// The topic that the event is routed to; missing if it has no legal name.
    pub(crate) topic: Option<String>,
    /// The reason why there is no legal topic.
    pub(crate) topic_error: Option<String>,
    /// The time since the event's transaction began, by the database's clock. For `inserted` it ends when the row was found, up to one
    /// poll late; for `published` it ends when the batch was marked.
    pub(crate) latency_ms: f64,
    /// The place of the record, where it was seen.
    pub(crate) record: Option<Place>,
    pub(crate) error: Option<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, tone) = match self.what {
            What::Inserted => ("inserted", None),
            What::Published => ("published", Some(Tone::Good)),
            What::Seen => ("seen", Some(Tone::Good)),
            What::Held => ("held", Some(Tone::Doubtful)),
            What::Dead => ("dead", Some(Tone::Bad)),
        };
        match tone {
            Some(tone) => write!(f, "{:<9}", paint(tone, what))?,
            None => write!(f, "{what:<9}")?,
        }
        let (entity_type, event_type) = (text::name(&self.entity_type), text::name(&self.event_type));
        let entity = text::name(self.entity_id.as_deref().unwrap_or("-"));
        write!(f, " {:>9.1} ms  #{} {entity_type}/{entity} {event_type}", self.latency_ms, self.id)?;
        match (&self.record, &self.error, &self.topic, &self.topic_error) {
            (Some(record), ..) => write!(f, "  {record}"),
            (_, Some(error), ..) => write!(f, "  {}", text::sentence(error)),
            (_, _, Some(topic), _) => write!(f, "  {}  {}", text::name(topic), self.event_id),
            (_, _, None, error) => {
                let error = text::sentence(error.as_deref().unwrap_or_default());
                write!(f, "  no topic: {error}  {}", self.event_id)
            }
        }
    }
}

#[derive(Debug)]
struct Followed {
    row: Row,
    /// The topic, or the reason why there is none.
    topic: Result<String, String>,
    shown_state: String,
    seen: bool,
}

/// Follows the outbox's events.
pub(crate) struct Tail<'a> {
    table: Table<'a>,
    template: &'a TopicTemplate,
    settle: Settle,
    filter: Filter,
    follower: Follower,
    followed: HashMap<Uuid, Followed>,
    /// The database's clock minus this machine's, in seconds.
    ahead_s: f64,
    /// The number of finished events: both seen and published, or dead.
    pub(crate) ended: u64,
}

/// The reason why following ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TailError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// librdkafka rejects the settings. Its own text may quote a secret.
    #[error("the Kafka client cannot be made")]
    Kafka(#[source] KafkaError),
}

impl<'a> Tail<'a> {
    /// Starts to follow events that are written from now on.
    pub(crate) async fn begin(
        conn: &mut PgConnection,
        names: &'a Names,
        kafka: &KafkaSettings,
        RelaySettings { topic: template, settle, .. }: &'a RelaySettings,
        filter: Filter,
    ) -> Result<Self, TailError> {
        let (table, ahead_s) = Table::begin(conn, names, template).await?;
        let follower = Follower::start(kafka).map_err(TailError::Kafka)?;
        Ok(Self { table, template, settle: *settle, filter, follower, followed: HashMap::new(), ahead_s, ended: 0 })
    }

    /// Returns the lines since the last call. If there are none, it waits for one poll interval first.
    pub(crate) async fn next(&mut self, conn: &mut PgConnection) -> Result<Vec<Line>, TailError> {
        let mut lines = Vec::new();
        for row in self.table.new_rows(conn).await? {
            lines.extend(self.inserted(row));
        }
        let open: Vec<i64> =
            self.followed.values().filter(|followed| followed.is_open()).map(|followed| followed.row.id).collect();
        let rows = self.table.look_at(conn, &open).await?;
        if self.settle == Settle::Delete {
            let left: HashSet<i64> = rows.iter().map(|row| row.id).collect();
            lines.extend(open.iter().filter(|id| !left.contains(id)).filter_map(|id| self.deleted(*id)));
        }
        for row in rows {
            lines.extend(self.changed(row));
        }
        for sighting in self.follower.sightings() {
            lines.extend(self.sighted(&sighting));
        }
        self.expire();
        if lines.is_empty() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(lines)
    }

    fn inserted(&mut self, row: Row) -> Option<Line> {
        let topic = routes::resolve(self.template, &row.entity_type, &row.event_type, row.topic.as_deref())
            .map_err(|error| error.to_string());
        let filter = &self.filter;
        let is = |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        let wanted = is(&filter.entity_type, &row.entity_type)
            && is(&filter.event_type, &row.event_type)
            && is(&filter.entity, row.entity_id.as_deref().unwrap_or_default())
            && is(&filter.topic, topic.as_deref().unwrap_or_default());
        if !wanted {
            return None;
        }
        if let Ok(topic) = &topic {
            self.follower.follow(topic, row.created_ms);
        }
        let line = line(What::Inserted, &row, &topic);
        self.followed.insert(row.event_id, Followed { shown_state: "PENDING".to_owned(), seen: false, topic, row });
        Some(line)
    }

    fn changed(&mut self, row: Row) -> Option<Line> {
        let followed = self.followed.get_mut(&row.event_id)?;
        let state = if row.held { "held" } else { row.status.as_str() };
        if followed.shown_state == state {
            return None;
        }
        state.clone_into(&mut followed.shown_state);
        let what = match state {
            "PUBLISHED" => What::Published,
            "DEAD" => What::Dead,
            "held" => What::Held,
            // A released event is shown when it is published.
            _ => return None,
        };
        if what == What::Dead || what == What::Published && followed.seen {
            self.ended += 1;
        }
        let error = row.last_error.clone().filter(|_| what != What::Published);
        let latency_ms = row.published_after_ms.filter(|_| what == What::Published).unwrap_or(row.age_ms);
        Some(Line { latency_ms, error, ..line(what, &row, &followed.topic) })
    }

    /// Makes the line of an event whose row is gone: the relay deletes what it has published.
    fn deleted(&mut self, id: i64) -> Option<Line> {
        let followed = self.followed.values_mut().find(|followed| followed.row.id == id)?;
        "PUBLISHED".clone_into(&mut followed.shown_state);
        self.ended += u64::from(followed.seen);
        let latency_ms = (now_s() + self.ahead_s) * 1000.0 - followed.row.created_exact_ms;
        Some(Line { latency_ms, ..line(What::Published, &followed.row, &followed.topic) })
    }

    fn sighted(&mut self, sighting: &Sighting) -> Option<Line> {
        let followed = self.followed.get_mut(&sighting.event_id).filter(|followed| !followed.seen)?;
        followed.seen = true;
        if followed.shown_state == "PUBLISHED" {
            self.ended += 1;
        }
        let now_ms = sighting.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0;
        let latency_ms = now_ms + self.ahead_s * 1000.0 - followed.row.created_exact_ms;
        let Sighting { partition, offset, .. } = *sighting;
        let record = followed.topic.clone().ok().map(|topic| Place { topic, partition, offset });
        Some(Line { latency_ms, record, ..line(What::Seen, &followed.row, &followed.topic) })
    }

    fn expire(&mut self) {
        self.followed.retain(|_, followed| followed.is_open() || !followed.seen);
        while self.followed.len() > MOST_FOLLOWED {
            let oldest =
                self.followed.values().min_by_key(|followed| followed.row.id).map(|followed| followed.row.event_id);
            oldest.and_then(|oldest| self.followed.remove(&oldest));
        }
    }
}

impl Followed {
    fn is_open(&self) -> bool {
        !matches!(self.shown_state.as_str(), "PUBLISHED" | "DEAD")
    }
}

fn line(what: What, row: &Row, topic: &Result<String, String>) -> Line {
    let (topic, topic_error) = (topic.clone().ok(), topic.clone().err());
    Line {
        what,
        id: row.id,
        event_id: row.event_id,
        entity_type: row.entity_type.clone(),
        entity_id: row.entity_id.clone(),
        event_type: row.event_type.clone(),
        topic,
        topic_error,
        latency_ms: row.age_ms,
        record: None,
        error: None,
    }
}

/// Returns the seconds since 1970 by this machine's clock.
fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
