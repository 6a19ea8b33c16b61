//! Runs statements that need a strong lock on a table in use: in one transaction, in short attempts, because writers queue behind each
//! attempt. An attempt is longer only if nothing but an autovacuum has the table.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use tokio::time::{Instant, sleep};

use crate::store::read_only::read;
use crate::store::search_path;
use crate::text;

/// The longest wait of an attempt, and so the longest time that it stops writers, unless only an autovacuum has the table.
const ATTEMPT: Duration = Duration::from_millis(40);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(150);

/// The longest wait if only an autovacuum has the table. It gives way after `deadlock_timeout`, one second by default, and not to a shorter
/// attempt.
const UNTIL_AUTOVACUUM_GIVES_WAY: Duration = Duration::from_millis(1500);

/// Limits that the server keeps by itself: a client that is stopped or cut off in the middle must not keep the locks.
pub(crate) const IF_THE_CLIENT_STOPS: &str =
    "set local idle_in_transaction_session_timeout = '5s'; set local tcp_user_timeout = '10s'";

/// The SQLSTATE of a lock that was not got in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A session that has a lock on the table.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pid: i32,
    application: String,
    state: String,
    seconds: i64,
    is_autovacuum: bool,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, state, seconds, .. } = self;
        write!(f, "pid {pid} of \"{}\" ({state}, its transaction is {seconds} s old)", text::name(&self.application))
    }
}

/// The reason why the statements were not run. Nothing was changed.
#[derive(Debug)]
pub(crate) enum NotRun {
    /// The sessions that had the table all the time.
    Locked(Vec<Holder>),
    Database(sqlx::Error),
}

impl From<sqlx::Error> for NotRun {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// Runs the statements in one transaction on the search path of the outbox. Tries again for `within` while a lock on the table `oid` is not
/// free. Returns the rows of the last statement.
///
/// # Errors
/// [`NotRun`]; nothing is changed then.
pub(crate) async fn run(
    conn: &mut PgConnection,
    statements: &[String],
    oid: i64,
    within: Duration,
) -> Result<Vec<PgRow>, NotRun> {
    let deadline = Instant::now() + within;
    let mut attempt = ATTEMPT;
    loop {
        let error = match once(conn, statements, attempt).await {
            Ok(rows) => return Ok(rows),
            Err(error) => error,
        };
        let code = error.as_database_error().and_then(|error| error.code());
        if code.as_deref() != Some(LOCK_NOT_AVAILABLE) {
            return Err(error.into());
        }
        let holders = holders(conn, oid).await?;
        if Instant::now() >= deadline {
            return Err(NotRun::Locked(holders));
        }
        let only_autovacuum = !holders.is_empty() && holders.iter().all(|holder| holder.is_autovacuum);
        attempt = if only_autovacuum { UNTIL_AUTOVACUUM_GIVES_WAY } else { ATTEMPT };
        sleep(PAUSE).await;
    }
}

/// Returns the statements as the script that [`run`] runs, for people. It is one attempt: it fails if the lock is not free, and can be
/// repeated.
pub(crate) fn script(statements: &[String]) -> String {
    format!(
        "begin;\nset local search_path = pg_catalog, pg_temp;\nset local lock_timeout = '{}ms';\n{};\ncommit;\n",
        ATTEMPT.as_millis(),
        statements.join(";\n")
    )
}

async fn once(conn: &mut PgConnection, statements: &[String], attempt: Duration) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    let limit = format!("{IF_THE_CLIENT_STOPS}; set local lock_timeout = {}", attempt.as_millis());
    tx.execute(sqlx::raw_sql(AssertSqlSafe(limit))).await?;
    let mut rows = Vec::new();
    for statement in statements {
        rows = tx.fetch_all(sqlx::raw_sql(AssertSqlSafe(statement.clone()))).await?;
    }
    tx.commit().await?;
    Ok(rows)
}

/// Returns the sessions that have a lock on the table or on one of its partitions, the oldest transaction first.
async fn holders(conn: &mut PgConnection, oid: i64) -> Result<Vec<Holder>, sqlx::Error> {
    let query = format!(
        "select l.pid, coalesce(max(a.application_name), ''), coalesce(max(a.state), max(a.backend_type), 'unknown'), \
           coalesce(max(extract(epoch from clock_timestamp() - a.xact_start))::int8, 0), \
           coalesce(bool_or(a.backend_type = 'autovacuum worker'), false) \
         from pg_locks l left join pg_stat_activity a using (pid) \
         where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid() \
           and l.database = (select d.oid from pg_database d where d.datname = current_database()) \
           and (l.relation = {oid}::oid or l.relation in (select relid from pg_partition_tree({oid}::oid::regclass))) \
         group by l.pid order by 4 desc limit 5"
    );
    let holder = |row: &PgRow| {
        Ok(Holder {
            pid: row.try_get(0)?,
            application: row.try_get(1)?,
            state: row.try_get(2)?,
            seconds: row.try_get(3)?,
            is_autovacuum: row.try_get(4)?,
        })
    };
    read(conn, &query).await?.iter().map(holder).collect()
}
