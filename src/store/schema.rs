//! Migrations: rendered for one outbox's names, applied under a lock, printed for teams with a migration tool of their own.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::store::hash::fnv1a;
use crate::store::names::{Names, literal};

/// Lanes of a new outbox. More lanes let more workers share an outbox; fewer make wider claims.
pub const DEFAULT_LANES: u16 = 16;

/// `lane` is a smallint and every lane is a row; beyond this nothing is won.
pub const MAX_LANES: u16 = 1024;

/// The oldest server the suite is meant for: older ones get no fixes any more.
const OLDEST_SERVER: i32 = 140_000;

struct Migration {
    version: i32,
    name: &'static str,
    template: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "outbox", template: include_str!("../../migrations/0001_outbox.sql") },
    Migration { version: 2, name: "control", template: include_str!("../../migrations/0002_control.sql") },
    Migration { version: 3, name: "retention", template: include_str!("../../migrations/0003_retention.sql") },
    Migration { version: 4, name: "health", template: include_str!("../../migrations/0004_health.sql") },
    Migration { version: 5, name: "held keys", template: include_str!("../../migrations/0005_held_keys.sql") },
    Migration { version: 6, name: "delivery", template: include_str!("../../migrations/0006_delivery.sql") },
];

/// The schema version this binary works on.
pub const CURRENT_VERSION: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// How [`migrate`] goes about it.
#[derive(Debug, Clone)]
pub struct MigrateOptions {
    /// Number of lanes of a new outbox; fixed from then on. 1 to [`MAX_LANES`].
    pub lanes: u16,
    /// How long a statement waits for a lock on a table that others use.
    pub lock_timeout: Duration,
    /// How long to wait for another `migrate` of the same schema.
    pub turn_timeout: Duration,
}

impl Default for MigrateOptions {
    fn default() -> Self {
        Self { lanes: DEFAULT_LANES, lock_timeout: Duration::from_secs(5), turn_timeout: Duration::from_secs(60) }
    }
}

/// What [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Version found; `None` where there was no outbox.
    pub from: Option<i32>,
    /// Version now.
    pub to: i32,
}

/// Why the schema could not be brought up to date, or cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// The database was migrated by a newer binary.
    #[error("{table} is at schema version {found}, this binary knows up to {known}")]
    Newer {
        /// The outbox table.
        table: String,
        /// Version found.
        found: i32,
        /// Newest version this binary knows.
        known: i32,
    },
    /// There is no outbox, or an older one.
    #[error("{table} is at schema version {found}, this binary needs {needed}")]
    Older {
        /// The outbox table.
        table: String,
        /// Version found.
        found: i32,
        /// Version this binary works on.
        needed: i32,
    },
    /// There is no outbox of this name.
    #[error("there is no outbox {table} in this database")]
    Missing {
        /// The outbox table.
        table: String,
    },
    /// A table of this name exists that no migration of ours made.
    #[error("{table} exists already and was not made by outbox-relay")]
    Foreign {
        /// The outbox table.
        table: String,
    },
    /// The server is too old.
    #[error("PostgreSQL {found} is too old, {} or newer is needed", OLDEST_SERVER / 10_000)]
    OldServer {
        /// The server's own description of its version.
        found: String,
    },
    /// The lanes' rows are not 0..n.
    #[error("{table} does not hold the lanes 0..n without gaps ({found} rows)")]
    BrokenLanes {
        /// The lane table.
        table: String,
        /// Rows found.
        found: i64,
    },
    /// Another session held a lock for too long.
    #[error("another session holds a lock that the migration needs")]
    Locked(#[source] sqlx::Error),
    /// The database refused or was not there.
    #[error("the database refused the migration")]
    Database(#[from] sqlx::Error),
}

/// Brings the outbox `names` to [`CURRENT_VERSION`]. May be called by any number of processes at once.
///
/// # Errors
/// [`SchemaError`]; nothing is changed then, everything happens in one transaction.
pub async fn migrate(
    conn: &mut PgConnection,
    names: &Names,
    options: &MigrateOptions,
) -> Result<Migrated, SchemaError> {
    server_is_new_enough(conn).await?;
    let found = version(conn, names).await?;
    refuse_newer(names, found)?;
    if found == Some(CURRENT_VERSION) {
        return Ok(Migrated { from: found, to: CURRENT_VERSION });
    }
    let mut tx = conn.begin().await?;
    let result = migrate_in_turn(&mut tx, names, options).await;
    match result {
        Ok(done) => {
            tx.commit().await?;
            Ok(done)
        }
        Err(error) => Err(error),
    }
}

async fn migrate_in_turn(
    conn: &mut PgConnection,
    names: &Names,
    options: &MigrateOptions,
) -> Result<Migrated, SchemaError> {
    set_lock_timeout(conn, options.turn_timeout).await?;
    // Per schema and not per outbox: outboxes of one schema share the inbox table and the schema itself.
    let key = fnv1a(format!("outbox-relay migrate {}", names.schema_raw()).as_bytes()) as i64;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(key).execute(&mut *conn).await.map_err(lock_or_database)?;
    set_lock_timeout(conn, options.lock_timeout).await?;

    let found = version(conn, names).await?;
    refuse_newer(names, found)?;
    if found.is_none() {
        create_version_table(conn, names).await?;
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > found.unwrap_or(0)) {
        run(conn, &migration.render(names, options.lanes)).await?;
    }
    Ok(Migrated { from: found, to: CURRENT_VERSION })
}

async fn create_version_table(conn: &mut PgConnection, names: &Names) -> Result<(), SchemaError> {
    if exists(conn, names, names.table_raw()).await? {
        return Err(SchemaError::Foreign { table: names.outbox() });
    }
    // `create schema if not exists` asks for the right to create one even where it exists.
    let schema_exists: bool = sqlx::query_scalar("select exists (select from pg_namespace where nspname = $1)")
        .bind(names.schema_raw())
        .persistent(false)
        .fetch_one(&mut *conn)
        .await?;
    if !schema_exists {
        run(conn, &create_schema(names)).await?;
    }
    run(conn, &version_table(names)).await
}

/// The migrations as one SQL script for a tool of the team's own.
pub fn print(names: &Names, lanes: u16) -> String {
    let mut script = format!("begin;\n{}\n{}\n", create_schema(names), version_table(names));
    for migration in MIGRATIONS {
        script.push_str(&migration.render(names, lanes));
    }
    script.push_str("commit;\n");
    script
}

/// The schema version of the outbox, `None` where it was never migrated.
///
/// # Errors
/// Any database error.
pub async fn version(conn: &mut PgConnection, names: &Names) -> Result<Option<i32>, sqlx::Error> {
    if !exists(conn, names, &names.part_raw("migration")).await? {
        return Ok(None);
    }
    let sql = format!("select max(version) from {}", names.companion("migration"));
    sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false).fetch_one(conn).await
}

/// True when the schema has a relation of that name. Reads the catalog by the statement's snapshot: `to_regclass` looks into the
/// session's cache, which does not yet know what another migration has committed while this one waited for its turn.
async fn exists(conn: &mut PgConnection, names: &Names, relation: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select from pg_class join pg_namespace on pg_namespace.oid = relnamespace \
         where nspname = $1 and relname = $2)",
    )
    .bind(names.schema_raw())
    .bind(relation)
    .persistent(false)
    .fetch_one(conn)
    .await
}

/// Statements are not kept prepared; a caller behind a pooler calls from inside a transaction.
///
/// Number of lanes of an outbox that is at [`CURRENT_VERSION`].
///
/// # Errors
/// [`SchemaError`] when the outbox is missing, of another version, or its lanes are damaged.
pub async fn lanes(conn: &mut PgConnection, names: &Names) -> Result<u16, SchemaError> {
    server_is_new_enough(conn).await?;
    match version(conn, names).await? {
        None => return Err(SchemaError::Missing { table: names.outbox() }),
        Some(found) if found < CURRENT_VERSION => {
            return Err(SchemaError::Older { table: names.outbox(), found, needed: CURRENT_VERSION });
        }
        found => refuse_newer(names, found)?,
    }
    let table = names.companion("lane");
    let row = sqlx::query(AssertSqlSafe(format!(
        "select count(*), coalesce(min(lane), 0) = 0 and coalesce(max(lane), 0) = count(*) - 1 from {table}"
    )))
    .persistent(false)
    .fetch_one(conn)
    .await?;
    let found: i64 = row.try_get(0)?;
    match u16::try_from(found) {
        Ok(lanes) if lanes > 0 && lanes <= MAX_LANES && row.try_get::<bool, _>(1)? => Ok(lanes),
        _ => Err(SchemaError::BrokenLanes { table, found }),
    }
}

async fn server_is_new_enough(conn: &mut PgConnection) -> Result<(), SchemaError> {
    let row = sqlx::query("select current_setting('server_version_num')::int, current_setting('server_version')")
        .persistent(false)
        .fetch_one(conn)
        .await?;
    if row.try_get::<i32, _>(0)? < OLDEST_SERVER {
        return Err(SchemaError::OldServer { found: row.try_get(1)? });
    }
    Ok(())
}

fn refuse_newer(names: &Names, found: Option<i32>) -> Result<(), SchemaError> {
    match found {
        Some(found) if found > CURRENT_VERSION => {
            Err(SchemaError::Newer { table: names.outbox(), found, known: CURRENT_VERSION })
        }
        _ => Ok(()),
    }
}

async fn set_lock_timeout(conn: &mut PgConnection, timeout: Duration) -> Result<(), sqlx::Error> {
    sqlx::query("select set_config('lock_timeout', $1, true)")
        .bind(format!("{}ms", timeout.as_millis()))
        .execute(conn)
        .await
        .map(drop)
}

async fn run(conn: &mut PgConnection, sql: &str) -> Result<(), SchemaError> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(conn).await.map(drop).map_err(lock_or_database)
}

fn lock_or_database(error: sqlx::Error) -> SchemaError {
    // 55P03 lock_not_available: lock_timeout has passed.
    match error.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("55P03") => SchemaError::Locked(error),
        _ => SchemaError::Database(error),
    }
}

fn create_schema(names: &Names) -> String {
    format!("create schema if not exists {};", names.schema())
}

fn version_table(names: &Names) -> String {
    format!(
        "create table {} (\n    version integer primary key,\n    name text not null,\n    \
         applied_by text not null,\n    applied_at timestamptz not null default now()\n);",
        names.companion("migration")
    )
}

impl Migration {
    /// The statements of this migration and the row that records it.
    fn render(&self, names: &Names, lanes: u16) -> String {
        let body = fill(self.template, |placeholder| {
            Some(match placeholder {
                "outbox" => names.outbox(),
                "lane" | "relay" | "control" | "pause" | "audit" | "audit_row" | "archive" | "health" | "delivery" => {
                    names.companion(placeholder)
                }
                "processed" => names.processed(),
                "held" => names.held(),
                "emit" => names.emit(),
                "once" => names.once(),
                "lanes" => lanes.to_string(),
                "quote" => dollar_quote(names),
                // For a cast to regclass.
                "outbox_regclass" => literal(&names.outbox()),
                _ => names.part(placeholder.strip_prefix("outbox_")?),
            })
        });
        format!(
            "{body}\ninsert into {} (version, name, applied_by) values ({}, {}, {});\n",
            names.companion("migration"),
            self.version,
            literal(self.name),
            literal(concat!("outbox-relay ", env!("CARGO_PKG_VERSION"))),
        )
    }
}

/// A dollar quote that no name of the outbox contains.
pub(super) fn dollar_quote(names: &Names) -> String {
    let taken = format!("{} {}", names.outbox(), names.processed());
    (0..).map(|n| format!("$outbox{n}$")).find(|quote| !taken.contains(quote)).unwrap_or_default()
}

/// Replaces each `{name}` in one pass, so that a table called `{lanes}` stays what it is. Braces around anything that is not a
/// placeholder (`'{}'`) are kept.
fn fill(template: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut filled = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let (before, from_open) = rest.split_at(open);
        filled.push_str(before);
        let replaced = from_open.find('}').and_then(|close| Some((value(&from_open[1..close])?, close)));
        match replaced {
            Some((text, close)) => {
                filled.push_str(&text);
                rest = &from_open[close + 1..];
            }
            None => {
                filled.push('{');
                rest = &from_open[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_has_no_placeholder_left_and_keeps_empty_objects() {
        let script = print(&Names::new("public", "event_outbox", "processed_events"), 16);
        for placeholder in [
            "{outbox",
            "{lane",
            "{relay",
            "{processed",
            "{held",
            "{emit",
            "{once",
            "{quote",
            "{a",
            "{control",
            "{delivery",
            "{pause",
        ] {
            assert!(!script.contains(placeholder), "{placeholder} is left in the script");
        }
        assert!(script.contains("default '{}'"));
        assert!(script.contains(r#"create table "public"."event_outbox" ("#));
    }

    #[test]
    fn a_table_called_like_a_placeholder_is_not_filled_twice() {
        let script = print(&Names::new("public", "{lanes}", "processed_events"), 16);
        assert!(script.contains(r#"create table "public"."{lanes}" ("#));
    }

    #[test]
    fn a_name_cannot_end_a_function_body() {
        let script = print(&Names::new("public", "a$outbox0$b", "processed_events"), 16);
        assert!(script.contains("$outbox1$;"));
        assert!(!script.contains("\n$outbox0$;"));
    }

    #[test]
    fn versions_count_up_from_one() {
        for (index, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version, index as i32 + 1);
        }
    }
}
