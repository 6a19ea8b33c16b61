//! Claims the rows of a batch: reads and locks them in the order in which they are published. ADR 10 has the reasons. No statement here may
//! rely on an assumption about time.
//!
//! A claim is one statement with one snapshot. It always takes both the late rows and the new ones. Late rows are at or below
//! `scanned_through` and were not seen by the progress's snapshot; new rows are above `scanned_through`.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Executor, Row, ValueRef};
use uuid::Uuid;

use crate::lane::LaneRange;
use crate::lane::progress::Progress;
use crate::lane::snapshot::Snapshot;
use crate::store::session::Sequence;
use crate::store::settle::Ctid;
use event_outbox::code::Code;
use event_outbox::event::{EventHeaders, EventId, OutboxId, Payload, StoredEvent};
use event_outbox::names::Names;

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// A condition for rows that are not scheduled: no claim has reached them, or they wait behind a hold. `due` is set for scheduled rows,
/// which a separate statement claims.
pub(crate) const ORDINARY: &str = "status = 'PENDING' and due is null";

/// The largest entity id, entity type, event type and topic in bytes. A row that exceeds this limit goes DEAD without being read.
pub(crate) const NAME_MAX_BYTES: usize = 64 * 1024;

/// The largest text of `headers` in bytes.
pub(crate) const HEADERS_MAX_BYTES: usize = 1024 * 1024;

/// The microseconds from the Unix epoch to the epoch of Postgres (2000-01-01), from which a binary `timestamptz` counts.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The index of the summary's first column.
const SUMMARY: usize = 17;

/// The statements that find work, rendered once per relay.
#[derive(Debug, Clone)]
pub(crate) struct ClaimSql {
    outbox: String,
    last_allocated: String,
    claim: Claiming,
    late: String,
    by_id: Claiming,
    walk: Claiming,
    due: Claiming,
    read: String,
    read_names: String,
    owners: String,
    locked: String,
}

/// The text of a claim, with contents and without them ([`Limits::heads_only`]).
#[derive(Debug, Clone)]
struct Claiming {
    whole: String,
    heads: String,
}

/// The limits of a claim.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most rows.
    pub(crate) rows: usize,
    /// The most bytes as they are stored, that is, compressed.
    pub(crate) stored_bytes: i64,
    /// The largest text or `payload_bytes` of one row in bytes. A larger one is not read.
    pub(crate) row_bytes: i64,
    /// The most bytes of text that are kept in memory. Rows beyond them are dropped.
    pub(crate) kept_bytes: usize,
    /// Leaves out names and contents, which are then read row by row.
    pub(crate) heads_only: bool,
    pub(crate) persistent: bool,
}

/// The facts that a statement saw, besides the rows it locked.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) snapshot: Snapshot,
    /// The id of the relay's own transaction, if it has one.
    pub(crate) own_xid: Option<u64>,
    /// The first late ids, at most one more than the limit.
    pub(crate) late: Vec<i64>,
    /// The ids of the rows that the statement tried to lock, ascending.
    pub(crate) chosen: Vec<i64>,
    /// The number of rows that were found. It is higher than the length of `chosen` if the limit of bytes was reached.
    pub(crate) candidates: i64,
    /// The stored bytes of the chosen rows.
    pub(crate) stored_bytes: i64,
    /// The last id that was allocated: see [`crate::lane::progress::Scan`].
    pub(crate) last_allocated: i64,
}

/// The rows of a claim, in the order of their ids.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    pub(crate) rows: Vec<ClaimedRow>,
    pub(crate) summary: Summary,
    /// The bytes of text that arrived.
    pub(crate) text_bytes: usize,
    /// True if more bytes arrived than may be kept. The rows must not be used then.
    pub(crate) overflowed: bool,
}

/// The current state of a row that was chosen and could not be locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) id: i64,
    pub(crate) lane: i16,
    /// The row's entity id; `None` also for one that is too long to be compared.
    pub(crate) entity_id: Option<String>,
}

/// The result of a probe.
#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) snapshot: Snapshot,
    /// True if a row can be claimed.
    pub(crate) has_work: bool,
    /// True if a scheduled row is due.
    pub(crate) is_due: bool,
    /// The counter of pauses: changes whenever an operator changes what is held or paused.
    pub(crate) generation: i64,
    pub(crate) last_allocated: i64,
    /// The highest id of the table, if it was asked for.
    pub(crate) highest: Option<i64>,
}

impl Claiming {
    fn query(&self, limits: Limits) -> PgQuery<'_> {
        sqlx::query(AssertSqlSafe(if limits.heads_only { self.heads.as_str() } else { self.whole.as_str() }))
    }
}

impl ClaimSql {
    pub(crate) fn new(names: &Names, sequence: &Sequence) -> Self {
        let outbox = names.outbox();
        let last_allocated = last_allocated(&outbox, sequence);
        let both = |candidates: &str, late: &str| {
            let text = |heads| claim(&outbox, candidates, late, &last_allocated, heads);
            Claiming { whole: text(false), heads: text(true) }
        };
        // $1 xmax and $2 running transactions of the progress's snapshot, $3 scanned_through, $4 and $5 lanes, $6 rows, $7 upto. `xid <
        // xmax of the claim's snapshot`: rows of a restored backup may carry transaction ids that are not allocated here yet. Two arms,
        // because `or` would walk the whole index. `offset 0` keeps the planner from merging an arm with the outer sort, for which it would
        // walk the primary key.
        let arms = |select: &str, condition: &str| {
            format!(
                "(select {select} from {outbox} where xid >= $1::text::xid8 and xid < pg_snapshot_xmax(pg_current_snapshot()) \
                    and id <= $3 {condition} and lane between $4 and $5 order by xid offset 0) \
                 union all \
                 (select {select} from {outbox} where xid = any (array(\
                    select x::xid8 from unnest($2::text[]) x where pg_visible_in_snapshot(x::xid8, pg_current_snapshot()))) \
                    and id <= $3 {condition} and lane between $4 and $5 order by xid offset 0)"
            )
        };
        let late = format!("select id from ({}) late order by id limit $6 + 1", arms("id", ""));
        // `lane + 0` and the sort orders keep the planner from the index of late rows, which it would walk for the lane or the id alone.
        let lanes = format!("{ORDINARY} and lane + 0 between $4 and $5");
        let claim = both(
            &format!(
                "(select {CANDIDATE_COLUMNS} from {outbox} where id = any (array(select id from late order by id limit $6)) and {lanes} \
                  order by id limit $6) \
                 union all \
                 (select {CANDIDATE_COLUMNS} from {outbox} where id > $3 and id <= $7 and {lanes} and (select count(*) from late) <= $6 \
                  order by id limit greatest($6 - (select count(*) from late), 0))"
            ),
            &late,
        );
        // $1 ids, $4 and $5 lanes, $6 rows, $7 the sweep's snapshot. A row that became pending again after the ids were read is not visible
        // in this snapshot: it is claimed as a late row.
        let by_id = both(
            &format!(
                "select {CANDIDATE_COLUMNS} from {outbox} where id = any ($1::int8[]) and {lanes} \
                 and pg_visible_in_snapshot(xid, (select $7::text::pg_snapshot)) order by id limit $6"
            ),
            NO_LATE,
        );
        // $1 from, $2 upto, $7 snapshot, $4 and $5 lanes, $6 rows. The subquery parses the snapshot once, and not once per row.
        let walk = both(
            &format!(
                "select {CANDIDATE_COLUMNS} from {outbox} where id >= $1 and id <= $2 and {lanes} \
                 and pg_visible_in_snapshot(xid, (select $7::text::pg_snapshot)) order by id limit $6"
            ),
            NO_LATE,
        );
        // $4 and $5 lanes, $6 rows. Scheduled rows do not follow the order of ids: those that were due first come first.
        let due = both(
            &format!(
                "select {CANDIDATE_COLUMNS} from {outbox} where status = 'PENDING' and due <= now() and lane between $4 and $5 \
                 order by due, id limit $6"
            ),
            NO_LATE,
        );
        Self {
            claim,
            by_id,
            walk,
            due,
            // $7 swept_through, $8 the sweep's snapshot.
            late: format!(
                "select id from ({}) late order by id limit $6",
                arms("id", "and id > $7 and pg_visible_in_snapshot(xid, (select $8::text::pg_snapshot))")
            ),
            read: read(&outbox, TEXTS),
            read_names: read(&outbox, NO_TEXTS),
            owners: format!(
                "select id, lane, case when octet_length(entity_id) <= {NAME_MAX_BYTES} then entity_id end from {outbox} \
                 where id = any ($1) and {ORDINARY} and lane + 0 between $2 and $3 order by id"
            ),
            locked: format!(
                "select id from {outbox} where id = any ($1) and {ORDINARY} order by id for update skip locked"
            ),
            last_allocated,
            outbox,
        }
    }

    /// Returns the claim's text for EXPLAIN: `$1` xmax, `$2` running, `$3` scanned_through, `$4` and `$5` lanes, `$6` rows, `$7` upto, `$8`
    /// stored bytes, `$9` bytes of a row.
    pub(crate) fn claim_text(&self) -> &str {
        &self.claim.whole
    }

    /// Looks for work without locks and without writes, so that an idle relay takes no transaction id and writes no WAL.
    ///
    /// The probe is one simple query, planned each time. A plan cached while the table was small would scan the table when it is large, and
    /// a pooler cannot split a simple query over two servers. `settings_hold` means that the session already has the worker's settings. The
    /// server's timeout is shorter than the relay's: a backend that waits for a lock does not notice that its client is gone.
    #[expect(clippy::too_many_arguments, reason = "one call; a struct would only rename them")]
    pub(crate) async fn probe(
        &self,
        conn: &mut PgConnection,
        generation: &str,
        progress: &Progress,
        lanes: LaneRange,
        upto: i64,
        asks_highest: bool,
        settings_hold: bool,
    ) -> Result<Probed, sqlx::Error> {
        let mut sql = self.probe_text(generation, progress, lanes, upto, asks_highest);
        if !settings_hold {
            sql = format!(
                "begin read only; set local search_path = pg_catalog, pg_temp; set local jit = off; set local enable_seqscan = off; \
                 set local enable_bitmapscan = off; set local lock_timeout = '5s'; set local statement_timeout = '14s'; {sql}; commit"
            );
        }
        let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(conn).await?;
        Ok(Probed {
            snapshot: snapshot(&row, 0)?,
            has_work: row.try_get(1)?,
            is_due: row.try_get(2)?,
            generation: row.try_get(3)?,
            last_allocated: row.try_get(4)?,
            highest: row.try_get(5)?,
        })
    }

    /// Returns the text of a probe. `generation` is an SQL expression. `asks_highest` adds the highest id of the table, which may be above
    /// the last one allocated.
    pub(crate) fn probe_text(
        &self,
        generation: &str,
        progress: &Progress,
        lanes: LaneRange,
        upto: i64,
        asks_highest: bool,
    ) -> String {
        let Self { outbox, .. } = self;
        let Progress { scanned_through, snapshot, .. } = progress;
        let lanes = format!("lane between {} and {}", lanes.first, lanes.last);
        let running = snapshot.running.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        // Late rows that are settled count as work as well: a claim moves the snapshot past them.
        let has_work = format!(
            "exists (select from {outbox} where id > {scanned_through} and id <= {upto} and {ORDINARY} and {lanes} order by id limit 1) \
             or exists (select from (select id from {outbox} where xid >= '{xmax}'::xid8 and xid < pg_snapshot_xmax(pg_current_snapshot()) \
                  and id <= {scanned_through} and {lanes} order by xid offset 0) ended) \
             or exists (select from (select id from {outbox} where xid = any (array(select x::xid8 from unnest('{{{running}}}'::text[]) x \
                  where pg_visible_in_snapshot(x::xid8, pg_current_snapshot()))) and id <= {scanned_through} and {lanes} \
                  order by xid offset 0) listed)",
            xmax = snapshot.xmax,
        );
        let last_allocated = self.last_allocated.replace("$3", &scanned_through.to_string());
        let highest = match asks_highest {
            true => format!("(select id from {outbox} order by id desc limit 1)"),
            false => "null::int8".to_owned(),
        };
        format!(
            "select pg_current_snapshot()::text, {has_work}, \
             exists (select from {outbox} where status = 'PENDING' and due <= now() and {lanes} order by due limit 1), \
             ({generation})::int8, ({last_allocated})::int8, {highest}"
        )
    }

    /// Claims late and new rows.
    pub(crate) async fn claim(
        &self,
        conn: &mut PgConnection,
        progress: &Progress,
        lanes: LaneRange,
        upto: i64,
        limits: Limits,
    ) -> Result<Claimed, sqlx::Error> {
        let query = self
            .claim
            .query(limits)
            .bind(progress.snapshot.xmax.to_string())
            .bind(progress.snapshot.running.iter().map(u64::to_string).collect::<Vec<_>>())
            .bind(progress.scanned_through);
        take(bounded(query, lanes, limits).bind(upto), conn, limits).await
    }

    /// Returns the first `most` ids that a sweep still has to take, ascending.
    pub(crate) async fn late_ids(
        &self,
        conn: &mut PgConnection,
        progress: &Progress,
        lanes: LaneRange,
        most: usize,
        persistent: bool,
    ) -> Result<Vec<i64>, sqlx::Error> {
        let Some(sweep) = &progress.sweep else { return Ok(Vec::new()) };
        sqlx::query_scalar(AssertSqlSafe(self.late.as_str()))
            .bind(progress.snapshot.xmax.to_string())
            .bind(progress.snapshot.running.iter().map(u64::to_string).collect::<Vec<_>>())
            .bind(progress.scanned_through)
            .bind(lanes.first)
            .bind(lanes.last)
            .bind(most as i64)
            .bind(sweep.through)
            .bind(sweep.snapshot.to_string())
            .persistent(persistent)
            .fetch_all(conn)
            .await
    }

    /// Claims the rows of `ids` that can still be published in these lanes.
    pub(crate) async fn by_id(
        &self,
        conn: &mut PgConnection,
        ids: &[i64],
        seen_by: &Snapshot,
        lanes: LaneRange,
        limits: Limits,
    ) -> Result<Claimed, sqlx::Error> {
        let query = self.by_id.query(limits).bind(ids).bind(0_i64).bind(0_i64);
        take(bounded(query, lanes, limits).bind(seen_by.to_string()), conn, limits).await
    }

    /// Claims rows in `from..=upto` that the progress counts as settled or held.
    pub(crate) async fn walk(
        &self,
        conn: &mut PgConnection,
        from: i64,
        upto: i64,
        seen_by: &Snapshot,
        lanes: LaneRange,
        limits: Limits,
    ) -> Result<Claimed, sqlx::Error> {
        let query = self.walk.query(limits).bind(from).bind(upto).bind(0_i64);
        take(bounded(query, lanes, limits).bind(seen_by.to_string()), conn, limits).await
    }

    /// Claims scheduled rows that are due.
    pub(crate) async fn due(
        &self,
        conn: &mut PgConnection,
        lanes: LaneRange,
        limits: Limits,
    ) -> Result<Claimed, sqlx::Error> {
        let query = self.due.query(limits).bind(0_i64).bind(0_i64).bind(0_i64);
        take(bounded(query, lanes, limits).bind(0_i64), conn, limits).await
    }

    /// Reads the contents of a locked row in a savepoint. An error of the row itself leaves the transaction usable.
    pub(crate) async fn read(
        &self,
        conn: &mut PgConnection,
        row: Ctid,
        row_bytes: i64,
    ) -> Result<Option<ClaimedRow>, sqlx::Error> {
        self.read_by(&self.read, conn, row, row_bytes).await
    }

    /// Reads a locked row without its contents, in a savepoint.
    pub(crate) async fn read_names(
        &self,
        conn: &mut PgConnection,
        row: Ctid,
        row_bytes: i64,
    ) -> Result<Option<ClaimedRow>, sqlx::Error> {
        self.read_by(&self.read_names, conn, row, row_bytes).await
    }

    async fn read_by(
        &self,
        sql: &str,
        conn: &mut PgConnection,
        row: Ctid,
        row_bytes: i64,
    ) -> Result<Option<ClaimedRow>, sqlx::Error> {
        // Sends the savepoint by hand: a script began the transaction, so sqlx does not know of it, and would begin and commit another one.
        conn.execute("savepoint one_row").await?;
        let query = sqlx::query(AssertSqlSafe(sql)).bind(row).bind(row_bytes).persistent(false);
        let found = query.fetch_optional(&mut *conn).await;
        let end = if found.is_ok() { "release savepoint one_row" } else { "rollback to savepoint one_row" };
        match found {
            // The connection is unusable then, and the first error is the cause.
            Err(error) if error.as_database_error().is_none() => Err(error),
            found => {
                conn.execute(end).await?;
                Ok(found?.map(|row| ClaimedRow { row, unread: None }))
            }
        }
    }

    /// Returns the current state of the rows `ids` that are still pending in these lanes.
    pub(crate) async fn skipped(
        &self,
        conn: &mut PgConnection,
        ids: &[i64],
        lanes: LaneRange,
        persistent: bool,
    ) -> Result<Vec<Skipped>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.owners.as_str())).bind(ids).bind(lanes.first).bind(lanes.last);
        let rows = query.persistent(persistent).fetch_all(conn).await?;
        rows.iter()
            .map(|row| Ok(Skipped { id: row.try_get(0)?, lane: row.try_get(1)?, entity_id: row.try_get(2)? }))
            .collect()
    }

    /// Locks the pending rows of `ids` that no other session has locked, and returns their ids.
    pub(crate) async fn lockable(
        &self,
        conn: &mut PgConnection,
        ids: &[i64],
        persistent: bool,
    ) -> Result<Vec<i64>, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(self.locked.as_str())).bind(ids).persistent(persistent).fetch_all(conn).await
    }
}

/// Returns SQL for the last id that was allocated. If that is unknown, or ids have gone back, the highest id of the table counts if it is
/// higher.
fn last_allocated(outbox: &str, sequence: &Sequence) -> String {
    let allocated = sequence.last_allocated();
    let highest = format!("(select id from {outbox} order by id desc limit 1)");
    format!(
        "select case when allocated.id >= $3 then allocated.id else greatest(allocated.id, {highest}, 0) end from (select ({allocated}) as id) allocated"
    )
}

const NO_LATE: &str = "select null::int8 as id where false";

/// The columns that are read of a row before it is locked. `size` is the row's size in the table, known without decompressing anything.
const CANDIDATE_COLUMNS: &str = "id, ctid as row_ctid, \
    coalesce(pg_column_size(payload), 0) + coalesce(pg_column_size(payload_bytes), 0) + pg_column_size(headers) + 100 as size";

/// The columns of a row, except its contents.
const ROW_COLUMNS: &str = "ctid as row_ctid, id, event_id, entity_type, entity_id, event_type, event_version, topic, created_at, lane, available_at";

/// The contents as text; this conversion decompresses them.
const TEXTS: &str = "payload::text as text, headers::text as header_text, payload_bytes as bytes";
const NO_TEXTS: &str = "null::text as text, null::text as header_text, null::bytea as bytes";

/// Returns a claim. `candidates` selects rows (id, row_ctid, size). The claim locks, reads and returns those within the limit of bytes, in
/// any order, and one more row with the summary, all by one snapshot. `$8` stored bytes, `$9` bytes of a row.
fn claim(outbox: &str, candidates: &str, late: &str, last_allocated: &str, heads: bool) -> String {
    let texts = if heads { NO_TEXTS } else { TEXTS };
    // Postgres checks the conditions on a locked row again if the row has changed since the snapshot. Older minor versions of Postgres may
    // return a version of the row that was not chosen, which has another ctid.
    format!(
        "with late as materialized ({late}), \
         candidates as materialized ({candidates}), \
         chosen as materialized (\
           select id, row_ctid, size from (\
             select id, row_ctid, size, sum(size) over (order by id rows unbounded preceding) - size as before from candidates) sized \
           where before < $8) \
         {contents} from (\
           select {ROW_COLUMNS}, {texts}, octet_length(payload_bytes) as bytes_len from {outbox} \
            where ctid = any (array(select row_ctid from chosen)) and status = 'PENDING' and lane + 0 between $4 and $5 for update skip locked) o \
         union all \
         select null::tid, null::int8, null::uuid, null, null, null, null::int4, null, null::timestamptz, null::int2, \
           null, null::bytea, null, null::int8, null::bool, null::timestamptz, null::bool, \
           pg_current_snapshot()::text, pg_current_xact_id_if_assigned()::text, \
           array(select id from late order by id), array(select id from chosen order by id), \
           (select count(*) from candidates), (select coalesce(sum(size), 0) from chosen)::int8, ({last_allocated})::int8",
        contents = contents(
            // For a row that is read by itself, not even the names are read here: one of them may not be valid text in the client's
            // encoding.
            !heads,
            "$9",
            "row_ctid in (select row_ctid from chosen), null::text, null::text, null::int8[], null::int8[], null::int8, null::int8, null::int8"
        ),
    )
}

/// Returns a select of the columns of a [`ClaimedRow`] from [`ROW_COLUMNS`], texts and `bytes_len`. `tail` says whether the row was chosen,
/// and adds the columns of the summary. Names that are too long are left out. So is a payload that is too large for any record; only its
/// length is returned.
fn contents(has_names: bool, row_bytes: &str, tail: &str) -> String {
    let name = |column: &str| match has_names {
        true => format!("case when octet_length({column}) <= {NAME_MAX_BYTES} then {column} end"),
        false => "null::text".to_owned(),
    };
    format!(
        "select row_ctid, id, event_id, {}, {}, {}, event_version, {}, created_at, lane, \
           case when octet_length(text) <= {row_bytes} then text end, case when bytes_len <= {row_bytes} then bytes end, \
           case when octet_length(header_text) <= {HEADERS_MAX_BYTES} then header_text end, \
           greatest(octet_length(text), bytes_len)::int8, \
           octet_length(entity_type) > {NAME_MAX_BYTES} or coalesce(octet_length(entity_id), 0) > {NAME_MAX_BYTES} \
             or octet_length(event_type) > {NAME_MAX_BYTES} or coalesce(octet_length(topic), 0) > {NAME_MAX_BYTES}, \
           available_at, {tail}",
        name("entity_type"),
        name("entity_id"),
        name("event_type"),
        name("topic"),
    )
}

/// Returns SQL that reads the row at `$1`; `$2` bytes of a row.
fn read(outbox: &str, texts: &str) -> String {
    format!(
        "{} from (select {ROW_COLUMNS}, {texts}, octet_length(payload_bytes) as bytes_len from {outbox} where ctid = $1 offset 0) o",
        contents(true, "$2", "true")
    )
}

/// Binds the lanes and the rows, which have the same parameter numbers in each claim.
fn bounded<'q>(query: PgQuery<'q>, lanes: LaneRange, limits: Limits) -> PgQuery<'q> {
    query.bind(lanes.first).bind(lanes.last).bind(limits.rows as i64)
}

/// Binds the limits of bytes, which are the last parameters of each claim, and reads the rows.
async fn take(query: PgQuery<'_>, conn: &mut PgConnection, limits: Limits) -> Result<Claimed, sqlx::Error> {
    let query = query.bind(limits.stored_bytes).bind(limits.row_bytes).persistent(limits.persistent);
    collect(query.fetch(conn), limits.kept_bytes).await
}

/// Collects the rows, which arrive in the order of their ctids, and sorts them by id.
async fn collect(
    mut rows: BoxStream<'_, Result<PgRow, sqlx::Error>>,
    kept_bytes: usize,
) -> Result<Claimed, sqlx::Error> {
    let mut claimed = Claimed::default();
    while let Some(row) = rows.try_next().await? {
        if row.try_get_raw(0)?.is_null() {
            claimed.summary = summary(&row)?;
            continue;
        }
        let row = ClaimedRow { row, unread: None };
        if !row.flag(16)? {
            // The row has changed since the claim's snapshot. It is neither the chosen version nor skipped; the next claim reads its new
            // version.
            continue;
        }
        claimed.text_bytes += row.byte_len();
        if claimed.text_bytes > kept_bytes && !claimed.rows.is_empty() {
            claimed.overflowed = true;
            claimed.rows.truncate(1);
        } else {
            claimed.rows.push(row);
        }
    }
    let mut keyed = Vec::with_capacity(claimed.rows.len());
    for row in claimed.rows.drain(..) {
        keyed.push((row.id()?, row));
    }
    keyed.sort_unstable_by_key(|(id, _)| *id);
    claimed.rows.extend(keyed.into_iter().map(|(_, row)| row));
    Ok(claimed)
}

fn summary(row: &PgRow) -> Result<Summary, sqlx::Error> {
    let own_xid: Option<String> = row.try_get(SUMMARY + 1)?;
    Ok(Summary {
        snapshot: snapshot(row, SUMMARY)?,
        own_xid: own_xid.and_then(|xid| xid.parse().ok()),
        late: row.try_get(SUMMARY + 2)?,
        chosen: row.try_get(SUMMARY + 3)?,
        candidates: row.try_get(SUMMARY + 4)?,
        stored_bytes: row.try_get(SUMMARY + 5)?,
        last_allocated: row.try_get(SUMMARY + 6)?,
    })
}

fn snapshot(row: &PgRow, column: usize) -> Result<Snapshot, sqlx::Error> {
    row.try_get::<&str, _>(column)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// The reason why a row can never become a record, whatever the brokers answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RowFault {
    #[error("the {column} is not valid UTF-8, which Kafka clients expect")]
    NotUtf8 { column: &'static str },
    #[error("its entity id, entity type, event type or topic is longer than {NAME_MAX_BYTES} bytes")]
    NameTooLong,
    #[error("its headers are longer than {HEADERS_MAX_BYTES} bytes")]
    HeadersTooLong,
    #[error(
        "MessageSizeTooLarge: its payload has {bytes} bytes; raise the topic's max.message.bytes and KAFKA_MESSAGE_MAX_BYTES, or discard the event"
    )]
    PayloadTooLong { bytes: i64 },
    #[error("Postgres cannot read it (SQLSTATE {sqlstate})")]
    Unreadable { sqlstate: String },
    #[error("{0}")]
    Headers(String),
}

/// A claimed row in the buffer it arrived in. Its columns are read in place, in Postgres' binary format.
#[derive(Debug)]
pub(crate) struct ClaimedRow {
    row: PgRow,
    /// The fault of a row whose contents could not be read.
    unread: Option<RowFault>,
}

impl RowFault {
    /// Returns the code that the log uses for this fault.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NotUtf8 { .. } | Self::Unreadable { .. } => Code::EventUnreadable,
            Self::NameTooLong | Self::HeadersTooLong => Code::NameTooLong,
            Self::PayloadTooLong { .. } => Code::MessageTooLarge,
            Self::Headers(_) => Code::EventRefused,
        }
    }
}

impl ClaimedRow {
    /// Marks a row whose contents could not be read.
    pub(crate) fn with_fault(self, fault: RowFault) -> Self {
        Self { unread: Some(fault), ..self }
    }

    fn bytes(&self, column: usize) -> Result<Option<&[u8]>, sqlx::Error> {
        let value = self.row.try_get_raw(column)?;
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

    /// Returns `None` for text that is not UTF-8; [`ClaimedRow::fault`] reports it.
    fn text(&self, column: usize) -> Result<Option<&str>, sqlx::Error> {
        Ok(self.bytes(column)?.and_then(|bytes| std::str::from_utf8(bytes).ok()))
    }

    fn flag(&self, column: usize) -> Result<bool, sqlx::Error> {
        Ok(self.bytes(column)?.is_some_and(|bytes| bytes == [1]))
    }

    /// Returns the row's ctid, which does not change while the row is locked.
    pub(crate) fn ctid(&self) -> Result<Ctid, sqlx::Error> {
        self.fixed(0).map(Ctid)
    }

    pub(crate) fn id(&self) -> Result<OutboxId, sqlx::Error> {
        self.fixed(1).map(|bytes| OutboxId(i64::from_be_bytes(bytes)))
    }

    pub(crate) fn event_id(&self) -> Result<EventId, sqlx::Error> {
        self.fixed(2).map(|bytes| EventId(Uuid::from_bytes(bytes)))
    }

    pub(crate) fn entity_type(&self) -> Result<&str, sqlx::Error> {
        self.text(3).map(Option::unwrap_or_default)
    }

    /// Returns the entity id; `None` for a row without an entity, which has no order.
    pub(crate) fn entity_id(&self) -> Result<Option<&str>, sqlx::Error> {
        self.text(4)
    }

    /// Returns the start time of the transaction that inserted the row.
    pub(crate) fn created_at(&self) -> Result<DateTime<Utc>, sqlx::Error> {
        self.fixed(8).map(|bytes| timestamp(i64::from_be_bytes(bytes)))
    }

    /// Returns the time at which the event became due: that of `available_at` for a scheduled event, else `created_at`.
    pub(crate) fn due_at(&self) -> Result<DateTime<Utc>, sqlx::Error> {
        let created_at = self.created_at()?;
        if self.bytes(15)?.is_none() {
            return Ok(created_at);
        }
        let available_at = timestamp(i64::from_be_bytes(self.fixed(15)?));
        // An operator may have had an event published before it was due.
        Ok(created_at.max(available_at.min(Utc::now())))
    }

    pub(crate) fn lane(&self) -> Result<i16, sqlx::Error> {
        self.fixed(9).map(i16::from_be_bytes)
    }

    /// Returns the length of payload and headers, the parts of a row that may be large.
    fn byte_len(&self) -> usize {
        let len = |column| self.bytes(column).ok().flatten().map_or(0, <[u8]>::len);
        len(10) + len(11) + len(12)
    }

    /// Returns the reason why the row can never become a record, if there is one.
    pub(crate) fn fault(&self) -> Result<Option<RowFault>, sqlx::Error> {
        if let Some(fault) = &self.unread {
            return Ok(Some(fault.clone()));
        }
        if self.flag(14)? {
            return Ok(Some(RowFault::NameTooLong));
        }
        for (column, name) in [(3, "entity type"), (4, "entity id"), (5, "event type"), (7, "topic"), (12, "headers")] {
            if self.bytes(column)?.is_some_and(|bytes| std::str::from_utf8(bytes).is_err()) {
                return Ok(Some(RowFault::NotUtf8 { column: name }));
            }
        }
        if self.bytes(12)?.is_none() {
            return Ok(Some(RowFault::HeadersTooLong));
        }
        let payload = self.bytes(10)?.is_some() || self.bytes(11)?.is_some();
        match self.bytes(13)? {
            Some(_) if !payload => {
                Ok(Some(RowFault::PayloadTooLong { bytes: self.fixed(13).map(i64::from_be_bytes)? }))
            }
            _ => Ok(None),
        }
    }

    /// Returns the event without its contents; `None` if its names are too long.
    pub(crate) fn head(&self) -> Result<Option<StoredEvent<'_>>, sqlx::Error> {
        if self.flag(14)? {
            return Ok(None);
        }
        Ok(Some(StoredEvent {
            id: self.id()?,
            event_id: self.event_id()?,
            entity_type: self.entity_type()?,
            entity_id: self.entity_id()?,
            event_type: self.text(5)?.unwrap_or_default(),
            event_version: i32::from_be_bytes(self.fixed(6)?),
            payload: Payload::Tombstone,
            headers: EventHeaders::default(),
            topic: self.text(7)?,
            created_at: self.created_at()?,
        }))
    }

    /// Returns the event, or the row's [`RowFault`]. Headers whose values are not strings are a fault.
    pub(crate) fn event(&self) -> Result<Result<StoredEvent<'_>, RowFault>, sqlx::Error> {
        if let Some(fault) = self.fault()? {
            return Ok(Err(fault));
        }
        let headers = match EventHeaders::parse(self.text(12)?.unwrap_or("{}")) {
            Ok(headers) => headers,
            Err(bad) => return Ok(Err(RowFault::Headers(bad.to_string()))),
        };
        let payload = match (self.bytes(10)?, self.bytes(11)?) {
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
            topic: self.text(7)?,
            created_at: self.created_at()?,
        }))
    }
}

/// Converts a binary `timestamptz`. `infinity` and other values outside chrono's range become the nearest value in the range.
fn timestamp(micros: i64) -> DateTime<Utc> {
    let clamped = micros.saturating_add(POSTGRES_EPOCH_MICROS);
    DateTime::from_timestamp_micros(clamped).unwrap_or(if micros < 0 {
        DateTime::<Utc>::MIN_UTC
    } else {
        DateTime::<Utc>::MAX_UTC
    })
}
