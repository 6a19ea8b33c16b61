//! A worker's connection, and the transaction in which it owns lanes.
//!
//! Everything the transaction needs travels as one simple query: the settings (`set local`, so that nothing is left behind in
//! a pooler's server connection), the locks, the snapshot. The locks end with the transaction or the session, so a relay that
//! dies hands over at once.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};

use crate::lane::LaneRange;
use crate::store::names::{Names, literal};
use crate::store::pauses;
use crate::store::snapshot::Snapshot;

/// Opens a connection that names itself in `pg_stat_activity`.
///
/// # Errors
/// Any connection error, [`sqlx::Error::PoolTimedOut`] after `timeout`.
pub(crate) async fn connect(
    options: &PgConnectOptions,
    application_name: &str,
    timeout: Duration,
) -> Result<PgConnection, sqlx::Error> {
    let options = options.clone().application_name(application_name).disable_statement_logging();
    match tokio::time::timeout(timeout, PgConnection::connect_with(&options)).await {
        Ok(connected) => connected,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut))),
    }
}

/// Lets sqlx look up the types of the relay's statements that it does not know. It looks between parsing a statement and binding
/// it, by a simple query, which takes the unnamed statement away: without named ones the first claim of every session would fail.
///
/// # Errors
/// Any database error but the expected one.
pub(crate) async fn learn_types(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let learnt = sqlx::query("select null::tid, null::tid[]").persistent(false).execute(conn).await;
    match learnt {
        // 26000 invalid_sql_statement_name: the statement is gone, the types are known.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("26000") => Ok(()),
        other => other.map(drop),
    }
}

/// The first key of the advisory locks on the lanes; the second is the lane. SQL text.
pub(crate) fn lane_key(names: &Names) -> String {
    // The table's oid is unsigned and the lock's key is signed: the same 32 bits.
    let oid = format!("{}::regclass::oid::int8", literal(&names.companion("lane")));
    format!("({oid} - case when {oid} > 2147483647 then 4294967296 else 0 end)::int4")
}

/// The statements that begin a transaction and own lanes in it, fixed per worker but for the range.
#[derive(Debug, Clone)]
pub(crate) struct Beginning {
    settings: String,
    lane_table: String,
    lock: String,
    pauses: String,
}

/// What the transaction owns and saw.
#[derive(Debug)]
pub(crate) struct Owned {
    /// Lanes locked, ascending.
    pub(crate) lanes: Vec<i16>,
    /// Taken after the locks.
    pub(crate) snapshot: Snapshot,
    /// Sum over the wanted lanes, and the counter of pauses: changes whenever somebody changes what is held or paused.
    pub(crate) generation: i64,
}

impl Beginning {
    /// The isolation is the one in which a statement after the locks sees what their last owner has committed. The server gives a
    /// statement up before the relay gives up the connection, or its backend would stay behind, with its locks.
    ///
    /// `longest` bounds how long the transaction may idle: a relay frozen for longer loses its session, and with it the lanes.
    pub(crate) fn new(names: &Names, longest: Duration) -> Self {
        let settings = format!(
            "begin isolation level read committed read write; \
             set local search_path = pg_catalog; \
             set local jit = off; \
             set local synchronous_commit = off; \
             set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off; \
             set local plan_cache_mode = force_generic_plan; \
             set local lock_timeout = '5s'; set local statement_timeout = '14s'; \
             set local idle_in_transaction_session_timeout = {};",
            longest.as_millis()
        );
        let lane_table = names.companion("lane");
        let lock = format!("pg_try_advisory_xact_lock({}, lane)", lane_key(names));
        Self { settings, lane_table, lock, pauses: pauses::counter(names) }
    }

    /// `begin` and the settings, for EXPLAIN.
    pub(crate) fn settings_text(&self) -> &str {
        &self.settings
    }

    /// Begins a transaction and takes what is free of `want`.
    ///
    /// # Errors
    /// Any database error. The connection must be dropped then: it may be inside a transaction.
    pub(crate) async fn begin(&self, conn: &mut PgConnection, want: LaneRange) -> Result<Owned, sqlx::Error> {
        let Self { settings, lane_table, lock, pauses } = self;
        let LaneRange { first, last } = want;
        // The lock is tried outside the scan, on a materialized list, so that no plan can try it for other lanes. The generation
        // is read by a later statement than the lock: its snapshot sees what the last owner of the lock has committed.
        let sql = format!(
            "{settings} \
             with wanted as materialized (select lane from {lane_table} where lane between {first} and {last}) \
             select lane::int8, null::text from wanted \
             where {lock}; \
             select sum(generation)::int8 + {pauses}, pg_current_snapshot()::text from {lane_table} \
             where lane between {first} and {last}"
        );
        let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        owned(&rows)
    }
}

fn owned(rows: &[PgRow]) -> Result<Owned, sqlx::Error> {
    let (seen, locked) = rows.split_last().ok_or(sqlx::Error::RowNotFound)?;
    let mut lanes =
        locked.iter().map(|row| row.try_get::<i64, _>(0).map(|lane| lane as i16)).collect::<Result<Vec<_>, _>>()?;
    lanes.sort_unstable();
    let snapshot: String = seen.try_get(1)?;
    Ok(Owned {
        lanes,
        snapshot: snapshot.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        generation: seen.try_get(0)?,
    })
}

/// Commits. An error leaves it open whether the marks are there; the rows are then claimed again or not at all.
///
/// # Errors
/// Any database error.
pub(crate) async fn commit(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute("commit").await.map(drop)
}

/// Gives everything back unchanged.
///
/// # Errors
/// Any database error.
pub(crate) async fn rollback(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute("rollback").await.map(drop)
}
