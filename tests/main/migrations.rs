//! Tests the schema and its functions. Any number of processes create it once, under any name; a schema that is not ours is refused.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use event_outbox::Names;
use event_outbox::schema::{CURRENT_VERSION, MigrateOptions, SchemaError, migrate};
use libtest_mimic::Trial;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::check::{grant, with_user};
use lab::kafka::RealKafka;
use lab::outbox::emit;
use lab::pgbouncer::PgBouncer;
use lab::relay::Output;
use lab::{Outbox, PARTITIONS, Relay, SOON, TestDatabase, eventually, trials};

const FINDING: Option<i32> = Some(1);

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            ten_migrations_at_once_make_one_outbox_and_the_eleventh_changes_nothing,
            an_outbox_of_a_newer_version_is_refused,
            a_table_of_the_same_name_that_is_not_ours_is_refused,
            an_outbox_that_was_never_migrated_is_refused_by_the_relay,
            a_migration_does_not_wait_for_a_lock_for_ever,
            the_printed_script_makes_the_same_outbox,
            later_migrations_apply_while_the_outbox_of_the_first_is_in_use,
            upgrades_that_begin_at_once_end_well,
            an_upgrade_by_another_user_leaves_the_owner_its_rights,
            a_printed_upgrade_is_run_twice_and_skips_nothing,
            emits_of_one_entity_commit_in_the_order_of_their_ids_and_those_of_others_do_not_wait,
            an_event_is_new_to_a_group_once,
            an_outbox_in_use_is_not_upgraded_through_a_transaction_pooler,
            first_migrations_at_once_through_a_transaction_pooler_leave_no_lock,
            an_upgrade_by_the_library_notices_two_servers,
            an_upgrade_needs_no_second_connection;
        with_both:
            a_newer_outbox_that_allows_this_binary_is_used,
            an_outbox_of_any_name_works_from_the_insert_to_the_record;
    }
}

fn migration(database: &TestDatabase, schema: &str) -> Relay {
    Relay::bare().with("DATABASE_URL", database.url()).with("RELAY_SCHEMA", schema)
}

fn refused(output: &Output, reasons: &[&str]) -> anyhow::Result<()> {
    ensure!(output.code == FINDING, "{output:?}");
    for reason in reasons {
        ensure!(output.stderr.contains(reason), "no {reason:?} in {}", output.stderr);
    }
    Ok(())
}

/// Returns true if there was nothing to migrate.
fn is_current(output: &Output) -> bool {
    output.stdout.contains(&format!("version {CURRENT_VERSION}")) && !output.stdout.contains("->")
}

async fn an_outbox_in_use_is_not_upgraded_through_a_transaction_pooler(database: TestDatabase) -> anyhow::Result<()> {
    let pooler = PgBouncer::start(&database, "transaction").await?;
    let pooled = Relay::bare().with("DATABASE_URL", pooler.url());
    let migrate = pooled.clone().with("RELAY_SCHEMA", "pooled");
    // One transaction makes an outbox, and none is needed where there is nothing to do.
    let made = migrate.output("migrate").await?;
    ensure!(made.code == Some(0) && made.stdout.contains("version 0 ->"), "{made:?}");
    ensure!(is_current(&migrate.output("migrate").await?));
    let mut connection = database.connect().await?;
    let older = format!("delete from pooled.event_outbox_migration where version = {CURRENT_VERSION}");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(older))).await?;
    refused(&migrate.output("migrate").await?, &["code: OR-2301", "transaction pooler", "nothing was changed"])?;
    let refusing = migrate.clone().with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1").argument("--migrate");
    refused(&refusing.output("run").await?, &["\"code\":\"OR-2301\"", "transaction pooler", "\"next_step\":"])?;
    pooler.stop();
    // One server for all: nothing may wait for a second one.
    let pooler = PgBouncer::with_one_server(&database, "transaction").await?;
    let migrate = migrate.with("DATABASE_URL", pooler.url());
    let output = tokio::time::timeout(SOON, migrate.output("migrate")).await.context("it waits for a server")??;
    refused(&output, &["code: OR-2301", "nothing was changed"])?;
    pooler.stop();
    let highest: i32 =
        sqlx::query_scalar("select max(version) from pooled.event_outbox_migration").fetch_one(&mut connection).await?;
    ensure!(highest == CURRENT_VERSION - 1, "version {highest}");
    Ok(())
}

async fn first_migrations_at_once_through_a_transaction_pooler_leave_no_lock(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let pooler = PgBouncer::start(&database, "transaction").await?;
    let migrate = Relay::bare().with("DATABASE_URL", pooler.url()).with("RELAY_SCHEMA", "fresh");
    for output in futures_util::future::join_all((0..10).map(|_| migrate.output("migrate"))).await {
        let output = output?;
        ensure!(output.code == Some(0), "{output:?}");
    }
    // The servers of the pooler are still there, with what their sessions keep.
    let locks = "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())";
    let left = Outbox::from_database(&database).number(locks).await?;
    ensure!(left == 0, "{left} locks of sessions are left");
    pooler.stop();
    Ok(())
}

async fn an_upgrade_by_the_library_notices_two_servers(database: TestDatabase) -> anyhow::Result<()> {
    first_version(&database).await?;
    let pooler = PgBouncer::start(&database, "transaction").await?;
    let options = pooler.url().parse::<PgConnectOptions>()?.extra_float_digits(None);
    let (mut one, mut other) =
        (PgConnection::connect_with(&options).await?, PgConnection::connect_with(&options).await?);
    // Both are in a transaction, so the pooler has two servers from now on.
    for statement in ["begin", "select 1", "commit"] {
        one.execute(sqlx::raw_sql(statement)).await?;
        other.execute(sqlx::raw_sql(statement)).await?;
    }
    let names = Names::new("elder", "event_outbox", "processed_events");
    let error = migrate(&mut one, &names, &MigrateOptions::default()).await.err().context("it is not noticed")?;
    ensure!(matches!(error, SchemaError::Pooled), "{error:?}");
    let version: i32 = sqlx::query_scalar("select max(version) from elder.event_outbox_migration")
        .fetch_one(&mut database.connect().await?)
        .await?;
    ensure!(version == 1, "version {version}");
    pooler.stop();
    Ok(())
}

/// A session pooler with one server, and a role with one connection.
async fn an_upgrade_needs_no_second_connection(database: TestDatabase) -> anyhow::Result<()> {
    let told = "goes on without knowing whether a transaction pooler stands before the database";
    first_version(&database).await?;
    let pooler = PgBouncer::with_one_server(&database, "session").await?;
    let output = migration(&database, "elder").with("DATABASE_URL", pooler.url()).output("migrate").await?;
    ensure!(output.code == Some(0) && output.stderr.contains(told), "{output:?}");
    pooler.stop();

    let (outbox, user) = (Outbox::from_database(&database), format!("{}_single", database.name()));
    let script = Relay::bare().with("RELAY_SCHEMA", "single").argument("--print").output("migrate").await?.stdout;
    let (first, _) = script.split_once("-- 0002 control").context("no second migration")?;
    let script = format!(
        "create role {user} login password 'secret' connection limit 1; grant create on database {} to {user}; set role {user}; {first}; commit",
        database.name()
    );
    database.connect().await?.execute(sqlx::raw_sql(AssertSqlSafe(script))).await?;
    let url = database.url();
    let (_, server) = url.split_once('@').context("no user")?;
    let single = migration(&database, "single").with("DATABASE_URL", format!("postgres://{user}:secret@{server}"));
    let output = single.output("migrate").await?;
    ensure!(output.code == Some(0) && output.stderr.contains(told), "{output:?}");
    ensure!(output.stdout.contains(&format!("version 1 -> {CURRENT_VERSION}")), "{output:?}");
    outbox.execute(&format!("drop owned by {user} cascade")).await?;
    outbox.execute(&format!("drop role {user}")).await.map(drop)
}

async fn ten_migrations_at_once_make_one_outbox_and_the_eleventh_changes_nothing(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let relay = migration(&database, "fresh");
    let outputs = futures_util::future::join_all((0..10).map(|_| relay.output("migrate"))).await;
    let mut made = 0;
    for output in outputs {
        let output = output?;
        ensure!(output.code == Some(0), "{output:?}");
        made += usize::from(output.stdout.contains(&format!("version 0 -> {CURRENT_VERSION}")));
    }
    ensure!(made == 1, "{made} of them made the outbox");
    let output = relay.output("migrate").await?;
    ensure!(output.code == Some(0) && is_current(&output), "{output:?}");
    Ok(())
}

async fn an_outbox_of_a_newer_version_is_refused(database: TestDatabase) -> anyhow::Result<()> {
    let sql = "insert into event_outbox_migration (version, name, applied_by) values (99, 'later', 'outbox-relay 9')";
    database.connect().await?.execute(sql).await?;
    let relay = migration(&database, "public");
    refused(&relay.output("migrate").await?, &["99", "code: OR-2103"])?;
    let relay = relay.with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1");
    // A refused start is a line of the log.
    refused(&relay.output("run").await?, &["99", "\"code\":\"OR-2103\"", "\"next_step\":"])
}

/// As after an upgrade that is taken back: the next release has migrated, and its migration lets binaries of this one start.
async fn a_newer_outbox_that_allows_this_binary_is_used(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let (user, relay) = with_user(&database, &outbox, &kafka).await?;
    grant(&outbox, &user).await?;
    let later = "insert into event_outbox_migration (version, name, applied_by) values (99, 'later', 'outbox-relay 9')";
    outbox.execute(later).await?;
    let allows = |oldest: i32| {
        format!(
            "insert into event_outbox_control values ('oldest_binary_99', {oldest}) on conflict (name) do update set value = excluded.value"
        )
    };
    outbox.execute(&allows(CURRENT_VERSION + 1)).await?;
    refused(&relay.output("run").await?, &["99", "\"code\":\"OR-2103\""])?;
    outbox.execute(&allows(CURRENT_VERSION)).await?;
    let running = relay.start_ready("taken-back").await?;
    outbox.write("order", 1, 10).await?;
    outbox.until_settled().await;
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    let migrated = migration(&database, "public").output("migrate").await?;
    ensure!(migrated.code == Some(0) && migrated.stdout.contains("is at version 99 already"), "{migrated:?}");
    outbox.execute(&format!("drop owned by {user}")).await.map(drop)
}

async fn a_table_of_the_same_name_that_is_not_ours_is_refused(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    connection.execute("create schema theirs; create table theirs.event_outbox (id int)").await?;
    let output = migration(&database, "theirs").output("migrate").await?;
    refused(&output, &["code: OR-2104", "hint: ", "RELAY_TABLE", "RELAY_SCHEMA"])?;
    let tables: i64 = sqlx::query_scalar("select count(*) from pg_tables where schemaname = 'theirs'")
        .fetch_one(&mut connection)
        .await?;
    ensure!(tables == 1, "{tables} tables: the refusal left something behind");
    Ok(())
}

async fn an_outbox_that_was_never_migrated_is_refused_by_the_relay(database: TestDatabase) -> anyhow::Result<()> {
    let relay = migration(&database, "nowhere").with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1");
    // The database has an outbox in another schema: a second one would not be the fix.
    refused(&relay.output("run").await?, &["\"code\":\"OR-2101\"", "\"next_step\":", "RELAY_SCHEMA=\\\"public\\\""])?;
    database.connect().await?.execute("drop table event_outbox cascade").await?;
    refused(&relay.output("run").await?, &["\"code\":\"OR-2101\"", "\"next_step\":", "`outbox-relay migrate`"])
}

/// Returns the statement that ends a session.
async fn ends(session: &mut PgConnection) -> anyhow::Result<String> {
    let pid: i64 = sqlx::query_scalar("select pg_backend_pid()::int8").fetch_one(session).await?;
    Ok(format!("pg_terminate_backend({pid})"))
}

async fn a_migration_does_not_wait_for_a_lock_for_ever(database: TestDatabase) -> anyhow::Result<()> {
    // The outboxes of a schema share the inbox, and another session has locked it.
    let mut other = database.connect().await?;
    let mut lock = other.begin().await?;
    lock.execute("lock table processed_events in access exclusive mode").await?;
    let second = migration(&database, "public").with("RELAY_TABLE", "second_outbox");
    let output = second.clone().argument("--lock-timeout").argument("100ms").output("migrate").await?;
    let (holds, end) = ("table processed_events (AccessExclusiveLock)", ends(&mut lock).await?);
    refused(&output, &["code: OR-2009", holds, &end, "--lock-timeout"])?;
    lock.rollback().await?;
    let output = second.output("migrate").await?;
    ensure!(output.code == Some(0), "{output:?}");

    // Another migration of the same schema that does not end.
    let options = MigrateOptions { turn_timeout: Duration::from_millis(100), ..MigrateOptions::default() };
    let names = |table| Names::new("turns", table, "processed_events");
    migrate(&mut database.connect().await?, &names("first"), &options).await?;
    let (error, pid, key) = while_migrating(&database, &names("second"), &names("third"), &options).await?;
    ensure!(matches!(&error, SchemaError::Busy { holder } if holder.starts_with(&format!("pid {pid} "))), "{error}");

    // A user without any right has seen the key of that lock, and holds it.
    let mut stranger = database.connect().await?;
    let name = format!("{}_holder", database.name());
    stranger.execute(AssertSqlSafe(format!("create role {name} login; set session authorization {name}"))).await?;
    sqlx::query("select pg_advisory_lock($1)").bind(key).execute(&mut stranger).await?;
    let pid: i64 = sqlx::query_scalar("select pg_backend_pid()::int8").fetch_one(&mut stranger).await?;
    let error = migrate(&mut database.connect().await?, &names("third"), &options).await.err().context("no error")?;
    ensure!(matches!(&error, SchemaError::Busy { holder } if holder.starts_with(&format!("pid {pid} "))), "{error}");
    stranger.close().await?;
    migrate(&mut database.connect().await?, &names("third"), &options).await?;
    Ok(())
}

/// Stops one migration half-way by a lock on an object that it needs; returns the error of another migration of the schema meanwhile,
/// the pid of the first one, and the key of the lock that the other one waits for.
async fn while_migrating(
    database: &TestDatabase,
    stopped: &Names,
    other: &Names,
    options: &MigrateOptions,
) -> anyhow::Result<(SchemaError, i64, i64)> {
    let mut blocker = database.connect().await?;
    let mut lock = blocker.begin().await?;
    lock.execute("lock table turns.processed_events in access exclusive mode").await?;
    let (mut first, mut second) = (database.connect().await?, database.connect().await?);
    let pid: i64 = sqlx::query_scalar("select pg_backend_pid()::int8").fetch_one(&mut first).await?;
    let stopped = stopped.clone();
    let patient = MigrateOptions { lock_timeout: SOON, ..MigrateOptions::default() };
    let half_way = tokio::spawn(async move { migrate(&mut first, &stopped, &patient).await });
    until_blocked(database, 1).await;
    let error = migrate(&mut second, other, options).await.err().context("the second migration did not wait")?;
    let key =
        "select (classid::int8 << 32) | objid::int8 from pg_locks where locktype = 'advisory' and granted and pid = $1";
    let key = sqlx::query_scalar(key).bind(i32::try_from(pid)?).fetch_one(&mut second).await?;
    lock.rollback().await?;
    half_way.await??;
    Ok((error, pid, key))
}

/// Waits until this many sessions wait for a lock.
async fn until_blocked(database: &TestDatabase, sessions: i64) {
    let outbox = Outbox::from_database(database);
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    eventually(&format!("{sessions} sessions wait for a lock"), SOON, || async {
        match outbox.number(sql).await {
            Ok(count) if count >= sessions => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

async fn the_printed_script_makes_the_same_outbox(database: TestDatabase) -> anyhow::Result<()> {
    let output = migration(&database, "migrated").output("migrate").await?;
    ensure!(output.code == Some(0), "{output:?}");
    // Printing needs no database.
    let script = Relay::bare().with("RELAY_SCHEMA", "printed").argument("--print").output("migrate").await?;
    ensure!(script.code == Some(0) && script.stderr.is_empty(), "{script:?}");
    let mut connection = database.connect().await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(script.stdout))).await?;
    let migrated = description(&mut connection, "migrated").await?;
    let printed = description(&mut connection, "printed").await?;
    ensure!(migrated.len() > 40, "the description is too poor: {migrated:?}");
    for (one, other) in migrated.iter().zip(&printed) {
        ensure!(one == other, "migrated: {one}\nprinted: {other}");
    }
    ensure!(migrated.len() == printed.len());
    // The relay accepts the printed schema as its own.
    let output = migration(&database, "printed").output("migrate").await?;
    ensure!(is_current(&output), "{output:?}");
    Ok(())
}

/// Events are written and settled meanwhile. Neither the writes nor the migration wait for the other.
async fn later_migrations_apply_while_the_outbox_of_the_first_is_in_use(database: TestDatabase) -> anyhow::Result<()> {
    let script = Relay::bare().with("RELAY_SCHEMA", "elder").argument("--print").output("migrate").await?.stdout;
    let (first, _) = script.split_once("-- 0002 control").context("no second migration")?;
    let mut connection = database.connect().await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("{first}; commit")))).await?;
    connection
        .execute("insert into elder.event_outbox (entity_type, event_type) values ('order', 'A'), ('order', 'B')")
        .await?;
    let mut writer = database.connect().await?;
    let mut open = writer.begin().await?;
    open.execute("insert into elder.event_outbox (entity_type, event_type) values ('order', 'C')").await?;
    open.execute("update elder.event_outbox set status = 'PUBLISHED', published_at = now() where event_type = 'A'")
        .await?;
    open.execute("select elder.event_once('g', gen_random_uuid())").await?;
    // The new columns need the table for a moment. The migration tries this while the writer has the table, gives up, and later goes on
    // from there.
    let migrate = migration(&database, "elder").argument("--lock-timeout").argument("1s");
    let output = migrate.output("migrate").await?;
    refused(&output, &["code: OR-2009", &ends(&mut open).await?, "--lock-timeout"])?;
    // The previous binary's statements still work.
    open.execute(
        "update elder.event_outbox set available_at = 'infinity', last_error = 'held topic t: x' where event_type = 'B'",
    )
    .await?;
    open.execute("update elder.event_outbox_lane set generation = generation + 1").await?;
    open.commit().await?;
    let output = migrate.output("migrate").await?;
    ensure!(output.code == Some(0), "{output:?}");
    ensure!(output.stdout.contains(&format!("version 6 -> {CURRENT_VERSION}")), "{output:?}");
    // Rows that were held in the old form are pending again, for the claims to hold them in the new form.
    let held = "select count(*) from elder.event_outbox where event_type = 'B' and available_at is null and last_error is null";
    ensure!(Outbox::from_database(&database).number(held).await? == 1);
    // The previous binary can no longer own a lane.
    let refused = connection.execute("select generation from elder.event_outbox_lane").await;
    ensure!(refused.is_err(), "the previous binary can still claim");
    let beat =
        "insert into elder.event_outbox_relay (id, name, version, workers) values (gen_random_uuid(), 'old', '0', 2)";
    ensure!(connection.execute(beat).await.is_err(), "the previous binary still counts as a relay");
    ensure!(
        scalar::<i64>(&Outbox::from_database(&database), "select count(*) from elder.event_outbox".to_owned()).await?
            == 3
    );
    let migrated = description(&mut connection, "elder").await?;
    let output = migration(&database, "fresh").output("migrate").await?;
    ensure!(output.code == Some(0), "{output:?}");
    let fresh = description(&mut connection, "fresh").await?;
    // The lanes, at the end of the description, are of another generation.
    for (one, other) in migrated.iter().zip(&fresh).take(fresh.len() - 16) {
        ensure!(one == other, "migrated: {one}\nfresh: {other}");
    }
    ensure!(migrated.len() == fresh.len());
    Ok(())
}

/// Creates the first version of an outbox in the schema `elder`, and publishes all tables, as connectors and upgrades of a server do.
pub(crate) async fn first_version(database: &TestDatabase) -> anyhow::Result<()> {
    let script = Relay::bare().with("RELAY_SCHEMA", "elder").argument("--print").output("migrate").await?.stdout;
    let (first, _) = script.split_once("-- 0002 control").context("no second migration")?;
    let mut connection = database.connect().await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("{first}; commit")))).await?;
    connection.execute("create publication everything for all tables").await?;
    Ok(())
}

async fn upgrades_that_begin_at_once_end_well(database: TestDatabase) -> anyhow::Result<()> {
    first_version(&database).await?;
    let relay = migration(&database, "elder");
    let outputs = futures_util::future::join_all((0..6).map(|_| relay.output("migrate"))).await;
    for output in outputs {
        let output = output?;
        ensure!(output.code == Some(0), "{output:?}");
    }
    let invalid = "select count(*) from pg_index where not indisvalid";
    ensure!(Outbox::from_database(&database).number(invalid).await? == 0, "an index is invalid");
    Ok(())
}

/// Every user who could work with the outbox can go on, whichever user has migrated it.
async fn an_upgrade_by_another_user_leaves_the_owner_its_rights(database: TestDatabase) -> anyhow::Result<()> {
    first_version(&database).await?;
    let (owner, monitor) = (format!("{}_owner", database.name()), format!("{}_monitor", database.name()));
    let outbox = Outbox::from_database(&database);
    outbox
        .execute(&format!(
            "create role {owner}; create role {monitor}; grant usage on schema elder to {owner}, {monitor}; \
             do $$ declare t text; begin for t in select relname from pg_class where relnamespace = 'elder'::regnamespace and relkind = 'r' \
             loop execute format('alter table elder.%I owner to {owner}', t); end loop; end $$; \
             grant select (id, status, created_at) on elder.event_outbox to {monitor}"
        ))
        .await?;
    let output = migration(&database, "elder").output("migrate").await?;
    ensure!(output.code == Some(0), "{output:?}");
    outbox.execute(&format!("set role {owner}; select * from elder.event_outbox_hold")).await?;
    outbox
        .execute(&format!(
            "set role {owner}; insert into elder.event_outbox_hold (lane, kind, topic, why, reason, from_id) \
             values (0, 'topic', 't', 'topic', 'gone', 1); delete from elder.event_outbox_hold"
        ))
        .await?;
    outbox.execute(&format!("set role {monitor}; select xid, due from elder.event_outbox")).await?;
    outbox.execute(&format!("drop owned by {owner}, {monitor} cascade; drop role {owner}, {monitor}")).await.map(drop)
}

/// Runs a script as psql does without ON_ERROR_STOP: each statement by itself, even after an error. Returns the errors.
pub(crate) async fn run_by_statement(connection: &mut PgConnection, script: &str) -> anyhow::Result<String> {
    let (mut errors, mut statement) = (String::new(), String::new());
    for line in script.lines().filter(|line| !line.trim_start().starts_with("--")) {
        statement.push_str(line);
        statement.push('\n');
        if line.trim_end().ends_with(';') && statement.matches("$outbox0$").count() % 2 == 0 {
            let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(std::mem::take(&mut statement)))).await;
            errors.extend(done.err().map(|error| format!("{error}\n")));
        }
    }
    Ok(errors)
}

/// A tool runs the script statement by statement. An earlier run was interrupted, and an index is half built.
async fn a_printed_upgrade_is_run_twice_and_skips_nothing(database: TestDatabase) -> anyhow::Result<()> {
    first_version(&database).await?;
    let outbox = Outbox::from_database(&database);
    let print = |from: &str| {
        let relay = Relay::bare().with("RELAY_SCHEMA", "elder").argument("--print");
        relay.argument("--from").argument(from)
    };
    let whole = print("1").output("migrate").await?;
    let later = print("8").output("migrate").await?;
    ensure!(whole.code == Some(0) && later.code == Some(0), "{whole:?} {later:?}");
    // A step whose predecessor is not recorded changes nothing, even if the tool ignores its error.
    let errors = run_by_statement(&mut database.connect().await?, &later.stdout).await?;
    ensure!(errors.contains("step 9"), "{errors}");
    ensure!(outbox.number("select max(version) from elder.event_outbox_migration").await? == 1);
    let (to_seven, _) = whole.stdout.split_once("set lock_timeout = 0;").context("no step without a transaction")?;
    ensure!(run_by_statement(&mut database.connect().await?, to_seven).await?.is_empty());
    outbox.execute("create index event_outbox_late on elder.event_outbox (id)").await?;
    let rest = print("7").output("migrate").await?;
    let errors = run_by_statement(&mut database.connect().await?, &rest.stdout).await?;
    ensure!(errors.is_empty(), "{errors}");
    let output = migration(&database, "elder").output("migrate").await?;
    ensure!(is_current(&output), "{output:?}");
    Ok(())
}

/// Describes everything in a schema, without the schema's name.
async fn description(connection: &mut PgConnection, schema: &str) -> anyhow::Result<Vec<String>> {
    let sql = "
        select format('%s.%s %s %s %s %s %s', table_name, column_name, ordinal_position, data_type, column_default,
                      is_nullable, generation_expression)
          from information_schema.columns where table_schema = $1
        union all select indexdef from pg_indexes where schemaname = $1
        union all select format('%s %s', conname, pg_get_constraintdef(oid)) from pg_constraint
                   where connamespace = $1::text::regnamespace
        union all select pg_get_functiondef(oid) from pg_proc where pronamespace = $1::text::regnamespace
        union all select format('%s %s %s %s', relname, relkind, relpersistence, reloptions) from pg_class
                   where relnamespace = $1::text::regnamespace
        order by 1";
    let lines: Vec<String> = sqlx::query_scalar(sql).bind(schema).fetch_all(&mut *connection).await?;
    let lanes = format!("select lane::text || ' ' || nonce from {schema}.event_outbox_lane order by lane");
    let lanes: Vec<String> = sqlx::query_scalar(AssertSqlSafe(lanes)).fetch_all(connection).await?;
    let names = event_outbox::Names::new(schema, "event_outbox", "processed_events");
    let own = [(names.wake_up_class().to_string(), "THE_CLASS"), (names.wake_up_channel(), "THE_CHANNEL")];
    let named = |line: String| {
        own.iter().fold(line.replace(schema, "THE_SCHEMA"), |line, (name, general)| line.replace(name, general))
    };
    Ok(lines.into_iter().chain(lanes).map(named).collect())
}

async fn an_outbox_of_any_name_works_from_the_insert_to_the_record(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let longest = "é".repeat(31) + "x";
    let names = [
        ("public", "Weird name; drop table x", "processed_events"),
        ("my \"schema\"", "quo\"ted", "in'box"),
        ("Ünïcode ☃", &longest, "p"),
        ("{lane}", "{lanes}", "{processed}"),
        ("select", "table", "user"),
    ];
    for (index, (schema, table, processed)) in names.iter().enumerate() {
        let seen = outbox.seen_by(&format!("{}-{index}", outbox.topic));
        kafka.create_topic(&seen.topic, PARTITIONS, &[]).await?;
        let relay = seen
            .relay(&kafka)
            .with("RELAY_SCHEMA", schema)
            .with("RELAY_TABLE", table)
            .with("RELAY_PROCESSED_TABLE", processed);
        let output = relay.output("migrate").await?;
        ensure!(output.code == Some(0), "{output:?}");
        let names = Names::new(schema, table, processed);
        let emitted: Uuid =
            scalar(&outbox, format!("select {}('order', 'a', 'X', '{{\"n\": 1}}')", names.emit())).await?;
        outbox
            .execute(&format!(
                "insert into {} (entity_type, entity_id, event_type, payload) values ('order', 'a', 'X', '{{\"n\": 2}}')",
                names.outbox()
            ))
            .await?;
        let once = format!("select {}('group', '{emitted}')", names.once());
        ensure!(scalar::<bool>(&outbox, once.clone()).await? && !scalar::<bool>(&outbox, once).await?);
        let running = relay.start(table)?;
        let pending = format!("select count(*) from {} where status <> 'PUBLISHED'", names.outbox());
        eventually(&format!("{table} is published"), SOON * 2, || async {
            match outbox.number(&pending).await {
                Ok(0) => Ok(()),
                other => Err(other),
            }
        })
        .await;
        let numbers = seen.published_numbers(&kafka).await?;
        ensure!(numbers["a"] == [1, 2], "{table}: {numbers:?}");
        ensure!(running.stop().await? == Some(0));
    }
    Ok(())
}

async fn scalar<T>(outbox: &Outbox, sql: String) -> anyhow::Result<T>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut outbox.connect().await?).await?)
}

async fn emits_of_one_entity_commit_in_the_order_of_their_ids_and_those_of_others_do_not_wait(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut holder = outbox.connect().await?;
    let mut held = holder.begin().await?;
    emit(&mut held, "busy", 0).await?;
    // Recorded under the entity's lock, so in the order of commits.
    let commits = Arc::new(Mutex::new(Vec::new()));
    let mut sessions = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (outbox, commits) = (outbox.clone(), Arc::clone(&commits));
        sessions.spawn(async move {
            let mut connection = outbox.connect().await?;
            for _ in 0..20 {
                let mut tx = connection.begin().await?;
                let event = emit(&mut tx, "busy", n).await?;
                let id = "select id from event_outbox where event_id = $1";
                let id: i64 = sqlx::query_scalar(id).bind(event).fetch_one(&mut *tx).await?;
                commits.lock().expect("the list").push(id);
                tx.commit().await?;
            }
            anyhow::Ok(())
        });
    }
    until_blocked(&database, 8).await;
    emit(&mut outbox.connect().await?, "idle", 0).await?;
    ensure!(commits.lock().expect("the list").is_empty(), "somebody did not wait");
    held.commit().await?;
    while let Some(session) = sessions.join_next().await {
        session??;
    }
    let commits = commits.lock().expect("the list");
    ensure!(commits.len() == 160 && commits.is_sorted(), "{commits:?}");
    Ok(())
}

async fn an_event_is_new_to_a_group_once(database: TestDatabase) -> anyhow::Result<()> {
    async fn once(connection: &mut PgConnection, group: &str, event: Uuid) -> sqlx::Result<bool> {
        sqlx::query_scalar("select event_once($1, $2)").bind(group).bind(event).fetch_one(connection).await
    }
    let (mut one, mut other) = (database.connect().await?, database.connect().await?);
    let event = Uuid::from_u128(1);
    ensure!(once(&mut one, "billing", event).await? && !once(&mut one, "billing", event).await?);
    ensure!(once(&mut one, "mail", event).await?, "groups are apart");

    for (event, first_commits) in [(Uuid::from_u128(2), true), (Uuid::from_u128(3), false)] {
        let mut first = one.begin().await?;
        ensure!(once(&mut first, "billing", event).await?);
        let waiting = tokio::spawn(async move { once(&mut other, "billing", event).await.map(|new| (new, other)) });
        until_blocked(&database, 1).await;
        if first_commits {
            first.commit().await?
        } else {
            first.rollback().await?
        }
        let (new, returned) = waiting.await??;
        other = returned;
        ensure!(new != first_commits, "new to both, or to neither");
    }
    Ok(())
}
