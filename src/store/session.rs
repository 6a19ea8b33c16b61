//! A worker's connection, and the transaction in which it owns lanes.
//!
//! A lane is owned by the lock on its row. The lock ends with the transaction or the session, so a relay that dies hands over at once.
//! The same row holds the lane's progress and a nonce that each settled batch changes: a worker that finds the nonce it wrote knows that
//! what it remembers is what is stored.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};

use crate::lane::LaneRange;
use crate::lane::progress::{Progress, Sweep};
use crate::lane::snapshot::Snapshot;
use crate::store::delivery::{self, Owner};
use crate::store::pauses;
use crate::store::settle::{Ctid, SettleError, owned};
use event_outbox::names::{Names, literal};

/// `division_by_zero`.
const DIVISION_BY_ZERO: &str = "22012";

/// How long the statements of one step may take before the connection counts as dead.
pub(crate) const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);

/// Bounds a step against the database: a connection into a black hole answers never.
pub(crate) async fn within<T, E: From<sqlx::Error>>(step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    match tokio::time::timeout(DATABASE_TIMEOUT, step).await {
        Ok(done) => done,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()),
    }
}

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
async fn load_types(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let loaded = sqlx::query("select null::tid, null::tid[]").persistent(false).execute(conn).await;
    match loaded {
        // 26000 invalid_sql_statement_name: the statement is gone, the types are known.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("26000") => Ok(()),
        other => other.map(drop),
    }
}

/// The statements of a worker's transaction that go as simple queries: those that begin it and lock lanes in it, and those that end it.
/// Fixed per relay but for the lanes and the progress.
///
/// On a session of its own the settings hold for the session and the statements are prepared once. Behind a pooler both travel with
/// each transaction.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    settings: String,
    lane_table: String,
    outbox_literal: String,
    pauses: String,
    /// Of the rows with certain ctids, up to the ctids.
    mark: String,
    names: Names,
    prepared: bool,
}

/// A lane that the transaction has locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneRow {
    pub(crate) lane: i16,
    pub(crate) nonce: i64,
    pub(crate) ctid: Ctid,
}

/// A lane's row, read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneState {
    pub(crate) row: LaneRow,
    /// Nothing is known when the row was written on another server or for another table.
    pub(crate) progress: Progress,
    /// See migration 0009.
    pub(crate) sealed: i64,
    /// The row was written on this server and for this table.
    pub(crate) is_of_here: bool,
    /// It was written on another one: not new.
    pub(crate) was_of_elsewhere: bool,
}

/// What the transaction locked and saw.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Ascending.
    pub(crate) lanes: Vec<LaneRow>,
    /// Changes whenever an operator changes what is held or paused.
    pub(crate) generation: i64,
    /// Of the wanted lanes those that a worker publishes in Kafka transactions.
    pub(crate) owners: Vec<Owner>,
    pub(crate) server: ServerProcess,
}

/// Which process of which server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerProcess {
    /// When the server started: another time means that another server may answer.
    pub(crate) started: String,
    pub(crate) pid: i32,
}

/// Which lanes a transaction locks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// Rows whose ctids are known: their cost stays flat when old versions cannot be removed.
    Ctids(LaneRange, &'a [Ctid]),
    /// All that are free of these lanes.
    Free(LaneRange),
}

/// What the end of a batch writes about its lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneUpdate<'a> {
    pub(crate) ctids: &'a [Ctid],
    pub(crate) nonce: i64,
    pub(crate) progress: &'a Progress,
    /// Lanes of which the batch has committed events to Kafka in a transaction.
    pub(crate) sealed: &'a [i16],
}

/// How the transaction after a settled batch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// In the same round trip, on the same lanes.
    Begin(LaneRange),
    /// Later.
    None,
}

/// What a settled batch leaves behind.
#[derive(Debug)]
pub(crate) struct Settled {
    /// Where the lanes' rows are now; empty when they were not written.
    pub(crate) ctids: Vec<Ctid>,
    pub(crate) begun: Option<Begun>,
}

const BEGIN: &str = "begin isolation level read committed read write";

/// A session variable that carries the new ctids of the lanes' rows from the statement that writes them to the one that locks them.
const CTIDS: &str = "outbox_relay.lanes";

impl Transaction {
    /// The isolation is the one in which a statement after the locks sees what their last owner has committed. The server gives a
    /// statement up before the relay gives up the connection, or its backend would stay behind, with its locks.
    ///
    /// `longest` bounds how long the transaction may idle: a relay frozen for longer loses its session, and with it the lanes. A relay
    /// frozen while a claim is being sent to it is bounded by `tcp_user_timeout`: a backend that writes obeys no other.
    /// `durable`: a mark that a crash of Postgres forgets would be a duplicate, and none is allowed.
    pub(crate) fn new(names: &Names, longest: Duration, prepared: bool, durable: bool) -> Self {
        let scope = if prepared { "set" } else { "set local" };
        let idle = format!("idle_in_transaction_session_timeout = {}", longest.as_millis());
        let settings = [
            "search_path = pg_catalog, pg_temp",
            "jit = off",
            if durable { "synchronous_commit = on" } else { "synchronous_commit = off" },
            "enable_seqscan = off",
            "enable_bitmapscan = off",
            "enable_sort = off",
            "plan_cache_mode = force_generic_plan",
            "lock_timeout = '5s'",
            "statement_timeout = '14s'",
            "tcp_user_timeout = '10s'",
            &idle,
        ]
        .map(|setting| format!("{scope} {setting}; "))
        .concat();
        let mark = format!(
            "update {} set status = 'PUBLISHED', published_at = statement_timestamp(), due = null where ctid",
            names.outbox()
        );
        Self {
            settings,
            lane_table: names.companion("lane"),
            outbox_literal: literal(&names.outbox()),
            pauses: pauses::counter(names),
            mark,
            names: names.clone(),
            prepared,
        }
    }

    /// An expression for what [`Begun`] calls generation, for a probe.
    pub(crate) fn generation(&self) -> &str {
        &self.pauses
    }

    fn lock(&self, condition: &str) -> String {
        format!(
            "select lane::int8, nonce, ctid::text from {} where {condition} for update skip locked",
            self.lane_table
        )
    }

    fn see(&self, first: &str, last: &str) -> String {
        let owners = delivery::owners_between(&self.names, first, last);
        format!("select {}, ({owners}), pg_postmaster_start_time()::text, pg_backend_pid()::int8", self.pauses)
    }

    /// Another number of rows than asked for means that they could not be marked: the division fails, and with it the transaction,
    /// before it can commit.
    fn mark(&self, ctids: &str, count: &str) -> String {
        let mark = &self.mark;
        format!(
            "with changed as ({mark} = any ({ctids}::tid[]) and status = 'PENDING' returning 1) \
             select 1 / (count(*) = {count})::int from changed"
        )
    }

    fn advance(&self, [ctids, count, nonce, scanned, snapshot, swept, sweep, sealed]: [&str; 8]) -> String {
        let lane_table = &self.lane_table;
        format!(
            "with moved as (update {lane_table} set nonce = {nonce}, sealed = case when lane = any ({sealed}::smallint[]) then {nonce} else sealed end, \
               scanned_through = {scanned}, snapshot = {snapshot}::pg_snapshot, swept_through = {swept}, \
               sweep_snapshot = {sweep}::pg_snapshot where ctid = any ({ctids}::tid[]) returning ctid) \
             select set_config('{CTIDS}', coalesce(array_agg(ctid)::text, '{{}}'), false), 1 / (count(*) = {count})::int from moved"
        )
    }

    /// Makes a new session ready. Nothing to do behind a pooler.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn prepare(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        if !self.prepared {
            return load_types(conn).await;
        }
        let settings = &self.settings;
        let lock = self.lock("ctid = any ($1::tid[])");
        let (see, mark) = (self.see("$1", "$2"), self.mark("$1", "$2"));
        let advance = self.advance(["$1", "$2", "$3", "$4", "$5", "$6", "$7", "$8"]);
        let sql = format!(
            "{settings} prepare outbox_relay_lock (text) as {lock}; \
             prepare outbox_relay_see (smallint, smallint) as {see}; \
             prepare outbox_relay_mark (text, bigint) as {mark}; \
             prepare outbox_relay_advance (text, bigint, bigint, bigint, text, bigint, text, text) as {advance}",
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
    }

    /// `begin` and the settings, for EXPLAIN.
    pub(crate) fn settings_text(&self) -> String {
        format!("{BEGIN}; {}", self.settings)
    }

    /// Begins a transaction and locks lanes. The locks come in a statement before the claim: its snapshot then sees what their last owner
    /// has committed.
    ///
    /// # Errors
    /// Any database error. The connection must be dropped then: it may be inside a transaction.
    pub(crate) async fn begin(&self, conn: &mut PgConnection, wanted: Wanted<'_>) -> Result<Begun, sqlx::Error> {
        let text = match wanted {
            Wanted::Ctids(lanes, ctids) => self.begin_text(lanes, &format!("'{}'", Ctid::array(ctids))),
            Wanted::Free(lanes) => {
                let LaneRange { first, last } = lanes;
                let lock = self.lock(&format!("lane between {first} and {last}"));
                self.script(lanes, &lock)
            }
        };
        begun(&conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(text))).await?)
    }

    /// `ctids`: an expression.
    fn begin_text(&self, lanes: LaneRange, ctids: &str) -> String {
        let lock = match self.prepared {
            true => format!("execute outbox_relay_lock ({ctids})"),
            false => self.lock(&format!("ctid = any ({ctids}::tid[])")),
        };
        self.script(lanes, &lock)
    }

    fn script(&self, LaneRange { first, last }: LaneRange, lock: &str) -> String {
        if self.prepared {
            return format!("{BEGIN}; {lock}; execute outbox_relay_see ({first}, {last})");
        }
        format!("{BEGIN}; {} {lock}; {}", self.settings, self.see(&first.to_string(), &last.to_string()))
    }

    /// Reads the rows of lanes that the transaction has locked.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn read_lanes(
        &self,
        conn: &mut PgConnection,
        LaneRange { first, last }: LaneRange,
    ) -> Result<Vec<LaneState>, sqlx::Error> {
        let sql = format!(
            "select lane::int8, nonce, ctid::text, scanned_through, snapshot::text, swept_through, sweep_snapshot::text, sealed, \
               system is not distinct from (select system_identifier from pg_control_system()) \
                 and relation is not distinct from {}::regclass::oid, system is not null \
             from {} where lane between {first} and {last}",
            self.outbox_literal, self.lane_table
        );
        let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        let mut lanes = rows.iter().map(lane_state).collect::<Result<Vec<_>, _>>()?;
        lanes.sort_by_key(|state| state.row.lane);
        Ok(lanes)
    }

    /// Resets the progress of lanes that was written on another server or for another table: its ids and transaction ids are allocated again
    /// here.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] when not all rows could be written.
    pub(crate) async fn reset_lanes(
        &self,
        conn: &mut PgConnection,
        lanes: &[Ctid],
        nonce: i64,
    ) -> Result<(), SettleError> {
        let sql = format!(
            "update {} set nonce = {nonce}, scanned_through = 0, snapshot = '3:3:', swept_through = 0, sweep_snapshot = null, \
               system = (select system_identifier from pg_control_system()), relation = {}::regclass::oid \
             where ctid = any ('{}'::tid[])",
            self.lane_table,
            self.outbox_literal,
            Ctid::array(lanes)
        );
        let changed = conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        owned(lanes.len(), changed.rows_affected())
    }

    /// PENDING -> PUBLISHED, and the lanes' new progress, and commits; only after the broker has acknowledged. Where there will be more
    /// to do it begins the next transaction, all in one round trip.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] when another number of rows would have been changed: nothing is.
    pub(crate) async fn mark_and_commit(
        &self,
        conn: &mut PgConnection,
        rows: &[Ctid],
        lanes: Option<LaneUpdate<'_>>,
        next: Next,
    ) -> Result<Settled, SettleError> {
        let mut sql = self.mark_text(rows);
        if let Some(lanes) = &lanes {
            sql.push_str(&self.advance_text(lanes));
            sql.push_str("; ");
        }
        sql.push_str("commit; ");
        // Behind a pooler the next transaction may be another session's, which does not have the variable.
        let next = if self.prepared && lanes.is_some() { next } else { Next::None };
        if let Next::Begin(range) = next {
            sql.push_str(&self.begin_text(range, &format!("current_setting('{CTIDS}')")));
        }
        let answers = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await;
        let answers = answers.map_err(|error| unmarked(error, rows))?;
        let mut answers = &answers[usize::from(!rows.is_empty()).min(answers.len())..];
        let mut ctids = Vec::new();
        if lanes.is_some() {
            let (moved, rest) = answers.split_first().ok_or(sqlx::Error::RowNotFound)?;
            ctids = Ctid::parse_array(moved.try_get(0)?).ok_or(sqlx::Error::RowNotFound)?;
            answers = rest;
        }
        let begun = if let Next::Begin(_) = next { Some(begun(answers)?) } else { None };
        Ok(Settled { ctids, begun })
    }

    fn advance_text(&self, lanes: &LaneUpdate<'_>) -> String {
        let (ctids, count) = (format!("'{}'", Ctid::array(lanes.ctids)), lanes.ctids.len().to_string());
        let Progress { scanned_through, snapshot, sweep } = lanes.progress;
        let (nonce, scanned, snapshot) =
            (lanes.nonce.to_string(), scanned_through.to_string(), format!("'{snapshot}'"));
        let swept = sweep.as_ref().map_or_else(|| "0".to_owned(), |sweep| sweep.through.to_string());
        let sweep = sweep.as_ref().map_or_else(|| "null".to_owned(), |sweep| format!("'{}'", sweep.snapshot));
        let sealed = lanes.sealed.iter().map(i16::to_string).collect::<Vec<_>>().join(",");
        let values = [&ctids, &count, &nonce, &scanned, &snapshot, &swept, &sweep, &format!("'{{{sealed}}}'")];
        match self.prepared {
            true => format!("execute outbox_relay_advance ({})", values.map(String::as_str).join(", ")),
            false => self.advance(values.map(String::as_str)),
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
        let (ctids, count) = (Ctid::array(rows), rows.len().to_string());
        if self.prepared {
            format!("execute outbox_relay_mark ('{ctids}', {count}); ")
        } else {
            self.mark(&format!("'{ctids}'"), &count) + "; "
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

/// Where event ids are allocated from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sequence(Option<String>);

impl Sequence {
    /// Looks the sequence of the outbox up; there may be none that belongs to its `id`.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn read(conn: &mut PgConnection, names: &Names) -> Result<Self, sqlx::Error> {
        let sql = format!("select pg_get_serial_sequence({}, 'id')", literal(&names.outbox()));
        let row = conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        row.try_get(0).map(Self)
    }

    /// An expression for the last id allocated; null where that cannot be known.
    pub(crate) fn last_allocated(&self) -> String {
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

/// The rows of a script that begins: one per lane, and one of what it saw.
fn begun(rows: &[PgRow]) -> Result<Begun, sqlx::Error> {
    let (seen, locked) = rows.split_last().ok_or(sqlx::Error::RowNotFound)?;
    let mut lanes = locked.iter().map(lane_row).collect::<Result<Vec<_>, _>>()?;
    lanes.sort_by_key(|row| row.lane);
    Ok(Begun {
        lanes,
        generation: seen.try_get(0)?,
        owners: delivery::owners(seen.try_get(1)?)?,
        server: ServerProcess { started: seen.try_get(2)?, pid: seen.try_get::<i64, _>(3)? as i32 },
    })
}

fn lane_row(row: &PgRow) -> Result<LaneRow, sqlx::Error> {
    Ok(LaneRow { lane: row.try_get::<i64, _>(0)? as i16, nonce: row.try_get(1)?, ctid: parse_ctid(row.try_get(2)?)? })
}

fn parse_ctid(text: &str) -> Result<Ctid, sqlx::Error> {
    Ctid::parse(text).ok_or_else(|| sqlx::Error::Decode("not a ctid".into()))
}

fn lane_state(row: &PgRow) -> Result<LaneState, sqlx::Error> {
    let snapshot = |text: &str| -> Result<Snapshot, sqlx::Error> {
        text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
    };
    let is_of_here: bool = row.try_get(8)?;
    let sweep: Option<&str> = row.try_get(6)?;
    let through = row.try_get(5)?;
    let progress = match is_of_here {
        true => Progress {
            scanned_through: row.try_get(3)?,
            snapshot: snapshot(row.try_get(4)?)?,
            sweep: sweep.map(|text| Ok::<_, sqlx::Error>(Sweep { through, snapshot: snapshot(text)? })).transpose()?,
        },
        false => Progress::default(),
    };
    let was_of_elsewhere = !is_of_here && row.try_get::<bool, _>(9)?;
    Ok(LaneState { row: lane_row(row)?, progress, sealed: row.try_get(7)?, is_of_here, was_of_elsewhere })
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
