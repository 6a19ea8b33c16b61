//! Explains the route of one event: topic, key, partition and headers of its record, and why. The event is a row, or one that is only thought of.

use std::fmt;

use chrono::DateTime;
use serde::Serialize;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::config::Settings;
use crate::lane::murmur2;
use crate::sink::admission;
use crate::sink::reader::Reader;
use crate::store::read_only::read;
use crate::text;
use event_outbox::Names;
use event_outbox::envelope::headers::PARTITION;
use event_outbox::event::{EventHeaders, EventId, OutboxId, Payload, StoredEvent};
use event_outbox::names::literal;

/// An event of which the route matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Routed {
    /// The outbox id; `None` for an event that is only thought of.
    pub(crate) id: Option<i64>,
    pub(crate) event_id: Uuid,
    pub(crate) entity_type: String,
    pub(crate) entity_id: Option<String>,
    pub(crate) event_type: String,
    pub(crate) event_version: i32,
    /// The text of the column `headers`.
    pub(crate) headers: String,
    pub(crate) topic: Option<String>,
}

/// A part of a record with the reason why it is so.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Part<T> {
    pub(crate) value: T,
    pub(crate) why: String,
}

/// A header of the record.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// The route of an event.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Explained {
    pub(crate) id: Option<i64>,
    /// The topic; null if there is no legal one.
    pub(crate) topic: Part<Option<String>>,
    pub(crate) key: Part<Option<String>>,
    /// The partition; null if it is not known, or differs from record to record.
    pub(crate) partition: Part<Option<i32>>,
    pub(crate) headers: Vec<Header>,
    /// The reason why the event would go DEAD; null if it would be sent.
    pub(crate) refused: Option<String>,
}

/// Reads the row with this outbox id or event id; `None` if there is none.
///
/// # Errors
/// Any database error.
pub(crate) async fn find(conn: &mut PgConnection, names: &Names, wanted: &str) -> Result<Option<Routed>, sqlx::Error> {
    let condition = match (wanted.parse::<i64>(), wanted.parse::<Uuid>()) {
        (Ok(id), _) => format!("id = {id}"),
        (_, Ok(id)) => format!("event_id = {}", literal(&id.to_string())),
        _ => return Ok(None),
    };
    let query = format!(
        "select id, event_id::text, entity_type, entity_id, event_type, event_version::int8, headers::text, topic from {} where {condition}",
        names.outbox()
    );
    let rows = read(conn, &query).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Routed {
        id: Some(row.try_get(0)?),
        event_id: row.try_get::<&str, _>(1)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        entity_type: row.try_get(2)?,
        entity_id: row.try_get(3)?,
        event_type: row.try_get(4)?,
        event_version: row.try_get::<i64, _>(5)? as i32,
        headers: row.try_get(6)?,
        topic: row.try_get(7)?,
    }))
}

/// Explains the route. Asks the brokers for the number of partitions if `settings` has brokers.
pub(crate) fn explain(settings: &Settings, routed: &Routed) -> Explained {
    let key = match &routed.entity_id {
        Some(id) => Part { value: Some(id.clone()), why: "the entity id".to_owned() },
        None => Part { value: None, why: "the event has no entity, so it has no key and no order".to_owned() },
    };
    let none = |why: &str| Part { value: None, why: why.to_owned() };
    let mut explained = Explained {
        id: routed.id,
        topic: Part { value: None, why: String::new() },
        key,
        partition: none("there is no topic"),
        headers: Vec::new(),
        refused: None,
    };
    let headers = match EventHeaders::parse(&routed.headers) {
        Ok(headers) => headers,
        Err(bad) => {
            explained.refused = Some(bad.to_string());
            EventHeaders::default()
        }
    };
    let event = routed.stored(headers);
    let relay = &settings.relay;
    let (mut scratch, mut said) = (String::new(), None);
    match relay.topic.resolve(&event, &mut scratch) {
        Ok(topic) => {
            let why = match &routed.topic {
                Some(_) => "the row's column topic".to_owned(),
                None => format!("RELAY_TOPIC, {}", relay.topic.without_prefix(&relay.topic.to_string())),
            };
            let why = match relay.topic.prefix() {
                "" => why,
                prefix => format!("{why}, behind RELAY_TOPIC_PREFIX {prefix}"),
            };
            explained.topic = Part { value: Some(topic.to_owned()), why };
            said = admission::refusal(&event, topic, relay);
        }
        Err(bad) => {
            explained.topic.why = "no legal name".to_owned();
            said = said.or(Some(bad.to_string()));
        }
    }
    relay.envelope.headers(&event, relay.source.as_deref(), &mut |name, value| {
        explained.headers.push(Header { name: name.to_owned(), value: text::of_bytes(value) });
    });
    explained.refused = explained.refused.or(said);
    if let Some(topic) = explained.topic.value.clone() {
        let (partition, missing) = match event.partition() {
            Ok(Some(named)) => named_partition(settings, &topic, named),
            _ => (partition(settings, &topic, &event), None),
        };
        explained.partition = partition;
        explained.refused = explained.refused.or(missing);
    }
    explained
}

/// Explains the partition that the row names, and returns why the event would be refused if the topic does not have it.
fn named_partition(settings: &Settings, topic: &str, named: i32) -> (Part<Option<i32>>, Option<String>) {
    let part = Part { value: Some(named), why: format!("the row's header {PARTITION}") };
    let partitions = settings.kafka.as_ref().and_then(|kafka| Reader::new(kafka).ok()?.partitions(topic).ok()?.ok());
    // A topic that does not exist may get any number of partitions.
    let count = partitions.filter(|partitions| !partitions.is_empty()).map(|partitions| partitions.len());
    let count = count.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    let missing = count.filter(|count| named >= *count);
    (part, missing.map(|count| admission::no_such_partition(named, topic, count)))
}

fn partition(settings: &Settings, topic: &str, event: &StoredEvent<'_>) -> Part<Option<i32>> {
    let part = |value, why: String| Part { value, why };
    let Some(key) = event.entity_id else {
        return part(None, "without a key, records go to one partition after the other".to_owned());
    };
    let Some(kafka) = &settings.kafka else {
        return part(None, "the brokers are not configured, so the number of partitions is not known".to_owned());
    };
    let partitioner = kafka.partitioner();
    if !partitioner.starts_with("murmur2") {
        return part(None, format!("librdkafka chooses it: KAFKA_PARTITIONER={partitioner}"));
    }
    let count = Reader::new(kafka).and_then(|reader| reader.partitions(topic));
    match count {
        Ok(Ok(partitions)) if !partitions.is_empty() => {
            let count = i32::try_from(partitions.len()).unwrap_or(i32::MAX);
            let value = murmur2::partition(murmur2::murmur2(key.as_bytes()), count);
            part(Some(value), format!("murmur2 of the key, over {count} partitions, as Java's client"))
        }
        Ok(Ok(_)) => part(None, "the topic does not exist".to_owned()),
        Ok(Err(code)) => part(None, format!("the brokers do not show the topic: {code:?}")),
        Err(_) => part(None, "the brokers do not answer, so the number of partitions is not known".to_owned()),
    }
}

impl Routed {
    fn stored<'a>(&'a self, headers: EventHeaders<'a>) -> StoredEvent<'a> {
        StoredEvent {
            id: OutboxId(self.id.unwrap_or_default()),
            event_id: EventId(self.event_id),
            entity_type: &self.entity_type,
            entity_id: self.entity_id.as_deref(),
            event_type: &self.event_type,
            event_version: self.event_version,
            payload: Payload::Tombstone,
            headers,
            topic: self.topic.as_deref(),
            created_at: DateTime::UNIX_EPOCH,
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |value: &Option<String>| {
            value.as_deref().map_or_else(|| "none".to_owned(), |value| text::name(value).to_string())
        };
        writeln!(f, "topic      {}  ({})", name(&self.topic.value), text::sentence(&self.topic.why))?;
        writeln!(f, "key        {}  ({})", name(&self.key.value), text::sentence(&self.key.why))?;
        let partition = self.partition.value.map_or_else(|| "not fixed".to_owned(), |partition| partition.to_string());
        writeln!(f, "partition  {partition}  ({})", text::sentence(&self.partition.why))?;
        for (n, Header { name, value }) in self.headers.iter().enumerate() {
            let label = if n == 0 { "headers" } else { "" };
            writeln!(f, "{label:<9}  {}: {}", text::name(name), text::name(value))?;
        }
        if let Some(refused) = &self.refused {
            writeln!(f, "refused    {}", text::sentence(refused))?;
        }
        Ok(())
    }
}
