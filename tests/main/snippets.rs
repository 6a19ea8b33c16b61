//! Tests the consumers of docs/examples/consumers, one per language: each is killed between the commit of an effect and that of its offset,
//! meets records that are none of its events, and is told to end.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Write, pipe};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use event_outbox::event::NewEvent;
use event_outbox::outbox;
use libtest_mimic::Trial;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

use lab::kafka::RealKafka;
use lab::languages::{self, Program};
use lab::{Outbox, SOON, TestDatabase, eventually, trials};

/// The number of orders, each a separate event.
const ORDERS: i64 = 12;

/// The number of records that are no events of the consumers.
const FOREIGN: usize = 14;

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
    produce_foreign(kafka, &outbox.topic)?;
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
    let (mut first, before_the_kill) = Running::start(&mut program, mouth)?;
    until_invoices(&outbox, &mut first, 1).await;
    first.kill()?;
    drop(deaf);
    ensure!(outbox.number("select count(*) from invoices").await? == 1, "it went on without being heard");
    // The foreign records before the first event have been skipped, so some offsets may be committed; that of the event is not.
    let before = committed(kafka, group, &outbox.topic)?;
    let foreign = FOREIGN as i64;
    ensure!(before <= foreign, "an offset was committed before the kill: {before}");

    let (ear, mouth) = pipe()?;
    let (mut second, after_the_kill) = Running::start(&mut program, mouth)?;
    let heard = listen(ear);
    until_invoices(&outbox, &mut second, ORDERS).await;
    // The last line comes after the last invoice; the line of the killed consumer's event is among them.
    let all = || async {
        let lines = heard.lock().expect("the lines").clone();
        if lines.len() >= ORDERS as usize { Ok(()) } else { Err(lines) }
    };
    eventually("every event is printed, the first one again", SOON, all).await;
    // The foreign records were read, too: the group is at the end of the topic.
    let records = kafka.read_topic(&outbox.topic).await?.len() as i64;
    eventually("all offsets are committed", SOON, || async {
        match committed(kafka, group, &outbox.topic) {
            Ok(committed) if committed == records => Ok(()),
            other => Err(format!("{other:?} of {records}")),
        }
    })
    .await;
    second.terminate().await?;
    has_left_and_said_why_once(kafka, group, [before_the_kill, after_the_kill])?;
    let count = "select count(*) * 1000 + count(distinct order_id) from invoices";
    ensure!(outbox.number(count).await? == ORDERS * 1001, "an order was counted twice, or never");
    Ok(())
}

/// Checks that the group has no member any more, and that each process said each reason for skipping a record once.
fn has_left_and_said_why_once(
    kafka: &RealKafka,
    group: &str,
    said: [Arc<Mutex<Vec<String>>>; 2],
) -> anyhow::Result<()> {
    let observer: BaseConsumer = kafka.client().create()?;
    let groups = observer.fetch_group_list(Some(group), SOON)?;
    ensure!(groups.groups().iter().all(|group| group.members().is_empty()), "it has not left its group");
    let mut distinct = BTreeSet::new();
    for said in said {
        let said = said.lock().expect("the lines").clone();
        let skipped: Vec<_> =
            said.iter().filter_map(|line| line.strip_prefix("skipped: ")?.split(" at ").next()).collect();
        let reasons: BTreeSet<String> = skipped.iter().map(|reason| (*reason).to_owned()).collect();
        ensure!(reasons.len() == skipped.len(), "{said:?}");
        distinct.extend(reasons);
    }
    ensure!(distinct.len() >= 4, "{distinct:?}");
    Ok(())
}

/// The headers and the value of a record.
type Foreign<'a> = (&'a [(&'a str, &'a str)], Option<&'a [u8]>);

/// Writes records that are no events of these consumers, each twice: no headers, an id that is no UUID, another type, another version, a
/// tombstone, a value that is no JSON, and one that is no order.
fn produce_foreign(kafka: &RealKafka, topic: &str) -> anyhow::Result<()> {
    let id = uuid::Uuid::new_v4().to_string();
    let order: &[u8] = br#"{"data": {"orderId": "foreign", "totalCents": 1}}"#;
    let records: [Foreign<'_>; FOREIGN / 2] = [
        (&[], Some(order)),
        (&[("event-id", "17"), ("event-type", "OrderPlaced"), ("event-version", "1")], Some(order)),
        (&[("event-id", &id), ("event-type", "OrderInvoiced"), ("event-version", "1")], Some(order)),
        (&[("event-id", &id), ("event-type", "OrderPlaced"), ("event-version", "2")], Some(order)),
        (&[("event-id", &id), ("event-type", "OrderPlaced"), ("event-version", "1")], None),
        (&[("event-id", &id), ("event-type", "OrderPlaced"), ("event-version", "1")], Some(b"{")),
        (&[("event-id", &id), ("event-type", "OrderPlaced"), ("event-version", "1")], Some(b"{\"data\": []}")),
    ];
    let producer: BaseProducer = kafka.client().create()?;
    for (headers, value) in records.iter().chain(&records) {
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value.as_bytes()) })
        });
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(headers).key(b"foreign");
        record.payload = *value;
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(SOON)?)
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
    /// Starts the consumer. Also returns the lines of its standard error.
    fn start(program: &mut Program, stdout: PipeWriter) -> anyhow::Result<(Self, Arc<Mutex<Vec<String>>>)> {
        let (errors, stderr) = pipe()?;
        let child = program.command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn()?;
        // The command keeps its handles, so our end of the pipe would never close.
        program.command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok((Self(child), listen(errors)))
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "the consumer had ended by itself");
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Running {
    /// Tells it to end, and waits until it has.
    async fn terminate(self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.0.id().try_into()?), Signal::SIGTERM)?;
        let process = Mutex::new(self);
        let ended = eventually("the consumer has ended", SOON, || async {
            match process.lock().expect("the consumer").0.try_wait() {
                Ok(Some(status)) => Ok(status),
                other => Err(other),
            }
        })
        .await;
        // A Java machine reports a signal that ended it, even if it has shut down in order.
        ensure!([0, 143].contains(&ended.code().unwrap_or(-1)), "{ended}");
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
