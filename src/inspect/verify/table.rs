//! Reads the rows of the table, page by page in the order of ids, and writes nothing. Each page has its own read-only transaction, so that
//! no old snapshot holds vacuum back and no lock is kept.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row};
use uuid::Uuid;

use crate::inspect::verify::VerifyError;
use crate::inspect::verify::compare::Horizon;
use crate::inspect::verify::fact::{Fact, RowFact};
use crate::inspect::verify::reading::Reading;
use crate::inspect::verify::topics::TopicNames;
use crate::lane::murmur2::murmur2;
use crate::resend::rate::Rate;
use crate::store::search_path::SET_LOCAL;
use event_outbox::Names;
use event_outbox::event::{EventHeaders, EventId, OutboxId, Payload, StoredEvent};
use event_outbox::ledger::{Fingerprint, RowStatus};
use event_outbox::route::TopicTemplate;

/// The number of rows of a page. Their payloads are read one after the other.
const PAGE_ROWS: i64 = 1000;

/// The margin before `--since`: rows this much older are read as well. `created_at` is the start of the transaction, which may have
/// allocated the ids of its rows this much later.
const SINCE_MARGIN: Duration = Duration::from_secs(15 * 60);

/// The time limit of a page. A page that takes longer has met a lock, or the table lacks an index.
const STATEMENT_TIMEOUT: &str = "30s";

const COLUMNS: &str = "id, event_id, entity_type, entity_id, topic, status, available_at is not null, \
                       published_at, created_at, payload::text, payload_bytes, headers::jsonb ->> 'outbox-partition'";

/// Reads rows and keeps the facts that the comparison needs.
#[derive(Debug)]
pub(crate) struct TableReader<'a> {
    outbox: String,
    audit: (String, String),
    template: &'a TopicTemplate,
    reading: &'a Reading,
    key: Option<&'a str>,
    since: Option<DateTime<Utc>>,
}

/// The state of the audit table, which names the rows that an operator has retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audits {
    /// The outbox has no audit table.
    None,
    Read,
    /// The user lacks the right to read the table.
    Forbidden,
}

/// The range of ids in the table when the verification begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// The highest id to read.
    pub(crate) upto: i64,
    /// The start of the verification by the database's clock.
    pub(crate) now: DateTime<Utc>,
    /// The id before the first one to read.
    pub(crate) from: i64,
}

impl<'a> TableReader<'a> {
    pub(crate) fn new(
        names: &Names,
        template: &'a TopicTemplate,
        reading: &'a Reading,
        key: Option<&'a str>,
        since: Option<DateTime<Utc>>,
    ) -> Self {
        let audit = (names.part_raw("audit_row"), names.companion("audit_row"));
        Self { outbox: names.outbox(), audit, template, reading, key, since }
    }

    /// Returns the range of ids to read.
    ///
    /// # Errors
    /// Returns any database error.
    pub(crate) async fn extent(&self, conn: &mut PgConnection) -> Result<Extent, sqlx::Error> {
        begin(conn).await?;
        let sql = format!("select coalesce(min(id), 1), coalesce(max(id), 0), clock_timestamp() from {}", self.outbox);
        let row = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_one(&mut *conn).await?;
        let (lowest, upto): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let mut extent = Extent { upto, now: row.try_get(2)?, from: lowest - 1 };
        if let Some(since) = self.since {
            extent.from = self.before(conn, since - SINCE_MARGIN, extent).await?;
        }
        commit(conn).await?;
        Ok(extent)
    }

    /// Finds an id below which all rows are older than `moment`, except rows of very long transactions. This is a binary search by id,
    /// because there is no index on `created_at`.
    async fn before(&self, conn: &mut PgConnection, moment: DateTime<Utc>, extent: Extent) -> Result<i64, sqlx::Error> {
        let sql = format!("select id, created_at from {} where id > $1 and id <= $2 order by id limit 1", self.outbox);
        let (mut low, mut high) = (extent.from, extent.upto);
        while high - low > PAGE_ROWS {
            let middle = low + (high - low) / 2;
            let query = sqlx::query(AssertSqlSafe(sql.as_str())).bind(middle).bind(high).persistent(false);
            match query.fetch_optional(&mut *conn).await? {
                Some(row) if row.try_get::<DateTime<Utc>, _>(1)? < moment => low = row.try_get(0)?,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Reads every row of the extent, page by page. `visit` receives the facts of each row, and the last id after each page.
    ///
    /// # Errors
    /// Returns any database error and any error of `visit`.
    pub(crate) async fn read(
        &self,
        conn: &mut PgConnection,
        extent: Extent,
        topics: &mut TopicNames,
        rate: &mut Rate,
        mut visit: impl FnMut(Option<(EventId, Fact)>, i64) -> Result<(), VerifyError>,
    ) -> Result<Horizon, VerifyError> {
        let mut horizon = Horizon { lowest_id: i64::MAX, oldest: extent.now.timestamp_micros() };
        let last = format!(
            "select max(id), count(*) from (select id from {} where id > $1 and id <= $2 order by id limit $3) page",
            self.outbox
        );
        let rows = format!(
            "select {COLUMNS} from {} where id > $1 and id <= $2 and ($3::text is null or entity_id = $3)",
            self.outbox
        );
        let mut at = extent.from;
        loop {
            begin(conn).await?;
            let page = sqlx::query(AssertSqlSafe(last.as_str())).bind(at).bind(extent.upto).bind(rate.page(PAGE_ROWS));
            let page = page.persistent(false).fetch_one(&mut *conn).await?;
            let Some(end) = page.try_get::<Option<i64>, _>(0)? else { break };
            let query = sqlx::query(AssertSqlSafe(rows.as_str())).bind(at).bind(end).bind(self.key).persistent(false);
            let mut rows = query.fetch(&mut *conn);
            while let Some(row) = rows.try_next().await? {
                let (event, fact) = self.fact(&row, topics, &mut horizon)?;
                if let Some(fact) = fact {
                    visit(Some((event, Fact::Row(fact))), end)?;
                }
            }
            drop(rows);
            commit(conn).await?;
            at = end;
            visit(None, at)?;
            tokio::time::sleep(rate.spend(page.try_get(1)?)).await;
        }
        commit(conn).await?;
        Ok(horizon)
    }

    /// Reads rows by id that committed after their page was read.
    ///
    /// # Errors
    /// Returns any database error.
    pub(crate) async fn again(
        &self,
        conn: &mut PgConnection,
        ids: &[i64],
        topics: &mut TopicNames,
    ) -> Result<Vec<(EventId, RowFact)>, VerifyError> {
        let sql = format!("select {COLUMNS} from {} where id = any($1)", self.outbox);
        let mut found = Vec::new();
        let mut unused = Horizon { lowest_id: 0, oldest: 0 };
        begin(conn).await?;
        let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(ids).persistent(false).fetch(&mut *conn);
        while let Some(row) = rows.try_next().await? {
            let (event, fact) = self.fact(&row, topics, &mut unused)?;
            found.extend(fact.map(|fact| (event, fact)));
        }
        drop(rows);
        commit(conn).await?;
        Ok(found)
    }

    /// Returns the entity of each row as `type/id`, for the examples.
    ///
    /// # Errors
    /// Returns any database error.
    pub(crate) async fn entities(
        &self,
        conn: &mut PgConnection,
        ids: &[i64],
    ) -> Result<Vec<(i64, String)>, sqlx::Error> {
        let sql = format!(
            "select id, entity_type || '/' || entity_id from {} where id = any($1) and entity_id is not null",
            self.outbox
        );
        begin(conn).await?;
        let found = sqlx::query_as(AssertSqlSafe(sql)).bind(ids).persistent(false).fetch_all(&mut *conn).await?;
        commit(conn).await?;
        Ok(found)
    }

    /// Returns the latest `published_at` of these rows in microseconds since 1970; `None` if the table has none of them.
    ///
    /// # Errors
    /// Returns any database error.
    pub(crate) async fn published_at(&self, conn: &mut PgConnection, ids: &[i64]) -> Result<Option<i64>, sqlx::Error> {
        let sql = format!("select max(published_at) from {} where id = any($1)", self.outbox);
        begin(conn).await?;
        let query = sqlx::query_scalar::<_, Option<DateTime<Utc>>>(AssertSqlSafe(sql)).bind(ids).persistent(false);
        let latest = query.fetch_one(&mut *conn).await?;
        commit(conn).await?;
        Ok(latest.map(|latest| latest.timestamp_micros()))
    }

    /// Reads from the audit table which events an operator's command set to PENDING again. The table may be missing or unreadable.
    ///
    /// # Errors
    /// Returns any database error and any error of `visit`.
    pub(crate) async fn audits(
        &self,
        conn: &mut PgConnection,
        names: &Names,
        mut visit: impl FnMut(EventId) -> Result<(), VerifyError>,
    ) -> Result<Audits, VerifyError> {
        begin(conn).await?;
        let readable: Option<bool> = sqlx::query_scalar(
            "select has_table_privilege(c.oid, 'select') from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = $1 and c.relname = $2",
        )
        .bind(names.schema_raw())
        .bind(&self.audit.0)
        .persistent(false)
        .fetch_optional(&mut *conn)
        .await?;
        if readable == Some(true) {
            let sql = format!("select event_id from {} where action <> 'discarded'", self.audit.1);
            let mut audits = sqlx::query_scalar::<_, Uuid>(AssertSqlSafe(sql)).persistent(false).fetch(&mut *conn);
            while let Some(event) = audits.try_next().await? {
                visit(EventId(event))?;
            }
        }
        commit(conn).await?;
        Ok(match readable {
            None => Audits::None,
            Some(true) => Audits::Read,
            Some(false) => Audits::Forbidden,
        })
    }

    /// Returns the facts about a row, or `None` for a row whose topic is not verified. The horizon takes all rows into account.
    fn fact(
        &self,
        row: &PgRow,
        topics: &mut TopicNames,
        horizon: &mut Horizon,
    ) -> Result<(EventId, Option<RowFact>), VerifyError> {
        let (id, event_id) = (row.try_get(0)?, row.try_get(1)?);
        let entity_type: &str = row.try_get(2)?;
        let entity_id: Option<&str> = row.try_get(3)?;
        let status = match row.try_get::<&str, _>(5)? {
            "PUBLISHED" => RowStatus::Published,
            "DEAD" => RowStatus::Dead,
            _ => RowStatus::Pending,
        };
        let published_at = row.try_get::<Option<DateTime<Utc>>, _>(7)?.map_or(i64::MAX, |at| at.timestamp_micros());
        if status == RowStatus::Published {
            horizon.lowest_id = horizon.lowest_id.min(id);
            horizon.oldest = horizon.oldest.min(published_at);
        }
        let created_at: DateTime<Utc> = row.try_get(8)?;
        let event = StoredEvent {
            id: OutboxId(id),
            event_id: EventId(event_id),
            entity_type,
            entity_id,
            event_type: "",
            event_version: 1,
            payload: Payload::Tombstone,
            headers: EventHeaders::default(),
            topic: row.try_get(4)?,
            created_at,
        };
        let mut scratch = String::new();
        // A row without a legal topic cannot be published; the relay marks it DEAD.
        let topic = self.template.resolve(&event, &mut scratch).ok().and_then(|name| topics.index(name));
        let Some(topic) = topic else { return Ok((event.event_id, None)) };
        let fact = RowFact {
            id,
            topic,
            status,
            scheduled: row.try_get(6)?,
            outside: self.since.is_some_and(|since| created_at < since),
            fingerprint: self.reading.row_fingerprint(entity_id, row.try_get(9)?, row.try_get(10)?),
            entity: entity_id.map(|entity_id| digest(entity_type, entity_id)),
            key_hash: entity_id.map(|entity_id| murmur2(entity_id.as_bytes())),
            partition: named(row.try_get(11)?),
            published_at,
        };
        Ok((event.event_id, Some(fact)))
    }
}

/// Returns the partition that a row's header names. The relay refuses a row whose header has anything else.
fn named(header: Option<&str>) -> Option<i32> {
    header?.parse().ok().filter(|partition| *partition >= 0)
}

fn digest(entity_type: &str, entity_id: &str) -> u128 {
    u128::from_be_bytes(Fingerprint::from_key_value(Some(entity_type.as_bytes()), Some(entity_id.as_bytes())).0)
}

async fn begin(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    // Turn off sequential scans, as the relay does everywhere: with stale statistics the planner may prefer one to the primary key.
    let sql = format!(
        "begin isolation level read committed read only; {SET_LOCAL}set local jit = off; set local enable_seqscan = off; \
         set local lock_timeout = '5s'; set local statement_timeout = '{STATEMENT_TIMEOUT}'"
    );
    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop)
}

async fn commit(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute("commit").await.map(drop)
}
