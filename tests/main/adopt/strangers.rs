//! Another user owns the table, or may set triggers on it. These triggers would run with the rights of the outbox's owner.

use anyhow::ensure;
use libtest_mimic::Trial;
use sqlx::Connection;

use lab::{Outbox, TestDatabase, trials};

use super::{adopt, command, run};
use crate::mallory::mallory;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            triggers_of_other_users_run_with_the_rights_of_the_owner_only_if_that_is_accepted;
    }
}

async fn triggers_of_other_users_run_with_the_rights_of_the_owner_only_if_that_is_accepted(
    database: TestDatabase,
) -> anyhow::Result<()> {
    const INSERT: &str = "insert into shop.loop (aggregate_type, aggregate_id, type) values ('order', 'e', 'X')";
    let outbox = Outbox::from_database(&database);
    let mut owner = database.connect().await?;
    let table = "shop.loop (id bigserial primary key, aggregate_type text not null, aggregate_id text not null, type text not null, \
                 payload jsonb, sent boolean not null default false)";
    let (user, mut mallory) = mallory(&database, &mut owner).await?;
    run(
        &mut mallory,
        &format!(
            "create table {table}; create function shop.spy() returns trigger language plpgsql as \
                 'begin insert into public.spied values (current_user); return new; end'; \
             create trigger spy before update on shop.loop for each row execute function shop.spy()"
        ),
    )
    .await?;
    let refused = async |told: &[&str]| {
        for dry in [&[][..], &["--dry-run"]] {
            let output = command(&database, &[&["shop.loop"], dry].concat()).await?;
            let named = output.stderr.contains(&user) && told.iter().all(|told| output.stderr.contains(told));
            ensure!(output.code == Some(1) && named && output.stderr.contains("--trust-users"), "{told:?}: {output:?}");
        }
        let adopted = "select count(*) from pg_trigger where tgname ~ 'event_outbox_adopt'";
        ensure!(outbox.number(adopted).await? == 0, "something was changed");
        anyhow::Ok(())
    };
    refused(&["owns the table", "owns the function shop.spy() of the trigger spy"]).await?;
    // The rows are marked as the outbox's owner, and so the trigger runs.
    let done = adopt(&database, &["shop.loop", "--trust-users"]).await?;
    ensure!(done["notes"].to_string().contains("owns the table"), "{done:#}");
    run(&mut mallory, INSERT).await?;
    let by: Vec<String> = sqlx::query_scalar("select by from public.spied").fetch_all(&mut owner).await?;
    let us: String = sqlx::query_scalar("select current_user::text").fetch_one(&mut owner).await?;
    ensure!(by == [us], "{by:?}");
    run(&mut owner, "delete from public.event_outbox").await?;
    adopt(&database, &["shop.loop", "--undo"]).await?;

    // A table of the outbox's owner, on which the other user may set triggers.
    run(&mut owner, &format!("drop table shop.loop; create table {table}; grant all on shop.loop to {user}")).await?;
    refused(&["may set triggers on the table"]).await?;
    run(&mut owner, &format!("revoke trigger on shop.loop from {user}")).await?;
    let done = adopt(&database, &["shop.loop"]).await?;
    ensure!(done["notes"] == serde_json::json!([]), "{done:#}");
    mallory.close().await?;
    run(&mut owner, &format!("drop owned by {user} cascade; drop role {user}")).await
}
