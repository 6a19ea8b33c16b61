//! Tests the programs of the pages about the consumer runtime, `minimal` and `tuned`: each runs as a service would run it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use lab::kafka::{RealKafka, Record};
use lab::{Outbox, TestDatabase, eventually, languages, trials};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use super::{APPLIED_WITHIN, Killed};

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            the_programs_of_the_pages_apply_events_obey_and_end_on_a_signal;
    }
}

/// The topic and the group of the minimal program.
const TOPIC: &str = "order-events";
const DEAD_LETTERS: &str = "order-events.billing.dlq";

/// A program of the documents at work.
struct Program {
    child: Killed,
    stdin: ChildStdin,
    /// The lines of its standard output.
    said: Arc<Mutex<Vec<String>>>,
}

impl Program {
    fn start(command: &mut Command, database: &TestDatabase, kafka: &RealKafka) -> anyhow::Result<Self> {
        let command = command.env("DATABASE_URL", database.url()).env("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap());
        let command = command.env("TOPIC", TOPIC).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child: Child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take().context("no input")?, child.stdout.take().context("no output")?);
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.lock().expect("the lines").push(line);
            }
        });
        Ok(Self { child: Killed(child), stdin, said })
    }

    fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.stdin, "{line}")?)
    }

    /// Asks for the metrics until they have this line.
    async fn until_metric(&mut self, line: &str) {
        self.said.lock().expect("the lines").clear();
        eventually(line, APPLIED_WITHIN, || {
            let told = self.tell("metrics");
            let said = self.said.lock().expect("the lines").clone();
            async move {
                match told {
                    Ok(()) if said.iter().any(|said| said == line) => Ok(()),
                    told => Err((told, said)),
                }
            }
        })
        .await;
    }

    /// Ends it as a supervisor does.
    async fn end(self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.0.id().try_into()?), Signal::SIGTERM)?;
        let child = Mutex::new(self.child);
        let status = eventually("the program has ended", APPLIED_WITHIN, || async {
            match child.lock().expect("the program").0.try_wait() {
                Ok(Some(status)) => Ok(status),
                other => Err(other),
            }
        })
        .await;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// Produces events as the relay's envelope `raw` has them.
fn produce(kafka: &RealKafka, events: impl IntoIterator<Item = (&'static str, Value)>) -> anyhow::Result<()> {
    let producer: BaseProducer = kafka.client().create()?;
    for (event_type, payload) in events {
        let id = uuid::Uuid::new_v4().to_string();
        let headers = [("event-id", id.as_str()), ("event-type", event_type), ("event-version", "1")];
        let headers = headers
            .into_iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let (key, payload) = (payload["orderId"].as_str().unwrap_or("none").to_owned(), payload.to_string());
        let record = BaseRecord::to(TOPIC).key(&key).payload(&payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(APPLIED_WITHIN)?)
}

fn placed(n: i64) -> (&'static str, Value) {
    ("OrderPlaced", json!({"orderId": format!("o-{n}"), "totalCents": n}))
}

/// The topic and the group of the minimal program have fixed names, so it gets brokers of its own.
async fn the_programs_of_the_pages_apply_events_obey_and_end_on_a_signal(database: TestDatabase) -> anyhow::Result<()> {
    let programs = || anyhow::Ok([languages::rust_example("minimal")?, languages::rust_example("tuned")?]);
    let [mut minimal, mut tuned] = tokio::task::spawn_blocking(programs).await??;
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    kafka.create_topic(TOPIC, 2, &[]).await?;
    kafka.create_topic(DEAD_LETTERS, 1, &[]).await?;
    let outbox = Outbox::from_database(&database);
    outbox.execute(include_str!("../../../docs/examples/consumers/invoices.sql")).await?;
    let until_invoices = async |expected: i64| {
        eventually(&format!("{expected} invoices"), APPLIED_WITHIN, || async {
            match outbox.number("select count(*) from invoices").await {
                Ok(invoices) if invoices == expected => Ok(()),
                other => Err(other),
            }
        })
        .await;
    };

    produce(&kafka, (1..=3).map(placed))?;
    let running = Program::start(&mut minimal.command, &database, &kafka)?;
    until_invoices(3).await;
    running.end().await?;

    // The offsets of the first program were committed, so the second one goes on behind them.
    let cancelled = ("OrderCancelled", json!({"orderId": "o-1"}));
    let invalid = ("OrderPlaced", json!({"orderId": "o-invalid"}));
    produce(&kafka, (4..=300).map(placed).chain([cancelled, invalid]))?;
    let mut running = Program::start(&mut tuned.command, &database, &kafka)?;
    until_invoices(299).await;
    running.until_metric("outbox_consumer_applied_events_total{group=\"billing\"} 298").await;
    running.until_metric("outbox_consumer_dead_letters_total{group=\"billing\"} 1").await;
    running.until_metric("outbox_consumer_repeated_events_total{group=\"billing\"} 0").await;
    let dead: Vec<Record> = kafka.read_topic(DEAD_LETTERS).await?;
    ensure!(dead.len() == 1 && dead[0].key.as_deref() == Some(b"o-invalid"), "{dead:?}");
    running.tell("pause")?;
    running.until_metric("outbox_consumer_paused{group=\"billing\"} 1").await;
    produce(&kafka, (301..=310).map(placed))?;
    running.tell("rate 1000")?;
    running.tell("resume")?;
    running.until_metric("outbox_consumer_paused{group=\"billing\"} 0").await;
    until_invoices(309).await;
    running.end().await?;
    ensure!(outbox.number("select count(distinct order_id) from invoices").await? == 309);
    Ok(())
}
