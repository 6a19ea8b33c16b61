//! Runs Debezium's Postgres connector with the outbox event router on Kafka Connect standalone, tuned for an outbox.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lab::demo::{ChildServer, ServerCommand, Signal, TemporaryDirectory, free_port};

use crate::drain::drain;
use crate::latency::latencies;
use crate::outbox::Outbox;
use crate::report::System;
use crate::topic::Topic;
use crate::{Servers, Sizes, jars};

const SLOT_IS_READ: &str =
    "select count(*) > 0 from pg_replication_slots where database = current_database() and active";
const SLOT_IS_FREE: &str =
    "select count(*) > 0 from pg_replication_slots where database = current_database() and not active";

/// The time limit for the connector's task to stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn measure(servers: &mut Servers, sizes: &Sizes) -> anyhow::Result<Vec<System>> {
    let jars = jars::directory()?;
    let mut outbox = Outbox::make(servers, sizes, "peers_debezium", &[])?;
    let topic = Topic::make(servers, sizes, "peers_debezium")?;
    let directory = TemporaryDirectory::create(None)?;
    let port = free_port()?;
    let command = command(&jars, directory.path(), servers, &topic, port)?;
    // Debezium reads only changes after its slot, so create the slot before the backlog.
    let mut first = ChildServer::start(&command)?;
    outbox.until(servers, SLOT_IS_READ)?;
    first.stop();
    outbox.until(servers, SLOT_IS_FREE)?;
    outbox.seed_rows(servers, sizes.events)?;
    let (cold, connect) =
        drain(servers, &mut outbox, &topic, sizes.events, false, None, || Ok(Some(ChildServer::start(&command)?)))?;
    let connect = connect.expect("it was started");
    // Drain once more in the same process.
    put(port, "stop")?;
    outbox.until(servers, SLOT_IS_FREE)?;
    outbox.seed_rows(servers, sizes.events)?;
    let (warm, _) = drain(servers, &mut outbox, &topic, sizes.events, false, Some(&connect), || {
        put(port, "resume")?;
        Ok(None)
    })?;
    let latencies = latencies(&outbox, &topic, &connect, sizes, f64::INFINITY)?;
    Ok(vec![
        System { name: "Debezium, cold".to_owned(), drain: cold, latencies: Vec::new() },
        System { name: "Debezium, warm".to_owned(), drain: warm, latencies },
    ])
}

/// Returns the command of Kafka Connect, with the heap sizes and the collector of its own start script.
fn command(
    jars: &Path,
    directory: &Path,
    servers: &Servers,
    topic: &Topic,
    port: u16,
) -> anyhow::Result<ServerCommand> {
    let (worker, connector) = (directory.join("worker.properties"), directory.join("connector.properties"));
    let brokers = servers.kafka.bootstrap();
    fs::write(
        &worker,
        format!(
            "bootstrap.servers={brokers}\n\
             listeners=http://127.0.0.1:{port}\n\
             key.converter=org.apache.kafka.connect.storage.StringConverter\n\
             value.converter=org.apache.kafka.connect.storage.StringConverter\n\
             offset.storage.file.filename={}\n\
             offset.flush.interval.ms=1000\n",
            directory.join("offsets").display()
        ),
    )?;
    fs::write(&connector, connector_properties(servers, topic))?;
    Ok(ServerCommand::new("java", directory, &directory.join("connect.log"))
        .args([
            "-Xms256m",
            "-Xmx2g",
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        ])
        .args([Path::new("-cp"), &jars.join("*"), Path::new("org.apache.kafka.connect.cli.ConnectStandalone")])
        .args([worker, connector])
        .stops_on(Signal::SIGTERM, STOP_WITHIN))
}

fn connector_properties(servers: &Servers, topic: &Topic) -> String {
    let options = servers.postgres.url(&topic.name);
    // postgres://user:password@host:port/database?…, as `PrivatePostgres::url` builds it.
    let (user, rest) = options.trim_start_matches("postgres://").split_once(':').unwrap_or_default();
    let (password, _) = rest.split_once('@').unwrap_or_default();
    format!(
        "name=outbox\n\
         connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
         database.hostname=127.0.0.1\n\
         database.port={}\n\
         database.user={user}\n\
         database.password={password}\n\
         database.dbname={}\n\
         topic.prefix=peers\n\
         plugin.name=pgoutput\n\
         slot.name=peers\n\
         publication.autocreate.mode=filtered\n\
         table.include.list=public.event_outbox\n\
         snapshot.mode=no_data\n\
         poll.interval.ms=10\n\
         max.queue.size=32768\n\
         max.batch.size=8192\n\
         producer.override.compression.type=lz4\n\
         producer.override.linger.ms=5\n\
         transforms=outbox\n\
         transforms.outbox.type=io.debezium.transforms.outbox.EventRouter\n\
         transforms.outbox.table.field.event.id=event_id\n\
         transforms.outbox.table.field.event.key=entity_id\n\
         transforms.outbox.table.field.event.payload=payload\n\
         transforms.outbox.table.fields.additional.placement=event_type:header:event-type\n\
         transforms.outbox.route.by.field=entity_type\n\
         transforms.outbox.route.topic.replacement={}\n",
        servers.postgres.port(),
        topic.name,
        topic.name,
    )
}

/// Tells the connector to stop or to resume.
fn put(port: u16, what: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        write!(
            stream,
            "PUT /connectors/outbox/{what} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 2") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "Kafka Connect does not {what} the connector: {answer}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
