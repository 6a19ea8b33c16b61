//! SQL for sleeping until a writer notifies: see `relay::wake_up`.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use event_outbox::Names;
use event_outbox::names::{literal, quote};

/// The number of locks. Writers spread over them by the ids of their server processes.
const LOCKS: i64 = 8;

/// The result of an attempt to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Armed {
    /// This session holds all locks: every writer that begins from now on notifies.
    Here,
    /// Another relay holds them, with the same effect.
    Elsewhere,
    /// A writer's transaction is open, which does not notify.
    No,
}

/// The statements of the session that listens.
pub(crate) struct WakeUpSql {
    listen: String,
    arm: String,
    notify: String,
    next_due: String,
    has_trigger: String,
}

impl WakeUpSql {
    pub(crate) fn new(names: &Names) -> Self {
        let (class, channel) = (names.wake_up_class(), names.wake_up_channel());
        Self {
            listen: format!("listen {}", quote(&channel)),
            // A lock that is not free for sharing either is another relay's.
            arm: format!(
                "select count(*) filter (where pg_try_advisory_lock({class}, key::integer)), \
                        not pg_try_advisory_lock_shared({class}, 0) \
                 from generate_series(0, {}) key",
                LOCKS - 1
            ),
            notify: format!("select pg_notify({}, '')", literal(&channel)),
            next_due: format!(
                "select extract(epoch from min(due) - clock_timestamp())::float8 from {} where due is not null",
                names.outbox()
            ),
            has_trigger: format!(
                "select current_setting('max_prepared_transactions') = '0' and exists (select from pg_trigger where tgrelid = {}::regclass and tgname = {} and tgenabled in ('O', 'A'))",
                literal(&names.outbox()),
                literal(&names.part_raw("wake_up"))
            ),
        }
    }

    /// Returns true if every insert notifies, and not only `outbox_emit`. Nothing notifies on a server that can prepare transactions.
    pub(crate) async fn has_trigger(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        simple(conn, &self.has_trigger).await?.try_get(0)
    }

    /// Returns the id of the server process. A pooler may be in between, so the path may be any.
    pub(crate) async fn process(&self, conn: &mut PgConnection) -> Result<i32, sqlx::Error> {
        simple(conn, "select pg_catalog.pg_backend_pid()").await?.try_get(0)
    }

    /// Listens to writers.
    pub(crate) async fn listen(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        run(conn, &self.listen).await
    }

    /// Tries to take the locks.
    pub(crate) async fn arm(&self, conn: &mut PgConnection) -> Result<Armed, sqlx::Error> {
        let row = simple(conn, &self.arm).await?;
        let (taken, is_taken): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
        if taken == LOCKS {
            return Ok(Armed::Here);
        }
        self.disarm(conn).await?;
        Ok(if is_taken && taken == 0 { Armed::Elsewhere } else { Armed::No })
    }

    /// Gives the locks back.
    pub(crate) async fn disarm(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        run(conn, "select pg_advisory_unlock_all()").await
    }

    /// Notifies as a writer does.
    pub(crate) async fn notify(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        run(conn, &self.notify).await
    }

    /// Returns the time until the next scheduled event is due; `None` if none is scheduled.
    pub(crate) async fn next_due(&self, conn: &mut PgConnection) -> Result<Option<Duration>, sqlx::Error> {
        let due: Option<f64> = simple(conn, &self.next_due).await?.try_get(0)?;
        Ok(due.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
    }
}

/// Returns the row of a query. It is sent as text: outside a transaction, a pooler may give the parts of an extended query to two servers.
async fn simple(conn: &mut PgConnection, sql: &str) -> Result<PgRow, sqlx::Error> {
    conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await
}

async fn run(conn: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop)
}
