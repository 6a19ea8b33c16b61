//! Tests `compare` on a real Kafka: two topics are written from one list, faults are injected into one of them, and the command finds these
//! and no others.

pub(crate) mod stopped;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use rand::Rng;
use rand::rngs::StdRng;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use uuid::Uuid;

use lab::kafka::RealKafka;
use lab::murmur2::java_partition;
use lab::relay::Output;
use lab::seed::random_of;
use lab::{PARTITIONS, Relay, SOON, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_kafka:
            two_topics_from_one_list_are_equal_whoever_wrote_them,
            each_injected_fault_is_found_and_nothing_else,
            the_first_differences_say_what_to_look_at,
            topics_are_followed_until_enough_events_are_on_both,
            only_what_both_topics_cover_is_compared_on_request,
            a_comparison_of_nothing_does_not_pass,
            what_cannot_be_compared_is_refused_with_the_reason;
    }
}

/// A record of the list.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: Uuid,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, String)>,
    partition: i32,
    timestamp: i64,
}

impl Event {
    fn new(n: u64, random: &mut StdRng) -> Self {
        let key = (!n.is_multiple_of(11)).then(|| format!("order-{}", random.random_range(0..40)));
        let partition = key.as_ref().map_or(0, |key| java_partition(key.as_bytes(), PARTITIONS));
        // Every tenth event is a tombstone.
        let value = (!n.is_multiple_of(10)).then(|| format!("{{\"n\": {n}}}"));
        let headers = vec![("type".to_owned(), "Counted".to_owned())];
        Self {
            id: Uuid::from_u128(random.random()),
            key,
            value,
            headers,
            partition,
            timestamp: 1_700_000_000_000 + n as i64,
        }
    }
}

/// Two topics of a test, and the producers that write them.
struct Topics {
    kafka: Arc<RealKafka>,
    left: String,
    right: String,
    producer: BaseProducer,
}

impl Topics {
    async fn new(kafka: Arc<RealKafka>) -> anyhow::Result<Self> {
        let name = format!("compare-{}", Uuid::new_v4());
        let (left, right) = (format!("{name}-left"), format!("{name}-right"));
        for topic in [&left, &right] {
            kafka.create_topic(topic, PARTITIONS, &[]).await?;
        }
        let producer = client(&kafka).create()?;
        Ok(Self { kafka, left, right, producer })
    }

    fn write(&self, topic: &str, id_header: &str, events: &[Event]) -> anyhow::Result<()> {
        send(&self.producer, topic, id_header, events)
    }

    /// Writes the events in transactions, some of which are aborted.
    fn write_in_transactions(&self, topic: &str, id_header: &str, events: &[Event]) -> anyhow::Result<()> {
        let mut config = client(&self.kafka);
        config.set("transactional.id", topic);
        let producer: BaseProducer = config.create()?;
        producer.init_transactions(SOON)?;
        for (index, batch) in events.chunks(40).enumerate() {
            producer.begin_transaction()?;
            send(&producer, topic, id_header, batch)?;
            if index % 2 == 0 {
                producer.abort_transaction(SOON)?;
                producer.begin_transaction()?;
                send(&producer, topic, id_header, batch)?;
            }
            producer.commit_transaction(SOON)?;
        }
        Ok(())
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let named = ["--left", &self.left, "--right", &self.right, "--id-header", "id"];
        run(&self.kafka, &[&named, arguments].concat()).await
    }

    /// Returns the exit code and the report.
    async fn compare(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
        let output = self.run(&[&["--json"], arguments].concat()).await?;
        let report = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        Ok((output.code, report))
    }
}

fn client(kafka: &RealKafka) -> ClientConfig {
    let mut config = kafka.client();
    config.set("enable.idempotence", "true");
    config
}

fn send(producer: &BaseProducer, topic: &str, id_header: &str, events: &[Event]) -> anyhow::Result<()> {
    for event in events {
        let id = event.id.to_string();
        let mut headers = OwnedHeaders::new().insert(Header { key: id_header, value: Some(&id) });
        for (key, value) in &event.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut record = BaseRecord::<str, str>::to(topic).headers(headers).partition(event.partition);
        record = record.timestamp(event.timestamp);
        (record.key, record.payload) = (event.key.as_deref(), event.value.as_deref());
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(Duration::from_secs(30))?)
}

async fn run(kafka: &RealKafka, arguments: &[&str]) -> anyhow::Result<Output> {
    let relay = Relay::bare().with("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap());
    arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("compare").await
}

fn counted(report: &Value, expected: &BTreeMap<&str, u64>) -> anyhow::Result<()> {
    for kind in [
        "only_left",
        "only_right",
        "order",
        "key",
        "partition",
        "headers",
        "value",
        "timestamp",
        "reused_id",
        "without_id",
    ] {
        let count = expected.get(kind).copied().unwrap_or(0);
        ensure!(report[kind] == count, "{kind} is not {count} in {report:#}");
        let examples = report["examples"][kind].as_array().context("no examples")?.len() as u64;
        ensure!(examples == count.min(10), "{kind}: {report:#}");
    }
    let found: Vec<&str> =
        report["differences"].as_array().context("a list")?.iter().filter_map(Value::as_str).collect();
    let mut found_sorted: Vec<&str> = expected.keys().copied().collect();
    found_sorted.sort_unstable();
    let mut found = found;
    found.sort_unstable();
    ensure!(found == found_sorted && report["equal"] == found.is_empty(), "{report:#}");
    Ok(())
}

async fn two_topics_from_one_list_are_equal_whoever_wrote_them(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let topics = Topics::new(kafka).await?;
    let mut random = random_of("two_topics_from_one_list_are_equal_whoever_wrote_them");
    let events: Vec<_> = (0..500).map(|n| Event::new(n, &mut random)).collect();
    topics.write(&topics.left, "id", &events)?;
    topics.write_in_transactions(&topics.right, "event-id", &events)?;
    let (code, report) = topics.compare(&["--right-id-header", "event-id", "--timestamp-within", "0s"]).await?;
    ensure!(code == Some(0) && report["matched"] == 500, "{report:#}");
    counted(&report, &BTreeMap::new())?;
    // The text says the same, and each topic may have brokers of its own.
    let brokers = topics.kafka.bootstrap();
    let relay = Relay::bare().with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1");
    let arguments = [
        "--left",
        &topics.left,
        "--right",
        &topics.right,
        "--left-id-header",
        "id",
        "--left-bootstrap",
        &brokers,
        "--right-bootstrap",
        &brokers,
    ];
    let output = arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("compare").await?;
    ensure!(output.code == Some(0) && output.stdout.trim_end().ends_with("equal"), "{output:?}");
    Ok(())
}

async fn each_injected_fault_is_found_and_nothing_else(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let topics = Topics::new(kafka).await?;
    let mut random = random_of("each_injected_fault_is_found_and_nothing_else");
    let events: Vec<_> = (0..600).map(|n| Event::new(n, &mut random)).collect();
    let (right, expected) = injected(&events, &mut random);
    topics.write(&topics.left, "id", &events)?;
    topics.write_in_transactions(&topics.right, "id", &right)?;
    let (code, report) = topics.compare(&["--timestamp-within", "1s", "--wait", "10ms"]).await?;
    ensure!(code == Some(1), "{report:#}");
    let repeated = expected.get("repeated").copied().unwrap_or(0);
    let expected: BTreeMap<_, _> = expected.into_iter().filter(|(kind, _)| *kind != "repeated").collect();
    counted(&report, &expected)?;
    ensure!(report["right"]["repeated"] == repeated && report["repeated"].is_null(), "{report:#}");
    let (_, strict) = topics.compare(&["--exactly-once", "--wait", "10ms"]).await?;
    ensure!(strict["repeated"] == repeated && strict["timestamp"].is_null(), "{strict:#}");
    Ok(())
}

/// Injects one to three faults of each kind, each into an event whose neighbours of the same key stay whole. Returns the right list and
/// the differences.
fn injected(events: &[Event], random: &mut StdRng) -> (Vec<Event>, BTreeMap<&'static str, u64>) {
    let mut right: Vec<Vec<Event>> = events.iter().map(|event| vec![event.clone()]).collect();
    let (mut expected, mut touched) = (BTreeMap::new(), vec![false; events.len()]);
    let kinds = ["only_left", "only_right", "repeated", "order", "key", "partition", "headers", "value", "timestamp"];
    for kind in kinds {
        for _ in 0..1 + random.random_range(0..3) {
            let at = loop {
                let at = random.random_range(0..events.len());
                let same_key = || events.iter().enumerate().filter(|(_, event)| event.key == events[at].key);
                let is_free = same_key().all(|(other, _)| !touched[other]);
                if events[at].key.is_some()
                    && events[at].value.is_some()
                    && is_free
                    && same_key().any(|(next, _)| next > at)
                {
                    break at;
                }
                // An entity takes one fault, so that each stays countable. There are more entities than faults.
            };
            touched[at] = true;
            let next = events.iter().enumerate().position(|(next, event)| next > at && event.key == events[at].key);
            let slot = &mut right[at];
            match kind {
                "only_left" => slot.clear(),
                "only_right" => slot.push(Event { id: Uuid::from_u128(random.random()), ..events[at].clone() }),
                "repeated" => slot.push(events[at].clone()),
                "key" => slot[0].key = Some(format!("\"{}\"", events[at].key.clone().unwrap_or_default())),
                "partition" => slot[0].partition = (slot[0].partition + 1) % PARTITIONS,
                "headers" => slot[0].headers[0].1.push('!'),
                "value" => slot[0].value = Some("{\"n\":-1}".to_owned()),
                "timestamp" => slot[0].timestamp += 1_500,
                _ => right.swap(at, next.expect("an event of the same key follows")),
            }
            *expected.entry(kind).or_default() += 1;
        }
    }
    (right.into_iter().flatten().collect(), expected)
}

async fn the_first_differences_say_what_to_look_at(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let topics = Topics::new(kafka).await?;
    let mut random = random_of("the_first_differences_say_what_to_look_at");
    let event = Event {
        key: Some("o-1".to_owned()),
        value: Some("{\"a\": 1}".to_owned()),
        partition: 0,
        ..Event::new(1, &mut random)
    };
    let quoted = Event { key: Some("\"o-1\"".to_owned()), ..event.clone() };
    let mut other = Event { value: Some("{\"a\":1}".to_owned()), partition: 1, ..event.clone() };
    other.headers[0].1 = "secret\u{1b}[2J".to_owned();
    topics.write(&topics.left, "id", &[quoted])?;
    topics.write(&topics.right, "id", &[other])?;
    let (code, report) = topics.compare(&[]).await?;
    ensure!(code == Some(1), "{report:#}");
    for (kind, part) in [
        ("key", r#"left "\"o-1\"", right "o-1"; the left key is in JSON quotes"#),
        ("partition", "left 0, right 1; the keys differ, too"),
        ("headers", r#""type" has another value"#),
        ("value", "left 8 bytes, right 7 bytes; they differ from byte 5 on"),
    ] {
        let example = &report["examples"][kind][0];
        ensure!(example["difference"] == part, "{kind}: {report:#}");
        ensure!(example["id"] == event.id.to_string() && example["key"] == "\"o-1\"", "{report:#}");
        ensure!(example["left"]["partition"] == 0 && example["right"]["partition"] == 1, "{report:#}");
    }
    ensure!(!report.to_string().contains("secret"), "values of headers are confidential: {report:#}");
    let shown = topics.run(&["--payload"]).await?;
    ensure!(shown.stdout.contains("secret") && !shown.stdout.contains('\u{1b}'), "{shown:?}");
    ensure!(shown.stderr.contains("the topics differ: key, partition, headers, value"), "{shown:?}");
    // What is ignored does not count.
    let (code, report) = topics.compare(&["--ignore", "key,partition,value", "--ignore-header", "type"]).await?;
    ensure!(code == Some(0) && report["key"].is_null() && report["headers"] == 0, "{report:#}");
    // One entity alone, with or without quotes around its key.
    let (code, report) = topics.compare(&["--entity", "o-1"]).await?;
    ensure!(code == Some(1) && report["matched"] == 1, "{report:#}");
    let (_, report) = topics.compare(&["--entity", "o-2"]).await?;
    ensure!(report["differences"] == serde_json::json!(["nothing_in_common"]), "{report:#}");
    Ok(())
}

async fn topics_are_followed_until_enough_events_are_on_both(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let topics = Topics::new(kafka).await?;
    let mut random = random_of("topics_are_followed_until_enough_events_are_on_both");
    let events: Vec<_> = (0..400).map(|n| Event::new(n, &mut random)).collect();
    topics.write(&topics.left, "id", &events[..300])?;
    // The command cannot end before the right topic has 150 events, which are written while it runs.
    let write = async {
        for (left, right) in events[300..].chunks(20).zip(events.chunks(80)) {
            topics.write(&topics.right, "id", right)?;
            topics.write(&topics.left, "id", left)?;
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    let (compared, written) = tokio::join!(topics.compare(&["--until", "350", "--wait", "60s"]), write);
    written?;
    let (code, report) = compared?;
    ensure!(code == Some(0) && report["matched"].as_u64() >= Some(350), "{report:#}");
    // A time ends it as well; it has read everything by then, and misses nothing.
    let (code, report) = topics.compare(&["--for", "1s"]).await?;
    ensure!(code == Some(0) && report["matched"] == 400, "{report:#}");
    Ok(())
}

async fn only_what_both_topics_cover_is_compared_on_request(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let topics = Topics::new(kafka).await?;
    let mut random = random_of("only_what_both_topics_cover_is_compared_on_request");
    let same = |n| Event { key: Some("o-1".to_owned()), partition: 2, ..Event::new(n, &mut random) };
    let events: Vec<_> = (0..30).map(same).collect();
    topics.write(&topics.left, "id", &events)?;
    topics.write(&topics.right, "id", &[&events[10..14], &events[15..25]].concat())?;
    let (code, whole) = topics.compare(&["--wait", "10ms"]).await?;
    ensure!(code == Some(1) && whole["only_left"] == 16, "{whole:#}");
    ensure!(whole["left"]["before_overlap"] == 10 && whole["left"]["after_overlap"] == 5, "{whole:#}");
    ensure!(whole["notes"].to_string().contains("--overlap leaves them out"), "{whole:#}");
    let (code, covered) = topics.compare(&["--wait", "10ms", "--overlap"]).await?;
    ensure!(code == Some(1) && covered["only_left"] == 1, "the hole is a difference: {covered:#}");
    ensure!(covered["examples"]["only_left"][0]["id"] == events[14].id.to_string(), "{covered:#}");
    topics.write(&topics.right, "id", &events[14..15])?;
    let (code, covered) = topics.compare(&["--wait", "10ms", "--overlap", "--ignore", "order"]).await?;
    ensure!(code == Some(0) && covered["matched"] == 15, "{covered:#}");
    // Records before a time are left out on both sides.
    let since = chrono::DateTime::from_timestamp_millis(events[15].timestamp).context("a time")?.to_rfc3339();
    let (_, later) = topics.compare(&["--wait", "10ms", "--since", &since, "--overlap", "--ignore", "order"]).await?;
    ensure!(later["left"]["records"].as_u64() <= Some(15), "{later:#}");
    Ok(())
}

async fn a_comparison_of_nothing_does_not_pass(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let topics = Topics::new(kafka).await?;
    let (code, report) = topics.compare(&[]).await?;
    ensure!(code == Some(1) && report["differences"] == serde_json::json!(["nothing_in_common"]), "{report:#}");
    let mut random = random_of("a_comparison_of_nothing_does_not_pass");
    let events: Vec<_> = (0..5).map(|n| Event::new(n, &mut random)).collect();
    topics.write(&topics.left, "id", &events)?;
    let (code, report) = topics.compare(&["--wait", "10ms"]).await?;
    ensure!(code == Some(1) && report["only_left"] == 5, "{report:#}");
    Ok(())
}

async fn what_cannot_be_compared_is_refused_with_the_reason(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let topics = Topics::new(kafka).await?;
    let mut random = random_of("what_cannot_be_compared_is_refused_with_the_reason");
    let events: Vec<_> = (0..5).map(|n| Event::new(n, &mut random)).collect();
    topics.write(&topics.left, "event-id", &events)?;
    topics.write(&topics.right, "id", &events)?;
    let output = topics.run(&[]).await?;
    let header =
        output.stderr.contains("the header \"id\"") && output.stderr.contains("their headers are event-id, type");
    ensure!(output.code == Some(2) && header && output.stderr.contains("--left-id-header"), "{output:?}");
    let (code, report) = topics.compare(&["--left-id-header", "event-id"]).await?;
    ensure!(code == Some(0), "{report:#}");
    // Some records without an id are counted, not refused.
    topics.write(&topics.right, "other", &events[..2])?;
    let (code, report) = topics.compare(&["--left-id-header", "event-id"]).await?;
    ensure!(code == Some(1) && report["without_id"] == 2, "{report:#}");
    let difference = report["examples"]["without_id"][0]["difference"].as_str().context("a text")?;
    ensure!(difference == "its headers are other, type", "{report:#}");

    let nowhere = format!("{}x", topics.right);
    let missing = run(&topics.kafka, &["--left", &nowhere, "--right", &topics.right]).await?;
    let told = [
        format!("error: --left: there is no topic {nowhere} at "),
        format!("hint: topics there are {}", topics.right),
        "code: OR-3101".to_owned(),
    ];
    ensure!(missing.code == Some(2) && told.iter().all(|told| missing.stderr.contains(told)), "{missing:?}");
    let same = run(&topics.kafka, &["--left", &topics.left, "--right", &topics.left]).await?;
    ensure!(same.code == Some(2) && same.stderr.contains("the same topic"), "{same:?}");
    let brokers = topics.run(&["--left-bootstrap", "nowhere"]).await?;
    ensure!(
        brokers.code == Some(2) && brokers.stderr.contains("--left-bootstrap: broker 1 of 1 has no port"),
        "{brokers:?}"
    );
    Ok(())
}
