//! Tests the rights: each role can do its own work, and nothing else.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use lab::kafka::RealKafka;
use lab::relay::Output;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            roles_are_made_once_and_again_by_any_number_of_processes,
            the_printed_script_makes_the_same_roles,
            what_a_role_must_not_do_is_refused,
            a_user_that_may_not_create_roles_reads_what_to_do;
        with_both:
            each_role_does_its_work_alone;
    }
}

const SUFFIXES: [&str; 4] = ["writer", "relay", "operator", "monitor"];

/// Creates the roles. Roles belong to the server, and tests share the server.
async fn make(database: &TestDatabase, more: &[&str]) -> anyhow::Result<Output> {
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    let arguments = [&["--roles", "--role-prefix", database.name()], more].concat();
    arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("migrate").await
}

pub(crate) async fn made(database: &TestDatabase, more: &[&str]) -> anyhow::Result<String> {
    let output = make(database, more).await?;
    ensure!(output.code == Some(0) && output.stderr.is_empty(), "{output:?}");
    Ok(output.stdout)
}

/// Creates a user with that role and no other right; returns its `DATABASE_URL`.
pub(crate) async fn user(database: &TestDatabase, role: &str) -> anyhow::Result<String> {
    let (name, granted) = (format!("{}_{role}_user", database.name()), format!("{}_{role}", database.name()));
    let sql = format!("create role {name} login password 'secret' in role {granted}");
    database.connect().await?.execute(AssertSqlSafe(sql)).await?;
    url_of(database, &name)
}

fn url_of(database: &TestDatabase, user: &str) -> anyhow::Result<String> {
    let url = database.url();
    let (_, server) = url.split_once('@').context("no user in the URL")?;
    Ok(format!("postgres://{user}:secret@{server}"))
}

/// Returns every granted right as text.
async fn rights(database: &TestDatabase) -> anyhow::Result<Vec<String>> {
    let sql = "
        select grantee || ' ' || table_name || ' ' || privilege_type from information_schema.role_table_grants
         where grantee like $1 and table_schema = 'public'
        union all
        select grantee || ' ' || table_name || '.' || column_name || ' ' || privilege_type
          from information_schema.column_privileges where grantee like $1 and table_schema = 'public'
        union all
        select grantee || ' ' || routine_name from information_schema.routine_privileges
         where grantee like $1 and grantee not like '%\\_activity'
        order by 1";
    let pattern = format!("{}\\_%", database.name().replace('_', "\\_"));
    Ok(sqlx::query_scalar(sql).bind(pattern).fetch_all(&mut database.connect().await?).await?)
}

async fn roles_are_made_once_and_again_by_any_number_of_processes(database: TestDatabase) -> anyhow::Result<()> {
    for output in futures_util::future::join_all((0..4).map(|_| make(&database, &[]))).await {
        let output = output?;
        ensure!(output.code == Some(0), "{output:?}");
    }
    let text = made(&database, &[]).await?;
    ensure!(SUFFIXES.iter().all(|suffix| text.contains(&format!("{}_{suffix}", database.name()))), "{text}");
    let outbox = Outbox::from_database(&database);
    let logins = format!(
        "select count(*) from pg_roles where rolname like '{}\\_%' and (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb)",
        database.name()
    );
    ensure!(outbox.number(&logins).await? == 0);
    // Other grants are revoked, and the option adds and removes the right to delete.
    let before = rights(&database).await?;
    ensure!(before.len() > 60, "{before:?}");
    outbox.execute(&format!("grant delete, truncate on event_outbox to {}_writer", database.name())).await?;
    made(&database, &["--retention"]).await?;
    let with = rights(&database).await?;
    let more: Vec<_> = with.iter().filter(|right| !before.contains(right)).collect();
    ensure!(
        more.iter().all(|right| right.contains("_relay "))
            && more.iter().any(|right| right.ends_with("event_outbox DELETE")),
        "{more:?}"
    );
    made(&database, &[]).await?;
    ensure!(rights(&database).await? == before);
    Ok(())
}

async fn the_printed_script_makes_the_same_roles(database: TestDatabase) -> anyhow::Result<()> {
    made(&database, &["--retention"]).await?;
    let by_command = rights(&database).await?;
    let relay = Relay::bare();
    let arguments = ["--roles", "--print", "--retention", "--role-prefix", database.name()];
    let script = arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("migrate").await?;
    ensure!(script.code == Some(0) && script.stderr.is_empty(), "{script:?}");
    let mut connection = database.connect().await?;
    for suffix in SUFFIXES {
        connection.execute(AssertSqlSafe(format!("drop owned by {}_{suffix}", database.name()))).await?;
    }
    ensure!(rights(&database).await?.is_empty());
    connection.execute(sqlx::raw_sql(AssertSqlSafe(script.stdout))).await?;
    ensure!(rights(&database).await? == by_command);
    Ok(())
}

async fn a_user_that_may_not_create_roles_reads_what_to_do(database: TestDatabase) -> anyhow::Result<()> {
    let name = format!("{}_nobody", database.name());
    let mut connection = database.connect().await?;
    connection
        .execute(AssertSqlSafe(format!(
            "create role {name} login password 'secret'; grant select on all tables in schema public to {name}"
        )))
        .await?;
    let relay = Relay::bare().with("DATABASE_URL", url_of(&database, &name)?).argument("--roles");
    let output = relay.argument("--role-prefix").argument(&name).output("migrate").await?;
    ensure!(output.code == Some(1) && output.stderr.contains("--roles --print"), "{output:?}");
    Ok(())
}

async fn what_a_role_must_not_do_is_refused(database: TestDatabase) -> anyhow::Result<()> {
    made(&database, &[]).await?;
    let insert =
        "insert into event_outbox (entity_type, entity_id, event_type, payload) values ('order', 'a', 'X', '{}')";
    database.connect().await?.execute(insert).await?;
    let everywhere = [
        "drop table event_outbox",
        "truncate event_outbox",
        "alter table event_outbox disable trigger all",
        "delete from event_outbox",
        "update event_outbox set payload = '{}'",
        "update event_outbox set entity_id = 'b'",
        "update event_outbox_audit set actor = 'nobody'",
        "delete from event_outbox_audit",
        "delete from event_outbox_audit_row",
        "insert into event_outbox_migration values (99, 'x', 'x')",
        "delete from event_outbox_lane",
        "delete from processed_events",
        "insert into processed_events (consumer_group, event_id) values ('g', gen_random_uuid())",
        "delete from processed_events_held",
        "select payload from event_outbox_archive",
        "create table mine ()",
        "select * from event_outbox_secret",
        "insert into event_outbox_audit (command, affected) values ('dead retry', 7)",
        "insert into processed_events_group values ('g', current_user)",
        "update event_outbox set status = 'DEAD', available_at = now()",
        "insert into event_outbox_pause (scope, reason, paused_by) values ('all', 'x', 'x')",
        "delete from event_outbox_pause",
        "update event_outbox_control set value = 0",
        "create role mine",
    ];
    let each: [(&str, &[&str]); 4] = [
        (
            "writer",
            &[
                "select payload from event_outbox",
                "select * from event_outbox",
                "insert into event_outbox (entity_type, event_type, status) values ('order', 'X', 'PUBLISHED')",
                "insert into event_outbox (entity_type, event_type, created_at) values ('order', 'X', now())",
                "select from event_outbox_audit",
                "select event_outbox_decide('retry', '{1}', '{}', null, null)",
                "select event_outbox_sessions()",
            ],
        ),
        (
            "relay",
            &[
                insert,
                "update event_outbox set headers = '{}'",
                "select event_outbox_decide('discard', '{1}', '{}', null, null)",
                "select event_outbox_begin_pause('all', null, null, null, null, null, null)",
                "select event_outbox_end_pause('all', null, null, null, null, null)",
                "select event_outbox_note('prune', '{}', null, null, 1)",
                "select event_outbox_discard('{}', '{}', '{}', null, null, 0)",
                "insert into event_outbox_archive (id) values (1)",
            ],
        ),
        (
            "operator",
            &[
                insert,
                "select payload from event_outbox",
                "select headers from event_outbox",
                "select payload_bytes from event_outbox",
                "update event_outbox set published_at = now()",
                "update event_outbox set status = 'PENDING'",
                "update event_outbox_audit_row set action = 'released'",
                "insert into event_outbox_audit_row values (1, 1, gen_random_uuid(), 'retried')",
                "update event_outbox_pause set paused_by = 'nobody'",
                "delete from event_outbox_relay",
            ],
        ),
        (
            "monitor",
            &[
                insert,
                "select payload from event_outbox",
                "select headers from event_outbox",
                "select event_id from processed_events",
                "update event_outbox set status = 'PENDING'",
                "update event_outbox_lane set nonce = 0",
                "select event_outbox_decide('retry', '{1}', '{}', null, null)",
                "select event_outbox_begin_pause('all', null, null, null, null, null, null)",
                "select event_outbox_note('replay', '{}', null, null, 1)",
                "select event_outbox_discard('{}', '{}', '{}', null, null, 0)",
            ],
        ),
    ];
    for (role, statements) in each {
        let mut connection = PgConnection::connect(&user(&database, role).await?).await?;
        for statement in everywhere.iter().chain(statements) {
            let error =
                connection.execute(*statement).await.err().with_context(|| format!("{role} may {statement}"))?;
            let code = error.as_database_error().and_then(|error| error.code());
            ensure!(code.as_deref() == Some("42501"), "{role}: {statement}: {error}");
        }
    }
    Ok(())
}

async fn each_role_does_its_work_alone(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    made(&database, &["--retention"]).await?;

    let mut writer = PgConnection::connect(&user(&database, "writer").await?).await?;
    for sql in [
        "insert into event_outbox (entity_type, entity_id, event_type, payload) values ('order', 'a', 'X', '{\"n\": 1}') \
         returning id, event_id",
        "select outbox_emit('order', 'a', 'X', '{\"n\": 2}')",
        "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
         values ('order', 'a', 'Bad', '{\"n\": 3}', '{\"number\": 1}')",
        "select outbox_emit('order', 7, 'X', '{\"n\": 5}', dedupe_key => 'k'), outbox_emit('order', 7, 'X', '{\"n\": 5}', dedupe_key => 'k')",
        "select outbox_emit_many('[{\"entity_type\": \"order\", \"entity_id\": \"b\", \"event_type\": \"X\", \"payload\": {\"n\": 6}}]')",
    ] {
        writer.execute(sql).await.with_context(|| sql.to_owned())?;
    }

    let relay_url = user(&database, "relay").await?;
    let settings = outbox.relay(&kafka).with("DATABASE_URL", &relay_url);
    let relay = settings.start("alone")?;
    outbox.until_settled().await;
    // A scheduled event has no order among the others: it may be due before the relay begins.
    writer
        .execute("select outbox_emit('order', 'a', 'X', '{\"n\": 4}', available_at => now() + interval '1 second')")
        .await?;
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["a"] == [1, 2, 4] && numbers["7"] == [5] && numbers["b"] == [6], "{numbers:?}");

    let operator = user(&database, "operator").await?;
    let run = async |url: &str, command: &str, arguments: &[&str]| {
        let relay = Relay::bare()
            .with("DATABASE_URL", url)
            .with("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())
            .with("RELAY_TOPIC", &outbox.topic);
        arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output(command).await
    };
    for (command, arguments) in [
        ("dead", &["list"][..]),
        ("dead", &["show"]),
        ("pause", &["--topic", outbox.topic.as_str(), "--reason", "a trial"]),
        ("pause", &["--list"]),
        ("resume", &["--every"]),
        ("dead", &["discard", "--all", "--yes", "--reason", "a trial"]),
    ] {
        let output = run(&operator, command, arguments).await?;
        ensure!(output.code == Some(0), "{command} {arguments:?}: {output:?}");
    }
    let output = run(&operator, "dead", &["show", "--discarded", "--payload"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("grant select (payload"), "{output:?}");
    outbox.execute("update event_outbox set headers = '{}' where headers <> '{}'").await?;
    let output = run(&operator, "dead", &["retry", "--discarded", "--all", "--yes"]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    outbox.until_settled().await;
    ensure!(outbox.published_numbers(&kafka).await?["a"] == [1, 2, 4, 3]);

    let monitor = user(&database, "monitor").await?;
    for user in [&monitor, &operator] {
        for (command, arguments) in [
            ("dead", &["list"][..]),
            ("dead", &["show"]),
            ("pause", &["--list"]),
            ("status", &[]),
            ("status", &["--json"]),
            ("explain", &["a"]),
            ("check", &["--json"]),
        ] {
            let output = run(user, command, arguments).await?;
            ensure!(output.code == Some(0), "{command} {arguments:?}: {output:?}");
            ensure!(!format!("{output:?}").contains("rights-missing"), "{command} {arguments:?}: {output:?}");
            ensure!(command != "check" || output.stdout.contains("rights-reader"), "{output:?}");
            ensure!(command != "check" || !output.stdout.contains("sessions-hidden"), "{output:?}");
        }
        PgConnection::connect(user).await?.execute("select * from event_outbox_health").await?;
    }
    let output = run(&monitor, "pause", &["--all", "--reason", "x"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("migrate --roles"), "{output:?}");
    let mut connection = PgConnection::connect(&monitor).await?;
    connection.execute("select query from pg_stat_activity; select count(*) from event_outbox").await?;

    // No statement failed for a missing right, and retention does not either.
    ensure!(relay.log().iter().all(|line| !line.contains("42501")), "{:?}", relay.log());
    ensure!(relay.stop().await? == Some(0));
    outbox.execute("insert into processed_events values ('g', gen_random_uuid(), now() - interval '1 hour')").await?;
    let source =
        format!("insert into processed_events_source (consumer_group, topic) values ('g', '{}')", outbox.topic);
    outbox.execute(&source).await?;
    // The inbox may not forget events that the topic still holds.
    kafka.alter_topic(&outbox.topic, &[("retention.ms", "300000")]).await?;
    let settings = settings.with("RELAY_RETENTION_AFTER", "1s").with("RELAY_PROCESSED_RETENTION", "10m");
    for (mode, written) in [("archive", 5), ("delete", 6)] {
        outbox.write("a", written, 1).await?;
        let relay = settings.clone().with("RELAY_RETENTION", mode).start(mode)?;
        eventually("nothing is left", SOON, || async {
            let rows = "select count(*) + (select count(*) from processed_events) from event_outbox";
            match outbox.number(rows).await {
                Ok(0) => Ok(()),
                other => Err(other),
            }
        })
        .await;
        ensure!(relay.log().iter().all(|line| !line.contains("42501")), "{:?}", relay.log());
    }
    ensure!(outbox.number("select count(*) from event_outbox_archive").await? == 7);
    Ok(())
}
