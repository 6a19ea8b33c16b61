//! Finds which kinds of events an outbox has, for people whose selection has matched nothing.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};

use crate::store::pending::pending;
use crate::store::read_only::read;
use crate::store::routes;
use event_outbox::names::{Names, literal};
use event_outbox::route::TopicTemplate;

/// The number of youngest events, and of first pending ones, that are looked at.
const LOOKED_AT: u32 = 2_000;

/// Events of one type that go to one topic, as far as the sample shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) entity_type: String,
    pub(crate) event_type: String,
    pub(crate) topic: String,
    pub(crate) events: i64,
}

/// Returns the kinds of the youngest and of the first pending events, the most frequent first. Events without a legal topic are left out.
///
/// # Errors
/// Any database error.
pub(crate) async fn kinds(
    conn: &mut PgConnection,
    names: &Names,
    template: &TopicTemplate,
) -> Result<Vec<Kind>, sqlx::Error> {
    let columns = "id, entity_type, event_type, topic";
    let query = format!(
        "select entity_type, event_type, topic, count(*) from (\
           (select {columns} from {} order by id desc limit {LOOKED_AT}) union (select {columns} from {} first)) sample \
         group by 1, 2, 3 order by 4 desc limit 1000",
        names.outbox(),
        pending(names, columns, "true", i64::from(LOOKED_AT))
    );
    let mut kinds: BTreeMap<[String; 3], i64> = BTreeMap::new();
    for row in read(conn, &query).await? {
        let (entity_type, event_type): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if let Ok(topic) = routes::resolve(template, &entity_type, &event_type, row.try_get(2)?) {
            *kinds.entry([topic, event_type, entity_type]).or_default() += row.try_get::<i64, _>(3)?;
        }
    }
    let kinds = kinds.into_iter();
    let mut kinds: Vec<_> = kinds
        .map(|([topic, event_type, entity_type], events)| Kind { entity_type, event_type, topic, events })
        .collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.events));
    Ok(kinds)
}

/// Returns the ids of entities of the youngest and of the first pending events. An id of more than 200 characters is cut.
///
/// # Errors
/// Any database error.
pub(crate) async fn entities(conn: &mut PgConnection, names: &Names) -> Result<Vec<String>, sqlx::Error> {
    let query = format!(
        "select distinct left(entity_id, 200) from (\
           (select id, entity_id from {} order by id desc limit {LOOKED_AT}) union (select id, entity_id from {} first)) sample \
         where entity_id is not null",
        names.outbox(),
        pending(names, "id, entity_id", "true", i64::from(LOOKED_AT))
    );
    read(conn, &query).await?.iter().map(|row| row.try_get(0)).collect()
}

/// Returns true if an event of the entity is pending.
///
/// # Errors
/// Any database error.
pub(crate) async fn is_pending(
    conn: &mut PgConnection,
    names: &Names,
    entity_type: Option<&str>,
    entity_id: &str,
) -> Result<bool, sqlx::Error> {
    let of_type = entity_type.map_or_else(String::new, |of| format!(" and entity_type = {}", literal(of)));
    let of_entity = format!("entity_id = {}{of_type}", literal(entity_id));
    let query = format!("select id from {} first limit 1", pending(names, "id", &of_entity, 1));
    Ok(!read(conn, &query).await?.is_empty())
}
