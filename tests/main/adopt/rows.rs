//! Rows and keys that the trigger of `adopt` could not handle are refused before the cut.

use anyhow::ensure;
use libtest_mimic::Trial;

use lab::{Outbox, TestDatabase, trials};

use super::{adopt, command};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            headers_that_are_no_jsonb_are_named_before_the_cut,
            a_key_of_a_type_that_is_not_built_in_is_refused;
    }
}

async fn headers_that_are_no_jsonb_are_named_before_the_cut(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox
        .execute(
            "create table public.outbox (id bigserial primary key, aggregate_type text not null, aggregate_id text not null, \
             type text not null, payload jsonb not null, headers json, published boolean not null default false); \
             insert into public.outbox (aggregate_type, aggregate_id, type, payload, headers, published) \
             select 'order', n, 'X', '{}', case when n in (3, 5) then '{\"a\": \"\\u0000\"}' else '{\"a\": 1}' end::json, n = 5 \
               from generate_series(1, 6) n",
        )
        .await?;
    let output = command(&database, &["outbox"]).await?;
    let told = ["headers", "probably of 3:", "unsupported Unicode escape sequence", "nothing was changed"];
    ensure!(output.code == Some(1) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
    outbox.execute("update public.outbox set headers = '{}' where id = 3").await?;
    // A row that is published already does not matter.
    ensure!(adopt(&database, &["outbox"]).await?["moved"] == 5);
    Ok(())
}

async fn a_key_of_a_type_that_is_not_built_in_is_refused(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox
        .execute(
            "create type public.pair as (a int, b int); \
             create table public.outbox (id bigserial unique, key public.pair primary key, aggregate_type text not null, \
             aggregate_id text not null, type text not null, payload jsonb not null, published boolean not null default false)",
        )
        .await?;
    let output = command(&database, &["outbox"]).await?;
    let told = ["the column key of the primary key", "not built into Postgres", "nothing was changed"];
    ensure!(output.code == Some(1) && told.iter().all(|told| output.stderr.contains(told)), "{output:?}");
    Ok(())
}
