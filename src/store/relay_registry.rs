//! Keeps the registry of live relays by their heartbeats. The registry decides only which relay may take which lanes; the locks decide
//! which worker owns a lane.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use uuid::Uuid;

use crate::lane::LaneRange;
use crate::store::pauses::{self, Pause};
use crate::store::relay_conflicts::{RecordSettings, RelayFacts};
use crate::store::search_path::SET_LOCAL;
use event_outbox::names::{Names, literal};

/// A relay's row in the registry.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct RelayRow {
    pub(crate) id: Uuid,
    pub(crate) workers: usize,
    /// The server's time of the last heartbeat, in microseconds since 1970. Compare it only with other values of the same column.
    pub(crate) seen_at: i64,
    /// The age of the last heartbeat in seconds, by the server's clock; negative after the clock was set back.
    pub(crate) age_s: f64,
    /// True if the session that sent the heartbeats is gone: the relay was killed, or has lost its connection.
    pub(crate) has_ended: bool,
    pub(crate) facts: RelayFacts,
}

/// The statements of the registry.
#[derive(Debug, Clone)]
pub(crate) struct RegistrySql {
    table: String,
    pauses: String,
    /// True if the heartbeat has its own session. Behind a pooler the state of a session does not show the state of a relay.
    own_session: bool,
}

/// What a relay says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heartbeat<'a> {
    pub(crate) id: Uuid,
    pub(crate) name: &'a str,
    pub(crate) workers: usize,
    /// The lanes that its workers own, a range for each worker.
    pub(crate) lanes: &'a [LaneRange],
    pub(crate) settings: &'a RecordSettings,
}

/// The version of the protocol between relays. Relays with different versions do not share lanes. Version 1 had no column for it.
const PROTOCOL: i32 = 2;

/// SQL for the time of a heartbeat as a number.
const SEEN_AT: &str = "(extract(epoch from seen_at) * 1000000)::int8";

/// SQL that is true for a row of `relay` whose session is gone.
pub(crate) const HAS_ENDED: &str =
    "pid is not null and not exists (select from pg_stat_activity a where a.pid = relay.pid)";

/// The number of columns in a row of [`RegistrySql::all`]. Rows of pauses have more.
const RELAY_COLUMNS: usize = 8;

impl RegistrySql {
    pub(crate) fn new(names: &Names, own_session: bool) -> Self {
        Self { table: names.companion("relay"), pauses: pauses::active_text(names), own_session }
    }

    /// Writes the `heartbeat` of this relay, if there is one, and removes the relays in `gone` whose rows have not changed since they
    /// counted as gone. Returns all relays, in an order that all relays agree on, and the pauses in force. Takes one round trip and one
    /// transaction.
    pub(crate) async fn look(
        &self,
        conn: &mut PgConnection,
        heartbeat: Option<Heartbeat<'_>>,
        gone: &[(Uuid, i64)],
    ) -> Result<(Vec<RelayRow>, Vec<Pause>), sqlx::Error> {
        let heartbeat = heartbeat.map(|heartbeat| self.upsert(&heartbeat)).unwrap_or_default();
        let remove: String = gone.iter().map(|(id, seen_at)| self.remove(*id, *seen_at)).collect();
        let sql = format!("{SET_LOCAL}{heartbeat}{remove}{}; {}", self.all(), self.pauses);
        let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        let (relays, pauses): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.len() == RELAY_COLUMNS);
        let relays = relays.into_iter().map(relay_row).collect::<Result<_, _>>()?;
        Ok((relays, pauses.into_iter().map(pauses::pause_of).collect::<Result<_, _>>()?))
    }

    fn upsert(&self, heartbeat: &Heartbeat<'_>) -> String {
        let (id, name, version) = (heartbeat.id, literal(heartbeat.name), literal(env!("CARGO_PKG_VERSION")));
        let (table, workers) = (&self.table, heartbeat.workers);
        let pid = if self.own_session { "pg_backend_pid()" } else { "null" };
        let lanes: Vec<_> = heartbeat.lanes.iter().map(|range| format!("'{range}'")).collect();
        // A map of texts always has a JSON form.
        let settings = literal(&serde_json::to_string(heartbeat.settings).unwrap_or_default());
        format!(
            "insert into {table} (id, name, version, workers, pid, protocol, lanes, settings) \
             values ('{id}', {name}, {version}, {workers}, {pid}, {PROTOCOL}, array[{}]::text[], {settings}) \
             on conflict (id) do update set seen_at = now(), pid = excluded.pid, lanes = excluded.lanes, settings = excluded.settings; ",
            lanes.join(",")
        )
    }

    /// Returns all relays that have a row.
    pub(crate) async fn all_of(&self, conn: &mut PgConnection) -> Result<Vec<RelayRow>, sqlx::Error> {
        let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(SET_LOCAL.to_owned() + &self.all()))).await?;
        rows.iter().map(relay_row).collect()
    }

    fn all(&self) -> String {
        format!(
            "select id::text, workers::int8, {SEEN_AT}, \
             extract(epoch from clock_timestamp() - seen_at)::float8, \
             {HAS_ENDED}, \
             name, extract(epoch from clock_timestamp() - started_at)::float8, settings \
             from {} relay order by started_at, id",
            self.table
        )
    }

    fn remove(&self, id: Uuid, seen_at: i64) -> String {
        format!("delete from {} where id = '{id}' and {SEEN_AT} = {seen_at}; ", self.table)
    }

    /// Removes this relay's row, so that the other relays share its lanes at once.
    pub(crate) async fn leave(&self, conn: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
        self.execute(conn, format!("{SET_LOCAL}delete from {} where id = '{id}'", self.table)).await
    }

    /// Runs a statement as a simple query. Outside a transaction a pooler may send the parts of a prepared statement to two servers.
    async fn execute(&self, conn: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
    }
}

fn relay_row(row: &PgRow) -> Result<RelayRow, sqlx::Error> {
    let id = row.try_get::<&str, _>(0)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    let workers = row.try_get::<i64, _>(1)?.max(0) as usize;
    let facts = RelayFacts {
        name: row.try_get(5)?,
        up_s: row.try_get(6)?,
        settings: RelayFacts::settings_of(row.try_get(7)?)?,
    };
    Ok(RelayRow { id, workers, seen_at: row.try_get(2)?, age_s: row.try_get(3)?, has_ended: row.try_get(4)?, facts })
}
