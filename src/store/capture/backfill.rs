//! Makes one event for each row that a captured table has already, while applications write.
//!
//! An event of the backfill never follows a newer one of its row. A page of rows is locked with FOR SHARE before its events get their ids:
//! a change that came first has committed, and the page has its result; a change that comes later waits, and its event gets a higher id.
//! Rows that a transaction has locked are skipped, so that the backfill and an application cannot deadlock, and are visited one by one
//! afterwards. The cursor and the skipped keys are stored in the transaction of the page.

pub(crate) mod state;

use sqlx::postgres::{PgDatabaseError, PgErrorPosition, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, Row, Transaction};

use super::script::{SNAPSHOT, entity_id, event, insert};
use super::{Definition, SETTINGS};
use crate::store::app_table::AppTable;
use crate::store::read_only::read_one;
use crate::store::search_path;
use crate::store::short_locks::IF_THE_CLIENT_STOPS;
use event_outbox::Names;
use event_outbox::names::{literal, quote};
use state::{FailedRow, Progress};

/// The longest wait for the lock of a skipped row, until the next one is visited.
const ROW_LOCK_MS: u32 = 500;

/// The longest wait for any other lock, such as that of a table that is altered, until the page is tried again.
const LOCK_MS: u32 = 2_000;

/// The longest time, in seconds, for which a page may hold the locks of its rows while its events are made.
const LOCKED_SECONDS: u32 = 60;

/// The most skipped keys. All of them are written again with each page and each visit.
const MOST_SKIPPED: i64 = 1_000;

/// The most rows that fail. With more of them, something else is wrong.
const MOST_FAILED: usize = 100;

/// The most characters of a stored reason.
const LONGEST_REASON: usize = 200;

/// The SQLSTATE of a lock that was not got in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The values of the key of a row, as text.
pub(crate) type KeyValues = Vec<String>;

/// The result of a page, or of the visit of a skipped row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Holds the number of new events.
    Page(i64),
    /// Every page is done.
    NoMorePages,
    /// Another process works on this backfill, or the triggers are gone.
    NotAlone,
    /// The table or the row is locked; nothing was done.
    Locked,
    /// Skipped rows have to be visited first.
    TooManyLocked,
    /// Too many rows cannot become events.
    TooManyFailed,
}

/// The result of one attempt at a page.
enum Tried {
    Done(Step),
    /// A row of these keys cannot become an event.
    Refused(sqlx::Error, Vec<KeyValues>),
}

/// A backfill of one table.
pub(crate) struct Backfill<'a> {
    pub(crate) names: &'a Names,
    pub(crate) table: &'a AppTable,
    pub(crate) definition: &'a Definition,
    /// The columns of a unique key, in the order of its index.
    pub(crate) key: Vec<String>,
    pub(crate) filter: Option<String>,
    /// The oids of the triggers of `capture`.
    pub(crate) triggers: Vec<i64>,
}

impl Backfill<'_> {
    fn state(&self) -> String {
        self.names.companion("backfill")
    }

    /// Checks that Postgres takes the filter and that it is one condition, before it becomes a part of any other statement. Reads no row.
    ///
    /// Between parentheses alone, `a) or (b` would be a condition, and in a page it would undo the bounds beside it. Nothing that closes a
    /// parenthesis of ours closes a bracket as well: what is one expression between both is one expression anywhere.
    ///
    /// # Errors
    /// The database error, with its position in the filter: the number of characters before it, if Postgres tells it.
    pub(crate) async fn check_filter(&self, conn: &mut PgConnection) -> Result<(), (sqlx::Error, Option<usize>)> {
        let (Some(filter), table) = (&self.filter, self.table.quoted()) else { return Ok(()) };
        // The condition begins with a parenthesis, and the filter follows it.
        let before = format!("select from {table} t where ");
        let query = format!("{before}{} limit 0", self.condition());
        let at = |error: sqlx::Error| {
            let found = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
            let position = match found.and_then(PgDatabaseError::position) {
                // Positions count from 1.
                Some(PgErrorPosition::Original(position)) => position.checked_sub(before.chars().count() + 2),
                _ => None,
            };
            (error, position)
        };
        read_one(conn, &query).await.map_err(at)?;
        let one = format!("select (array[{filter}\n])[1]::boolean from {table} t limit 0");
        read_one(conn, &one).await.map(drop).map_err(|error| (error, None))
    }

    /// Begins anew, up to the last row of now.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn start(&self, conn: &mut PgConnection) -> Result<Progress, sqlx::Error> {
        let mut tx = self.begin(conn).await?;
        let order: Vec<_> = self.key.iter().map(|column| format!("t.{} desc", quote(column))).collect();
        let last =
            format!("select {} from {} t order by {} limit 1", self.values("t"), self.table.quoted(), order.join(", "));
        let until: Option<KeyValues> = fetch(&mut tx, &last).await?.first().map(|row| row.try_get(0)).transpose()?;
        let filter = self.filter.as_deref().map_or_else(|| "null".to_owned(), literal);
        let (state, key, stop) =
            (self.state(), array(&self.key), until.as_ref().map_or("null".to_owned(), |k| array(k)));
        let triggers: Vec<_> = self.triggers.iter().map(ToString::to_string).collect();
        let sql = format!(
            "insert into {state} (relation, triggers, run, filter, key, until) \
             values ({}, array[{}]::oid[], gen_random_uuid(), {filter}, {key}, {stop}) on conflict (relation) do update \
             set triggers = excluded.triggers, run = excluded.run, filter = excluded.filter, key = excluded.key, until = excluded.until, \
                 last = null, skipped = '[]', failed = '[]', events = 0, started_at = now(), finished_at = null returning run::text",
            self.table.oid,
            triggers.join(", ")
        );
        let run = fetch(&mut tx, &sql).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        tx.commit().await?;
        Ok(Progress {
            run,
            triggers: self.triggers.clone(),
            filter: self.filter.clone(),
            key: self.key.clone(),
            last: None,
            until,
            skipped: Vec::new(),
            failed: Vec::new(),
            events: 0,
            finished: false,
        })
    }

    /// Makes the events of the next page of at most `rows` rows. Only one row fails if its values cannot become an event.
    ///
    /// # Errors
    /// Any database error; nothing is changed then.
    pub(crate) async fn page(
        &self,
        conn: &mut PgConnection,
        progress: &mut Progress,
        rows: i64,
    ) -> Result<Step, sqlx::Error> {
        let mut rows = rows.min(MOST_SKIPPED);
        if progress.skipped.len() as i64 + rows > MOST_SKIPPED {
            return Ok(Step::TooManyLocked);
        }
        loop {
            match self.try_page(conn, progress, rows).await {
                Ok(Tried::Done(step)) => return Ok(step),
                Ok(Tried::Refused(error, keys)) => match keys.as_slice() {
                    [key] => return self.fail(conn, progress, key, &error, true).await,
                    several => rows = several.len() as i64 / 2,
                },
                Err(error) if has_code(&error, LOCK_NOT_AVAILABLE) => return Ok(Step::Locked),
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_page(
        &self,
        conn: &mut PgConnection,
        progress: &mut Progress,
        rows: i64,
    ) -> Result<Tried, sqlx::Error> {
        let Some(until) = &progress.until else { return Ok(Tried::Done(Step::NoMorePages)) };
        let mut tx = self.begin(conn).await?;
        if !self.lock_state(&mut tx, progress).await? {
            return Ok(Tried::Done(Step::NotAlone));
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
            fetch_one(&mut tx, &page).await?.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let Some(high) = page.last() else { return Ok(Tried::Done(Step::NoMorePages)) };
        // The lock of a row comes before the id of its event. Only the rows of the page are looked at, so that the locks are short also if
        // the filter leaves out nearly all rows.
        let locked = format!(
            "with locked as materialized (
    select t.* from {table} t where {from} and {high} and {listed} and {condition} order by {ordered} for share skip locked),
sent as (
    {insert}
    select {event} from (select to_jsonb(l.*) as outbox_relay_row, {columns} from locked l) r
     order by {order} returning 1)
select {values} from locked t, (select count(*) from sent) sent",
            high = self.compared("<=", high),
            listed = self.one_of(&page),
            ordered = self.listed("t"),
            insert = insert(self.names),
            event = self.event("r.outbox_relay_row"),
            columns = self.listed("l"),
            order = self.listed("r"),
            values = self.values("t"),
        );
        run(&mut tx, &format!("set local statement_timeout = '{LOCKED_SECONDS}s'")).await?;
        let sent = match fetch_one(&mut tx, &locked).await {
            Ok(sent) => sent,
            Err(error) if is_of_the_row(&error) => {
                tx.rollback().await?;
                return Ok(Tried::Refused(error, page));
            }
            Err(error) => return Err(error),
        };
        let sent: Vec<KeyValues> = sent.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let sent: std::collections::HashSet<_> = sent.into_iter().collect();
        let mut skipped = progress.skipped.clone();
        skipped.extend(page.iter().filter(|key| !sent.contains(*key)).cloned());
        let events = progress.events + sent.len() as i64;
        let sql = format!(
            "update {} set last = {}, skipped = {}::jsonb, events = {events} where relation = {}",
            self.state(),
            array(high),
            json(&skipped)?,
            self.table.oid
        );
        run(&mut tx, &sql).await?;
        self.wake_up(&mut tx).await?;
        let high = high.clone();
        tx.commit().await?;
        (progress.last, progress.skipped, progress.events) = (Some(high), skipped, events);
        Ok(Tried::Done(Step::Page(sent.len() as i64)))
    }

    /// Notes that a row cannot become an event, and goes past it: as the next row, or as the first skipped one.
    async fn fail(
        &self,
        conn: &mut PgConnection,
        progress: &mut Progress,
        key: &KeyValues,
        error: &sqlx::Error,
        is_next: bool,
    ) -> Result<Step, sqlx::Error> {
        if progress.failed.len() >= MOST_FAILED {
            return Ok(Step::TooManyFailed);
        }
        let mut after = progress.clone();
        let reason = error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
        after.failed.push(FailedRow { key: key.clone(), reason: reason.chars().take(LONGEST_REASON).collect() });
        if is_next {
            after.last = Some(key.clone());
        } else {
            after.skipped.remove(0);
        }
        let mut tx = self.begin(conn).await?;
        if !self.lock_state(&mut tx, progress).await? {
            return Ok(Step::NotAlone);
        }
        let last = after.last.as_ref().map_or_else(|| "null".to_owned(), |last| array(last));
        let sql = format!(
            "update {} set last = {last}, skipped = {}::jsonb, failed = {}::jsonb where relation = {}",
            self.state(),
            json(&after.skipped)?,
            json(&after.failed)?,
            self.table.oid
        );
        run(&mut tx, &sql).await?;
        tx.commit().await?;
        *progress = after;
        Ok(Step::Page(0))
    }

    /// Visits the first skipped row. If it is still locked, it is the last one then.
    ///
    /// # Errors
    /// Any database error; nothing is changed then.
    pub(crate) async fn visit(&self, conn: &mut PgConnection, progress: &mut Progress) -> Result<Step, sqlx::Error> {
        let Some(key) = progress.skipped.first().cloned() else { return Ok(Step::NoMorePages) };
        match self.visit_one(conn, progress, &key).await {
            Ok(Step::Page(sent)) => {
                progress.skipped.remove(0);
                progress.events += sent;
                Ok(Step::Page(sent))
            }
            Ok(step) => Ok(step),
            Err(error) if has_code(&error, LOCK_NOT_AVAILABLE) => {
                progress.skipped.rotate_left(1);
                Ok(Step::Locked)
            }
            Err(error) if is_of_the_row(&error) => self.fail(conn, progress, &key, &error, false).await,
            Err(error) => Err(error),
        }
    }

    async fn visit_one(
        &self,
        conn: &mut PgConnection,
        progress: &Progress,
        key: &[String],
    ) -> Result<Step, sqlx::Error> {
        let mut tx = self.begin(conn).await?;
        if !self.lock_state(&mut tx, progress).await? {
            return Ok(Step::NotAlone);
        }
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
        let sent = fetch_one(&mut tx, &sql).await?.len() as i64;
        let sql = format!(
            "update {} set skipped = {}::jsonb, events = {} where relation = {}",
            self.state(),
            json(progress.skipped.get(1..).unwrap_or_default())?,
            progress.events + sent,
            self.table.oid
        );
        run(&mut tx, &sql).await?;
        self.wake_up(&mut tx).await?;
        tx.commit().await?;
        Ok(Step::Page(sent))
    }

    /// Notes that nothing is left, with the entry of the audit table. Returns false if the backfill is no longer this process's.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn finish(
        &self,
        conn: &mut PgConnection,
        progress: &Progress,
        entry: &str,
    ) -> Result<bool, sqlx::Error> {
        let mut tx = self.begin(conn).await?;
        if !self.lock_state(&mut tx, progress).await? {
            return Ok(false);
        }
        run(&mut tx, &format!("update {} set finished_at = now() where relation = {}", self.state(), self.table.oid))
            .await?;
        run(&mut tx, entry).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Estimates the number of rows, for people.
    ///
    /// # Errors
    /// Any database error, also one of the filter.
    pub(crate) async fn estimate(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let query = format!("explain (format json) select from {} t where {}", self.table.quoted(), self.condition());
        let rows = read_one(conn, &query).await?;
        let plan: String = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get_unchecked(0)?;
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap_or_default();
        Ok(plan[0]["Plan"]["Plan Rows"].as_f64().unwrap_or_default() as i64)
    }

    async fn begin<'c>(&self, conn: &'c mut PgConnection) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
        let settings: String =
            SETTINGS.iter().map(|(name, value)| format!("; set local {name} = {}", literal(value))).collect();
        let limits = format!("{IF_THE_CLIENT_STOPS}; set local lock_timeout = {LOCK_MS}");
        conn.begin_with(AssertSqlSafe(format!("{}; {limits}{settings}", search_path::BEGIN))).await
    }

    async fn lock_state(&self, tx: &mut PgConnection, progress: &Progress) -> Result<bool, sqlx::Error> {
        state::lock(tx, self.names, self.table.oid, progress).await
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
        format!("{} {operator} {}", self.tuple("t"), self.cast(values))
    }

    /// SQL that is true if the key of `t` is one of these.
    fn one_of(&self, keys: &[KeyValues]) -> String {
        let keys: Vec<_> = keys.iter().map(|values| self.cast(values)).collect();
        format!("{} in ({})", self.tuple("t"), keys.join(", "))
    }

    /// SQL for these values in the types of the key.
    fn cast(&self, values: &[String]) -> String {
        let cast = |(column, value): (&String, &String)| {
            let declared = self.table.column(column).map_or("text", |column| column.declared.as_str());
            format!("{}::text::{declared}", literal(value))
        };
        let values: Vec<_> = self.key.iter().zip(values).map(cast).collect();
        format!("({})", values.join(", "))
    }
}

/// Returns true for an error that comes from the values of a row: text that no JSON can hold, a limit of jsonb, a constraint of the outbox.
fn is_of_the_row(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
}

fn has_code(error: &sqlx::Error, wanted: &str) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some(wanted)
}

fn array(values: &[String]) -> String {
    let values: Vec<_> = values.iter().map(|value| literal(value)).collect();
    format!("array[{}]::text[]", values.join(", "))
}

fn json<T: serde::Serialize>(list: &[T]) -> Result<String, sqlx::Error> {
    serde_json::to_string(list).map(|text| literal(&text)).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// Runs a statement that has the filter in it, and no other: the server refuses a text of two statements.
async fn fetch_one(tx: &mut PgConnection, sql: &str) -> Result<Vec<PgRow>, sqlx::Error> {
    sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false).fetch_all(tx).await
}

async fn fetch(tx: &mut PgConnection, sql: &str) -> Result<Vec<PgRow>, sqlx::Error> {
    tx.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await
}

async fn run(tx: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    tx.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.map(drop)
}
