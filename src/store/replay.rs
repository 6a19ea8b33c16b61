//! Finds events to publish again by walking the ids of outbox and archive. Each page is read in a read-only transaction that ends before
//! anything is sent. No row is locked or changed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use uuid::Uuid;

use crate::store::discarded::is_discarded;
use crate::store::read_only::{read, read_within};
use crate::store::routes;
use event_outbox::envelope::headers::PARTITION;
use event_outbox::event::{BadHeaders, EventHeaders, EventId, OutboxId, Payload, StoredEvent};
use event_outbox::names::{Names, literal};
use event_outbox::route::TopicTemplate;

/// The number of rows that a step of the walk reads.
pub(crate) const STEP: i64 = 2_000;

/// The time limit of a step. A step that takes longer waits for a lock.
const STEP_WITHIN: Duration = Duration::from_secs(30);

/// A filter of events. An event has to meet all conditions that are given.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Filter {
    pub(crate) entity: Option<String>,
    pub(crate) entity_type: Option<String>,
    #[serde(rename = "type")]
    pub(crate) event_type: Option<String>,
    /// The topic that the event is routed to.
    pub(crate) topic: Option<String>,
    /// The earliest `created_at`.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) until: Option<DateTime<Utc>>,
    /// Selects DEAD events instead of published ones.
    pub(crate) dead: bool,
}

impl Filter {
    /// Returns true if the filter has no condition.
    pub(crate) fn is_empty(&self) -> bool {
        [&self.entity, &self.entity_type, &self.event_type, &self.topic].iter().all(|part| part.is_none())
            && self.since.is_none()
            && self.until.is_none()
            && !self.dead
    }

    fn condition(&self, template: &TopicTemplate) -> String {
        let state = if self.dead {
            format!("status = 'DEAD' and not {}", is_discarded())
        } else {
            "status = 'PUBLISHED'".to_owned()
        };
        let mut all = vec![state];
        for (column, value) in
            [("entity_id", &self.entity), ("entity_type", &self.entity_type), ("event_type", &self.event_type)]
        {
            all.extend(value.as_ref().map(|value| format!("{column} is not distinct from {}", literal(value))));
        }
        all.extend(
            self.topic.as_ref().map(|topic| format!("{} = {}", routes::topic_sql(template, ""), literal(topic))),
        );
        for (comparison, moment) in [(">=", self.since), ("<", self.until)] {
            all.extend(moment.map(|moment| format!("created_at {comparison} '{}'", moment.to_rfc3339())));
        }
        all.join(" and ")
    }
}

/// The tables and the condition of a walk.
#[derive(Debug)]
pub(crate) struct Walk {
    outbox: String,
    /// The archive; `None` if it is left out.
    archive: Option<String>,
    condition: String,
}

/// The result of a step.
#[derive(Debug)]
pub(crate) struct Step {
    /// The last id that the step read; `None` at the end.
    pub(crate) last: Option<i64>,
    pub(crate) found: Vec<Found>,
}

/// An event of the filter, without its contents.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) id: i64,
    pub(crate) archived: bool,
    pub(crate) entity_type: String,
    pub(crate) event_type: String,
    pub(crate) topic: Option<String>,
    /// The partition that the row names; `None` also if it names none that can be.
    pub(crate) partition: Option<i32>,
}

impl Walk {
    pub(crate) fn new(names: &Names, filter: &Filter, template: &TopicTemplate, with_archive: bool) -> Self {
        let archive = with_archive.then(|| names.companion("archive"));
        Self { outbox: names.outbox(), archive, condition: filter.condition(template) }
    }

    /// Returns true if this user may read the archive.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn may_read_archive(conn: &mut PgConnection, names: &Names) -> Result<bool, sqlx::Error> {
        let archive = literal(&names.companion("archive"));
        let sql = format!("select coalesce(has_table_privilege(to_regclass({archive}), 'select'), false)");
        read(conn, &sql).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }

    /// Returns the highest id of the tables.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn highest(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let highest = |table: &String| format!("(select max(id) from {table})");
        let all: Vec<_> = [Some(&self.outbox), self.archive.as_ref()].into_iter().flatten().map(highest).collect();
        let sql = format!("select coalesce(greatest({}), 0)", all.join(", "));
        read(conn, &sql).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }

    /// Reads the next ids above `from`, up to `upto`.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn step(&self, conn: &mut PgConnection, from: i64, upto: i64) -> Result<Step, sqlx::Error> {
        let (condition, partition) = (&self.condition, literal(PARTITION));
        let part = |table: &String, archived: bool| {
            format!(
                "(select id, {archived} as archived, {condition} as wanted, entity_type, event_type, topic, \
                   case when {condition} then headers::jsonb ->> {partition} end as partition from {table} \
                 where id > {from} and id <= {upto} order by id limit {STEP})"
            )
        };
        let mut parts = vec![part(&self.outbox, false)];
        parts.extend(self.archive.as_ref().map(|archive| part(archive, true)));
        // An event that was restored from the archive by hand is in both tables. The outbox's row sorts first and is used.
        let sql = format!(
            "with page as materialized (select * from ({}) u order by id, archived limit {STEP}) \
             select (select max(id) from page), f.id, f.archived, f.entity_type, f.event_type, f.topic, f.partition \
             from (select 1) one left join page f on f.wanted order by f.id, f.archived",
            parts.join(" union all ")
        );
        let rows = read_within(conn, &sql, STEP_WITHIN.as_secs() as u32).await?;
        let last = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        let mut found: Vec<Found> = Vec::new();
        for row in rows {
            let Some(id) = row.try_get::<Option<i64>, _>(1)? else { continue };
            if found.last().is_none_or(|before| before.id != id) {
                found.push(Found {
                    id,
                    archived: row.try_get(2)?,
                    entity_type: row.try_get(3)?,
                    event_type: row.try_get(4)?,
                    topic: row.try_get(5)?,
                    partition: row
                        .try_get::<Option<&str>, _>(6)?
                        .and_then(|named| named.parse().ok())
                        .filter(|named| *named >= 0),
                });
            }
        }
        Ok(Step { last, found })
    }

    /// Returns the rows of these events in the order of their ids; only the first rows if all of them exceed `bytes`.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn rows(
        &self,
        conn: &mut PgConnection,
        found: &[Found],
        bytes: usize,
    ) -> Result<Vec<Stored>, sqlx::Error> {
        let ids: Vec<i64> = found.iter().map(|found| found.id).collect();
        let condition = &self.condition;
        let select = |table: &String| {
            // Checks the condition again: an operator may have retried an event meanwhile. `infinity` has no number; it becomes chrono's
            // latest time, as the relay sends it.
            format!(
                "select id, event_id, entity_type, entity_id, event_type, event_version, payload::text, payload_bytes, headers::text, \
                 topic, case when isfinite(created_at) then (extract(epoch from created_at) * 1000000)::int8 end \
                 from {table} where id = any($1) and {condition}"
            )
        };
        // Reads both tables: retention may have moved an event since it was found.
        let parts: Vec<_> = [Some(&self.outbox), self.archive.as_ref()].into_iter().flatten().map(select).collect();
        let sql = format!("{} order by 1", parts.join(" union all "));
        begin(conn).await?;
        let query = sqlx::query(AssertSqlSafe(sql)).bind(ids).persistent(false);
        let (mut rows, mut size) = (Vec::new(), 0);
        {
            let mut stream = query.fetch(&mut *conn);
            while let Some(row) = stream.try_next().await? {
                // Rows beyond the limit are read and dropped; the next call returns them.
                if size < bytes {
                    let row = Stored::from_row(&row)?;
                    size += row.size();
                    rows.push(row);
                }
            }
        }
        conn.execute("commit").await?;
        Ok(rows)
    }
}

async fn begin(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = "begin read only; set local search_path = pg_catalog, pg_temp; set local jit = off; set local enable_seqscan = off; set local lock_timeout = '5s'; \
               set local statement_timeout = '30s'";
    conn.execute(sqlx::raw_sql(sql)).await.map(drop)
}

/// A row of the outbox or the archive.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) id: i64,
    event_id: Uuid,
    entity_type: String,
    entity_id: Option<String>,
    event_type: String,
    event_version: i32,
    payload: Option<String>,
    payload_bytes: Option<Vec<u8>>,
    headers: String,
    topic: Option<String>,
    created_us: Option<i64>,
}

impl Stored {
    fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get(0)?,
            event_id: row.try_get(1)?,
            entity_type: row.try_get(2)?,
            entity_id: row.try_get(3)?,
            event_type: row.try_get(4)?,
            event_version: row.try_get(5)?,
            payload: row.try_get(6)?,
            payload_bytes: row.try_get(7)?,
            headers: row.try_get::<Option<String>, _>(8)?.unwrap_or_else(|| "{}".to_owned()),
            topic: row.try_get(9)?,
            created_us: row.try_get(10)?,
        })
    }

    /// Returns the bytes of payload and headers.
    pub(crate) fn size(&self) -> usize {
        self.payload.as_ref().map_or(0, String::len)
            + self.payload_bytes.as_ref().map_or(0, Vec::len)
            + self.headers.len()
    }

    /// Returns the event with one more header. It replaces a header of the same name.
    ///
    /// # Errors
    /// [`BadHeaders`] if the event's own headers are not an object of strings.
    pub(crate) fn event<'a>(&'a self, header: (&'a str, &'a str)) -> Result<StoredEvent<'a>, BadHeaders> {
        let own = EventHeaders::parse(&self.headers)?;
        let own: Vec<(String, String)> = own.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let added = [(header.0.to_owned(), header.1.to_owned())];
        let headers = own.into_iter().filter(|(name, _)| name != header.0).chain(added).collect();
        let payload = match (&self.payload, &self.payload_bytes) {
            (Some(json), _) => Payload::Json(json.as_bytes()),
            (None, Some(bytes)) => Payload::Bytes(bytes),
            (None, None) => Payload::Tombstone,
        };
        Ok(StoredEvent {
            id: OutboxId(self.id),
            event_id: EventId(self.event_id),
            entity_type: &self.entity_type,
            entity_id: self.entity_id.as_deref(),
            event_type: &self.event_type,
            event_version: self.event_version,
            payload,
            headers,
            topic: self.topic.as_deref(),
            created_at: self.created_us.and_then(DateTime::from_timestamp_micros).unwrap_or(DateTime::<Utc>::MAX_UTC),
        })
    }
}
