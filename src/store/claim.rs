//! Claiming: the rows of a batch, locked, in the order of publishing.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row, ValueRef};
use uuid::Uuid;

use crate::event::{BadHeaders, EventHeaders, EventId, OutboxId, Payload, StoredEvent};
use crate::lane::LaneRange;
use crate::store::names::Names;
use crate::store::pauses;
use crate::store::session::Sequence;
use crate::store::settle::Ctid;
use crate::store::snapshot::Snapshot;

/// The predicate of the pending index, word for word: the planner proves the index by it.
pub(super) const PENDING: &str = "status = 'PENDING' and (available_at is null or available_at <= created_at)";

/// The predicate of the waiting index, word for word.
pub(super) const WAITING: &str = "status = 'PENDING' and available_at > created_at";

/// What a claim reads of a row; the tally's columns follow.
const COLUMNS: &str = "ctid, id, event_id, entity_type, entity_id, event_type, event_version, payload::text, payload_bytes, \
                       headers::text, topic, created_at, lane";

const NO_TALLY: &str = "null::int8 as rows, null::int8 as last, null::text as snapshot";

/// Where the columns of the tally begin.
const TALLY: usize = 13;

/// Microseconds from the Unix epoch to Postgres' (2000-01-01), in which `timestamptz` travels.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The statements that find work, rendered once per worker.
#[derive(Debug, Clone)]
pub(crate) struct ClaimSql {
    outbox: String,
    lane_table: String,
    drawn: String,
    pauses: String,
    claim: String,
    claim_around: String,
    claim_due: String,
    skipped: String,
}

/// Where a claim looks: above `start` and no higher than `upto`, in these lanes, not at the entities `around` which it is to go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach<'a> {
    pub(crate) start: i64,
    /// `None`: to the end.
    pub(crate) upto: Option<i64>,
    pub(crate) lanes: LaneRange,
    pub(crate) around: &'a [String],
}

/// What a probe saw.
#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) snapshot: Snapshot,
    /// The first row that is pending where it looked.
    pub(crate) first: Option<i64>,
    /// A scheduled row is due.
    pub(crate) due: bool,
    /// Sum over the lanes, and the counter of pauses: changes whenever somebody holds, releases or pauses rows of them.
    pub(crate) generation: i64,
    /// The last event id drawn, read after the snapshot was taken; `None` without the right to read the sequence.
    pub(crate) drawn: Option<i64>,
}

/// The rows a claim ought to have found, by its own snapshot: as many as its limit allows. Others than it found means that rows were
/// passed over.
#[derive(Debug)]
pub(crate) struct Tally {
    /// The claim's.
    pub(crate) snapshot: Snapshot,
    pub(crate) rows: usize,
    /// The last of them.
    pub(crate) last: Option<OutboxId>,
}

/// A pending row the claim did not get: another session has it locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) id: OutboxId,
    pub(crate) entity_id: Option<String>,
}

/// The rows of a claim, and whether the limits cut it.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    pub(crate) rows: Vec<ClaimedRow>,
    /// More may be pending above the last row, within its reach.
    pub(crate) full: bool,
    /// The bytes were the limit: fewer rows the next time, they are all read.
    pub(crate) cut: bool,
    /// Rows read, with those beyond the bytes, and the last of them.
    pub(crate) read: usize,
    pub(crate) last_read: Option<OutboxId>,
    pub(crate) tally: Option<Tally>,
}

impl Claimed {
    /// True when another session has rows locked that the claim ought to have found.
    pub(crate) fn has_passed_over(&self) -> bool {
        self.tally.as_ref().is_some_and(|tally| tally.rows != self.read || tally.last != self.last_read)
    }
}

impl ClaimSql {
    pub(crate) fn new(names: &Names, sequence: &Sequence) -> Self {
        let outbox = names.outbox();
        // `id + 0` is the first column of the pending index: see migration 0001 for why it is not `id`.
        let range = "(id + 0) > $1 and lane between $2 and $3";
        let bounded = format!("{PENDING} and {range} and (id + 0) <= $5");
        let around = |parameter: &str| format!("(entity_id is null or entity_id <> all ({parameter}))");
        Self {
            outbox: outbox.clone(),
            lane_table: names.companion("lane"),
            drawn: sequence.drawn(),
            claim: claim(&outbox, &bounded),
            claim_around: claim(&outbox, &format!("{bounded} and {}", around("$6"))),
            pauses: pauses::counter(names),
            claim_due: format!(
                "select {COLUMNS}, {NO_TALLY} from {outbox} \
                 where {WAITING} and available_at <= now() and lane between $1 and $2 \
                 order by available_at, id limit $3 for update skip locked"
            ),
            skipped: format!(
                "select id, entity_id from {outbox} \
                 where {PENDING} and {range} and (id + 0) <= $4 and {} and id <> all ($6) order by (id + 0)",
                around("$5")
            ),
        }
    }

    /// The claim's text, for EXPLAIN: `$1` start, `$2` and `$3` lanes, `$4` limit, `$5` the last id it may look at.
    pub(crate) fn claim_text(&self) -> &str {
        &self.claim
    }

    /// Looks for work without locks and without writes: an idle relay takes no transaction id and writes no WAL.
    ///
    /// One simple query, planned each time: a plan cached while the table was small would scan it when it is large, and a pooler
    /// cannot tear it apart. `settings_hold`: the session has the worker's settings. The server gives up before the relay does: a backend that waits for a lock does not notice that its
    /// client is gone.
    pub(crate) async fn probe(
        &self,
        conn: &mut PgConnection,
        reach: Reach<'_>,
        settings_hold: bool,
    ) -> Result<Probed, sqlx::Error> {
        let mut sql = self.probe_text(reach);
        if !settings_hold {
            sql = format!(
                "begin read only; set local jit = off; set local enable_seqscan = off; \
                 set local lock_timeout = '5s'; set local statement_timeout = '14s'; {sql}; commit"
            );
        }
        let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(conn).await?;
        Ok(Probed {
            snapshot: snapshot(&row, 0)?,
            first: row.try_get(1)?,
            due: row.try_get(2)?,
            generation: row.try_get(3)?,
            drawn: row.try_get(4)?,
        })
    }

    pub(crate) fn probe_text(&self, reach: Reach<'_>) -> String {
        let Self { outbox, lane_table, drawn, pauses, .. } = self;
        let first = self.first_text(reach);
        let lanes = format!("lane between {} and {}", reach.lanes.first, reach.lanes.last);
        format!(
            "select pg_current_snapshot()::text, ({first}), \
             (select true from {outbox} where {WAITING} and available_at <= now() and {lanes} \
              order by available_at limit 1) is not null, \
             (select sum(generation)::int8 from {lane_table} where {lanes}) + {pauses}, ({drawn})"
        )
    }

    /// The first pending row that a claim could find, whoever has it locked.
    pub(crate) async fn first(&self, conn: &mut PgConnection, reach: Reach<'_>) -> Result<Option<i64>, sqlx::Error> {
        let first = sqlx::raw_sql(AssertSqlSafe(self.first_text(reach))).fetch_optional(conn).await?;
        first.map(|row| row.try_get(0)).transpose()
    }

    fn first_text(&self, Reach { start, upto, lanes, .. }: Reach<'_>) -> String {
        let LaneRange { first, last } = lanes;
        let bound = upto.map(|upto| format!(" and (id + 0) <= {upto}")).unwrap_or_default();
        format!(
            "select id from {} where {PENDING} and (id + 0) > {start}{bound} and lane between {first} and {last} \
             order by (id + 0) limit 1",
            self.outbox
        )
    }

    /// Locks up to `limit` rows and `byte_limit` bytes of payload within `reach`, in the order of their ids. Rows that another session has locked are passed over; the tally tells.
    pub(crate) async fn claim(
        &self,
        conn: &mut PgConnection,
        reach: Reach<'_>,
        limit: usize,
        byte_limit: usize,
        persistent: bool,
    ) -> Result<Claimed, sqlx::Error> {
        let sql = if reach.around.is_empty() { &self.claim } else { &self.claim_around };
        let mut query = sqlx::query(AssertSqlSafe(sql.as_str()))
            .bind(reach.start)
            .bind(reach.lanes.first)
            .bind(reach.lanes.last)
            .bind(limit as i64)
            .bind(reach.upto.unwrap_or(i64::MAX))
            .persistent(persistent);
        if !reach.around.is_empty() {
            query = query.bind(reach.around);
        }
        collect(query.fetch(conn), limit, byte_limit).await
    }

    /// Locks scheduled rows that are due, in the order they became due.
    pub(crate) async fn claim_due(
        &self,
        conn: &mut PgConnection,
        lanes: LaneRange,
        limit: usize,
        byte_limit: usize,
        persistent: bool,
    ) -> Result<Claimed, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.claim_due.as_str()))
            .bind(lanes.first)
            .bind(lanes.last)
            .bind(limit as i64)
            .persistent(persistent);
        collect(query.fetch(conn), limit, byte_limit).await
    }

    /// The pending rows in `start < id <= last` that were not claimed.
    pub(crate) async fn skipped(
        &self,
        conn: &mut PgConnection,
        reach: Reach<'_>,
        last: OutboxId,
        claimed: &[i64],
        persistent: bool,
    ) -> Result<Vec<Skipped>, sqlx::Error> {
        let rows = sqlx::query(AssertSqlSafe(self.skipped.as_str()))
            .bind(reach.start)
            .bind(reach.lanes.first)
            .bind(reach.lanes.last)
            .bind(last.0)
            .bind(reach.around)
            .bind(claimed)
            .persistent(persistent)
            .fetch_all(conn)
            .await?;
        rows.iter().map(|row| Ok(Skipped { id: OutboxId(row.try_get(0)?), entity_id: row.try_get(1)? })).collect()
    }
}

/// The rows `that`, and one more with the tally of what they ought to be: in one statement, so that both go by the same snapshot.
fn claim(outbox: &str, that: &str) -> String {
    format!(
        "select claimed.*, {NO_TALLY} from (\
           select {COLUMNS} from {outbox} where {that} order by (id + 0) limit $4 for update skip locked) claimed \
         union all \
         select null::tid, null::int8, null::uuid, null, null, null, null::int4, null, null::bytea, null, null, null::timestamptz, null::int2, \
           count(*), max(id), pg_current_snapshot()::text \
         from (select id from {outbox} where {that} order by (id + 0) limit $4) ought"
    )
}

/// Rows beyond the bytes are read and dropped: still pending, theirs is the next batch. The first row always fits.
async fn collect(
    mut rows: BoxStream<'_, Result<PgRow, sqlx::Error>>,
    limit: usize,
    byte_limit: usize,
) -> Result<Claimed, sqlx::Error> {
    let (mut claimed, mut bytes) = (Claimed::default(), 0);
    while let Some(row) = rows.try_next().await? {
        if row.try_get_raw(0)?.is_null() {
            claimed.tally = Some(tally(&row)?);
            continue;
        }
        let row = ClaimedRow(row);
        bytes += row.byte_len();
        claimed.read += 1;
        claimed.last_read = Some(row.id()?);
        if bytes > byte_limit && !claimed.rows.is_empty() {
            claimed.cut = true;
        }
        if !claimed.cut {
            claimed.rows.push(row);
        }
    }
    claimed.full = claimed.cut || claimed.rows.len() == limit;
    Ok(claimed)
}

fn tally(row: &PgRow) -> Result<Tally, sqlx::Error> {
    let rows: i64 = row.try_get(TALLY)?;
    let last: Option<i64> = row.try_get(TALLY + 1)?;
    Ok(Tally { snapshot: snapshot(row, TALLY + 2)?, rows: rows as usize, last: last.map(OutboxId) })
}

fn snapshot(row: &PgRow, column: usize) -> Result<Snapshot, sqlx::Error> {
    row.try_get::<&str, _>(column)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// A claimed row in the buffer it arrived in; columns are read in place, in Postgres' binary format.
#[derive(Debug)]
pub(crate) struct ClaimedRow(PgRow);

impl ClaimedRow {
    fn bytes(&self, column: usize) -> Result<Option<&[u8]>, sqlx::Error> {
        let value = self.0.try_get_raw(column)?;
        if value.is_null() {
            return Ok(None);
        }
        value.as_bytes().map(Some).map_err(sqlx::Error::Decode)
    }

    fn fixed<const N: usize>(&self, column: usize) -> Result<[u8; N], sqlx::Error> {
        let bytes = self.bytes(column)?.unwrap_or_default();
        bytes
            .try_into()
            .map_err(|_| sqlx::Error::Decode(format!("column {column} has {} bytes, not {N}", bytes.len()).into()))
    }

    fn text(&self, column: usize) -> Result<Option<&str>, sqlx::Error> {
        match self.bytes(column)? {
            None => Ok(None),
            Some(bytes) => std::str::from_utf8(bytes).map(Some).map_err(|error| sqlx::Error::Decode(error.into())),
        }
    }

    /// Where the row is; stable while it is locked.
    pub(crate) fn ctid(&self) -> Result<Ctid, sqlx::Error> {
        self.fixed(0).map(Ctid)
    }

    pub(crate) fn id(&self) -> Result<OutboxId, sqlx::Error> {
        self.fixed(1).map(|bytes| OutboxId(i64::from_be_bytes(bytes)))
    }

    pub(crate) fn lane(&self) -> Result<i16, sqlx::Error> {
        self.fixed(12).map(i16::from_be_bytes)
    }

    pub(crate) fn event_id(&self) -> Result<EventId, sqlx::Error> {
        self.fixed(2).map(|bytes| EventId(Uuid::from_bytes(bytes)))
    }

    pub(crate) fn entity_type(&self) -> Result<&str, sqlx::Error> {
        self.text(3).map(Option::unwrap_or_default)
    }

    /// `None` for a row without order.
    pub(crate) fn entity_id(&self) -> Result<Option<&str>, sqlx::Error> {
        self.text(4)
    }

    /// When its transaction began.
    pub(crate) fn created_at(&self) -> Result<DateTime<Utc>, sqlx::Error> {
        self.fixed(11).map(|bytes| timestamp(i64::from_be_bytes(bytes)))
    }

    /// Payload and headers: what a row may have much of.
    fn byte_len(&self) -> usize {
        let len = |column| self.bytes(column).ok().flatten().map_or(0, <[u8]>::len);
        len(7) + len(8) + len(9)
    }

    /// The event; headers that are not strings are the row's own fault.
    pub(crate) fn event(&self) -> Result<Result<StoredEvent<'_>, BadHeaders>, sqlx::Error> {
        let headers = match EventHeaders::parse(self.text(9)?.unwrap_or("{}")) {
            Ok(headers) => headers,
            Err(bad) => return Ok(Err(bad)),
        };
        let payload = match (self.bytes(7)?, self.bytes(8)?) {
            (Some(json), _) => Payload::Json(json),
            (None, Some(bytes)) => Payload::Bytes(bytes),
            (None, None) => Payload::Tombstone,
        };
        Ok(Ok(StoredEvent {
            id: self.id()?,
            event_id: self.event_id()?,
            entity_type: self.entity_type()?,
            entity_id: self.entity_id()?,
            event_type: self.text(5)?.unwrap_or_default(),
            event_version: i32::from_be_bytes(self.fixed(6)?),
            payload,
            headers,
            topic: self.text(10)?,
            created_at: self.created_at()?,
        }))
    }
}

/// `timestamptz` in binary; `infinity` and what chrono cannot hold become the nearest it can.
fn timestamp(micros: i64) -> DateTime<Utc> {
    let clamped = micros.saturating_add(POSTGRES_EPOCH_MICROS);
    DateTime::from_timestamp_micros(clamped).unwrap_or(if micros < 0 {
        DateTime::<Utc>::MIN_UTC
    } else {
        DateTime::<Utc>::MAX_UTC
    })
}
