//! Opens the outbox that an operator's command works on, and checks its schema.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::exit::Failure;
use crate::config::{OutboxNames, Settings};
use crate::fault;
use crate::observe::print::errln;
use crate::store::audit::Author;
use crate::store::connect::{self, Purpose};
use crate::store::relay_conflicts::CLUSTER_ID;
use crate::store::{fleet, search_path};
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::schema::{self, SchemaError};

/// The person who acts, as given on the command line.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct By {
    /// The person who acts, kept with the change
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
}

impl By {
    pub(crate) fn author(&self, reason: Option<String>) -> Author {
        Author { by: self.by.clone(), reason }
    }
}

/// A connected outbox with a usable schema.
pub(crate) struct Target {
    pub(crate) conn: PgConnection,
    pub(crate) names: Names,
    /// Table and database as shown to people, without user and password.
    pub(crate) shown: String,
}

/// Connects to the configured database.
pub(crate) async fn connect(settings: &Settings, name: &str, purpose: Purpose) -> Result<PgConnection, Failure> {
    let database = &settings.database;
    connect::connect(database, name, purpose).await.map_err(|error| {
        let fault = fault::classify_database(&error);
        Failure::finding(format!("cannot connect to {}", database.target())).because(error).fault(fault)
    })
}

/// Warns on stderr if a live relay has other settings than this command, which goes by its own: it would look for records on other topics,
/// and write them in another form.
pub(crate) async fn warn_of_other_settings(conn: &mut PgConnection, settings: &Settings) {
    let Some(kafka) = &settings.kafka else { return };
    let own = settings.relay.of_records(kafka);
    // A user who may not read the registry gets no warning.
    let Ok(relays) = fleet::relays(conn, &names(&settings.outbox)).await else { return };
    let alive_for = settings.relay.alive_for();
    let differing = relays.iter().filter(|relay| relay.is_alive(alive_for)).find_map(|relay| {
        let theirs = relay.settings.as_ref()?;
        let differs = |name: &&String| *name != CLUSTER_ID && own.get(*name) != theirs.get(*name);
        let shown = |value: Option<&String>| value.map_or_else(|| "not set".to_owned(), |value| format!("{value:?}"));
        let names: BTreeSet<&String> = own.keys().chain(theirs.keys()).filter(differs).collect();
        let all: Vec<_> = names
            .iter()
            .map(|name| format!("{name} is {} there and {} here", shown(theirs.get(*name)), shown(own.get(*name))))
            .collect();
        (!all.is_empty()).then(|| (relay.name.clone(), all.join(", ")))
    });
    if let Some((relay, all)) = differing {
        errln!("warning: the live relay {relay:?} has other settings than this command: {all}");
    }
}

impl Target {
    /// Connects and checks the schema.
    pub(crate) async fn open(settings: &Settings, command: &str, purpose: Purpose) -> Result<Self, Failure> {
        let mut conn = connect(settings, &format!("outbox-relay {command}"), purpose).await?;
        let names = names(&settings.outbox);
        let usable = is_usable(&mut conn, &names).await;
        usable.map_err(|error| refused(error, &settings.database.target()))?;
        let shown = format!("{} in {}", names.outbox(), settings.database.target());
        Ok(Self { conn, names, shown })
    }

    /// Turns the error of a statement into a failure: "cannot `what` this outbox".
    pub(crate) fn failed(&self, what: &str, error: sqlx::Error) -> Failure {
        failed(what, &self.shown, error)
    }
}

/// Turns the error of a statement into a failure: "cannot `what` `shown`".
pub(crate) fn failed(what: &str, shown: &str, error: sqlx::Error) -> Failure {
    let mut fault = fault::classify_database(&error);
    if fault.code == Code::RightsMissing {
        fault.next_step = "grant this user the role that `outbox-relay migrate --roles` makes for it";
    }
    Failure::finding(format!("cannot {what} {shown}")).because(error).fault(fault)
}

/// Checks the schema in a transaction. Without one a pooler may run the statements on two different servers.
async fn is_usable(conn: &mut PgConnection, names: &Names) -> Result<(), SchemaError> {
    let mut tx = search_path::begin(conn).await?;
    schema::lanes(&mut tx, names).await?;
    tx.commit().await?;
    Ok(())
}

/// Checks that the database has the outbox, for commands that only read and can do so with any version of the schema.
pub(crate) async fn present(conn: &mut PgConnection, settings: &Settings) -> Result<(), Failure> {
    let looked = async {
        let mut tx = search_path::begin(conn).await?;
        schema::present(&mut tx, &names(&settings.outbox)).await?;
        Ok::<_, SchemaError>(tx.commit().await?)
    };
    looked.await.map_err(|error| refused(error, &settings.database.target()))
}

/// Returns the configured names of the outbox's tables.
pub(crate) fn names(outbox: &OutboxNames) -> Names {
    Names::new(&outbox.schema, &outbox.table, &outbox.processed_table)
}

/// Turns a schema error into a failure with its code and a hint.
pub(crate) fn refused(error: SchemaError, target: &str) -> Failure {
    let missing;
    let (code, hint) = match &error {
        SchemaError::Newer { .. } => (Code::SchemaNewer, "upgrade this binary, or point it at another outbox"),
        SchemaError::Older { .. } => (Code::SchemaOlder, "run `outbox-relay migrate`"),
        SchemaError::Missing { others, .. } => {
            missing = fault::missing_outbox(others);
            (Code::SchemaMissing, missing.as_str())
        }
        SchemaError::Foreign { .. } => (Code::SchemaForeign, "choose another RELAY_TABLE or RELAY_SCHEMA"),
        SchemaError::OldServer { .. } => {
            (Code::ServerOld, "upgrade the server, for example with pg_upgrade; nothing was changed")
        }
        SchemaError::Partitioned { .. } => {
            (Code::TablePartitioned, "move the events into a plain table that `outbox-relay migrate` makes")
        }
        SchemaError::BrokenLanes { .. } => {
            (Code::LanesBroken, "restore the lane table from a backup; it must not be edited")
        }
        SchemaError::ForeignObjects(_) => (
            Code::ForeignObjects,
            "nothing was changed; the entry OR-2206 of docs/how-to/runbook.md says how to remove or replace each kind of object",
        ),
        SchemaError::RepeatedIds { .. } => (
            Code::EventIdsRepeated,
            "no index was left behind; the entry OR-2115 of docs/how-to/runbook.md finds these events and says how to give them other ids",
        ),
        SchemaError::Locked(_) => {
            (Code::DatabaseLocked, "end the other session, see pg_blocking_pids(), or raise --lock-timeout")
        }
        SchemaError::Busy { .. } => (
            Code::DatabaseLocked,
            "run it again after the other migration has ended; if that session migrates nothing, end it with pg_terminate_backend",
        ),
        SchemaError::Pooled => (
            Code::PoolerTransaction,
            "run `outbox-relay migrate` with a DATABASE_URL that leads to the database itself, or to a pooler in session mode",
        ),
        SchemaError::Database(error) => {
            let fault = fault::classify_database(error);
            (fault.code, fault.next_step)
        }
    };
    Failure::finding(format!("the outbox in {target} cannot be used")).because(error).code(code).hint(hint)
}
