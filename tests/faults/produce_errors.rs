//! Each error that a broker answers to a record reaches the log, `/readyz` and the metrics with the code and the next step of docs/reference/failures.md.
//!
//! All of them are injected on the wire; some are those of a real broker, as is a quorum that is lost (`broker`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::proxy::{Protocol, Proxy, port_of};
use lab::admin::{Admin, with_admin};
use lab::kafka::{MINDS_RIGHTS, RealKafka};
use lab::{Outbox, PARTITIONS, RelayProcess, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            every_error_of_a_produce_request_is_reported_with_its_code_and_next_step,
            a_missing_topic_and_a_large_record_of_a_real_broker_are_reported_with_their_codes;
        with_postgres:
            a_right_that_exactly_once_lacks_is_reported_and_the_named_grant_is_enough,
            a_transaction_that_is_longer_than_brokers_allow_is_reported;
    }
}

/// How the relay tells of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Not at all: the record is there.
    Nothing,
    /// Records wait.
    Records,
    /// A topic is held.
    Topic,
    /// An event is DEAD.
    Event,
}

impl Told {
    fn notice(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Records => "records_unacknowledged",
            Self::Topic => "topic_closed",
            Self::Event => "event_refused",
        }
    }
}

/// Every error of a Produce request, by the name it has in docs/reference/failures.md, with Kafka's number for it.
const CASES: &[(&str, i16, Told)] = &[
    ("Unknown", -1, Told::Records),
    // librdkafka sends it again.
    ("InvalidMessage", 2, Told::Records),
    // librdkafka asks for the topic, which is there.
    ("UnknownTopicOrPartition", 3, Told::Records),
    ("LeaderNotAvailable", 5, Told::Records),
    ("NotLeaderForPartition", 6, Told::Records),
    ("RequestTimedOut", 7, Told::Records),
    ("BrokerNotAvailable", 8, Told::Records),
    ("ReplicaNotAvailable", 9, Told::Records),
    ("MessageSizeTooLarge", 10, Told::Event),
    ("NetworkException", 13, Told::Records),
    ("InvalidTopic", 17, Told::Topic),
    ("MessageBatchTooLarge", 18, Told::Event),
    ("NotEnoughReplicas", 19, Told::Records),
    ("NotEnoughReplicasAfterAppend", 20, Told::Records),
    ("InvalidRequiredAcks", 21, Told::Records),
    ("TopicAuthorizationFailed", 29, Told::Topic),
    ("ClusterAuthorizationFailed", 31, Told::Records),
    ("InvalidTimestamp", 32, Told::Event),
    ("UnsupportedVersion", 35, Told::Records),
    ("InvalidRequest", 42, Told::Records),
    ("UnsupportedForMessageFormat", 43, Told::Topic),
    ("PolicyViolation", 44, Told::Event),
    ("OutOfOrderSequenceNumber", 45, Told::Records),
    // It was there before.
    ("DuplicateSequenceNumber", 46, Told::Nothing),
    ("InvalidProducerEpoch", 47, Told::Records),
    ("InvalidTransactionalState", 48, Told::Records),
    ("InvalidProducerIdMapping", 49, Told::Records),
    ("ConcurrentTransactions", 51, Told::Records),
    ("TransactionalIdAuthorizationFailed", 53, Told::Records),
    ("KafkaStorageError", 56, Told::Records),
    ("UnknownProducerId", 59, Told::Records),
    ("FencedLeaderEpoch", 74, Told::Records),
    ("UnknownLeaderEpoch", 75, Told::Records),
    ("UnsupportedCompressionType", 76, Told::Records),
    ("InvalidRecord", 87, Told::Event),
    ("ThrottlingQuotaExceeded", 89, Told::Records),
    ("ProducerFenced", 90, Told::Records),
    ("UnknownTopicId", 100, Told::Topic),
];

/// What docs/reference/failures.md says of an error: the fault table, which a unit test compares it with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    code: String,
    next_step: String,
}

/// The entry of each code of Kafka, and the names of those that are answers to a Produce request.
fn failures() -> anyhow::Result<(BTreeMap<String, Entry>, BTreeSet<String>)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/failures.md"))?;
    let (_, kafka) = page.split_once("\n## Kafka\n").context("no table of Kafka")?;
    let (kafka, _) = kafka.split_once("\n## Postgres\n").context("no table of Postgres")?;
    let named = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut entries = BTreeMap::new();
    for row in kafka.lines().filter(|line| line.contains("](../how-to/runbook.md#")) {
        let columns: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, runbook, told_as, _, next_step] = columns[..] else { anyhow::bail!("{row}") };
        let code = runbook.trim_start_matches('[').split(']').next().unwrap_or_default().to_owned();
        for name in named(told_as) {
            entries.insert(name, Entry { code: code.clone(), next_step: next_step.to_owned() });
        }
    }
    let produce =
        kafka.lines().find(|line| line.contains("Produce request")).context("no codes of Produce requests")?;
    Ok((entries, named(produce).into_iter().collect()))
}

/// Waits for a line after the first `before` that carries code and next step.
async fn told(relay: &RelayProcess, before: usize, notice: &str, entry: &Entry) -> Value {
    let what = format!("{notice:?} with {entry:?}");
    eventually(&what, SOON * 2, || async {
        let log = relay.log();
        let lines: Vec<Value> = log.iter().skip(before).filter_map(|line| serde_json::from_str(line).ok()).collect();
        let named: Vec<_> = lines.into_iter().filter(|line| line["notice"] == notice).collect();
        let is_it = |line: &&Value| line["code"] == *entry.code && line["next_step"] == *entry.next_step;
        named.iter().find(is_it).cloned().ok_or(named)
    })
    .await
}

/// Records that were not acknowledged for that reason.
async fn counted(admin: &Admin, code: &str) -> anyhow::Result<f64> {
    let text = admin.get("/metrics").await?.body;
    let sample = format!("outbox_relay_unacknowledged_records_total{{code=\"{code}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&sample)).with_context(|| format!("no {sample}"))?;
    Ok(value.parse()?)
}

async fn until_counted(admin: &Admin, code: &str, more_than: f64) {
    eventually(&format!("more than {more_than} records of {code}"), SOON, || async {
        match counted(admin, code).await {
            Ok(records) if records > more_than => Ok(()),
            other => Err(other.map_err(|error| error.to_string())),
        }
    })
    .await;
}

async fn every_error_of_a_produce_request_is_reported_with_its_code_and_next_step(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let (entries, produce) = failures()?;
    let cases: BTreeSet<String> = CASES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    ensure!(cases == produce, "without a case, or without an entry: {:?}", cases.symmetric_difference(&produce));

    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let proxy = Proxy::start(Protocol::Kafka, port_of(&kafka.bootstrap())?).await?;
    let settings = outbox.relay_through(outbox.postgres_port(), proxy.port())?;
    let settings = settings.with("RELAY_WORKERS", 1).with("RELAY_PUBLISH_TIMEOUT", "1s");
    let relay = with_admin(settings).start_ready("refused").await?;
    let admin = Admin::from_relay(&relay).await?;
    outbox.write("first", 1, 1).await?;
    outbox.until_settled().await;
    for (name, number, way) in CASES {
        let entry = &entries[*name];
        let (before, counted_before) = (relay.log().len(), counted(&admin, &entry.code).await?);
        proxy.refuse_records(Some(*number));
        outbox.write(name, 1, 1).await?;
        match way {
            Told::Nothing => {
                outbox.until_settled_of(name).await;
                let said = relay.log().split_off(before);
                ensure!(!said.iter().any(|line| line.contains("\"code\"")), "{name}: {said:?}");
            }
            Told::Event => {
                let line = told(&relay, before, way.notice(), entry).await;
                ensure!(line["level"] == "ERROR" && line["entity.id"] == *name, "{line}");
                let row = outbox.row_states(name).await?.pop().context("no row")?;
                let error = row.last_error.unwrap_or_default();
                ensure!(row.status == "DEAD" && error.ends_with(&format!(" ({})", entry.code)), "{name}: {error}");
            }
            Told::Records | Told::Topic => {
                told(&relay, before, way.notice(), entry).await;
                let says = |body: &Value| body["code"] == *entry.code && body["next_step"] == *entry.next_step;
                let body = admin.until_ready_says(503, says).await;
                let cause = if *way == Told::Topic { "topic" } else { "acks" };
                ensure!(body["cause"] == cause, "{name}: {body}");
            }
        }
        if *way != Told::Nothing {
            until_counted(&admin, &entry.code, counted_before).await;
        }
        proxy.refuse_records(None);
        outbox.until_settled().await;
    }
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

/// Nothing is injected here.
async fn a_missing_topic_and_a_large_record_of_a_real_broker_are_reported_with_their_codes(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let (entries, _) = failures()?;
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, PARTITIONS, &[("max.message.bytes", "20000")]).await?;
    let settings = outbox.relay(&kafka).with("KAFKA_COMPRESSION_TYPE", "none");
    let relay = with_admin(settings).start_ready("real").await?;
    let admin = Admin::from_relay(&relay).await?;

    let large = "insert into event_outbox (entity_type, entity_id, event_type, payload) \
                 values ('order', 'large', 'Poison', to_jsonb(repeat('x', 40000)))";
    outbox.execute(large).await?;
    let large = &entries["MessageSizeTooLarge"];
    told(&relay, 0, Told::Event.notice(), large).await;
    until_counted(&admin, &large.code, 0.0).await;

    let missing = format!("{}-missing", outbox.topic);
    let elsewhere = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
         values ('order', 'away', 'Counted', '{{\"n\": 1}}', '{missing}')"
    );
    outbox.execute(&elsewhere).await?;
    let absent = &entries["UnknownTopicOrPartition"];
    let line = told(&relay, 0, Told::Topic.notice(), absent).await;
    ensure!(line["topic"] == *missing, "{line}");
    admin.until_ready_says(503, |body| body["code"] == *absent.code && body["next_step"] == *absent.next_step).await;
    kafka.create_topic(&missing, 1, &[]).await?;
    outbox.until_settled_of("away").await;
    // It takes records, and is gone the next moment.
    kafka.delete_topic(&missing).await?;
    let before = relay.log().len();
    outbox.execute(&elsewhere).await?;
    told(&relay, before, Told::Topic.notice(), absent).await;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

const TRANSACTIONS_WAIT: &str = "transactions_unusable";

/// What every name of an exactly-once relay in Kafka begins with.
const OURS: &str = "outbox-relay.";

async fn a_right_that_exactly_once_lacks_is_reported_and_the_named_grant_is_enough(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let (entries, _) = failures()?;
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(MINDS_RIGHTS)).await??;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).with("RELAY_DELIVERY", "exactly_once").with("RELAY_PUBLISH_TIMEOUT", "5s");
    for (kind, name, grant) in [
        ("TRANSACTIONAL_ID", "TransactionalIdAuthorizationFailed", "WRITE"),
        ("GROUP", "GroupAuthorizationFailed", "READ"),
    ] {
        kafka.set_rights_on_all(kind, OURS, "NONE").await?;
        let relay = relay.start_ready(&kind.to_lowercase()).await?;
        outbox.write(kind, 1, 3).await?;
        let entry = &entries[name];
        ensure!(entry.next_step.contains(grant) && entry.next_step.contains(OURS), "{entry:?}");
        told(&relay, 0, TRANSACTIONS_WAIT, entry).await;
        kafka.set_rights_on_all(kind, OURS, grant).await?;
        outbox.until_settled().await;
        ensure!(relay.stop().await? == Some(0));
    }
    outbox.all_published().await
}

async fn a_transaction_that_is_longer_than_brokers_allow_is_reported(database: TestDatabase) -> anyhow::Result<()> {
    let (entries, _) = failures()?;
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[("transaction.max.timeout.ms", "20000")])).await??;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_DELIVERY", "exactly_once");
    let relay = settings.clone().with("RELAY_PUBLISH_TIMEOUT", "6s").start_ready("long").await?;
    outbox.write("e", 1, 3).await?;
    told(&relay, 0, TRANSACTIONS_WAIT, &entries["InvalidTransactionTimeout"]).await;
    ensure!(relay.stop().await? == Some(0));
    // What the next step says: less by the 15 s that a relay adds.
    let relay = settings.with("RELAY_PUBLISH_TIMEOUT", "5s").start_ready("short").await?;
    outbox.until_settled().await;
    ensure!(relay.stop().await? == Some(0));
    outbox.all_published().await
}
