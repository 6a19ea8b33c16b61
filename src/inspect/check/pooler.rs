//! Detects a connection pooler between the relay and the server.

use std::time::Instant;

use sqlx::{Connection, Executor, PgConnection, Row};

use super::finding::Finding;
use crate::config::DatabaseSettings;
use crate::store::connect::{self, Purpose};
use crate::store::search_path;
use event_outbox::code::Code;

/// The difference in age from which a server process is older than the connection. Such a process was not started for this connection.
const REUSED_S: f64 = 1.0;

/// The number of times that a connection tries to get the server of another one. A pooler may give out its servers in turn.
const TURNS: usize = 4;

/// The number of connections that try to occupy the server on which a statement was prepared.
const HOLDERS: usize = 4;

/// Keeps a server process busy until the rollback, and returns its pid.
const HOLD: &str = "begin read only; set local search_path = pg_catalog, pg_temp; select pg_backend_pid()::int8";

/// Returns true if a transaction pooler stands before the database.
///
/// # Errors
/// Any error of the database.
pub(crate) async fn is_by_transaction(database: &DatabaseSettings, name: &str) -> Result<bool, sqlx::Error> {
    let found = pooler(database, name).await?;
    Ok(found.is_some_and(|found| matches!(found.code, Code::PoolerTransaction | Code::PoolerPreparedStatements)))
}

/// Compares the server processes of two connections, of which one is in a transaction. A transaction pooler gives one process to both, or
/// two processes to one. Behind a session pooler the process is older than the connection.
pub(super) async fn pooler(database: &DatabaseSettings, name: &str) -> Result<Option<Finding>, sqlx::Error> {
    let began = Instant::now();
    let mut one = connect::connect(database, name, Purpose::Read).await?;
    let age = process_age(&mut one).await?;
    let connected_for = began.elapsed().as_secs_f64();
    let mut other = connect::connect(database, name, Purpose::Read).await?;

    let before = pid(&mut one).await?;
    let mut is_shared = false;
    for turn in 1..=TURNS {
        let holding: i64 = raw(&mut other, HOLD).await?;
        is_shared = holding == before;
        if is_shared || turn == TURNS {
            break;
        }
        other.execute("rollback").await?;
    }
    // Keep a server busy, so that a transaction pooler may have to give another one to the first connection.
    let after = pid(&mut one).await;
    let by_transaction = is_shared || after.as_ref().is_ok_and(|after| *after != before);
    other.execute("rollback").await?;
    let found = match (by_transaction, after) {
        (true, _) if database.prepared_statements && !keeps_statements(database, name, &mut one).await => {
            Some(forgetful_pooler())
        }
        (true, _) => Some(transaction_pooler()),
        (false, Ok(_)) if age > connected_for + REUSED_S => Some(session_pooler()),
        (false, Ok(_)) => None,
        (false, Err(error)) => return Err(error),
    };
    // Ignore errors, because dropping a connection ends it as well.
    drop(one.close().await);
    drop(other.close().await);
    Ok(found)
}

/// Prepares a statement on one server and executes it on another, as a pooler may do with a relay's statement. Returns true if this works
/// or if no other server could be reached.
async fn keeps_statements(database: &DatabaseSettings, name: &str, one: &mut PgConnection) -> bool {
    match executed_elsewhere(database, name, one).await {
        // 26000: this server has no such statement. 42P05: another client has prepared one of that name. 08P01: its parts got separated.
        Err(sqlx::Error::Database(error)) => !matches!(error.code().as_deref(), Some("26000" | "42P05" | "08P01")),
        _ => true,
    }
}

async fn executed_elsewhere(
    database: &DatabaseSettings,
    name: &str,
    one: &mut PgConnection,
) -> Result<(), sqlx::Error> {
    let statement = "select $1::int8 + 71823";
    let mut tx = search_path::begin(one).await?;
    sqlx::query(statement).bind(1_i64).execute(&mut *tx).await?;
    let prepared_on = pid(&mut tx).await?;
    tx.commit().await?;
    // Let other connections occupy servers until that one is taken.
    let mut holders = Vec::new();
    for _ in 0..HOLDERS {
        let mut holder = connect::connect(database, name, Purpose::Read).await?;
        let held: i64 = raw(&mut holder, HOLD).await?;
        holders.push(holder);
        if held == prepared_on {
            break;
        }
    }
    let mut tx = search_path::begin(one).await?;
    let executed = sqlx::query(statement).bind(2_i64).execute(&mut *tx).await.map(drop);
    drop(tx.rollback().await);
    for mut holder in holders {
        drop(holder.execute("rollback").await);
    }
    executed
}

fn transaction_pooler() -> Finding {
    Finding::note(
        Code::PoolerTransaction,
        "A transaction pooler, such as PgBouncer, stands before the database: it works, but adds a network hop to each statement.",
        "no action is needed; a direct connection is faster, and a relay needs only RELAY_WORKERS + 1",
    )
}

fn forgetful_pooler() -> Finding {
    Finding::error(
        Code::PoolerPreparedStatements,
        "The pooler before the database loses prepared statements: claims fail whenever the pooler switches to another server process.",
        "set RELAY_PREPARED_STATEMENTS=false, or max_prepared_statements in PgBouncer 1.21 or newer",
    )
}

fn session_pooler() -> Finding {
    Finding::note(
        Code::PoolerSession,
        "The server process is older than the connection to it: a session pooler stands before the database.",
        "no action is needed; a direct connection is simpler, and a relay needs only RELAY_WORKERS + 1",
    )
}

async fn process_age(conn: &mut PgConnection) -> Result<f64, sqlx::Error> {
    raw(
        conn,
        "set local search_path = pg_catalog, pg_temp; \
         select extract(epoch from clock_timestamp() - backend_start)::float8 from pg_stat_activity where pid = pg_backend_pid()",
    )
    .await
}

async fn pid(conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
    raw(conn, "select pg_catalog.pg_backend_pid()::pg_catalog.int8").await
}

async fn raw<T>(conn: &mut PgConnection, sql: &'static str) -> Result<T, sqlx::Error>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    conn.fetch_one(sqlx::raw_sql(sql)).await?.try_get(0)
}
