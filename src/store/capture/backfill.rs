//! Makes one event for each row that a captured table has already, while applications write.
//!
//! An event of the backfill never follows a newer one of its row. A page of rows is locked with FOR SHARE before its events get their ids:
//! a change that came first has committed, and the page has its result; a change that comes later waits, and its event gets a higher id.
//! Rows that a transaction has locked are skipped, so that the backfill and an application cannot deadlock, and are visited one by one
//! afterwards. The cursor and the skipped keys are stored in the transaction of the page.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, Row, Transaction};

use super::script::{SNAPSHOT, entity_id, event, insert};
use super::{Definition, SETTINGS};
use crate::store::app_table::{AppTable, Owner};
use crate::store::read_only::read;
use crate::store::search_path;
use event_outbox::Names;
use event_outbox::names::{literal, quote};

/// The longest wait for the lock of a skipped row, until the next one is visited.
const ROW_LOCK_MS: u32 = 500;

/// The SQLSTATE of a lock that was not got in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The values of the key of a row, as text.
pub(crate) type KeyValues = Vec<String>;

/// The position of a backfill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) filter: Option<String>,
    pub(crate) key: Vec<String>,
    /// The key of the last row of the last page.
    pub(crate) last: Option<KeyValues>,
    /// The last key of the table when the backfill began; `None` if the table was empty. The triggers make events of newer rows.
    pub(crate) until: Option<KeyValues>,
    /// The keys of rows that were locked.
    pub(crate) skipped: Vec<KeyValues>,
    pub(crate) events: i64,
    pub(crate) finished: bool,
}

/// The result of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Holds the number of new events.
    Page(i64),
    /// Every page is done.
    NoMorePages,
    /// Another process works on this backfill.
    NotAlone,
}

/// A backfill of one table.
pub(crate) struct Backfill<'a> {
    pub(crate) names: &'a Names,
    pub(crate) table: &'a AppTable,
    pub(crate) definition: &'a Definition,
    /// The columns of a unique key, in the order of its index.
    pub(crate) key: Vec<String>,
    pub(crate) filter: Option<String>,
}

impl Backfill<'_> {
    fn state(&self) -> String {
        self.names.companion("backfill")
    }

    fn source(&self) -> String {
        literal(&self.table.quoted())
    }

    /// Creates the table of backfills, if this is the first one.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn prepare(&self, conn: &mut PgConnection, owner: &Owner) -> Result<(), sqlx::Error> {
        if has_table(conn, self.names).await? {
            return Ok(());
        }
        let state = self.state();
        let mut script = format!(
            "create table {state} (
    -- The captured table, quoted and with its schema.
    source      text primary key,
    filter      text,
    key         text[] not null,
    last        text[],
    until       text[],
    -- The keys of rows that were locked: an array of arrays.
    skipped     jsonb not null default '[]',
    events      bigint not null default 0,
    started_at  timestamptz not null default now(),
    finished_at timestamptz
)"
        );
        if !owner.is_self {
            script += &format!("; alter table {state} owner to {}", quote(&owner.outbox));
        }
        let mut tx = search_path::begin(conn).await?;
        tx.execute(sqlx::raw_sql(AssertSqlSafe(script))).await?;
        tx.commit().await
    }

    /// Reads how far the backfill of this table is; `None` if it was never begun.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn progress(&self, conn: &mut PgConnection) -> Result<Option<Progress>, sqlx::Error> {
        let query = format!(
            "select filter, key, last, until, skipped::text, events, finished_at is not null from {} where source = {}",
            self.state(),
            self.source()
        );
        let rows = read(conn, &query).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let skipped: String = row.try_get(4)?;
        Ok(Some(Progress {
            filter: row.try_get(0)?,
            key: row.try_get(1)?,
            last: row.try_get(2)?,
            until: row.try_get(3)?,
            skipped: serde_json::from_str(&skipped).map_err(|error| sqlx::Error::Decode(error.into()))?,
            events: row.try_get(5)?,
            finished: row.try_get(6)?,
        }))
    }

    /// Begins anew, up to the last row of now.
    ///
    /// # Errors
    /// Any database error, also one of the filter.
    pub(crate) async fn start(&self, conn: &mut PgConnection) -> Result<Progress, sqlx::Error> {
        let mut tx = self.begin(conn).await?;
        // A prepared statement is one statement: a filter cannot begin a second one.
        let check = format!("select from {} t where {} limit 0", self.table.quoted(), self.condition());
        sqlx::query(AssertSqlSafe(check)).persistent(false).execute(&mut *tx).await?;
        let order: Vec<_> = self.key.iter().map(|column| format!("t.{} desc", quote(column))).collect();
        let last =
            format!("select {} from {} t order by {} limit 1", self.values("t"), self.table.quoted(), order.join(", "));
        let until: Option<KeyValues> = fetch(&mut tx, &last).await?.first().map(|row| row.try_get(0)).transpose()?;
        let filter = self.filter.as_deref().map_or_else(|| "null".to_owned(), literal);
        let (state, key, stop) =
            (self.state(), array(&self.key), until.as_ref().map_or("null".to_owned(), |k| array(k)));
        let sql = format!(
            "insert into {state} (source, filter, key, until) values ({}, {filter}, {key}, {stop}) on conflict (source) do update \
             set filter = excluded.filter, key = excluded.key, until = excluded.until, last = null, skipped = '[]', events = 0, \
                 started_at = now(), finished_at = null",
            self.source()
        );
        run(&mut tx, &sql).await?;
        tx.commit().await?;
        Ok(Progress {
            filter: self.filter.clone(),
            key: self.key.clone(),
            last: None,
            until,
            skipped: Vec::new(),
            events: 0,
            finished: false,
        })
    }

    /// Makes the events of the next page of at most `rows` rows.
    ///
    /// # Errors
    /// Any database error; nothing is changed then.
    pub(crate) async fn page(
        &self,
        conn: &mut PgConnection,
        progress: &mut Progress,
        rows: i64,
    ) -> Result<Step, sqlx::Error> {
        let Some(until) = &progress.until else { return Ok(Step::NoMorePages) };
        let mut tx = self.begin(conn).await?;
        if !self.lock_state(&mut tx, progress).await? {
            return Ok(Step::NotAlone);
        }
        let from = progress.last.as_ref().map_or_else(|| "true".to_owned(), |last| self.compared(">", last));
        let (table, condition) = (self.table.quoted(), self.condition());
        let page = format!(
            "select {} from {table} t where {from} and {} and {condition} order by {} limit {rows}",
            self.values("t"),
            self.compared("<=", until),
            self.listed("t"),
        );
        let page: Vec<KeyValues> =
            fetch(&mut tx, &page).await?.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let Some(high) = page.last() else { return Ok(Step::NoMorePages) };
        // The lock of a row comes before the id of its event.
        let locked = format!(
            "with locked as materialized (
    select t.* from {table} t where {from} and {high} and {condition} order by {ordered} for share skip locked),
sent as (
    {insert}
    select {event} from (select to_jsonb(l.*) as outbox_relay_row, {columns} from locked l) r
     order by {order} returning 1)
select {values} from locked t, (select count(*) from sent) sent",
            high = self.compared("<=", high),
            ordered = self.listed("t"),
            insert = insert(self.names),
            event = self.event("r.outbox_relay_row"),
            columns = self.listed("l"),
            order = self.listed("r"),
            values = self.values("t"),
        );
        let sent: Vec<KeyValues> =
            fetch(&mut tx, &locked).await?.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let sent: std::collections::HashSet<_> = sent.into_iter().collect();
        let mut skipped = progress.skipped.clone();
        skipped.extend(page.iter().filter(|key| !sent.contains(*key)).cloned());
        let events = progress.events + sent.len() as i64;
        let sql = format!(
            "update {} set last = {}, skipped = {}::jsonb, events = {events} where source = {}",
            self.state(),
            array(high),
            json(&skipped)?,
            self.source()
        );
        run(&mut tx, &sql).await?;
        self.wake_up(&mut tx).await?;
        let high = high.clone();
        tx.commit().await?;
        (progress.last, progress.skipped, progress.events) = (Some(high), skipped, events);
        Ok(Step::Page(sent.len() as i64))
    }

    /// Visits the first skipped row. Returns false if it is still locked; it is the last one then.
    ///
    /// # Errors
    /// Any database error; nothing is changed then.
    pub(crate) async fn visit(&self, conn: &mut PgConnection, progress: &mut Progress) -> Result<bool, sqlx::Error> {
        let Some(key) = progress.skipped.first().cloned() else { return Ok(true) };
        let visited = self.visit_one(conn, progress, &key).await;
        let is_locked = visited.as_ref().is_err_and(|error| {
            error.as_database_error().and_then(|error| error.code()).as_deref() == Some(LOCK_NOT_AVAILABLE)
        });
        if is_locked {
            progress.skipped.rotate_left(1);
            return Ok(false);
        }
        let sent = visited?;
        progress.skipped.remove(0);
        progress.events += sent;
        Ok(true)
    }

    async fn visit_one(
        &self,
        conn: &mut PgConnection,
        progress: &Progress,
        key: &[String],
    ) -> Result<i64, sqlx::Error> {
        let mut tx = self.begin(conn).await?;
        run(&mut tx, &format!("set local lock_timeout = {ROW_LOCK_MS}")).await?;
        // A row that is gone, or does not fit any more, has an event of its change.
        let sql = format!(
            "with locked as materialized (select t.* from {} t where {} and {} for share)
{} select {} from (select to_jsonb(l.*) as outbox_relay_row from locked l) r returning 1",
            self.table.quoted(),
            self.compared("=", key),
            self.condition(),
            insert(self.names),
            self.event("r.outbox_relay_row"),
        );
        let sent = fetch(&mut tx, &sql).await?.len() as i64;
        let rest: Vec<_> = progress.skipped.iter().skip(1).cloned().collect();
        let sql = format!(
            "update {} set skipped = {}::jsonb, events = {} where source = {}",
            self.state(),
            json(&rest)?,
            progress.events + sent,
            self.source()
        );
        run(&mut tx, &sql).await?;
        self.wake_up(&mut tx).await?;
        tx.commit().await?;
        Ok(sent)
    }

    /// Notes that nothing is left, with the entry of the audit table.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn finish(&self, conn: &mut PgConnection, entry: &str) -> Result<(), sqlx::Error> {
        let mut tx = self.begin(conn).await?;
        run(&mut tx, &format!("update {} set finished_at = now() where source = {}", self.state(), self.source()))
            .await?;
        run(&mut tx, entry).await?;
        tx.commit().await
    }

    /// Estimates the number of rows, for people.
    ///
    /// # Errors
    /// Any database error, also one of the filter.
    pub(crate) async fn estimate(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let query = format!("explain (format json) select from {} t where {}", self.table.quoted(), self.condition());
        let rows = read(conn, &query).await?;
        let plan: String = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get_unchecked(0)?;
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap_or_default();
        Ok(plan[0]["Plan"]["Plan Rows"].as_f64().unwrap_or_default() as i64)
    }

    async fn begin<'c>(&self, conn: &'c mut PgConnection) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
        let settings: String =
            SETTINGS.iter().map(|(name, value)| format!("; set local {name} = {}", literal(value))).collect();
        conn.begin_with(AssertSqlSafe(format!("{}{settings}", search_path::BEGIN))).await
    }

    /// Locks the row of the backfill. Returns false if another process has gone on with it.
    async fn lock_state(&self, tx: &mut PgConnection, progress: &Progress) -> Result<bool, sqlx::Error> {
        let last = progress.last.as_ref().map_or_else(|| "null".to_owned(), |last| array(last));
        let sql = format!(
            "select 1 from {} where source = {} and last is not distinct from {last}::text[] and finished_at is null for update",
            self.state(),
            self.source()
        );
        Ok(!fetch(tx, &sql).await?.is_empty())
    }

    async fn wake_up(&self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        fetch(tx, &format!("select {}()", self.names.companion("wake_up"))).await.map(drop)
    }

    fn event(&self, row: &str) -> String {
        event(self.definition, SNAPSHOT, &entity_id(&self.definition.key, row), None, Some(row), None)
    }

    /// SQL that is true for the rows of the filter. The line end closes a comment in it.
    fn condition(&self) -> String {
        self.filter.as_deref().map_or_else(|| "true".to_owned(), |filter| format!("({filter}\n)"))
    }

    fn listed(&self, alias: &str) -> String {
        let columns: Vec<_> = self.key.iter().map(|column| format!("{alias}.{}", quote(column))).collect();
        columns.join(", ")
    }

    fn tuple(&self, alias: &str) -> String {
        format!("({})", self.listed(alias))
    }

    /// SQL for the values of the key as an array of texts.
    fn values(&self, alias: &str) -> String {
        let columns: Vec<_> = self.key.iter().map(|column| format!("{alias}.{}::text", quote(column))).collect();
        format!("array[{}]", columns.join(", "))
    }

    /// SQL that compares the key of `t` with these values.
    fn compared(&self, operator: &str, values: &[String]) -> String {
        let cast = |(column, value): (&String, &String)| {
            let declared = self.table.column(column).map_or("text", |column| column.declared.as_str());
            format!("{}::text::{declared}", literal(value))
        };
        let values: Vec<_> = self.key.iter().zip(values).map(cast).collect();
        format!("{} {operator} ({})", self.tuple("t"), values.join(", "))
    }
}

/// Returns true if the table of backfills exists and this user may read it.
///
/// # Errors
/// Any database error.
pub(crate) async fn has_table(conn: &mut PgConnection, names: &Names) -> Result<bool, sqlx::Error> {
    let query = format!(
        "select coalesce(has_table_privilege(to_regclass({}), 'select'), false)",
        literal(&names.companion("backfill"))
    );
    read(conn, &query).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}

/// A backfill as `capture --list` shows it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) source: String,
    pub(crate) events: i64,
    pub(crate) skipped: i64,
    pub(crate) finished: bool,
}

/// Returns all backfills.
///
/// # Errors
/// Any database error.
pub(crate) async fn list(conn: &mut PgConnection, names: &Names) -> Result<Vec<Listed>, sqlx::Error> {
    if !has_table(conn, names).await? {
        return Ok(Vec::new());
    }
    let query = format!(
        "select source, events, jsonb_array_length(skipped)::int8, finished_at is not null from {}",
        names.companion("backfill")
    );
    let listed = |row: &PgRow| {
        Ok(Listed {
            source: row.try_get(0)?,
            events: row.try_get(1)?,
            skipped: row.try_get(2)?,
            finished: row.try_get(3)?,
        })
    };
    read(conn, &query).await?.iter().map(listed).collect()
}

fn array(values: &[String]) -> String {
    let values: Vec<_> = values.iter().map(|value| literal(value)).collect();
    format!("array[{}]::text[]", values.join(", "))
}

fn json(keys: &[KeyValues]) -> Result<String, sqlx::Error> {
    serde_json::to_string(keys).map(|text| literal(&text)).map_err(|error| sqlx::Error::Encode(error.into()))
}

async fn fetch(tx: &mut PgConnection, sql: &str) -> Result<Vec<PgRow>, sqlx::Error> {
    tx.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await
}

async fn run(tx: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    tx.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.map(drop)
}
