//! The backfill of a captured table: beside random writers, interrupted, past locked rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use lab::kafka::RealKafka;
use lab::{Outbox, SOON, TestDatabase, eventually, trials};

use super::order::{TABLE, apply, table, write};
use super::stopped::start;
use super::{capture, command, events, expect, run};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            an_interrupted_backfill_goes_on_and_repeats_no_row,
            a_backfill_that_another_process_goes_on_with_stops_and_repeats_no_row,
            a_locked_row_is_visited_later_with_its_new_version,
            a_backfill_that_cannot_begin_says_why;
        with_both:
            the_events_of_a_backfill_are_never_older_than_the_changes_before_them;
    }
}

async fn the_events_of_a_backfill_are_never_older_than_the_changes_before_them(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut connection = database.connect().await?;
    run(&mut connection, TABLE).await?;
    run(&mut connection, "insert into public.accounts select n, n from generate_series(0, 599) n").await?;
    capture(&database, &["accounts"]).await?;
    let relay = outbox.relay(&kafka).start_ready("filling").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..=3_u64)
        .map(|seed| {
            let (database, stop) = (database.clone(), stop.clone());
            tokio::spawn(async move {
                for round in 0.. {
                    write(&database, seed * 100 + round, 20).await??;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                anyhow::Ok(())
            })
        })
        .collect();
    // Several rounds: each begins with the keys that the writers change.
    for _ in 0..12 {
        let done = capture(&database, &["accounts", "--backfill", "--restart"]).await?;
        ensure!(done["finished"] == true && done["locked"] == 0 && done["events"].as_i64() >= Some(560), "{done:#}");
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    outbox.until_settled().await;
    let (applied, rows) = (apply(&kafka, &outbox).await?, table(&mut connection).await?);
    ensure!(applied == rows, "{} rows of the topic, {} of the table", applied.len(), rows.len());
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn an_interrupted_backfill_goes_on_and_repeats_no_row(database: TestDatabase) -> anyhow::Result<()> {
    const ROWS: i64 = 3_000;
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(&mut connection, TABLE).await?;
    run(&mut connection, &format!("insert into public.accounts select n, n from generate_series(1, {ROWS}) n")).await?;
    capture(&database, &["accounts"]).await?;
    let snapshots = "select count(*) from event_outbox where event_type = 'Snapshot'";
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let before = outbox.number(snapshots).await?;
        let child = start(&database, &["capture", "accounts", "--backfill", "--rate", "200"])?;
        eventually("a page is written", SOON, || async {
            let found = outbox.number(snapshots).await.map_err(|error| error.to_string())?;
            if found > before { Ok(()) } else { Err(found.to_string()) }
        })
        .await;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
        ensure!(output.status.code() == (signal == Signal::SIGINT).then_some(130), "{output:?}");
        if signal == Signal::SIGINT {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(stderr.contains("--backfill goes on where it stopped"), "{stderr}");
        }
    }
    ensure!(outbox.number(snapshots).await? < ROWS, "it was not interrupted");
    let output = command(&database, &["accounts", "--backfill", "--where", "id > 0"]).await?;
    ensure!(output.code == Some(2) && output.stderr.contains("is not finished"), "{output:?}");
    let listed = capture(&database, &["--list"]).await?;
    ensure!(listed["tables"][0]["backfill"]["finished"] == false, "{listed:#}");
    let done = capture(&database, &["accounts", "--backfill"]).await?;
    ensure!(done["resumed"] == true && done["finished"] == true && done["events"] == ROWS, "{done:#}");
    ensure!(outbox.number("select count(distinct entity_id) from event_outbox").await? == ROWS);
    ensure!(outbox.number(snapshots).await? == ROWS, "a row has two events");
    let again = command(&database, &["accounts", "--backfill"]).await?;
    ensure!(again.code == Some(0) && again.stdout.contains("--restart"), "{again:?}");
    ensure!(outbox.number(snapshots).await? == ROWS, "a finished backfill was repeated unasked");
    // In the order of keys.
    let inverted = "select count(*) from (select entity_id::int8 - lag(entity_id::int8) over (order by id) as step from event_outbox) s where step <> 1";
    ensure!(outbox.number(inverted).await? == 0);
    let done = capture(&database, &["accounts", "--backfill", "--where", "id <= 10"]).await?;
    ensure!(done["resumed"] == false && done["events"] == 10, "{done:#}");
    let entries =
        "select count(*) from event_outbox_audit where command = 'capture --backfill' and affected in (10, 3000)";
    ensure!(outbox.number(entries).await? == 2);
    // What was left of a backfill goes with the capture.
    outbox.execute("update event_outbox_backfill set finished_at = null, last = array['5']").await?;
    capture(&database, &["--drop", "accounts"]).await?;
    capture(&database, &["accounts"]).await?;
    let done = capture(&database, &["accounts", "--backfill", "--where", "id <= 10"]).await?;
    ensure!(done["resumed"] == false && done["events"] == 10, "{done:#}");
    Ok(())
}

async fn a_backfill_that_another_process_goes_on_with_stops_and_repeats_no_row(
    database: TestDatabase,
) -> anyhow::Result<()> {
    const ROWS: i64 = 3_000;
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(&mut connection, TABLE).await?;
    run(&mut connection, &format!("insert into public.accounts select n, n from generate_series(1, {ROWS}) n")).await?;
    capture(&database, &["accounts"]).await?;
    let child = start(&database, &["capture", "accounts", "--backfill", "--rate", "200"])?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    // Stopped between two pages, it holds no lock.
    eventually("the process is stopped between two pages", SOON, || async {
        kill(pid, Signal::SIGSTOP).map_err(|error| error.to_string())?;
        let pages = outbox.number("select count(*) from event_outbox").await.map_err(|error| error.to_string())?;
        let busy = "select count(*) from pg_stat_activity where application_name = 'outbox-relay capture' \
                    and datname = current_database() and state <> 'idle'";
        match (pages, outbox.number(busy).await.map_err(|error| error.to_string())?) {
            (1.., 0) => Ok(()),
            other => {
                kill(pid, Signal::SIGCONT).map_err(|error| error.to_string())?;
                Err(format!("{other:?}"))
            }
        }
    })
    .await;
    let done = capture(&database, &["accounts", "--backfill"]).await?;
    ensure!(done["resumed"] == true && done["finished"] == true && done["events"] == ROWS, "{done:#}");
    kill(pid, Signal::SIGCONT)?;
    let stopped = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    ensure!(stopped.status.code() == Some(1), "{stopped:?}");
    ensure!(outbox.number("select count(*) from event_outbox").await? == ROWS, "a row has two events");
    ensure!(outbox.number("select count(distinct entity_id) from event_outbox").await? == ROWS);
    Ok(())
}

async fn a_locked_row_is_visited_later_with_its_new_version(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut holder = database.connect().await?;
    run(&mut holder, TABLE).await?;
    run(&mut holder, "insert into public.accounts select n, n from generate_series(1, 20) n").await?;
    capture(&database, &["accounts"]).await?;
    run(
        &mut holder,
        "begin; update public.accounts set n = 100 where id = 3; delete from public.accounts where id = 4; \
                      update public.accounts set id = 50 where id = 5",
    )
    .await?;
    let filling = {
        let database = database.clone();
        tokio::spawn(async move { capture(&database, &["accounts", "--backfill"]).await })
    };
    let skipped = "select coalesce((select jsonb_array_length(skipped) from event_outbox_backfill), 0)";
    eventually("three rows are skipped", SOON, || async {
        // The table of backfills comes with the first one.
        let found = outbox.number(skipped).await.map_err(|error| error.to_string())?;
        if found == 3 { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    ensure!(outbox.number("select count(*) from event_outbox where event_type = 'Snapshot'").await? == 17);
    run(&mut holder, "commit").await?;
    let done = filling.await??;
    ensure!(done["events"] == 18 && done["locked"] == 0, "{done:#}");
    let found = events(&database).await?;
    let of = |id: &str| -> Vec<(&str, &Value)> {
        let own = found.iter().filter(|(entity, ..)| entity == id);
        own.map(|(_, event, payload)| (event.as_str(), &payload["after"]["n"])).collect()
    };
    ensure!(of("3") == [("Updated", &Value::from(100)), ("Snapshot", &Value::from(100))], "{found:?}");
    ensure!(of("4") == [("Deleted", &Value::Null)] && of("5") == [("Deleted", &Value::Null)], "{found:?}");
    ensure!(of("50") == [("Created", &Value::from(5))], "{found:?}");
    Ok(())
}

async fn a_backfill_that_cannot_begin_says_why(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(&mut connection, TABLE).await?;
    capture(&database, &["accounts"]).await?;
    // Of an empty table there is nothing to do.
    let done = capture(&database, &["accounts", "--backfill"]).await?;
    ensure!(done["finished"] == true && done["events"] == 0, "{done:#}");
    run(&mut connection, "insert into public.accounts values (1, 1), (2, 2)").await?;
    expect(&database, &[("1", "Created"), ("2", "Created")]).await?;
    for (filter, told) in [
        ("n > 0 and nope = 1", "column \"nope\" does not exist\n  n > 0 and nope = 1\n            ^\n"),
        ("n >\n  é 0", "syntax error at or near \"0\"\n    é 0\n      ^\n"),
        ("n = ", "syntax error at or near \")\"\n  n = \n     ^\n"),
        ("n = 'x'", "invalid input syntax for type bigint: \"x\"\n  n = 'x'\n      ^\n"),
        (
            "true); delete from public.accounts; select (true",
            "cannot insert multiple commands into a prepared statement",
        ),
        ("id", "argument of WHERE must be type boolean, not type bigint\n  id\n  ^\n"),
    ] {
        for dry in [&[][..], &["--dry-run"]] {
            let output = command(&database, &[&["accounts", "--backfill", "--where", filter], dry].concat()).await?;
            let hint = "hint: accepted is what may follow WHERE in SQL, such as --where \"created_at >= '2026-01-01'";
            ensure!(output.code == Some(2) && output.stderr.contains(told), "{filter}: {}", output.stderr);
            ensure!(output.stderr.contains(hint) && output.stderr.contains("\"id\", \"n\""), "{}", output.stderr);
            ensure!(outbox.number("select count(*) from public.accounts").await? == 2, "{filter}");
        }
    }
    for filter in [
        "true); commit; delete from public.accounts; select (1",
        "true\n]); commit; delete from public.accounts; select (array[1",
        "false) or (true",
        "n = 1) or (n = 2",
        "n = 1 /*",
        "n = $1",
    ] {
        for dry in [&[][..], &["--dry-run"]] {
            let output = command(&database, &[&["accounts", "--backfill", "--where", filter], dry].concat()).await?;
            ensure!(matches!(output.code, Some(1 | 2)), "{filter}: {output:?}");
            ensure!(outbox.number("select count(*) from public.accounts").await? == 2, "{filter}");
        }
    }
    expect(&database, &[]).await?;
    for filter in
        ["n in (1, 2) and array[n] && '{2}' -- only", "(select id = 2)", "case when n = 2 then true else false end"]
    {
        let plan = capture(&database, &["accounts", "--backfill", "--where", filter, "--dry-run"]).await?;
        plan["estimated_rows"].as_i64().context("no estimate")?;
        capture(&database, &["accounts", "--backfill", "--where", filter]).await?;
        expect(&database, &[("2", "Snapshot")]).await?;
    }
    let plan = capture(&database, &["accounts", "--backfill", "--dry-run"]).await?;
    plan["estimated_rows"].as_i64().context("no estimate")?;
    expect(&database, &[]).await?;
    capture(&database, &["accounts", "--backfill", "--where", "n = 2"]).await?;
    expect(&database, &[("2", "Snapshot")]).await.map(drop)
}
