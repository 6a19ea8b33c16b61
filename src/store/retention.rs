//! Removes old rows in small steps, each in its own transaction: events published long ago, and the inbox's records of them.
//!
//! Only the row itself shows the age of an event: an index on `published_at` would make every mark more expensive. Ids are published nearly
//! in order. So a walk follows the outbox's primary key from the lowest id, and ends at a step whose events are all too young. The inbox is
//! keyed by random ids, so it is walked by its pages.
//!
//! A step never waits for a claim and never makes one wait: it takes only PUBLISHED rows, which claims do not lock, and skips locked rows.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::store::search_path;
use event_outbox::names::{Names, literal};

/// The settings of a step. A short lock timeout leaves a locked table alone, and a statement timeout limits the work on a slow server.
const SETTINGS: &str = "set local jit = off; set local synchronous_commit = off; \
                        set local enable_seqscan = off; set local enable_sort = off; set local enable_bitmapscan = off; \
                        set local lock_timeout = '200ms'; set local statement_timeout = '10s'; \
                        set local idle_in_transaction_session_timeout = '20s'";

/// All columns of the outbox's own, including `lane`: the outbox generates it, and the archive stores it.
const COLUMNS: &str = "id, event_id, entity_type, entity_id, event_type, event_version, payload, payload_bytes, headers, topic, \
                       available_at, created_at, status, published_at, attempts, last_error, lane, xid, due";

/// The action for an event that is old enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    Delete,
    Archive,
    /// Only counts the event.
    Count,
}

/// The result of one step of a walk over the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Events read; fewer than the limit at the end of the table.
    pub(crate) walked: i64,
    /// The id of the last event read.
    pub(crate) last: i64,
    pub(crate) removed: i64,
    /// True if one of the events may become removable soon: it is too young, or about to be published. The events after it are nearly all
    /// alike.
    pub(crate) young: bool,
}

/// Reads up to `limit` events above `from`, and removes those published longer than `after` ago. Returns `None` while another relay prunes.
///
/// # Errors
/// Any database error; the step has then changed nothing.
pub(crate) async fn step(
    conn: &mut PgConnection,
    names: &Names,
    removal: Removal,
    after: Duration,
    from: i64,
    limit: i64,
) -> Result<Option<Step>, sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    tx.execute(SETTINGS).await?;
    let outbox = names.outbox();
    // A pending row that claims have passed is held, perhaps for long, so it does not end the walk.
    let scanned = format!("(select coalesce(min(scanned_through), 0) from {})", names.companion("lane"));
    // Does not read the payloads. `least` ignores the null `published_at` of an unpublished row.
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
        // Locked only now: a step that finds nothing needs no transaction id.
        if !alone(&mut tx, names, "pruned").await? {
            return Ok(None);
        }
        step.removed = remove(&mut tx, names, removal, after, &old).await?;
    }
    tx.commit().await?;
    Ok(Some(step))
}

/// SQL for the latest time of publication of rows that are old enough. `$1` is the age in seconds.
const CUTOFF: &str = "now() - make_interval(secs => $1)";

async fn remove(
    conn: &mut PgConnection,
    names: &Names,
    removal: Removal,
    after: Duration,
    old: &[i64],
) -> Result<i64, sqlx::Error> {
    let (outbox, control) = (names.outbox(), names.companion("control"));
    let (returning, archived) = match removal {
        Removal::Archive => {
            let own = OwnColumns::read(conn, names).await?;
            (own.all(), format!(", kept as ({})", own.insert(names)))
        }
        Removal::Delete | Removal::Count => ("id".to_owned(), String::new()),
    };
    // Checks the conditions again: meanwhile an operator may have retried a row, and another session may have locked one.
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
    // `verify` regards an event that is on the topic but not in the table as pruned if its id is not above this value.
    if let Some(highest) = row.try_get::<Option<i64>, _>(1)? {
        let sql = format!("update {control} set value = {highest} where name = 'pruned' and value < {highest}");
        conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    }
    row.try_get(0)
}

/// Returns the highest id that was ever pruned; 0 if none was.
///
/// # Errors
/// Any database error.
#[cfg(feature = "bench")]
pub(crate) async fn pruned_up_to(conn: &mut PgConnection, names: &Names) -> Result<i64, sqlx::Error> {
    let sql = format!("select value from {} where name = 'pruned'", names.companion("control"));
    conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?.try_get(0)
}

/// The result of one step over the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageStep {
    pub(crate) removed: i64,
    /// The page at which the next step begins; `None` at the end of the table.
    pub(crate) next: Option<i64>,
}

/// Reads `pages` pages of the inbox from page `from`, and removes rows older than `after`, at most `limit` of them. Returns `None` while
/// another relay prunes.
///
/// # Errors
/// Any database error; the step has then changed nothing.
pub(crate) async fn processed_step(
    conn: &mut PgConnection,
    names: &Names,
    removal: Removal,
    after: Duration,
    from: i64,
    pages: i64,
    limit: i64,
) -> Result<Option<PageStep>, sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    let processed = names.processed();
    tx.execute(SETTINGS).await?;
    if removal != Removal::Count && !alone(&mut tx, names, "inbox").await? {
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
    // The next step reads the same pages again for rows beyond the limit. A count does not, because it removes nothing.
    let next = if removed == limit && removal != Removal::Count { from } else { end };
    Ok(Some(PageStep { removed, next: (next < size).then_some(next) }))
}

/// Locks the row of the counters that stands for the table until the transaction ends. Returns true if it was free. Nobody without a right
/// on the row can hold it.
async fn alone(conn: &mut PgConnection, names: &Names, row: &str) -> Result<bool, sqlx::Error> {
    let lock = format!("select from {} where name = '{row}' for update skip locked", names.companion("control"));
    Ok(conn.fetch_optional(sqlx::raw_sql(AssertSqlSafe(lock))).await?.is_some())
}

/// The columns that the application has added to the outbox, quoted.
#[derive(Debug, Default)]
struct OwnColumns {
    /// Columns that the archive has as well.
    shared: Vec<String>,
    /// The others, which the archive keeps as JSON.
    others: Vec<String>,
}

impl OwnColumns {
    async fn read(conn: &mut PgConnection, names: &Names) -> Result<Self, sqlx::Error> {
        let known = COLUMNS.split(", ").map(literal).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "select quote_ident(o.attname), a.attname is not null from pg_attribute o \
             left join pg_attribute a on a.attrelid = {archive}::regclass and a.attname = o.attname and not a.attisdropped \
               and a.attgenerated = '' and a.attidentity <> 'a' and a.attname not in ('archived_at', 'other_columns') \
             where o.attrelid = {outbox}::regclass and o.attnum > 0 and not o.attisdropped and o.attname not in ({known}) \
             order by o.attnum",
            archive = literal(&names.companion("archive")),
            outbox = literal(&names.outbox()),
        );
        let mut own = Self::default();
        for row in conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await? {
            let columns = if row.try_get(1)? { &mut own.shared } else { &mut own.others };
            columns.push(row.try_get(0)?);
        }
        Ok(own)
    }

    /// Returns the list of all columns that are read from the outbox.
    fn all(&self) -> String {
        [&[COLUMNS.to_owned()], &self.shared[..], &self.others].concat().join(", ")
    }

    /// Returns the statement that inserts the rows of `gone` into the archive. An event that was restored from the archive by hand and is
    /// archived again is already there.
    fn insert(&self, names: &Names) -> String {
        let columns = [&[COLUMNS.to_owned()], &self.shared[..]].concat().join(", ");
        let others = self.others.iter().map(|column| format!("gone.{column}")).collect::<Vec<_>>().join(", ");
        let json = match self.others.is_empty() {
            true => "null".to_owned(),
            false => format!("(select to_jsonb(own) from (select {others}) own)"),
        };
        format!(
            "insert into {} ({columns}, other_columns) select {columns}, {json} from gone on conflict do nothing",
            names.companion("archive")
        )
    }
}
