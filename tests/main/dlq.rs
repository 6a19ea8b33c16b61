//! Tests dead letters of consumers: they are found by cause and sent again in order, and never twice without notice.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use event_outbox::consumer::{DeadLetter, Reason};
use libtest_mimic::Trial;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use uuid::Uuid;

use lab::kafka::{RealKafka, Record};
use lab::relay::Output;
use lab::{Relay, SOON, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_kafka:
            dead_letters_are_listed_by_cause_and_every_filter_finds_its_own,
            a_payload_of_a_dead_letter_is_shown_only_when_it_is_asked_for,
            a_redrive_keeps_every_byte_and_the_order_of_the_source,
            what_was_redriven_is_left_out_the_next_time_unless_that_is_asked_for,
            a_redrive_that_ended_before_it_knew_is_reported_and_made_again,
            a_redrive_that_a_topic_refuses_says_how_far_it_came_and_goes_on_there,
            dead_letters_of_others_are_understood_or_need_a_topic,
            nothing_is_redriven_without_a_filter_a_yes_or_a_topic;
    }
}

async fn dlq(kafka: &RealKafka, arguments: &[&str]) -> anyhow::Result<Output> {
    let relay = Relay::bare().with("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap());
    arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("dlq").await
}

async fn json(kafka: &RealKafka, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = dlq(kafka, &[arguments, &["--json"]].concat()).await?;
    ensure!(output.code == Some(0) && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

/// A source topic and a topic of dead letters, both with several partitions.
struct Field {
    kafka: Arc<RealKafka>,
    source: String,
    dead_letters: String,
}

impl Field {
    async fn new(kafka: Arc<RealKafka>) -> anyhow::Result<Self> {
        let source = format!("dlq-{}", Uuid::new_v4());
        let dead_letters = DeadLetter::default_topic(&source, "billing");
        kafka.create_topic(&source, 3, &[]).await?;
        kafka.create_topic(&dead_letters, 2, &[]).await?;
        Ok(Self { kafka, source, dead_letters })
    }

    /// Returns a dead letter of the consumer runtime. `n` is its offset in partition 1 of its source.
    fn dead_letter(&self, key: &str, event_type: &str, error: &str, n: i64) -> Record {
        let dead_letter = DeadLetter {
            reason: if n % 2 == 0 { Reason::Permanent } else { Reason::Exhausted },
            error: error.to_owned(),
            path: None,
            attempts: 3,
            group: "billing".to_owned(),
            source_topic: self.source.clone(),
            source_partition: 1,
            source_offset: n,
            first_failed_at: chrono::Utc::now() - chrono::TimeDelta::hours(n),
        };
        let own = [("event-id", Uuid::new_v4().to_string()), ("event-type", event_type.to_owned())];
        let odd = [("odd".to_owned(), None), ("odd".to_owned(), Some(vec![0, 0xff]))];
        let headers = own.into_iter().chain(dead_letter.headers());
        let headers = headers.map(|(name, value)| (name.to_owned(), Some(value.into_bytes()))).chain(odd).collect();
        Record {
            partition: 0,
            offset: 0,
            key: Some(key.as_bytes().to_vec()),
            value: Some(format!("{{\"n\": {n}}}").into_bytes()),
            headers,
            timestamp: Some(1_700_000_000_000 + n),
        }
    }

    fn produce(&self, topic: &str, records: &[Record]) -> anyhow::Result<()> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", self.kafka.bootstrap())
            .set("enable.idempotence", "true")
            .create()?;
        for record in records {
            let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: value.as_deref() })
            });
            let mut sent = BaseRecord::<[u8], [u8]>::to(topic).headers(headers).partition(record.partition);
            sent.key = record.key.as_deref();
            sent.payload = record.value.as_deref();
            sent.timestamp = record.timestamp;
            producer.send(sent).map_err(|(error, _)| error)?;
        }
        Ok(producer.flush(SOON)?)
    }

    /// Produces six dead letters, of two keys and three causes.
    fn produce_dead_letters(&self) -> anyhow::Result<Vec<Record>> {
        let dead_letters: Vec<_> = [
            ("a", "Placed", "no stock for 17 of \"ann\""),
            ("b", "Placed", "no stock for 3 of \"bob\""),
            ("a", "Paid", "card 12 refused"),
            ("b", "Placed", "no stock for 4 of \"eve\""),
            ("a", "Placed", "no stock for 9 of \"\""),
            ("c", "Paid", "card 99 refused"),
        ]
        .into_iter()
        .zip(1..)
        .map(|((key, event_type, error), n)| self.dead_letter(key, event_type, error, n))
        .collect();
        self.produce(&self.dead_letters, &dead_letters)?;
        Ok(dead_letters)
    }

    async fn redrive(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let to: &[&str] = if arguments.contains(&"--to") { &[] } else { &["--to-source"] };
        json(&self.kafka, &[&["redrive", &self.dead_letters][..], arguments, to].concat()).await
    }

    async fn list(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        json(&self.kafka, &[&["list", &self.dead_letters][..], arguments].concat()).await
    }

    /// Returns the numbers of the payloads in the order of a topic.
    async fn numbers(&self, topic: &str) -> anyhow::Result<Vec<i64>> {
        let records = self.kafka.read_topic(topic).await?;
        records
            .iter()
            .map(|record| {
                let value: Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
                value["n"].as_i64().context("no number")
            })
            .collect()
    }
}

async fn dead_letters_are_listed_by_cause_and_every_filter_finds_its_own(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(kafka).await?;
    field.produce_dead_letters()?;
    let listed = field.list(&[]).await?;
    ensure!((&listed["waiting"], &listed["redriven"]) == (&json!(6), &json!(0)), "{listed}");
    let causes = listed["causes"].as_array().context("no causes")?;
    let reported: BTreeMap<(i64, i64), &Value> = causes
        .iter()
        .map(|cause| ((cause["dead_letters"].as_i64().unwrap_or(0), cause["entities"].as_i64().unwrap_or(0)), cause))
        .collect();
    ensure!(reported.keys().copied().collect::<Vec<_>>() == [(1, 1), (2, 1)], "{listed}");
    ensure!(causes.len() == 4, "{listed}");
    let first = reported[&(2, 1)];
    ensure!(first["source_topic"] == field.source && first["group"] == "billing", "{listed}");
    let stock = causes.iter().find(|cause| cause["error"] == "no stock for 17 of \"ann\"").context("none")?;
    ensure!(stock["reason"] == "exhausted" && stock["dead_letters"] == 2, "{listed}");
    let fingerprint = stock["fingerprint"].as_str().context("no fingerprint")?;
    for (arguments, offsets) in [
        (&["--type", "Paid"][..], &[2, 5][..]),
        (&["--entity", "b"], &[1, 3]),
        (&["--entity", "c"], &[5]),
        (&["--error", "card 1"], &[2]),
        (&["--cause", fingerprint], &[0, 4]),
        (&["--failure", "permanent"], &[1, 3, 5]),
        (&["--group", "shipping"], &[]),
        (&["--source-topic", &field.source], &[0, 1, 2, 3, 4, 5]),
        (&["--since", "150m"], &[0, 1]),
        (&["--until", "270m"], &[4, 5]),
        (&["--partition", "1"], &[]),
        (&["--partition", "0", "--offset", "2"], &[2]),
        (&["--partition", "0", "--offset", "2-3", "--entity", "a"], &[2]),
    ] {
        let shown = json(&field.kafka, &[&["show", &field.dead_letters][..], arguments].concat()).await?;
        let found: Vec<_> = shown["dead_letters"]
            .as_array()
            .context("none")?
            .iter()
            .filter_map(|dead_letter| dead_letter["offset"].as_i64())
            .collect();
        ensure!(found == offsets, "{arguments:?}: {shown}");
    }
    let text = dlq(&field.kafka, &["list", &field.dead_letters]).await?.stdout;
    ensure!(text.contains("2 exhausted") && text.contains("6 dead letters"), "{text}");
    Ok(())
}

async fn a_payload_of_a_dead_letter_is_shown_only_when_it_is_asked_for(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(kafka).await?;
    field.produce(&field.dead_letters, &[field.dead_letter("a", "Placed", "why", 4711)])?;
    for json in [&["--json"][..], &[]] {
        let shown = dlq(&field.kafka, &[&["show", &field.dead_letters][..], json].concat()).await?.stdout;
        ensure!(!shown.contains("{\\\"n\\\"") && !shown.contains("{\"n\"") && !shown.contains("odd"), "{shown}");
        let shown = dlq(&field.kafka, &[&["show", &field.dead_letters, "--payload"][..], json].concat()).await?.stdout;
        ensure!(shown.contains("4711}") && shown.contains("odd") && shown.contains("00ff"), "{shown}");
    }
    Ok(())
}

async fn a_redrive_keeps_every_byte_and_the_order_of_the_source(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(kafka).await?;
    // The first event of the key has died once more, behind the events that were held.
    let mut dead_letters: Vec<_> = [12, 13, 14, 11].map(|n| field.dead_letter("a", "Placed", "why", n)).into();
    dead_letters[3].headers.push(("redrive-id".to_owned(), Some(b"an earlier one".to_vec())));
    dead_letters.push(Record { value: None, ..field.dead_letter("b", "Placed", "why", 15) });
    field.produce(&field.dead_letters, &dead_letters)?;
    let dry = field.redrive(&["--all", "--dry-run"]).await?;
    ensure!(
        dry["matching"] == 5
            && dry["topics"] == json!([{ "topic": field.source, "dead_letters": 5 }])
            && dry["redriven"].is_null(),
        "{dry}"
    );
    ensure!(field.kafka.read_topic(&field.source).await?.is_empty(), "a dry run has sent letters");
    ensure!(field.list(&[]).await?["waiting"] == 5);
    let shown = dlq(&field.kafka, &["redrive", &field.dead_letters, "--all", "--dry-run", "--to-source"]).await?;
    ensure!(shown.code == Some(0) && shown.stderr.contains("puts an older one over a newer one"), "{shown:?}");
    let done = field.redrive(&["--all", "--yes"]).await?;
    ensure!((&done["redriven"], &done["left"]) == (&json!(5), &json!(0)), "{done}");
    let arrived = field.kafka.read_topic(&field.source).await?;
    // In the order in which they were first read, in their original partition.
    for (record, original) in arrived.iter().zip([3, 0, 1, 2, 4].map(|index| &dead_letters[index])) {
        ensure!(record.partition == 1, "{record:?}");
        ensure!((&record.key, &record.value) == (&original.key, &original.value), "{record:?}");
        ensure!(record.timestamp == original.timestamp, "{record:?}");
        let (added, kept) = record.headers.split_last().context("no headers")?;
        let id = done["redrive_id"].as_str().map(|id| id.as_bytes().to_vec());
        ensure!(*added == ("redrive-id".to_owned(), id), "{record:?}");
        let expected: Vec<_> = original.headers.iter().filter(|(name, _)| name != "redrive-id").cloned().collect();
        ensure!(kept == expected, "{record:?}");
    }
    ensure!(arrived.len() == 5);
    Ok(())
}

async fn what_was_redriven_is_left_out_the_next_time_unless_that_is_asked_for(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(kafka).await?;
    field.produce_dead_letters()?;
    let first =
        field.redrive(&["--type", "Paid", "--yes", "--by", "ann", "--reason", "the card service is back"]).await?;
    ensure!(first["redriven"] == 2, "{first}");
    let listed = field.list(&[]).await?;
    ensure!((&listed["waiting"], &listed["redriven"]) == (&json!(4), &json!(2)), "{listed}");
    // A dead letter that arrived meanwhile; sent one at a time.
    field.produce(&field.dead_letters, &[field.dead_letter("d", "Paid", "why", 20)])?;
    let second = field.redrive(&["--all", "--yes", "--rate", "1000", "--limit", "3"]).await?;
    ensure!((&second["redriven"], &second["redriven_before"]) == (&json!(3), &json!(2)), "{second}");
    let third = field.redrive(&["--all", "--yes"]).await?;
    ensure!((&third["redriven"], &third["redriven_before"]) == (&json!(2), &json!(5)), "{third}");
    let nothing = field.redrive(&["--all", "--yes"]).await?;
    ensure!((&nothing["matching"], &nothing["redriven_before"]) == (&json!(0), &json!(7)), "{nothing}");
    let text = dlq(&field.kafka, &["redrive", &field.dead_letters, "--all", "--to-source", "--yes"]).await?.stdout;
    ensure!(text.contains("7 ") && text.contains("--again"), "{text}");
    let mut numbers = field.numbers(&field.source).await?;
    numbers.sort_unstable();
    ensure!(numbers == [1, 2, 3, 4, 5, 6, 20], "{numbers:?}");
    // The log names the user; a log entry is no dead letter.
    let log = field.kafka.read_topic(&field.dead_letters).await?;
    let entry = log.iter().find(|entry| entry.header("outbox-relay-redrive") == Some("done")).context("no entry")?;
    let said: Value = serde_json::from_slice(entry.value.as_deref().unwrap_or_default())?;
    ensure!((&said["by"], &said["reason"]) == (&json!("ann"), &json!("the card service is back")), "{said}");
    ensure!(said["redriveId"] == first["redrive_id"], "{said}");
    let again = field.redrive(&["--entity", "a", "--again", "--yes"]).await?;
    ensure!(again["redriven"] == 3, "{again}");
    ensure!(field.kafka.read_topic(&field.source).await?.len() == 10);
    Ok(())
}

async fn a_redrive_that_ended_before_it_knew_is_reported_and_made_again(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(kafka).await?;
    field.produce_dead_letters()?;
    // The entry that a process leaves behind when it is killed in the middle of a batch.
    let entry = json!({"redriveId": Uuid::new_v4(), "stage": "started", "offsets": [[1, 3]], "at": chrono::Utc::now()});
    let entry = Record {
        partition: 0,
        offset: 0,
        key: Some(b"mark".to_vec()),
        value: Some(serde_json::to_vec(&entry)?),
        headers: vec![("outbox-relay-redrive".to_owned(), Some(b"started".to_vec()))],
        timestamp: None,
    };
    field.produce(&field.dead_letters, &[entry])?;
    let listed = field.list(&[]).await?;
    ensure!((&listed["waiting"], &listed["uncertain"]) == (&json!(3), &json!(3)), "{listed}");
    let output = dlq(&field.kafka, &["redrive", &field.dead_letters, "--all", "--to-source"]).await?;
    ensure!(
        output.code == Some(2) && output.stderr.contains("3 of them") && output.stderr.contains("--yes"),
        "{output:?}"
    );
    let done = field.redrive(&["--all", "--yes"]).await?;
    ensure!((&done["redriven"], &done["uncertain_before"]) == (&json!(6), &json!(3)), "{done}");
    ensure!(field.list(&[]).await?["uncertain"] == 0);
    Ok(())
}

async fn a_redrive_that_a_topic_refuses_says_how_far_it_came_and_goes_on_there(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(kafka).await?;
    let small = format!("{}-small", field.source);
    field.kafka.create_topic(&small, 1, &[("max.message.bytes", "2000")]).await?;
    let mut dead_letters: Vec<_> = (1..=6).map(|n| field.dead_letter("a", "Placed", "why", n)).collect();
    // Noise that compression does not make smaller.
    let noise: String = (1..400_u64).map(|n| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    dead_letters[3].headers.push(("noise".to_owned(), Some(noise.into_bytes())));
    field.produce(&field.dead_letters, &dead_letters)?;
    // One at a time, so that the failing dead letter is known.
    let arguments = ["redrive", &field.dead_letters, "--all", "--to", &small, "--rate", "1", "--yes"];
    let output = dlq(&field.kafka, &arguments).await?;
    ensure!(output.code == Some(1), "{output:?}");
    for part in [small.as_str(), "0/3", &field.dead_letters, "3 were redriven", "1 may have been", "2 wait"] {
        ensure!(output.stderr.contains(part), "no {part:?} in {output:?}");
    }
    ensure!(field.numbers(&small).await? == [1, 2, 3]);
    field.kafka.alter_topic(&small, &[("max.message.bytes", "1000000")]).await?;
    let arguments = ["redrive", &field.dead_letters, "--all", "--to", &small, "--yes"];
    eventually("the broker takes larger records", SOON, || async {
        match dlq(&field.kafka, &arguments).await {
            Ok(output) if output.code == Some(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    ensure!(field.numbers(&small).await? == [1, 2, 3, 4, 5, 6]);
    Ok(())
}

async fn dead_letters_of_others_are_understood_or_need_a_topic(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(kafka).await?;
    let record = |key: &str, headers: &[(&str, &[u8])]| Record {
        partition: 1,
        offset: 0,
        key: Some(key.as_bytes().to_vec()),
        value: Some(br#"{"n": 1}"#.to_vec()),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), Some(value.to_vec()))).collect(),
        timestamp: None,
    };
    let spring = record(
        "s",
        &[
            ("kafka_dlt-original-topic", field.source.as_bytes()),
            ("kafka_dlt-original-partition", &2_i32.to_be_bytes()),
            ("kafka_dlt-original-offset", &7_i64.to_be_bytes()),
            ("kafka_dlt-exception-fqcn", b"java.lang.IllegalStateException"),
            ("kafka_dlt-exception-message", b"no"),
        ],
    );
    field.produce(&field.dead_letters, &[spring, record("bare", &[])])?;
    let shown = json(&field.kafka, &["show", &field.dead_letters]).await?;
    let (spring, bare) = (&shown["dead_letters"][0], &shown["dead_letters"][1]);
    ensure!(spring["source"]["partition"] == 2 && spring["reason"] == "java.lang.IllegalStateException", "{shown}");
    ensure!(bare["entity_id"] == "bare" && bare["reason"].is_null() && bare["source"].is_null(), "{shown}");
    let output = dlq(&field.kafka, &["redrive", &field.dead_letters, "--all", "--to-source", "--yes"]).await?;
    ensure!(output.code == Some(2) && output.stderr.contains("--source-topic TOPIC"), "{output:?}");
    let done = field.redrive(&["--entity", "s", "--yes"]).await?;
    ensure!(done["redriven"] == 1, "{done}");
    let arrived = field.kafka.read_topic(&field.source).await?;
    ensure!(arrived.len() == 1 && arrived[0].partition == 2, "{arrived:?}");
    ensure!(field.redrive(&["--all", "--to", &field.source, "--yes"]).await?["redriven"] == 1);
    Ok(())
}

async fn nothing_is_redriven_without_a_filter_a_yes_or_a_topic(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(kafka).await?;
    field.produce_dead_letters()?;
    let dead_letters = field.dead_letters.as_str();
    for (arguments, code, says) in [
        (&["redrive", dead_letters][..], 2, "--cause FINGERPRINT"),
        (&["redrive", dead_letters, "--all", "--to-source"], 2, "--yes"),
        // The retry topic of the group does not exist, and every other group reads the source topic.
        (&["redrive", dead_letters, "--all", "--yes"], 1, ".billing.retry"),
        (&["redrive", dead_letters, "--all", "--yes", "--to-source", "--to", "t"], 2, "--to-source"),
        (&["discard", dead_letters, "--all", "--reason", "x", "--yes"], 64, "DATABASE_URL"),
        (&["redrive", dead_letters, "--all", "--yes", "--to", dead_letters], 2, "--to TOPIC"),
        (&["redrive", dead_letters, "--all", "--yes", "--to", "no-such-topic-anywhere"], 1, "no-such-topic-anywhere"),
        (&["redrive", dead_letters, "--offset", "1", "--yes"], 2, "--partition"),
        (&["redrive", "no-such-topic-anywhere", "--all", "--yes"], 1, "no-such-topic-anywhere"),
        (&["list", "no/topic"], 2, "no/topic"),
    ] {
        let output = dlq(&field.kafka, arguments).await?;
        ensure!(output.code == Some(code) && output.stderr.contains(says), "{arguments:?}: {output:?}");
    }
    ensure!(field.kafka.read_topic(&field.source).await?.is_empty());
    ensure!(field.kafka.read_topic(dead_letters).await?.len() == 6, "something was logged");
    Ok(())
}
