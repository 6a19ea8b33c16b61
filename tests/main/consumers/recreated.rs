//! Tests topics that are deleted and created again while a consumer reads them. Each record of the new topic has its effect, although
//! librdkafka goes on at the offset that it had reached in the old topic.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use event_outbox::code::Code;
use event_outbox::consumer::{Consumer, Context, Failed};
use libtest_mimic::Trial;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;

use super::keys::record;
use super::{APPLIED_WITHIN, Counted, Field, Running, counted, insert, log};
use lab::kafka::RealKafka;
use lab::{PARTITIONS, SOON, TestDatabase, eventually, trials, until_nothing_is_left};

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_topic_that_is_deleted_and_created_again_is_read_from_its_beginning,
            a_topic_that_is_created_again_under_load_is_read_from_its_beginning,
            a_member_that_leaves_commits_no_offset_of_the_old_topic,
            a_member_whose_partitions_are_revoked_commits_no_offset_of_the_old_topic,
            a_topic_that_is_created_again_before_its_first_record_came_is_read_from_its_beginning;
    }
}

/// The events of the new topic: more than the old topic had, so that an old offset exists in the new topic.
const NEW: std::ops::RangeInclusive<i64> = 1_001..=1_500;

/// No more commits than those at the end, or when partitions go to another member.
const NEVER: Duration = Duration::from_secs(3600);

fn produce(field: &Field, numbers: impl Iterator<Item = i64>) -> anyhow::Result<()> {
    field.produce(&numbers.map(|n| record("a", "Counted", n)).collect::<Vec<_>>())
}

/// Deletes the topic and creates it again at once, with the new events.
async fn create_again(field: &Field) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = field.kafka.client().create()?;
    admin.delete_topics(&[&field.outbox.topic], &AdminOptions::new()).await?;
    // Kafka deletes in the background. The member does not notice when the topic is back at once.
    eventually("the topic is created again", APPLIED_WITHIN, || async {
        field.outbox.create_topic(&field.kafka).await.map_err(|error| format!("{error:#}"))
    })
    .await;
    produce(field, NEW)
}

/// Waits until the group has this offset of partition 0.
async fn until_committed(field: &Field, partition: i32, expected: i64) -> anyhow::Result<()> {
    let observer: BaseConsumer = field.kafka.client().set("group.id", &field.outbox.topic).create()?;
    eventually("the offset is committed", APPLIED_WITHIN, || async {
        let mut list = TopicPartitionList::new();
        list.add_partition(&field.outbox.topic, partition);
        let found = observer.committed_offsets(list, SOON).ok();
        let offset = found.and_then(|list| Some(list.elements().first()?.offset()));
        if offset == Some(Offset::Offset(expected)) { Ok(()) } else { Err(offset) }
    })
    .await;
    Ok(())
}

/// Returns a consumer that counts, and begins no event beyond the number in `gate`. An event of the old topic takes a while.
fn gated(field: &Field, gate: &watch::Receiver<i64>) -> Consumer {
    let gate = gate.clone();
    field.consumer().queue(50).on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|most| event.n <= *most).await.map_err(Failed::transient)?;
            insert(&mut ctx, event.n).await?;
            if !NEW.contains(&event.n) {
                sqlx::query("select pg_sleep(0.05)").execute(ctx.tx()).await?;
            }
            Ok(())
        }
    })
}

/// Waits until each event of the new topic has had its effect, and checks that it had one.
async fn until_all_are_applied(field: &Field) -> anyhow::Result<()> {
    let (first, last) = (NEW.start(), NEW.end());
    let left =
        format!("select {last} - {first} + 1 - count(distinct n) from effects where n between {first} and {last}");
    until_nothing_is_left("the new topic", APPLIED_WITHIN, || field.outbox.number(&left)).await;
    let twice = field.outbox.number("select count(*) - count(distinct event_id) from effects").await?;
    ensure!(twice == 0, "{twice} effects are repeated");
    Ok(())
}

async fn a_topic_that_is_deleted_and_created_again_is_read_from_its_beginning(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write((1..=10).map(|n| counted("a", n))).await?;
    field.publish().await?;
    let running = Running::start(field.counting().commit_interval(Duration::from_millis(20)));
    field.until_effects(10).await;
    let partition = field.kafka.read_topic(&field.outbox.topic).await?.first().context("no record")?.partition;
    until_committed(&field, partition, 10).await?;
    let admin: AdminClient<DefaultClientContext> = field.kafka.client().create()?;
    admin.delete_topics(&[&field.outbox.topic], &AdminOptions::new()).await?;
    eventually("the topic is created again", APPLIED_WITHIN, || async {
        field.outbox.create_topic(&field.kafka).await.map_err(|error| format!("{error:#}"))
    })
    .await;
    // More records than the old topic had, so that the old offset exists in the new one.
    field.write((11..=40).map(|n| counted("a", n))).await?;
    field.publish().await?;
    field.until_effects(40).await;
    let stats = running.stop().await?;
    ensure!(field.effects().await? == 40 && stats.applied() == 40, "{stats:?}");
    // The offsets are those of the new topic.
    let running = Running::start(field.counting());
    field.write([counted("a", 41)]).await?;
    field.publish().await?;
    running.until("the next event is applied", |stats| stats.applied() == 1).await;
    ensure!(running.stop().await?.repeated() == 0);
    Ok(())
}

/// The member goes on with events of the old topic in its queue while the new topic has records already, and commits twice a second.
async fn a_topic_that_is_created_again_under_load_is_read_from_its_beginning(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    produce(&field, 1..=200)?;
    let (_open, gate) = watch::channel(i64::MAX);
    // The partition is paused for some seconds: the client asks for records again when the new topic has all of its.
    let running = Running::start(gated(&field, &gate).queue(150));
    field.until_effects(40).await;
    create_again(&field).await?;
    until_all_are_applied(&field).await?;
    let stats = running.stop().await?;
    ensure!(stats.dead() == 0 && stats.assigned() == PARTITIONS as u64, "{stats:?}");
    let lines = log::with_code(&field.outbox.topic, Code::OffsetsWentBack);
    ensure!(!lines.is_empty(), "nobody was told");
    Ok(())
}

/// Starts a member of a group that has an offset, and waits until it has applied ten events more. It commits nothing by itself.
async fn ten_more(field: &Field, gate: &watch::Receiver<i64>, strategy: &str) -> anyhow::Result<Running> {
    produce(field, 1..=60)?;
    let running = Running::start(field.counting());
    field.until_effects(60).await;
    running.stop().await?;
    until_committed(field, 0, 60).await?;
    produce(field, 61..=200)?;
    let consumer = gated(field, gate).commit_interval(NEVER).kafka("partition.assignment.strategy", strategy);
    let running = Running::start(consumer);
    field.until_effects(70).await;
    Ok(running)
}

async fn a_member_that_leaves_commits_no_offset_of_the_old_topic(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let (open, gate) = watch::channel(70);
    let running = ten_more(&field, &gate, "cooperative-sticky").await?;
    create_again(&field).await?;
    let stopping = tokio::spawn(running.stop());
    open.send(i64::MAX)?;
    stopping.await??;
    let next = Running::start(field.counting());
    until_all_are_applied(&field).await?;
    let stats = next.stop().await?;
    ensure!(stats.repeated() == 0, "{stats:?}");
    Ok(())
}

/// All members of the eager protocol give back all partitions when another one joins.
async fn a_member_whose_partitions_are_revoked_commits_no_offset_of_the_old_topic(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let (open, gate) = watch::channel(70);
    let running = ten_more(&field, &gate, "range").await?;
    create_again(&field).await?;
    let next = Running::start(field.counting().kafka("partition.assignment.strategy", "range"));
    running.until("its partitions are revoked", |stats| stats.revoked() > 0).await;
    next.until("the next member has partitions", |stats| stats.assigned() > 0).await;
    open.send(i64::MAX)?;
    until_all_are_applied(&field).await?;
    running.stop().await?;
    next.stop().await?;
    Ok(())
}

/// The client waits so long after an error that the new topic has all records before it asks for them.
async fn a_topic_that_is_created_again_before_its_first_record_came_is_read_from_its_beginning(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    produce(&field, 1..=60)?;
    let running = Running::start(field.counting());
    field.until_effects(60).await;
    running.stop().await?;
    let running = Running::start(field.counting().kafka("fetch.error.backoff.ms", "3000"));
    running.until("it has its partitions", |stats| stats.assigned() == PARTITIONS as u64).await;
    create_again(&field).await?;
    until_all_are_applied(&field).await?;
    running.stop().await?;
    Ok(())
}
