//! Tests `capture`: changes of a table become events, in the order of commits per row, whatever the session, the writer's rights and the
//! names are.

mod backfill;
mod order;
mod progress;
mod shapes;
mod squatters;
mod stopped;
mod strangers;
mod triggers;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use lab::relay::Output;
use lab::{Outbox, Relay, TestDatabase, trials};

pub(crate) fn trials() -> Vec<Trial> {
    let own = trials! {
        with_postgres:
            changes_become_events_with_both_versions_of_the_row,
            values_do_not_depend_on_the_session,
            writers_need_no_right_on_the_outbox_and_nobody_else_can_use_the_trigger,
            truncate_is_refused_unless_it_is_allowed,
            captures_are_listed_replaced_and_dropped,
            a_renamed_table_and_the_one_with_its_old_name_are_captured_side_by_side,
            a_dry_run_prints_the_sql_that_captures,
            what_cannot_be_captured_is_refused_and_nothing_is_changed,
            a_lock_that_is_not_free_is_named_and_nothing_is_changed;
    };
    let more = [progress::trials(), squatters::trials(), stopped::trials(), strangers::trials(), triggers::trials()];
    [own, shapes::trials(), order::trials(), backfill::trials()].into_iter().chain(more).flatten().collect()
}

pub(crate) async fn command(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<Output> {
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("capture").await
}

pub(crate) async fn capture(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = command(database, &[arguments, &["--json"]].concat()).await?;
    ensure!(output.code == Some(0), "{arguments:?}: {output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

/// Runs statements as one script.
pub(crate) async fn run(connection: &mut PgConnection, script: &str) -> anyhow::Result<()> {
    let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(script.to_owned()))).await;
    done.map(drop).with_context(|| script.to_owned())
}

/// Returns the events so far in the order of ids: entity, type, and the payload without the transaction.
pub(crate) async fn events(database: &TestDatabase) -> anyhow::Result<Vec<(String, String, Value)>> {
    let sql = "select coalesce(entity_id, 'none'), event_type, (payload - 'transaction' - 'table')::text from event_outbox order by id";
    let rows: Vec<(String, String, String)> = sqlx::query_as(sql).fetch_all(&mut database.connect().await?).await?;
    rows.into_iter().map(|(entity, event, payload)| Ok((entity, event, serde_json::from_str(&payload)?))).collect()
}

/// Fails unless these are the entities and types of the events so far; then removes the events.
pub(crate) async fn expect(database: &TestDatabase, wanted: &[(&str, &str)]) -> anyhow::Result<Vec<Value>> {
    let found = events(database).await?;
    let shape: Vec<_> = found.iter().map(|(entity, event, _)| (entity.as_str(), event.as_str())).collect();
    ensure!(shape == wanted, "{shape:?}, not {wanted:?}");
    database.connect().await?.execute("delete from event_outbox").await?;
    Ok(found.into_iter().map(|(_, _, payload)| payload).collect())
}

const ORDERS: &str =
    "create schema shop; create table shop.orders (id bigint primary key, status text, total numeric, note text)";

async fn changes_become_events_with_both_versions_of_the_row(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(&mut connection, ORDERS).await?;
    for bulk in [false, true] {
        let mode: &[&str] = if bulk { &["--bulk"] } else { &[] };
        capture(&database, &[&["shop.orders", "--type", "order", "--event-type", "Order{op}"], mode].concat()).await?;
        run(&mut connection, "insert into shop.orders values (7, 'new', 1.10, null)").await?;
        let [payload] = &expect(&database, &[("7", "OrderCreated")]).await?[..] else { anyhow::bail!("one event") };
        let row = json!({"id": 7, "status": "new", "total": 1.10, "note": null});
        ensure!(*payload == json!({"op": "create", "before": null, "after": row}), "{payload}");

        run(&mut connection, "update shop.orders set status = 'paid', total = 1.100").await?;
        let [payload] = &expect(&database, &[("7", "OrderUpdated")]).await?[..] else { anyhow::bail!("one event") };
        ensure!(payload["before"] == row && payload["after"]["status"] == "paid", "{payload}");
        // The scale of a number is a part of its text.
        ensure!(payload["changed"] == json!(["status", "total"]), "{payload}");

        run(
            &mut connection,
            "update shop.orders set status = status; begin; update shop.orders set status = 'x'; rollback",
        )
        .await?;
        run(&mut connection, "update shop.orders set id = 8; delete from shop.orders").await?;
        let payloads =
            expect(&database, &[("7", "OrderDeleted"), ("8", "OrderCreated"), ("8", "OrderDeleted")]).await?;
        ensure!(payloads[0]["before"]["id"] == 7 && payloads[0]["after"] == Value::Null, "{payloads:?}");
        ensure!(payloads[1]["after"]["id"] == 8 && payloads[2]["before"]["id"] == 8, "{payloads:?}");

        run(
            &mut connection,
            "begin; insert into shop.orders values (1), (2); update shop.orders set note = 'a' where id = 2; commit",
        )
        .await?;
        let sql = "select count(distinct payload ->> 'transaction') = 1 and bool_and(payload ->> 'table' = '\"shop\".\"orders\"') \
                   and bool_and(entity_type = 'order') from event_outbox";
        ensure!(sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut connection).await?, "bulk {bulk}");
        expect(&database, &[("1", "OrderCreated"), ("2", "OrderCreated"), ("2", "OrderUpdated")]).await?;
        // An upsert inserts and updates in one statement.
        run(
            &mut connection,
            "insert into shop.orders values (2, 'b'), (3, 'c') on conflict (id) do update set status = excluded.status",
        )
        .await?;
        let found = events(&database).await?;
        let mut shape: Vec<_> = found.iter().map(|(entity, event, _)| (entity.as_str(), event.as_str())).collect();
        shape.sort_unstable();
        ensure!(shape == [("2", "OrderUpdated"), ("3", "OrderCreated")], "{shape:?}");
        // One statement changes many rows, and the keys of every second one: each row stays with its own former version.
        run(
            &mut connection,
            "insert into shop.orders select n, 's' || n from generate_series(10, 40) n; delete from event_outbox;
             update shop.orders set status = status || '!', id = case when id % 2 = 0 then id + 1000 else id end where id >= 10",
        )
        .await?;
        let sql = "select count(*) filter (where event_type = 'OrderUpdated' and payload #> '{before,id}' = payload #> '{after,id}'
                             and payload #>> '{after,status}' = (payload #>> '{before,status}') || '!'),
                          count(*) filter (where event_type = 'OrderDeleted'), count(*) filter (where event_type = 'OrderCreated'), count(*)
                     from event_outbox";
        let counts: (i64, i64, i64, i64) = sqlx::query_as(sql).fetch_one(&mut connection).await?;
        ensure!(counts == (15, 16, 16, 47), "bulk {bulk}: {counts:?}");
        run(&mut connection, "delete from event_outbox; delete from shop.orders; delete from event_outbox").await?;
    }
    capture(&database, &["shop.orders", "--on", "update", "--columns", "status"]).await?;
    run(
        &mut connection,
        "insert into shop.orders values (1, 'new', 1, 'secret'); update shop.orders set note = 'other'",
    )
    .await?;
    expect(&database, &[]).await?;
    run(&mut connection, "update shop.orders set status = 'paid', note = 'x'; delete from shop.orders").await?;
    let payloads = expect(&database, &[("1", "Updated")]).await?;
    ensure!(
        payloads[0]["after"] == json!({"id": 1, "status": "paid"}) && payloads[0]["changed"] == json!(["status"]),
        "{payloads:?}"
    );
    Ok(())
}

async fn values_do_not_depend_on_the_session(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(
        &mut connection,
        "create table public.odd (at timestamptz primary key, day date, span interval, bytes bytea, ratio float8, price money, local timestamp)",
    )
    .await?;
    let insert = |table: &str| {
        format!(
            "insert into public.{table} values (timestamptz '2026-03-29 02:30:00+01', date '2026-12-31', interval '1 month 2 days', \
             '\\x00ff', 0.1::float8 + 0.2::float8, 7, timestamp '2026-01-02 03:04:05')"
        )
    };
    let sessions = [
        "set timezone = 'UTC'",
        "set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set intervalstyle = 'sql_standard'; set bytea_output = 'escape'; \
         set extra_float_digits = -10; set search_path = public",
    ];
    for bulk in [false, true] {
        capture(&database, if bulk { &["odd", "--bulk"] } else { &["odd"] }).await?;
        let mut seen = Vec::new();
        for settings in sessions {
            let mut session = database.connect().await?;
            run(&mut session, settings).await?;
            run(&mut session, &insert("odd")).await?;
            seen.push(events(&database).await?);
            run(&mut session, "delete from public.odd; delete from event_outbox").await?;
        }
        ensure!(seen[0] == seen[1], "{seen:?}");
        let (entity, _, payload) = &seen[0][0];
        ensure!(entity == "2026-03-29T01:30:00+00:00" && payload["after"]["bytes"] == "\\x00ff", "{payload}");
        ensure!(payload["after"]["ratio"] == 0.1 + 0.2 && payload["after"]["span"] == "P1M2D", "{payload}");
    }
    // The backfill prints them in the same way.
    run(&mut connection, &insert("odd")).await?;
    capture(&database, &["odd", "--backfill"]).await?;
    let found = events(&database).await?;
    ensure!(found.len() == 2 && found[0].0 == found[1].0 && found[0].2["after"] == found[1].2["after"], "{found:?}");
    Ok(())
}

async fn writers_need_no_right_on_the_outbox_and_nobody_else_can_use_the_trigger(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(&mut connection, ORDERS).await?;
    capture(&database, &["shop.orders"]).await?;
    let user = format!("{}_app", database.name());
    run(
        &mut connection,
        &format!(
            "create role {user} login password 'secret'; grant usage on schema shop to {user}; \
             grant select, insert, update, delete on shop.orders to {user}; grant usage, create on schema public to {user}"
        ),
    )
    .await?;
    let url = database.url();
    let (_, server) = url.split_once('@').context("no user")?;
    let mut app = PgConnection::connect(&format!("postgres://{user}:secret@{server}")).await?;
    run(&mut app, "insert into shop.orders values (1); update shop.orders set note = 'x'; delete from shop.orders")
        .await?;
    expect(&database, &[("1", "Created"), ("1", "Updated"), ("1", "Deleted")]).await?;
    let functions: Vec<String> = sqlx::query_scalar(
        "select oid::regprocedure::text from pg_proc where proname ~ '^event_outbox_(capture|refuse)'",
    )
    .fetch_all(&mut app)
    .await?;
    ensure!(functions.len() == 2, "{functions:?}");
    run(&mut app, "create table public.mine (id bigint primary key)").await?;
    for function in functions {
        let forge =
            format!("create trigger forged after insert on public.mine for each statement execute function {function}");
        let error = app.execute(AssertSqlSafe(forge)).await.err().context("the trigger can be used elsewhere")?;
        ensure!(error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42501"), "{error}");
    }
    for arguments in [&["public.mine"][..], &["--drop", "shop.orders"], &["shop.orders", "--backfill"]] {
        let relay = Relay::bare().with("DATABASE_URL", format!("postgres://{user}:secret@{server}"));
        let relay = arguments.iter().fold(relay, |relay, argument| relay.argument(argument));
        let output = relay.output("capture").await?;
        ensure!(output.code == Some(1) && output.stderr.contains("code: OR-2201"), "{output:?}");
    }
    app.close().await?;
    run(&mut connection, &format!("drop owned by {user} cascade; drop role {user}")).await
}

async fn truncate_is_refused_unless_it_is_allowed(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(&mut connection, ORDERS).await?;
    run(&mut connection, "insert into shop.orders values (1)").await?;
    capture(&database, &["shop.orders"]).await?;
    let error = run(&mut connection, "truncate shop.orders").await.err().context("TRUNCATE is not refused")?;
    ensure!(format!("{error:#}").contains("outbox-relay captures its changes"), "{error:#}");
    capture(&database, &["shop.orders", "--allow-truncate"]).await?;
    run(&mut connection, "truncate shop.orders").await?;
    expect(&database, &[]).await.map(drop)
}

async fn captures_are_listed_replaced_and_dropped(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(&mut connection, ORDERS).await?;
    let objects = "select (select count(*) from pg_trigger where tgrelid = 'shop.orders'::regclass and not tgisinternal) * 100 \
                   + (select count(*) from pg_proc where proname ~ '^event_outbox_(capture|refuse)')";
    ensure!(capture(&database, &["--list"]).await?["tables"] == json!([]));
    for (arguments, replaced, count) in [
        (&["shop.orders"][..], false, 202),
        (&["shop.orders", "--bulk", "--allow-truncate"], true, 301),
        (&["shop.orders", "--bulk", "--on", "insert,delete"], true, 302),
        (&["SHOP.Orders", "--type", "order"], true, 202),
    ] {
        let done = capture(&database, arguments).await?;
        ensure!(done["replaced"] == replaced && outbox.number(objects).await? == count, "{arguments:?}: {done:#}");
        let listed = capture(&database, &["--list"]).await?;
        ensure!(
            listed["tables"][0]["captured"] == done["captured"] && listed["tables"][0]["enabled"] == true,
            "{listed:#}"
        );
    }
    // The triggers follow a table that is renamed.
    run(
        &mut connection,
        "alter table shop.orders rename to \"Old orders\"; alter table shop.\"Old orders\" disable trigger user",
    )
    .await?;
    let text = command(&database, &["--list"]).await?;
    ensure!(text.stdout.contains("\"Old orders\"") && text.stdout.contains("disabled"), "{text:?}");
    ensure!(command(&database, &["--drop", "nowhere"]).await?.code == Some(1));
    let plan = capture(&database, &["--drop", "shop.\"Old orders\"", "--dry-run"]).await?;
    ensure!(plan["sql"].as_str().is_some_and(|sql| sql.contains("drop trigger")), "{plan:#}");
    capture(&database, &["--drop", "shop.\"Old orders\"", "--by", "ann"]).await?;
    let output = command(&database, &["--drop", "shop.\"Old orders\""]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("is not captured"), "{output:?}");
    run(&mut connection, "alter table shop.\"Old orders\" rename to orders").await?;
    ensure!(outbox.number(objects).await? == 0);
    let entries = "select count(*) from event_outbox_audit where command = 'capture' or command = 'capture --drop' and acted_by = 'ann'";
    ensure!(outbox.number(entries).await? == 5);
    Ok(())
}

async fn a_renamed_table_and_the_one_with_its_old_name_are_captured_side_by_side(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(&mut connection, ORDERS).await?;
    for mode in [&[][..], &["--bulk"]] {
        capture(&database, &[&["shop.orders"], mode].concat()).await?;
        run(&mut connection, "alter table shop.orders rename to archive").await?;
        let missing = command(&database, &["--drop", "shop.orders"]).await?;
        let told = "a table that had this name is \"shop\".\"archive\" now";
        ensure!(missing.code == Some(1) && missing.stderr.contains(told), "{missing:?}");

        run(&mut connection, "create table shop.orders (code text primary key)").await?;
        capture(&database, &[&["shop.orders", "--type", "new"], mode].concat()).await?;
        run(&mut connection, "insert into shop.archive values (1); insert into shop.orders values ('a')").await?;
        expect(&database, &[("1", "Created"), ("a", "Created")]).await?;
        let listed = command(&database, &["--list"]).await?;
        ensure!(listed.stdout.contains("renamed since it was captured as \"shop\".\"orders\""), "{listed:?}");
        capture(&database, &["shop.archive", "--backfill"]).await?;
        expect(&database, &[("1", "Snapshot")]).await?;
        // The entity type follows the name only if somebody wants it.
        let anew = capture(&database, &[&["shop.archive"], mode].concat()).await?;
        ensure!(anew["notes"][0].as_str().is_some_and(|note| note.contains("--type orders keeps it")), "{anew:#}");
        run(&mut connection, "delete from shop.archive; delete from shop.orders").await?;
        expect(&database, &[("1", "Deleted"), ("a", "Deleted")]).await?;

        capture(&database, &["--drop", "shop.archive"]).await?;
        run(&mut connection, "insert into shop.archive values (2); insert into shop.orders values ('b')").await?;
        expect(&database, &[("b", "Created")]).await?;
        capture(&database, &["--drop", "shop.orders"]).await?;
        run(
            &mut connection,
            "drop table shop.orders; delete from shop.archive; alter table shop.archive rename to orders",
        )
        .await?;
    }
    Ok(())
}

async fn a_dry_run_prints_the_sql_that_captures(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(&mut connection, ORDERS).await?;
    for mode in [&[][..], &["--bulk"]] {
        let plan = capture(&database, &[&["shop.orders", "--dry-run"], mode].concat()).await?;
        let text = command(&database, &[&["shop.orders", "--dry-run"], mode].concat()).await?;
        let sql = plan["sql"].as_str().context("no sql")?;
        ensure!(text.stdout.ends_with(sql) && text.stdout.contains("nothing was changed"), "{text:?}");
        ensure!(outbox.number("select count(*) from pg_proc where proname like 'event_outbox_capture%'").await? == 0);
        run(&mut connection, sql).await?;
        run(&mut connection, "insert into shop.orders values (1); delete from shop.orders").await?;
        expect(&database, &[("1", "Created"), ("1", "Deleted")]).await?;
        capture(&database, &["--drop", "shop.orders"]).await?;
    }
    Ok(())
}

async fn what_cannot_be_captured_is_refused_and_nothing_is_changed(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(&mut connection, ORDERS).await?;
    run(
        &mut connection,
        "create table public.heap (id bigint, name text); create table public.late (id bigint primary key deferrable); \
         create view public.seen as select 1 as id; create table public.\"Wrong name\" (id bigint primary key); \
         create table public.orders (id bigint primary key); create table public.parent (id bigint primary key); \
         create table public.child () inherits (public.parent); \
         create table public.parts (id bigint primary key) partition by hash (id)",
    )
    .await?;
    let cases: [(&[&str], &[&str]); 18] = [
        (&["nowhere"], &["no table nowhere"]),
        (&["order"], &["public.orders", "shop.orders"]),
        (&["orders"], &["several schemas", "\"shop\".\"orders\""]),
        (&["seen"], &["is a view"]),
        (&["event_outbox"], &["the outbox itself"]),
        (&["heap"], &["no primary key", "--key COLUMN"]),
        (&["heap", "--key", "id"], &["may be null", "set not null"]),
        (&["shop.orders", "--key", "nope"], &["--key names the column nope", "id, status, total, note"]),
        (&["shop.orders", "--columns", "status,nope"], &["--columns names the column nope"]),
        (&["late"], &["deferrable", "create unique index"]),
        (&["Wrong name"], &["no legal topic", "--type NAME"]),
        (&["parent"], &["inherit"]),
        (&["parts", "--on", "update"], &["partition", "--on insert,update,delete"]),
        (&["parts", "--bulk"], &["without --bulk"]),
        (&["shop.orders", "--event-type", "{what}"], &["{op}"]),
        (&["shop.orders", "--on", "truncate"], &["insert, update, delete"]),
        (&["shop.orders", "--backfill"], &["is not captured"]),
        (&["shop.orders", "--where", "true"], &["--backfill"]),
    ];
    for (arguments, told) in cases {
        let output = command(&database, arguments).await?;
        ensure!(
            output.code.is_some_and(|code| code == 1 || code == 2) && output.stdout.is_empty(),
            "{arguments:?}: {output:?}"
        );
        ensure!(told.iter().all(|told| output.stderr.contains(told)), "{arguments:?}: {told:?}: {}", output.stderr);
    }
    ensure!(outbox.number("select count(*) from pg_proc where proname like 'event_outbox_capture%'").await? == 0);
    ensure!(outbox.number("select count(*) from event_outbox_audit").await? == 0);
    Ok(())
}

async fn a_lock_that_is_not_free_is_named_and_nothing_is_changed(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut holder = database.connect().await?;
    run(&mut holder, ORDERS).await?;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await?;
    run(&mut holder, "begin; insert into shop.orders values (1)").await?;
    let output = command(&database, &["shop.orders", "--lock-timeout", "300ms"]).await?;
    let told = [format!("pid {pid}"), "nothing was changed".to_owned(), "code: OR-2009".to_owned()];
    ensure!(output.code == Some(1) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
    ensure!(outbox.number("select count(*) from pg_trigger where tgname like '%capture%'").await? == 0);
    run(&mut holder, "commit").await?;
    capture(&database, &["shop.orders"]).await?;
    run(&mut holder, "begin; select from shop.orders").await?;
    let output = command(&database, &["--drop", "shop.orders", "--lock-timeout", "300ms"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains(&format!("pid {pid}")), "{output:?}");
    ensure!(outbox.number("select count(*) from pg_trigger where tgname like '%capture%'").await? == 1);
    Ok(())
}
