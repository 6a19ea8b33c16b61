//! The relays that are alive, by their heartbeat. Decides only who is due which lanes; the locks decide who has them.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use uuid::Uuid;

use crate::store::names::{Names, literal};

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
}

impl MemberSql {
    pub(crate) fn new(names: &Names) -> Self {
        Self { table: names.companion("relay") }
    }

    /// Says that this relay is alive.
    pub(crate) async fn beat(
        &self,
        conn: &mut PgConnection,
        id: Uuid,
        name: &str,
        workers: usize,
    ) -> Result<(), sqlx::Error> {
        let (table, name, version) = (&self.table, literal(name), literal(env!("CARGO_PKG_VERSION")));
        self.execute(
            conn,
            format!(
                "insert into {table} (id, name, version, workers) values ('{id}', {name}, {version}, {workers}) \
                 on conflict (id) do update set seen_at = now()"
            ),
        )
        .await
    }

    /// The relays heard of within `alive`, in an order all of them agree on.
    pub(crate) async fn alive(&self, conn: &mut PgConnection, alive: Duration) -> Result<Vec<Member>, sqlx::Error> {
        let sql = format!(
            "select id::text, workers::int8 from {} where seen_at > now() - make_interval(secs => {}) order by started_at, id",
            self.table,
            alive.as_secs_f64()
        );
        let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        rows.iter()
            .map(|row| {
                let id = row.try_get::<&str, _>(0)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
                Ok(Member { id, workers: row.try_get::<i64, _>(1)?.max(0) as usize })
            })
            .collect()
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
