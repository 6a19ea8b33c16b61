//! Tests `adopt`: a polling loop's table is handed over and given back, each row belongs to one side, and nothing else is touched.

mod rows;
mod strangers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::task::JoinHandle;

use lab::kafka::RealKafka;
use lab::relay::Output;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    let own = trials! {
        with_postgres:
            the_meaning_of_columns_is_guessed_and_can_be_said,
            what_cannot_be_kept_in_order_is_refused_and_nothing_is_changed,
            a_dry_run_prints_the_sql_that_adopts,
            only_rows_that_the_loop_would_publish_become_events,
            payloads_and_headers_keep_their_bytes,
            writers_need_no_right_on_the_outbox_and_nobody_else_can_use_the_trigger,
            a_renamed_table_keeps_its_trigger_and_is_given_back_by_its_new_name,
            a_lock_that_is_not_free_is_named_and_nothing_is_changed;
        with_both:
            an_undo_that_ends_too_early_is_repeated_and_goes_on_waiting,
            each_row_is_published_by_one_side_in_order_while_applications_write;
    };
    [own, rows::trials(), strangers::trials()].into_iter().flatten().collect()
}

/// The table of a usual polling loop.
const TABLE: &str = "
    create table public.outbox (
        id bigint generated always as identity primary key, event_uuid uuid not null unique default gen_random_uuid(),
        aggregate_type text not null, aggregate_id text not null, type text not null, payload jsonb not null, headers jsonb,
        created_at timestamptz not null default now(), published boolean not null default false, retries integer not null default 0)";

pub(crate) async fn command(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<Output> {
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("adopt").await
}

async fn adopt(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = command(database, &[arguments, &["--json"]].concat()).await?;
    ensure!(output.code == Some(0) && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

/// Runs statements as one script.
async fn run(connection: &mut PgConnection, script: &str) -> anyhow::Result<()> {
    let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(script.to_owned()))).await;
    done.map(drop).with_context(|| script.to_owned())
}

/// Returns the column or the constant of each role.
fn roles(document: &Value) -> anyhow::Result<BTreeMap<String, String>> {
    let mut roles = BTreeMap::new();
    for part in document["mapping"].as_array().context("no mapping")? {
        let text = |member: &str| part[member].as_str().map(str::to_owned);
        let value = text("column").or_else(|| text("constant").map(|value| format!("={value}")));
        roles.insert(text("role").context("no role")?, value.unwrap_or_default());
    }
    Ok(roles)
}

async fn the_meaning_of_columns_is_guessed_and_can_be_said(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute(TABLE).await?;
    let cases: [(&str, &str, &[&str], Value); 7] = [
        ("", "outbox", &[], json!({"id": "id", "event_id": "event_uuid", "entity_type": "aggregate_type", "entity_id": "aggregate_id",
            "event_type": "type", "payload": "payload", "headers": "headers", "created_at": "created_at", "pending": "published"})),
        // The names of a .NET loop: a uuid as the key, a sequence beside it, and a time.
        ("create table public.\"OutboxMessages\" (\"Id\" uuid primary key, \"Sequence\" bigserial, \"AggregateType\" varchar(50) not null,
            \"AggregateId\" uuid not null, \"Type\" varchar not null, \"Content\" text not null, \"OccurredOn\" timestamp not null,
            \"ProcessedOn\" timestamp)", "\"OutboxMessages\"", &[],
         json!({"id": "Sequence", "event_id": "Id", "entity_type": "AggregateType", "entity_id": "AggregateId", "event_type": "Type",
            "payload": "Content", "created_at": "OccurredOn", "pending": "ProcessedOn"})),
        // States of an enum.
        ("create type public.state as enum ('NEW', 'IN_PROGRESS', 'SENT');
          create table public.events (id serial primary key, stream_type text not null, stream_id bigint not null, event_type text not null,
            version integer not null, data json not null, status public.state not null default 'NEW')", "public.events", &[],
         json!({"id": "id", "entity_type": "stream_type", "entity_id": "stream_id", "event_type": "event_type", "event_version": "version",
            "payload": "data", "pending": "status"})),
        // A loop that deletes, and one type of entity.
        ("create table public.jobs (id bigserial primary key, customer integer not null, event_name text not null, body bytea not null)", "jobs",
         &["--deletes", "--map", "customer=entity_id", "--constant", "entity_type=customer"],
         json!({"id": "id", "entity_type": "=customer", "entity_id": "customer", "event_type": "event_name", "payload": "body", "pending": ""})),
        // Two flags: the user says which one the loop reads.
        ("create table public.two (id bigserial primary key, aggregate_type text not null, aggregate_id text not null, type text not null,
            payload jsonb, sent boolean not null default false, sent_at timestamptz)", "two", &["--map", "sent=pending"],
         json!({"id": "id", "entity_type": "aggregate_type", "entity_id": "aggregate_id", "event_type": "type", "payload": "payload",
            "pending": "sent"})),
        // Numbers as states.
        ("create table public.numbers (id bigserial primary key, aggregate_type text not null, aggregate_id text not null, type text not null,
            payload jsonb, status smallint not null default 0)", "numbers", &["--pending", "0", "--done", "1"],
         json!({"id": "id", "entity_type": "aggregate_type", "entity_id": "aggregate_id", "event_type": "type", "payload": "payload",
            "pending": "status"})),
        // Hostile names.
        ("create schema \"my \"\"schema\"; create table \"my \"\"schema\".\"Out'box; $body$ \\ x\" (id bigserial primary key,
            \"it's\" text not null, \"a\"\"b\" text not null, \"type\" text not null, payload jsonb, published boolean)",
         "\"my \"\"schema\".\"Out'box; $body$ \\ x\"", &["--map", "it's=entity_type", "--map", "a\"b=entity_id"],
         json!({"id": "id", "entity_type": "it's", "entity_id": "a\"b", "event_type": "type", "payload": "payload", "pending": "published"})),
    ];
    for (sql, table, arguments, wanted) in cases {
        if !sql.is_empty() {
            let mut connection = database.connect().await?;
            connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await?;
        }
        let plan = adopt(&database, &[&[table, "--dry-run"], arguments].concat()).await?;
        ensure!(json!(roles(&plan)?) == wanted, "{table}: {plan:#}");
        // Every shape works: a row becomes an event, and is marked or deleted.
        let done = adopt(&database, &[&[table], arguments].concat()).await?;
        ensure!(done["sql"] == plan["sql"] && done["moved"] == 0, "{done:#}");
        ensure!(command(&database, &[table]).await?.code == Some(1), "adopted twice");
    }
    for insert in [
        "insert into public.outbox (aggregate_type, aggregate_id, type, payload) values ('order', 'e', 'X', '{\"n\": 1}')",
        "insert into public.\"OutboxMessages\" values ('6fa459ea-ee8a-3ca4-894e-db77e160355e', 7, 'order', gen_random_uuid(), 'X', 'text', now())",
        "insert into public.events (stream_type, stream_id, event_type, version, data) values ('order', 7, 'X', 3, '{}')",
        "insert into public.jobs (customer, event_name, body) values (7, 'X', '\\x00ff')",
        "insert into public.two (aggregate_type, aggregate_id, type) values ('order', 'e', 'X')",
        "insert into public.numbers (aggregate_type, aggregate_id, type) values ('order', 'e', 'X')",
        "insert into \"my \"\"schema\".\"Out'box; $body$ \\ x\" (\"it's\", \"a\"\"b\", type) values ('order', 'e', 'X')",
    ] {
        outbox.execute(insert).await.with_context(|| insert.to_owned())?;
    }
    ensure!(outbox.number("select count(*) from event_outbox where status = 'PENDING'").await? == 7);
    for marked in [
        "select count(*) from public.outbox where published",
        "select count(*) from public.\"OutboxMessages\" where \"ProcessedOn\" is not null",
        "select count(*) from public.events where status = 'SENT'",
        "select count(*) from (select 1 where not exists (select from public.jobs)) gone",
        "select count(*) from public.two where sent",
        "select count(*) from public.numbers where status = 1",
        "select count(*) from \"my \"\"schema\".\"Out'box; $body$ \\ x\" where published",
        "select count(*) from event_outbox where event_id = '6fa459ea-ee8a-3ca4-894e-db77e160355e' and payload_bytes = 'text'",
        "select count(*) from event_outbox where event_version = 3 and entity_id = '7'",
    ] {
        ensure!(outbox.number(marked).await? == 1, "{marked}");
    }
    let entries = "select count(*) from event_outbox_audit where command = 'adopt' and actor = session_user";
    ensure!(outbox.number(entries).await? == 7);
    Ok(())
}

async fn what_cannot_be_kept_in_order_is_refused_and_nothing_is_changed(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let columns = "aggregate_type text not null, aggregate_id text not null, type text not null, payload jsonb";
    let cases: [(&str, &[&str], &[&str]); 12] = [
        (&format!("id uuid primary key, {columns}, published boolean"), &[], &["gives the rows an order", "COLUMN=id"]),
        (&format!("id bigserial, {columns}, published boolean"), &[], &["no primary key"]),
        (
            "id bigserial primary key, aggregate_type text, type text, payload jsonb, sent boolean",
            &[],
            &["no column names the entity", "COLUMN=entity_id"],
        ),
        (
            "id bigserial primary key, aggregate_id text, type text, payload jsonb, sent boolean",
            &[],
            &["--constant entity_type=NAME"],
        ),
        (&format!("id bigserial primary key, {columns}"), &[], &["which rows the loop has not published", "--deletes"]),
        (
            &format!("id bigserial primary key, {columns}, sent boolean, published_at timestamptz"),
            &[],
            &["ambiguous", "sent, published_at"],
        ),
        (&format!("id bigserial primary key, {columns}, status integer"), &[], &["--pending VALUE", "--done VALUE"]),
        (&format!("id bigserial primary key, {columns}, status text default 'weird'"), &[], &["which value of status"]),
        (
            &format!("id bigserial primary key, {columns}, sent boolean"),
            &["--map", "nope=topic"],
            &["nope", "its columns are id, aggregate_type"],
        ),
        (
            &format!("id bigserial primary key, {columns}, sent boolean"),
            &["--map", "payload=entity_id"],
            &["jsonb", "text, varchar, uuid"],
        ),
        (
            &format!("id bigserial primary key, {columns}, sent boolean"),
            &["--map", "type=topic", "--map", "type=event_type"],
            &["contradicts"],
        ),
        (&format!("id bigint, part integer, {columns}, sent boolean) partition by list (part"), &[], &["partitions"]),
    ];
    for (columns, arguments, told) in cases {
        outbox.execute("drop table if exists public.loop").await?;
        outbox.execute(&format!("create table public.loop ({columns})")).await?;
        let output = command(&database, &[&["loop"], arguments].concat()).await?;
        ensure!(output.code == Some(1) && output.stdout.is_empty(), "{columns}: {output:?}");
        ensure!(told.iter().all(|told| output.stderr.contains(told)), "{columns}: {told:?}: {}", output.stderr);
    }
    // What the rows say.
    outbox.execute("drop table public.loop").await?;
    outbox.execute(&format!("create table public.loop (id bigserial primary key, {columns}, status text)")).await?;
    let insert = |status: &str, of: &str| {
        format!(
            "insert into public.loop (aggregate_type, aggregate_id, type, status) values ('{of}', 'e', 'X', {status})"
        )
    };
    for (status, of, told) in [
        ("'NEW'", "order", "--done VALUE"),
        ("'SENT'", "order", ""),
        ("'PROCESSING'", "order", "--done PROCESSING"),
        ("null", "order", "NULL in status"),
        ("'NEW'", "no topic!", "no legal topic"),
    ] {
        outbox.execute(&insert(status, of)).await?;
        let output = command(&database, &["loop", "--dry-run"]).await?;
        let is_fine = told.is_empty() && output.code == Some(0);
        ensure!(is_fine || output.code == Some(1) && output.stderr.contains(told), "{status} {told}: {output:?}");
        if status != "'NEW'" || of != "order" {
            outbox.execute("delete from public.loop where status is null or status = 'PROCESSING'").await?;
        }
    }
    for (table, told) in
        [("nowhere", "no table nowhere"), ("loo", "public.loop"), ("event_outbox", "the outbox itself")]
    {
        let output = command(&database, &[table]).await?;
        ensure!(output.code != Some(0) && output.stderr.contains(told), "{output:?}");
    }
    let left = "select count(*) from pg_trigger where not tgisinternal and tgrelid = 'public.loop'::regclass";
    ensure!(outbox.number(left).await? == 0);
    ensure!(outbox.number("select count(*) from event_outbox").await? == 0);
    ensure!(outbox.number("select count(*) from pg_proc where proname like 'event_outbox_adopt%'").await? == 0);
    Ok(())
}

async fn a_dry_run_prints_the_sql_that_adopts(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute(TABLE).await?;
    outbox
        .execute(
            "insert into public.outbox (aggregate_type, aggregate_id, type, payload) values ('order', 'e', 'X', '{}')",
        )
        .await?;
    let plan = adopt(&database, &["outbox", "--dry-run"]).await?;
    ensure!(plan["moved"] == 1 && plan["unused"] == json!(["retries"]), "{plan:#}");
    let text = command(&database, &["outbox", "--dry-run"]).await?;
    let sql = plan["sql"].as_str().context("no sql")?;
    ensure!(text.stdout.contains("aggregate_id") && text.stdout.ends_with(sql), "{text:?}");
    ensure!(outbox.number("select count(*) from event_outbox").await? == 0);
    ensure!(outbox.number("select count(*) from public.outbox where published").await? == 0);
    database.connect().await?.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await?;
    ensure!(outbox.number("select count(*) from event_outbox where entity_id = 'e'").await? == 1);
    ensure!(outbox.number("select count(*) from public.outbox where published").await? == 1);
    ensure!(command(&database, &["outbox"]).await?.stderr.contains("adopted already"));
    adopt(&database, &["outbox", "--undo", "--wait", "100ms"])
        .await
        .err()
        .context("an event waits, and nobody is told")?;
    Ok(())
}

async fn only_rows_that_the_loop_would_publish_become_events(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute(TABLE).await?;
    // Pending rows are moved in the order of their ids, wherever they lie.
    outbox
        .execute(
            "insert into public.outbox (id, aggregate_type, aggregate_id, type, payload) overriding system value \
             select id, 'order', 'e', 'X', jsonb_build_object('n', id) from unnest(array[903, 901, 902]) id",
        )
        .await?;
    adopt(&database, &["outbox"]).await?;
    let insert = |n: i64, published: bool| {
        format!(
            "insert into public.outbox (aggregate_type, aggregate_id, type, payload, published) \
             values ('order', 'e', 'X', '{{\"n\": {n}}}', {published})"
        )
    };
    let mut connection = database.connect().await?;
    for script in [
        format!("begin; {}; rollback", insert(1, false)),
        format!("begin; {}; delete from public.outbox; commit", insert(2, false)),
        format!("begin; {}; update public.outbox set published = true; commit", insert(3, false)),
        insert(4, true),
        // The last version of the row counts.
        format!(
            "begin; {}; update public.outbox set payload = '{{\"n\": 6}}' where not published; commit",
            insert(5, false)
        ),
        format!("begin; savepoint s; {}; rollback to s; {}; commit", insert(7, false), insert(8, false)),
    ] {
        connection.execute(sqlx::raw_sql(AssertSqlSafe(script))).await?;
    }
    let numbers: Vec<i64> = sqlx::query_scalar("select (payload ->> 'n')::int8 from event_outbox order by id")
        .fetch_all(&mut connection)
        .await?;
    ensure!(numbers == [901, 902, 903, 6, 8], "{numbers:?}");
    Ok(())
}

async fn payloads_and_headers_keep_their_bytes(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox
        .execute(
            "create table public.loop (id bigserial primary key, aggregate_type text not null, aggregate_id text not null, type text not null,
               payload json, headers json, sent boolean)",
        )
        .await?;
    let insert = |payload: &str, headers: &str| {
        format!(
            "insert into public.loop (aggregate_type, aggregate_id, type, payload, headers) values ('order', 'e', 'X', {payload}, {headers})"
        )
    };
    let exact = "'{\"b\": 1.10,  \"a\": \"\\u0000\", \"b\": 12345678901234567890}'";
    outbox.execute(&insert(exact, "'{\"tries\": 1, \"gone\": null, \"o\": {\"a\": 1}, \"s\": \"x\"}'")).await?;
    adopt(&database, &["loop"]).await?;
    outbox.execute(&insert(exact, "'[1]'")).await?;
    outbox.execute(&insert("null", "null")).await?;
    let rows = sqlx::query("select payload_bytes, headers::text from event_outbox order by id")
        .fetch_all(&mut database.connect().await?)
        .await?;
    let rows: Vec<(Option<Vec<u8>>, String)> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()?;
    let bytes = exact.trim_matches('\'').as_bytes().to_vec();
    ensure!(rows[0] == (Some(bytes.clone()), r#"{"o": "{\"a\": 1}", "s": "x", "tries": "1"}"#.to_owned()), "{rows:?}");
    ensure!(rows[1] == (Some(bytes), "{}".to_owned()) && rows[2] == (None, "{}".to_owned()), "{rows:?}");
    Ok(())
}

async fn writers_need_no_right_on_the_outbox_and_nobody_else_can_use_the_trigger(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute(TABLE).await?;
    adopt(&database, &["outbox"]).await?;
    let user = format!("{}_app", database.name());
    outbox
        .execute(&format!(
            "do $$ begin create role {user} login password 'secret'; grant insert on public.outbox to {user}; \
             grant usage, create on schema public to {user}; end $$"
        ))
        .await?;
    let url = database.url();
    let (_, server) = url.split_once('@').context("no user")?;
    let mut app = PgConnection::connect(&format!("postgres://{user}:secret@{server}")).await?;
    app.execute("set search_path = public").await?;
    app.execute("insert into outbox (aggregate_type, aggregate_id, type, payload) values ('order', 'e', 'X', '{}')")
        .await?;
    ensure!(outbox.number("select count(*) from event_outbox").await? == 1);
    let function: String =
        sqlx::query_scalar("select oid::regprocedure::text from pg_proc where proname like 'event_outbox_adopt%'")
            .fetch_one(&mut app)
            .await?;
    app.execute("create table mine (id bigint primary key, aggregate_type text)").await?;
    let forge =
        format!("create constraint trigger forged after insert on mine for each row execute function {function}");
    let error = app.execute(AssertSqlSafe(forge)).await.err().context("the trigger can be used elsewhere")?;
    ensure!(error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42501"), "{error}");
    // A user who owns nothing is told what is missing.
    let relay = Relay::bare().with("DATABASE_URL", format!("postgres://{user}:secret@{server}"));
    let output = relay.argument("mine").output("adopt").await?;
    ensure!(output.code == Some(1) && output.stderr.contains("code: OR-2201"), "{output:?}");
    app.close().await?;
    outbox.execute(&format!("do $$ begin drop owned by {user} cascade; drop role {user}; end $$")).await?;
    Ok(())
}

async fn a_renamed_table_keeps_its_trigger_and_is_given_back_by_its_new_name(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute(TABLE).await?;
    let jobs = "create table public.jobs (id bigserial primary key, aggregate_type text not null, aggregate_id text not null, \
                type text not null, payload jsonb)";
    outbox.execute(jobs).await?;
    outbox.execute("create schema other").await?;
    for (table, arguments, renamed) in
        [("outbox", &[][..], "public.\"Old outbox's\""), ("jobs", &["--deletes"], "other.jobs")]
    {
        let given = format!("public.{table}");
        adopt(&database, &[&[given.as_str()], arguments].concat()).await?;
        let (schema, name) = renamed.split_once('.').context("no schema")?;
        let change = if schema == "public" { format!("rename to {name}") } else { format!("set schema {schema}") };
        outbox.execute(&format!("alter table public.{table} {change}")).await?;
        // A new table with the old name has a row of the same id.
        outbox.execute(if table == "outbox" { TABLE } else { jobs }).await?;
        let insert = |into: &str| {
            format!(
                "insert into {into} (aggregate_type, aggregate_id, type, payload) values ('order', '{table}', 'X', '{{}}')"
            )
        };
        outbox.execute(&insert(&given)).await?;
        outbox.execute(&insert(renamed)).await?;
        let events = format!("select count(*) from event_outbox where entity_id = '{table}'");
        ensure!(outbox.number(&events).await? == 1, "{renamed}");
        let is_marked = |of: &str| match table {
            "jobs" => format!("select 1 - count(*) from {of}"),
            _ => format!("select count(*) from {of} where published"),
        };
        ensure!(outbox.number(&is_marked(renamed)).await? == 1, "{renamed} is not marked");
        ensure!(outbox.number(&is_marked(&given)).await? == 0, "the other table is marked");
        // The new table can be adopted beside the old one.
        let done = adopt(&database, &[&[given.as_str()], arguments].concat()).await?;
        ensure!(done["moved"] == 1, "{done}");
        outbox.execute(&insert(&given)).await?;
        outbox.execute(&insert(renamed)).await?;
        ensure!(outbox.number(&events).await? == 4, "{renamed}");
        let undone = command(&database, &[renamed, "--undo", "--wait", "0s"]).await?;
        ensure!(undone.stdout.contains("belongs to the loop again"), "{undone:?}");
        outbox.execute(&insert(&given)).await?;
        outbox.execute(&insert(renamed)).await?;
        ensure!(outbox.number(&events).await? == 5, "{renamed}");
    }
    Ok(())
}

async fn an_undo_that_ends_too_early_is_repeated_and_goes_on_waiting(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.execute(TABLE).await?;
    let never = command(&database, &["outbox", "--undo"]).await?;
    ensure!(never.code == Some(1) && never.stderr.contains("is not adopted by"), "{never:?}");
    adopt(&database, &["outbox"]).await?;
    let insert = "insert into public.outbox (aggregate_type, aggregate_id, type, payload) values ('order', 'e', 'X', '{\"n\": 0}')";
    outbox.execute(insert).await?;
    // An event of another source.
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload) values ('other', 'o', 'X', '1')",
        )
        .await?;
    let first = command(&database, &["outbox", "--undo", "--wait", "0s", "--by", "ann"]).await?;
    let told = [
        "error: not published yet up to the id 2: 2 events (1 of order, 1 of other)",
        "adopt '\"public\".\"outbox\"' --undo goes on waiting",
        "events of other tables count as well",
    ];
    ensure!(first.code == Some(1) && told.iter().all(|told| first.stderr.contains(told)), "{first:?}");
    ensure!(first.stdout.contains("belongs to the loop again"), "{first:?}");
    // What comes afterwards belongs to nobody who waits.
    outbox.execute("alter table public.outbox rename to outbox_of_the_loop").await?;
    outbox
        .execute("insert into event_outbox (entity_type, entity_id, event_type, payload) values ('order', 'late', 'X', '{\"n\": 0}')")
        .await?;
    let again = command(&database, &["outbox_of_the_loop", "--undo", "--wait", "0s"]).await?;
    ensure!(again.code == Some(1) && again.stderr.contains("up to the id 2: 2 events"), "{again:?}");
    ensure!(again.stdout.contains("was given back to the loop at ") && again.stdout.contains(" for ann"), "{again:?}");

    let relay = outbox.relay(&kafka).start_ready("after the undo").await?;
    let document = adopt(&database, &["outbox_of_the_loop", "--undo"]).await?;
    ensure!(document["given_back_by"] == "ann" && document["unpublished"] == 0, "{document:#}");
    let done = command(&database, &["outbox_of_the_loop", "--undo"]).await?;
    ensure!(done.code == Some(0) && done.stdout.contains("next: start the loop"), "{done:?}");
    ensure!(relay.stop().await? == Some(0));
    let undone = "select count(*) from event_outbox_audit where command = 'adopt --undo'";
    ensure!(outbox.number(undone).await? == 1, "a look has an audit entry");

    adopt(&database, &["outbox_of_the_loop"]).await?;
    let function = "select oid::regprocedure::text from pg_proc where proname like 'event_outbox_adopt%'";
    let function: String = sqlx::query_scalar(function).fetch_one(&mut database.connect().await?).await?;
    outbox.execute(&format!("drop function {function} cascade")).await?;
    let gone = command(&database, &["outbox_of_the_loop", "--undo"]).await?;
    ensure!(gone.code == Some(1) && gone.stderr.contains("its trigger is gone without an undo"), "{gone:?}");
    Ok(())
}

async fn a_lock_that_is_not_free_is_named_and_nothing_is_changed(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute(TABLE).await?;
    let mut holder = database.connect().await?;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await?;
    holder.execute("begin").await?;
    holder
        .execute(
            "insert into public.outbox (aggregate_type, aggregate_id, type, payload) values ('order', 'e', 'X', '{}')",
        )
        .await?;
    let output = command(&database, &["outbox", "--lock-timeout", "300ms"]).await?;
    let told = [format!("pid {pid}"), "nothing was changed".to_owned(), "code: OR-2009".to_owned()];
    ensure!(output.code == Some(1) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
    ensure!(outbox.number("select count(*) from pg_trigger where tgname like '%adopt%'").await? == 0);
    // A transaction that has only locked a row, in the weakest way, is in flight as well.
    let mut reader = database.connect().await?;
    outbox
        .execute(
            "insert into public.outbox (aggregate_type, aggregate_id, type, payload, published) values ('order', 'e', 'X', '{}', true)",
        )
        .await?;
    holder.execute("commit").await?;
    reader.execute("begin").await?;
    reader.execute("select from public.outbox for key share").await?;
    let output = command(&database, &["outbox", "--lock-timeout", "300ms"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("code: OR-2009"), "{output:?}");
    reader.execute("rollback").await?;
    outbox.execute("delete from public.outbox").await?;
    holder.execute("begin").await?;
    holder
        .execute(
            "insert into public.outbox (aggregate_type, aggregate_id, type, payload) values ('order', 'e', 'X', '{}')",
        )
        .await?;
    // The transaction in flight ends, and its row belongs to the outbox.
    let adopting = tokio::spawn(async move { command(&database, &["outbox", "--lock-timeout", "30s"]).await });
    let waiting = "select count(*) from pg_stat_activity where application_name = 'outbox-relay adopt'";
    eventually("adopt is at work", SOON, || async {
        (outbox.number(waiting).await.ok() == Some(1)).then_some(()).ok_or("not yet")
    })
    .await;
    holder.execute("commit").await?;
    let output = adopting.await??;
    ensure!(output.code == Some(0) && output.stdout.contains("moved 1 pending row to"), "{output:?}");
    Ok(())
}

/// Writes rows of an entity, each in a transaction that locks the entity after the insert, until told to stop. Returns their number.
fn write(database: &TestDatabase, entity: i64, stop: &Arc<AtomicBool>) -> JoinHandle<anyhow::Result<i64>> {
    let (database, stop) = (database.clone(), stop.clone());
    tokio::spawn(async move {
        let mut connection = database.connect().await?;
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                return Ok(n);
            }
            let script = format!(
                "begin; \
                 insert into public.outbox (aggregate_type, aggregate_id, type, payload) \
                 select 'order', 'e{entity}', 'X', jsonb_build_object('n', n) from public.entity where id = {entity}; \
                 update public.entity set n = n + 1 where id = {entity}; commit"
            );
            connection.execute(sqlx::raw_sql(AssertSqlSafe(script))).await?;
        }
        unreachable!("the numbers end")
    })
}

/// Publishes as loops do: locks some rows, sends them, marks them, commits. Returns the numbers by entity, in the order of sending.
fn poll(database: &TestDatabase, stop: &Arc<AtomicBool>) -> JoinHandle<anyhow::Result<BTreeMap<String, Vec<i64>>>> {
    let (database, stop) = (database.clone(), stop.clone());
    tokio::spawn(async move {
        let mut connection = database.connect().await?;
        let mut sent: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) {
            let mut tx = connection.begin().await?;
            let rows = sqlx::query(
                "select id, aggregate_id, (payload ->> 'n')::int8 from public.outbox where not published order by id limit 20 for update",
            );
            let rows = rows.fetch_all(&mut *tx).await?;
            let mut ids = Vec::new();
            for row in &rows {
                ids.push(row.try_get::<i64, _>(0)?);
                sent.entry(row.try_get(1)?).or_default().push(row.try_get(2)?);
            }
            sqlx::query("update public.outbox set published = true where id = any ($1)")
                .bind(&ids)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        Ok(sent)
    })
}

async fn each_row_is_published_by_one_side_in_order_while_applications_write(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    const ENTITIES: i64 = 4;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.execute(TABLE).await?;
    outbox.execute("create table public.entity (id bigint primary key, n bigint not null default 0)").await?;
    outbox.execute(&format!("insert into public.entity select * from generate_series(1, {ENTITIES})")).await?;
    let at_least = async |rows: i64, what: &str, sql: &str| {
        eventually(what, SOON * 2, || async {
            let found = outbox.number(sql).await.map_err(|error| error.to_string())?;
            if found >= rows { Ok(()) } else { Err(found.to_string()) }
        })
        .await;
    };
    let (stop, loop_stops) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (1..=ENTITIES).map(|entity| write(&database, entity, &stop)).collect();
    let polling = poll(&database, &loop_stops);
    at_least(100, "the loop works", "select count(*) from public.outbox where published").await;

    // The cut, while both work. The loop goes on, and finds nothing any more.
    let relay = outbox.relay(&kafka).start_ready("after the cut").await?;
    adopt(&database, &["outbox", "--lock-timeout", "30s"]).await?;
    at_least(200, "the relay works", "select count(*) from event_outbox where status = 'PUBLISHED'").await;
    loop_stops.store(true, Ordering::Relaxed);
    let before = polling.await??;

    // And back: the loop starts when the command has ended.
    adopt(&database, &["outbox", "--undo", "--lock-timeout", "30s"]).await?;
    let events = outbox.number("select count(*) from event_outbox").await?;
    at_least(1, "rows wait for the loop", "select count(*) from public.outbox where not published").await;
    loop_stops.store(false, Ordering::Relaxed);
    let polling = poll(&database, &loop_stops);
    let last = outbox.number("select max(id) from public.outbox").await?;
    at_least(
        100,
        "the loop works again",
        &format!("select count(*) from public.outbox where published and id > {last}"),
    )
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut written = BTreeMap::new();
    for (entity, writer) in (1..).zip(writers) {
        written.insert(format!("e{entity}"), writer.await??);
    }
    at_least(0, "nothing waits", "select -count(*) from public.outbox where not published").await;
    loop_stops.store(true, Ordering::Relaxed);
    let after = polling.await??;
    ensure!(relay.stop().await? == Some(0));
    ensure!(outbox.number("select count(*) from event_outbox").await? == events, "an event after the undo");

    let by_relay = outbox.published_numbers(&kafka).await?;
    for (entity, count) in &written {
        let all: Vec<i64> = [&before, &by_relay, &after]
            .iter()
            .flat_map(|part| part.get(entity).cloned().unwrap_or_default())
            .collect();
        ensure!(all == (0..*count).collect::<Vec<_>>(), "{entity}: {all:?}");
    }
    Ok(())
}
