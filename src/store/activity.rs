//! Finds sessions that hold a transaction open, and sessions that have locked the outbox or its rows.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::store::pending::pending;
use crate::store::read_only::read;
use event_outbox::names::{Names, literal};

/// The number of first pending rows that are checked for locks of other sessions.
const ROWS_LOOKED_AT: i64 = 1_000;

/// A session of the server, as far as the current user may see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Session {
    pub(crate) pid: i32,
    /// The session's user; `None` for a session that belongs to no client.
    pub(crate) user: Option<String>,
    pub(crate) application: String,
    /// The session's state; `None` if the current user may not see it.
    pub(crate) state: Option<String>,
    /// The age of the transaction.
    pub(crate) transaction_s: Option<f64>,
    /// The age of the running query, or the time since the last one ended.
    pub(crate) query_s: Option<f64>,
    /// True if vacuum cannot remove rows that died since the transaction began.
    pub(crate) holds_vacuum: bool,
}

/// A session that other sessions wait for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Blocker {
    /// The lock that the session holds, in words.
    pub(crate) holds: String,
    /// The pids of the sessions that wait for this one.
    pub(crate) blocked: Vec<i32>,
    #[serde(flatten)]
    pub(crate) session: Session,
}

impl Session {
    /// Describes the session, such as `pid 4711 (user app, application psql, idle in transaction for 12 s)`.
    pub(crate) fn describe(&self) -> String {
        let age = |age: Option<f64>| age.map_or_else(String::new, |age| format!(" for {}", span(age)));
        let doing = match self.state.as_deref() {
            None => "its activity is not visible to this user".to_owned(),
            Some(state) => format!("{state}{}, transaction open{}", age(self.query_s), age(self.transaction_s)),
        };
        let user = self.user.as_deref().unwrap_or("none");
        format!("pid {} (user {user}, application {:?}, {doing})", self.pid, self.application)
    }
}

/// Formats a number of seconds in the unit that fits.
pub(crate) fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds as u64 {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{seconds:.0} s"),
        120..7_200 => format!("{} min", seconds as u64 / 60),
        7_200..172_800 => format!("{} h", seconds as u64 / 3_600),
        _ => format!("{} d", seconds as u64 / 86_400),
    }
}

/// SQL for the columns of a [`Session`], read from `pg_stat_activity a`. The ages of other users' sessions are null unless the user may see
/// them.
const SESSION: &str = "a.pid::int8, a.usename::text, coalesce(a.application_name, ''), a.state, \
     extract(epoch from clock_timestamp() - a.xact_start)::float8, \
     extract(epoch from clock_timestamp() - case when a.state = 'active' then a.query_start else a.state_change end)::float8, \
     (a.backend_xid is not null or a.backend_xmin is not null)";

fn session(row: &PgRow, from: usize) -> Result<Session, sqlx::Error> {
    Ok(Session {
        pid: row.try_get::<i64, _>(from)? as i32,
        user: row.try_get(from + 1)?,
        application: row.try_get(from + 2)?,
        state: row.try_get(from + 3)?,
        transaction_s: row.try_get(from + 4)?,
        query_s: row.try_get(from + 5)?,
        holds_vacuum: row.try_get(from + 6)?,
    })
}

/// The relation that shows the sessions of the server.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    /// An SQL expression for the `from` list, with the columns of `pg_stat_activity` that are used here.
    pub(crate) relation: String,
    /// True if the user may see what the sessions of others do.
    pub(crate) sees_others: bool,
}

impl Sessions {
    /// Finds the relation that shows the user the most. The function of the outbox shows the sessions without their queries, which contain
    /// payloads.
    pub(crate) async fn find(conn: &mut PgConnection, names: &Names) -> Result<Self, sqlx::Error> {
        let function = format!("{}()", names.companion("sessions"));
        let query = format!(
            "select pg_has_role(current_user, 'pg_read_all_stats', 'usage'), \
               has_function_privilege(p.oid, 'execute') and pg_has_role(p.proowner, 'pg_read_all_stats', 'usage') \
             from (select 1) one left join pg_proc p on p.oid = to_regprocedure({})",
            literal(&function)
        );
        let rows = read(conn, &query).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (by_itself, by_function): (bool, Option<bool>) = (row.try_get(0)?, row.try_get(1)?);
        let by_function = by_function.unwrap_or_default();
        let relation = if by_function && !by_itself { function } else { "pg_stat_activity".to_owned() };
        Ok(Self { relation, sees_others: by_itself || by_function })
    }
}

/// Returns the transaction that has been open for the longest time. Transactions of other databases count only if they have a transaction
/// id, because only those hold back the relay's snapshots.
pub(crate) async fn oldest_transaction(
    conn: &mut PgConnection,
    sessions: &Sessions,
) -> Result<Option<Session>, sqlx::Error> {
    let query = format!(
        "select {SESSION} from {} a \
         where a.xact_start is not null and a.pid <> pg_backend_pid() and a.backend_type <> 'autovacuum worker' \
         and (a.datname = current_database() or a.backend_xid is not null) order by a.xact_start limit 1",
        sessions.relation
    );
    read(conn, &query).await?.first().map(|row| session(row, 0)).transpose()
}

/// Returns the sessions whose locks on the outbox table, the lane table or the relay table keep a relay from reading or writing.
pub(crate) async fn table_blockers(
    conn: &mut PgConnection,
    names: &Names,
    sessions: &Sessions,
) -> Result<Vec<Blocker>, sqlx::Error> {
    // Compares the database as well, because databases made from one template have tables with the same oids. Looks the oids up in the
    // catalog: a cast to `regclass` could wait or fail for a table that is being dropped.
    let (schema, outbox, lane, relay) = (
        literal(names.schema_raw()),
        literal(names.table_raw()),
        literal(&names.part_raw("lane")),
        literal(&names.part_raw("relay")),
    );
    let query = format!(
        "with tables as materialized (\
           select c.oid, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace \
           where n.nspname = {schema} and c.relname in ({outbox}, {lane}, {relay})), \
         held as materialized (\
           select l.pid, min(t.relname::text || ' (' || l.mode || ')') as what from pg_locks l join tables t on t.oid = l.relation \
           where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid() \
             and l.database = (select oid from pg_database where datname = current_database()) \
             and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') group by l.pid) \
         select 'a lock on table ' || held.what, \
           coalesce((select string_agg(w.pid::text, ',') from pg_stat_activity w where held.pid = any (pg_blocking_pids(w.pid))), ''), \
           {SESSION} from held join {sessions} a using (pid) order by a.xact_start",
        sessions = sessions.relation
    );
    let rows = read(conn, &query).await?;
    rows.iter().map(blocker).collect()
}

/// Returns the session that has had a lock on a table of the outbox or the inbox for the longest time, however weak the lock is; relays come
/// last. A migration that did not get its lock in time most likely waited for this session.
pub(crate) async fn oldest_lock_holder(
    conn: &mut PgConnection,
    names: &Names,
    sessions: &Sessions,
) -> Result<Option<Blocker>, sqlx::Error> {
    let (schema, outbox, inbox) =
        (literal(names.schema_raw()), literal(names.table_raw()), literal(names.processed_raw()));
    let query = format!(
        "with held as materialized (\
           select l.pid, min(c.relname::text || ' (' || l.mode || ')') as what from pg_locks l join pg_class c on c.oid = l.relation \
             join pg_namespace n on n.oid = c.relnamespace \
           where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid() \
             and l.database = (select oid from pg_database where datname = current_database()) and n.nspname = {schema} \
             and c.relkind in ('r', 'p') and (c.relname in ({outbox}, {inbox}) \
               or starts_with(c.relname::text, {outbox} || '_') or starts_with(c.relname::text, {inbox} || '_')) group by l.pid) \
         select 'a lock on table ' || held.what, '', {SESSION} from held join {} a using (pid) \
         order by a.application_name like 'outbox-relay %', a.xact_start limit 1",
        sessions.relation
    );
    read(conn, &query).await?.first().map(blocker).transpose()
}

/// Returns the sessions that are not a relay's and hold locks on the first pending rows. The entities of these rows have to wait.
///
/// A shared lock that several sessions hold at once is not detected.
pub(crate) async fn row_blockers(
    conn: &mut PgConnection,
    names: &Names,
    sessions: &Sessions,
) -> Result<Vec<Blocker>, sqlx::Error> {
    let (outbox, hold) = (names.outbox(), names.companion("hold"));
    let first = pending(names, "id, xmax::text::int8 as locker", "true", ROWS_LOOKED_AT);
    let query = format!(
        "with head as materialized (\
           select id, locker from {first} first union \
           select o.id, o.xmax::text::int8 from {outbox} o join {hold} h on h.head_id = o.id and h.why = 'locked'), \
         held as materialized (\
           select l.pid, count(*) as held, min(head.id) as first from head \
             join pg_locks l on l.locktype = 'transactionid' and l.granted and l.transactionid::text::int8 = head.locker \
           where head.locker <> 0 group by l.pid) \
         select 'the lock on pending event number ' || held.first || coalesce(' (and ' || nullif(held.held - 1, 0) || ' more)', ''), \
           coalesce((select string_agg(w.pid::text, ',') from pg_stat_activity w where held.pid = any (pg_blocking_pids(w.pid))), ''), \
           {SESSION} from held join {sessions} a using (pid) \
         where a.application_name not like 'outbox-relay %' order by a.xact_start",
        sessions = sessions.relation
    );
    let rows = read(conn, &query).await?;
    rows.iter().map(blocker).collect()
}

fn blocker(row: &PgRow) -> Result<Blocker, sqlx::Error> {
    let blocked = row.try_get::<&str, _>(1)?.split(',').filter_map(|pid| pid.parse().ok()).collect();
    Ok(Blocker { holds: row.try_get(0)?, blocked, session: session(row, 2)? })
}

/// A relay's session that waits for a lock, and the sessions it waits for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Waiting {
    pub(crate) pid: i32,
    pub(crate) application: String,
    pub(crate) waits_for: Vec<i32>,
}

/// Returns the relays' sessions that wait for locks.
pub(crate) async fn waiting_relays(conn: &mut PgConnection) -> Result<Vec<Waiting>, sqlx::Error> {
    let query = "with waiting as materialized (\
           select distinct l.pid from pg_locks l where not l.granted) \
         select a.pid::int8, a.application_name, array_to_string(pg_blocking_pids(a.pid), ',') \
         from waiting join pg_stat_activity a using (pid) where a.application_name like 'outbox-relay %' order by 1";
    let rows = read(conn, query).await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting {
                pid: row.try_get::<i64, _>(0)? as i32,
                application: row.try_get(1)?,
                waits_for: row.try_get::<&str, _>(2)?.split(',').filter_map(|pid| pid.parse().ok()).collect(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_the_unit_that_fits() {
        let spans = [0.25, 59.6, 240.0, 10_000.0, 500_000.0].map(span);
        assert_eq!(spans, ["0.2 s", "60 s", "4 min", "2 h", "5 d"]);
    }
}
