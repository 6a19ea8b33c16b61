//! Runs a Postgres with a streaming standby behind one address, and fails over to a standby that lacks the last commits.

use crate::demo::{PostgresOptions, PrivatePostgres};
use anyhow::ensure;
use sqlx::{Connection, Executor, PgConnection};

use super::eventually::{SOON, eventually};
use super::front::Front;
use super::outbox::Outbox;
use super::shared::options_for_tests;
use super::trial::Missing;

/// The primary, its standby, and the address that applications and relays use.
#[derive(Debug)]
pub struct FailoverPair {
    primary: PrivatePostgres,
    standby: PrivatePostgres,
    front: Front,
}

impl FailoverPair {
    /// Starts both servers. Returns `Err` with [`Missing`] if the binaries do not include `pg_basebackup`.
    pub async fn start() -> anyhow::Result<Self> {
        let primary = PrivatePostgres::start(PostgresOptions { durable: true, ..options_for_tests() }).await?;
        if !primary.has_program("pg_basebackup") {
            return Err(Missing("these Postgres binaries have no pg_basebackup".to_owned()).into());
        }
        let standby = primary.standby().await?;
        let front = Front::start(primary.port()).await?;
        Ok(Self { primary, standby, front })
    }

    /// Migrates the outbox. The connection leads to the server that is the primary at the time.
    pub async fn outbox(&self, topic: &str) -> anyhow::Result<Outbox> {
        Outbox::behind(&self.primary, self.front.port(), topic).await
    }

    /// Migrates the outbox, and returns it with the URL of the primary itself.
    pub async fn outbox_on_primary(&self, topic: &str) -> anyhow::Result<Outbox> {
        Outbox::on(&self.primary, topic).await
    }

    /// Returns a URL that names both servers, the primary first.
    pub fn url_of_both(&self) -> String {
        let (primary, standby) = (self.primary.port(), self.standby.port());
        let (own, both) = (format!("@127.0.0.1:{primary}/"), format!("@127.0.0.1:{primary},127.0.0.1:{standby}/"));
        self.primary.url("postgres").replace(&own, &both)
    }

    /// Returns the URL of the standby.
    pub fn url_of_standby(&self) -> String {
        self.standby.url("postgres")
    }

    /// Waits until the standby has replayed everything, and then stops replication. Later commits exist only on the primary.
    pub async fn cut_replication_when_caught_up(&self) -> anyhow::Result<()> {
        let mut primary = self.primary.connect("postgres").await?;
        let mut standby = self.standby.connect("postgres").await?;
        let position: String =
            sqlx::query_scalar("select pg_current_wal_insert_lsn()::text").fetch_one(&mut primary).await?;
        // Commits without a flush are streamed only after a later flush. This commit flushes them.
        primary.execute("set synchronous_commit = on; create temporary table flush (n int)").await?;
        until(&mut standby, "select coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false)", &position).await;
        // Pausing the replay is not enough, because a promotion ends the pause and replays all received WAL.
        standby.execute("alter system set primary_conninfo = ''").await?;
        standby.execute("select pg_reload_conf()").await?;
        until(&mut standby, "select not exists (select from pg_stat_wal_receiver) and $1 <> ''", "x").await;
        Ok(())
    }

    /// Kills the primary and promotes the standby. The address has no server until it is moved.
    pub async fn promote(&mut self) -> anyhow::Result<()> {
        self.primary.kill().await;
        let mut standby = self.standby.connect("postgres").await?;
        let promoted: bool = sqlx::query_scalar("select pg_promote()").fetch_one(&mut standby).await?;
        ensure!(promoted, "the standby was not promoted");
        Ok(standby.close().await?)
    }

    /// Returns the outbox on the promoted server, before the address is moved.
    pub fn promoted_outbox(&self, topic: &str) -> Outbox {
        Outbox::found_on(&self.standby, topic)
    }

    /// Moves the address to the promoted server, which becomes the primary and gets a new standby.
    pub async fn move_address(&mut self) -> anyhow::Result<()> {
        self.front.move_to(self.standby.port());
        let next = self.standby.standby().await?;
        self.primary = std::mem::replace(&mut self.standby, next);
        Ok(())
    }
}

async fn until(connection: &mut PgConnection, sql: &'static str, argument: &str) {
    let connection = tokio::sync::Mutex::new(connection);
    eventually(sql, SOON, || async {
        let mut connection = connection.lock().await;
        match sqlx::query_scalar(sql).bind(argument).fetch_one(&mut **connection).await {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
