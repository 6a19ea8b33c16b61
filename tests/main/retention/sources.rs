//! Tests the window of an inbox whose groups read topics of other services: the usual case of a consumer with a database of its own.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use lab::kafka::RealKafka;
use lab::relay::Output;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            an_inbox_keeps_what_the_topics_of_its_groups_may_bring_again,
            a_group_whose_topics_are_not_known_keeps_its_rows_until_somebody_names_them,
            a_relay_prunes_nothing_that_topics_of_other_services_may_bring_again,
            a_topic_that_only_resembles_a_dead_letter_topic_is_reported;
    }
}

const PRUNE: [&str; 3] = ["--processed-after", "1h", "--yes"];

/// The database of a consumer group `billing`, which reads a topic of another service.
struct Consumers {
    outbox: Outbox,
    /// The topic that the group reads. This database's outbox publishes nothing to it.
    source: String,
    dead_letters: String,
    group: String,
    relay: Relay,
}

impl Consumers {
    /// Creates 10 rows that are two hours old, a topic that keeps seven days, and its dead letters, which are kept for a minute.
    async fn new(database: &TestDatabase, kafka: &RealKafka) -> anyhow::Result<Self> {
        let outbox = Outbox::from_database(database);
        let (source, group) = (format!("{}-of-others", outbox.topic), format!("{}-billing", outbox.topic));
        let dead_letters = format!("{source}.{group}.dlq");
        kafka.create_topic(&source, 2, &[("retention.ms", "604800000")]).await?;
        kafka.create_topic(&dead_letters, 1, &[("retention.ms", "60000")]).await?;
        outbox
            .execute(&format!(
                "insert into processed_events select '{group}', gen_random_uuid(), now() - interval '2 hours' from generate_series(1, 10)"
            ))
            .await?;
        let relay = outbox.relay(kafka);
        Ok(Self { outbox, source, dead_letters, group, relay })
    }

    /// Commits an offset, as any consumer does.
    fn commit(&self, kafka: &RealKafka) -> anyhow::Result<()> {
        let consumer: BaseConsumer = kafka.client().set("group.id", &self.group).create()?;
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.source, 1, Offset::Offset(0))?;
        Ok(consumer.commit(&offsets, CommitMode::Sync)?)
    }

    async fn prune(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let relay = PRUNE.iter().chain(arguments).fold(self.relay.clone(), |relay, one| relay.argument(one));
        relay.output("prune").await
    }

    async fn refused(&self, arguments: &[&str], parts: &[&str]) -> anyhow::Result<()> {
        let output = self.prune(arguments).await?;
        ensure!(output.code == Some(1), "{output:?}");
        for part in parts {
            ensure!(output.stderr.contains(part), "no {part:?} in {output:?}");
        }
        ensure!(self.rows().await? == 10, "rows were pruned");
        Ok(())
    }

    async fn rows(&self) -> anyhow::Result<i64> {
        self.outbox.number("select count(*) from processed_events").await
    }

    /// Returns the findings of `check` about the window.
    async fn findings(&self) -> anyhow::Result<Vec<String>> {
        let relay = self.relay.clone().with("RELAY_PROCESSED_RETENTION", "1h").argument("--json");
        let report: Value = serde_json::from_str(&relay.output("check").await?.stdout)?;
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        let is_window = |finding: &&Value| finding["id"] == "processed-window" && finding["severity"] == "error";
        Ok(findings.iter().filter(is_window).map(|finding| finding["message"].to_string()).collect())
    }
}

async fn an_inbox_keeps_what_the_topics_of_its_groups_may_bring_again(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let consumers = Consumers::new(&database, &kafka).await?;
    consumers.commit(&kafka)?;
    consumers.refused(&[], &[&format!("{} ", consumers.source), "7d", "1h"]).await?;
    let found = consumers.findings().await?;
    ensure!(found.len() == 1 && found[0].contains(&consumers.source) && found[0].contains("7d"), "{found:?}");
    // The topic is short enough now, and its dead letters are not.
    kafka.alter_topic(&consumers.source, &[("retention.ms", "60000")]).await?;
    kafka.alter_topic(&consumers.dead_letters, &[("retention.ms", "-1")]).await?;
    eventually("only the dead letters are kept too long", SOON, || async {
        let refused = consumers.refused(&[], &[&consumers.dead_letters, "ever"]).await;
        refused.map_err(|error| error.to_string())
    })
    .await;
    kafka.alter_topic(&consumers.dead_letters, &[("retention.ms", "60000")]).await?;
    eventually("the rows are pruned", SOON, || async {
        let output = consumers.prune(&[]).await.map_err(|error| error.to_string())?;
        if output.code == Some(0) { Ok(()) } else { Err(output.stderr) }
    })
    .await;
    ensure!(consumers.rows().await? == 0 && consumers.findings().await?.is_empty());
    Ok(())
}

async fn a_group_whose_topics_are_not_known_keeps_its_rows_until_somebody_names_them(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let consumers = Consumers::new(&database, &kafka).await?;
    let unknown = [consumers.group.as_str(), "--topics", "processed_events_source"];
    consumers.refused(&[], &unknown).await?;
    let found = consumers.findings().await?;
    ensure!(found.len() == 1 && found[0].contains(&consumers.group), "{found:?}");
    // A topic that is named is compared, and so are its dead letters.
    consumers.refused(&["--topics", &consumers.source], &[&consumers.source, "7d"]).await?;
    let (group, source) = (&consumers.group, &consumers.source);
    let recorded =
        format!("insert into processed_events_source (consumer_group, topic) values ('{group}', '{source}')");
    consumers.outbox.execute(&recorded).await?;
    consumers.refused(&[], &[&consumers.source, "7d"]).await?;
    kafka.alter_topic(&consumers.source, &[("retention.ms", "60000")]).await?;
    // A dead letter topic of another name is recorded as such.
    let elsewhere = format!("{source}-failed");
    kafka.create_topic(&elsewhere, 1, &[("retention.ms", "7200000")]).await?;
    let recorded = format!("insert into processed_events_source values ('{group}', '{elsewhere}', true)");
    consumers.outbox.execute(&recorded).await?;
    eventually("only the dead letters are kept too long", SOON, || async {
        let refused = consumers.refused(&[], &[&format!("{elsewhere} keeps dead letters"), "2h"]).await;
        refused.map_err(|error| error.to_string())
    })
    .await;
    Ok(())
}

async fn a_relay_prunes_nothing_that_topics_of_other_services_may_bring_again(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    const REFUSED: &str = "OR-3112";
    let consumers = Consumers::new(&database, &kafka).await?;
    let relay = consumers.relay.clone().with("RELAY_PROCESSED_RETENTION", "10s").start("foreign")?;
    let is_of_retention = |line: &Value| line["finding"].is_null();
    let logged = relay.wait_for_line(REFUSED, is_of_retention).await;
    ensure!(logged["reason"].as_str().is_some_and(|reason| reason.contains(&consumers.group)), "{logged}");
    ensure!(logged["next_step"].as_str().is_some_and(|step| step.contains("processed_events_source")), "{logged}");
    consumers.commit(&kafka)?;
    let logged = relay
        .wait_for_line(REFUSED, |line| {
            is_of_retention(line) && line["reason"].as_str().is_some_and(|reason| reason.contains(&consumers.source))
        })
        .await;
    ensure!(logged["reason"].as_str().is_some_and(|reason| reason.contains("7d")), "{logged}");
    ensure!(consumers.rows().await? == 10);
    kafka.alter_topic(&consumers.source, &[("retention.ms", "5000")]).await?;
    kafka.alter_topic(&consumers.dead_letters, &[("retention.ms", "5000")]).await?;
    eventually("the rows are pruned", SOON * 2, || async {
        match consumers.rows().await {
            Ok(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    Ok(())
}

/// `<topic>.dlq` names no group, so it is no dead letter topic of the consumer runtime. A group reads it all the same.
async fn a_topic_that_only_resembles_a_dead_letter_topic_is_reported(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut consumers = Consumers::new(&database, &kafka).await?;
    let topic = consumers.outbox.topic.clone();
    kafka.create_topic(&topic, 1, &[("retention.ms", "60000")]).await?;
    consumers.outbox.write("e", 1, 1).await?;
    consumers.source = format!("{topic}.dlq");
    kafka.create_topic(&consumers.source, 2, &[("retention.ms", "-1")]).await?;
    consumers.commit(&kafka)?;
    let found = consumers.findings().await?;
    ensure!(found.len() == 1 && found[0].contains(&format!("the topic {} keeps", consumers.source)), "{found:?}");
    Ok(())
}
