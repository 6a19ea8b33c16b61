//! Tests the consumers of docs/examples/consumers, one per language: each is killed between the commit of an effect and that of its offset.

use std::io::{BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Write, pipe};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use event_outbox::event::NewEvent;
use event_outbox::outbox;
use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

use lab::kafka::RealKafka;
use lab::languages::{self, Program};
use lab::{Outbox, SOON, TestDatabase, eventually, trials};

/// The number of orders, each a separate event.
const ORDERS: i64 = 12;

/// The time limit for consumption. It covers a virtual machine that starts on a busy machine, and the killed consumer's session, which must
/// expire.
const CONSUMED_WITHIN: Duration = Duration::from_secs(90);

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_rust_consumer_killed_before_its_offset_counts_each_event_once,
            a_java_consumer_killed_before_its_offset_counts_each_event_once,
            a_python_consumer_killed_before_its_offset_counts_each_event_once,
            a_node_consumer_killed_before_its_offset_counts_each_event_once,
            a_go_consumer_killed_before_its_offset_counts_each_event_once;
    }
}

async fn a_rust_consumer_killed_before_its_offset_counts_each_event_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_before_its_offset(&database, &kafka, "billing-rust", languages::rust).await
}

async fn a_java_consumer_killed_before_its_offset_counts_each_event_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_before_its_offset(&database, &kafka, "billing-java", languages::java).await
}

async fn a_python_consumer_killed_before_its_offset_counts_each_event_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_before_its_offset(&database, &kafka, "billing-python", languages::python).await
}

async fn a_node_consumer_killed_before_its_offset_counts_each_event_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_before_its_offset(&database, &kafka, "billing-node", languages::node).await
}

async fn a_go_consumer_killed_before_its_offset_counts_each_event_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_before_its_offset(&database, &kafka, "billing-go", languages::go).await
}

async fn killed_before_its_offset(
    database: &TestDatabase,
    kafka: &RealKafka,
    group: &str,
    program: fn() -> anyhow::Result<Program>,
) -> anyhow::Result<()> {
    let mut program = tokio::task::spawn_blocking(program).await??;
    let outbox = Outbox::from_database(database);
    outbox.create_topic(kafka).await?;
    outbox.execute(include_str!("../../docs/examples/consumers/invoices.sql")).await?;
    place_orders(&outbox).await?;
    let relay = outbox.relay(kafka).start(group)?;
    outbox.until_settled().await;
    drop(relay);
    program
        .command
        .env("DATABASE_URL", database.url())
        .env("JDBC_URL", jdbc(database)?)
        .env("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())
        .env("TOPIC", &outbox.topic);

    // The consumer prints each committed event before it commits the offset. Nobody reads the full pipe, so the consumer stops there.
    let (deaf, mouth) = pipe()?;
    fill(&mouth)?;
    let mut first = Running::start(&mut program, mouth)?;
    until_invoices(&outbox, &mut first, 1).await;
    first.kill()?;
    drop(deaf);
    ensure!(outbox.number("select count(*) from invoices").await? == 1, "it went on without being heard");
    let committed = committed(kafka, group, &outbox.topic)?;
    ensure!(committed == 0, "an offset was committed before the kill");

    let (ear, mouth) = pipe()?;
    let mut second = Running::start(&mut program, mouth)?;
    let heard = listen(ear);
    until_invoices(&outbox, &mut second, ORDERS).await;
    // The last line comes after the last invoice; the line of the killed consumer's event is among them.
    let all = || async {
        let lines = heard.lock().expect("the lines").clone();
        if lines.len() >= ORDERS as usize { Ok(()) } else { Err(lines) }
    };
    eventually("every event is printed, the first one again", SOON, all).await;
    second.kill()?;
    let count = "select count(*) * 1000 + count(distinct order_id) from invoices";
    ensure!(outbox.number(count).await? == ORDERS * 1001, "an order was counted twice, or never");
    Ok(())
}

async fn place_orders(outbox: &Outbox) -> anyhow::Result<()> {
    let mut connection = outbox.connect().await?;
    for n in 1..=ORDERS {
        let id = format!("o-{n}");
        let placed = NewEvent::new("order", id.as_str(), "OrderPlaced");
        let placed = placed.json(&json!({"orderId": id, "totalCents": 100 * n}))?;
        outbox::Outbox::default().emit(&mut connection, &placed).await?;
    }
    Ok(())
}

/// A consumer that is killed at the latest when the test ends.
struct Running(Child);

impl Running {
    fn start(program: &mut Program, stdout: PipeWriter) -> anyhow::Result<Self> {
        let child = program.command.stdin(Stdio::null()).stdout(stdout).spawn()?;
        // The command keeps its handles, so our end of the pipe would never close.
        program.command.stdout(Stdio::null());
        Ok(Self(child))
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "the consumer had ended by itself");
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn until_invoices(outbox: &Outbox, consumer: &mut Running, expected: i64) {
    let consumer = Mutex::new(consumer);
    eventually(&format!("{expected} invoices"), CONSUMED_WITHIN, || async {
        let ended = consumer.lock().expect("the consumer").0.try_wait();
        assert!(matches!(ended, Ok(None)), "the consumer has ended: {ended:?}");
        match outbox.number("select count(*) from invoices").await {
            Ok(invoices) if invoices >= expected => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Fills the pipe, so that every further write blocks.
fn fill(pipe: &PipeWriter) -> anyhow::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let filled = loop {
        // One byte at a time: a longer write is refused while there is still a little room.
        if let Err(error) = (&mut &*pipe).write(b".") {
            break error;
        }
    };
    ensure!(filled.kind() == ErrorKind::WouldBlock, "{filled}");
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(())
}

fn listen(pipe: PipeReader) -> Arc<Mutex<Vec<String>>> {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let lines = Arc::clone(&heard);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            lines.lock().expect("the lines").push(line);
        }
    });
    heard
}

/// Returns the number of records below the group's committed offsets.
fn committed(kafka: &RealKafka, group: &str, topic: &str) -> anyhow::Result<i64> {
    let consumer: BaseConsumer = kafka.client().set("group.id", group).create()?;
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(topic, 0, lab::PARTITIONS - 1);
    let committed = consumer.committed_offsets(partitions, SOON)?;
    let records = committed.elements().into_iter().map(|partition| match partition.offset() {
        Offset::Offset(offset) => offset,
        _ => 0,
    });
    Ok(records.sum())
}

/// Returns the JDBC URL. JDBC takes the user and the password as parameters.
fn jdbc(database: &TestDatabase) -> anyhow::Result<String> {
    let url = database.url();
    let (credentials, place) = url.trim_start_matches("postgres://").split_once('@').context("no user")?;
    let (user, password) = credentials.split_once(':').context("no password")?;
    Ok(format!("jdbc:postgresql://{place}&user={user}&password={password}"))
}
