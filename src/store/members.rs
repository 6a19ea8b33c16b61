//! The relays that are alive, by their heartbeat. Decides only who is due which lanes; the locks decide who has them.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use uuid::Uuid;

use crate::store::names::{Names, literal};
use crate::store::pauses::{self, Pause};

/// A relay as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: Uuid,
    pub(crate) workers: usize,
}

/// The statements of the register.
#[derive(Debug, Clone)]
pub(crate) struct MemberSql {
    table: String,
    pauses: String,
}

/// What a relay says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beat<'a> {
    pub(crate) id: Uuid,
    pub(crate) name: &'a str,
    pub(crate) workers: usize,
}

/// Of a row of [`MemberSql::alive`]; pauses have more.
const MEMBER_COLUMNS: usize = 2;

impl MemberSql {
    pub(crate) fn new(names: &Names) -> Self {
        Self { table: names.companion("relay"), pauses: pauses::active_text(names) }
    }

    /// Says that this relay is alive, if it is `beating`; returns the relays heard of within `alive`, in an order all of them agree on,
    /// and the pauses in force. One round trip and one transaction.
    pub(crate) async fn look(
        &self,
        conn: &mut PgConnection,
        beating: Option<Beat<'_>>,
        alive: Duration,
    ) -> Result<(Vec<Member>, Vec<Pause>), sqlx::Error> {
        let beat = beating.map(|beat| self.beat(&beat)).unwrap_or_default();
        let sql = format!("{beat}{}; {}", self.alive(alive), self.pauses);
        let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        let (members, pauses): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.len() == MEMBER_COLUMNS);
        let members = members.into_iter().map(member_of).collect::<Result<_, _>>()?;
        Ok((members, pauses.into_iter().map(pauses::pause_of).collect::<Result<_, _>>()?))
    }

    fn beat(&self, beat: &Beat<'_>) -> String {
        let (id, name, version) = (beat.id, literal(beat.name), literal(env!("CARGO_PKG_VERSION")));
        let (table, workers) = (&self.table, beat.workers);
        format!(
            "insert into {table} (id, name, version, workers) values ('{id}', {name}, {version}, {workers}) \
             on conflict (id) do update set seen_at = now(); "
        )
    }

    fn alive(&self, alive: Duration) -> String {
        let (table, alive) = (&self.table, alive.as_secs_f64());
        format!(
            "select id::text, workers::int8 from {table} where seen_at > now() - make_interval(secs => {alive}) \
             order by started_at, id"
        )
    }

    /// Takes this relay out, so that the others share its lanes at once; forgets those not heard of for long.
    pub(crate) async fn leave(&self, conn: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
        self.execute(
            conn,
            format!("delete from {} where id = '{id}' or seen_at < now() - interval '1 hour'", self.table),
        )
        .await
    }

    /// Simple queries throughout: outside a transaction a pooler may send the parts of a prepared one to two servers.
    async fn execute(&self, conn: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
    }
}

fn member_of(row: &PgRow) -> Result<Member, sqlx::Error> {
    let id = row.try_get::<&str, _>(0)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Member { id, workers: row.try_get::<i64, _>(1)?.max(0) as usize })
}
