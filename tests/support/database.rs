//! One database per test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outbox_relay::demo::PrivatePostgres;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::shared::TEMPLATE;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A test's own database on the shared server; it goes when the test has ended, however it ended.
#[derive(Debug, Clone)]
pub(crate) struct TestDatabase {
    server: Arc<PrivatePostgres>,
    name: String,
}

impl TestDatabase {
    pub(super) async fn create(server: Arc<PrivatePostgres>) -> anyhow::Result<Self> {
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let database = Self { server, name };
        database.administer(format!("create database {} template {TEMPLATE}", database.name)).await?;
        Ok(database)
    }

    /// Ends the sessions a test has left behind, too.
    pub(super) async fn drop(&self) -> anyhow::Result<()> {
        self.administer(format!("drop database {} with (force)", self.name)).await
    }

    /// For `DATABASE_URL`.
    pub(crate) fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Its name on the server.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The same as [`TestDatabase::url`] for sqlx.
    pub(crate) fn connect_options(&self) -> PgConnectOptions {
        self.server.connect_options(&self.name)
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> sqlx::Result<PgConnection> {
        self.server.connect(&self.name).await
    }

    /// A pool of at most so many connections, opened when they are used.
    pub(crate) fn pool(&self, connections: u32) -> PgPool {
        PgPoolOptions::new().max_connections(connections).connect_lazy_with(self.connect_options())
    }

    async fn administer(&self, statement: String) -> anyhow::Result<()> {
        let mut connection = self.server.connect("postgres").await?;
        connection.execute(AssertSqlSafe(statement)).await?;
        Ok(connection.close().await?)
    }
}
