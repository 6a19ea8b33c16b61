//! Renders the migrations for the names of one outbox, applies them under a lock, and prints them for teams with their own migration tool.

use std::time::{Duration, Instant};

use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::hash::fnv1a;
use crate::names::{Names, literal};
use safety::Span;

mod safety;

pub use safety::{PIN, UNPIN, foreign_objects, has_open_function};

/// The number of lanes of a new outbox. More lanes let more workers share an outbox; fewer lanes make each claim wider.
pub const DEFAULT_LANES: u16 = 16;

/// The most lanes of an outbox. `lane` is a smallint and every lane is a row; more lanes bring no benefit.
pub const MAX_LANES: u16 = 1024;

/// The oldest supported server version. Older servers get no fixes any more.
const OLDEST_SERVER: i32 = 140_000;

/// The row of the control table in which a migration says which binaries may start on its schema: those that know at least this version. Its
/// name ends in the version of the schema, so that a later migration has to say so again. Without the row, only binaries that know the schema
/// start. It lets an upgrade be taken back.
const OLDEST_BINARY: &str = "oldest_binary_";

/// The oldest schema version that this binary works with.
const OLDEST_USABLE: i32 = 17;

/// The longest wait of one attempt of an upgrade to get a lock; [`LOCK_PAUSE`] is the pause before the next attempt.
const LOCK_ATTEMPT: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// The pause between two attempts to get the advisory lock of the migration.
const TURN_PAUSE: Duration = Duration::from_millis(50);

/// The longest wait for an autovacuum to release the table.
const AUTOVACUUM_ENDS: Duration = Duration::from_millis(1500);

struct Migration {
    version: i32,
    name: &'static str,
    template: &'static str,
    /// True for a migration that builds or drops indexes. On an outbox in use, each of its statements runs alone with `concurrently`,
    /// outside of transactions.
    is_concurrent: bool,
}

const fn migration(version: i32, name: &'static str, template: &'static str) -> Migration {
    Migration { version, name, template, is_concurrent: false }
}

const fn concurrent(version: i32, name: &'static str, template: &'static str) -> Migration {
    Migration { version, name, template, is_concurrent: true }
}

const MIGRATIONS: &[Migration] = &[
    migration(1, "outbox", include_str!("../migrations/0001_outbox.sql")),
    migration(2, "control", include_str!("../migrations/0002_control.sql")),
    migration(3, "retention", include_str!("../migrations/0003_retention.sql")),
    migration(4, "health", include_str!("../migrations/0004_health.sql")),
    migration(5, "held keys", include_str!("../migrations/0005_held_keys.sql")),
    migration(6, "delivery", include_str!("../migrations/0006_delivery.sql")),
    migration(7, "claims", include_str!("../migrations/0007_claims.sql")),
    concurrent(8, "claim indexes", include_str!("../migrations/0008_claim_indexes.sql")),
    migration(9, "lane progress", include_str!("../migrations/0009_lane_progress.sql")),
    concurrent(10, "without partial indexes", include_str!("../migrations/0010_without_partial_indexes.sql")),
    migration(11, "relay lanes", include_str!("../migrations/0011_relay_lanes.sql")),
    migration(12, "search path", include_str!("../migrations/0012_search_path.sql")),
    migration(13, "partition holds", include_str!("../migrations/0013_partition_holds.sql")),
    concurrent(14, "event id index", include_str!("../migrations/0014_event_id_index.sql")),
    migration(15, "guarded functions", include_str!("../migrations/0015_guarded_functions.sql")),
    migration(16, "relay settings", include_str!("../migrations/0016_relay_settings.sql")),
    migration(17, "consumers", include_str!("../migrations/0017_consumers.sql")),
    migration(18, "retries", include_str!("../migrations/0018_retries.sql")),
    migration(19, "fill factor", include_str!("../migrations/0019_fill_factor.sql")),
];

/// The query of the view of [`Names::companion`] `health`, which migrations render.
const HEALTH_QUERY: &str = include_str!("../migrations/health.sql");

/// The schema version that this binary migrates to.
pub const CURRENT_VERSION: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// The options of [`migrate`].
#[derive(Debug, Clone)]
pub struct MigrateOptions {
    /// The number of lanes of a new outbox, 1 to [`MAX_LANES`]. It cannot be changed later.
    pub lanes: u16,
    /// The longest wait for a lock on a table in use. Each attempt takes at most half a second, because other sessions queue behind it
    /// meanwhile.
    pub lock_timeout: Duration,
    /// The longest wait for another `migrate` of the same schema.
    pub turn_timeout: Duration,
}

impl Default for MigrateOptions {
    fn default() -> Self {
        Self { lanes: DEFAULT_LANES, lock_timeout: Duration::from_secs(5), turn_timeout: Duration::from_secs(60) }
    }
}

/// The result of [`migrate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The version that was found; `None` if there was no outbox.
    pub from: Option<i32>,
    /// The version after the migration.
    pub to: i32,
}

/// The reason why the schema could not be migrated, or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer binary has migrated the database.
    #[error("{table} is at schema version {found}, this binary knows up to {known}")]
    Newer {
        /// The outbox table.
        table: String,
        /// The version that was found.
        found: i32,
        /// The newest version that this binary knows.
        known: i32,
    },
    /// The outbox has an older schema version.
    #[error("{table} is at schema version {found}, this binary needs {needed}")]
    Older {
        /// The outbox table.
        table: String,
        /// The version that was found.
        found: i32,
        /// The version that this binary needs.
        needed: i32,
    },
    /// The database has no outbox of this name.
    #[error("there is no outbox {table} in this database{}", but_there_is(others))]
    Missing {
        /// The outbox table.
        table: String,
        /// Schema and table of the outboxes that the database has.
        others: Vec<(String, String)>,
    },
    /// A table of this name exists, but no migration of ours created it.
    #[error("{table} exists already and was not made by outbox-relay")]
    Foreign {
        /// The outbox table.
        table: String,
    },
    /// The PostgreSQL server is too old.
    #[error("PostgreSQL {found} is too old, {} or newer is needed", OLDEST_SERVER / 10_000)]
    OldServer {
        /// The version as the server states it.
        found: String,
    },
    /// The outbox is a partitioned table.
    #[error("{table} is a partitioned table: a row's ctid is not unique in it, so marks could hit other rows")]
    Partitioned {
        /// The outbox table.
        table: String,
    },
    /// The rows of the lane table are not 0..n.
    #[error("{table} does not hold the lanes 0..n without gaps ({found} rows)")]
    BrokenLanes {
        /// The lane table.
        table: String,
        /// The number of rows found.
        found: i64,
    },
    /// Other users own objects that the outbox runs, or that stand where it would be created.
    #[error("other users own objects of the outbox")]
    ForeignObjects(#[source] sqlx::Error),
    /// Several events have one id, so that ids cannot be made unique.
    #[error("several events of {table} have the same event_id: {example}")]
    RepeatedIds {
        /// The outbox table.
        table: String,
        /// The first repeated id, as the server names it.
        example: String,
    },
    /// Another session held a lock for longer than the timeout.
    #[error("another session holds a lock that the migration needs")]
    Locked(#[source] sqlx::Error),
    /// Another session holds the lock of migrations, which any session can take.
    #[error("another process is migrating an outbox of this schema: {holder}")]
    Busy {
        /// The session, as far as this user may see it.
        holder: String,
    },
    /// A transaction pooler stands before the database. The lock of migrations and the search path belong to one session, and an index is
    /// built outside a transaction.
    #[error("an outbox in use cannot be upgraded through a transaction pooler; nothing was changed")]
    Pooled,
    /// The database refused a statement or cannot be reached.
    #[error("the database refused the migration")]
    Database(#[from] sqlx::Error),
}

/// Migrates the outbox `names` to [`CURRENT_VERSION`]. Any number of processes may call it at the same time.
///
/// A new outbox is created in one transaction. An outbox in use is upgraded step by step: each migration runs in its own transaction,
/// except that migrations with indexes run in none. A step that fails changes nothing, and the next call continues with it.
/// An upgrade needs one session: a transaction pooler, such as PgBouncer, may stand before the database only where there is none to do. One
/// that gives two statements two servers is refused; one that has given both the same server is not noticed.
///
/// # Errors
/// [`SchemaError`].
pub async fn migrate(
    conn: &mut PgConnection,
    names: &Names,
    options: &MigrateOptions,
) -> Result<Migrated, SchemaError> {
    let found = usable_version(conn, names).await?;
    if let Some(version) = found.filter(|version| *version >= CURRENT_VERSION) {
        return Ok(Migrated { from: found, to: version });
    }
    if found.is_none() {
        if let Some(done) = create(conn, names, options).await? {
            return Ok(done);
        }
        // Another process was faster, and an outbox that is up to date needs no upgrade.
        let found = usable_version(conn, names).await?;
        if let Some(version) = found.filter(|version| *version >= CURRENT_VERSION) {
            return Ok(Migrated { from: found, to: version });
        }
    }
    refuse_pooled(conn).await?;
    upgrade(conn, names, options).await
}

/// Fails if two statements outside a transaction reach two server processes.
async fn refuse_pooled(conn: &mut PgConnection) -> Result<(), SchemaError> {
    let mut pids = [0_i32; 2];
    for pid in &mut pids {
        *pid = sqlx::raw_sql("select pg_catalog.pg_backend_pid()").fetch_one(&mut *conn).await?.try_get(0)?;
    }
    if pids[0] == pids[1] { Ok(()) } else { Err(SchemaError::Pooled) }
}

/// Returns the version of an outbox that [`migrate`] can bring to [`CURRENT_VERSION`]; `None` if there is no outbox.
///
/// # Errors
/// [`SchemaError::OldServer`], [`SchemaError::Newer`], or any error of the database.
pub async fn usable_version(conn: &mut PgConnection, names: &Names) -> Result<Option<i32>, SchemaError> {
    // A pooler may give each statement outside a transaction to another server, even the parts of one with parameters.
    let mut tx = conn.begin().await?;
    server_is_new_enough(&mut tx).await?;
    let found = version(&mut tx, names).await?;
    refuse_newer(&mut tx, names, found).await?;
    tx.commit().await?;
    Ok(found)
}

/// Creates a new outbox; returns `None` if another process was faster.
async fn create(
    conn: &mut PgConnection,
    names: &Names,
    options: &MigrateOptions,
) -> Result<Option<Migrated>, SchemaError> {
    let mut tx = conn.begin().await?;
    let path = safety::pin(&mut tx, Span::Transaction).await?;
    take_turn(&mut tx, "select pg_catalog.pg_try_advisory_xact_lock($1)", migration_key(names), options.turn_timeout)
        .await?;
    set_lock_timeout(&mut tx, options.lock_timeout).await?;
    if version(&mut tx, names).await?.is_some() {
        return Ok(None);
    }
    create_version_table(&mut tx, names).await?;
    for migration in MIGRATIONS {
        run(&mut tx, &migration.render(names, options.lanes, Mode::New)).await?;
    }
    safety::set(&mut tx, &path, Span::Transaction).await?;
    tx.commit().await?;
    Ok(Some(Migrated { from: None, to: CURRENT_VERSION }))
}

/// Upgrades an outbox in use. Holds the advisory lock for the session, because the steps are several transactions.
async fn upgrade(conn: &mut PgConnection, names: &Names, options: &MigrateOptions) -> Result<Migrated, SchemaError> {
    let key = migration_key(names);
    take_turn(conn, "select pg_catalog.pg_try_advisory_lock($1)", key, options.turn_timeout).await?;
    let path = safety::pin(conn, Span::Session).await?;
    // A role's own `statement_timeout` may be shorter than an index build. Notices about missing objects of `drop ... if exists` are no
    // news.
    run(conn, "set statement_timeout = 0; set client_min_messages = warning").await?;
    let mut upgraded = async || {
        let found = version(conn, names).await?;
        refuse_newer(conn, names, found).await?;
        for migration in MIGRATIONS.iter().filter(|migration| migration.version > found.unwrap_or(0)) {
            if migration.is_concurrent {
                // The build waits for older transactions, but no session waits for the build.
                run(conn, "set lock_timeout = 0").await?;
                migration.run_concurrently(conn, names).await?;
            } else {
                migration.run_in_use(conn, names, options).await?;
            }
        }
        Ok(Migrated { from: found, to: found.unwrap_or(0).max(CURRENT_VERSION) })
    };
    let upgraded = upgraded().await;
    // If this fails, the lock ends with the session.
    let _ =
        sqlx::query("select pg_catalog.pg_advisory_unlock($1)").bind(key).persistent(false).execute(&mut *conn).await;
    let _ = run(conn, "reset lock_timeout; reset statement_timeout; reset client_min_messages").await;
    let _ = safety::set(conn, &path, Span::Session).await;
    upgraded
}

/// Polls for the advisory lock. A session that waits for a lock inside a statement holds a snapshot, and `create index concurrently` of the
/// lock's owner would wait for that snapshot.
async fn take_turn(conn: &mut PgConnection, sql: &'static str, key: i64, timeout: Duration) -> Result<(), SchemaError> {
    let began = Instant::now();
    loop {
        let turn = sqlx::query_scalar(sql).bind(key).persistent(false);
        if turn.fetch_one(&mut *conn).await? {
            return Ok(());
        }
        if began.elapsed() >= timeout {
            return Err(SchemaError::Busy { holder: holder(conn, key).await? });
        }
        tokio::time::sleep(TURN_PAUSE).await;
    }
}

/// Describes the session that holds the advisory lock.
async fn holder(conn: &mut PgConnection, key: i64) -> Result<String, sqlx::Error> {
    let sql = "select 'pid ' || l.pid || coalesce(' of the user ' || a.usename, '') from pg_locks l \
               left join pg_stat_activity a using (pid) where l.locktype = 'advisory' and l.granted and l.objsubid = 1 \
               and (l.classid::bigint << 32) | l.objid::bigint = $1 \
               and l.database = (select oid from pg_database where datname = current_database())";
    let mut tx = conn.begin().await?;
    safety::set(&mut tx, crate::names::SEARCH_PATH, Span::Transaction).await?;
    let found = sqlx::query_scalar(sql).bind(key).persistent(false).fetch_optional(&mut *tx).await?;
    tx.rollback().await?;
    Ok(found.unwrap_or_else(|| "it has just ended".to_owned()))
}

/// Returns a statement that ends a running autovacuum after `deadlock_timeout` (1 s by default). The lock does not block writers.
fn end_autovacuum(names: &Names) -> String {
    format!("lock table {} in share update exclusive mode", names.outbox())
}

/// Returns the key of the advisory lock. There is one per schema, not per outbox: the outboxes of a schema share the inbox table and the
/// schema itself.
fn migration_key(names: &Names) -> i64 {
    fnv1a(format!("outbox-relay migrate {}", names.schema_raw()).as_bytes()) as i64
}

async fn create_version_table(conn: &mut PgConnection, names: &Names) -> Result<(), SchemaError> {
    if exists(conn, names, names.table_raw()).await? {
        return Err(SchemaError::Foreign { table: names.outbox() });
    }
    // `create schema if not exists` needs the right to create a schema even if the schema exists.
    let schema_exists: bool =
        sqlx::query_scalar("select exists (select from pg_catalog.pg_namespace where nspname = $1)")
            .bind(names.schema_raw())
            .persistent(false)
            .fetch_one(&mut *conn)
            .await?;
    if !schema_exists {
        run(conn, &create_schema(names)).await?;
    }
    run(conn, &safety::refuse_squatters(names)).await?;
    run(conn, &version_table(names)).await
}

/// Returns SQL that sets the trigger by which events that are inserted without `outbox_emit` wake a relay, or removes it.
pub fn wake_up_trigger(names: &Names, is_set: bool) -> String {
    let (trigger, outbox) = (names.part("wake_up"), names.outbox());
    let drop = format!("drop trigger if exists {trigger} on {outbox};\n");
    if !is_set {
        return drop;
    }
    let function = names.companion("wake_up_on_insert");
    // Before the insert: a relay that gets the lock must know of every insert that is not committed yet.
    format!(
        "{drop}create trigger {trigger} before insert on {outbox} for each statement execute function {function}();\n"
    )
}

/// Sets the trigger of [`wake_up_trigger`], or removes it.
///
/// # Errors
/// [`SchemaError`]. The trigger needs the table's owner, and a lock that blocks writers for a moment.
pub async fn set_wake_up_trigger(conn: &mut PgConnection, names: &Names, is_set: bool) -> Result<(), SchemaError> {
    let mut tx = conn.begin().await?;
    set_lock_timeout(&mut tx, LOCK_ATTEMPT).await?;
    run(&mut tx, &wake_up_trigger(names, is_set)).await?;
    tx.commit().await?;
    Ok(())
}

/// Returns number and name of the migrations above version `from`.
pub fn steps_above(from: i32) -> impl Iterator<Item = (i32, &'static str)> {
    let above = MIGRATIONS.iter().filter(move |migration| migration.version > from);
    above.map(|migration| (migration.version, migration.name))
}

/// Returns the migrations above version `from` as one SQL script for a team's own migration tool; `None` gives those of a new outbox.
///
/// The script begins and commits its own transactions, because an upgrade has statements that cannot run inside one (`create index
/// concurrently`).
pub fn print(names: &Names, lanes: u16, from: Option<i32>) -> String {
    let Some(from) = from else {
        let mut script = format!(
            "{PIN}begin;\n{}\n{}\n{}\n",
            create_schema(names),
            safety::refuse_squatters(names),
            version_table(names)
        );
        for migration in MIGRATIONS {
            script.push_str(&migration.render(names, lanes, Mode::New));
        }
        script.push_str("commit;\n");
        script.push_str(UNPIN);
        return script;
    };
    let mut script = format!("{PIN}set statement_timeout = 0;\n");
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > from) {
        script.push_str(&migration.step(names, lanes));
    }
    script.push_str("reset lock_timeout;\nreset statement_timeout;\n");
    script.push_str(UNPIN);
    script
}

/// Reads the schema version of the outbox; `None` if it was never migrated.
///
/// # Errors
/// Any database error.
pub async fn version(conn: &mut PgConnection, names: &Names) -> Result<Option<i32>, sqlx::Error> {
    if !exists(conn, names, &names.part_raw("migration")).await? {
        return Ok(None);
    }
    let sql = format!("select pg_catalog.max(version) from {}", names.companion("migration"));
    sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false).fetch_one(conn).await
}

/// Returns true if the schema has a relation of that name. The search path may be anybody's, so operators are qualified as well. Reads the catalog with the statement's snapshot. `to_regclass` would read the
/// session's cache, which misses the commit of another migration that this one has just waited for.
async fn exists(conn: &mut PgConnection, names: &Names, relation: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select from pg_catalog.pg_class c \
         join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace \
         where n.nspname operator(pg_catalog.=) $1 and c.relname operator(pg_catalog.=) $2)",
    )
    .bind(names.schema_raw())
    .bind(relation)
    .persistent(false)
    .fetch_one(conn)
    .await
}

/// Reads the number of lanes of an outbox that this binary can use.
///
/// Its statements are not kept prepared, because the caller may be behind a pooler; such a caller has to be in a transaction.
///
/// # Errors
/// [`SchemaError`] if the outbox is missing, of an unusable version or partitioned, or its lanes are damaged.
pub async fn lanes(conn: &mut PgConnection, names: &Names) -> Result<u16, SchemaError> {
    server_is_new_enough(conn).await?;
    match version(conn, names).await? {
        None => return Err(missing(conn, names).await?),
        Some(found) if found < OLDEST_USABLE => {
            return Err(SchemaError::Older { table: names.outbox(), found, needed: CURRENT_VERSION });
        }
        found => refuse_newer(conn, names, found).await?,
    }
    if is_partitioned(conn, names).await? {
        return Err(SchemaError::Partitioned { table: names.outbox() });
    }
    let table = names.companion("lane");
    let row = sqlx::query(AssertSqlSafe(format!(
        "select pg_catalog.count(*), coalesce(pg_catalog.min(lane), 0) operator(pg_catalog.=) 0 \
         and coalesce(pg_catalog.max(lane), 0) operator(pg_catalog.=) (pg_catalog.count(*) operator(pg_catalog.-) 1) from {table}"
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

/// Checks that the database has an outbox of that name. Needs no right on it. A caller behind a pooler has to be in a transaction.
///
/// # Errors
/// [`SchemaError::OldServer`], [`SchemaError::Missing`], which names the outboxes that are there, or any error of the database.
pub async fn present(conn: &mut PgConnection, names: &Names) -> Result<(), SchemaError> {
    // First, because a server that is too old has no outbox, and `migrate` would not help.
    server_is_new_enough(conn).await?;
    if exists(conn, names, &names.part_raw("migration")).await? { Ok(()) } else { Err(missing(conn, names).await?) }
}

async fn missing(conn: &mut PgConnection, names: &Names) -> Result<SchemaError, sqlx::Error> {
    Ok(SchemaError::Missing { table: names.outbox(), others: outboxes(conn).await? })
}

/// Returns schema and table of the outboxes of this database, at most five.
///
/// # Errors
/// Any error of the database.
pub async fn outboxes(conn: &mut PgConnection) -> Result<Vec<(String, String)>, sqlx::Error> {
    let part = |suffix: &str| {
        // Compared as a name, which the catalog has an index for: compared as text, every relation is compared with every other one.
        format!(
            "exists (select from pg_catalog.pg_class p where p.relnamespace operator(pg_catalog.=) t.relnamespace \
             and p.relname operator(pg_catalog.=) \
               (t.relname::pg_catalog.text operator(pg_catalog.||) '_{suffix}')::pg_catalog.name)"
        )
    };
    let sql = format!(
        "select n.nspname::pg_catalog.text, t.relname::pg_catalog.text from pg_catalog.pg_class t \
         join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) t.relnamespace \
         where t.relkind operator(pg_catalog.=) 'r' and {} and {} and {} order by 1, 2 limit 5",
        part("migration"),
        part("lane"),
        part("hold")
    );
    sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(conn).await
}

fn but_there_is(others: &[(String, String)]) -> String {
    let others: Vec<_> = others.iter().map(|(schema, table)| format!("{schema:?}.{table:?}")).collect();
    if others.is_empty() { String::new() } else { format!(", but there is {}", others.join(" and ")) }
}

/// Returns true for a partitioned table, and for a table with inheriting children.
async fn is_partitioned(conn: &mut PgConnection, names: &Names) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select c.relkind operator(pg_catalog.<>) 'r' \
           or exists (select from pg_catalog.pg_inherits i where i.inhparent operator(pg_catalog.=) c.oid) \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace \
         where n.nspname operator(pg_catalog.=) $1 and c.relname operator(pg_catalog.=) $2",
    )
    .bind(names.schema_raw())
    .bind(names.table_raw())
    .persistent(false)
    .fetch_one(conn)
    .await
}

async fn server_is_new_enough(conn: &mut PgConnection) -> Result<(), SchemaError> {
    let row = sqlx::query(
        "select pg_catalog.current_setting('server_version_num')::pg_catalog.int4, pg_catalog.current_setting('server_version')",
    )
    .persistent(false)
    .fetch_one(conn)
    .await?;
    if row.try_get::<i32, _>(0)? < OLDEST_SERVER {
        return Err(SchemaError::OldServer { found: row.try_get(1)? });
    }
    Ok(())
}

/// Refuses a schema that a newer binary has made, unless it says that this binary may use it.
async fn refuse_newer(conn: &mut PgConnection, names: &Names, found: Option<i32>) -> Result<(), SchemaError> {
    let Some(found) = found.filter(|found| *found > CURRENT_VERSION) else { return Ok(()) };
    let sql = format!("select value from {} where name operator(pg_catalog.=) $1", names.companion("control"));
    let oldest: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(format!("{OLDEST_BINARY}{found}"))
        .persistent(false)
        .fetch_optional(conn)
        .await?;
    match oldest {
        Some(oldest) if oldest <= i64::from(CURRENT_VERSION) => Ok(()),
        _ => Err(SchemaError::Newer { table: names.outbox(), found, known: CURRENT_VERSION }),
    }
}

async fn set_lock_timeout(conn: &mut PgConnection, timeout: Duration) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_catalog.set_config('lock_timeout', $1, true)")
        .bind(format!("{}ms", timeout.as_millis()))
        .execute(conn)
        .await
        .map(drop)
}

async fn run(conn: &mut PgConnection, sql: &str) -> Result<(), SchemaError> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(conn).await.map(drop).map_err(classify)
}

/// Names the reason why a unique index could not be built.
fn repeated(names: &Names, error: SchemaError) -> SchemaError {
    match error {
        SchemaError::Database(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            let example = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail);
            SchemaError::RepeatedIds { table: names.outbox(), example: example.unwrap_or(error.message()).to_owned() }
        }
        error => error,
    }
}

fn classify(error: sqlx::Error) -> SchemaError {
    // 55P03 lock_not_available: `lock_timeout` has passed.
    match error.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("55P03") => SchemaError::Locked(error),
        Some(safety::FOREIGN) => SchemaError::ForeignObjects(error),
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

/// The state of the outbox that a migration is rendered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The outbox is empty and not yet visible to others, so indexes are built at once.
    New,
    /// Applications and relays use the outbox.
    InUse,
}

impl Migration {
    /// Returns the statements of this migration and of the row that records it.
    fn render(&self, names: &Names, lanes: u16, mode: Mode) -> String {
        format!("{}\n{}", self.body(names, lanes, mode), self.record(names))
    }

    fn body(&self, names: &Names, lanes: u16, mode: Mode) -> String {
        self.with_names(self.template, names, lanes, mode)
    }

    fn with_names(&self, template: &str, names: &Names, lanes: u16, mode: Mode) -> String {
        fill(template, |placeholder| {
            Some(match placeholder {
                "lanes" => lanes.to_string(),
                "quote" => dollar_quote(names),
                "foreign" => foreign_objects(names),
                "health_query" => self.with_names(HEALTH_QUERY, names, lanes, mode),
                // `create index` takes the schema of its table, but `drop index` needs the schema in the name.
                "concurrently" if mode == Mode::InUse => match self.template.contains("drop index") {
                    true => "concurrently if exists".to_owned(),
                    false => "concurrently".to_owned(),
                },
                "concurrently" => String::new(),
                "wake_up_class" => names.wake_up_class().to_string(),
                "wake_up_channel" => literal(&names.wake_up_channel()),
                "guard_name" => names.inbox_part("guard_row"),
                "outbox_pending_index" | "outbox_waiting_index" | "outbox_dead_index" => {
                    let suffix = placeholder.strip_prefix("outbox_")?.strip_suffix("_index")?;
                    format!("{}.{}", names.schema(), names.part(suffix))
                }
                _ => {
                    // The name as a string literal, to be cast to regclass or to become part of a text.
                    let text = placeholder.strip_suffix("_regclass").or_else(|| placeholder.strip_suffix("_text"));
                    match text.and_then(|object| object_name(names, object)) {
                        Some(name) => literal(&name),
                        None => object_name(names, placeholder)
                            .or_else(|| Some(names.part(placeholder.strip_prefix("outbox_")?)))?,
                    }
                }
            })
        })
    }

    /// Returns a step of the printed script. A tool that goes on after an error (psql without ON_ERROR_STOP) must neither record a failed
    /// step nor take the next one. So each step fails unless the step before it is recorded.
    fn step(&self, names: &Names, lanes: u16) -> String {
        let (quote, version) = (dollar_quote(names), self.version);
        let guard = format!(
            "do {quote} begin\n    if (select max(version) from {}) <> {} then\n        \
             raise exception 'step {version} is not the next one of this outbox';\n    end if;\nend {quote};\n",
            names.companion("migration"),
            version - 1
        );
        if !self.is_concurrent {
            return format!(
                "begin;\n{guard}set local lock_timeout = '{}ms';\n{};\nset local lock_timeout = '{}ms';\n{}commit;\n",
                AUTOVACUUM_ENDS.as_millis(),
                end_autovacuum(names),
                LOCK_ATTEMPT.as_millis(),
                self.render(names, lanes, Mode::InUse)
            );
        }
        let drops: String = self.indexes_built(names).iter().map(|index| drop_index(index)).collect();
        let missing = self.indexes_built(names).iter().fold(String::new(), |sql, index| {
            let index = literal(index);
            sql + &format!(
                "    if not coalesce((select indisvalid from pg_catalog.pg_index \
                 where indexrelid = pg_catalog.to_regclass({index})), false) then\n        \
                 raise exception 'the index % has not been built', {index};\n    end if;\n"
            )
        });
        format!(
            "set lock_timeout = 0;\n{drops}{}\nbegin;\n{guard}do {quote} begin\n{missing}end {quote};\n{}commit;\n",
            self.body(names, lanes, Mode::InUse),
            self.record(names)
        )
    }

    /// Returns the indexes that this migration builds, quoted and with their schema.
    fn indexes_built(&self, names: &Names) -> Vec<String> {
        let built = |suffix: &&str| self.template.contains(&format!("index {{concurrently}} {{outbox_{suffix}}} on"));
        let all = ["late", "due", "failed", "event"];
        all.iter()
            .filter(|suffix| built(suffix))
            .map(|suffix| format!("{}.{}", names.schema(), names.part(suffix)))
            .collect()
    }

    fn record(&self, names: &Names) -> String {
        format!(
            "insert into {} (version, name, applied_by) values ({}, {}, {});\n",
            names.companion("migration"),
            self.version,
            literal(self.name),
            literal(concat!("outbox-relay ", env!("CARGO_PKG_VERSION"))),
        )
    }

    /// Runs the migration in one transaction. Other sessions queue behind a statement that waits for a lock, so each attempt gives up soon
    /// and is made again.
    async fn run_in_use(
        &self,
        conn: &mut PgConnection,
        names: &Names,
        options: &MigrateOptions,
    ) -> Result<(), SchemaError> {
        let began = Instant::now();
        loop {
            let mut tx = conn.begin().await?;
            set_lock_timeout(&mut tx, options.lock_timeout.min(AUTOVACUUM_ENDS)).await?;
            let attempt = options.lock_timeout.min(LOCK_ATTEMPT).as_millis();
            let script = format!(
                "{}; set local lock_timeout = '{attempt}ms';\n{}",
                end_autovacuum(names),
                self.render(names, options.lanes, Mode::InUse)
            );
            match run(&mut tx, &script).await {
                Ok(()) => return Ok(tx.commit().await?),
                Err(SchemaError::Locked(_)) if began.elapsed() < options.lock_timeout => {
                    tx.rollback().await?;
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs each statement on its own. An index that an interrupted run has left behind is built again.
    async fn run_concurrently(&self, conn: &mut PgConnection, names: &Names) -> Result<(), SchemaError> {
        for index in self.indexes_built(names) {
            run(conn, &drop_index(&index)).await?;
        }
        let body = self.body(names, 0, Mode::InUse);
        let plain: String =
            body.lines().filter(|line| !line.trim_start().starts_with("--")).flat_map(|line| [line, "\n"]).collect();
        for statement in statements(&plain) {
            let Err(error) = run(conn, statement).await else { continue };
            // An index that was not completed may already refuse rows.
            for index in self.indexes_built(names) {
                run(conn, &drop_index(&index)).await?;
            }
            return Err(repeated(names, error));
        }
        run(conn, &self.record(names)).await
    }
}

/// Returns the qualified name of a table, a view or a function that a placeholder stands for.
fn object_name(names: &Names, placeholder: &str) -> Option<String> {
    Some(match placeholder {
        "outbox" => names.outbox(),
        "lane" | "relay" | "control" | "pause" | "audit" | "audit_row" | "archive" | "health" | "delivery" | "hold"
        | "stamp" | "secret" | "new_id" | "lock_entity" | "dedupe_id" | "decide" | "begin_pause" | "end_pause"
        | "discard" | "note" | "sessions" | "oldest_transaction" | "wake_up" | "wake_up_on_insert" => {
            names.companion(placeholder)
        }
        "processed" => names.processed(),
        "held" | "group" | "may_apply" | "guard" => names.inbox_companion(placeholder),
        "held_key" => names.inbox_part(placeholder),
        "source" => names.source(),
        "emit" => names.emit(),
        "emit_many" => names.emit_many(),
        "once" => names.once(),
        _ => return None,
    })
}

fn drop_index(index: &str) -> String {
    format!("drop index concurrently if exists {index};\n")
}

/// Splits a script without comments and function bodies into statements. A semicolon inside a quoted name does not end one.
fn statements(script: &str) -> Vec<&str> {
    let (mut found, mut from, mut quoted) = (Vec::new(), 0, false);
    for (at, letter) in script.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            ';' if !quoted => {
                found.push(script[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// Returns a dollar quote that no name of the outbox contains.
pub fn dollar_quote(names: &Names) -> String {
    let taken = format!("{} {}", names.outbox(), names.processed());
    (0..).map(|n| format!("$outbox{n}$")).find(|quote| !taken.contains(quote)).unwrap_or_default()
}

/// Replaces each `{name}` in one pass, so that a table called `{lanes}` keeps its name. Braces around other text (`'{}'`) are kept.
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
        let script = print(&Names::new("public", "event_outbox", "processed_events"), 16, None);
        for placeholder in [
            "{outbox",
            "{lane",
            "{relay",
            "{processed",
            "{held",
            "{source",
            "{emit",
            "{once",
            "{quote",
            "{foreign",
            "{a",
            "{control",
            "{delivery",
            "{pause",
            "{hold",
            "{stamp",
            "{concurrently",
            "{new_id",
            "{secret",
            "{guard",
            "{group",
            "{note",
            "{discard",
            "{may_apply",
            "{sessions",
        ] {
            assert!(!script.contains(placeholder), "{placeholder} is left in the script");
        }
        assert!(script.contains("default '{}'"));
        assert!(script.contains(r#"create table "public"."event_outbox" ("#));
    }

    #[test]
    fn a_table_called_like_a_placeholder_is_not_filled_twice() {
        let script = print(&Names::new("public", "{lanes}", "processed_events"), 16, None);
        assert!(script.contains(r#"create table "public"."{lanes}" ("#));
    }

    #[test]
    fn a_name_cannot_end_a_function_body() {
        let script = print(&Names::new("public", "a$outbox0$b", "processed_events"), 16, None);
        assert!(script.contains("$outbox1$;"));
        assert!(!script.contains("\n$outbox0$;"));
    }

    #[test]
    fn an_upgrade_builds_indexes_outside_of_transactions() {
        let script = print(&Names::default(), 16, Some(6));
        assert!(script.contains("create index concurrently") && script.contains("drop index concurrently if exists"));
        let mut is_open = false;
        for line in script.lines() {
            match line {
                "begin;" => is_open = true,
                "commit;" => is_open = false,
                _ => assert!(!is_open || !line.contains(" concurrently "), "{line}"),
            }
        }
        assert!(!script.contains("create table \"public\".\"event_outbox\" ("), "what is there already");
    }

    #[test]
    fn a_semicolon_in_a_name_does_not_end_a_statement() {
        assert_eq!(statements("create \"a;b\" (c);\n drop d;"), ["create \"a;b\" (c)", "drop d"]);
    }

    #[test]
    fn versions_count_up_from_one() {
        for (index, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version, index as i32 + 1);
        }
    }
}
