//! Tables of many shapes: names, keys, partitions, generated and dropped columns, triggers of the application.

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::json;

use lab::{TestDatabase, trials};

use super::{capture, command, events, expect, run};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            hostile_names_are_only_names,
            keys_of_several_columns_and_keys_of_several_rows,
            partitions_are_captured_also_those_that_come_later,
            columns_may_be_generated_added_and_dropped,
            a_trigger_of_the_application_that_changes_the_row_again_is_seen_in_order;
    }
}

async fn hostile_names_are_only_names(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    let table = "\"my \"\"schema\".\"Out'box; $body$ \\ x\"";
    // Columns with the names that our own SQL uses.
    run(
        &mut connection,
        &format!(
            "create schema \"my \"\"schema\"; create table {table} (\"it's, \"\"one\" text, \"after\" int, before int, changed int, n int, o int, \
             l int, r int, t int, id int, at int, new int, old int, outbox_relay_row int, primary key (\"it's, \"\"one\", \"after\"))"
        ),
    )
    .await?;
    for mode in [&[][..], &["--bulk"], &["--columns", "n,\"it's, \"\"one\",before"]] {
        capture(&database, &[&[table, "--type", "weird"], mode].concat()).await?;
        run(
            &mut connection,
            &format!(
                "insert into {table} values ('a\"''\\', 1, 2, 3, 4); update {table} set n = 5; update {table} set \"after\" = 2; \
                 delete from {table}"
            ),
        )
        .await?;
        let (one, two) = ("[\"a\\\"'\\\\\", 1]", "[\"a\\\"'\\\\\", 2]");
        let wanted = [(one, "Created"), (one, "Updated"), (one, "Deleted"), (two, "Created"), (two, "Deleted")];
        let payloads = expect(&database, &wanted).await?;
        ensure!(payloads[1]["changed"] == json!(["n"]) && payloads[1]["after"]["n"] == 5, "{payloads:?}");
        run(&mut connection, &format!("alter table {table} disable trigger user; insert into {table} values ('x', 7), ('y', 8); alter table {table} enable trigger user")).await?;
        capture(&database, &[table, "--backfill", "--where", "\"after\" > 7 -- only"]).await?;
        expect(&database, &[("[\"y\", 8]", "Snapshot")]).await?;
        run(&mut connection, &format!("delete from {table}; delete from event_outbox")).await?;
    }
    capture(&database, &["--drop", table]).await.map(drop)
}

async fn keys_of_several_columns_and_keys_of_several_rows(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(&mut connection, "create table public.lines (order_id bigint not null, line int not null, amount int, primary key (order_id, line))").await?;
    let done = capture(&database, &["lines"]).await?;
    ensure!(done["captured"]["unique"] == true && done["notes"] == json!([]), "{done:#}");
    run(&mut connection, "insert into public.lines values (1, 1, 5)").await?;
    expect(&database, &[("[1, 1]", "Created")]).await?;
    // The order is the entity: its rows share the key.
    let done = capture(&database, &["lines", "--key", "order_id", "--type", "order"]).await?;
    ensure!(done["captured"]["unique"] == false && done["notes"].to_string().contains("locks the entity"), "{done:#}");
    run(
        &mut connection,
        "insert into public.lines values (1, 2, 5); update public.lines set order_id = 2 where line = 2",
    )
    .await?;
    expect(&database, &[("1", "Created"), ("1", "Deleted"), ("2", "Created")]).await?;
    run(
        &mut connection,
        "create table public.heap (id bigint not null, name text); insert into public.heap values (1, 'a')",
    )
    .await?;
    capture(&database, &["heap", "--key", "id"]).await?;
    let output = command(&database, &["heap", "--backfill"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("no unique key"), "{output:?}");
    Ok(())
}

async fn partitions_are_captured_also_those_that_come_later(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(
        &mut connection,
        "create table public.parts (id bigint, region int, note text, primary key (id, region)) partition by list (region); \
         create table public.parts_1 partition of public.parts for values in (1)",
    )
    .await?;
    capture(&database, &["parts", "--type", "part", "--key", "id"]).await?;
    run(&mut connection, "create table public.parts_2 partition of public.parts for values in (2)").await?;
    run(&mut connection, "insert into public.parts values (1, 1); insert into public.parts_2 values (2, 2); update public.parts set note = 'a'").await?;
    expect(&database, &[("1", "Created"), ("2", "Created"), ("1", "Updated"), ("2", "Updated")]).await?;
    // A row that moves is deleted and inserted.
    run(&mut connection, "update public.parts set region = 2 where id = 1; delete from public.parts where id = 2")
        .await?;
    let payloads = expect(&database, &[("1", "Deleted"), ("1", "Created"), ("2", "Deleted")]).await?;
    ensure!(payloads[1]["after"]["region"] == 2, "{payloads:?}");
    run(&mut connection, "truncate public.parts").await.err().context("TRUNCATE is not refused")?;
    // Captured again, listed once, dropped with all partitions.
    capture(&database, &["parts", "--type", "part", "--key", "id"]).await?;
    ensure!(capture(&database, &["--list"]).await?["tables"].as_array().map(Vec::len) == Some(1));
    // A trigger that is disabled on one partition is seen, and set again.
    run(&mut connection, "alter table public.parts_1 disable trigger user").await?;
    ensure!(capture(&database, &["--list"]).await?["tables"][0]["enabled"] == false);
    let done = capture(&database, &["parts", "--type", "part", "--key", "id"]).await?;
    ensure!(done["unchanged"] == false, "{done:#}");
    ensure!(capture(&database, &["--list"]).await?["tables"][0]["enabled"] == true);
    capture(&database, &["parts", "--backfill"]).await?;
    expect(&database, &[("1", "Snapshot")]).await?;
    capture(&database, &["--drop", "parts"]).await?;
    run(&mut connection, "delete from public.parts").await?;
    expect(&database, &[]).await.map(drop)
}

async fn columns_may_be_generated_added_and_dropped(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(
        &mut connection,
        "create table public.things (id bigint primary key, a int, b int, double_a int generated always as (a * 2) stored)",
    )
    .await?;
    for mode in [&[][..], &["--bulk"]] {
        capture(&database, &[&["things", "--columns", "a,b,double_a"], mode].concat()).await?;
        run(
            &mut connection,
            "insert into public.things (id, a, b) values (1, 2, 3); alter table public.things drop column b, add column c int",
        )
        .await?;
        run(&mut connection, "update public.things set a = 3, c = 4").await?;
        let payloads = expect(&database, &[("1", "Created"), ("1", "Updated")]).await?;
        ensure!(payloads[0]["after"] == json!({"id": 1, "a": 2, "b": 3, "double_a": 4}), "{payloads:?}");
        ensure!(payloads[1]["after"] == json!({"id": 1, "a": 3, "double_a": 6}), "{payloads:?}");
        capture(&database, &[&["things"], mode].concat()).await?;
        run(&mut connection, "update public.things set c = 5").await?;
        ensure!(expect(&database, &[("1", "Updated")]).await?[0]["changed"] == json!(["c"]));
        // Without its key no change is possible: the error says why, and what to do.
        run(&mut connection, "alter table public.things rename column id to number").await?;
        let error = run(&mut connection, "update public.things set c = 6").await.err().context("it is not refused")?;
        ensure!(format!("{error:#}").contains("a column of this key is gone"), "{error:#}");
        run(
            &mut connection,
            "alter table public.things rename column number to id; delete from public.things; delete from event_outbox",
        )
        .await?;
        run(&mut connection, "alter table public.things drop column c, add column b int").await?;
    }
    ensure!(events(&database).await?.is_empty());
    Ok(())
}

async fn a_trigger_of_the_application_that_changes_the_row_again_is_seen_in_order(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(
        &mut connection,
        "create table public.touched (id bigint primary key, touches int not null default 0);
         create function public.touch() returns trigger language plpgsql as
             'begin update public.touched set touches = touches + 1 where id = new.id; return null; end';
         create trigger \"A first one\" after insert on public.touched for each row execute function public.touch()",
    )
    .await?;
    capture(&database, &["touched"]).await?;
    run(&mut connection, "insert into public.touched values (1)").await?;
    let payloads = expect(&database, &[("1", "Created"), ("1", "Updated")]).await?;
    ensure!(payloads[0]["after"]["touches"] == 0 && payloads[1]["after"]["touches"] == 1, "{payloads:?}");
    Ok(())
}
