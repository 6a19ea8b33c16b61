//! Runs connector and relay beside each other while an application writes, as in the shadow of docs/how-to/switch-from-debezium.md.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::Relay;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::PARTITIONS;
use crate::cases::{EXPANDABLE, cases};
use crate::connect::Connect;
use crate::prepared::Prepared;

/// The sessions of the application, and the transactions of each.
const SESSIONS: usize = 6;
const TRANSACTIONS: usize = 500;

/// The entities, all of which every session writes.
const ENTITIES: usize = 24;

/// The number of the events: a transaction of three writes two, and one of seven is rolled back.
const EVENTS: usize =
    SESSIONS * (TRANSACTIONS + TRANSACTIONS.div_ceil(3) - TRANSACTIONS.div_ceil(7) - TRANSACTIONS.div_ceil(21));

/// The time limit for both sides.
const WITHIN: Duration = Duration::from_secs(300);

/// Both write all the while, the relay to shadow topics, and `compare` follows them.
pub(crate) async fn the_relay_keeps_the_connectors_records_and_order_under_load() -> anyhow::Result<()> {
    let cases = cases();
    let case = cases.iter().find(|case| case.name == "expand").context("no such case")?;
    let (kafka, postgres) = crate::servers().await?;
    let connect = Connect::start(&kafka.bootstrap()).await?;
    let one = Prepared::new(case, &postgres, &connect).await?;
    one.outbox
        .connect()
        .await?
        .execute(AssertSqlSafe(format!(
            "create table orders as select 'order-' || n as id, 0 as n from generate_series(0, {}) n",
            ENTITIES - 1
        )))
        .await?;
    let [left, right] = ["parity.expand.order", "shadow.parity.expand.order"];
    for topic in [left, right] {
        kafka.create_topic(topic, PARTITIONS, &[]).await?;
    }
    one.until_reading().await;
    let relay = one.relay(&kafka).with("RELAY_TOPIC_PREFIX", "shadow.").start_ready("load").await?;
    let comparing = tokio::spawn(async move {
        let until = EVENTS.to_string();
        let arguments =
            ["--left", left, "--right", right, "--id-header", "id", "--until", &until, "--exactly-once", "--json"];
        let command = Relay::bare().with("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap());
        let command = arguments.iter().fold(command, |command, argument| command.argument(argument));
        let output = tokio::time::timeout(WITHIN, command.output("compare")).await;
        // Kafka has to live as long as the command.
        output.map(|output| (output, kafka))
    });
    let writing = (0..SESSIONS).map(|session| {
        let outbox = &one.outbox;
        async move { write(outbox.connect().await?, session).await }
    });
    for written in futures_util::future::join_all(writing).await {
        written?;
    }
    let events = one.outbox.number("select count(*) from event_outbox").await?;
    ensure!(usize::try_from(events)? == EVENTS, "{events} events, not {EVENTS}");
    let (output, _kafka) = comparing.await?.context("compare does not end: one side has not written all events")?;
    let output = output?;
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    ensure!(output.code == Some(0) && report["equal"] == true && report["matched"] == EVENTS, "{output:?}");
    eprintln!("{EVENTS} events of {ENTITIES} entities are equal and in the same order");
    ensure!(relay.stop().await? == Some(0));
    connect.stop();
    postgres.stop().await;
    Ok(())
}

/// Returns the key of an entity. Converters print some of them differently.
fn key(entity: usize) -> String {
    let shape = ["o", "é", "\u{1F600}", "\"q\"", "tab\t", "back\\"][entity % 6];
    format!("{shape}-{entity}")
}

/// Writes as an application does: each transaction locks its entities before it writes their events.
async fn write(mut connection: PgConnection, session: usize) -> anyhow::Result<()> {
    for n in 0..TRANSACTIONS {
        let first = (session * 5 + n * 7) % ENTITIES;
        let mut entities = vec![first];
        if n % 3 == 0 {
            entities.push((first + 1 + n % 11) % ENTITIES);
        }
        // In one order in all sessions, or they wait for each other.
        entities.sort_unstable();
        let mut transaction = connection.begin().await?;
        for entity in entities {
            sqlx::query("update orders set n = n + 1 where id = $1")
                .bind(format!("order-{entity}"))
                .execute(&mut *transaction)
                .await?;
            let payload = EXPANDABLE[(session + n + entity) % EXPANDABLE.len()];
            let insert = format!(
                "insert into outbox values (gen_random_uuid(), 'order', $1, 'OrderPlaced', ({payload})::jsonb) returning id::text"
            );
            let id: String =
                sqlx::query_scalar(AssertSqlSafe(insert)).bind(key(entity)).fetch_one(&mut *transaction).await?;
            if n % 2 == 0 {
                let delete = "delete from outbox where id = $1::uuid";
                sqlx::query(delete).bind(id).execute(&mut *transaction).await?;
            }
        }
        if n % 7 == 0 { transaction.rollback().await? } else { transaction.commit().await? }
    }
    Ok(())
}
