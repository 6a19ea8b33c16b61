//! A client that is stopped or cut off in the middle: the server frees the locks by itself.

use std::process::{Child, Stdio};

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use lab::{Outbox, SOON, TestDatabase, eventually, trials};

use super::order::TABLE;
use super::{capture, run};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            a_stopped_client_does_not_keep_applications_waiting,
            the_printed_sql_does_not_queue_for_a_lock;
    }
}

/// Starts a command, without waiting for its end.
pub(crate) fn start(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<Child> {
    let mut command = std::process::Command::new(lab::relay::binary());
    command.env_clear().env("DATABASE_URL", database.url()).args(arguments);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Sends a signal to the child.
pub(crate) fn send(child: &Child, signal: Signal) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
}

/// The loop's table of `adopt`, with a pending row.
const LOOP: &str = "
    create table public.loop (id bigserial primary key, aggregate_type text not null, aggregate_id text not null, type text not null,
        payload jsonb not null, published boolean not null default false);
    insert into public.loop (aggregate_type, aggregate_id, type, payload) values ('order', '1', 'X', '{}')";

async fn a_stopped_client_does_not_keep_applications_waiting(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut connection = database.connect().await?;
    run(&mut connection, TABLE).await?;
    run(&mut connection, "insert into public.accounts values (1, 1)").await?;
    run(&mut connection, LOOP).await?;
    capture(&database, &["accounts"]).await?;
    // A gate, at which the commands wait when they have their locks and write events. A wait for a lock would have a limit.
    run(
        &mut connection,
        "create function public.gate() returns trigger language plpgsql as
             'begin while not pg_try_advisory_xact_lock_shared(4711) loop perform pg_sleep(0.01); end loop; return new; end';
         create trigger gate before insert on public.event_outbox for each row when (new.event_type in ('Snapshot', 'X'))
             execute function public.gate()",
    )
    .await?;
    for (arguments, change) in [
        (
            &["adopt", "loop"][..],
            "insert into public.loop (aggregate_type, aggregate_id, type, payload) values ('order', '2', 'Y', '{}')",
        ),
        (&["capture", "accounts", "--backfill"], "update public.accounts set n = n + 1"),
    ] {
        let mut gate = database.connect().await?;
        run(&mut gate, "select pg_advisory_lock(4711)").await?;
        let mut child = start(&database, arguments)?;
        eventually("the command waits at the gate", SOON, || async {
            let waiting =
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
            let found = outbox.number(waiting).await.map_err(|error| error.to_string())?;
            if found == 1 { Ok(()) } else { Err(found.to_string()) }
        })
        .await;
        send(&child, Signal::SIGSTOP)?;
        run(&mut gate, "select pg_advisory_unlock_all()").await?;
        // It succeeds as soon as the server has ended the stopped command's transaction.
        let mut writer = database.connect().await?;
        run(&mut writer, "set statement_timeout = '60s'").await?;
        let written = run(&mut writer, change).await;
        child.kill()?;
        child.wait()?;
        written.with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}

async fn the_printed_sql_does_not_queue_for_a_lock(database: TestDatabase) -> anyhow::Result<()> {
    let mut holder = database.connect().await?;
    run(&mut holder, TABLE).await?;
    let plan = capture(&database, &["accounts", "--dry-run"]).await?;
    let sql = plan["sql"].as_str().context("no sql")?;
    run(&mut holder, "begin; insert into public.accounts values (1, 1)").await?;
    let mut operator = database.connect().await?;
    // Only so that the trial ends if it does queue.
    run(&mut operator, "set statement_timeout = '30s'").await?;
    let error = run(&mut operator, sql).await.err().context("there was no lock")?;
    let code = error.downcast_ref::<sqlx::Error>().and_then(|error| error.as_database_error()?.code());
    ensure!(code.as_deref() == Some("55P03"), "{error:#}");
    Ok(())
}
