//! A worker's connection, and the transaction in which it owns lanes.
//!
//! Everything the transaction needs travels as one simple query: the settings (`set local`, so that nothing is left behind in
//! a pooler's server connection), the locks, the snapshot. The locks end with the transaction or the session, so a relay that
//! dies hands over at once.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};

use crate::lane::LaneRange;
use crate::store::delivery::{self, Owner};
use crate::store::names::{Names, literal};
use crate::store::pauses;
use crate::store::settle::{Ctid, SettleError};
use crate::store::snapshot::Snapshot;

/// `division_by_zero`.
const DIVISION_BY_ZERO: &str = "22012";

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
async fn learn_types(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
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

/// The statements of a worker's transaction that go as simple queries: those that begin it and own lanes in it, and the mark that
/// ends it. Fixed per worker but for the range.
///
/// On a session of its own the settings hold for the session and the statements are prepared once. Behind a pooler both travel with
/// each transaction.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    settings: String,
    lane_table: String,
    lock: String,
    pauses: String,
    drawn: String,
    /// Of the rows at certain places, up to the places.
    change: String,
    names: Names,
    prepared: bool,
}

/// What the transaction owns and saw.
#[derive(Debug)]
pub(crate) struct Owned {
    /// Lanes locked, ascending.
    pub(crate) lanes: Vec<i16>,
    /// Taken after the locks.
    pub(crate) snapshot: Snapshot,
    /// Before the locks were asked for.
    pub(crate) asked: Instant,
    /// The last event id drawn, read after the snapshot was taken; `None` without the right to read the sequence.
    pub(crate) drawn: Option<i64>,
    /// Sum over the wanted lanes: changes whenever somebody changes what is held or paused.
    pub(crate) generation: i64,
    /// Of the wanted lanes those that a worker publishes in Kafka transactions.
    pub(crate) owners: Vec<Owner>,
}

const BEGIN: &str = "begin isolation level read committed read write";

impl Transaction {
    /// The isolation is the one in which a statement after the locks sees what their last owner has committed. The server gives a
    /// statement up before the relay gives up the connection, or its backend would stay behind, with its locks.
    ///
    /// `longest` bounds how long the transaction may idle: a relay frozen for longer loses its session, and with it the lanes.
    /// `durable`: a mark that a crash of Postgres forgets would be a duplicate, and none is allowed.
    pub(crate) fn new(names: &Names, sequence: &Sequence, longest: Duration, prepared: bool, durable: bool) -> Self {
        let scope = if prepared { "set" } else { "set local" };
        let idle = format!("idle_in_transaction_session_timeout = {}", longest.as_millis());
        let settings = [
            "search_path = pg_catalog",
            "jit = off",
            if durable { "synchronous_commit = on" } else { "synchronous_commit = off" },
            "enable_seqscan = off",
            "enable_bitmapscan = off",
            "enable_sort = off",
            "plan_cache_mode = force_generic_plan",
            "lock_timeout = '5s'",
            "statement_timeout = '14s'",
            &idle,
        ]
        .map(|setting| format!("{scope} {setting}; "))
        .concat();
        let (outbox, lane_table) = (names.outbox(), names.companion("lane"));
        let lock = format!("pg_try_advisory_xact_lock({}, lane)", lane_key(names));
        let change =
            format!("update {outbox} set status = 'PUBLISHED', published_at = statement_timestamp() where ctid");
        Self {
            settings,
            lane_table,
            lock,
            pauses: pauses::counter(names),
            drawn: sequence.drawn(),
            change,
            names: names.clone(),
            prepared,
        }
    }

    /// The lock is tried outside the scan, on a materialized list, so that no plan can try it for other lanes.
    fn own(&self, first: &str, last: &str) -> String {
        let Self { lane_table, lock, .. } = self;
        format!(
            "with wanted as materialized (select lane from {lane_table} where lane between {first} and {last}) \
             select lane::int8, null::text, null::int8 from wanted where {lock}"
        )
    }

    /// By a later statement than the lock: its snapshot sees what the last owner of the lock has committed.
    fn see(&self, first: &str, last: &str) -> String {
        let Self { lane_table, pauses, drawn, .. } = self;
        format!(
            "select sum(generation)::int8 + {pauses}, pg_current_snapshot()::text, ({drawn}), ({owners}) from {lane_table} \
             where lane between {first} and {last}",
            owners = delivery::owners_between(&self.names, first, last)
        )
    }

    /// Another number of rows than asked for means that they were not ours: the division fails, and with it the transaction, before
    /// it can commit.
    fn mark(&self, places: &str, count: &str) -> String {
        let change = &self.change;
        format!(
            "with changed as ({change} = any ({places}::tid[]) and status = 'PENDING' returning 1) \
             select 1 / (count(*) = {count})::int from changed"
        )
    }

    /// Makes a new session ready. Nothing to do behind a pooler.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn prepare(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        if !self.prepared {
            return learn_types(conn).await;
        }
        let (settings, own, see) = (&self.settings, self.own("$1", "$2"), self.see("$1", "$2"));
        let mark = self.mark("$1", "$2");
        let sql = format!(
            "{settings} prepare outbox_relay_own (smallint, smallint) as {own}; \
             prepare outbox_relay_see (smallint, smallint) as {see}; \
             prepare outbox_relay_mark (text, bigint) as {mark}",
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
    }

    /// `begin` and the settings, for EXPLAIN.
    pub(crate) fn settings_text(&self) -> String {
        format!("{BEGIN}; {}", self.settings)
    }

    /// Begins a transaction and takes what is free of `want`.
    ///
    /// # Errors
    /// Any database error. The connection must be dropped then: it may be inside a transaction.
    pub(crate) async fn begin(&self, conn: &mut PgConnection, want: LaneRange) -> Result<Owned, sqlx::Error> {
        let asked = Instant::now();
        let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(self.begin_text(want)))).await?;
        owned(&rows, asked)
    }

    fn begin_text(&self, LaneRange { first, last }: LaneRange) -> String {
        if self.prepared {
            return format!(
                "{BEGIN}; execute outbox_relay_own ({first}, {last}); execute outbox_relay_see ({first}, {last})"
            );
        }
        let (first, last) = (first.to_string(), last.to_string());
        format!("{BEGIN}; {} {}; {}", self.settings, self.own(&first, &last), self.see(&first, &last))
    }

    /// PENDING -> PUBLISHED, and commits; only after the broker has acknowledged. Where there will be more to do it begins
    /// the next transaction on `next`, all in one round trip.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] when another number of rows would have been changed: nothing is.
    pub(crate) async fn mark_and_commit(
        &self,
        conn: &mut PgConnection,
        rows: &[Ctid],
        next: Option<LaneRange>,
    ) -> Result<Option<Owned>, SettleError> {
        let mut sql = self.mark_text(rows);
        sql.push_str("commit; ");
        if let Some(next) = next {
            sql.push_str(&self.begin_text(next));
        }
        let asked = Instant::now();
        match conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await {
            Ok(answers) if next.is_some() => Ok(Some(owned(&answers[usize::from(!rows.is_empty())..], asked)?)),
            Ok(_) => Ok(None),
            Err(error) => Err(unmarked(error, rows)),
        }
    }

    /// Marks these rows and takes it back: shows whether they could be marked, before they are published. Their locks stay.
    ///
    /// # Errors
    /// What marking them would have met.
    pub(crate) async fn rehearse_mark(&self, conn: &mut PgConnection, rows: &[Ctid]) -> Result<(), SettleError> {
        let mark = self.mark_text(rows);
        let sql = format!("savepoint rehearsal; {mark}rollback to savepoint rehearsal; release savepoint rehearsal");
        conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop).map_err(|error| unmarked(error, rows))
    }

    /// One statement, or none where there are no rows.
    fn mark_text(&self, rows: &[Ctid]) -> String {
        if rows.is_empty() {
            return String::new();
        }
        let (mut places, count) = (String::with_capacity(rows.len() * 18 + 200), rows.len().to_string());
        places.push('{');
        rows.iter().for_each(|place| place.push_to(&mut places));
        places.pop();
        places.push('}');
        if self.prepared {
            format!("execute outbox_relay_mark ('{places}', {count}); ")
        } else {
            self.mark(&format!("'{places}'"), &count) + "; "
        }
    }
}

fn unmarked(error: sqlx::Error, rows: &[Ctid]) -> SettleError {
    match error {
        sqlx::Error::Database(error) if error.code().as_deref() == Some(DIVISION_BY_ZERO) => {
            SettleError::NotOwned { rows: rows.len() }
        }
        error => error.into(),
    }
}

/// Where event ids are drawn from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sequence(Option<String>);

impl Sequence {
    /// Looks the sequence of the outbox up; there may be none that belongs to its `id`.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn of(conn: &mut PgConnection, names: &Names) -> Result<Self, sqlx::Error> {
        let sql = format!("select pg_get_serial_sequence({}, 'id')", literal(&names.outbox()));
        let row = conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        row.try_get(0).map(Self)
    }

    /// An expression for the last id drawn; null where that cannot be known.
    pub(crate) fn drawn(&self) -> String {
        self.0.as_ref().map_or_else(
            || "null::int8".to_owned(),
            |name| {
                format!(
                    "select case when has_sequence_privilege(s, 'usage, select') then pg_sequence_last_value(s) end \
                     from to_regclass({}) s",
                    literal(name)
                )
            },
        )
    }
}

fn owned(rows: &[PgRow], asked: Instant) -> Result<Owned, sqlx::Error> {
    let (seen, locked) = rows.split_last().ok_or(sqlx::Error::RowNotFound)?;
    let mut lanes =
        locked.iter().map(|row| row.try_get::<i64, _>(0).map(|lane| lane as i16)).collect::<Result<Vec<_>, _>>()?;
    lanes.sort_unstable();
    let snapshot: String = seen.try_get(1)?;
    Ok(Owned {
        lanes,
        snapshot: snapshot.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        asked,
        drawn: seen.try_get(2)?,
        generation: seen.try_get(0)?,
        owners: delivery::owners(seen.try_get(3)?)?,
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
