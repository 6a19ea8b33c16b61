//! Counts pending and held events by lane, route and reason, and measures the rate of publishing. Each query is bounded.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::store::held::{self, Held};
use crate::store::pending::pending;
use crate::store::read_only::read;
use event_outbox::names::Names;

/// The number of first pending rows that [`head`] counts by lane and route.
pub(crate) const HEAD_LIMIT: i64 = 100_000;

/// The number of first pending rows that the rate is measured by. A relay settles fewer than these in a second.
const FLOW_LIMIT: i64 = 200_000;

/// The pending rows of one lane and one route.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadGroup {
    pub(crate) lane: i16,
    pub(crate) entity_type: String,
    pub(crate) event_type: String,
    pub(crate) topic: Option<String>,
    pub(crate) pending: i64,
    pub(crate) oldest_s: f64,
}

/// Counts the first [`HEAD_LIMIT`] pending rows by lane and route.
pub(crate) async fn head(conn: &mut PgConnection, names: &Names) -> Result<Vec<HeadGroup>, sqlx::Error> {
    let query = format!(
        "select lane::int8, entity_type, event_type, topic, count(*), \
         greatest(0, extract(epoch from clock_timestamp() - min(created_at)))::float8 \
         from {} head group by 1, 2, 3, 4 order by 5 desc limit 10000",
        pending(names, "id, lane, entity_type, event_type, topic, created_at", "true", HEAD_LIMIT)
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(HeadGroup {
                lane: row.try_get::<i64, _>(0)? as i16,
                entity_type: row.try_get(1)?,
                event_type: row.try_get(2)?,
                topic: row.try_get(3)?,
                pending: row.try_get(4)?,
                oldest_s: row.try_get(5)?,
            })
        })
        .collect()
}

/// The events that are held for one reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct HeldGroup {
    #[serde(flatten)]
    pub(crate) held: Held,
    /// As claims have counted them.
    pub(crate) events: i64,
    /// The number of entities that are held one by one; missing if the hold is of a whole topic.
    pub(crate) entities: Option<i64>,
    /// One of the entities, as `type/id`.
    pub(crate) example: Option<String>,
    pub(crate) oldest_s: f64,
}

impl HeldGroup {
    /// Returns the counts as text, such as `7 events of 2 entities`.
    pub(crate) fn count(&self) -> String {
        match self.entities {
            Some(entities) => format!("{} events of {entities} entities", self.events),
            None => format!("{} events", self.events),
        }
    }
}

/// Returns the held events by reason, the largest group first.
pub(crate) async fn held(conn: &mut PgConnection, names: &Names) -> Result<Vec<HeldGroup>, sqlx::Error> {
    let query = format!(
        "select {columns}, sum(h.events)::int8, nullif(count(*) filter (where h.kind in ('row', 'entity')), 0), \
         min(concat_ws('/', h.entity_type, h.entity_id)) filter (where h.kind = 'entity'), \
         greatest(0, extract(epoch from clock_timestamp() - min(h.since)))::float8 \
         from {} h group by {columns} order by sum(h.events) desc, {columns} limit 100",
        names.companion("hold"),
        columns = held::COLUMNS,
    );
    let rows = read(conn, &query).await?;
    rows.iter()
        .map(|row| {
            Ok(HeldGroup {
                held: Held::from_row(row, 0)?.ok_or(sqlx::Error::RowNotFound)?,
                events: row.try_get(held::COLUMN_COUNT)?,
                entities: row.try_get(held::COLUMN_COUNT + 1)?,
                example: row.try_get(held::COLUMN_COUNT + 2)?,
                oldest_s: row.try_get(held::COLUMN_COUNT + 3)?,
            })
        })
        .collect()
}

/// Where the outbox stood when a measurement began.
#[derive(Debug, Clone)]
pub(crate) struct FlowMark {
    at: Instant,
    /// The highest id of the pending rows that were counted.
    cut: i64,
    counted: i64,
    /// The highest id of the table.
    highest: i64,
}

/// The rates of insertion and publishing between two measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Flow {
    /// Events a second that stopped being pending. Most of them were published.
    pub(crate) settled_per_s: f64,
    /// Events a second that were inserted.
    pub(crate) inserted_per_s: f64,
    /// The seconds between the two measurements.
    pub(crate) over_s: f64,
}

/// Takes the first measurement.
pub(crate) async fn mark(conn: &mut PgConnection, names: &Names) -> Result<FlowMark, sqlx::Error> {
    let outbox = names.outbox();
    let query = format!(
        "select count(*), coalesce(max(id), 0)::int8, coalesce((select id from {outbox} order by id desc limit 1), 0)::int8 \
         from {} head",
        pending(names, "id", "true", FLOW_LIMIT)
    );
    let rows = read(conn, &query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok(FlowMark { at: Instant::now(), counted: row.try_get(0)?, cut: row.try_get(1)?, highest: row.try_get(2)? })
}

/// Takes the second measurement: counts the rows of the first one that are still pending, and the rows inserted since that are not.
pub(crate) async fn flow(conn: &mut PgConnection, names: &Names, mark: &FlowMark) -> Result<Flow, sqlx::Error> {
    let (outbox, FlowMark { cut, highest, .. }) = (names.outbox(), mark);
    let query = format!(
        "select (select count(*) from {} head where id <= {cut}), \
         count(*), count(*) filter (where status <> 'PENDING') \
         from (select status from {outbox} where id > {highest} order by id limit 1000000) new",
        pending(names, "id", "true", FLOW_LIMIT)
    );
    let rows = read(conn, &query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let (left, new, gone): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let over = mark.at.elapsed().max(Duration::from_millis(1)).as_secs_f64();
    // Rows below the cut that were released or committed late would make the difference negative.
    let settled = (mark.counted - left).max(0) + gone;
    Ok(Flow { settled_per_s: settled as f64 / over, inserted_per_s: new as f64 / over, over_s: over })
}
