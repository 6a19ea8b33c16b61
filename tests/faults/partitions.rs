//! Tests partitions that take no records, in a cluster of three brokers: only their own events wait.

use anyhow::ensure;
use lab::kafka::RealKafka;
use lab::murmur2::java_partition;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;

/// The entities of each topic.
const ENTITIES: i64 = 40;

/// The events, one after the other, that a topic has to publish while another one is in trouble.
const ROUNDS: i64 = 20;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            partitions_without_a_leader_stop_only_their_own_events,
            partitions_without_a_leader_stop_only_their_own_events_in_transactions,
            partitions_with_too_few_replicas_stop_only_their_own_events,
            partitions_with_too_few_replicas_stop_only_their_own_events_in_transactions,
            a_frozen_leader_stops_only_its_own_events,
            a_frozen_leader_stops_only_its_own_events_in_transactions,
            events_without_a_key_go_around_a_partition_without_a_leader,
            a_relay_that_is_killed_leaves_what_is_in_doubt_to_the_next_one;
    }
}

/// A healthy topic on the first broker, and one that is in trouble without the third.
struct Cluster {
    brokers: Vec<RealKafka>,
    healthy: Outbox,
    troubled: Outbox,
    delivery: &'static str,
}

const AT_LEAST_ONCE: &str = "at_least_once";
const EXACTLY_ONCE: &str = "exactly_once";

impl Cluster {
    async fn start(database: &TestDatabase, replicas: &[&[i32]], configs: &[(&str, &str)]) -> anyhow::Result<Self> {
        let brokers = tokio::task::spawn_blocking(|| RealKafka::start_cluster(3)).await??;
        let healthy = Outbox::from_database(database);
        let troubled = healthy.seen_by(&format!("{}-troubled", healthy.topic));
        brokers[0].create_placed_topic(&healthy.topic, &[&[1], &[1], &[1]], &[]).await?;
        brokers[0].create_placed_topic(&troubled.topic, replicas, configs).await?;
        Ok(Self { brokers, healthy, troubled, delivery: AT_LEAST_ONCE })
    }

    fn with(self, delivery: &'static str) -> Self {
        Self { delivery, ..self }
    }

    fn relay(&self) -> Relay {
        let relay = self.healthy.relay(&self.brokers[0]).with("RELAY_ADMIN_ADDRESS", "127.0.0.1:0");
        relay.with("RELAY_DELIVERY", self.delivery)
    }

    /// Writes events `from`, `from + 1`, … of every entity to both topics.
    async fn write(&self, from: i64, count: i64) -> anyhow::Result<()> {
        let sql = format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
             select 'order', 'e' || entity, 'Counted', json_build_object('n', n), topic \
             from generate_series({from}, {}) n, generate_series(1, {ENTITIES}) entity, \
             unnest(array['{}', '{}']) topic",
            from + count - 1,
            self.healthy.topic,
            self.troubled.topic
        );
        self.healthy.execute(&sql).await.map(drop)
    }

    /// Returns SQL that is true for pending events of partitions other than `partitions` of the troubled topic.
    fn pending_elsewhere(&self, partitions: &[i32], of: i32) -> String {
        let is_there = |entity: &i64| partitions.contains(&java_partition(format!("e{entity}").as_bytes(), of));
        let there: Vec<_> = (1..=ENTITIES).filter(is_there).map(|entity| format!("'e{entity}'")).collect();
        let topic = &self.troubled.topic;
        format!("status = 'PENDING' and not (topic = '{topic}' and entity_id in ({}))", there.join(","))
    }

    /// Publishes events of the healthy topic one by one. Each would wait for a time limit if a partition in trouble were waited for.
    async fn healthy_events_flow(&self) {
        let mut next = 0;
        eventually("events of the healthy topic are published one by one", SOON, || {
            next += 1;
            let (entity, outbox) = (format!("probe-{next}"), &self.healthy);
            async move {
                let sql = format!(
                    "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
                     values ('order', '{entity}', 'Probe', '{{\"n\": 1}}', '{}')",
                    outbox.topic
                );
                outbox.execute(&sql).await?;
                outbox.until_settled_of(&entity).await;
                if entity == format!("probe-{ROUNDS}") { Ok(()) } else { Err(anyhow::anyhow!("{entity}")) }
            }
        })
        .await;
    }

    /// Checks that each entity's events are on their topic in the order in which they were written, each once.
    async fn everything_is_there_once(&self, events: i64) -> anyhow::Result<()> {
        self.healthy.until_settled().await;
        self.healthy.all_published().await?;
        for outbox in [&self.healthy, &self.troubled] {
            let numbers = outbox.published_numbers(&self.brokers[0]).await?;
            let counted: Vec<_> = numbers.iter().filter(|(entity, _)| entity.starts_with('e')).collect();
            ensure!(counted.len() == ENTITIES as usize, "{} entities", counted.len());
            for (entity, numbers) in counted {
                ensure!(*numbers == (1..=events).collect::<Vec<_>>(), "{}: {entity}: {numbers:?}", outbox.topic);
            }
        }
        Ok(())
    }
}

async fn partitions_without_a_leader_stop_only_their_own_events(database: TestDatabase) -> anyhow::Result<()> {
    without_a_leader(&database, AT_LEAST_ONCE).await
}

async fn partitions_without_a_leader_stop_only_their_own_events_in_transactions(
    database: TestDatabase,
) -> anyhow::Result<()> {
    without_a_leader(&database, EXACTLY_ONCE).await
}

async fn partitions_with_too_few_replicas_stop_only_their_own_events(database: TestDatabase) -> anyhow::Result<()> {
    with_too_few_replicas(&database, AT_LEAST_ONCE).await
}

async fn partitions_with_too_few_replicas_stop_only_their_own_events_in_transactions(
    database: TestDatabase,
) -> anyhow::Result<()> {
    with_too_few_replicas(&database, EXACTLY_ONCE).await
}

async fn a_frozen_leader_stops_only_its_own_events(database: TestDatabase) -> anyhow::Result<()> {
    frozen_leader(&database, AT_LEAST_ONCE).await
}

async fn a_frozen_leader_stops_only_its_own_events_in_transactions(database: TestDatabase) -> anyhow::Result<()> {
    frozen_leader(&database, EXACTLY_ONCE).await
}

fn is_of(line: &Value, topic: &str, partition: i32) -> bool {
    line["topic"] == topic && line["partition"] == partition
}

async fn without_a_leader(database: &TestDatabase, delivery: &'static str) -> anyhow::Result<()> {
    let replicas: [&[i32]; 6] = [&[1], &[2], &[3], &[1], &[2], &[3]];
    let mut cluster = Cluster::start(database, &replicas, &[]).await?.with(delivery);
    let relay = cluster.relay().start_ready("partitions").await?;
    cluster.write(1, 2).await?;
    cluster.healthy.until_settled().await;
    cluster.brokers[2].kill();
    cluster.write(3, 5).await?;
    let elsewhere = cluster.pending_elsewhere(&[2, 5], 6);
    cluster.healthy.until_none("only the broker's own partitions wait", &elsewhere).await;
    cluster.healthy_events_flow().await;
    for partition in [2, 5] {
        let topic = &cluster.troubled.topic;
        let line = relay.wait_for_line("partition_closed", |line| is_of(line, topic, partition)).await;
        ensure!(line["reason"].as_str().is_some_and(|reason| reason.contains("leader")), "{line}");
    }
    let status = cluster.relay().output("status").await?.stdout;
    ensure!(status.contains(&format!("held partition {} [", cluster.troubled.topic)), "{status}");
    cluster.write(8, 2).await?;
    cluster.healthy.until_none("only the broker's own partitions wait", &elsewhere).await;
    cluster.brokers[2].start_again()?;
    cluster.everything_is_there_once(9).await?;
    for partition in [2, 5] {
        let topic = &cluster.troubled.topic;
        relay.wait_for_line("partition_reopened", |line| is_of(line, topic, partition)).await;
    }
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn with_too_few_replicas(database: &TestDatabase, delivery: &'static str) -> anyhow::Result<()> {
    let replicas: [&[i32]; 3] = [&[2, 3], &[2, 3], &[2, 3]];
    let mut cluster = Cluster::start(database, &replicas, &[("min.insync.replicas", "2")]).await?.with(delivery);
    let relay = cluster.relay().start_ready("partitions").await?;
    cluster.write(1, 2).await?;
    cluster.healthy.until_settled().await;
    cluster.brokers[2].stop();
    cluster.write(3, 3).await?;
    cluster.healthy.until_none("only the topic's own events wait", &cluster.pending_elsewhere(&[0, 1, 2], 3)).await;
    cluster.healthy_events_flow().await;
    let line = relay.wait_for_line("partition_closed", |line| line["topic"] == cluster.troubled.topic).await;
    ensure!(
        line["code"] == "OR-3007" || line["reason"].as_str().is_some_and(|reason| reason.contains("broker 2")),
        "{line}"
    );
    cluster.brokers[2].start_again()?;
    cluster.everything_is_there_once(5).await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

/// The controller knows for a few seconds only that the leader is silent. Nobody else tells.
async fn frozen_leader(database: &TestDatabase, delivery: &'static str) -> anyhow::Result<()> {
    let replicas: [&[i32]; 3] = [&[1], &[2], &[3]];
    let mut cluster = Cluster::start(database, &replicas, &[]).await?.with(delivery);
    let relay = cluster.relay().start_ready("partitions").await?;
    cluster.write(1, 1).await?;
    cluster.healthy.until_settled().await;
    cluster.brokers[2].signal(Signal::SIGSTOP)?;
    cluster.write(2, 3).await?;
    cluster.healthy.until_none("only the broker's own partition waits", &cluster.pending_elsewhere(&[2], 3)).await;
    cluster.healthy_events_flow().await;
    cluster.brokers[2].signal(Signal::SIGCONT)?;
    cluster.everything_is_there_once(4).await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn events_without_a_key_go_around_a_partition_without_a_leader(database: TestDatabase) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&database, &[&[1], &[3], &[1]], &[]).await?;
    let relay = cluster.relay().start_ready("partitions").await?;
    cluster.write(1, 1).await?;
    cluster.healthy.until_settled().await;
    cluster.brokers[2].kill();
    let topic = &cluster.troubled.topic;
    let write = |events: i64| {
        format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
             select 'order', null, 'Keyless', '{{}}', '{topic}' from generate_series(1, {events}) n"
        )
    };
    cluster.healthy.execute(&write(30)).await?;
    // A third of them may have been sent to the partition before it was known.
    let published = "select count(*) from event_outbox where event_type = 'Keyless' and status = 'PUBLISHED'";
    let until = async |what: &str, events: i64| {
        eventually(what, SOON, || async {
            match cluster.healthy.number(published).await {
                Ok(published) if published >= events => Ok(()),
                other => Err(other),
            }
        })
        .await;
    };
    until("keyless events are published", 20).await;
    relay.wait_for("partition_closed").await;
    cluster.healthy.execute(&write(300)).await?;
    until("keyless events go around the partition", 320).await;
    cluster.brokers[2].start_again()?;
    cluster.healthy.until_settled().await;
    cluster.healthy.all_published().await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn a_relay_that_is_killed_leaves_what_is_in_doubt_to_the_next_one(database: TestDatabase) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&database, &[&[1], &[3], &[1]], &[]).await?;
    let relay = cluster.relay().start_ready("first").await?;
    cluster.write(1, 1).await?;
    cluster.healthy.until_settled().await;
    cluster.brokers[2].kill();
    cluster.write(2, 3).await?;
    let elsewhere = cluster.pending_elsewhere(&[1], 3);
    cluster.healthy.until_none("only the broker's own partition waits", &elsewhere).await;
    relay.kill()?;
    let relay = cluster.relay().start_ready("second").await?;
    cluster.write(5, 2).await?;
    cluster.healthy.until_none("only the broker's own partition waits", &elsewhere).await;
    cluster.healthy_events_flow().await;
    cluster.brokers[2].start_again()?;
    cluster.everything_is_there_once(6).await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}
