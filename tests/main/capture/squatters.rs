//! Another user has CREATE on the schema of the outbox, and places objects there that have the names of ours.

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use sqlx::{Connection, PgConnection};

use lab::{Outbox, TestDatabase, trials};

use super::{capture, command, expect, run};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            objects_of_other_users_are_neither_used_nor_replaced;
    }
}

async fn objects_of_other_users_are_neither_used_nor_replaced(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut owner = database.connect().await?;
    run(
        &mut owner,
        "create schema shop; create table shop.orders (id bigint primary key); insert into shop.orders values (1)",
    )
    .await?;
    let user = format!("{}_mallory", database.name());
    run(
        &mut owner,
        &format!("create role {user} login password 'secret'; grant usage, create on schema public to {user}"),
    )
    .await?;
    let url = database.url();
    let (_, server) = url.split_once('@').context("no user")?;
    let mut mallory = PgConnection::connect(&format!("postgres://{user}:secret@{server}")).await?;
    run(&mut mallory, "create sequence public.trap; create function public.spring() returns trigger language plpgsql as 'begin perform nextval(''public.trap''); return new; end'").await?;
    let sprung = "select count(*) from public.trap where is_called";

    // A function would keep its owner, who could change it later.
    let plan = capture(&database, &["shop.orders", "--dry-run"]).await?;
    let sql = plan["sql"].as_str().context("no sql")?.to_owned();
    let names: Vec<_> = sql.lines().filter_map(|line| line.strip_prefix("create function ")?.split_once('(')).collect();
    ensure!(names.len() == 2, "{sql}");
    for (name, _) in names {
        run(
            &mut mallory,
            &format!("create function {name}() returns trigger language plpgsql as 'begin return null; end'"),
        )
        .await?;
        let output = command(&database, &["shop.orders"]).await?;
        let told = [&user, "nothing was changed", "drop function", "code: OR-2206"];
        ensure!(output.code == Some(1) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
        // Also one that comes after the look: the printed SQL is the SQL that runs.
        let error = run(&mut owner, &sql).await.err().context("the function was replaced")?;
        ensure!(format!("{error:#}").contains("already exists"), "{error:#}");
        run(&mut owner, "rollback").await?;
        ensure!(outbox.number("select count(*) from pg_trigger where tgname ~ 'event_outbox_capture'").await? == 0);
        run(&mut mallory, &format!("drop function {name}()")).await?;
    }
    capture(&database, &["shop.orders"]).await?;

    // A table of backfills with a trigger, and a view.
    for (create, drop) in [
        (
            "create table public.event_outbox_backfill (source text primary key, filter text, key text[], last text[], until text[], \
             skipped jsonb default '[]', events bigint default 0, started_at timestamptz, finished_at timestamptz); \
             create trigger spring before insert on public.event_outbox_backfill for each row execute function public.spring(); \
             grant all on public.event_outbox_backfill to public",
            "drop table public.event_outbox_backfill",
        ),
        (
            "create view public.event_outbox_backfill as select nextval('public.trap') as events, 0::oid as relation, ''::text as source, \
             '[]'::jsonb as skipped, '[]'::jsonb as failed, now() as finished_at; grant all on public.event_outbox_backfill to public",
            "drop view public.event_outbox_backfill",
        ),
    ] {
        run(&mut mallory, create).await?;
        let output = command(&database, &["shop.orders", "--backfill"]).await?;
        let told = [&user, "event_outbox_backfill", "code: OR-2206"];
        ensure!(output.code == Some(1) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
        capture(&database, &["--list"]).await?;
        capture(&database, &["--drop", "shop.orders", "--dry-run"]).await?;
        ensure!(outbox.number(sprung).await? == 0, "{create}");
        run(&mut mallory, drop).await?;
    }
    capture(&database, &["shop.orders", "--backfill"]).await?;
    expect(&database, &[("1", "Snapshot")]).await?;
    // What is our own is replaced, also if only the functions are left.
    run(&mut owner, "drop table shop.orders; create table shop.orders (id bigint primary key)").await?;
    capture(&database, &["shop.orders"]).await?;
    let foreign = format!(
        "select count(*) from pg_proc where proname ~ '^event_outbox_(capture|refuse)' and proowner = '{user}'::regrole"
    );
    ensure!(outbox.number(&foreign).await? == 0);
    mallory.close().await?;
    run(&mut owner, &format!("drop owned by {user} cascade; drop role {user}")).await
}
