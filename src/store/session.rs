//! Prepares a worker's connection, and runs the transaction in which the worker owns lanes.
//!
//! A worker owns a lane by the lock on the lane's row. The lock ends with the transaction or the session, so another worker can take the
//! lanes of a relay that dies at once. The same row holds the lane's progress and a nonce, which each settled batch changes. A worker that
//! finds the nonce it wrote knows that its memory agrees with the stored progress.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::config::Settle;
use crate::lane::LaneRange;
use crate::lane::progress::{Progress, Sweep};
use crate::lane::snapshot::Snapshot;
use crate::store::delivery::{self, Owner};
use crate::store::pauses;
use crate::store::search_path;
use crate::store::settle::{self, Ctid, SettleError, owned};
use event_outbox::names::{Names, literal};

/// The SQLSTATE of `division_by_zero`.
const DIVISION_BY_ZERO: &str = "22012";

/// The time that the statements of one step may take before the connection counts as dead.
pub(crate) const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);

/// Bounds a step against the database: a connection into a black hole answers never.
pub(crate) async fn within<T, E: From<sqlx::Error>>(step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    match tokio::time::timeout(DATABASE_TIMEOUT, step).await {
        Ok(done) => done,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()),
    }
}

/// Makes sqlx look up the types of the relay's statements that it does not know. The lookup is a simple query between parsing and binding,
/// and it destroys the unnamed statement. Without named statements the first claim of every session would fail.
///
/// # Errors
/// Any database error except the expected one.
async fn load_types(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    let types = sqlx::query("select null::pg_catalog.tid, null::pg_catalog.tid[]");
    let loaded = types.persistent(false).execute(&mut *tx).await;
    drop(tx.rollback().await);
    match loaded {
        // 26000 invalid_sql_statement_name: the statement is gone, but the types are known now.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("26000") => Ok(()),
        other => other.map(drop),
    }
}

/// The statements of a worker's transaction that are sent as simple queries: those that begin it and lock lanes, and those that end it.
/// They are fixed per relay, except for the lanes and the progress.
///
/// With its own session, a worker sets the settings once for the session and prepares the statements once. Behind a pooler, both are sent
/// with each transaction.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    settings: String,
    lane_table: String,
    outbox_literal: String,
    pauses: String,
    /// The statement that marks rows by their ctids, without the ctids.
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

/// All columns of a lane's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneState {
    pub(crate) row: LaneRow,
    /// The lane's progress; the default, which knows nothing, if the row was written on another server or for another table.
    pub(crate) progress: Progress,
    /// The nonce of the last batch that was committed exactly once: see migration 0009.
    pub(crate) sealed: i64,
    /// True if the row was written on this server and for this table.
    pub(crate) is_of_here: bool,
    /// True if the row was written on another server or for another table, and is not new.
    pub(crate) was_of_elsewhere: bool,
}

/// The lanes that the transaction locked, and the facts it saw.
#[derive(Debug)]
pub(crate) struct Begun {
    /// The locked lanes, ascending.
    pub(crate) lanes: Vec<LaneRow>,
    /// A counter that changes whenever an operator changes what is held or paused.
    pub(crate) generation: i64,
    /// The owners of those wanted lanes that a worker publishes in Kafka transactions.
    pub(crate) owners: Vec<Owner>,
    pub(crate) server: ServerProcess,
}

/// The server process that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerProcess {
    /// The start time of the server. Another time means that another server may answer.
    pub(crate) started: String,
    pub(crate) pid: i32,
}

/// The lanes that a transaction locks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// Lanes' rows by their known ctids. Their cost stays constant even if vacuum cannot remove old row versions.
    Ctids(LaneRange, &'a [Ctid]),
    /// All lanes of the range that are not locked.
    Free(LaneRange),
}

/// The changes to the lanes' rows at the end of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneUpdate<'a> {
    /// The rows to write, in the order of their lanes.
    pub(crate) ctids: &'a [Ctid],
    /// The other locked rows, which stay as they are.
    pub(crate) unwritten: &'a [Ctid],
    pub(crate) nonce: i64,
    pub(crate) progress: &'a Progress,
    /// The lanes whose events the batch has committed to Kafka in a transaction.
    pub(crate) sealed: &'a [i16],
}

/// The start of the transaction after a settled batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Begins in the same round trip, on the same lanes.
    Begin(LaneRange),
    /// Does not begin yet.
    None,
}

/// The state after a settled batch.
#[derive(Debug)]
pub(crate) struct Settled {
    /// The new ctids of the rows of [`LaneUpdate::ctids`], in the same order; empty if no lanes' rows were written.
    pub(crate) ctids: Vec<Ctid>,
    pub(crate) begun: Option<Begun>,
}

/// Does not ask for a transaction that may write: under `default_transaction_read_only` the locks must fail, as the heartbeat does. A relay
/// that publishes without a heartbeat would lose its lanes to others.
const BEGIN: &str = "begin isolation level read committed";

/// The session variable that passes the new ctids of the lanes' rows from the statement that writes them to the one that locks them.
const CTIDS: &str = "outbox_relay.lanes";

impl Transaction {
    /// Renders the statements. In read committed isolation, a statement after the locks sees what the lanes' last owner committed. The
    /// server's timeouts are shorter than the relay's. Otherwise a backend could stay behind with its locks after the relay gave up the
    /// connection.
    ///
    /// `longest` limits how long the transaction may be idle: a relay that is frozen for longer loses its session, and with it the lanes.
    /// If the relay is frozen while the server sends it a claim, `tcp_user_timeout` is the limit, because a backend that is writing obeys
    /// no other timeout. `durable` is set for exactly-once: a mark that is lost in a crash of Postgres would become a duplicate.
    pub(crate) fn new(names: &Names, longest: Duration, prepared: bool, durable: bool, settle: Settle) -> Self {
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
        let mark = format!("{} where ctid", settle::published(&names.outbox(), settle));
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

    /// Returns SQL for [`Begun::generation`], for use in a probe.
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

    /// Divides by zero unless exactly `count` rows were marked. The error makes the transaction fail before it can commit.
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
               sweep_snapshot = {sweep}::pg_snapshot where ctid = any ({ctids}::tid[]) returning ctid, lane) \
             select set_config('{CTIDS}', coalesce(array_agg(ctid order by lane)::text, '{{}}'), false), \
               1 / (count(*) = {count})::int from moved"
        )
    }

    /// Prepares a new session. Behind a pooler only the types are loaded.
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

    /// Returns `begin` and the settings, for EXPLAIN.
    pub(crate) fn settings_text(&self) -> String {
        format!("{BEGIN}; {}", self.settings)
    }

    /// Begins a transaction and locks lanes. The locks are taken in a statement before the claim, so that the claim's snapshot sees what
    /// the lanes' last owner committed.
    ///
    /// # Errors
    /// Any database error. Drop the connection then: it may be inside a transaction.
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

    /// Returns the script that begins a transaction and locks the lanes at `ctids`, an SQL expression.
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

    /// Resets the progress of lanes that was written on another server or for another table. Its ids and transaction ids will be allocated
    /// again here.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] if not all rows could be written.
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

    /// Marks rows as PUBLISHED, writes the lanes' new progress, and commits. Call it only after the broker has acknowledged the rows. If
    /// there is more to do, the same round trip begins the next transaction.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] if another number of rows would have been changed; nothing is changed then.
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
        let next = match (next, &lanes) {
            // Behind a pooler the next transaction may run in another session, which does not have the variable.
            (Next::Begin(range), Some(lanes)) if self.prepared => {
                sql.push_str(&self.begin_text(range, &written_and(lanes.unwritten)));
                next
            }
            _ => Next::None,
        };
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

    /// Marks the rows in a savepoint and rolls it back, to show before publishing whether they can be marked. The locks stay.
    ///
    /// # Errors
    /// The error that marking the rows would meet.
    pub(crate) async fn rehearse_mark(&self, conn: &mut PgConnection, rows: &[Ctid]) -> Result<(), SettleError> {
        let mark = self.mark_text(rows);
        let sql = format!("savepoint rehearsal; {mark}rollback to savepoint rehearsal; release savepoint rehearsal");
        conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop).map_err(|error| unmarked(error, rows))
    }

    /// Returns one statement, or none if there are no rows.
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

/// Returns an SQL expression for the text of a `tid[]`: the rows that the last update of lanes wrote, and `others`.
fn written_and(others: &[Ctid]) -> String {
    match others {
        [] => format!("current_setting('{CTIDS}')"),
        others => format!("(current_setting('{CTIDS}')::tid[] || '{}'::tid[])::text", Ctid::array(others)),
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

/// The sequence that allocates event ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sequence(Option<String>);

impl Sequence {
    /// Looks up the sequence of the outbox. There may be none that belongs to its `id`.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn read(conn: &mut PgConnection, names: &Names) -> Result<Self, sqlx::Error> {
        let sql = format!("select pg_catalog.pg_get_serial_sequence({}, 'id')", literal(&names.outbox()));
        let row = conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        row.try_get(0).map(Self)
    }

    /// Returns SQL for the last id allocated; null if it cannot be known.
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

/// Reads the rows of a script that begins a transaction: one row per lane, and a last one with the other facts.
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

/// Commits. After an error it is unknown whether the marks were committed. If they were not, the rows are claimed again.
///
/// # Errors
/// Any database error.
pub(crate) async fn commit(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute("commit").await.map(drop)
}

/// Rolls the transaction back.
///
/// # Errors
/// Any database error.
pub(crate) async fn rollback(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    conn.execute("rollback").await.map(drop)
}
