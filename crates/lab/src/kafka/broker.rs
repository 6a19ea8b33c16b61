//! Starts, stops and configures the broker process.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::demo::{ChildServer, ServerCommand, Signal, TemporaryDirectory, free_port};
use anyhow::{Context, ensure};
use rand::Rng;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::jars::{self, Unavailable};

/// The longest start of a broker, including the recovery after a SIGKILL on a loaded machine.
const START_WITHIN: Duration = Duration::from_secs(90);

/// The longest clean stop, which moves leadership and closes the logs.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// The beginning of cluster ids, which may be any base64 of 16 bytes.
const CLUSTER_ID: &str = "b3V0Ym94LXJlbGF5";

/// Returns a new cluster id. Two clusters must not have the same.
fn new_cluster_id() -> String {
    let mut random = rand::rng();
    // The last of 22 characters has only four bits.
    let rest: String = (0..5).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
    format!("{CLUSTER_ID}{rest}Q")
}

/// What a broker gets beside the properties that every broker has.
#[derive(Debug, Clone, Default)]
pub struct KafkaOptions<'a> {
    /// The server properties, which take precedence over ours.
    pub properties: &'a [(&'a str, &'a str)],
    /// Options of the Java process.
    pub java: &'a [&'a str],
    /// Options of the command that formats the storage, such as `--add-scram`.
    pub format: &'a [&'a str],
    /// A directory of classes beside Kafka's.
    pub classes: Option<&'a Path>,
}

/// A running broker, or a stopped one whose data is kept. Dropping it stops the broker and then removes its directory; the fields are in
/// that order.
#[derive(Debug)]
pub struct RealKafka {
    server: ChildServer,
    directory: TemporaryDirectory,
    command: ServerCommand,
    port: u16,
    /// The port of the controller.
    controller_port: u16,
    cluster_id: String,
}

impl RealKafka {
    /// Starts a broker with `extra` server properties, which take precedence over ours. Blocks until the broker answers.
    ///
    /// Returns `Err` with the reason if the machine lacks something. Panics if the broker does not start, because that must not skip a
    /// test.
    pub fn start(extra: &[(&str, &str)]) -> Result<Self, Unavailable> {
        Self::start_as(&KafkaOptions { properties: extra, ..KafkaOptions::default() })
    }

    /// Starts a broker as [`RealKafka::start`] does, with more than properties.
    pub fn start_as(options: &KafkaOptions<'_>) -> Result<Self, Unavailable> {
        let jars = jars::directory()?;
        let start = || {
            let (port, controller_port) = (free_port()?, free_port()?);
            Self::start_with(&jars, port, controller_port, &new_cluster_id(), options)
        };
        Ok(start().unwrap_or_else(|error| panic!("Kafka does not start: {error:?}")))
    }

    /// Starts a cluster of brokers with the ids 1, 2, … Blocks until all answer. The first broker is also the controller.
    ///
    /// Returns `Err` with the reason if the machine lacks something. Panics if a broker does not start.
    pub fn start_cluster(brokers: i32) -> Result<Vec<Self>, Unavailable> {
        let mut cluster = vec![Self::start(&REPLICATED)?];
        let others: Vec<_> = std::thread::scope(|scope| {
            let first = &cluster[0];
            let starts: Vec<_> = (2..=brokers).map(|id| scope.spawn(move || first.start_another(id))).collect();
            starts.into_iter().map(|start| start.join().expect("the start of a broker")).collect()
        });
        cluster.extend(others.into_iter().map(|broker| broker.unwrap_or_else(|error| panic!("no broker: {error:?}"))));
        Ok(cluster)
    }

    /// Starts another broker, with the id `id`, in the cluster of this one. Blocks until the new broker answers.
    pub fn start_another(&self, id: i32) -> anyhow::Result<Self> {
        let port = free_port()?;
        let (listener, id) = (format!("PLAINTEXT://127.0.0.1:{port}"), id.to_string());
        let mut extra = vec![("process.roles", "broker"), ("node.id", &id), ("listeners", &listener)];
        extra.extend(REPLICATED);
        let options = KafkaOptions { properties: &extra, ..KafkaOptions::default() };
        Self::start_with(&jars::directory()?, port, self.controller_port, &self.cluster_id, &options)
    }

    fn start_with(
        jars: &Path,
        port: u16,
        controller_port: u16,
        cluster_id: &str,
        options: &KafkaOptions<'_>,
    ) -> anyhow::Result<Self> {
        let mut directory = TemporaryDirectory::create(None)?;
        let properties = directory.path().join("server.properties");
        fs::write(&properties, server_properties(directory.path(), port, controller_port, options.properties)?)?;
        format_storage(jars, &properties, cluster_id, options.format)?;
        let command = command(jars, directory.path(), &properties, options);
        let server = ChildServer::start(&command)?;
        directory.outlives(&server)?;
        let mut kafka = Self { server, directory, command, port, controller_port, cluster_id: cluster_id.to_owned() };
        kafka.until_ready()?;
        Ok(kafka)
    }

    /// Returns the value for `bootstrap.servers`. It does not change after a restart.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the process id of the broker.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Returns the directory of the broker's files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Sends the broker a signal. SIGSTOP freezes it and SIGCONT resumes it.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        Ok(self.server.signal(signal)?)
    }

    /// Stops the broker cleanly with SIGTERM and keeps the topics. Blocks.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Kills the broker with SIGKILL and keeps the topics. Blocks.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts a stopped broker on the same ports and data. Blocks until it answers.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.server.stop();
        self.server = ChildServer::start(&self.command)?;
        self.directory.outlives(&self.server)?;
        self.until_ready()
    }

    /// Returns the configuration of a client of this broker that logs nothing while the broker is down.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.bootstrap())
            .set("log.connection.close", "false")
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "200");
        config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
        config
    }

    /// Waits until the broker lists itself, which it does only after the controller has registered it.
    fn until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            ensure!(self.server.is_running(), "the broker ended; its log ends with:\n{}", self.server.log_tail());
            ensure!(Instant::now() < deadline, "no answer; the broker's log ends with:\n{}", self.server.log_tail());
            // A new client asks the address that is given; one that has an answer may ask only the advertised address, which leads nowhere
            // in some tests.
            let client: BaseConsumer = self.client().create()?;
            match client.fetch_metadata(None, Duration::from_millis(500)) {
                Ok(metadata) if !metadata.brokers().is_empty() => return Ok(()),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

fn command(jars: &Path, directory: &Path, properties: &Path, options: &KafkaOptions<'_>) -> ServerCommand {
    let mut classes = class_path(jars).into_os_string();
    if let Some(more) = options.classes {
        classes.push(":");
        classes.push(more);
    }
    ServerCommand::new("java", directory, &directory.join("kafka.log"))
        .args(["-Xms256m", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"])
        .args(options.java)
        .args([Path::new("-cp"), Path::new(&classes), Path::new("kafka.Kafka"), properties])
        .stops_on(Signal::SIGTERM, STOP_WITHIN)
}

fn class_path(jars: &Path) -> PathBuf {
    jars.join("*")
}

fn format_storage(jars: &Path, properties: &Path, cluster_id: &str, options: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("java")
        // The process lives for a second, too short for the second compiler to pay off.
        .args(["-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
        .arg(class_path(jars))
        .args(["kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config"])
        .arg(properties)
        .args(options)
        .output()
        .context("java")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kafka.tools.StorageTool format: {}\n{said}", output.status);
    Ok(())
}

/// The settings of a cluster whose groups and transactions survive the loss of one of three brokers.
const REPLICATED: [(&str, &str); 3] = [
    ("offsets.topic.replication.factor", "3"),
    ("transaction.state.log.replication.factor", "3"),
    ("transaction.state.log.min.isr", "2"),
];

/// Returns the server properties. `extra` comes last, because the last value of a key counts. `{port}` and `{controller}` in its values are
/// replaced by the broker's ports.
///
/// The controller registers a killed broker again only after its former session has expired: 9 s by default, 3 s here. Retention begins
/// 30 s after the start by default; records of tests may be years old and have to stay, so it begins after a day.
fn server_properties(directory: &Path, port: u16, controller: u16, extra: &[(&str, &str)]) -> anyhow::Result<String> {
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={}
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
log.initial.task.delay.ms=86400000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
",
        directory.join("data").display()
    );
    for (name, value) in extra {
        let value = value.replace("{port}", &port.to_string()).replace("{controller}", &controller.to_string());
        writeln!(text, "{name}={value}")?;
    }
    Ok(text)
}
