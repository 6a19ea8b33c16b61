//! Tests the trust model: operators act through audited functions, monitors see no payloads, and groups keep their inbox.

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use lab::{Outbox, Relay, TestDatabase, trials};

use crate::roles::{made, user};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            an_operator_changes_rows_with_an_audit_entry_that_cannot_be_forged,
            an_operator_discards_dead_letters_of_open_groups_through_an_audited_function,
            an_upgrade_gives_operators_functions_in_place_of_rights,
            a_monitor_sees_sessions_and_no_queries,
            the_inbox_of_a_group_belongs_to_its_roles,
            a_stranger_locks_nothing_that_progress_depends_on;
    }
}

async fn an_operator_changes_rows_with_an_audit_entry_that_cannot_be_forged(
    database: TestDatabase,
) -> anyhow::Result<()> {
    made(&database, &[]).await?;
    let outbox = Outbox::from_database(&database);
    outbox
        .execute(
            "insert into event_outbox (entity_type, event_type, status, last_error, published_at) values \
             ('order', 'A', 'DEAD', 'bad', null), ('order', 'B', 'PENDING', null, null), ('order', 'C', 'PUBLISHED', null, now())",
        )
        .await?;
    let mut operator = PgConnection::connect(&user(&database, "operator").await?).await?;
    // Rows that wait for no decision are left alone, whatever ids are given.
    let decide = "select changed, released from event_outbox_decide($1, '{1,2,3}', '{\"id\": [\"1\"]}', 'joe', 'why')";
    for decision in ["discard", "retry"] {
        let changed: (i64, i64) = sqlx::query_as(decide).bind(decision).fetch_one(&mut operator).await?;
        ensure!(changed == (1, 0), "{decision}: {changed:?}");
    }
    let pause = "select event_outbox_begin_pause('topic', 't', null, null, 60, null, 'why')";
    operator.execute(pause).await?;
    operator.execute("select event_outbox_note('replay', '{}', null, null, 5)").await?;
    for forged in [
        "select event_outbox_note('dead retry', '{}', null, null, 5)",
        "select event_outbox_note('dlq discard', '{}', null, null, 5)",
        "select event_outbox_decide('publish', '{1}', '{}', null, null)",
    ] {
        let error = operator.execute(forged).await.err().context(forged)?;
        ensure!(error.as_database_error().and_then(|error| error.code()).as_deref() == Some("22023"), "{error}");
    }
    let entries: Vec<(String, Option<String>, String, i64, bool)> = sqlx::query_as(
        "select actor, acted_by, command, affected, at > now() - interval '1 minute' from event_outbox_audit order by id",
    )
    .fetch_all(&mut operator)
    .await?;
    let (actor, joe) = (format!("{}_operator_user", database.name()), Some("joe".to_owned()));
    let entry =
        |by: &Option<String>, command: &str, affected| (actor.clone(), by.clone(), command.to_owned(), affected, true);
    ensure!(
        entries
            == [
                entry(&joe, "dead discard", 1),
                entry(&joe, "dead retry", 1),
                entry(&None, "pause", 1),
                entry(&None, "replay", 5)
            ],
        "{entries:?}"
    );
    Ok(())
}

async fn an_operator_discards_dead_letters_of_open_groups_through_an_audited_function(
    database: TestDatabase,
) -> anyhow::Result<()> {
    made(&database, &[]).await?;
    let outbox = Outbox::from_database(&database);
    outbox
        .execute(
            "insert into processed_events_held (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, reason) \
             select g, 't', 'k', '00000000-0000-0000-0000-000000000001', 't', 0, 0, 'permanent' from unnest('{open,closed}'::text[]) g",
        )
        .await?;
    outbox.execute("insert into processed_events_group values ('closed', 'postgres')").await?;
    let mut operator = PgConnection::connect(&user(&database, "operator").await?).await?;
    let discard = |group: &str, reason: &str| {
        format!(
            "select marked, deleted from event_outbox_discard(array['{group}', '{group}'], \
             array['00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002']::uuid[], '{{}}', 'joe', '{reason}', 2)"
        )
    };
    let done: (i64, i64) = sqlx::query_as(AssertSqlSafe(discard("open", "void"))).fetch_one(&mut operator).await?;
    ensure!(done == (2, 1), "{done:?}");
    let refused = operator.execute(AssertSqlSafe(discard("closed", "x"))).await.err().context("a closed group")?;
    ensure!(refused.to_string().contains("may not act for the consumer group closed"), "{refused}");
    ensure!(outbox.number("select count(*) from processed_events_held where consumer_group = 'closed'").await? == 1);
    // The roles of a group may discard its dead letters, through the same function.
    outbox.execute(&format!("update processed_events_group set role = '{}_operator_user'", database.name())).await?;
    let done: (i64, i64) = sqlx::query_as(AssertSqlSafe(discard("closed", "void"))).fetch_one(&mut operator).await?;
    ensure!(done == (2, 1), "{done:?}");
    let entries = "select count(*) from event_outbox_audit where command = 'dlq discard' and acted_by = 'joe' \
                   and reason = 'void' and affected = 2 and actor like '%_operator_user'";
    ensure!(outbox.number(entries).await? == 2);
    let odd = "select event_outbox_discard('{a}', '{}', '{}', null, null, 0)";
    ensure!(operator.execute(odd).await.is_err(), "a group without an event");
    Ok(())
}

async fn an_upgrade_gives_operators_functions_in_place_of_rights(database: TestDatabase) -> anyhow::Result<()> {
    let script = Relay::bare().with("RELAY_SCHEMA", "elder").argument("--print").output("migrate").await?.stdout;
    let (before, _) = script.split_once("-- 0014 event id index").context("no migration 14")?;
    let (mut owner, name) = (database.connect().await?, database.name());
    owner.execute(sqlx::raw_sql(AssertSqlSafe(format!("{before}; commit")))).await?;
    // As `migrate --roles` of version 13 granted.
    let outbox = Outbox::from_database(&database);
    outbox
        .execute(&format!(
            "create role {name}_operator; create role {name}_app; grant usage on schema elder to {name}_operator, {name}_app; \
             grant select (id, status, last_error), update (status, available_at, last_error) on elder.event_outbox to {name}_operator; \
             grant select, insert on elder.event_outbox_audit, elder.event_outbox_audit_row to {name}_operator; \
             grant select, insert, delete on elder.event_outbox_pause to {name}_operator; \
             grant select, update (value) on elder.event_outbox_control to {name}_operator; \
             grant insert on elder.processed_events to {name}_operator; \
             grant select, delete on elder.processed_events_held to {name}_operator; \
             revoke execute on function elder.outbox_emit from public; grant insert on elder.event_outbox to {name}_app; \
             grant select (event_id) on elder.event_outbox to {name}_app; grant execute on function elder.outbox_emit to {name}_app"
        ))
        .await?;
    let output =
        Relay::bare().with("DATABASE_URL", database.url()).with("RELAY_SCHEMA", "elder").output("migrate").await?;
    ensure!(output.code == Some(0), "{output:?}");
    let mut operator = PgConnection::connect(&user(&database, "operator").await?).await?;
    operator.execute("select id, xmax from elder.event_outbox").await?;
    operator.execute("select elder.event_outbox_begin_pause('all', null, null, null, null, null, 'why')").await?;
    operator.execute("select elder.event_outbox_decide('retry', '{1}', '{}', null, null)").await?;
    operator.execute("select elder.event_outbox_discard('{}', '{}', '{}', null, null, 0)").await?;
    let mut app = PgConnection::connect(&user(&database, "app").await?).await?;
    app.execute("select elder.outbox_emit('order', 7, 'X', '{}')").await?;
    for statement in [
        "insert into elder.event_outbox_audit (command, affected) values ('dead retry', 7)",
        "update elder.event_outbox set status = 'DEAD'",
        "delete from elder.event_outbox_pause",
        "update elder.event_outbox_control set value = 0",
        "insert into elder.processed_events (consumer_group, event_id) values ('g', gen_random_uuid())",
        "delete from elder.processed_events_held",
        "select elder.outbox_emit('order', 7, 'X', '{}')",
    ] {
        let error = operator.execute(statement).await.err().context(statement)?;
        let code = error.as_database_error().and_then(|error| error.code());
        ensure!(code.as_deref() == Some("42501"), "{statement}: {error}");
    }
    Ok(())
}

async fn a_monitor_sees_sessions_and_no_queries(database: TestDatabase) -> anyhow::Result<()> {
    made(&database, &[]).await?;
    // An older version had granted this.
    let outbox = Outbox::from_database(&database);
    outbox.execute(&format!("grant pg_read_all_stats to {}_monitor", database.name())).await?;
    made(&database, &[]).await?;
    let mut writer = database.connect().await?;
    writer.execute("begin; select outbox_emit('order', 'a', 'X', '{\"card\": \"4711-0815\"}')").await?;
    for role in ["monitor", "operator"] {
        let mut connection = PgConnection::connect(&user(&database, role).await?).await?;
        let literals = "select count(*) from pg_stat_activity where query like '%' || '4711-' || '0815%' and pid <> pg_backend_pid()";
        let seen: i64 = sqlx::query_scalar(literals).fetch_one(&mut connection).await?;
        ensure!(seen == 0, "{role} sees payloads");
        let sessions: Vec<String> = sqlx::query_scalar(
            "select to_jsonb(s)::text from event_outbox_sessions() s \
             where datname = current_database() and state = 'idle in transaction' and xact_start is not null",
        )
        .fetch_all(&mut connection)
        .await?;
        ensure!(sessions.len() == 1 && !sessions[0].contains("4711"), "{role}: {sessions:?}");
        let oldest: Option<f64> = sqlx::query_scalar("select oldest_transaction_seconds from event_outbox_health")
            .fetch_one(&mut connection)
            .await?;
        ensure!(oldest.is_some(), "{role}: no transaction");
    }
    writer.execute("rollback").await?;
    Ok(())
}

async fn the_inbox_of_a_group_belongs_to_its_roles(database: TestDatabase) -> anyhow::Result<()> {
    made(&database, &["--retention"]).await?;
    let (outbox, name) = (Outbox::from_database(&database), database.name());
    outbox
        .execute(&format!(
            "create role {name}_billing; create role {name}_mail; \
             grant select, insert, delete on processed_events to {name}_billing, {name}_mail; \
             grant select, insert, update, delete on processed_events_held to {name}_billing, {name}_mail; \
             insert into processed_events_group values ('billing', '{name}_billing')"
        ))
        .await?;
    let mut billing = PgConnection::connect(&user(&database, "billing").await?).await?;
    let mut mail = PgConnection::connect(&user(&database, "mail").await?).await?;
    let first = "select event_once($1, '0b4d8a9e-0f4c-4f3e-9d7e-2d6f0d0e7a11')";
    ensure!(sqlx::query_scalar::<_, bool>(first).bind("billing").fetch_one(&mut billing).await?);
    // A group without a role is open to all who may write the inbox.
    ensure!(sqlx::query_scalar::<_, bool>(first).bind("mail").fetch_one(&mut mail).await?);
    for forbidden in [
        "select event_once('billing', gen_random_uuid())",
        "insert into processed_events values ('billing', gen_random_uuid())",
        "delete from processed_events where consumer_group = 'billing'",
        "insert into processed_events_held (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, reason) \
         values ('billing', 't', 'k', gen_random_uuid(), 't', 0, 0, 'x')",
    ] {
        let error = mail.execute(forbidden).await.err().context(forbidden)?;
        let code = error.as_database_error().and_then(|error| error.code());
        ensure!(code.as_deref() == Some("42501"), "{forbidden}: {error}");
    }
    // Relays prune the inbox of every group.
    let mut relay = PgConnection::connect(&user(&database, "relay").await?).await?;
    let pruned = relay.execute("delete from processed_events").await?.rows_affected();
    ensure!(pruned == 2, "{pruned}");
    Ok(())
}

/// Even with USAGE on the schema, a user without another right gets no lock that a relay, a writer or a migration waits for, but for weak ones.
async fn a_stranger_locks_nothing_that_progress_depends_on(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.write("e", 1, 1).await?;
    let name = format!("{}_stranger", database.name());
    outbox.execute(&format!("create role {name}; grant usage on schema public to {name}")).await?;
    let mut stranger = outbox.connect().await?;
    stranger.execute(AssertSqlSafe(format!("set session authorization {name}"))).await?;
    let tables =
        ["event_outbox", "event_outbox_lane", "event_outbox_control", "event_outbox_migration", "event_outbox_relay"];
    for table in tables {
        for lock in [
            format!("select from {table} for key share"),
            format!("do $$ begin lock table {table} in row share mode; end $$"),
        ] {
            let error = stranger.execute(AssertSqlSafe(lock.as_str())).await.err().with_context(|| lock.clone())?;
            let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
            ensure!(code.as_deref() == Some("42501"), "{lock}: {error}");
        }
    }
    // A statement that may not run is planned all the same, and its table is locked until the transaction ends.
    let mut open = stranger.begin().await?;
    open.execute("prepare weak as select * from event_outbox").await?;
    let weak = "select mode from pg_locks where relation = 'event_outbox'::regclass and pid = pg_backend_pid()";
    let modes: Vec<String> = sqlx::query_scalar(weak).fetch_all(&mut *open).await?;
    ensure!(modes == ["AccessShareLock"], "{modes:?}");
    outbox.write("e", 2, 1).await?;
    open.rollback().await?;
    Ok(())
}
