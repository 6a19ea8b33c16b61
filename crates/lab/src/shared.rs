//! Starts the servers of a run, one Postgres and one Kafka, each for the first test that needs it.

use std::sync::{Arc, Mutex, OnceLock};

use crate::demo::{BinariesFrom, PostgresError, PostgresOptions, PrivatePostgres};
use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::runtime;

use super::kafka::{RealKafka, Unavailable};

/// The database that is copied for every test.
pub const TEMPLATE: &str = "outbox_template";

static POSTGRES: Shared<PrivatePostgres, NoPostgres> = Shared::new();
static KAFKA: Shared<RealKafka, Unavailable> = Shared::new();
static MIGRATION: OnceLock<Migration> = OnceLock::new();

/// A function that migrates the database at the URL. It must leave no connection open, because Postgres copies only a database without
/// connections.
pub type Migration = fn(String) -> BoxFuture<'static, anyhow::Result<()>>;

/// Sets the migration of the template database. Call it before the first test.
pub fn migrate_template_with(migration: Migration) {
    MIGRATION.set(migration).expect("the template is migrated by one function");
}

/// The reason why this machine has no Postgres server and cannot get one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct NoPostgres(String);

/// The major version of the Postgres that tests use. Default: the one of this machine.
const VERSION: &str = "OUTBOX_RELAY_TEST_POSTGRES";

fn binaries() -> BinariesFrom {
    match std::env::var(VERSION) {
        Ok(major) => BinariesFrom::Version(major.parse().expect("OUTBOX_RELAY_TEST_POSTGRES is a major version")),
        Err(_) => BinariesFrom::Anywhere,
    }
}

/// Returns options for a private server that is fast instead of durable, for tests with their own server.
pub fn options_for_tests() -> PostgresOptions {
    PostgresOptions {
        binaries: binaries(),
        durable: false,
        max_connections: 300,
        settings: [("shared_buffers".to_owned(), "64MB".to_owned())].into(),
    }
}

/// Returns the Postgres of the run. Blocks; do not call it from async code.
pub fn postgres() -> Result<Arc<PrivatePostgres>, NoPostgres> {
    POSTGRES.get(|| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        match runtime.block_on(start_postgres()) {
            Ok(postgres) => Ok(postgres),
            Err(error) if matches!(error.downcast_ref(), Some(PostgresError::Binaries(_))) => {
                Err(NoPostgres(format!("{error:#}")))
            }
            Err(error) => panic!("the shared Postgres does not start: {error:?}"),
        }
    })
}

/// Returns the Kafka of the run. Blocks.
pub fn kafka() -> Result<Arc<RealKafka>, Unavailable> {
    KAFKA.get(|| RealKafka::start(&[]))
}

/// Stops both servers. Statics are never dropped, so without this call the servers would only end shortly after this process.
pub fn stop() {
    KAFKA.stop();
    POSTGRES.stop();
}

async fn start_postgres() -> anyhow::Result<PrivatePostgres> {
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let mut connection = postgres.connect("postgres").await?;
    connection.execute(AssertSqlSafe(format!("create database {TEMPLATE}"))).await?;
    connection.close().await?;
    // As in a new database since Postgres 15. Before it, `check` rightly warns of a schema in which anybody may create objects.
    let mut connection = postgres.connect(TEMPLATE).await?;
    connection.execute("revoke create on schema public from public").await?;
    connection.close().await?;
    if let Some(migration) = MIGRATION.get() {
        migration(postgres.url(TEMPLATE)).await?;
    }
    Ok(postgres)
}

/// A server that is started once. A start that panics poisons it, so that later tests fail at once and do not try again.
struct Shared<T, E>(Mutex<Option<Result<Arc<T>, E>>>);

impl<T, E: Clone> Shared<T, E> {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn get(&self, start: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let mut started = self.0.lock().expect("the shared server started for an earlier test");
        started.get_or_insert_with(|| start().map(Arc::new)).clone()
    }

    fn stop(&self) {
        // A poisoned lock holds no server.
        if let Ok(mut started) = self.0.lock() {
            drop(started.take());
        }
    }
}
