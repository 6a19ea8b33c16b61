//! Another user, whose code must not run with the rights of the outbox's owner.

use anyhow::Context;
use lab::TestDatabase;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// Creates the user, the schema `shop`, in which the user may create, and the table `public.spied`, which only the outbox's owner may write.
/// Returns the user's name and a connection of the user.
pub(crate) async fn mallory(
    database: &TestDatabase,
    owner: &mut PgConnection,
) -> anyhow::Result<(String, PgConnection)> {
    let user = format!("{}_mallory", database.name());
    let script = format!(
        "create table public.spied (by text); create role {user} login password 'secret'; create schema shop; \
         grant usage, create on schema shop to {user}"
    );
    owner.execute(sqlx::raw_sql(AssertSqlSafe(script))).await?;
    let url = database.url();
    let (_, server) = url.split_once('@').context("no user")?;
    let mallory = PgConnection::connect(&format!("postgres://{user}:secret@{server}")).await?;
    Ok((user, mallory))
}
