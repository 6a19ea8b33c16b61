//! The position of a backfill: whose it is, what it belongs to, and what it cannot send.

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::PgConnection;

use lab::{Outbox, SOON, TestDatabase, eventually, trials};

use super::order::TABLE;
use super::stopped::{send, start};
use super::{capture, command, run};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            a_backfill_belongs_to_the_process_that_took_it_last,
            a_backfill_ends_when_its_triggers_are_dropped,
            a_backfill_goes_on_only_with_the_triggers_that_it_began_with,
            a_table_that_is_captured_again_in_the_same_way_keeps_its_triggers_and_its_backfill,
            a_row_that_cannot_be_an_event_stops_no_other,
            many_locked_rows_make_the_backfill_wait,
            keys_of_types_that_are_not_built_in_are_not_walked;
    }
}

const SNAPSHOTS: &str = "select count(*) from event_outbox where event_type = 'Snapshot'";
const SKIPPED: &str = "select coalesce((select jsonb_array_length(skipped) from event_outbox_backfill), 0)";

/// Waits until the query returns `wanted`. The table of backfills comes with the first one.
async fn until(outbox: &Outbox, query: &str, wanted: i64) {
    eventually(query, SOON, || async {
        let found = outbox.number(query).await.map_err(|error| error.to_string())?;
        if found == wanted { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
}

/// Captures a table of `rows` accounts, and locks those of the condition.
async fn with_locked_rows(database: &TestDatabase, rows: i64, locked: &str) -> anyhow::Result<PgConnection> {
    let mut holder = database.connect().await?;
    run(&mut holder, TABLE).await?;
    run(&mut holder, &format!("insert into public.accounts select n, n from generate_series(1, {rows}) n")).await?;
    capture(database, &["accounts"]).await?;
    run(&mut holder, &format!("begin; select from public.accounts where {locked} for update")).await?;
    Ok(holder)
}

async fn a_backfill_belongs_to_the_process_that_took_it_last(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut holder = with_locked_rows(&database, 5, "id = 3").await?;
    let first = start(&database, &["capture", "accounts", "--backfill"])?;
    until(&outbox, SKIPPED, 1).await;
    let second = start(&database, &["capture", "accounts", "--backfill", "--json"])?;
    // The first one ends at its next visit of the locked row.
    let first = tokio::task::spawn_blocking(move || first.wait_with_output()).await??;
    let told = String::from_utf8_lossy(&first.stderr).into_owned();
    ensure!(first.status.code() == Some(1) && told.contains("another process has taken"), "{first:?}");
    run(&mut holder, "commit").await?;
    let second = tokio::task::spawn_blocking(move || second.wait_with_output()).await??;
    let done: Value = serde_json::from_slice(&second.stdout).with_context(|| format!("{second:?}"))?;
    ensure!(second.status.success() && done["resumed"] == true && done["events"] == 5, "{done:#}");
    ensure!(outbox.number(SNAPSHOTS).await? == 5, "a row has two events");
    let entries = "select count(*) from event_outbox_audit where command = 'capture --backfill'";
    ensure!(outbox.number(entries).await? == 1);
    Ok(())
}

async fn a_backfill_ends_when_its_triggers_are_dropped(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut holder = with_locked_rows(&database, 5, "id = 3").await?;
    let child = start(&database, &["capture", "accounts", "--backfill"])?;
    until(&outbox, SKIPPED, 1).await;
    send(&child, Signal::SIGSTOP)?;
    run(&mut holder, "commit").await?;
    // The server ends a transaction in which the process was stopped.
    capture(&database, &["--drop", "accounts", "--lock-timeout", "60s"]).await?;
    send(&child, Signal::SIGCONT)?;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(outbox.number(SNAPSHOTS).await? == 4, "the locked row has an event");

    capture(&database, &["accounts"]).await?;
    run(&mut holder, "delete from event_outbox").await?;
    run(&mut holder, "begin; select from public.accounts where id = 3 for update").await?;
    let child = start(&database, &["capture", "accounts", "--backfill"])?;
    until(&outbox, SKIPPED, 1).await;
    run(&mut database.connect().await?, "alter table public.accounts disable trigger user").await?;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && told.contains("replaced or disabled"), "{output:?}");
    run(&mut holder, "commit").await?;
    ensure!(outbox.number(SNAPSHOTS).await? == 4, "the locked row has an event");
    let output = command(&database, &["accounts", "--backfill"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("is disabled"), "{output:?}");
    Ok(())
}

/// Begins a backfill and interrupts it at a locked row.
async fn interrupted(database: &TestDatabase, table: &str) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(database);
    let child = start(database, &["capture", table, "--backfill", "--restart"])?;
    until(&outbox, SKIPPED, 1).await;
    send(&child, Signal::SIGINT)?;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    ensure!(output.status.code() == Some(130), "{output:?}");
    Ok(())
}

async fn a_backfill_goes_on_only_with_the_triggers_that_it_began_with(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut holder = with_locked_rows(&database, 5, "id = 3").await?;
    interrupted(&database, "accounts").await?;
    run(&mut holder, "commit").await?;
    // A renamed table is the same table.
    run(&mut holder, "alter table public.accounts rename to renamed").await?;
    capture(&database, &["renamed", "--lock-timeout", "60s"]).await?;
    let output = command(&database, &["renamed", "--backfill"]).await?;
    let told = ["captured anew", "--restart"];
    ensure!(output.code == Some(2) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
    run(&mut holder, "delete from event_outbox").await?;
    run(&mut holder, "begin; select from public.renamed where id = 3 for update").await?;
    let child = start(&database, &["capture", "renamed", "--backfill", "--restart"])?;
    until(&outbox, SNAPSHOTS, 4).await;
    send(&child, Signal::SIGINT)?;
    tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    run(&mut holder, "commit; alter table public.renamed rename to accounts").await?;
    let done = capture(&database, &["accounts", "--backfill"]).await?;
    ensure!(done["resumed"] == true && done["events"] == 5, "{done:#}");
    // Another table of the same name begins anew.
    run(&mut holder, "begin; select from public.accounts where id = 3 for update").await?;
    run(&mut database.connect().await?, "delete from event_outbox").await?;
    interrupted(&database, "accounts").await?;
    run(&mut holder, "rollback; drop table public.accounts").await?;
    run(&mut holder, TABLE).await?;
    run(&mut holder, "insert into public.accounts values (1, 1), (2, 2); delete from event_outbox").await?;
    capture(&database, &["accounts"]).await?;
    let done = capture(&database, &["accounts", "--backfill"]).await?;
    ensure!(done["resumed"] == false && done["events"] == 2, "{done:#}");
    Ok(())
}

async fn a_table_that_is_captured_again_in_the_same_way_keeps_its_triggers_and_its_backfill(
    database: TestDatabase,
) -> anyhow::Result<()> {
    const TRIGGERS: &str =
        "select sum(oid::int8) from pg_trigger where tgrelid = 'public.accounts'::regclass and not tgisinternal";
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(&mut connection, TABLE).await?;
    run(&mut connection, "insert into public.accounts values (1, 1), (2, 2)").await?;
    let entries = "select count(*) from event_outbox_audit where command = 'capture'";
    for options in [&[][..], &["--bulk", "--on", "insert,delete", "--allow-truncate"], &["--columns", "n"]] {
        let all = [&["accounts"], options].concat();
        ensure!(capture(&database, &all).await?["unchanged"] == false, "{options:?}");
        let (triggers, audited) = (outbox.number(TRIGGERS).await?, outbox.number(entries).await?);
        capture(&database, &["accounts", "--backfill"]).await?;
        ensure!(outbox.number(SNAPSHOTS).await? == 2, "{options:?}");
        // The pair of a deploy script, at the next deploy. A writer has the table: nothing that needs a lock is done.
        let mut writer = database.connect().await?;
        run(&mut writer, "begin; select from public.accounts").await?;
        let again = capture(&database, &all).await?;
        ensure!(
            again["unchanged"] == true && again["replaced"] == false && again["sql"] == "",
            "{options:?}: {again:#}"
        );
        let told = command(&database, &all).await?;
        ensure!(told.code == Some(0) && told.stdout.contains("already, nothing was changed"), "{told:?}");
        run(&mut writer, "rollback").await?;
        let done = capture(&database, &["accounts", "--backfill"]).await?;
        ensure!(done["finished"] == true && done["resumed"] == true, "{done:#}");
        ensure!(outbox.number(SNAPSHOTS).await? == 2, "{options:?}: a finished backfill was repeated unasked");
        ensure!(outbox.number(TRIGGERS).await? == triggers && outbox.number(entries).await? == audited, "{options:?}");
        run(&mut connection, "delete from event_outbox").await?;
    }
    // A function of another version is replaced, under the same triggers.
    let triggers = outbox.number(TRIGGERS).await?;
    for change in [
        "do $$ declare f text; begin select pg_get_functiondef(tgfoid) into f from pg_trigger where tgname ~ 'capture'; \
         execute replace(f, 'begin', 'begin null;'); end $$",
        "do $$ begin execute (select 'alter function ' || tgfoid::regprocedure || ' set timezone = ''CET''' from pg_trigger \
         where tgname ~ 'capture'); end $$",
        "do $$ begin execute (select 'grant execute on function ' || tgfoid::regprocedure || ' to public' from pg_trigger \
         where tgname ~ 'capture'); end $$",
    ] {
        run(&mut connection, change).await?;
        for unchanged in [false, true] {
            let done = capture(&database, &["accounts", "--columns", "n"]).await?;
            ensure!(done["unchanged"] == unchanged && done["replaced"] == !unchanged, "{change}: {done:#}");
            ensure!(outbox.number(TRIGGERS).await? == triggers, "{change}");
        }
    }
    // A trigger that is gone or disabled is set again.
    for change in [
        "alter table public.accounts disable trigger user",
        "do $$ begin execute (select format('drop trigger %I on public.accounts', tgname) from pg_trigger where tgname ~ 'truncate'); end $$",
    ] {
        run(&mut connection, change).await?;
        let done = capture(&database, &["accounts", "--columns", "n"]).await?;
        ensure!(done["unchanged"] == false && done["replaced"] == true, "{change}: {done:#}");
        ensure!(capture(&database, &["accounts", "--columns", "n"]).await?["unchanged"] == true, "{change}");
    }
    Ok(())
}

async fn a_row_that_cannot_be_an_event_stops_no_other(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(
        &mut connection,
        "create table public.documents (id bigint primary key, body json); \
         insert into public.documents select n, case when n in (1, 700) then '\"\\u0000\"' else '{}' end::json from generate_series(1, 1200) n",
    )
    .await?;
    capture(&database, &["documents"]).await?;
    for is_locked in [false, true] {
        let mut holder = database.connect().await?;
        if is_locked {
            run(&mut holder, "begin; select from public.documents where id = 700 for update").await?;
        }
        let child = start(&database, &["capture", "documents", "--backfill", "--restart", "--json"])?;
        if is_locked {
            until(&outbox, SKIPPED, 1).await;
            run(&mut holder, "commit").await?;
        }
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
        let done: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
        let keys: Vec<_> = done["failed"].as_array().context("no list")?.iter().map(|row| row["key"].clone()).collect();
        ensure!(output.status.code() == Some(1) && keys == [json!(["1"]), json!(["700"])], "{done:#}");
        ensure!(done["finished"] == true && done["events"] == 1198 && done["locked"] == 0, "{done:#}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(told.contains("2 rows of") && told.contains("700: unsupported Unicode escape sequence"), "{told}");
        ensure!(outbox.number(SNAPSHOTS).await? == 1198);
        let listed = capture(&database, &["--list"]).await?;
        ensure!(listed["tables"][0]["backfill"]["failed"] == 2, "{listed:#}");
        // A job that is started again after the failure names the rows again, and writes nothing.
        run(&mut connection, "delete from event_outbox").await?;
        for json in [&[][..], &["--json"]] {
            let again = command(&database, &[&["documents", "--backfill"], json].concat()).await?;
            let told = ["2 rows of", "700: unsupported Unicode escape sequence"];
            ensure!(again.code == Some(1) && told.iter().all(|told| again.stderr.contains(told)), "{again:?}");
            ensure!(again.stdout.contains("--restart") || again.stdout.contains("\"700\""), "{again:?}");
        }
        ensure!(outbox.number(SNAPSHOTS).await? == 0, "a finished backfill was repeated unasked");
    }
    // A table without a good row has no end of them.
    run(&mut connection, "alter table public.documents disable trigger user; update public.documents set body = '\"\\u0000\"'; alter table public.documents enable trigger user").await?;
    let output = command(&database, &["documents", "--backfill", "--restart"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("more than 100 rows"), "{output:?}");
    Ok(())
}

async fn many_locked_rows_make_the_backfill_wait(database: TestDatabase) -> anyhow::Result<()> {
    const ROWS: i64 = 2_200;
    let outbox = Outbox::from_database(&database);
    let mut few = with_locked_rows(&database, ROWS, "id = 1").await?;
    let mut many = database.connect().await?;
    run(&mut many, "begin; select from public.accounts where id > 1 for update").await?;
    let child = start(&database, &["capture", "accounts", "--backfill", "--json"])?;
    until(&outbox, SKIPPED, 1_000).await;
    // The skipped rows are visited while most rows have not been looked at.
    run(&mut few, "commit").await?;
    until(&outbox, SNAPSHOTS, 1).await;
    ensure!(outbox.number(SKIPPED).await? == 999);
    run(&mut many, "commit").await?;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let done: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    ensure!(output.status.success() && done["events"] == ROWS && done["locked"] == 0, "{done:#}");
    ensure!(outbox.number(SNAPSHOTS).await? == ROWS);
    Ok(())
}

async fn keys_of_types_that_are_not_built_in_are_not_walked(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(
        &mut connection,
        "create type public.pair as (a int, b int); create table public.pairs (id public.pair primary key);
         create type public.size as enum ('small', 'large'); create domain public.number as bigint check (value > 0);
         create table public.sizes (size public.size, number public.number, primary key (size, number));
         create table public.both (id public.pair primary key, number bigint not null unique)",
    )
    .await?;
    capture(&database, &["pairs"]).await?;
    let output = command(&database, &["pairs", "--backfill"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("not built into Postgres"), "{output:?}");
    run(
        &mut connection,
        "insert into public.sizes values ('large', 1), ('small', 2); insert into public.both values ((1, 1), 1)",
    )
    .await?;
    for (table, events) in [("sizes", 2), ("both", 1)] {
        capture(&database, &[table]).await?;
        ensure!(capture(&database, &[table, "--backfill"]).await?["events"] == events, "{table}");
    }
    Ok(())
}
