//! `outbox-relay migrate`.

use std::time::Duration;

use clap::Args;

use super::exit::Failure;
use super::{runtime, target};
use crate::config::{OutboxNames, Settings};
use crate::fault;
use crate::store::Names;
use crate::store::schema::{self, DEFAULT_LANES, MAX_LANES, MigrateOptions, Migrated, SchemaError};

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Print the SQL instead, for Flyway, Alembic, Prisma and the like; no database is needed
    #[arg(long)]
    pub(crate) print: bool,
    /// Number of lanes of a new outbox; cannot be changed later
    #[arg(long, default_value_t = DEFAULT_LANES, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_LANES)))]
    lanes: u16,
    /// How long to wait for a lock that another session holds
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    lock_timeout: Duration,
}

impl Migrate {
    pub(crate) fn print(&self, outbox: &OutboxNames) {
        print!("{}", schema::print(&names(outbox), self.lanes));
    }

    pub(crate) fn run(&self, settings: &Settings) -> Result<(), Failure> {
        let options =
            MigrateOptions { lanes: self.lanes, lock_timeout: self.lock_timeout, ..MigrateOptions::default() };
        let migrated = runtime()?.block_on(migrate(settings, &options))?;
        let (names, target) = (names(&settings.outbox), settings.database.target());
        match migrated.from {
            Some(from) if from == migrated.to => {
                println!("{} in {target} is at version {} already", names.outbox(), migrated.to);
            }
            from => println!("{} in {target}: version {} -> {}", names.outbox(), from.unwrap_or(0), migrated.to),
        }
        Ok(())
    }
}

/// The outbox's names as configured.
pub(crate) fn names(outbox: &OutboxNames) -> Names {
    Names::new(&outbox.schema, &outbox.table, &outbox.processed_table)
}

/// Migrates the configured outbox.
pub(crate) async fn migrate(settings: &Settings, options: &MigrateOptions) -> Result<Migrated, Failure> {
    let (names, database) = (names(&settings.outbox), &settings.database);
    let mut conn = target::connect(settings, "outbox-relay migrate").await?;
    schema::migrate(&mut conn, &names, options).await.map_err(|error| refused(error, &database.target()))
}

/// What a schema error means for a user.
pub(crate) fn refused(error: SchemaError, target: &str) -> Failure {
    let hint = match &error {
        SchemaError::Newer { .. } => "upgrade this binary, or point it at another outbox".to_owned(),
        SchemaError::Older { .. } | SchemaError::Missing { .. } => "run `outbox-relay migrate`".to_owned(),
        SchemaError::Foreign { .. } => "choose another RELAY_TABLE or RELAY_SCHEMA".to_owned(),
        SchemaError::OldServer { .. } => "upgrade the server".to_owned(),
        SchemaError::BrokenLanes { .. } => "restore the lane table from a backup; it must not be edited".to_owned(),
        SchemaError::Locked(_) => "end the other session, see pg_blocking_pids(), or raise --lock-timeout".to_owned(),
        SchemaError::Database(error) => fault::of_database(error).next_step.to_owned(),
    };
    Failure::finding(format!("the outbox in {target} cannot be used")).because(error).hint(hint)
}
