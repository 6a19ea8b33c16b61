//! Tests that nothing of ours calls what other users have put into a schema of the search path (CVE-2018-1058).
//!
//! A user with CREATE on `public` has placed a trap there for every function, aggregate, operator, type and view of `pg_catalog`. Each trap
//! counts its calls and fails. The users of the commands have `public` before `pg_catalog` on their search path, so a name that a statement
//! does not qualify meets a trap unless the statement runs on a path of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use event_outbox::consumer::{Consumer, Context, Failed, Inbox};
use event_outbox::event::{EventId, NewEvent};
use event_outbox::outbox;
use event_outbox::schema::CURRENT_VERSION;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::oneshot;
use uuid::Uuid;

use lab::kafka::RealKafka;
use lab::pgbouncer::PgBouncer;
use lab::relay::Output;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

use crate::migrations::{first_version, run_by_statement};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            the_traps_are_met_by_a_name_that_is_not_qualified,
            an_outbox_that_is_made_among_traps_depends_on_none,
            writers_and_consumers_meet_no_trap_with_the_functions_of_the_outbox,
            an_outbox_that_depends_on_a_trap_is_repaired_or_refused,
            what_another_user_placed_before_the_outbox_was_made_is_refused;
        with_both:
            no_command_meets_a_trap,
            a_relay_behind_a_pooler_meets_no_trap,
            a_consumer_meets_no_trap;
    }
}

const TRAPS: &str = include_str!("hostile/traps.sql");

/// A database with traps, and users that meet them.
struct Hostile {
    database: TestDatabase,
    outbox: Outbox,
}

impl Hostile {
    async fn new(database: &TestDatabase) -> anyhow::Result<Self> {
        let hostile = Self { database: database.clone(), outbox: Outbox::from_database(database) };
        let name = database.name();
        let sql = format!(
            "create role {name}_mallory login password 'secret'; grant create on schema public to {name}_mallory; \
             create role {name}_admin login superuser password 'secret'; create role {name}_app login password 'secret'; \
             grant insert, select on public.event_outbox to {name}_app; \
             grant select, insert, update, delete on public.processed_events, public.processed_events_held to {name}_app; \
             grant insert on public.processed_events_source to {name}_app; \
             alter role {name}_admin in database {name} set search_path = public, pg_catalog; \
             alter role {name}_app in database {name} set search_path = public, pg_catalog"
        );
        database.connect().await?.execute(AssertSqlSafe(sql)).await?;
        hostile.connect("mallory").await?.execute(TRAPS).await?;
        Ok(hostile)
    }

    fn url(&self, user: &str) -> anyhow::Result<String> {
        let url = self.database.url();
        let (_, server) = url.split_once('@').context("no user in the URL")?;
        Ok(format!("postgres://{}_{user}:secret@{server}", self.database.name()))
    }

    async fn connect(&self, user: &str) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.url(user)?).await?)
    }

    /// Returns a relay of the superuser.
    fn admin(&self) -> anyhow::Result<Relay> {
        Ok(Relay::bare().with("DATABASE_URL", self.url("admin")?).with("RELAY_TOPIC", &self.outbox.topic))
    }

    /// Fails if a trap was called, whatever became of its error.
    async fn met_none(&self) -> anyhow::Result<()> {
        let sql = "select is_called from public.trap_calls";
        let mut connection = self.database.connect().await?;
        let called: bool = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
        ensure!(!called, "a trap was called");
        Ok(())
    }

    /// Removes the users; roles belong to the whole server.
    async fn end(self) -> anyhow::Result<()> {
        let mut connection = self.database.connect().await?;
        connection.execute("set search_path = pg_catalog").await?;
        for user in ["mallory", "admin", "app"].map(|user| format!("{}_{user}", self.database.name())) {
            connection
                .execute(AssertSqlSafe(format!("drop owned by {user} cascade; drop role {user}")))
                .await
                .with_context(|| user.clone())?;
        }
        Ok(())
    }
}

/// Runs a command that must end well and meet no trap.
async fn run(relay: &Relay, command: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let relay = arguments.iter().fold(relay.clone(), |relay, argument| relay.argument(argument));
    let output = relay.output(command).await?;
    ensure!(output.code == Some(0), "{command} {arguments:?}: {output:?}");
    ensure!(!format!("{output:?}").contains("SPRUNG"), "{command} {arguments:?}: {output:?}");
    Ok(output)
}

/// Returns the findings of `check`, by id.
async fn findings(relay: &Relay) -> anyhow::Result<Vec<(String, Value)>> {
    let output = relay.clone().argument("--json").output("check").await?;
    ensure!(!format!("{output:?}").contains("SPRUNG"), "{output:?}");
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let list = report["findings"].as_array().context("no findings")?;
    Ok(list.iter().map(|finding| (finding["id"].as_str().unwrap_or_default().to_owned(), finding.clone())).collect())
}

async fn the_traps_are_met_by_a_name_that_is_not_qualified(database: TestDatabase) -> anyhow::Result<()> {
    let hostile = Hostile::new(&database).await?;
    let mut admin = hostile.connect("admin").await?;
    for sql in [
        "select now()",
        "select count(*) from public.event_outbox",
        "select 1::pg_catalog.int8 = 1::pg_catalog.int8",
        "select 'a'::text",
        "select relname from pg_class limit 1",
        "select pg_has_role('x', 'y', 'member')",
        "select make_interval(secs => 1)",
        "select hashtextextended('a', 0)",
        "select coalesce(sum(id), 0) from public.event_outbox",
    ] {
        let error = admin.execute(sql).await.err().with_context(|| sql.to_owned())?;
        ensure!(error.to_string().contains("SPRUNG"), "{sql}: {error}");
    }
    ensure!(hostile.met_none().await.is_err(), "the calls are not counted");
    // Mixed types are met on the default path.
    let error = database.connect().await?.execute("select 5::bigint % 3").await.err().context("no trap for %")?;
    ensure!(error.to_string().contains("SPRUNG"), "{error}");
    hostile.end().await
}

async fn an_outbox_that_is_made_among_traps_depends_on_none(database: TestDatabase) -> anyhow::Result<()> {
    let hostile = Hostile::new(&database).await?;
    // By the command, by its printed script, and by a printed upgrade of an old outbox.
    let second = hostile.admin()?.with("RELAY_TABLE", "second");
    run(&second, "migrate", &["--roles", "--role-prefix", &format!("{}_second", database.name())]).await?;
    run(&second, "migrate", &["--roles", "--role-prefix", &format!("{}_second", database.name())]).await?;

    let third = hostile.admin()?.with("RELAY_TABLE", "third");
    let mut admin = hostile.connect("admin").await?;
    let roles = ["--roles", "--print", "--role-prefix", &format!("{}_third", database.name())];
    for arguments in [&["--print"][..], &roles] {
        let script = run(&third, "migrate", arguments).await?.stdout;
        ensure!(script.starts_with("set search_path = pg_catalog, pg_temp;\n"), "{script}");
        admin.execute(sqlx::raw_sql(AssertSqlSafe(script))).await?;
    }

    first_version(&database).await?;
    let elder = hostile.admin()?.with("RELAY_SCHEMA", "elder");
    let script = run(&elder, "migrate", &["--print", "--from", "1"]).await?.stdout;
    ensure!(script.starts_with("set search_path = pg_catalog, pg_temp;\n"), "{script}");
    let errors = run_by_statement(&mut admin, &script).await?;
    ensure!(errors.is_empty(), "{errors}");
    let path: String = sqlx::query_scalar("show search_path").fetch_one(&mut admin).await?;
    ensure!(path == "public, pg_catalog", "the script left the path {path}");

    for relay in [&second, &third, &elder] {
        let output = run(relay, "migrate", &[]).await?;
        ensure!(output.stdout.contains(&format!("version {CURRENT_VERSION} already")), "{output:?}");
        let found = findings(&relay.clone().with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")).await?;
        ensure!(found.iter().all(|(id, _)| id != "foreign-objects" && id != "database-unreachable"), "{found:?}");
    }
    hostile.met_none().await?;
    for role in ["second", "third"] {
        for suffix in ["writer", "relay", "operator", "monitor", "activity"] {
            let role = format!("{}_{role}_{suffix}", database.name());
            database
                .connect()
                .await?
                .execute(AssertSqlSafe(format!("drop owned by {role} cascade; drop role {role}")))
                .await?;
        }
    }
    hostile.end().await
}

async fn writers_and_consumers_meet_no_trap_with_the_functions_of_the_outbox(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let hostile = Hostile::new(&database).await?;
    let mut app = hostile.connect("app").await?;
    // A plain insert, the function, and the library.
    for sql in [
        "insert into public.event_outbox (entity_type, entity_id, event_type, payload, available_at) \
         values ('order', 'a', 'X', '{}', 'infinity')",
        "insert into public.event_outbox (entity_type, event_type) values ('order', 'X')",
        "select public.outbox_emit('order'::pg_catalog.text, 'a', 'X', '{}', dedupe_key => 'k')",
        "select public.outbox_emit('order'::pg_catalog.text, 7, 'X', '{}')",
        "select public.outbox_emit_many('[{\"entity_type\": \"order\", \"entity_id\": \"a\", \"event_type\": \"X\", \"headers\": {\"h\": \"v\"}}]')",
        "select public.event_once('g'::pg_catalog.text, '0b4d8a9e-0f4c-4f3e-9d7e-2d6f0d0e7a11')",
    ] {
        app.execute(sql).await.with_context(|| sql.to_owned())?;
    }
    let event = NewEvent::new("order", "a", "X").json(&json!({"n": 1}))?;
    let writer = outbox::Outbox::default();
    let id = writer.emit(&mut app, &event).await?;
    let inbox = Inbox::new("group");
    ensure!(inbox.first(&mut app, id).await? && !inbox.first(&mut app, id).await?);
    let new = EventId(Uuid::from_u128(7));
    ensure!(inbox.first_of(&mut app, &[new, id]).await? == [new]);
    // The path of the caller is back after each call.
    let path: String = sqlx::query_scalar("show search_path").fetch_one(&mut app).await?;
    ensure!(path == "public, pg_catalog", "{path}");
    hostile.met_none().await?;
    hostile.end().await
}

/// Makes the outbox's column `lane` and a default use functions of other users, as an installation among traps did before version 12.
async fn poison(hostile: &Hostile) -> anyhow::Result<()> {
    let sql = "create function elder.by(bigint, integer) returns bigint language sql immutable as 'select 0::bigint'; \
         create operator elder.% (function = elder.by, leftarg = bigint, rightarg = integer); \
         create function elder.now() returns timestamptz language sql stable as 'select pg_catalog.now()'";
    let role = format!("{}_mallory", hostile.database.name());
    let mut connection = hostile.database.connect().await?;
    connection.execute(AssertSqlSafe(format!("create schema elder authorization {role}; set role {role}"))).await?;
    connection.execute(sql).await?;
    connection
        .execute(
            "reset role; set search_path = pg_catalog; \
             alter table public.event_outbox drop column lane; \
             alter table public.event_outbox add column lane smallint not null generated always as (\
               (case when entity_id is null then id operator(elder.%) 16 \
                     else (pg_catalog.hashtext(entity_id)::bigint & 2147483647) operator(elder.%) 16 end)::smallint) stored; \
             alter table public.event_outbox alter column created_at set default elder.now(); \
             create index event_outbox_late on public.event_outbox (xid, id, lane); \
             create index event_outbox_due on public.event_outbox (due, id, lane) where due is not null; \
             alter function public.outbox_emit(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text) reset search_path",
        )
        .await?;
    Ok(())
}

/// Takes back what the migrations from 12 on have made.
const BEFORE_VERSION_12: &str = "
    set search_path = pg_catalog;
    alter table public.event_outbox_hold drop column partition, drop column partitions;
    alter table public.event_outbox alter column event_id set default gen_random_uuid();
    alter table public.event_outbox_archive drop column other_columns;
    drop index public.event_outbox_event;
    drop table public.event_outbox_secret;
    drop trigger event_outbox_entity_lock on public.event_outbox;
    drop function public.outbox_emit(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text),
        public.outbox_emit(text, bigint, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text),
        public.outbox_emit_many, public.event_outbox_new_id, public.event_outbox_lock_entity, public.event_outbox_dedupe_id,
        public.event_outbox_decide, public.event_outbox_begin_pause, public.event_outbox_end_pause, public.event_outbox_note,
        public.event_outbox_sessions, public.event_outbox_wake_up, public.event_outbox_wake_up_on_insert, public.event_outbox_discard;
    alter table public.event_outbox_relay drop column settings;
    drop function public.event_outbox_oldest_transaction cascade;
    create function public.outbox_emit(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea) returns uuid
        language sql as 'select null::pg_catalog.uuid';
    delete from public.event_outbox_control where name = 'inbox';
    delete from public.event_outbox_migration where version >= 12";

async fn an_outbox_that_depends_on_a_trap_is_repaired_or_refused(database: TestDatabase) -> anyhow::Result<()> {
    let hostile = Hostile::new(&database).await?;
    poison(&hostile).await?;
    let relay = hostile.admin()?.with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let foreign = async || {
        let found = findings(&relay).await?.into_iter().filter(|(id, _)| id == "foreign-objects");
        anyhow::Ok(found.map(|(_, finding)| finding.to_string()).collect::<Vec<_>>())
    };
    let found = foreign().await?.join(" ");
    for part in ["generated column", "elder.%", "created_at", "elder.now()", "mallory", "outbox_emit"] {
        ensure!(found.contains(part), "no {part} in {found}");
    }
    hostile.database.connect().await?.execute(BEFORE_VERSION_12).await?;
    // Only a rewrite of the table repairs the column, so the migration names it and changes nothing.
    let output = relay.output("migrate").await?;
    ensure!(output.code == Some(1) && output.stderr.contains("elder.%"), "{output:?}");
    ensure!(output.stderr.contains("OR-2206") && !output.stderr.contains("elder.now"), "{output:?}");
    // The statements of the runbook.
    let runbook = include_str!("../../docs/how-to/runbook.md");
    let (_, entry) = runbook.split_once("### OR-2206").context("no entry")?;
    let (_, sql) = entry.split_once("```sql").context("no statements")?;
    let (sql, _) = sql.split_once("```").context("no end of the statements")?;
    database.connect().await?.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await?;
    run(&relay, "migrate", &[]).await?;
    ensure!(foreign().await?.is_empty(), "{:?}", foreign().await?);
    let fresh = hostile.admin()?.with("RELAY_TABLE", "fresh");
    run(&fresh, "migrate", &[]).await?;
    let lanes = "select pg_get_expr(adbin, adrelid) from pg_catalog.pg_attrdef d join pg_catalog.pg_attribute a \
                 on a.attrelid = d.adrelid and a.attnum = d.adnum where a.attname in ('lane', 'created_at') and d.adrelid = $1::regclass order by 1";
    let mut connection = database.connect().await?;
    connection.execute("set search_path = pg_catalog").await?;
    let mut expressions = async |table: &str| -> anyhow::Result<Vec<String>> {
        Ok(sqlx::query_scalar(lanes).bind(table).fetch_all(&mut connection).await?)
    };
    let (repaired, fresh) = (expressions("public.event_outbox").await?, expressions("public.fresh").await?);
    ensure!(repaired.len() == 2 && repaired == fresh, "{repaired:?} {fresh:?}");
    hostile.met_none().await?;
    hostile.end().await
}

async fn what_another_user_placed_before_the_outbox_was_made_is_refused(database: TestDatabase) -> anyhow::Result<()> {
    let hostile = Hostile::new(&database).await?;
    let relay = hostile.admin()?.with("RELAY_TABLE", "fresh").with("RELAY_PROCESSED_TABLE", "seen");
    let mut mallory = hostile.connect("mallory").await?;
    for (create, drop, what) in [
        (
            "create table public.seen (consumer_group text, event_id uuid)",
            "drop table public.seen",
            "table public.seen",
        ),
        (
            "create function public.fresh_emit(text, text, text, text) returns uuid language sql as 'select null::pg_catalog.uuid'",
            "drop function public.fresh_emit(text, text, text, text)",
            "function public.fresh_emit(text,text,text,text)",
        ),
    ] {
        mallory.execute(create).await?;
        let output = relay.output("migrate").await?;
        ensure!(output.code == Some(1) && output.stderr.contains(what), "{output:?}");
        ensure!(output.stderr.contains("OR-2206"), "{output:?}");
        let script = relay.clone().argument("--print").output("migrate").await?.stdout;
        let error = database.connect().await?.execute(sqlx::raw_sql(AssertSqlSafe(script))).await.err();
        ensure!(error.as_ref().is_some_and(|error| error.to_string().contains(what)), "{error:?}");
        mallory.execute(drop).await?;
    }
    run(&relay, "migrate", &[]).await?;
    hostile.met_none().await?;
    hostile.end().await
}

async fn no_command_meets_a_trap(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let hostile = Hostile::new(&database).await?;
    let outbox = &hostile.outbox;
    outbox.create_topic(&kafka).await?;
    let relay = hostile.admin()?.with("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap());
    let mut app = hostile.connect("app").await?;
    let writer = outbox::Outbox::default();
    for n in 0..20 {
        let event = NewEvent::new("order", format!("e{}", n % 4), "X").json(&json!({"n": n}))?;
        writer.emit(&mut app, &event).await?;
    }
    // One event goes DEAD: its headers are not texts.
    app.execute(
        "insert into public.event_outbox (entity_type, entity_id, event_type, payload, headers) \
         values ('order', 'bad', 'X', '{\"n\": 1}', '{\"number\": 1}')",
    )
    .await?;
    app.execute("select public.outbox_emit('order'::pg_catalog.text, 'later'::pg_catalog.text, 'X', '{\"n\": 1}', available_at => 'infinity')")
        .await?;
    for delivery in ["at_least_once", "exactly_once"] {
        let running = relay.clone().with("RELAY_DELIVERY", delivery).start_ready("trapped").await?;
        outbox.until_none("only the scheduled event waits", "status = 'PENDING' and due is null").await;
        let topic = outbox.topic.as_str();
        for (command, arguments) in [
            ("status", &[][..]),
            ("status", &["--json"]),
            ("explain", &["e1"]),
            ("explain", &["later", "--full"]),
            ("tail", &["--for", "1s"]),
            ("dead", &["list"]),
            ("dead", &["show", "--payload"]),
            ("dead", &["retry", "--all", "--yes", "--reason", "a trial"]),
            ("pause", &["--topic", topic, "--reason", "a trial"]),
            ("pause", &["--list"]),
            ("resume", &["--every"]),
        ] {
            run(&relay, command, arguments).await.with_context(|| delivery.to_owned())?;
        }
        outbox.until_none("the retried event is DEAD again", "status = 'PENDING' and due is null").await;
        ensure!(running.log().iter().all(|line| !line.contains("SPRUNG")), "{:?}", running.log());
        ensure!(running.stop().await? == Some(0));
        let event = NewEvent::new("order", "e1", "X").json(&json!({"n": 100}))?;
        writer.emit(&mut app, &event).await?;
    }
    outbox.execute("delete from public.event_outbox where entity_id = 'e1' and status = 'PENDING'").await?;
    for (command, arguments) in [
        ("verify", &["--topic", outbox.topic.as_str()][..]),
        ("dead", &["discard", "--all", "--yes", "--reason", "a trial"]),
        ("replay", &["--all", "--yes", "--reason", "a trial"]),
        ("migrate", &[]),
    ] {
        run(&relay, command, arguments).await?;
    }
    let pruning = relay.clone().with("RELAY_RETENTION", "archive").with("RELAY_RETENTION_AFTER", "1s");
    run(&pruning, "prune", &["--yes"]).await?;
    // Triggers on tables of the application run for users whose path has the traps.
    outbox
        .execute(&format!(
            "create table public.things (id bigint primary key, note pg_catalog.text, at timestamptz default pg_catalog.now()); \
             create table public.polled (id bigserial primary key, aggregate_type pg_catalog.text not null, aggregate_id pg_catalog.text not null, \
               type pg_catalog.text not null, payload jsonb, headers jsonb, status pg_catalog.text not null default 'NEW'); \
             grant select, insert, update, delete on public.things, public.polled to {0}_app; \
             grant usage on all sequences in schema public to {0}_app",
            database.name()
        ))
        .await?;
    run(&relay, "adopt", &["polled", "--done", "SENT", "--pending", "NEW"]).await?;
    app.execute("insert into public.polled (aggregate_type, aggregate_id, type, headers) values ('order', 'p', 'X', '{\"a\": 1}')").await?;
    for mode in ["--allow-truncate", "--bulk"] {
        run(&relay, "capture", &["things", mode]).await?;
        app.execute("insert into public.things values (1, 'a')").await?;
        app.execute("update public.things set note = 'b', id = 2").await?;
        run(&relay, "capture", &["things", "--backfill", "--where", "note is not null"]).await?;
        app.execute("delete from public.things").await?;
    }
    run(&relay, "capture", &["--list"]).await?;
    run(&relay, "capture", &["--drop", "things"]).await?;
    let captured = "select count(*) from public.event_outbox where entity_type in ('things', 'order') and entity_id in ('1', '2', 'p')";
    ensure!(outbox.number(captured).await? == 11);
    let found = findings(&relay).await?;
    ensure!(found.iter().all(|(id, _)| id != "foreign-objects" && id != "database-unreachable"), "{found:?}");
    ensure!(
        found.iter().any(|(id, finding)| id == "schema-open" && finding.to_string().contains("mallory")),
        "{found:?}"
    );
    hostile.met_none().await?;
    hostile.end().await
}

/// PgBouncer refuses to set a search path in the first packet, and a setting of the session would reach its other clients.
async fn a_relay_behind_a_pooler_meets_no_trap(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let hostile = Hostile::new(&database).await?;
    let outbox = &hostile.outbox;
    outbox.create_topic(&kafka).await?;
    outbox.write_backlog(1_000, 10).await?;
    // All users of the pooler are one user of the server, whose path is hostile from now on.
    let set = |path: &str| {
        let sql = format!("alter database {} set search_path = {path}", database.name());
        let options: PgConnectOptions = database.connect_options();
        async move { PgConnection::connect_with(&options).await?.execute(AssertSqlSafe(sql)).await }
    };
    set("public, pg_catalog").await?;
    let pooler = PgBouncer::start(&database, "transaction").await?;
    let relay = Relay::new(pooler.url(), &kafka.bootstrap())
        .with("RELAY_TOPIC", &outbox.topic)
        .with("RELAY_PREPARED_STATEMENTS", false);
    let running = relay.start_ready("pooled").await?;
    let pending = "select count from (select pg_catalog.count(*) from public.event_outbox where status operator(pg_catalog.=) 'PENDING') c";
    eventually("all is published", SOON * 4, || async {
        let mut connection = database.connect().await.map_err(|error| error.to_string())?;
        match sqlx::query_scalar::<_, i64>(pending).fetch_one(&mut connection).await {
            Ok(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for (command, arguments) in [
        ("status", &[][..]),
        ("explain", &["e1"]),
        ("dead", &["list"]),
        ("pause", &["--list"]),
        ("replay", &["--all", "--yes", "--reason", "a trial"]),
        ("pause", &["--topic", outbox.topic.as_str(), "--reason", "a trial"]),
        ("resume", &["--every"]),
        ("dead", &["retry", "--all", "--yes", "--reason", "a trial"]),
        ("verify", &["--topic", outbox.topic.as_str()]),
        ("tail", &["--for", "1s"]),
    ] {
        run(&relay, command, arguments).await?;
    }
    let pruning = relay.clone().with("RELAY_RETENTION", "delete").with("RELAY_RETENTION_AFTER", "1s");
    run(&pruning, "prune", &["--yes"]).await?;
    let found = findings(&relay).await?;
    ensure!(found.iter().any(|(id, _)| id == "pooler-transaction"), "{found:?}");
    ensure!(running.log().iter().all(|line| !line.contains("SPRUNG")), "{:?}", running.log());
    ensure!(running.stop().await? == Some(0));
    // Another client of the pooler still has its own path.
    // PgBouncer's defaults refuse the parameter that sqlx sends.
    let options = pooler.url().parse::<PgConnectOptions>()?.extra_float_digits(None);
    let mut other = PgConnection::connect_with(&options).await?;
    let path = other.fetch_one(sqlx::raw_sql("show search_path")).await?;
    ensure!(sqlx::Row::try_get::<&str, _>(&path, 0)? == "public, pg_catalog");
    other.close().await?;
    pooler.stop();
    set("default").await?;
    hostile.met_none().await?;
    hostile.end().await
}

async fn a_consumer_meets_no_trap(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let hostile = Hostile::new(&database).await?;
    let topic = hostile.outbox.topic.clone();
    hostile.outbox.create_topic(&kafka).await?;
    hostile.outbox.write("a", 0, 5).await?;
    // Another key is held, so that rows are compared.
    hostile
        .outbox
        .execute(&format!(
            "insert into public.processed_events_held (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, reason) \
             values ('group', '{topic}', 'z', '0b4d8a9e-0f4c-4f3e-9d7e-2d6f0d0e7a11', '{topic}', 0, 0, 'a trial')"
        ))
        .await?;
    let running = hostile.outbox.relay(&kafka).start("consumed")?;
    hostile.outbox.until_settled().await;
    ensure!(running.stop().await? == Some(0));

    let options: PgConnectOptions = hostile.url("app")?.parse()?;
    let applied = Arc::new(AtomicUsize::new(0));
    let counter = applied.clone();
    let consumer = Consumer::new("group", PgPoolOptions::new().connect_lazy_with(options))
        .kafka("bootstrap.servers", kafka.bootstrap())
        .kafka("fetch.wait.max.ms", "20")
        .topic(&topic)
        .on("Counted", 1..=1, move |_: Context, _: Value| {
            let counter = counter.clone();
            async move {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok::<(), Failed>(())
            }
        });
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(consumer.run(async move { drop(stopped.await) }));
    eventually("all events are applied", SOON * 4, || async {
        let applied = applied.load(Ordering::Relaxed);
        if applied == 5 { Ok(()) } else { Err(applied) }
    })
    .await;
    drop(stop);
    task.await??;
    hostile.met_none().await?;
    hostile.end().await
}
