//! The order of a captured row's events, under random writers and through a relay.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinHandle;

use lab::kafka::RealKafka;
use lab::outbox::data;
use lab::{Outbox, TestDatabase, trials};

use super::{capture, run};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            each_change_follows_the_one_before_under_random_writers;
    }
}

/// The number of keys that the writers share.
pub(crate) const KEYS: u64 = 12;

/// A small generator of random numbers (xorshift), so that a seed repeats a run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

pub(crate) const TABLE: &str = "create table public.accounts (id bigint primary key, n bigint not null, note text)";

/// Changes random rows: inserts, updates, deletes, changes of the key, several in one transaction. A deadlock or a key that is taken ends a
/// transaction, as in an application.
pub(crate) fn write(database: &TestDatabase, seed: u64, transactions: u64) -> JoinHandle<anyhow::Result<()>> {
    let database = database.clone();
    tokio::spawn(async move {
        let mut connection = database.connect().await?;
        let mut random = Random::new(seed);
        for n in 0..transactions {
            let n = seed * 1_000_000 + n;
            let statements: Vec<_> = (0..=random.below(3)).map(|_| statement(&mut random, n)).collect();
            let end = if random.below(8) == 0 { "rollback" } else { "commit" };
            let script = format!("begin; {}; {end}", statements.join("; "));
            if let Err(error) = sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut connection).await {
                let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
                ensure!(["40P01", "23505"].contains(&code.as_str()), "{error}");
                sqlx::raw_sql("rollback").execute(&mut connection).await?;
            }
        }
        Ok(connection.close().await?)
    })
}

fn statement(random: &mut Random, n: u64) -> String {
    let (id, other) = (random.below(KEYS), random.below(KEYS));
    match random.below(7) {
        0 => format!("delete from public.accounts where id = {id}"),
        1 => format!("insert into public.accounts values ({id}, {n}) on conflict (id) do update set n = excluded.n"),
        2 => format!(
            "update public.accounts set id = {other} where id = {id} and not exists (select from public.accounts where id = {other})"
        ),
        3 => format!("insert into public.accounts values ({id}, {n}) on conflict do nothing"),
        4 => format!("update public.accounts set n = n + 1 where id between {id} and {other}"),
        _ => format!("update public.accounts set n = {n}, note = 'x' where id = {id}"),
    }
}

/// Applies the topic's events, and fails if one does not follow the one before of its entity. Returns the rows.
pub(crate) async fn apply(kafka: &RealKafka, outbox: &Outbox) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    let mut known: std::collections::BTreeSet<String> = std::collections::BTreeSet::new();
    let mut seen = std::collections::HashSet::new();
    for record in kafka.read_topic(&outbox.topic).await? {
        if !seen.insert(record.header("event-id").map(str::to_owned)) {
            continue;
        }
        let key = String::from_utf8(record.key.clone().context("no key")?)?;
        let event: Value = serde_json::from_slice(data(record.value.as_deref().unwrap_or_default()))?;
        let before = rows.get(&key).cloned().unwrap_or_default();
        if event["op"] == "snapshot" {
            // Once a change of the row is known, the snapshot is that version, and no older one.
            ensure!(!known.contains(&key) || before == event["after"], "{key}: {before} before {event}");
        } else if known.contains(&key) {
            ensure!(before == event["before"], "{key}: {before} before {event}");
        }
        known.insert(key.clone());
        match &event["after"] {
            Value::Null => rows.remove(&key),
            after => rows.insert(key, after.clone()),
        };
    }
    Ok(rows)
}

/// Returns the rows of the table as the events have them.
pub(crate) async fn table(connection: &mut PgConnection) -> anyhow::Result<BTreeMap<String, Value>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("select id::text, to_jsonb(a)::text from public.accounts a").fetch_all(connection).await?;
    rows.into_iter().map(|(id, row)| Ok((id, serde_json::from_str(&row)?))).collect()
}

async fn each_change_follows_the_one_before_under_random_writers(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut connection = database.connect().await?;
    run(&mut connection, TABLE).await?;
    capture(&database, &["accounts"]).await?;
    let relay = outbox.relay(&kafka).start_ready("capturing").await?;
    for (round, mode) in [&[][..], &["--bulk"]].into_iter().enumerate() {
        capture(&database, &[&["accounts", "--lock-timeout", "60s"], mode].concat()).await?;
        let writers: Vec<_> = (1..=4).map(|seed| write(&database, seed + 10 * round as u64, 150)).collect();
        for writer in writers {
            writer.await??;
        }
        outbox.until_settled().await;
        let (applied, rows) = (apply(&kafka, &outbox).await?, table(&mut connection).await?);
        ensure!(applied == rows && !rows.is_empty(), "{mode:?}: {applied:?}, not {rows:?}");
    }
    ensure!(relay.stop().await? == Some(0));
    ensure!(outbox.number("select count(*) from event_outbox").await? > 300);
    outbox.all_published().await
}
