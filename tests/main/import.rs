//! Tests `outbox-relay import debezium`: its verdicts, the files that it writes, and the trigger.

pub(crate) mod names;
pub(crate) mod secrets;
pub(crate) mod wakes;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::kafka::RealKafka;
use lab::relay::Output;
use lab::{Outbox, Relay, TestDatabase, trials};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

use crate::parity::cases::{self, Case, Stop};

mod order;

use order::each_trigger_keeps_the_order_that_the_pages_say;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            a_connector_that_cannot_be_taken_over_names_what_is_wrong_and_leaves_nothing,
            only_an_option_of_the_file_that_the_trigger_does_not_need_can_be_given_up,
            without_a_database_the_columns_are_assumed_or_named,
            files_are_replaced_only_with_force,
            no_password_of_a_connector_is_shown;
        with_postgres:
            rows_at_which_the_connector_stops_become_events,
            a_table_or_a_column_that_does_not_fit_is_refused_by_command_and_sql,
            one_statement_undoes_the_trigger,
            entities_are_locked_in_order_and_without_deadlock,
            a_statement_of_many_rows_becomes_events_in_order,
            each_trigger_keeps_the_order_that_the_pages_say,
            no_right_and_no_search_path_of_the_application_matters;
        with_both:
            events_of_the_trigger_go_to_their_topic_key_and_partition;
    }
}

/// A directory with a connector's file.
struct Imported {
    directory: tempfile::TempDir,
}

impl Imported {
    fn new(name: &str, content: &str) -> anyhow::Result<(Self, PathBuf)> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join(name);
        fs::write(&file, content)?;
        Ok((Self { directory }, file))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a path of UTF-8")
}

async fn run(relay: &Relay, file: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let start = relay.clone().argument("debezium").argument(shown(file));
    arguments.iter().fold(start, |relay, argument| relay.argument(argument)).output("import").await
}

/// Imports a case and creates its table and its trigger.
pub(crate) async fn take_over(
    outbox: &Outbox,
    relay: &Relay,
    case: &Case,
    arguments: &[&str],
) -> anyhow::Result<String> {
    outbox.connect().await?.execute(sqlx::raw_sql(AssertSqlSafe(case.table.to_owned()))).await?;
    let connector = json!({"name": case.name, "config": case.options(None)}).to_string();
    let (imported, file) = Imported::new("connector.json", &connector)?;
    let sql = imported.path("trigger.sql");
    let arguments: Vec<&str> = [&["--sql", shown(&sql), "--json"], arguments].concat();
    let output = run(relay, &file, &arguments).await?;
    ensure!(output.code == Some(0), "{}: {output:?}", case.name);
    let trigger = fs::read_to_string(&sql)?;
    apply(outbox, &trigger).await.with_context(|| trigger.clone())?;
    let undo = serde_json::from_str::<Value>(&output.stdout)?["undo"].as_str().context("undo")?.to_owned();
    ensure!(trigger.contains(&undo), "{trigger}");
    Ok(undo)
}

/// Runs statements in one transaction, as `psql --single-transaction` does.
pub(crate) async fn apply(outbox: &Outbox, sql: &str) -> anyhow::Result<()> {
    let mut connection = outbox.connect().await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("begin; {sql}; commit")))).await?;
    Ok(())
}

fn case(name: &str) -> anyhow::Result<Case> {
    cases::cases().into_iter().find(|case| case.name == name).with_context(|| name.to_owned())
}

/// Drops the table of the last case and empties the outbox.
async fn clear(outbox: &Outbox) -> anyhow::Result<()> {
    apply(outbox, "drop table if exists outbox cascade; drop schema if exists shop cascade; truncate event_outbox")
        .await?;
    let left = outbox.number("select count(*) from pg_proc where proname like 'event_outbox_from_%'").await?;
    ensure!(left == 0, "{left} functions are left");
    Ok(())
}

/// Returns the records that a relay would send for the rows of the outbox.
async fn records(outbox: &Outbox, partitions: i32) -> anyhow::Result<Vec<Value>> {
    let rows =
        sqlx::query("select entity_id, payload_bytes, headers, topic, event_id::text from event_outbox order by id")
            .fetch_all(&mut outbox.connect().await?)
            .await?;
    let record = |row: &sqlx::postgres::PgRow| {
        let (key, value): (Option<String>, Option<Vec<u8>>) = (row.get(0), row.get(1));
        let mut headers: Value = row.get(2);
        let named = headers.as_object_mut().and_then(|headers| headers.remove("outbox-partition"));
        let named = named.and_then(|partition| partition.as_str().and_then(|text| text.parse::<i32>().ok()));
        if headers["id"].is_null() {
            headers["id"] = json!(row.get::<String, _>(4));
        }
        let partition = named
            .unwrap_or_else(|| lab::murmur2::java_partition(key.as_deref().unwrap_or_default().as_bytes(), partitions));
        let value = value.map_or(Value::Null, |bytes| match String::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(error) => json!({"hex": error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>()}),
        });
        json!({"topic": row.get::<String, _>(3), "partition": partition, "key": key, "value": value, "headers": headers})
    };
    Ok(rows.iter().map(record).collect())
}

async fn rows_at_which_the_connector_stops_become_events(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    for case in cases::cases() {
        let Some(stop) = case.stops else { continue };
        let undo = take_over(&outbox, &relay, &case, &[]).await?;
        for statement in case.statements(0, 0) {
            apply(&outbox, &statement).await?;
        }
        let made = records(&outbox, 1).await?;
        match stop {
            Stop::Sent(key, value) => {
                ensure!(
                    made.len() == 1 && made[0]["key"] == key && made[0]["value"] == value,
                    "{}: {made:?}",
                    case.name
                );
            }
            // The relay refuses the topic; here is only that the application's transaction commits.
            Stop::Dead => ensure!(made.len() == 1, "{}: {made:?}", case.name),
        }
        apply(&outbox, &undo).await?;
        clear(&outbox).await?;
    }
    Ok(())
}

/// Returns the usual options with changes; null takes one away.
fn options(changes: Value) -> anyhow::Result<String> {
    let mut options = Value::Object(case("json_value")?.options(None));
    let all = options.as_object_mut().context("an object")?;
    all.extend(changes.as_object().context("an object")?.clone());
    all.retain(|_, value| !value.is_null());
    Ok(options.to_string())
}

async fn a_connector_that_cannot_be_taken_over_names_what_is_wrong_and_leaves_nothing() -> anyhow::Result<()> {
    let of = "transforms.outbox.";
    for (content, parts) in [
        ("{\n \"a\": 1,\n".to_owned(), &["line 3", "accepted is a JSON object"][..]),
        ("[]".to_owned(), &["not an object"]),
        (
            "{\n \"slot.name\": \"a\",\n \"slot.name\": \"b\"\n}".to_owned(),
            &["line 3", "\"slot.name\" is there a second time"],
        ),
        (
            options(json!({"connector.class": "io.debezium.connector.mysql.MySqlConnector"}))?,
            &["connector.class", "PostgresConnector"],
        ),
        (
            options(json!({"value.converter": "io.confluent.connect.avro.AvroConverter"}))?,
            &["value.converter", "schema registry"],
        ),
        (options(json!({"value.converter": "com.example.Mine"}))?, &["com.example.Mine is not known", "accepted are"]),
        (
            options(json!({"key.converter": null}))?,
            &["key.converter", "--worker", "hint: change the options", "--ignore cannot give them up"],
        ),
        (
            options(json!({"transforms": "mask,outbox", "transforms.mask.type": "com.example.Mask"}))?,
            &["transforms.mask.type", "com.example.Mask"],
        ),
        (options(json!({"transforms": null}))?, &["no transform is io.debezium.transforms.outbox.EventRouter"]),
        (
            options(json!({format!("{of}route.topic.regex"): "(.*?)x"}))?,
            &["route.topic.regex", "as little as possible"],
        ),
        (
            options(json!({format!("{of}route.topic.replacement"): "all events.$1"}))?,
            &["route.topic.replacement", "illegal names of topics", "' '"],
        ),
        (
            options(json!({format!("{of}route.topic.replacement"): "x.${other}"}))?,
            &["route.topic.replacement", "no group named"],
        ),
        (
            options(json!({format!("{of}table.fields.additional.placement"): "type:header:a,aggregateid:header:a"}))?,
            &["contradict"],
        ),
        (
            options(json!({format!("{of}table.fields.additional.placement"): "type:attic"}))?,
            &["attic", "accepted are header, envelope and partition"],
        ),
        (
            options(json!({format!("{of}table.fields.additional.placement"): "type:header:sequence"}))?,
            &["\"sequence\"", "alias"],
        ),
        (
            options(json!({format!("{of}table.fields.additional.placement"): "type:header:event-type",
                           "header.converter": "org.apache.kafka.connect.json.JsonConverter"}))?,
            &["\"event-type\"", "alias"],
        ),
        (
            options(json!({format!("{of}table.expand.json.payload"): "perhaps"}))?,
            &["table.expand.json.payload", "accepted are true and false"],
        ),
        (
            options(
                json!({format!("{of}table.expand.json.payload"): "true", "value.converter": "org.apache.kafka.connect.storage.StringConverter", "value.converter.schemas.enable": null}),
            )?,
            &["Java object"],
        ),
        (
            options(json!({"column.mask.hash.SHA-256.with.salt.x": "public.outbox.payload"}))?,
            &["column.mask.hash", "changes values"],
        ),
        (options(json!({"some.new.option": "1"}))?, &["some.new.option", "--ignore"]),
        (options(json!({"skipped.operations": "c,u"}))?, &["skipped.operations", "no inserts"]),
        (
            options(
                json!({"predicates": "p", "predicates.p.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
                        "predicates.p.pattern": "other\\..*", format!("{of}predicate"): "p"}),
            )?,
            &["predicate", "not be applied"],
        ),
        (options(json!({"table.include.list": "public.a,public.b"}))?, &["2 tables", "--from-table"]),
        (options(json!({"table.include.list": null}))?, &["table.include.list is missing", "--from-table"]),
    ] {
        let (imported, file) = Imported::new("connector.json", &content)?;
        let (sql, env) = (imported.path("trigger.sql"), imported.path("relay.env"));
        let output = run(&Relay::bare(), &file, &["--sql", shown(&sql), "--env", shown(&env)]).await?;
        ensure!(output.code == Some(1), "{parts:?}: {output:?}");
        let said = format!("{}{}", output.stdout, output.stderr);
        for part in parts.iter().chain(&["connector.json"]) {
            ensure!(said.contains(part), "{part:?} is not in {said}");
        }
        let left: Vec<_> = fs::read_dir(imported.directory.path())?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()?;
        ensure!(left == ["connector.json"], "{parts:?}: {left:?}");
    }
    Ok(())
}

async fn only_an_option_of_the_file_that_the_trigger_does_not_need_can_be_given_up() -> anyhow::Result<()> {
    let changes = json!({"some.new.option": "1", "key.converter": "com.example.Mine", "column.mask.hash": "x"});
    let (_imported, file) = Imported::new("connector.json", &options(changes)?)?;
    let mistyped = run(&Relay::bare(), &file, &["--ignore", "some.new.optoin"]).await?;
    let told = ["--ignore some.new.optoin: ", "has no such option", "most similar names are some.new.option, "];
    ensure!(mistyped.code == Some(2) && told.iter().all(|told| mistyped.stderr.contains(told)), "{mistyped:?}");
    let free = run(&Relay::bare(), &file, &[]).await?;
    let told = "--ignore OPTION gives up column.mask.hash, some.new.option, if the effect is not needed";
    ensure!(free.code == Some(1) && free.stderr.contains(told), "{free:?}");
    let needed = run(&Relay::bare(), &file, &["--ignore", "some.new.option", "--ignore", "key.converter"]).await?;
    let told = "--ignore cannot give up key.converter, because the trigger follows from it";
    ensure!(needed.code == Some(1) && needed.stderr.contains(told), "{needed:?}");
    ensure!(needed.stdout.contains("com.example.Mine is not known"), "{needed:?}");
    let (_imported, file) = Imported::new("connector.json", &options(json!({"column.mask.hash": "x"}))?)?;
    let given_up = run(&Relay::bare(), &file, &["--ignore", "column.mask.hash"]).await?;
    ensure!(given_up.code == Some(0) && given_up.stdout.contains("given up by --ignore"), "{given_up:?}");
    Ok(())
}

async fn without_a_database_the_columns_are_assumed_or_named() -> anyhow::Result<()> {
    let binary = case("binary_data")?;
    let (_imported, file) = Imported::new("connector.json", &Value::Object(binary.options(None)).to_string())?;
    let output = run(&Relay::bare(), &file, &["--json", "--column", "payload=bytea"]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let output = run(&Relay::bare(), &file, &["--column", "payload=money"]).await?;
    ensure!(output.code == Some(2) && output.stderr.contains("accepted is NAME=TYPE"), "{output:?}");
    let output = run(&Relay::bare(), &file, &["--column", "payload=absent"]).await?;
    ensure!(output.code == Some(1) && output.stdout.contains("no column \"payload\""), "{output:?}");
    // A schema shows the values of an enum, and the trigger cannot know them.
    let schemas = case("json_schemas")?;
    let (_imported, file) = Imported::new("connector.json", &Value::Object(schemas.options(None)).to_string())?;
    let output = run(&Relay::bare(), &file, &["--column", "aggregateid=enum"]).await?;
    ensure!(output.code == Some(1) && output.stdout.contains("\"aggregateid\" is an enum"), "{output:?}");
    // The worker's converters count if the connector sets none.
    let (imported, file) = Imported::new("connector.properties", "")?;
    let mut text = String::new();
    for (name, value) in case("defaults")?.options(None) {
        if !name.ends_with(".converter") {
            text += &format!("{name}={}\n", value.as_str().unwrap_or_default());
        }
    }
    fs::write(&file, text)?;
    let worker = imported.path("worker.properties");
    let json = "org.apache.kafka.connect.json.JsonConverter";
    fs::write(
        &worker,
        format!("bootstrap.servers=kafka-1:9092,kafka-2:9092\nkey.converter={json}\nvalue.converter={json}\n"),
    )?;
    let (sql, env) = (imported.path("trigger.sql"), imported.path("relay.env"));
    let output =
        run(&Relay::bare(), &file, &["--worker", shown(&worker), "--sql", shown(&sql), "--env", shown(&env)]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    ensure!(fs::read_to_string(&sql)?.contains("{\"schema\":"), "{}", fs::read_to_string(&sql)?);
    let env = fs::read_to_string(&env)?;
    ensure!(
        env.contains("\nKAFKA_BOOTSTRAP_SERVERS=kafka-1:9092,kafka-2:9092\n")
            && env.contains("\nRELAY_ENVELOPE=debezium\n"),
        "{env}"
    );
    Ok(())
}

async fn files_are_replaced_only_with_force() -> anyhow::Result<()> {
    let (imported, file) = Imported::new("connector.json", &options(json!({}))?)?;
    let (sql, env) = (imported.path("trigger.sql"), imported.path("relay.env"));
    fs::write(&env, "mine")?;
    let arguments = ["--sql", shown(&sql), "--env", shown(&env)];
    let output = run(&Relay::bare(), &file, &arguments).await?;
    ensure!(output.code == Some(2) && output.stderr.contains("--force"), "{output:?}");
    ensure!(!sql.exists() && fs::read_to_string(&env)? == "mine");
    let output = run(&Relay::bare(), &file, &[&arguments[..], &["--force"]].concat()).await?;
    ensure!(output.code == Some(0) && sql.exists() && fs::read_to_string(&env)? != "mine", "{output:?}");
    Ok(())
}

async fn no_password_of_a_connector_is_shown() -> anyhow::Result<()> {
    let secret = "hunter-two";
    let changes = json!({"database.password": secret, "database.sslpassword": secret, "database.user": "debezium",
        "producer.override.sasl.jaas.config": secret});
    let (imported, file) = Imported::new("connector.json", &options(changes)?)?;
    let (sql, env) = (imported.path("trigger.sql"), imported.path("relay.env"));
    for arguments in [&["--sql", shown(&sql), "--env", shown(&env)][..], &["--json"]] {
        let output = run(&Relay::bare(), &file, arguments).await?;
        ensure!(output.code == Some(0), "{output:?}");
        ensure!(output.stdout.contains("database.password") && !format!("{output:?}").contains(secret), "{output:?}");
    }
    ensure!(!fs::read_to_string(&env)?.contains(secret) && !fs::read_to_string(&sql)?.contains(secret));
    Ok(())
}

async fn a_table_or_a_column_that_does_not_fit_is_refused_by_command_and_sql(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let asked = Relay::bare().with("DATABASE_URL", database.url());
    let (imported, file) = Imported::new("connector.json", &options(json!({}))?)?;
    let output = run(&asked, &file, &[]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("\"public\".\"outbox\" does not exist"), "{output:?}");
    let sql = imported.path("trigger.sql");
    let output = run(&Relay::bare(), &file, &["--sql", shown(&sql)]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let trigger = fs::read_to_string(&sql)?;
    let refused = |error: anyhow::Error, part: &str| {
        let said = format!("{error:#}");
        ensure!(said.contains(part), "{part:?} is not in {said}");
        Ok(())
    };
    refused(
        apply(&outbox, &trigger).await.err().context("no table")?,
        "the table \"public\".\"outbox\" does not exist",
    )?;
    apply(&outbox, "create table outbox (id uuid, aggregatetype text, aggregateid text, type text, payload money)")
        .await?;
    refused(apply(&outbox, &trigger).await.err().context("money")?, "the column payload has the type money")?;
    let output = run(&asked, &file, &[]).await?;
    ensure!(output.code == Some(1) && output.stdout.contains("type money, which cannot be kept"), "{output:?}");
    apply(&outbox, "alter table outbox drop payload").await?;
    refused(apply(&outbox, &trigger).await.err().context("no payload")?, "the column payload is missing")?;
    let output = run(&asked, &file, &[]).await?;
    ensure!(output.code == Some(1) && output.stdout.contains("no column \"payload\""), "{output:?}");
    clear(&outbox).await
}

async fn one_statement_undoes_the_trigger(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    for arguments in [&[][..], &["--order", "strict"], &["--bulk"]] {
        let case = case("expand")?;
        let undo = take_over(&outbox, &relay, &case, arguments).await?;
        ensure!(outbox.number("select count(*) from pg_trigger where tgname like 'event_outbox_from_%'").await? > 0);
        apply(&outbox, &undo).await?;
        apply(&outbox, &case.statements(0, 0)[0]).await?;
        ensure!(outbox.number("select count(*) from event_outbox").await? == 0);
        clear(&outbox).await?;
    }
    Ok(())
}

/// Two transactions write two entities in opposite orders, without locks of their own. Both commit, and neither deadlocks.
async fn entities_are_locked_in_order_and_without_deadlock(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    take_over(&outbox, &relay, &case("defaults")?, &["--order", "strict"]).await?;
    let writing = (0..2).map(|writer| {
        let outbox = &outbox;
        async move {
            let mut connection = outbox.connect().await?;
            for n in 0..40 {
                let keys = if writer == 0 { ["a", "b"] } else { ["b", "a"] };
                let mut tx = connection.begin().await?;
                for key in keys {
                    let sql = "insert into outbox select gen_random_uuid(), 'order', $1, 'x', to_jsonb($2::int)";
                    sqlx::query(sql).bind(key).bind(n).execute(&mut *tx).await?;
                }
                tx.commit().await?;
            }
            anyhow::Ok(())
        }
    });
    for done in futures_util::future::join_all(writing).await {
        done?;
    }
    ensure!(outbox.number("select count(*) from event_outbox").await? == 160);
    // A writer that holds the lock of `outbox_emit` holds the trigger's commit up: they take the same lock.
    let mut holder = outbox.connect().await?;
    let mut held = holder.begin().await?;
    held.execute("select outbox_emit('defaults', 'a', 'x', '{}')").await?;
    let mut waiting = outbox.connect().await?;
    waiting.execute("set lock_timeout = '100ms'").await?;
    let insert = "insert into outbox values (gen_random_uuid(), 'defaults', 'a', 'x', '{}')";
    let refused = waiting.execute(insert).await.err().context("the lock is not taken")?;
    ensure!(refused.as_database_error().and_then(|error| error.code()).as_deref() == Some("55P03"), "{refused}");
    held.rollback().await?;
    waiting.execute(insert).await?;
    Ok(())
}

async fn a_statement_of_many_rows_becomes_events_in_order(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    for arguments in [&[][..], &["--order", "strict"], &["--bulk"]] {
        let undo = take_over(&outbox, &relay, &case("defaults")?, arguments).await?;
        outbox
            .execute("insert into outbox select gen_random_uuid(), 'order', 'o-' || n % 7, 'x', to_jsonb(n) from generate_series(1, 500) n")
            .await?;
        let inverted = outbox
            .number("select count(*) from (select convert_from(payload_bytes, 'UTF8')::int - lag(convert_from(payload_bytes, 'UTF8')::int) over (order by id) as step from event_outbox) s where step <> 1")
            .await?;
        ensure!(
            inverted == 0 && outbox.number("select count(*) from event_outbox").await? == 500,
            "{arguments:?}: {inverted}"
        );
        apply(&outbox, &undo).await?;
        clear(&outbox).await?;
    }
    Ok(())
}

/// The application may only write its own table, and has a schema on its path in which every operator is another.
async fn no_right_and_no_search_path_of_the_application_matters(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    take_over(&outbox, &relay, &case("expand_schemas")?, &[]).await?;
    let role = format!("app_{}", database.name());
    apply(
        &outbox,
        &format!(
            "create role {role}; grant insert, select on outbox to {role}; create schema traps; grant usage on schema traps to {role}; \
             create function traps.join(text, text) returns text language sql as $$select 'trapped'$$; \
             create operator traps.|| (function = traps.join, leftarg = text, rightarg = text)"
        ),
    )
    .await?;
    let written = apply(
        &outbox,
        &format!(
            "set local role {role}; set local search_path = traps, pg_catalog, public; {}",
            case("expand_schemas")?.statements(0, 0)[0]
        ),
    )
    .await;
    let stolen = apply(
        &outbox,
        &format!(
            "create schema own_{role} authorization {role}; set local role {role}; create table own_{role}.copy (like public.outbox); \
             create constraint trigger stolen after insert on own_{role}.copy for each row execute function event_outbox_from_public_outbox()"
        ),
    )
    .await;
    let made = records(&outbox, 1).await?;
    apply(&outbox, &format!("drop owned by {role}; drop role {role}")).await?;
    written?;
    let stolen = stolen.err().context("another table has the trigger's function")?;
    ensure!(format!("{stolen:#}").contains("permission denied for function"), "{stolen:#}");
    ensure!(made.len() == 1 && !made[0].to_string().contains("trapped"), "{made:?}");
    Ok(())
}

async fn events_of_the_trigger_go_to_their_topic_key_and_partition(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    let mut case = case("headers")?;
    let topic = outbox.topic.clone();
    case.options["transforms.outbox.route.topic.replacement"] = json!(format!("{topic}.${{routedByValue}}"));
    take_over(&outbox, &relay, &case, &[]).await?;
    for statement in case.statements(0, 0) {
        apply(&outbox, &statement).await?;
    }
    // A partition that the topic does not have, and one that is no number: neither stops the others.
    apply(
        &outbox,
        "insert into event_outbox (entity_type, entity_id, event_type, payload, topic, headers) values \
        ('order', 'bad', 'x', '{}', 'irrelevant', '{\"outbox-partition\": \"-1\"}')",
    )
    .await?;
    let topic = format!("{topic}.order");
    kafka.create_topic(&topic, 8, &[]).await?;
    let running = relay
        .with("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())
        .with("RELAY_ENVELOPE", "debezium")
        .start_ready("placed")
        .await?;
    outbox.until_settled().await;
    ensure!(running.stop().await? == Some(0));
    let records = kafka.read_topic(&topic).await?;
    let partitions: Vec<_> =
        records.iter().map(|record| (record.partition, record.header("outbox-partition"))).collect();
    ensure!(partitions.len() == 2 && partitions.contains(&(5, None)) && partitions.contains(&(0, None)), "{records:?}");
    let dead = outbox.row_states("bad").await?;
    ensure!(
        dead.len() == 1
            && dead[0].status == "DEAD"
            && dead[0].last_error.as_deref().is_some_and(|error| error.contains("no partition")),
        "{dead:?}"
    );
    Ok(())
}
