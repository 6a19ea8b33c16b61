//! Detects a connection pooler between the relay and the server.

use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection, Row};

use super::finding::Finding;
use crate::config::DatabaseSettings;
use crate::fault::describe;
use crate::store::connect::{self, Purpose};
use crate::store::search_path;
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::schema::{self, CURRENT_VERSION, SchemaError};

/// The difference in age from which a server process is older than the connection. Such a process was not started for this connection.
const REUSED_S: f64 = 1.0;

/// The number of times that a connection tries to get the server of another one. A pooler may give out its servers in turn.
const TURNS: usize = 4;

/// The number of connections that try to occupy the server on which a statement was prepared.
const HOLDERS: usize = 4;

/// Keeps a server process busy until the rollback, and returns its pid.
const HOLD: &str = "begin read only; set local search_path = pg_catalog, pg_temp; select pg_backend_pid()::int8";

/// The longest wait for a server process. A pooler lets a client wait until one is free, PgBouncer for two minutes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of the second connection before an upgrade.
const UPGRADE: &str = "outbox-relay migrate";

/// What two connections show of the server processes behind them.
#[derive(Debug)]
enum Sharing {
    /// A transaction pooler gives one process to several connections, or several to one.
    ByTransaction,
    /// Each connection has a process of its own.
    None,
    /// The second connection got no process. Holds the reason.
    Unknown(String),
}

/// Fails with [`SchemaError::Pooled`] if the outbox is older than this binary and a transaction pooler stands before the database. Returns the
/// reason if that cannot be found out: a session pooler with one server, or a role with one connection, is no reason to refuse an upgrade.
///
/// Looks from `conn`, which is in no transaction, and with one more connection.
///
/// # Errors
/// Any error of [`schema::usable_version`] as well.
pub(crate) async fn refuse_upgrade(
    conn: &mut PgConnection,
    names: &Names,
    database: &DatabaseSettings,
) -> Result<Option<String>, SchemaError> {
    let found = schema::usable_version(conn, names).await?;
    if found.is_none_or(|version| version >= CURRENT_VERSION) {
        return Ok(None);
    }
    match sharing(conn, database, UPGRADE).await? {
        Sharing::ByTransaction => Err(SchemaError::Pooled),
        Sharing::None => Ok(None),
        Sharing::Unknown(reason) => Ok(Some(reason)),
    }
}

/// Finds the pooler before the database. Behind a session pooler the process is older than the connection. Returns the reason instead if
/// there was no process for a second connection.
pub(super) async fn pooler(
    database: &DatabaseSettings,
    name: &str,
) -> Result<Result<Option<Finding>, String>, sqlx::Error> {
    let began = Instant::now();
    let mut one = connect::connect(database, name, Purpose::Read).await?;
    let age = process_age(&mut one).await?;
    let connected_for = began.elapsed().as_secs_f64();
    let found = match sharing(&mut one, database, name).await? {
        Sharing::ByTransaction if database.prepared_statements && !keeps_statements(database, name, &mut one).await => {
            Ok(Some(forgetful_pooler()))
        }
        Sharing::ByTransaction => Ok(Some(transaction_pooler())),
        Sharing::None if age > connected_for + REUSED_S => Ok(Some(session_pooler())),
        Sharing::None => Ok(None),
        Sharing::Unknown(reason) => Err(reason),
    };
    // Ignore an error, because dropping the connection ends it as well.
    drop(one.close().await);
    Ok(found)
}

/// Compares the server processes of `one` and of another connection, which is in a transaction.
async fn sharing(one: &mut PgConnection, database: &DatabaseSettings, name: &str) -> Result<Sharing, sqlx::Error> {
    let before = pid(one).await?;
    let looked = async {
        let mut other = connect::connect(database, name, Purpose::Read).await?;
        let shared = shares(one, &mut other, before).await;
        // Ignore errors, because dropping the connection ends it as well.
        drop(other.execute("rollback").await);
        drop(other.close().await);
        shared
    };
    Ok(match tokio::time::timeout(PATIENCE, looked).await {
        Ok(Ok(true)) => Sharing::ByTransaction,
        Ok(Ok(false)) => Sharing::None,
        Ok(Err(error)) => Sharing::Unknown(describe(&error)),
        Err(_) => {
            Sharing::Unknown(format!("no second connection got a server process within {} s", PATIENCE.as_secs()))
        }
    })
}

/// Returns true if the connections share a server process, or if `one` has another one than `before`. Leaves `other` in a transaction.
async fn shares(one: &mut PgConnection, other: &mut PgConnection, before: i64) -> Result<bool, sqlx::Error> {
    for turn in 1..=TURNS {
        let holding: i64 = raw(other, HOLD).await?;
        // Without another server process, `one` would have to wait for this one.
        if holding == before {
            return Ok(true);
        }
        if turn < TURNS {
            other.execute("rollback").await?;
        }
    }
    // A server process is kept busy, so that a transaction pooler may have to give another one to the first connection.
    Ok(pid(one).await? != before)
}

/// Prepares a statement on one server and executes it on another, as a pooler may do with a relay's statement. Returns true if this works
/// or if no other server could be reached.
async fn keeps_statements(database: &DatabaseSettings, name: &str, one: &mut PgConnection) -> bool {
    match tokio::time::timeout(PATIENCE, executed_elsewhere(database, name, one)).await {
        // 26000: this server has no such statement. 42P05: another client has prepared one of that name. 08P01: its parts got separated.
        Ok(Err(sqlx::Error::Database(error))) => !matches!(error.code().as_deref(), Some("26000" | "42P05" | "08P01")),
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
