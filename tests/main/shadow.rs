//! Tests `RELAY_TOPIC_PREFIX`: everything goes to topics with the prefix, and every command agrees with the relay.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use lab::kafka::RealKafka;
use lab::{Outbox, PARTITIONS, Relay, TestDatabase, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            everything_goes_to_topics_with_the_prefix_and_every_command_agrees,
            an_exactly_once_relay_goes_on_where_the_shadow_ended;
    }
}

/// An outbox whose events go to a topic of the template, and to topics that rows name.
struct Shadow {
    outbox: Outbox,
    kafka: Arc<RealKafka>,
    /// The topics without the prefix: of the template, of rows, and one that is not allowed.
    routed: String,
    own: String,
    refused: String,
}

impl Shadow {
    async fn new(database: &TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<Self> {
        let outbox = Outbox::from_database(database);
        let name = database.name();
        let [routed, own, refused] = ["events", "own", "refused"].map(|kind| format!("{name}-{kind}"));
        for topic in [&routed, &own, &refused] {
            kafka.create_topic(topic, PARTITIONS, &[]).await?;
            kafka.create_topic(&format!("shadow.{topic}"), PARTITIONS, &[]).await?;
        }
        Ok(Self { outbox, kafka, routed, own, refused })
    }

    fn relay(&self) -> Relay {
        let allowed = format!("{},{}", self.routed, self.own);
        let relay =
            self.outbox.relay(&self.kafka).with("RELAY_TOPIC", "{entity_type}-events").with("RELAY_TOPICS", allowed);
        relay.with("RELAY_TOPIC_PREFIX", "shadow.")
    }

    /// Writes an event; `topic` is the row's own.
    async fn write(&self, entity: &str, topic: Option<&str>) -> anyhow::Result<String> {
        let sql = "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
                   values ($1, $2, 'Counted', '{}', $3) returning event_id::text";
        let entity_type = self.routed.trim_end_matches("-events");
        let query = sqlx::query_scalar(sql).bind(entity_type).bind(entity).bind(topic);
        Ok(query.fetch_one(&mut self.outbox.connect().await?).await?)
    }

    async fn records(&self, topic: &str) -> anyhow::Result<usize> {
        Ok(self.kafka.read_topic(topic).await?.len())
    }

    async fn json(&self, command: &str, arguments: &[&str], code: i32) -> anyhow::Result<Value> {
        let relay = arguments.iter().fold(self.relay(), |relay, argument| relay.argument(argument));
        let output = relay.argument("--json").output(command).await?;
        ensure!(output.code == Some(code), "{command} {arguments:?}: {output:?}");
        serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())
    }
}

async fn everything_goes_to_topics_with_the_prefix_and_every_command_agrees(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let shadow = Shadow::new(&database, kafka).await?;
    let relay = shadow.relay().start_ready("shadow").await?;
    let routed = shadow.write("a", None).await?;
    let own = shadow.write("b", Some(&shadow.own)).await?;
    let refused = shadow.write("c", Some(&shadow.refused)).await?;
    let empty = shadow.write("d", Some("")).await?;
    shadow.outbox.until_settled().await;
    let (of_routed, of_own) = (format!("shadow.{}", shadow.routed), format!("shadow.{}", shadow.own));
    ensure!(shadow.records(&of_routed).await? == 1 && shadow.records(&of_own).await? == 1);
    for topic in [&shadow.routed, &shadow.own, &shadow.refused, &format!("shadow.{}", shadow.refused)] {
        ensure!(shadow.records(topic).await? == 0, "{topic} has records");
    }
    for (event, topic) in [(&routed, &of_routed), (&own, &of_own)] {
        let explained = shadow.json("explain", &[event], 0).await?;
        ensure!(explained["events"][0].to_string().contains(&format!("\"{topic}\"")), "{explained:#}");
    }
    let verdict = shadow.json("verify", &[], 0).await?;
    let topics: Vec<_> =
        verdict["topics"].as_array().context("topics")?.iter().filter_map(|t| t["topic"].as_str()).collect();
    ensure!(topics.contains(&of_routed.as_str()) && topics.contains(&of_own.as_str()), "{verdict:#}");
    // An event that is not allowed is DEAD under the name that the list does not have; one without a name stays illegal.
    let dead = shadow.json("dead", &["list", "--topic", &format!("shadow.{}", shadow.refused)], 0).await?;
    ensure!(dead.to_string().contains(&format!("the topic {} is not in RELAY_TOPICS", shadow.refused)), "{dead:#}");
    for event in [&refused, &empty] {
        let status: String =
            sqlx::query_scalar("select status::text from event_outbox where event_id = $1::text::uuid")
                .bind(event)
                .fetch_one(&mut shadow.outbox.connect().await?)
                .await?;
        ensure!(status == "DEAD", "{event} is {status}");
    }
    let check = shadow.json("check", &[], 1).await?;
    ensure!(check.to_string().contains(&format!("the topic {} is not in RELAY_TOPICS", shadow.refused)), "{check:#}");
    ensure!(!check.to_string().contains(&format!("the topic {} is not", shadow.routed)), "{check:#}");
    // A pause and a replay go by the names of the topics as they are in Kafka.
    shadow.json("pause", &["--topic", &of_own, "--reason", "trial"], 0).await?;
    let held = shadow.write("b", Some(&shadow.own)).await?;
    shadow.write("a", None).await?;
    shadow.outbox.until_none("events that are not paused", "entity_id = 'a' and status = 'PENDING'").await;
    ensure!(shadow.records(&of_own).await? == 1, "{held} was paused");
    shadow.json("resume", &["--topic", &of_own], 0).await?;
    shadow.outbox.until_settled().await;
    shadow.json("replay", &["--topic", &of_own, "--yes"], 0).await?;
    ensure!(shadow.records(&of_own).await? == 4 && shadow.records(&shadow.own).await? == 0);
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn an_exactly_once_relay_goes_on_where_the_shadow_ended(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let shadow = Shadow::new(&database, kafka).await?;
    let once = shadow.relay().with("RELAY_DELIVERY", "exactly_once");
    let relay = once.start_ready("shadow").await?;
    for _ in 0..20 {
        shadow.write("a", None).await?;
    }
    shadow.outbox.until_settled().await;
    // A killed relay leaves its progress to the next one, which looks for records on the topics with the prefix.
    relay.kill()?;
    let relay = once.start_ready("shadow").await?;
    shadow.write("a", None).await?;
    shadow.outbox.until_settled().await;
    ensure!(relay.stop().await? == Some(0));
    let of_routed = format!("shadow.{}", shadow.routed);
    ensure!(shadow.records(&of_routed).await? == 21);
    // Without the prefix, only later events go to the topic itself.
    let real = shadow.outbox.relay(&shadow.kafka).with("RELAY_TOPIC", "{entity_type}-events");
    let relay = real.with("RELAY_DELIVERY", "exactly_once").start_ready("real").await?;
    shadow.write("a", None).await?;
    shadow.outbox.until_settled().await;
    ensure!(relay.stop().await? == Some(0));
    ensure!(shadow.records(&of_routed).await? == 21 && shadow.records(&shadow.routed).await? == 1);
    Ok(())
}
