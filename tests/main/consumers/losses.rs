//! Tests what a consumer does about records that were removed before it read them.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use event_outbox::code::Code;
use event_outbox::consumer::{ConsumerError, Lost};
use libtest_mimic::Trial;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use tracing::Level;

use super::{Field, Running, counted, log};
use lab::kafka::RealKafka;
use lab::{TestDatabase, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_consumer_that_is_to_stop_at_removed_events_applies_none_behind_them,
            a_consumer_goes_on_behind_removed_events_and_behind_the_gaps_of_transactions;
    }
}

/// Removes the records of a partition before `offset`, as retention does.
async fn remove_before(kafka: &RealKafka, topic: &str, partition: i32, offset: i64) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = kafka.client().create()?;
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    admin.delete_records(&offsets, &AdminOptions::new()).await?;
    Ok(())
}

/// Applies 5 events, writes 5 more while nobody reads, and removes 3 of these. Returns the partition.
async fn lose(field: &Field) -> anyhow::Result<i32> {
    field.write((1..=5).map(|n| counted("a", n))).await?;
    field.publish().await?;
    let running = Running::start(field.counting());
    field.until_effects(5).await;
    running.stop().await?;
    field.write((6..=10).map(|n| counted("a", n))).await?;
    field.publish().await?;
    let records = field.kafka.read_topic(&field.outbox.topic).await?;
    let partition = records.first().context("no record")?.partition;
    remove_before(&field.kafka, &field.outbox.topic, partition, 8).await?;
    Ok(partition)
}

async fn a_consumer_that_is_to_stop_at_removed_events_applies_none_behind_them(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let lost_in = lose(&field).await?;
    let error = field.counting().lost(Lost::Stop).run(std::future::pending()).await.err().context("it runs")?;
    let ConsumerError::Lost { partition, from, to, .. } = error else { anyhow::bail!("{error:?}") };
    ensure!((partition, from, to) == (lost_in, 5, 8), "{partition} {from} {to}");
    ensure!(field.effects().await? == 5);
    Ok(())
}

async fn a_consumer_goes_on_behind_removed_events_and_behind_the_gaps_of_transactions(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let lost_in = lose(&field).await?;
    let running = Running::start(field.counting());
    field.until_effects(7).await;
    running.stop().await?;
    let lines = log::with_code(&field.outbox.topic, Code::EventsLost);
    let [line] = &lines[..] else { anyhow::bail!("{lines:?}") };
    ensure!(line.level == Level::ERROR && line.get("topic") == field.outbox.topic, "{line:?}");
    ensure!(line.get("partition") == lost_in.to_string(), "{line:?}");
    ensure!((line.get("from"), line.get("to")) == ("5", "8"), "{line:?}");
    ensure!(line.get("next_step").starts_with("outbox-relay replay --topic "), "{line:?}");
    ensure!(field.applied().await?["a"] == [1, 2, 3, 4, 5, 9, 10]);
    // Each transaction leaves a marker behind its records, which is no loss.
    let relay = field.outbox.relay(&field.kafka).with("RELAY_DELIVERY", "exactly_once").start("transactions")?;
    for n in 11..=15 {
        field.write([counted("a", n)]).await?;
        field.outbox.until_settled().await;
    }
    ensure!(relay.stop().await? == Some(0));
    let running = Running::start(field.counting().lost(Lost::Stop));
    field.until_effects(12).await;
    running.stop().await?;
    ensure!(log::with_code(&field.outbox.topic, Code::EventsLost).len() == 1, "a marker was taken for a loss");
    Ok(())
}
