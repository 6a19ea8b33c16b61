//! Creates one database per test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::demo::PrivatePostgres;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::shared::TEMPLATE;

/// Generates a new identity in the same way as the migration.
const NEW_IDENTITY: &str = "update event_outbox_control \
    set value = ('x' || substr(md5(gen_random_uuid()::text), 1, 15))::bit(60)::bigint where name = 'identity'";

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A test's own database on the shared server. It is dropped when the test has ended, even if it failed.
#[derive(Debug, Clone)]
pub struct TestDatabase {
    server: Arc<PrivatePostgres>,
    name: String,
}

impl TestDatabase {
    /// Copies the migrated template into a new database.
    pub async fn create(server: Arc<PrivatePostgres>) -> anyhow::Result<Self> {
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let database = Self { server, name };
        database.administer(format!("create database {} template {TEMPLATE}", database.name)).await?;
        // A copy would share the group and the transactional ids of its template, and the relays of two tests would fence each other.
        let mut connection = database.connect().await?;
        connection.execute(NEW_IDENTITY).await?;
        connection.close().await?;
        Ok(database)
    }

    /// Drops the database and ends the sessions that a test has left behind.
    pub async fn drop(&self) -> anyhow::Result<()> {
        self.administer(format!("drop database {} with (force)", self.name)).await
    }

    /// Returns the URL for `DATABASE_URL`.
    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Returns the database's name on the server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the connection options for sqlx, equal to [`TestDatabase::url`].
    pub fn connect_options(&self) -> PgConnectOptions {
        self.server.connect_options(&self.name)
    }

    /// Opens a connection.
    pub async fn connect(&self) -> sqlx::Result<PgConnection> {
        self.server.connect(&self.name).await
    }

    /// Creates a pool of at most `connections` connections, which are opened when they are used.
    pub fn pool(&self, connections: u32) -> PgPool {
        PgPoolOptions::new().max_connections(connections).connect_lazy_with(self.connect_options())
    }

    async fn administer(&self, statement: String) -> anyhow::Result<()> {
        let mut connection = self.server.connect("postgres").await?;
        connection.execute(AssertSqlSafe(statement)).await?;
        Ok(connection.close().await?)
    }
}
