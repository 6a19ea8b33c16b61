//! Tests the servers that all other tests use: they work, keep their data across an outage, and leave nothing behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::{BinariesFrom, PostgresOptions, PrivatePostgres, Signal};
use libtest_mimic::Trial;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sqlx::{Connection, Executor, PgConnection};

use lab::kafka::RealKafka;
use lab::{SOON, TestDatabase, eventually, options_for_tests, trials};

/// The argument that makes this binary start a Postgres, print its location, and wait to be killed.
const OWNER: &str = "--own-a-postgres";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            postgres_keeps_its_data_across_a_restart_a_hard_stop_and_a_kill,
            a_downloaded_postgres_works_where_there_are_no_local_binaries,
            a_stopped_postgres_leaves_no_process_and_no_directory,
            a_killed_owner_leaves_no_postgres_and_no_directory,
            a_postgres_that_cannot_start_says_why,
            kafka_keeps_its_records_across_a_kill_and_a_clean_stop;
        with_postgres:
            every_test_has_a_database_of_its_own,
            a_second_test_finds_its_database_empty;
        with_kafka:
            kafka_gives_back_what_was_produced,
            a_topic_can_be_created_and_deleted;
        with_both:
            a_test_can_have_a_database_and_a_kafka;
    }
}

async fn every_test_has_a_database_of_its_own(database: TestDatabase) -> anyhow::Result<()> {
    claim_a_table(&database).await
}

/// Runs the same statement as the first test. In a shared database one of the two would fail.
async fn a_second_test_finds_its_database_empty(database: TestDatabase) -> anyhow::Result<()> {
    claim_a_table(&database).await
}

async fn claim_a_table(database: &TestDatabase) -> anyhow::Result<()> {
    database.pool(1).execute("create table claimed ()").await?;
    database.connect().await?.execute("insert into claimed default values").await?;
    let mut connection = PgConnection::connect(&database.url()).await?;
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(&mut connection).await?;
    ensure!(name == database.name(), "connected to {name}");
    Ok(())
}

async fn postgres_keeps_its_data_across_a_restart_a_hard_stop_and_a_kill() -> anyhow::Result<()> {
    let mut postgres = PrivatePostgres::start(options_for_tests()).await?;
    let port = postgres.port();
    postgres.connect("postgres").await?.execute("create table kept as select 42 as answer").await?;

    postgres.restart().await?;
    ensure!(answer(&postgres).await? == 42);

    postgres.stop_hard().await;
    ensure!(postgres.connect("postgres").await.is_err(), "it still accepts connections");
    postgres.start_again().await?;
    ensure!(answer(&postgres).await? == 42);

    postgres.kill().await;
    postgres.start_again().await?;
    ensure!(answer(&postgres).await? == 42);
    ensure!(postgres.port() == port);
    Ok(())
}

async fn answer(postgres: &PrivatePostgres) -> anyhow::Result<i32> {
    let mut connection: PgConnection = postgres.connect("postgres").await?;
    let answer = sqlx::query_scalar("select answer from kept").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(answer)
}

async fn a_downloaded_postgres_works_where_there_are_no_local_binaries() -> anyhow::Result<()> {
    let options = PostgresOptions { binaries: BinariesFrom::Download, ..options_for_tests() };
    let postgres = PrivatePostgres::start(options).await?;
    let mut connection = postgres.connect("postgres").await?;
    let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut connection).await?;
    ensure!(version.starts_with("17."), "it is {version}");
    ensure!(postgres.major() == 17);
    Ok(())
}

async fn a_stopped_postgres_leaves_no_process_and_no_directory() -> anyhow::Result<()> {
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let (pid, directory) = (postgres.pid(), postgres.directory().to_owned());
    ensure!(lives(pid)? && directory.join("data").is_dir());
    // An open session must not keep the server from stopping.
    let _session = postgres.connect("postgres").await?;
    postgres.stop().await;
    nothing_is_left(pid, &directory)
}

async fn a_killed_owner_leaves_no_postgres_and_no_directory() -> anyhow::Result<()> {
    let mut owner = Command::new(std::env::current_exe()?).arg(OWNER).stdout(Stdio::piped()).spawn()?;
    let (pid, directory) = what_it_owns(&mut owner)?;
    ensure!(lives(pid)? && directory.join("data").is_dir());
    // Child::kill is SIGKILL.
    owner.kill()?;
    owner.wait()?;
    eventually("the orphaned server and its directory are gone", SOON, || async { nothing_is_left(pid, &directory) })
        .await;
    Ok(())
}

/// Runs in the process that [`a_killed_owner_leaves_no_postgres_and_no_directory`] kills. Returns only after an error.
pub(crate) fn run_as_owner() -> Option<ExitCode> {
    (std::env::args().nth(1)? == OWNER).then(|| match own_a_postgres() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    })
}

#[tokio::main]
async fn own_a_postgres() -> anyhow::Result<()> {
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    println!("{} {}", postgres.pid(), postgres.directory().display());
    std::future::pending().await
}

fn what_it_owns(owner: &mut Child) -> anyhow::Result<(u32, PathBuf)> {
    let mut line = String::new();
    BufReader::new(owner.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let (pid, directory) = line.trim_end().split_once(' ').context("the owner failed, see its stderr")?;
    Ok((pid.parse()?, PathBuf::from(directory)))
}

async fn a_postgres_that_cannot_start_says_why() -> anyhow::Result<()> {
    let mut options = options_for_tests();
    options.settings.push(("shared_buffers".to_owned(), "plenty".to_owned()));
    let error = PrivatePostgres::start(options).await.err().context("it started")?.to_string();
    ensure!(error.contains("plenty"), "{error}");
    Ok(())
}

async fn kafka_gives_back_what_was_produced(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    kafka.create_topic("given-back", 3, &[]).await?;
    produce(&kafka, "given-back", 0..1000)?;
    let records = kafka.read_topic("given-back").await?;
    ensure!(values(&records) == (0..1000).collect::<Vec<u32>>());
    let partitions: std::collections::BTreeSet<i32> = records.iter().map(|record| record.partition).collect();
    ensure!(partitions.len() == 3, "all in {partitions:?}");
    let first = &records[0];
    ensure!(first.header("event-id") == Some("7") && first.timestamp == Some(1_700_000_000_000), "{first:?}");
    Ok(())
}

async fn a_topic_can_be_created_and_deleted(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    kafka.create_topic("short-lived", 2, &[("max.message.bytes", "1000")]).await?;
    ensure!(kafka.read_topic("short-lived").await?.is_empty());
    kafka.delete_topic("short-lived").await?;
    ensure!(kafka.read_topic("short-lived").await.is_err(), "it is still there");
    ensure!(kafka.read_topic("never-created").await.is_err(), "topics come into being by themselves");
    Ok(())
}

async fn a_test_can_have_a_database_and_a_kafka(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    claim_a_table(&database).await?;
    kafka.create_topic("beside-a-database", 1, &[]).await
}

async fn kafka_keeps_its_records_across_a_kill_and_a_clean_stop() -> anyhow::Result<()> {
    let mut kafka = RealKafka::start(&[])?;
    kafka.create_topic("kept", 2, &[]).await?;
    produce(&kafka, "kept", 0..10)?;
    kafka.kill();
    ensure!(!lives(kafka.pid())?, "it survived SIGKILL");
    kafka.start_again()?;
    produce(&kafka, "kept", 10..20)?;
    kafka.stop();
    kafka.start_again()?;
    ensure!(values(&kafka.read_topic("kept").await?) == (0..20).collect::<Vec<u32>>());
    let (pid, directory) = (kafka.pid(), kafka.directory().to_owned());
    // A frozen server must not keep its owner from ending.
    kafka.signal(Signal::SIGSTOP)?;
    drop(kafka);
    nothing_is_left(pid, &directory)
}

fn produce(kafka: &RealKafka, topic: &str, values: std::ops::Range<u32>) -> anyhow::Result<()> {
    let producer: BaseProducer = kafka.client().set("enable.idempotence", "true").create()?;
    for value in values {
        let (key, value) = ((value % 17).to_string(), value.to_string());
        let headers = rdkafka::message::OwnedHeaders::new()
            .insert(rdkafka::message::Header { key: "event-id", value: Some("7") });
        let record = BaseRecord::to(topic).key(&key).payload(&value).headers(headers).timestamp(1_700_000_000_000);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(SOON)?)
}

fn values(records: &[lab::kafka::Record]) -> Vec<u32> {
    let number = |value: &[u8]| std::str::from_utf8(value).ok()?.parse().ok();
    let mut values: Vec<u32> = records.iter().filter_map(|record| number(record.value.as_deref()?)).collect();
    values.sort_unstable();
    values
}

fn nothing_is_left(pid: u32, directory: &Path) -> anyhow::Result<()> {
    ensure!(!lives(pid)?, "process {pid} lives");
    ensure!(!directory.exists(), "{} exists", directory.display());
    Ok(())
}

/// Returns true if the process lives. A zombie does not live: it only waits for its parent.
fn lives(pid: u32) -> anyhow::Result<bool> {
    let output = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output()?;
    let state = String::from_utf8(output.stdout)?;
    Ok(!state.trim().is_empty() && !state.trim().starts_with('Z'))
}
