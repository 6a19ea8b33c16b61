//! The topics that events go to: from the configuration, and from a bounded look at the table.

use std::collections::BTreeMap;

use chrono::DateTime;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use event_outbox::Names;
use event_outbox::event::{EventHeaders, EventId, OutboxId, Payload, StoredEvent};
use event_outbox::route::TopicTemplate;

use crate::store::discarded::is_discarded;
use crate::store::pending::pending;
use crate::store::read_only::{read, reads_contents};
use event_outbox::names::literal;

/// The number of youngest events, and of first pending ones, whose route is read.
const EVENTS_ROUTED: u32 = 2_000;

/// How many of the youngest, and of the first pending ones, are measured: their payloads have to be read.
const EVENTS_MEASURED: u32 = 200;

/// The events of a topic, as far as the sample shows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Seen {
    pub(crate) events: i64,
    /// Bytes of the largest payload and its headers.
    pub(crate) largest: i64,
    /// The age in seconds of the oldest event that waits; scheduled events do not count.
    pub(crate) oldest_s: f64,
}

/// An entity type of which an event has no legal topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IllegalRoute {
    pub(crate) entity_type: String,
    pub(crate) error: String,
}

/// The topics, by name; and the routes that are no legal topic.
pub(crate) async fn routes(
    conn: &mut PgConnection,
    names: &Names,
    template: &TopicTemplate,
) -> Result<(BTreeMap<String, Seen>, Vec<IllegalRoute>), sqlx::Error> {
    let (mut topics, mut illegal) = (BTreeMap::new(), Vec::new());
    if let Some(topic) = fixed(template) {
        topics.insert(topic, Seen::default());
    }
    let oldest = "max(extract(epoch from clock_timestamp() - created_at)) \
                  filter (where status = 'PENDING' and available_at is null)";
    let routed = format!("count(*), 0::int8, coalesce({oldest}, 0)::float8");
    let mut queries = vec![sample(names, EVENTS_ROUTED, "", &routed)];
    if reads_contents(conn, names).await? {
        queries.push(sample(
            names,
            EVENTS_MEASURED,
            ", payload, payload_bytes, headers",
            "0::int8, max(coalesce(octet_length(payload::text), octet_length(payload_bytes), 0) + octet_length(headers::text))::int8, \
             0::float8",
        ));
    }
    for query in queries {
        for row in read(conn, &query).await? {
            let (entity_type, event_type): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            match resolve(template, entity_type, event_type, row.try_get(2)?) {
                Ok(topic) => {
                    let seen: &mut Seen = topics.entry(topic).or_default();
                    seen.events += row.try_get::<i64, _>(3)?;
                    seen.largest = seen.largest.max(row.try_get(4)?);
                    seen.oldest_s = seen.oldest_s.max(row.try_get(5)?);
                }
                Err(error) => {
                    let route = IllegalRoute { entity_type: entity_type.to_owned(), error: error.to_string() };
                    if !illegal.contains(&route) {
                        illegal.push(route);
                    }
                }
            }
        }
    }
    Ok((topics, illegal))
}

/// Both ends of the table, by indexes. `measured` begins with a comma unless it is empty.
fn sample(names: &Names, rows: u32, measured: &str, figures: &str) -> String {
    let outbox = names.outbox();
    let columns = format!("entity_type, event_type, topic, status, created_at, available_at{measured}");
    // A discarded event will go nowhere, and stays.
    format!(
        "select entity_type, event_type, topic, {figures} from (\
           (select {columns} from {outbox} where status <> 'DEAD' or not {is_discarded} order by id desc limit {rows}) union all \
           (select {columns} from {} first)) sample \
         group by 1, 2, 3 limit 1000",
        pending(names, &format!("id, {columns}"), "true", i64::from(rows)),
        is_discarded = is_discarded()
    )
}

/// SQL for the topic that the relay routes an event to; `of`: what comes before its columns.
pub(crate) fn topic_sql(template: &TopicTemplate, of: &str) -> String {
    let whole = template.to_string();
    let routed = format!(
        "coalesce({of}topic, replace(replace({}, '{{entity_type}}', {of}entity_type), '{{event_type}}', {of}event_type))",
        literal(template.without_prefix(&whole))
    );
    match template.prefix() {
        "" => routed,
        prefix => format!("({} || {routed})", literal(prefix)),
    }
}

/// The topic of an event of which only the route matters.
pub(crate) fn resolve(
    template: &TopicTemplate,
    entity_type: &str,
    event_type: &str,
    topic: Option<&str>,
) -> Result<String, event_outbox::route::BadTopic> {
    let event = StoredEvent {
        id: OutboxId(0),
        event_id: EventId(Uuid::nil()),
        entity_type,
        entity_id: None,
        event_type,
        event_version: 1,
        payload: Payload::Tombstone,
        headers: EventHeaders::default(),
        topic,
        created_at: DateTime::UNIX_EPOCH,
    };
    template.resolve(&event, &mut String::new()).map(str::to_owned)
}

/// The topic of a template without placeholders.
fn fixed(template: &TopicTemplate) -> Option<String> {
    let one = resolve(template, "a", "a", None).ok()?;
    (resolve(template, "b", "c", None).ok()? == one).then_some(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_template_without_placeholders_names_its_topic() {
        let fixed = |template: &str| fixed(&template.parse().expect("a template"));
        assert_eq!(fixed("orders"), Some("orders".to_owned()));
        assert_eq!(fixed("{entity_type}-events"), None);
        assert_eq!(fixed("{event_type}"), None);
    }
}
