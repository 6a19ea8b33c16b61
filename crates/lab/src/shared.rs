//! The servers of a run: one Postgres and one Kafka, each started when the first test asks for it.

use std::sync::{Arc, Mutex, OnceLock};

use crate::demo::{BinariesFrom, PostgresError, PostgresOptions, PrivatePostgres};
use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::runtime;

use super::kafka::{RealKafka, Unavailable};

/// The database every test's own one is copied from.
pub const TEMPLATE: &str = "outbox_template";

static POSTGRES: Shared<PrivatePostgres, NoPostgres> = Shared::new();
static KAFKA: Shared<RealKafka, Unavailable> = Shared::new();
static MIGRATION: OnceLock<Migration> = OnceLock::new();

/// Brings the database at the URL up to date. Must leave no connection behind: Postgres copies only a database nobody uses.
pub type Migration = fn(String) -> BoxFuture<'static, anyhow::Result<()>>;

/// Fills the template with what every test's database is to contain. To be called before the first test.
pub fn migrate_template_with(migration: Migration) {
    MIGRATION.set(migration).expect("the template is migrated by one function");
}

/// This machine has no Postgres server and can get none: why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct NoPostgres(String);

/// A private server that is quick rather than durable; for tests of their own server.
pub fn options_for_tests() -> PostgresOptions {
    PostgresOptions {
        binaries: BinariesFrom::Anywhere,
        durable: false,
        max_connections: 300,
        settings: [("shared_buffers", "64MB"), ("max_prepared_transactions", "64")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    }
}

/// The run's Postgres. Blocks; not to be called from async code.
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

/// The run's Kafka. Blocks.
pub fn kafka() -> Result<Arc<RealKafka>, Unavailable> {
    KAFKA.get(|| RealKafka::start(&[]))
}

/// Stops both. Statics are never dropped, so without this they would only end a moment after us.
pub fn stop() {
    KAFKA.stop();
    POSTGRES.stop();
}

async fn start_postgres() -> anyhow::Result<PrivatePostgres> {
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let mut connection = postgres.connect("postgres").await?;
    connection.execute(AssertSqlSafe(format!("create database {TEMPLATE}"))).await?;
    connection.close().await?;
    if let Some(migration) = MIGRATION.get() {
        migration(postgres.url(TEMPLATE)).await?;
    }
    Ok(postgres)
}

/// Something that is started once. A start that panics poisons it, so that every later test fails at once and does not try again.
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
        // A poisoned one holds nothing.
        if let Ok(mut started) = self.0.lock() {
            drop(started.take());
        }
    }
}
