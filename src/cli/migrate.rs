//! Runs `outbox-relay migrate`.

use std::time::Duration;

use clap::Args;
use sqlx::PgConnection;

use super::exit::Failure;
use super::{runtime, target};
use crate::config::{OutboxNames, Settings};
use crate::fault;
use crate::inspect::check::pooler;
use crate::observe::print::{errln, out, outln};
use crate::store::activity::{self, Blocker, Sessions};
use crate::store::connect::Purpose;
use crate::store::roles::{self, RoleOptions};
use crate::store::{parts, search_path};
use event_outbox::Names;
use event_outbox::schema::{self, DEFAULT_LANES, MAX_LANES, MigrateOptions, Migrated, SchemaError};

/// The name of the command's sessions.
const APPLICATION: &str = "outbox-relay migrate";

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Print the SQL and change nothing, for Flyway, Alembic, Prisma and the like; no database is needed
    #[arg(long)]
    pub(crate) print: bool,
    /// Print only the steps above this version (with --print), for an outbox that is in use. The steps contain their own begin and commit,
    /// because indexes are built outside a transaction
    #[arg(long, requires = "print", conflicts_with = "roles", value_name = "VERSION", value_parser = clap::value_parser!(i32).range(1..))]
    from: Option<i32>,
    /// Number of lanes of a new outbox; cannot be changed later
    #[arg(long, default_value_t = DEFAULT_LANES, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_LANES)))]
    lanes: u16,
    /// Wait at most this long for a lock that another session holds
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    lock_timeout: Duration,
    /// Set a trigger by which inserts wake a relay, for applications that insert events without `outbox_emit`; costs 5 to 15 % of the commits
    /// of a database that does nothing else
    #[arg(long, conflicts_with_all = ["print", "no_wake_up_trigger"])]
    wake_up_trigger: bool,
    /// Remove this trigger
    #[arg(long, conflicts_with = "print")]
    no_wake_up_trigger: bool,
    /// Create also the roles writer, relay, operator and monitor with the least rights that each needs; safe to run again. With --print:
    /// print only their SQL
    #[arg(long)]
    roles: bool,
    /// Prefix of the roles' names [default: the table's name]
    #[arg(long, value_name = "PREFIX", requires = "roles", value_parser = role_prefix)]
    role_prefix: Option<String>,
    /// Let the relay's role remove events, for RELAY_RETENTION, RELAY_PROCESSED_RETENTION and RELAY_SETTLE=delete; without this flag the right is revoked
    #[arg(long, requires = "roles")]
    retention: bool,
}

/// Checks the length of the prefix: Postgres truncates longer names silently, and a role's name ends in `_operator`.
fn role_prefix(text: &str) -> Result<String, String> {
    let fits = (1..=50).contains(&text.len()) && !text.contains('\0') && !text.starts_with("pg_");
    if fits { Ok(text.to_owned()) } else { Err("expected 1 to 50 bytes that do not begin with pg_".to_owned()) }
}

impl Migrate {
    pub(crate) fn print(&self, outbox: &OutboxNames) {
        let names = target::names(outbox);
        match self.roles {
            true => out!("{}", roles::script(&names, &self.role_options())),
            false => out!("{}", schema::print(&names, self.lanes, self.from)),
        }
    }

    fn role_options(&self) -> RoleOptions {
        RoleOptions { prefix: self.role_prefix.clone(), retention: self.retention }
    }

    pub(crate) fn run(&self, settings: &Settings) -> Result<(), Failure> {
        let options =
            MigrateOptions { lanes: self.lanes, lock_timeout: self.lock_timeout, ..MigrateOptions::default() };
        let (migrated, made, others) = runtime()?.block_on(async {
            let migrated = migrate(settings, &options).await?;
            if self.wake_up_trigger || self.no_wake_up_trigger {
                self.set_wake_up_trigger(settings).await?;
            }
            if self.roles {
                self.make_roles(settings).await?;
            }
            let (made, others) = match migrated.from {
                None => look_around(settings).await?,
                Some(_) => (Vec::new(), Vec::new()),
            };
            Ok::<_, Failure>((migrated, made, others))
        })?;
        let (names, target) = (target::names(&settings.outbox), settings.database.target());
        match migrated.from {
            Some(from) if from == migrated.to => {
                outln!("{} in {target} is at version {} already", names.outbox(), migrated.to);
            }
            from => outln!("{} in {target}: version {} -> {}", names.outbox(), from.unwrap_or(0), migrated.to),
        }
        match migrated.from {
            None => {
                for (kind, all) in made.iter().filter(|(_, all)| !all.is_empty()) {
                    outln!("  {kind:<10} {}", all.join(", "));
                }
                for (schema, table) in
                    others.iter().filter(|other| other.1 != names.table_raw() || other.0 != names.schema_raw())
                {
                    outln!("  note: the outbox {schema:?}.{table:?} is in this database as well, and is another one");
                }
            }
            Some(from) => {
                for (version, name) in schema::steps_above(from) {
                    outln!("  {version:04} {name}");
                }
            }
        }
        self.print_roles_and_next(&names, migrated.from.is_none());
        Ok(())
    }

    fn print_roles_and_next(&self, names: &Names, is_new: bool) {
        if self.roles {
            let [writer, relay, operator, monitor] = roles::names(names, &self.role_options());
            outln!("  roles      {writer}, {relay}, {operator}, {monitor}");
            outln!("\nnext");
            outln!("  grant {writer} to the user of each application;");
            outln!(
                "  create role relay login password '…' in role {relay};   -- and put this user into DATABASE_URL of the relay"
            );
            outln!("  outbox-relay check --topic TOPIC   -- as that user, for each topic; then outbox-relay run");
        } else if is_new {
            outln!("\nnext");
            outln!(
                "  outbox-relay migrate --roles       -- makes roles with the least rights, for applications, relays, operators and monitors"
            );
            outln!(
                "  outbox-relay check --topic TOPIC   -- for each topic that events will go to; then outbox-relay run"
            );
        }
    }

    async fn set_wake_up_trigger(&self, settings: &Settings) -> Result<(), Failure> {
        let mut conn = target::connect(settings, APPLICATION, Purpose::Write).await?;
        let set = schema::set_wake_up_trigger(&mut conn, &target::names(&settings.outbox), self.wake_up_trigger).await;
        set.map_err(|error| target::refused(error, &settings.database.target()))
    }

    async fn make_roles(&self, settings: &Settings) -> Result<(), Failure> {
        let mut conn = target::connect(settings, APPLICATION, Purpose::Write).await?;
        let made = roles::make(&mut conn, &target::names(&settings.outbox), &self.role_options()).await;
        made.map_err(|error| {
            let fault = fault::classify_database(&error);
            let hint = match error.as_database_error().and_then(|error| error.code()).as_deref() {
                Some("42501") => {
                    "creating roles needs CREATEROLE, and granting needs the tables' owner: let an administrator run the output of \
                     `migrate --roles --print`"
                }
                _ => fault.next_step,
            };
            Failure::finding(format!("the roles cannot be made in {}", settings.database.target()))
                .because(error)
                .code(fault.code)
                .hint(hint)
        })
    }
}

/// What an outbox consists of: a kind, and the names of that kind.
type Made = Vec<(&'static str, Vec<String>)>;

/// Returns what the outbox consists of, and all outboxes of the database.
async fn look_around(settings: &Settings) -> Result<(Made, Vec<(String, String)>), Failure> {
    let names = target::names(&settings.outbox);
    let mut conn = target::connect(settings, APPLICATION, Purpose::Read).await?;
    let looked = async {
        let made = parts::of(&mut conn, &names).await?;
        let mut tx = search_path::begin(&mut conn).await?;
        let others = schema::outboxes(&mut tx).await?;
        tx.commit().await?;
        Ok::<_, sqlx::Error>((made, others))
    };
    looked.await.map_err(|error| target::failed("look at", &names.outbox(), error))
}

/// Migrates the configured outbox.
pub(crate) async fn migrate(settings: &Settings, options: &MigrateOptions) -> Result<Migrated, Failure> {
    let (names, database) = (target::names(&settings.outbox), &settings.database);
    let mut conn = target::connect(settings, APPLICATION, Purpose::Write).await?;
    let looked = pooler::refuse_upgrade(&mut conn, &names, database).await;
    if let Some(reason) = looked.map_err(|error| target::refused(error, &database.target()))? {
        errln!("note: goes on without knowing whether a transaction pooler stands before the database: {reason}");
    }
    match schema::migrate(&mut conn, &names, options).await {
        Ok(migrated) => Ok(migrated),
        Err(error) => {
            let is_locked = matches!(error, SchemaError::Locked(_));
            let failure = target::refused(error, &database.target());
            let holder = if is_locked { lock_holder(&mut conn, &names).await } else { None };
            Err(match holder {
                Some(Blocker { holds, session, .. }) => failure.hint(format!(
                    "{holds} is held by {}; end it: select pg_terminate_backend({}); or raise --lock-timeout",
                    session.describe(),
                    session.pid
                )),
                None => failure,
            })
        }
    }
}

/// Returns the session that a migration most likely waited for; `None` if it has let go, or if this user may not look.
async fn lock_holder(conn: &mut PgConnection, names: &Names) -> Option<Blocker> {
    let sessions = Sessions::find(conn, names).await.ok()?;
    activity::oldest_lock_holder(conn, names, &sessions).await.ok()?
}
