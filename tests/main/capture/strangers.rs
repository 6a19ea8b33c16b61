//! Another user owns the table, or types of its columns. Code of this user would run with the rights of the outbox's owner.

use anyhow::ensure;
use libtest_mimic::Trial;
use sqlx::Connection;

use lab::{Outbox, TestDatabase, trials};

use super::{capture, command, run};
use crate::mallory::mallory;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            code_of_other_users_runs_with_the_rights_of_the_owner_only_if_that_is_accepted;
    }
}

async fn code_of_other_users_runs_with_the_rights_of_the_owner_only_if_that_is_accepted(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut owner = database.connect().await?;
    let (user, mut mallory) = mallory(&database, &mut owner).await?;
    run(
        &mut mallory,
        "create type shop.state as enum ('NEW'); create type shop.part as (states shop.state[]); create domain shop.parts as shop.part;
         create function shop.spy(shop.state) returns json language plpgsql as
             'begin insert into public.spied values (current_user); return ''\"x\"''; end';
         create cast (shop.state as json) with function shop.spy(shop.state);
         create table shop.theirs (id bigint primary key, state shop.state)",
    )
    .await?;
    run(
        &mut owner,
        &format!(
            "create table shop.ours (id bigint primary key, part shop.parts, note text); grant insert on shop.ours to {user};
             create table shop.plain (id bigint primary key, note text, at timestamptz, tags text[])"
        ),
    )
    .await?;
    let nothing = "select (select count(*) from pg_trigger where tgname ~ 'event_outbox_capture') + (select count(*) from public.spied)";
    let refused = async |table: &str, told: &[&str]| {
        let output = command(&database, &[table]).await?;
        let named = output.stderr.contains(&user) && told.iter().all(|told| output.stderr.contains(told));
        ensure!(
            output.code == Some(1) && named && output.stderr.contains("nothing was changed"),
            "{told:?}: {output:?}"
        );
        ensure!(output.stderr.contains("--trust-users"), "{output:?}");
        let plan = capture(&database, &[table, "--dry-run"]).await?;
        let notes = plan["notes"].to_string();
        ensure!(notes.contains(&user) && told.iter().all(|told| notes.contains(told)), "{plan:#}");
        ensure!(outbox.number(nothing).await? == 0, "something was changed");
        anyhow::Ok(())
    };
    refused("shop.theirs", &["owns the table", "owns the type shop.state of the column state"]).await?;
    // Parts of composite types and of arrays are turned into JSON as well, and a domain by its base.
    refused(
        "shop.ours",
        &["owns the type shop.part of the column part", "owns the type shop.state of the column part"],
    )
    .await?;
    run(&mut owner, "alter type shop.state owner to current_user; alter type shop.part owner to current_user").await?;
    refused("shop.ours", &["owns the function shop.spy(shop.state), which casts the type shop.state"]).await?;
    capture(&database, &["shop.plain"]).await?;
    capture(&database, &["--drop", "shop.plain"]).await?;

    // This is why.
    let done = capture(&database, &["shop.ours", "--trust-users"]).await?;
    ensure!(done["notes"].to_string().contains("rights of"), "{done:#}");
    run(&mut mallory, "insert into shop.ours values (1, row(array['NEW'::shop.state]))").await?;
    let by: Vec<String> = sqlx::query_scalar("select by from public.spied").fetch_all(&mut owner).await?;
    let us: String = sqlx::query_scalar("select current_user::text").fetch_one(&mut owner).await?;
    ensure!(by == [us.as_str()], "{by:?}");
    capture(&database, &["--drop", "shop.ours"]).await?;
    // A member of the owner's role has its rights already.
    run(&mut owner, &format!("delete from public.spied; grant \"{us}\" to {user}")).await?;
    for table in ["shop.theirs", "shop.ours"] {
        let done = capture(&database, &[table]).await?;
        ensure!(done["notes"] == serde_json::json!([]), "{done:#}");
    }
    mallory.close().await?;
    run(&mut owner, &format!("drop owned by {user} cascade; drop role {user}")).await
}
