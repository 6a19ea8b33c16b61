//! Tests many missing topics beside existing ones, topics that must not be created by accident, and added partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use lab::kafka::{RealKafka, Record};
use lab::{Outbox, SOON, TestDatabase, eventually, trials};

/// The number of entity ids that were written into `entity_type` by mistake.
const MISTAKES: i64 = 20_000;

/// The number of events whose topic exists.
const GOOD: i64 = 500;

/// A query for the number of held topics; each mistake has its own topic.
const HELD_TOPICS: &str = "select count(distinct topic) from event_outbox_hold where why = 'topic'";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            twenty_thousand_missing_topics_do_not_starve_the_others,
            events_for_topics_that_are_not_listed_go_dead;
        with_postgres:
            a_topic_that_an_event_names_by_mistake_is_not_created,
            an_entity_does_not_go_back_when_a_relay_that_knows_fewer_partitions_gets_its_lane,
            an_entity_moves_once_to_another_partition_when_its_topic_gets_more;
    }
}

async fn write_mistakes(outbox: &Outbox, count: i64) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload) \
         select 'customer-' || n, 'c' || n, 'Mistaken', '{{}}' from generate_series(1, {count}) n"
    );
    outbox.execute(&sql).await.map(drop)
}

async fn write_good(outbox: &Outbox, entity: &str) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
         select 'order', '{entity}', 'Counted', jsonb_build_object('n', n), '{}' from generate_series(1, {GOOD}) n",
        outbox.topic
    );
    outbox.execute(&sql).await.map(drop)
}

/// Writes good events behind the mistakes: first while the mistakes are new, then after a start that finds all of them held.
async fn twenty_thousand_missing_topics_do_not_starve_the_others(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    write_mistakes(&outbox, MISTAKES).await?;
    write_good(&outbox, "behind").await?;
    let settings = outbox.relay(&kafka).with("RELAY_TOPIC", "{entity_type}-events");
    let relay = settings.start_ready("new").await?;
    outbox.until_settled_of("behind").await;
    eventually("all mistakes are held", SOON * 2, || async {
        match outbox.number(HELD_TOPICS).await {
            Ok(MISTAKES) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let logged = relay.lines("topic_closed").len();
    ensure!(logged < 100, "{logged} lines name closed topics");
    ensure!(relay.stop().await? == Some(0));

    let relay = settings.start_ready("held").await?;
    write_good(&outbox, "after the start").await?;
    outbox.until_settled_of("after the start").await;
    ensure!(relay.stop().await? == Some(0));
    let paid = "select count(*) from event_outbox where attempts <> 0 or status = 'DEAD'";
    ensure!(outbox.number(paid).await? == 0, "mistakes have cost attempts");
    Ok(())
}

/// The broker would create the topic.
async fn a_topic_that_an_event_names_by_mistake_is_not_created(database: TestDatabase) -> anyhow::Result<()> {
    let kafka = RealKafka::start(&[("auto.create.topics.enable", "true")])?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    write_mistakes(&outbox, 20).await?;
    write_good(&outbox, "good").await?;
    let settings = outbox.relay(&kafka).with("RELAY_TOPIC", "{entity_type}-events");
    let relay = settings.start_ready("careful").await?;
    outbox.until_settled_of("good").await;
    eventually("the mistakes are held", SOON, || async {
        match outbox.number(HELD_TOPICS).await {
            Ok(20) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    ensure!(relay.stop().await? == Some(0));
    let created: Vec<String> = kafka.topics()?.into_iter().filter(|topic| topic.starts_with("customer-")).collect();
    ensure!(created.is_empty(), "{created:?} were created");

    // A relay with this setting creates the topic.
    let relay = settings.with("KAFKA_ALLOW_AUTO_CREATE_TOPICS", "true").start_ready("trusting").await?;
    outbox.until_settled().await;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn events_for_topics_that_are_not_listed_go_dead(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let listed = outbox.relay(&kafka).with("RELAY_TOPICS", format!("billing-*,{}", outbox.topic));
    outbox.write("listed", 1, 3).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
             values ('order', 'elsewhere', 'Bad', '{}', 'payroll')",
        )
        .await?;
    let checked = listed.clone().argument("--json").output("check").await?.stdout;
    ensure!(checked.contains("payroll is not in RELAY_TOPICS"), "{checked}");
    let relay = listed.start_ready("listed").await?;
    outbox.until_settled().await;
    let dead = "select count(*) from event_outbox where status = 'DEAD' and entity_id = 'elsewhere' \
                and last_error like '%payroll is not in RELAY_TOPICS%'";
    ensure!(outbox.number(dead).await? == 1);
    ensure!(outbox.published_numbers(&kafka).await?["listed"] == [1, 2, 3]);
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

/// Small and large batches go through two producers. Only one of them knows the topic when it gets more partitions.
async fn an_entity_moves_once_to_another_partition_when_its_topic_gets_more(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let kafka = RealKafka::start(&[])?;
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, 3, &[]).await?;
    let relay = outbox.relay(&kafka).start_ready("spreads").await?;
    outbox.write_backlog(400, 20).await?;
    outbox.until_settled().await;
    kafka.add_partitions(&outbox.topic, 16).await?;
    let mut spread = 3;
    for round in 0.. {
        outbox
            .execute(
                "insert into event_outbox (entity_type, entity_id, event_type, payload) \
             select 'order', 'e' || n, 'Small', '{}' from generate_series(0, 9) n",
            )
            .await?;
        outbox.until_settled().await;
        outbox.write_backlog(400, 20).await?;
        outbox.until_settled().await;
        let records = kafka.read_topic(&outbox.topic).await?;
        let moves = moves(&records);
        ensure!(moves.values().all(|moves| *moves <= 1), "entities went back and forth: {moves:?}");
        spread = records.iter().map(|record| record.partition).max().unwrap_or(0) + 1;
        if spread > 3 && round > 3 || round > 60 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    ensure!(spread > 3, "the new partitions are not used");
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

/// A frozen relay does not learn of new partitions. It wakes up, and gets the lanes of the relay that has used them.
async fn an_entity_does_not_go_back_when_a_relay_that_knows_fewer_partitions_gets_its_lane(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let kafka = RealKafka::start(&[])?;
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, 3, &[]).await?;
    let settings = outbox.relay(&kafka).with("RELAY_PUBLISH_TIMEOUT", "5s");
    let frozen = settings.start_ready("frozen").await?;
    outbox.write_backlog(400, 20).await?;
    outbox.until_settled().await;
    let learning = settings.start_ready("learning").await?;
    frozen.signal(Signal::SIGSTOP)?;
    kafka.add_partitions(&outbox.topic, 16).await?;
    eventually("the new partitions are used", SOON, || async {
        outbox.write_backlog(20, 20).await?;
        outbox.until_settled().await;
        let records = kafka.read_topic(&outbox.topic).await?;
        ensure!(records.iter().any(|record| record.partition >= 3), "{} records", records.len());
        Ok(())
    })
    .await;
    // Every entity has moved before the lanes change hands.
    outbox.write_backlog(20, 20).await?;
    outbox.until_settled().await;
    learning.kill()?;
    frozen.signal(Signal::SIGCONT)?;
    for _ in 0..5 {
        outbox.write_backlog(20, 20).await?;
        outbox.until_settled().await;
    }
    let moves = moves(&kafka.read_topic(&outbox.topic).await?);
    ensure!(moves.values().any(|moves| *moves == 1), "{moves:?}");
    ensure!(moves.values().all(|moves| *moves <= 1), "entities went back and forth: {moves:?}");
    ensure!(frozen.stop().await? == Some(0));
    Ok(())
}

/// Counts how many times each entity changed its partition.
fn moves(records: &[Record]) -> BTreeMap<String, usize> {
    let mut of_entity: BTreeMap<String, Vec<(i64, i32)>> = BTreeMap::new();
    for record in records {
        let key = record.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
        let sequence = record.header("sequence").and_then(|number| number.parse().ok()).unwrap_or(0);
        of_entity.entry(key).or_default().push((sequence, record.partition));
    }
    let count = |mut events: Vec<(i64, i32)>| {
        events.sort_unstable();
        events.windows(2).filter(|two| two[0].1 != two[1].1).count()
    };
    of_entity.into_iter().map(|(entity, events)| (entity, count(events))).collect()
}
