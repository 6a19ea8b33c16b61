//! Checks one topic: whether it accepts records, stores them safely, and fits the events in the outbox.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::ConfigEntry;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;

use super::expiring::Expiring;
use super::finding::Finding;
use super::kafka::{Cluster, blocking, value};
use crate::config::{KafkaSettings, RelaySettings};
use crate::fault;
use crate::inspect::dedup_window::TopicRetention;
use crate::lane::murmur2;
use crate::sink::reader::{Part, Partition, Reader};
use crate::store::routes::Seen;
use event_outbox::code::Code;

/// The default of librdkafka's `message.max.bytes`.
const CLIENT_LIMIT: i64 = 1_000_000;

/// The minimum number of bytes that the envelope and the record add to a payload.
const AROUND: i64 = 200;

/// The number of partitions whose last records are read.
const TAIL_PARTITIONS: usize = 12;
/// The number of last records that are read from each partition.
const TAIL_RECORDS: i64 = 20;
const TAIL_WITHIN: Duration = Duration::from_secs(3);

/// The minimum number of keys for a statement about the partitioner.
const FEWEST_KEYS: usize = 8;

/// Checks a topic. Returns the findings, and the topic's retention and oldest record unless the topic cannot be used.
pub(super) async fn topic(
    cluster: &Cluster,
    kafka: &KafkaSettings,
    relay: &RelaySettings,
    name: &str,
    seen: Seen,
) -> Result<(Vec<Finding>, Option<Topic>), KafkaError> {
    let partitions = match cluster.topic(name).await? {
        Ok(partitions) => partitions,
        Err(code) => return Ok((vec![closed(name, code, cluster).await], None)),
    };
    let mut findings: Vec<Finding> = leaderless(name, &partitions).into_iter().collect();
    let config = cluster.topic_config(name).await;
    match &config {
        None => findings.push(Finding::note(
            Code::TopicConfigHidden,
            format!("The relay's user may not see the configuration of the topic {name}: replicas and sizes are not checked."),
            match kafka.msk_iam() {
                Some(_) => "look at it with another client: clients that log in with IAM cannot ask for it; the relay works without it",
                None => "grant the relay's user DESCRIBE_CONFIGS on the topic; the relay works without this right",
            },
        )),
        Some(config) => {
            findings.extend(replicas(name, &partitions, config, cluster.brokers.len()));
            findings.extend(sizes(name, config, client_limit(kafka), seen.largest));
            findings.extend(Expiring::new(name, config, seen, relay).as_ref().map(Expiring::finding));
        }
    }
    let count = partitions.len();
    let (reader, tail_of) = (Arc::clone(&cluster.reader), name.to_owned());
    let tail = blocking(move || tail(&reader, &tail_of, &partitions)).await?;
    if let Ok(tail) = &tail {
        findings.extend(partitioner(name, kafka, tail, count));
    }
    let retention = config.as_deref().and_then(TopicRetention::from_config);
    let oldest_ms = tail.ok().and_then(|tail| tail.oldest_ms);
    Ok((findings, Some(Topic { partitions: count, retention, oldest_ms })))
}

/// The facts about a topic that are compared with the window of `processed_events`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Topic {
    pub(super) partitions: usize,
    /// The retention; `None` if the user may not see the configuration.
    pub(super) retention: Option<TopicRetention>,
    /// The earliest timestamp of the partitions' first records.
    pub(super) oldest_ms: Option<i64>,
}

async fn closed(name: &str, code: RDKafkaErrorCode, cluster: &Cluster) -> Finding {
    match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => Finding::error(
            Code::TopicUnauthorized,
            format!("The relay's user may not see the topic {name}: its events are held."),
            format!("kafka-acls.sh --add --allow-principal User:… --operation Write --topic {name}"),
        ),
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
            let create = format!("kafka-topics.sh --create --topic {name} --partitions … --replication-factor 3");
            if cluster.creates_topics().await {
                return Finding::warning(
                    Code::TopicMissing,
                    format!(
                        "The topic {name} does not exist: the brokers create it at the first event, with their default number of partitions, which cannot be reduced later."
                    ),
                    create,
                );
            }
            Finding::error(Code::TopicMissing, format!("The topic {name} does not exist: its events are held."), create)
        }
        code => Finding::error(
            Code::TopicUnusable,
            format!("The cluster gives no information about the topic {name} ({code:?})."),
            fault::classify_kafka(code).next_step,
        ),
    }
}

fn leaderless(name: &str, partitions: &[Partition]) -> Option<Finding> {
    let without = partitions.iter().filter(|partition| !partition.has_leader).count();
    (without > 0).then(|| {
        Finding::error(
            Code::TopicLeaderless,
            format!(
                "{without} of {} partitions of the topic {} have no leader: their events wait.",
                partitions.len(),
                name
            ),
            "bring the brokers that hold their replicas back: kafka-topics.sh --describe --unavailable-partitions",
        )
    })
}

fn replicas(name: &str, partitions: &[Partition], config: &[ConfigEntry], brokers: usize) -> Option<Finding> {
    let least: usize = value(config, "min.insync.replicas")?.parse().ok()?;
    let fewest = partitions.iter().map(|partition| partition.replicas).min()?;
    let in_sync = partitions.iter().map(|partition| partition.in_sync).min()?;
    let alter = |to: usize| {
        format!(
            "kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config min.insync.replicas={to}"
        )
    };
    if least > fewest {
        return Some(Finding::error(
            Code::TopicMinIsr,
            format!(
                "The topic {name} needs {least} replicas in sync and has only {fewest}: no record is ever acknowledged."
            ),
            alter(fewest.saturating_sub(1).max(1)),
        ));
    }
    if in_sync < least {
        return Some(Finding::error(
            Code::TopicMinIsr,
            format!(
                "A partition of the topic {name} has {in_sync} replicas in sync and needs {least}: its events wait."
            ),
            "bring the other replicas' brokers back: kafka-topics.sh --describe --under-min-isr-partitions",
        ));
    }
    if fewest == 1 || least == 1 {
        let single = if fewest == 1 { "has one replica" } else { "acknowledges a record that only one replica has" };
        let finding = Finding::warning(
            Code::TopicSingleReplica,
            format!("The topic {name} {single}: if that broker loses its disk, acknowledged events are lost."),
            if fewest == 1 {
                format!("kafka-reassign-partitions.sh to 3 replicas, then {}", alter(2))
            } else {
                alter(2)
            },
        );
        // On a cluster of one broker there is no fix, so this is only a note.
        let severity = if brokers == 1 { super::Severity::Note } else { finding.severity };
        return Some(Finding { severity, ..finding });
    }
    None
}

fn client_limit(kafka: &KafkaSettings) -> i64 {
    let given = kafka.properties().find(|(name, _)| *name == "message.max.bytes");
    given.and_then(|(_, value)| value.expose().parse().ok()).unwrap_or(CLIENT_LIMIT)
}

fn sizes(name: &str, config: &[ConfigEntry], client: i64, largest: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(topic) = value(config, "max.message.bytes").and_then(|bytes| bytes.parse::<i64>().ok()) else {
        return findings;
    };
    if client > topic {
        findings.push(Finding::warning(
            Code::MessageSizeMismatch,
            format!("KAFKA_MESSAGE_MAX_BYTES is {client}, but the topic {name} accepts only {topic} bytes: larger batches are rejected and sent again in smaller ones."),
            format!("KAFKA_MESSAGE_MAX_BYTES={topic}, or raise max.message.bytes of the topic"),
        ));
    }
    let limit = topic.min(client);
    if largest + AROUND > limit {
        let raise = largest + AROUND + largest / 4;
        findings.push(Finding::error(
            Code::MessageTooLarge,
            format!("Events for the topic {name} have up to {largest} bytes, but the limit for a record is {limit} bytes: such events become DEAD."),
            format!(
                "KAFKA_MESSAGE_MAX_BYTES={raise}; kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config max.message.bytes={raise}"
            ),
        ));
    }
    findings
}

#[derive(Debug, Default)]
struct Tail {
    /// The partition and key of each of the last records.
    keys: Vec<(i32, Vec<u8>)>,
    oldest_ms: Option<i64>,
}

fn tail(reader: &Reader, topic: &str, partitions: &[Partition]) -> Result<Tail, KafkaError> {
    let (mut last, mut first, mut tail) = (Vec::new(), Vec::new(), Tail::default());
    for partition in partitions.iter().take(TAIL_PARTITIONS) {
        let (low, end) = reader.watermarks(topic, partition.id)?;
        last.push(Part { partition: partition.id, from: low.max(end - TAIL_RECORDS), end });
        first.push(Part { partition: partition.id, from: low, end: (low + 1).min(end) });
    }
    reader.read(topic, &last, TAIL_WITHIN, |message| {
        if let Some(key) = message.key() {
            tail.keys.push((message.partition(), key.to_vec()));
        }
        std::ops::ControlFlow::Continue(())
    })?;
    reader.read(topic, &first, TAIL_WITHIN, |message| {
        let oldest = tail.oldest_ms.into_iter().chain(message.timestamp().to_millis()).min();
        tail.oldest_ms = oldest;
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(tail)
}

/// Compares the partitions of the last records with those that the configured partitioner would choose for their keys.
fn partitioner(name: &str, kafka: &KafkaSettings, tail: &Tail, partitions: usize) -> Option<Finding> {
    let count = i32::try_from(partitions).ok().filter(|count| *count > 1)?;
    if tail.keys.len() < FEWEST_KEYS {
        return None;
    }
    let as_java = tail
        .keys
        .iter()
        .filter(|(partition, key)| murmur2::partition(murmur2::murmur2(key), count) == *partition)
        .count();
    let configured = kafka.partitioner();
    let java = configured.starts_with("murmur2");
    let (others, all) = (tail.keys.len() - as_java, tail.keys.len());
    let disagrees = if java { others * 10 > all } else { others == 0 };
    disagrees.then(|| {
        let (there, fix) = if java {
            (
                format!("{others} of the last {all} records with a key are not where {configured} puts them"),
                "find the other producer and make both use the same partitioner: KAFKA_PARTITIONER=murmur2_random is Java's, consistent is librdkafka's for keys; if the topic got more partitions, the finding disappears with new records",
            )
        } else {
            (format!("the last {all} records with a key are where Java's partitioner puts them, not {configured}"), "KAFKA_PARTITIONER=murmur2_random")
        };
        Finding::warning(
            Code::TopicPartitioner,
            format!("On the topic {name} {there}: events of an entity are on two partitions, and their order is lost."),
            fix,
        )
    })
}
