//! Provokes every finding of `outbox-relay check` on real servers. Where SQL fixes a finding, the test runs that SQL and the finding is
//! gone.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::{
    BinariesFrom, ChildServer, PostgresOptions, PrivatePostgres, ServerCommand, Signal, TemporaryDirectory, free_port,
};
use libtest_mimic::Trial;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor};

use lab::admin::{Admin, with_admin};
use lab::kafka::RealKafka;
use lab::pgbouncer::PgBouncer;
use lab::{Missing, Outbox, PARTITIONS, Relay, SOON, TestDatabase, eventually, options_for_tests, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            events_that_are_older_than_their_topic_keeps_are_found,
            a_sound_outbox_with_a_user_of_its_own_has_no_error_and_no_warning,
            a_missing_right_is_named_and_its_grant_fixes_it,
            a_monitor_is_not_told_to_take_the_rights_of_a_relay,
            too_many_rights_are_found,
            a_schema_of_another_version_is_found,
            a_missing_or_changed_index_is_found_and_fixed,
            a_claim_that_leaves_its_index_is_found,
            what_is_wrong_with_the_table_is_found_and_fixed,
            objects_of_other_users_are_found,
            dead_rows_that_no_vacuum_removes_are_found,
            payloads_that_are_not_json_are_found,
            an_open_transaction_is_found_with_its_session,
            a_locked_table_is_found_within_seconds,
            a_topic_that_cannot_take_its_events_is_found,
            records_where_another_partitioner_put_them_are_found,
            consumers_that_remember_less_than_the_topic_keeps_are_found,
            a_relay_that_starts_logs_what_the_check_finds,
            a_database_that_cannot_be_written_is_found,
            a_database_that_lets_nobody_in_is_found_with_the_reason,
            a_pooler_is_found_and_whether_it_keeps_prepared_statements,
            a_relay_works_behind_a_transaction_pooler,
            a_clock_that_is_wrong_is_found,
            brokers_that_refuse_the_login_are_found,
            what_exactly_once_lacks_in_the_database_is_found_and_fixed,
            relays_that_do_not_go_together_are_found_for_as_long_as_both_live,
            relays_of_two_clusters_are_found;
        with_postgres:
            what_exactly_once_lacks_in_the_cluster_is_found,
            an_advertised_address_that_leads_nowhere_is_found;
        with_kafka:
            prepared_transactions_and_idle_replication_slots_are_found;
        alone:
            what_a_configuration_exposes_is_found_and_logged_once,
            servers_that_are_away_are_found,
            an_old_postgres_is_refused_with_the_next_step,
            a_certificate_that_nobody_trusts_is_found,
            every_finding_is_provoked_here_and_explained_in_the_documents;
    }
}

/// Returns the findings by id; the last one of each id.
async fn findings(relay: &Relay) -> anyhow::Result<BTreeMap<String, Value>> {
    let output = relay.clone().argument("--json").output("check").await?;
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let list = report["findings"].as_array().context("no findings")?.clone();
    let error = list.iter().any(|finding| finding["severity"] == "error");
    ensure!(output.code == Some(i32::from(error)), "{output:?}");
    for finding in &list {
        ensure!(finding["message"].as_str().is_some_and(|message| message.ends_with('.')), "{finding}");
        ensure!(finding["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{finding}");
    }
    Ok(list.into_iter().map(|finding| (finding["id"].as_str().unwrap_or_default().to_owned(), finding)).collect())
}

async fn expect(relay: &Relay, id: &str, severity: &str) -> anyhow::Result<Value> {
    let found = findings(relay).await?;
    let finding = found.get(id).with_context(|| format!("no {id} in {found:?}"))?;
    ensure!(finding["severity"] == severity, "{finding}");
    Ok(finding.clone())
}

/// Expects the finding, runs its SQL one statement after the other, and expects the finding to be gone.
async fn expect_and_fix(outbox: &Outbox, relay: &Relay, id: &str, severity: &str) -> anyhow::Result<()> {
    let finding = expect(relay, id, severity).await?;
    for statement in finding["fix"].as_str().unwrap_or_default().split_inclusive(';') {
        if !statement.trim_start().starts_with("--") {
            outbox.execute(statement).await.with_context(|| finding.to_string())?;
        }
    }
    let found = findings(relay).await?;
    ensure!(!found.contains_key(id), "not fixed by {}: {found:?}", finding["fix"]);
    Ok(())
}

/// Creates a user without rights, and a relay that connects as that user. Users belong to the server, hence the name after the database.
pub(crate) async fn with_user(
    database: &TestDatabase,
    outbox: &Outbox,
    kafka: &RealKafka,
) -> anyhow::Result<(String, Relay)> {
    let user = format!("relay_of_{}", database.name());
    outbox.execute(&format!("drop role if exists {user}")).await?;
    outbox.execute(&format!("create role {user} login password 'relay'")).await?;
    let url = database.url();
    let (_, host) = url.rsplit_once('@').context("a URL with a user")?;
    let relay = Relay::new(&format!("postgres://{user}:relay@{host}"), &kafka.bootstrap());
    Ok((user, relay.with("RELAY_TOPIC", &outbox.topic)))
}

/// Grants the rights of the role `event_outbox_relay`, see docs/how-to/grant-rights.md.
pub(crate) async fn grant(outbox: &Outbox, user: &str) -> anyhow::Result<()> {
    for grant in [
        "usage on schema public",
        "select, update (status, published_at, attempts, last_error, due) on event_outbox",
        "select, update on event_outbox_lane",
        "select, insert, update, delete on event_outbox_hold",
        "select, insert, update, delete on event_outbox_relay",
        "select on event_outbox_migration",
        "select on event_outbox_control",
        "select on event_outbox_pause",
        "select on event_outbox_delivery",
    ] {
        outbox.execute(&format!("grant {grant} to {user}")).await?;
    }
    Ok(())
}

async fn a_sound_outbox_with_a_user_of_its_own_has_no_error_and_no_warning(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write("e", 1, 20).await?;
    let (user, relay) = with_user(&database, &outbox, &kafka).await?;
    grant(&outbox, &user).await?;
    let found = findings(&relay).await?;
    let ids: Vec<_> = found.keys().map(String::as_str).collect();
    // The tests' only broker, and a user that may not see others' sessions: notes.
    ensure!(ids == ["sessions-hidden", "topic-single-replica"], "{found:?}");
    let strict = relay.clone().argument("--strict").output("check").await?;
    ensure!(strict.code == Some(0) && strict.stdout.contains("0 errors, 0 warnings, 2 notes"), "{strict:?}");
    for right in
        ["answers: PostgreSQL", "with 16 lanes", "rights of a relay", &format!("{} takes events", outbox.topic)]
    {
        let is_ok = |line: &str| line.starts_with("ok ") && line.contains(right);
        ensure!(strict.stdout.lines().any(is_ok), "{right:?} is not said to be right in {}", strict.stdout);
    }
    let named = relay.argument("--topic").argument("not-made-for-check");
    expect(&named, "topic-missing", "error").await?;
    outbox.execute(&format!("drop owned by {user}")).await.map(drop)
}

async fn a_missing_right_is_named_and_its_grant_fixes_it(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let (user, relay) = with_user(&database, &outbox, &kafka).await?;
    // All grants are in one block of SQL.
    let missing = expect(&relay, "rights-missing", "error").await?;
    let fix = missing["fix"].as_str().unwrap_or_default();
    ensure!(fix.matches("grant ").count() >= 8 && missing.to_string().contains("migrate --roles"), "{missing}");
    expect_and_fix(&outbox, &relay, "rights-missing", "error").await?;
    let found = findings(&relay).await?;
    ensure!(!found.contains_key("database-unreachable"), "{found:?}");
    outbox.execute(&format!("drop owned by {user}")).await?;

    // With the roles in place, one grant is enough.
    let owner = Relay::bare().with("DATABASE_URL", database.url());
    let table = format!("roles_{}", database.name());
    let (owner, relay) = (owner.with("RELAY_TABLE", &table), relay.with("RELAY_TABLE", &table));
    let made = owner.argument("--roles").output("migrate").await?;
    for part in ["version 0 ->", "functions", &format!("{table}_lane"), "next", "another one"] {
        ensure!(made.code == Some(0) && made.stdout.contains(part), "no {part:?} in {made:?}");
    }
    let missing = expect(&relay, "rights-missing", "error").await?;
    ensure!(missing["fix"] == format!("grant \"{table}_relay\" to {user};"), "{missing}");
    expect_and_fix(&outbox, &relay, "rights-missing", "error").await?;
    outbox.execute(&format!("drop owned by {user}")).await.map(drop)
}

async fn a_monitor_is_not_told_to_take_the_rights_of_a_relay(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let (user, relay) = with_user(&database, &outbox, &kafka).await?;
    let roles = Relay::bare().with("DATABASE_URL", database.url()).argument("--roles").argument("--role-prefix");
    let roles = roles.argument(database.name()).output("migrate").await?;
    ensure!(roles.code == Some(0), "{roles:?}");
    outbox.execute(&format!("grant {}_monitor to {user}", database.name())).await?;
    expect(&relay, "rights-reader", "note").await?;
    let found = findings(&relay).await?;
    let ids: Vec<_> = found.keys().map(String::as_str).collect();
    ensure!(ids == ["rights-reader", "topic-single-replica"], "{found:?}");
    outbox.execute(&format!("drop owned by {user}")).await.map(drop)
}

async fn too_many_rights_are_found(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    expect(&outbox.relay(&kafka), "rights-superuser", "warning").await?;
    let (user, relay) = with_user(&database, &outbox, &kafka).await?;
    grant(&outbox, &user).await?;
    outbox.execute(&format!("grant truncate, insert on event_outbox to {user}")).await?;
    expect_and_fix(&outbox, &relay, "rights-excessive", "warning").await?;
    outbox.execute("alter table event_outbox enable row level security").await?;
    let hidden = expect(&relay, "row-security", "error").await?;
    ensure!(hidden["fix"].as_str().is_some_and(|fix| fix.starts_with("create policy")), "{hidden}");
    outbox.execute(&format!("drop owned by {user}")).await.map(drop)
}

async fn a_schema_of_another_version_is_found(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka);
    let elsewhere = relay.clone().with("RELAY_TABLE", "elsewhere");
    let missing = expect(&elsewhere, "schema-missing", "error").await?;
    ensure!(missing["fix"].as_str().is_some_and(|fix| fix.contains("RELAY_TABLE=\"event_outbox\"")), "{missing}");
    for command in ["status", "tail", "verify", "run"] {
        let refused = elsewhere.clone().with("RELAY_LOG_FORMAT", "text").output(command).await?;
        let says = refused.stderr.contains("there is \"public\".\"event_outbox\"");
        ensure!(refused.code != Some(0) && says && !refused.stderr.contains("migrate"), "{command}: {refused:?}");
    }
    outbox.execute("insert into event_outbox_migration values (999, 'future', 'a trial')").await?;
    expect(&relay, "schema-newer", "error").await?;
    outbox.execute("delete from event_outbox_migration where version > 1").await?;
    expect(&relay, "schema-older", "error").await?;
    outbox
        .execute(&format!("update event_outbox_migration set version = {}", event_outbox::schema::CURRENT_VERSION))
        .await?;
    outbox.execute("update event_outbox_lane set system = 1 where lane = 5").await?;
    expect(&relay, "lanes-reset", "warning").await?;
    outbox.execute("delete from event_outbox_lane where lane = 3").await?;
    expect(&relay, "lanes-broken", "error").await.map(drop)
}

async fn a_missing_or_changed_index_is_found_and_fixed(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka);
    for index in ["late", "due", "failed"] {
        outbox.execute(&format!("drop index event_outbox_{index}")).await?;
        expect_and_fix(&outbox, &relay, "index-missing", "error").await?;
    }
    outbox.execute("update pg_index set indisvalid = false where indexrelid = 'event_outbox_late'::regclass").await?;
    expect_and_fix(&outbox, &relay, "index-invalid", "error").await?;
    outbox.execute("drop index event_outbox_late").await?;
    outbox.execute("create index event_outbox_late on event_outbox (xid, lane) include (id)").await?;
    expect_and_fix(&outbox, &relay, "index-invalid", "error").await
}

async fn a_claim_that_leaves_its_index_is_found(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka);
    outbox.execute("alter table event_outbox drop constraint event_outbox_pkey").await?;
    let finding = expect(&relay, "claim-plan", "error").await?;
    ensure!(finding["message"].as_str().is_some_and(|message| message.contains("Scan")), "{finding}");
    outbox.execute("alter table event_outbox add constraint event_outbox_pkey primary key (id)").await?;
    // An old table that inherits from the outbox: the ctid of a row is no longer unique.
    outbox.execute("create table archived () inherits (event_outbox)").await?;
    expect(&relay, "table-partitioned", "error").await?;
    Ok(())
}

async fn what_is_wrong_with_the_table_is_found_and_fixed(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka);
    outbox.execute("alter table event_outbox enable trigger event_outbox_stamp_insert").await?;
    expect_and_fix(&outbox, &relay, "stamp-triggers", "error").await?;
    outbox.execute("alter table event_outbox set unlogged").await?;
    expect_and_fix(&outbox, &relay, "table-unlogged", "error").await?;
    outbox.execute("alter table event_outbox set (autovacuum_enabled = off)").await?;
    expect_and_fix(&outbox, &relay, "autovacuum-off", "warning").await?;
    outbox.execute("alter table event_outbox alter column id set cache 50").await?;
    expect_and_fix(&outbox, &relay, "sequence-cache", "error").await?;
    outbox.execute("create function noted() returns trigger language plpgsql as 'begin return new; end'").await?;
    outbox.execute("create trigger audit after update on event_outbox for each row execute function noted()").await?;
    expect_and_fix(&outbox, &relay, "triggers", "warning").await
}

async fn objects_of_other_users_are_found(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka);
    let stranger = format!("stranger_of_{}", database.name());
    outbox.execute(&format!("create role {stranger}; grant create on schema public to {stranger}, public")).await?;
    expect_and_fix(&outbox, &relay, "schema-open", "warning").await?;

    // What a superuser or the owner has placed there on purpose is a note.
    outbox.execute("create function make_id() returns uuid language sql as 'select gen_random_uuid()'").await?;
    outbox.execute("alter table event_outbox alter column event_id set default make_id()").await?;
    let finding = expect(&relay, "foreign-objects", "note").await?;
    ensure!(finding["message"].as_str().is_some_and(|message| message.contains("make_id()")), "{finding}");

    outbox
        .execute(
            "create function by_them(text) returns text language sql immutable as 'select $1'; \
             create function watched() returns trigger language plpgsql as 'begin return new; end'; \
             create function outbox_emit(text, text, text, text) returns uuid language sql as 'select gen_random_uuid()'",
        )
        .await?;
    for function in ["make_id()", "by_them(text)", "watched()", "outbox_emit(text, text, text, text)"] {
        outbox.execute(&format!("alter function {function} owner to {stranger}")).await?;
    }
    for (place, part) in [
        ("select", "the default of public.event_outbox.event_id uses function public.make_id()"),
        ("select", "calls of outbox_emit uses function public.outbox_emit(text,text,text,text)"),
        ("create index theirs on event_outbox (by_them(topic))", "the index public.theirs"),
        ("alter table event_outbox_pause add constraint theirs check (by_them(topic) <> '')", "the constraint theirs"),
        (
            "create trigger theirs before update on event_outbox_lane for each row execute function watched()",
            "the trigger theirs of public.event_outbox_lane uses function public.watched()",
        ),
    ] {
        outbox.execute(place).await?;
        let finding = expect(&relay, "foreign-objects", "error").await?;
        ensure!(finding["message"].as_str().is_some_and(|message| message.contains(part)), "no {part} in {finding}");
    }
    outbox.execute(&format!("drop owned by {stranger} cascade; drop role {stranger}")).await?;
    let found = findings(&relay).await?;
    ensure!(!found.contains_key("foreign-objects") && !found.contains_key("schema-open"), "{found:?}");

    // An older binary leaves functions without a path of their own.
    outbox.execute("alter function event_once(text, uuid) reset search_path").await?;
    expect(&relay, "foreign-objects", "error").await.map(drop)
}

async fn dead_rows_that_no_vacuum_removes_are_found(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute("alter table event_outbox set (autovacuum_enabled = off)").await?;
    outbox.write_backlog(120_000, 100).await?;
    outbox.execute("update event_outbox set status = 'PUBLISHED', published_at = now()").await?;
    let relay = outbox.relay(&kafka);
    eventually("the dead rows are counted", SOON, || async {
        expect(&relay, "dead-tuples", "warning").await.map_err(|error| format!("{error:#}"))
    })
    .await;
    Ok(())
}

async fn payloads_that_are_not_json_are_found(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute("alter table event_outbox alter column payload type text").await?;
    outbox
        .execute("insert into event_outbox (entity_type, entity_id, event_type, payload) values ('order', 'e', 'X', 'no json')")
        .await?;
    let relay = outbox.relay(&kafka);
    expect(&relay, "payload-not-json", "warning").await?;
    let raw = findings(&relay.with("RELAY_ENVELOPE", "raw")).await?;
    ensure!(!raw.contains_key("payload-not-json"), "{raw:?}");
    Ok(())
}

async fn an_open_transaction_is_found_with_its_session(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut forgotten = outbox.connect().await?;
    forgotten.execute("set application_name = 'a forgotten psql'").await?;
    let mut open = forgotten.begin().await?;
    let pid: i64 = sqlx::query_scalar("select pg_backend_pid()::int8 from (select pg_current_xact_id()) x")
        .fetch_one(&mut *open)
        .await?;
    let relay = outbox.relay(&kafka).argument("--transaction-age").argument("1ms");
    // Other tests have transactions as well, and the check reports only the oldest.
    let finding = eventually("the session is the oldest", SOON, || async {
        let finding = expect(&relay, "transaction-old", "warning").await.map_err(|error| format!("{error:#}"))?;
        let ours = finding["fix"].as_str().is_some_and(|fix| fix.contains(&pid.to_string()));
        if ours { Ok(finding) } else { Err(finding.to_string()) }
    })
    .await;
    let says = |part: &str| finding["message"].as_str().is_some_and(|message| message.contains(part));
    ensure!(says("a forgotten psql") && says(&format!("pid {pid}")) && says("idle in transaction"), "{finding}");
    open.rollback().await?;
    Ok(())
}

async fn a_locked_table_is_found_within_seconds(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut conn = outbox.connect().await?;
    let mut locking = conn.begin().await?;
    locking.execute("lock table event_outbox in access exclusive mode").await?;
    expect(&outbox.relay(&kafka), "database-locked", "warning").await?;
    locking.rollback().await?;
    Ok(())
}

async fn a_topic_that_cannot_take_its_events_is_found(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka);
    expect(&relay, "topic-missing", "error").await?;
    let small = [("max.message.bytes", "2000"), ("min.insync.replicas", "2")];
    kafka.create_topic(&outbox.topic, 2, &small).await?;
    outbox
        .execute("insert into event_outbox (entity_type, entity_id, event_type, payload) values ('order', 'e', 'X', to_jsonb(repeat('x', 5000)))")
        .await?;
    let found = findings(&relay).await?;
    for (id, severity) in
        [("topic-min-isr", "error"), ("message-size-mismatch", "warning"), ("message-too-large", "error")]
    {
        ensure!(found.get(id).is_some_and(|finding| finding["severity"] == severity), "no {id} in {found:?}");
    }
    outbox
        .execute("insert into event_outbox (entity_type, entity_id, event_type, payload, topic) values ('order', 'e', 'X', '{}', 'no topic!')")
        .await?;
    expect(&relay, "topic-illegal", "error").await?;
    outbox
        .execute("insert into event_outbox (entity_type, event_type, payload, topic) select 'order', 'X', '{}', 'many-' || n from generate_series(1, 21) n")
        .await?;
    expect(&relay, "topics-not-all", "note").await.map(drop)
}

async fn records_where_another_partitioner_put_them_are_found(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut client = kafka.client();
    let other: BaseProducer = client.set("partitioner", "consistent").create()?;
    for n in 0..60 {
        let key = format!("entity-{n}");
        other.send(BaseRecord::to(&outbox.topic).key(&key).payload("{}")).map_err(|(error, _)| error)?;
    }
    other.flush(SOON)?;
    let relay = outbox.relay(&kafka);
    expect(&relay, "topic-partitioner", "warning").await?;
    let agreeing = findings(&relay.with("KAFKA_PARTITIONER", "consistent")).await?;
    ensure!(!agreeing.contains_key("topic-partitioner"), "{agreeing:?}");
    Ok(())
}

async fn consumers_that_remember_less_than_the_topic_keeps_are_found(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, PARTITIONS, &[("retention.ms", "7776000000")]).await?;
    let producer: BaseProducer = kafka.client().create()?;
    let three_hours_ago = chrono::Utc::now().timestamp_millis() - 3 * 3_600_000;
    producer
        .send(BaseRecord::to(&outbox.topic).key("e").payload("{}").timestamp(three_hours_ago))
        .map_err(|(error, _)| error)?;
    producer.flush(SOON)?;
    let relay = outbox.relay(&kafka);
    let none_yet = findings(&relay).await?;
    ensure!(!none_yet.contains_key("processed-window"), "{none_yet:?}");
    outbox.execute("select event_once('billing', gen_random_uuid())").await?;
    let forgets = expect(&relay, "processed-window", "warning").await?;
    ensure!(forgets["message"].as_str().is_some_and(|message| message.contains(" 90d,")), "{forgets}");
    outbox.execute("update processed_events set processed_at = now() - interval '4 hours'").await?;
    let long_enough = findings(&relay).await?;
    ensure!(!long_enough.contains_key("processed-window"), "{long_enough:?}");
    Ok(())
}

async fn a_relay_that_starts_logs_what_the_check_finds(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka).start_ready("checking").await?;
    let logged = eventually("the missing topic is logged", SOON, || async {
        let lines: Vec<Value> = relay.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.iter().find(|line| line["finding"] == "topic-missing").cloned().ok_or(lines)
    })
    .await;
    ensure!(
        logged["level"] == "ERROR" && logged["next_step"].as_str().is_some_and(|step| step.contains("--create")),
        "{logged}"
    );
    Ok(())
}

async fn prepared_transactions_and_idle_replication_slots_are_found(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut options = options_for_tests();
    options.settings.push(("max_prepared_transactions".to_owned(), "5".to_owned()));
    let postgres = PrivatePostgres::start(options).await?;
    let outbox = Outbox::on(&postgres, "check-prepared").await?;
    let relay = outbox.relay(&kafka).argument("--transaction-age").argument("1ms");
    let mut conn = outbox.connect().await?;
    conn.execute(sqlx::raw_sql("begin; create table left_behind (); prepare transaction 'forgotten'")).await?;
    expect_and_fix(&outbox, &relay, "transaction-prepared", "warning").await?;
    conn.execute(sqlx::raw_sql(AssertSqlSafe("select pg_create_physical_replication_slot('nobody', true)"))).await?;
    expect_and_fix(&outbox, &relay, "replication-slot", "warning").await?;
    postgres.stop().await;
    Ok(())
}

/// Both brokers answer at the bootstrap address, and send clients elsewhere.
async fn an_advertised_address_that_leads_nowhere_is_found(database: TestDatabase) -> anyhow::Result<()> {
    let dead = format!("PLAINTEXT://127.0.0.1:{}", free_port()?);
    for (advertised, id) in
        [(dead.as_str(), "broker-unreachable"), ("PLAINTEXT://no-such-host.invalid:9092", "broker-name")]
    {
        let listeners = [("advertised.listeners", advertised.to_owned())];
        let start = move || RealKafka::start(&listeners.each_ref().map(|(name, value)| (*name, value.as_str())));
        let kafka = tokio::task::spawn_blocking(start).await??;
        let found = expect(&Relay::new(&database.url(), &kafka.bootstrap()), id, "error").await?;
        let address = advertised.trim_start_matches("PLAINTEXT://");
        ensure!(found["message"].as_str().is_some_and(|message| message.contains(address)), "{found}");
    }
    Ok(())
}

async fn events_that_are_older_than_their_topic_keeps_are_found(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, 3, &[("retention.ms", "3600000")]).await?;
    outbox.write("e", 1, 3).await?;
    let relay = outbox.relay(&kafka).with("RELAY_STATUS_INTERVAL", "1s");
    let id = "events-expire";
    ensure!(!findings(&relay).await?.contains_key(id));
    outbox.execute("update event_outbox set created_at = now() - interval '2 days'").await?;
    let found = expect(&relay, id, "warning").await?;
    ensure!(found["message"].as_str().is_some_and(|message| message.contains(&outbox.topic)), "{found}");
    ensure!(!findings(&outbox.relay(&kafka).with("RELAY_TIMESTAMP", "publish")).await?.contains_key(id));
    let pause = outbox.relay(&kafka).argument("--all").argument("--reason").argument("a trial");
    ensure!(pause.output("pause").await?.code == Some(0));
    let running = relay.argument("--no-check").start_ready("expiring").await?;
    let line = running.wait_for_line("OR-3114", |line| line["topic"] == outbox.topic).await;
    ensure!(line["retention_s"] == 3600 && line["oldest_event_s"].as_u64() >= Some(172_000), "{line}");
    ensure!(running.stop().await? == Some(0));
    Ok(())
}

async fn servers_that_are_away_are_found() -> anyhow::Result<()> {
    let url = format!("postgres://relay@127.0.0.1:{}/app", free_port()?);
    let relay = Relay::new(&url, &format!("127.0.0.1:{}", free_port()?));
    let found = findings(&relay).await?;
    let ids: Vec<_> = found.keys().map(String::as_str).collect();
    ensure!(ids == ["broker-unreachable", "database-unreachable"], "{found:?}");
    Ok(())
}

async fn a_database_that_cannot_be_written_is_found(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let relay = Relay::new(&database.url(), &kafka.bootstrap());
    ensure!(!findings(&relay).await?.contains_key("database-read-only"));
    let read_only = format!("{}&options=-c%20default_transaction_read_only%3Don", database.url());
    expect(&Relay::new(&read_only, &kafka.bootstrap()), "database-read-only", "error").await?;
    Ok(())
}

async fn a_database_that_lets_nobody_in_is_found_with_the_reason(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let url = database.url();
    let (_, host) = url.rsplit_once('@').context("a user")?;
    for (url, id) in [
        (format!("postgres://postgres:wrong@{host}"), "database-login"),
        (url.replace(&format!("/{}?", database.name()), "/missing?"), "database-name"),
        (url.replace("sslmode=disable", "sslmode=require"), "database-tls"),
    ] {
        expect(&Relay::new(&url, &kafka.bootstrap()), id, "error").await?;
    }
    Ok(())
}

async fn a_pooler_is_found_and_whether_it_keeps_prepared_statements(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let by_transaction = PgBouncer::start(&database, "transaction").await?;
    let relay = Relay::new(by_transaction.url(), &kafka.bootstrap());
    let without = relay.clone().with("RELAY_PREPARED_STATEMENTS", false);
    expect(&without, "pooler-transaction", "note").await?;
    expect(&relay, "pooler-prepared-statements", "error").await?;
    by_transaction.stop();

    // With one server, no statement is ever executed on another one, and nothing may wait for a second one.
    let by_transaction = PgBouncer::with_one_server(&database, "transaction").await?;
    let relay = Relay::new(by_transaction.url(), &kafka.bootstrap());
    let found = tokio::time::timeout(SOON, expect(&relay, "pooler-transaction", "note")).await;
    found.context("it waits for a server")??;
    by_transaction.stop();

    let by_session = PgBouncer::start(&database, "session").await?;
    let relay = Relay::new(by_session.url(), &kafka.bootstrap());
    // The server process was started for the client that checked whether the pooler is up, so the process gets older by itself.
    eventually("the process is older than the connection", SOON, || async {
        expect(&relay, "pooler-session", "note").await.map_err(|error| format!("{error:#}"))
    })
    .await;
    let direct = findings(&Relay::new(&database.url(), &kafka.bootstrap())).await?;
    ensure!(direct.keys().all(|id| !id.starts_with("pooler")), "{direct:?}");
    by_session.stop();
    Ok(())
}

async fn a_relay_works_behind_a_transaction_pooler(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write_backlog(5_000, 50).await?;
    let pooler = PgBouncer::start(&database, "transaction").await?;
    let relay = Relay::new(pooler.url(), &kafka.bootstrap())
        .with("RELAY_TOPIC", &outbox.topic)
        .with("RELAY_PREPARED_STATEMENTS", false);
    let running = relay.start_ready("pooled").await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    let status = relay.clone().argument("--json").output("status").await?;
    ensure!(status.code == Some(0) && status.stdout.contains("\"pooled\""), "{status:?}");
    for command in ["check", "verify", "migrate"] {
        let output = relay.output(command).await?;
        ensure!(output.code == Some(0), "{command}: {output:?}");
    }
    let exactly_once = relay.clone().with("RELAY_DELIVERY", "exactly_once");
    for command in ["check", "status"] {
        let output = exactly_once.clone().argument("--json").output(command).await?;
        ensure!(output.code == Some(0) && !output.stdout.contains("26000"), "{command}: {output:?}");
    }
    let other = relay.clone().with("RELAY_TABLE", "other_outbox").with("RELAY_PROCESSED_TABLE", "other_processed");
    let migrated = other.output("migrate").await?;
    ensure!(migrated.code == Some(0) && migrated.stdout.contains("version 0 ->"), "{migrated:?}");
    ensure!(running.stop().await? == Some(0), "the relay did not stop cleanly");
    pooler.stop();
    Ok(())
}

async fn a_clock_that_is_wrong_is_found(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let library = std::fs::read_dir("/usr/lib")?
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketime.so.1")))
        .find(|path| path.exists())
        .ok_or_else(|| Missing("faketime is not installed".to_owned()))?;
    let relay = Relay::new(&database.url(), &kafka.bootstrap());
    let right = findings(&relay).await?;
    ensure!(!right.contains_key("clock-skew"), "{right:?}");
    // Shifts the time of day, but not the clock that measures intervals.
    let wrong = relay.with("LD_PRELOAD", library.display()).with("FAKETIME_DONT_FAKE_MONOTONIC", 1);
    for (shift, says) in [("+4s", "ahead of"), ("-4s", "behind")] {
        let finding = expect(&wrong.clone().with("FAKETIME", shift), "clock-skew", "warning").await?;
        ensure!(finding["message"].as_str().is_some_and(|message| message.contains(says)), "{finding}");
    }
    Ok(())
}

async fn what_a_configuration_exposes_is_found_and_logged_once() -> anyhow::Result<()> {
    let far = |parameters: &str| format!("postgres://relay:hunter2@db.invalid/app{parameters}");
    let relay = Relay::new(&far(""), "kafka.invalid:9092");
    for id in ["database-plaintext", "broker-plaintext"] {
        expect(&relay, id, "warning").await?;
    }
    let relay = relay.with("DATABASE_URL", far("?sslmode=require"));
    let unverified =
        relay.clone().with("KAFKA_SECURITY_PROTOCOL", "ssl").with("KAFKA_ENABLE_SSL_CERTIFICATE_VERIFICATION", "false");
    for id in ["database-unverified", "broker-unverified"] {
        expect(&unverified, id, "warning").await?;
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "hunter2hunter2hunter2")?;
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644))?;
    let relay = relay
        .with("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext")
        .with("KAFKA_SASL_MECHANISM", "PLAIN")
        .with("KAFKA_SASL_USERNAME", "relay")
        .with("RELAY_ADMIN_TOKEN_FILE", file.path().display())
        .argument("--set")
        .argument("kafka.sasl.password=hunter2");
    for id in ["broker-password-plaintext", "secret-argument", "secret-readable"] {
        let finding = expect(&relay, id, "warning").await?;
        ensure!(!finding.to_string().contains("hunter2"), "{finding}");
    }
    let running = relay.start("exposed")?;
    let line = running.wait_for("OR-1005").await;
    let ids = "database-unverified broker-plaintext broker-password-plaintext secret-argument secret-readable";
    ensure!(line["level"] == "WARN" && line["findings"] == ids && !line.to_string().contains("hunter2"), "{line}");
    running.wait_for("OR-2001").await;
    ensure!(running.lines("OR-1005").len() == 1 && running.lines("check_finding").is_empty(), "{:?}", running.log());
    Ok(())
}

async fn brokers_that_refuse_the_login_are_found(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    // The listener knows no login.
    let relay = Relay::new(&database.url(), &kafka.bootstrap())
        .with("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext")
        .with("KAFKA_SASL_MECHANISM", "PLAIN")
        .with("KAFKA_SASL_USERNAME", "relay")
        .with("KAFKA_SASL_PASSWORD", "hunter2");
    let finding = expect(&relay, "broker-login", "error").await?;
    ensure!(!finding.to_string().contains("hunter2"), "{finding}");
    Ok(())
}

async fn what_exactly_once_lacks_in_the_database_is_found_and_fixed(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write("e", 1, 20).await?;
    let (user, relay) = with_user(&database, &outbox, &kafka).await?;
    grant(&outbox, &user).await?;
    let relay = relay.with("RELAY_DELIVERY", "exactly_once");
    let finding = expect(&relay, "rights-missing", "error").await?;
    let grant = finding["fix"].as_str().and_then(|fix| fix.split_once("or: ")).context("a grant")?.1;
    outbox.execute(grant).await?;
    // The relay would create the topic.
    let finding = expect(&relay, "progress-topic", "warning").await?;
    let topic = finding["message"].as_str().and_then(|message| message.split(' ').nth(3)).context("a name")?;
    kafka.create_topic(topic, 3, &[]).await?;
    let finding = expect(&relay, "progress-topic", "error").await?;
    ensure!(
        finding["fix"].as_str().is_some_and(|fix| fix.ends_with(&format!("--topic {topic} --partitions 16"))),
        "{finding}"
    );
    kafka.delete_topic(topic).await?;
    kafka.create_topic(topic, 16, &[]).await?;
    let found = findings(&relay).await?;
    let ids: Vec<_> = found.keys().map(String::as_str).collect();
    ensure!(ids == ["sessions-hidden", "topic-single-replica"], "{found:?}");
    outbox.execute(&format!("drop owned by {user}")).await.map(drop)
}

async fn relays_that_do_not_go_together_are_found_for_as_long_as_both_live(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_STATUS_INTERVAL", "1s");
    let one = settings.start_ready("one").await?;
    eventually("a lone relay is at peace", SOON, || async {
        let found = findings(&settings).await.map_err(|error| format!("{error:#}"))?;
        if found.contains_key("relays-differ") || found.contains_key("relay-name-shared") {
            Err(format!("{found:?}"))
        } else {
            Ok(())
        }
    })
    .await;
    let two = settings.clone().with("RELAY_TOPIC", "elsewhere").start_ready("one").await?;
    for (code, id, part) in [
        ("OR-5007", "relays-differ", "RELAY_TOPIC is \"elsewhere\""),
        ("OR-5008", "relay-name-shared", "\"one\" (2 relays)"),
    ] {
        let logged = one.wait_for(code).await;
        ensure!(logged["level"] == "WARN" && logged["next_step"].is_string(), "{logged}");
        let line = one.wait_for_line("status", |line| line["conflicts"].is_string()).await;
        let finding = expect(&settings, id, "warning").await?;
        let status = settings.clone().argument("--json").output("status").await?;
        let json: Value = serde_json::from_str(&status.stdout)?;
        let conflicts = json["conflicts"].as_array().context("conflicts")?;
        let conflict = conflicts.iter().find(|conflict| conflict["code"] == code).context("the conflict")?;
        ensure!(conflict["is_lasting"] == false && conflict["since_s"].is_f64(), "{conflict}");
        let text = settings.output("status").await?.stdout;
        for shown in
            [&logged["reason"], &line["conflicts"], &finding["message"], &conflict["message"], &Value::from(text)]
        {
            ensure!(shown.as_str().is_some_and(|shown| shown.contains(part)), "no {part} in {shown}");
        }
    }
    // As if both had been there for eleven minutes.
    outbox.execute("update event_outbox_relay set started_at = started_at - interval '11 minutes'").await?;
    for (code, id) in [("OR-5007", "relays-differ"), ("OR-5008", "relay-name-shared")] {
        one.wait_for_line(code, |line| line["level"] == "ERROR").await;
        expect(&settings, id, "error").await?;
        ensure!(one.lines(code).len() == 2, "{:?}", one.lines(code));
    }
    ensure!(two.stop().await? == Some(0));
    for (code, id) in [("OR-5007", "relays-differ"), ("OR-5008", "relay-name-shared")] {
        one.wait_for_end_of(code).await;
        ensure!(!findings(&settings).await?.contains_key(id), "{id}");
    }
    ensure!(one.stop().await? == Some(0));
    Ok(())
}

/// The ids are compared, because the addresses of one cluster may differ.
async fn relays_of_two_clusters_are_found(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let other = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka);
    let one = with_admin(relay.clone()).start_ready("one").await?;
    let alias = kafka.bootstrap().replace("127.0.0.1", "localhost");
    let alias = relay.clone().with("KAFKA_BOOTSTRAP_SERVERS", &alias).start_ready("alias").await?;
    let rows = "select count(*) from event_outbox_relay where settings::jsonb ? 'cluster.id'";
    eventually("both relays report their cluster", SOON, || async {
        match outbox.number(rows).await {
            Ok(2) => Ok(()),
            other => Err(other.map_err(|error| error.to_string())),
        }
    })
    .await;
    let ids = "select count(distinct settings::jsonb ->> 'cluster.id') from event_outbox_relay";
    ensure!(outbox.number(ids).await? == 1, "one cluster has two ids");
    ensure!(!findings(&relay).await?.contains_key("relays-differ"), "one cluster has two addresses");
    let two = relay.clone().with("KAFKA_BOOTSTRAP_SERVERS", other.bootstrap()).start_ready("two").await?;
    let logged = one.wait_for("OR-5007").await;
    let cluster = |name: &str| {
        let id = format!("select settings::jsonb ->> 'cluster.id' from event_outbox_relay where name = '{name}'");
        let outbox = outbox.clone();
        async move {
            anyhow::Ok(
                sqlx::query_scalar::<_, String>(AssertSqlSafe(id)).fetch_one(&mut outbox.connect().await?).await?,
            )
        }
    };
    let part = format!("{:?} in \"two\"", cluster("two").await?);
    ensure!(
        logged["reason"].as_str().is_some_and(|reason| reason.contains("cluster.id") && reason.contains(&part)),
        "{logged}"
    );
    let finding = expect(&relay, "relays-differ", "warning").await?;
    ensure!(finding["message"].as_str().is_some_and(|message| message.contains(&part)), "{finding}");
    let admin = Admin::from_relay(&one).await?;
    let text = admin.get("/metrics").await.map_err(|error| anyhow::anyhow!("{error:?}"))?.body;
    let age = |code: &str| -> Option<f64> {
        text.lines()
            .find_map(|line| line.strip_prefix(&format!("outbox_relay_conflict_seconds{{code=\"{code}\"}} ")))?
            .parse()
            .ok()
    };
    ensure!(age("OR-5007") > Some(0.0) && age("OR-5008") == Some(0.0), "{text}");
    ensure!(two.stop().await? == Some(0));
    one.wait_for_end_of("OR-5007").await;
    eventually("the metric says that it is over", SOON, || async {
        let text = admin.get("/metrics").await.map_err(|error| format!("{error:?}"))?.body;
        text.contains("outbox_relay_conflict_seconds{code=\"OR-5007\"} 0.0\n").then_some(()).ok_or(text)
    })
    .await;
    ensure!(alias.stop().await? == Some(0) && one.stop().await? == Some(0));
    Ok(())
}

/// Tests a cluster that cannot keep the state of transactions, and that accepts little metadata with an offset.
async fn what_exactly_once_lacks_in_the_cluster_is_found(database: TestDatabase) -> anyhow::Result<()> {
    let settings = [("transaction.state.log.replication.factor", "3"), ("offset.metadata.max.bytes", "1024")];
    let kafka = tokio::task::spawn_blocking(move || RealKafka::start(&settings)).await??;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).with("RELAY_DELIVERY", "exactly_once");
    let finding = expect(&relay, "transactions-unusable", "error").await?;
    ensure!(finding["fix"].as_str().is_some_and(|fix| fix.contains("__transaction_state")), "{finding}");
    let finding = expect(&relay, "progress-small", "note").await?;
    ensure!(finding["message"].as_str().is_some_and(|message| message.contains("1024")), "{finding}");
    Ok(())
}

/// Starts a TLS server with a self-signed certificate; only the handshake is needed.
async fn a_certificate_that_nobody_trusts_is_found() -> anyhow::Result<()> {
    let openssl = "/usr/bin/openssl";
    if !std::path::Path::new(openssl).exists() {
        return Err(Missing("openssl is not installed".to_owned()).into());
    }
    let mut directory = TemporaryDirectory::create(None)?;
    let (key, certificate) = (directory.path().join("key.pem"), directory.path().join("certificate.pem"));
    let made = std::process::Command::new(openssl)
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = free_port()?;
    let command = ServerCommand::new(openssl, directory.path(), &directory.path().join("log"))
        .args(["s_server", "-quiet", "-accept", &port.to_string(), "-key"])
        .args([&key])
        .args(["-cert"])
        .args([&certificate])
        .stops_on(Signal::SIGTERM, SOON);
    let mut server = ChildServer::start(&command)?;
    directory.outlives(&server)?;
    let relay = Relay::new(&format!("postgres://relay@127.0.0.1:{}/app", free_port()?), &format!("127.0.0.1:{port}"))
        .with("KAFKA_SECURITY_PROTOCOL", "ssl");
    // The server may not be listening yet.
    eventually("the certificate is refused", SOON, || async {
        expect(&relay, "broker-tls", "error").await.map_err(|error| format!("{error:#}"))
    })
    .await;
    server.stop();
    Ok(())
}

async fn an_old_postgres_is_refused_with_the_next_step() -> anyhow::Result<()> {
    let options = PostgresOptions { binaries: BinariesFrom::Version(13), ..options_for_tests() };
    let postgres = PrivatePostgres::start(options).await?;
    let relay = Relay::new(&postgres.url("postgres"), &format!("127.0.0.1:{}", free_port()?));
    let lines = [
        "migrate",
        "migrate --roles",
        "run",
        "run --migrate",
        "status",
        "explain --entity order-7",
        "explain-route 4711",
        "tail",
        "pause --list",
        "dead list",
        "replay --all --dry-run",
        "prune --mode delete --after 7d --dry-run",
        "capture --list",
        "adopt outbox --dry-run",
    ];
    for line in lines {
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let output = words.fold(relay.clone(), |relay, word| relay.argument(word)).output(command).await?;
        let said = ["OR-2105", "PostgreSQL 13", "14 or newer", "pg_upgrade"];
        let is_said = said.iter().all(|text| output.stderr.contains(text));
        // The hint of a database without an outbox would send the operator from one refusal to the next.
        ensure!(
            output.code == Some(1) && is_said && !output.stderr.contains("outbox-relay migrate"),
            "{line}: {output:?}"
        );
    }
    let found = expect(&relay, "server-old", "error").await?;
    ensure!(found["fix"].as_str().is_some_and(|fix| fix.contains("pg_upgrade")), "{found}");
    postgres.stop().await;
    Ok(())
}

/// Findings that cannot be provoked on one broker without users and on a sound server.
const NOT_PROVOKED: [&str; 7] = [
    "database-slow",
    "progress-single-replica",
    "topic-config-hidden",
    "topic-leaderless",
    "topic-unauthorized",
    "topic-unusable",
    "transactions-unauthorized",
];

async fn every_finding_is_provoked_here_and_explained_in_the_documents() -> anyhow::Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (document, trials) = (
        std::fs::read_to_string(root.join("docs/reference/findings.md"))?,
        std::fs::read_to_string(root.join(file!()))?,
    );
    let mut files: Vec<_> = std::fs::read_dir(root.join("src/inspect/check"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.push(root.join("src/inspect/check.rs"));
    let codes = std::fs::read_to_string(root.join("crates/event-outbox/src/code.rs"))?;
    let mut ids = 0;
    for file in files {
        for made in std::fs::read_to_string(file)?.split("Finding::").skip(1) {
            let Some((_, rest)) = made.split_once('(').filter(|(name, _)| ["error", "warning", "note"].contains(name))
            else {
                continue;
            };
            // The definitions themselves have no literal there.
            let Some((variant, _)) = rest.trim_start().strip_prefix("Code::").and_then(|rest| rest.split_once(','))
            else {
                continue;
            };
            let id = codes.split_once(&format!(" {variant} \"")).and_then(|(_, rest)| rest.split_once('"'));
            let (id, _) = id.context("a code of the table")?;
            ids += 1;
            ensure!(document.contains(&format!("| `{id}` |")), "docs/reference/findings.md does not explain {id}");
            ensure!(trials.contains(&format!("\"{id}\"")), "nothing provokes {id}");
        }
    }
    ensure!(ids > 30 && NOT_PROVOKED.iter().all(|id| document.contains(id)), "{ids} findings");
    Ok(())
}
