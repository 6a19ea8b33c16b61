//! Triggers and foreign keys of the application beside those of `capture`: the events of a row stay in order.

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sqlx::PgConnection;

use lab::{TestDatabase, trials};

use super::{capture, command, events, run};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            a_trigger_that_changes_another_row_of_the_statement_keeps_the_order,
            a_cascade_to_the_table_itself_keeps_the_order,
            bulk_is_refused_beside_triggers_that_would_run_before_it,
            bulk_refuses_a_key_that_is_null_in_any_row;
    }
}

/// A table whose first row changes the second one, after each update of `n`.
const TOUCHING: &str = "
    create table public.accounts (id bigint primary key, n int not null);
    insert into public.accounts values (1, 0), (2, 0), (3, 0);
    create function public.touch() returns trigger language plpgsql as
        'begin if new.id = 1 then update public.accounts set n = n + 100 where id = 2; end if; return null; end'";

/// Fails unless each event of an entity begins with the row that the one before has left. Removes the events.
async fn in_order(database: &TestDatabase, entities: &[&str]) -> anyhow::Result<usize> {
    let found = events(database).await?;
    for entity in entities {
        let own: Vec<_> = found.iter().filter(|(of, ..)| of == entity).collect();
        for pair in own.windows(2) {
            ensure!(pair[1].2["before"] == pair[0].2["after"], "{entity}: {own:?}");
        }
    }
    run(&mut database.connect().await?, "delete from event_outbox").await?;
    Ok(found.len())
}

async fn set_touching(connection: &mut PgConnection, trigger: &str) -> anyhow::Result<()> {
    run(connection, &format!("create {trigger} execute function public.touch()")).await
}

async fn a_trigger_that_changes_another_row_of_the_statement_keeps_the_order(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(&mut connection, TOUCHING).await?;
    let done = capture(&database, &["accounts"]).await?;
    ensure!(done["captured"]["deferred"] == false && done["notes"] == json!([]), "{done:#}");
    // By their names, the one sorts before ours and the other after it.
    for name in ["\"!first\"", "zz_last"] {
        set_touching(&mut connection, &format!("trigger {name} after update of n on public.accounts for each row"))
            .await?;
        let done = capture(&database, &["accounts"]).await?;
        ensure!(done["captured"]["deferred"] == true && done["replaced"] == (name == "\"!first\""), "{done:#}");
        ensure!(done["notes"].to_string().contains("when the transaction commits"), "{done:#}");
        run(&mut connection, "update public.accounts set n = n + 1").await?;
        ensure!(in_order(&database, &["1", "2", "3"]).await? == 4, "{name}");
        run(
            &mut connection,
            "begin; update public.accounts set n = n + 1; update public.accounts set n = n + 1 where id > 1; commit",
        )
        .await?;
        ensure!(in_order(&database, &["1", "2", "3"]).await? == 6, "{name}");
        let listed = command(&database, &["--list"]).await?;
        ensure!(listed.stdout.contains("each row, at commit"), "{listed:?}");
        run(&mut connection, &format!("drop trigger {name} on public.accounts")).await?;
    }
    // Without the other trigger, events are made at once again.
    let done = capture(&database, &["accounts"]).await?;
    ensure!(done["captured"]["deferred"] == false, "{done:#}");
    run(
        &mut connection,
        "begin; update public.accounts set n = n + 1; alter table public.accounts add column b int; commit",
    )
    .await?;
    ensure!(in_order(&database, &["1", "2", "3"]).await? == 3);
    Ok(())
}

async fn a_cascade_to_the_table_itself_keeps_the_order(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(
        &mut connection,
        "create table public.nodes (id bigint primary key, parent bigint references public.nodes on update cascade on delete set null)",
    )
    .await?;
    for mode in [&[][..], &["--bulk"]] {
        run(&mut connection, "insert into public.nodes values (1, null), (2, 1), (3, 2)").await?;
        capture(&database, &[&["nodes"], mode].concat()).await?;
        run(&mut connection, "update public.nodes set id = id + 10").await?;
        let found = events(&database).await?;
        let last = |id: &str| -> Option<&Value> {
            found.iter().rev().find(|(of, ..)| of == id).map(|(_, _, payload)| &payload["after"]["parent"])
        };
        ensure!(last("12") == Some(&json!(11)) && last("13") == Some(&json!(12)), "{mode:?}: {found:?}");
        in_order(&database, &["11", "12", "13"]).await?;
        run(&mut connection, "delete from public.nodes where id = 11; delete from public.nodes").await?;
        ensure!(in_order(&database, &["11", "12", "13"]).await? == 4, "{mode:?}");
        capture(&database, &["--drop", "nodes"]).await?;
    }
    Ok(())
}

async fn bulk_is_refused_beside_triggers_that_would_run_before_it(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(&mut connection, TOUCHING).await?;
    run(
        &mut connection,
        "create function public.nothing() returns trigger language plpgsql as 'begin return null; end'",
    )
    .await?;
    for (trigger, name) in [
        ("trigger zz_rows after update on public.accounts for each row", "zz_rows"),
        ("trigger \"00_all\" after update on public.accounts for each statement", "00_all"),
    ] {
        run(&mut connection, &format!("create {trigger} execute function public.nothing()")).await?;
        let output = command(&database, &["accounts", "--bulk"]).await?;
        let told = [name, "without --bulk", "nothing was changed"];
        ensure!(output.code == Some(1) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
        run(&mut connection, &format!("alter table public.accounts disable trigger \"{name}\"")).await?;
    }
    for trigger in [
        "trigger \"00_before\" before update on public.accounts for each statement",
        "trigger zz_all after update on public.accounts for each statement",
        "constraint trigger \"00_late\" after update on public.accounts deferrable initially deferred for each row",
    ] {
        run(&mut connection, &format!("create {trigger} execute function public.nothing()")).await?;
        capture(&database, &["accounts", "--bulk"]).await.with_context(|| trigger.to_owned())?;
    }
    Ok(())
}

async fn bulk_refuses_a_key_that_is_null_in_any_row(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    run(&mut connection, "create table public.refs (id bigint primary key, ref text not null unique)").await?;
    capture(&database, &["refs", "--key", "ref", "--bulk"]).await?;
    run(&mut connection, "alter table public.refs alter column ref drop not null").await?;
    let insert = "insert into public.refs values (1, 'a'), (2, 'b'), (3, 'c')";
    for statement in [
        "insert into public.refs values (1, 'a'), (2, null)",
        &format!("begin; {insert}; update public.refs set ref = nullif(ref, 'c')"),
        &format!(
            "begin; {insert}; alter table public.refs disable trigger user; update public.refs set ref = null where id = 2; \
                  alter table public.refs enable trigger user; update public.refs set ref = coalesce(ref, 'x')"
        ),
        &format!(
            "begin; {insert}; alter table public.refs disable trigger user; update public.refs set ref = null where id = 2; \
                  alter table public.refs enable trigger user; delete from public.refs"
        ),
    ] {
        let error = run(&mut connection, statement).await.err().with_context(|| statement.to_owned())?;
        ensure!(format!("{error:#}").contains("a column of this key is gone or null"), "{error:#}");
        run(&mut connection, "rollback").await?;
    }
    ensure!(events(&database).await?.is_empty());
    Ok(())
}
