//! Removing what was published, and what was applied, long ago: in small steps, each a transaction of its own.
//!
//! Nothing tells the age of an event but its row: an index on `published_at` would cost every mark. Ids are published nearly in order,
//! so the outbox is walked by its primary key from the lowest id, and a walk ends at a step whose events are all too young. The
//! inbox is walked by its pages: it is keyed by random ids.
//!
//! A step never waits for a claim nor makes one wait: it takes PUBLISHED rows, which claims do not lock, and skips locked ones.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use event_outbox::names::{Names, literal};

/// The second key of the advisory lock that prunes a table. Lanes are from 0.
const LOCK: i32 = -1;

/// What a step may spend: a table that is locked is left alone, and a server that is slow gets less to do.
const SETTINGS: &str = "set local search_path = pg_catalog; set local jit = off; set local synchronous_commit = off; \
                        set local enable_seqscan = off; set local enable_sort = off; set local enable_bitmapscan = off; \
                        set local lock_timeout = '200ms'; set local statement_timeout = '10s'; \
                        set local idle_in_transaction_session_timeout = '20s'";

/// All columns but `lane`, which is generated: the archive holds it all the same.
const COLUMNS: &str = "id, event_id, entity_type, entity_id, event_type, event_version, payload, payload_bytes, headers, topic, \
                       available_at, created_at, status, published_at, attempts, last_error, lane, xid, due";

/// What is done with an event that is old enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    Delete,
    Archive,
    /// It is only counted.
    Count,
}

/// What a step of the walk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Events looked at; fewer than asked for at the end of the table.
    pub(crate) walked: i64,
    /// Id of the last of them.
    pub(crate) last: i64,
    pub(crate) removed: i64,
    /// One of them may be removed before long, being too young or about to be published: those after them are alike, nearly all.
    pub(crate) young: bool,
}

/// Looks at up to `limit` events above `from` and removes those published longer than `after` ago. `None` while another relay prunes.
///
/// # Errors
/// Any database error; the step has changed nothing then.
pub(crate) async fn step(
    conn: &mut PgConnection,
    names: &Names,
    removal: Removal,
    after: Duration,
    from: i64,
    limit: i64,
) -> Result<Option<Step>, sqlx::Error> {
    let mut tx = conn.begin().await?;
    if !alone(&mut tx, &names.outbox()).await? {
        return Ok(None);
    }
    let outbox = names.outbox();
    // What claims have passed and is pending is held: it may stay so for long.
    let scanned = format!("(select coalesce(min(scanned_through), 0) from {})", names.companion("lane"));
    // The rows' payloads are not touched. `least` passes over the missing `published_at` of a row that is not published.
    let walk = format!(
        "select count(*), coalesce(max(id), 0), \
           coalesce(bool_or(least(created_at, published_at) >= {CUTOFF} or status = 'PENDING' and due is null and id > {scanned}), false), \
           coalesce(array_agg(id) filter (where status = 'PUBLISHED' and published_at < {CUTOFF}), '{{}}') \
         from (select id, status, due, created_at, published_at from {outbox} where id > $2 order by id limit $3) walked"
    );
    let row = sqlx::query(AssertSqlSafe(walk))
        .bind(after.as_secs_f64())
        .bind(from)
        .bind(limit)
        .persistent(false)
        .fetch_one(&mut *tx)
        .await?;
    let old: Vec<i64> = row.try_get(3)?;
    let mut step = Step { walked: row.try_get(0)?, last: row.try_get(1)?, young: row.try_get(2)?, removed: 0 };
    if removal == Removal::Count {
        step.removed = old.len() as i64;
    } else if !old.is_empty() {
        step.removed = remove(&mut tx, names, removal, after, &old).await?;
    }
    tx.commit().await?;
    Ok(Some(step))
}

/// `$1` is the age in seconds.
const CUTOFF: &str = "now() - make_interval(secs => $1)";

async fn remove(
    conn: &mut PgConnection,
    names: &Names,
    removal: Removal,
    after: Duration,
    old: &[i64],
) -> Result<i64, sqlx::Error> {
    let (outbox, control) = (names.outbox(), names.companion("control"));
    // An event restored from the archive by hand and archived a second time is there already.
    let archived = match removal {
        Removal::Archive => format!(
            ", kept as (insert into {} ({COLUMNS}) select {COLUMNS} from gone on conflict do nothing)",
            names.companion("archive")
        ),
        Removal::Delete | Removal::Count => String::new(),
    };
    let returning = if removal == Removal::Archive { COLUMNS } else { "id" };
    // Looked at once more: an operator may have retried one since, and another session may have locked one.
    let sql = format!(
        "with gone as (delete from {outbox} where ctid = any (array(\
           select ctid from {outbox} where id = any ($2) and status = 'PUBLISHED' and published_at < {CUTOFF} \
           for update skip locked)) returning {returning}){archived} \
         select count(*), max(id) from gone"
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(after.as_secs_f64())
        .bind(old)
        .persistent(false)
        .fetch_one(&mut *conn)
        .await?;
    // `verify` takes an event on the topic that is not in the table for pruned up to here.
    if let Some(highest) = row.try_get::<Option<i64>, _>(1)? {
        let sql = format!("update {control} set value = {highest} where name = 'pruned' and value < {highest}");
        conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    }
    row.try_get(0)
}

/// The highest id that was ever pruned; 0: none.
///
/// # Errors
/// Any database error.
pub(crate) async fn pruned_up_to(conn: &mut PgConnection, names: &Names) -> Result<i64, sqlx::Error> {
    let sql = format!("select value from {} where name = 'pruned'", names.companion("control"));
    conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?.try_get(0)
}

/// What a step over the inbox found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageStep {
    pub(crate) removed: i64,
    /// Where the next step begins; `None` at the end of the table.
    pub(crate) next: Option<i64>,
}

/// Looks at `pages` pages of the inbox from page `from` and removes rows older than `after`, at most `limit` of them. `None` while
/// another relay prunes.
///
/// # Errors
/// Any database error; the step has changed nothing then.
pub(crate) async fn processed_step(
    conn: &mut PgConnection,
    names: &Names,
    removal: Removal,
    after: Duration,
    from: i64,
    pages: i64,
    limit: i64,
) -> Result<Option<PageStep>, sqlx::Error> {
    let mut tx = conn.begin().await?;
    let processed = names.processed();
    if !alone(&mut tx, &processed).await? {
        return Ok(None);
    }
    let end = from + pages;
    let old = format!(
        "select ctid from {processed} where ctid >= '({from},0)'::tid and ctid < '({end},0)'::tid \
         and processed_at < {CUTOFF} limit {limit}"
    );
    let sql = match removal {
        Removal::Count => format!("select count(*) from ({old}) old"),
        Removal::Delete | Removal::Archive => format!(
            "with gone as (delete from {processed} where ctid = any (array({old})) returning 1) select count(*) from gone"
        ),
    };
    let removed = sqlx::query_scalar(AssertSqlSafe(sql)).bind(after.as_secs_f64()).persistent(false);
    let removed: i64 = removed.fetch_one(&mut *tx).await?;
    let size =
        format!("select pg_relation_size({}::regclass) / current_setting('block_size')::int8", literal(&processed));
    let size: i64 = tx.fetch_one(sqlx::raw_sql(AssertSqlSafe(size))).await?.try_get(0)?;
    tx.commit().await?;
    // What a full step left over is taken by the next one; counting leaves it there.
    let next = if removed == limit && removal != Removal::Count { from } else { end };
    Ok(Some(PageStep { removed, next: (next < size).then_some(next) }))
}

/// Settles the transaction's bounds; true when this one prunes `table` until it ends.
async fn alone(conn: &mut PgConnection, table: &str) -> Result<bool, sqlx::Error> {
    // The table's oid is unsigned and the lock's key is signed: the same 32 bits.
    let oid = format!("{}::regclass::oid::int8", literal(table));
    let sql = format!(
        "{SETTINGS}; select pg_try_advisory_xact_lock(\
         ({oid} - case when {oid} > 2147483647 then 4294967296 else 0 end)::int4, {LOCK})"
    );
    conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?.try_get(0)
}
