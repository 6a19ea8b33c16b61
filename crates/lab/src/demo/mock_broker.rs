//! Runs librdkafka's mock cluster in place of Kafka. It has its own process, so that a relay can be killed without it and it can end with
//! us.
//!
//! The mock cluster keeps records in memory, does not de-duplicate and loses everything when it ends. So it is good enough for a demo,
//! never for a proof.
//!
//! The process prints its bootstrap servers on a line and runs until its stdin ends. The kernel closes stdin however we end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;

/// The hidden subcommand that runs the mock cluster.
pub const SUBCOMMAND: &str = "demo-broker";

const BROKERS: i32 = 3;

/// The delay of each answer, like that of a broker in another zone. A SIGKILL within this time finds records that are on the topic and not
/// yet acknowledged. These are the duplicates that a consumer has to expect.
const ROUND_TRIP: Duration = Duration::from_millis(10);

/// The longest wait for the process to print its address.
const START_WITHIN: Duration = Duration::from_secs(20);

/// The reason why the mock cluster does not run.
#[derive(Debug, thiserror::Error)]
pub enum MockBrokerError {
    /// librdkafka could not start it.
    #[error("librdkafka cannot start its mock cluster")]
    Cluster(#[from] KafkaError),
    /// The process or its pipes failed.
    #[error("the process of the mock cluster cannot be started")]
    System(#[from] io::Error),
    /// The process printed no address.
    #[error("the mock cluster's process printed no address within {START_WITHIN:?}; see its message above")]
    Silent,
}

/// Runs the mock cluster until stdin ends. This is the subcommand [`SUBCOMMAND`].
///
/// # Errors
/// [`MockBrokerError`] if the cluster cannot listen on 127.0.0.1, or nobody reads stdout.
pub fn serve(topics: &[String], partitions: i32) -> Result<(), MockBrokerError> {
    let cluster = MockCluster::new(BROKERS)?;
    for broker in 1..=BROKERS {
        cluster.broker_round_trip_time(broker, ROUND_TRIP)?;
    }
    for topic in topics {
        cluster.create_topic(topic, partitions, BROKERS)?;
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", cluster.bootstrap_servers())?;
    stdout.flush()?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

/// The running process. Dropping it ends it.
#[derive(Debug)]
pub(super) struct MockBroker {
    process: Child,
    line: Option<ChildStdin>,
    bootstrap_servers: String,
}

impl MockBroker {
    /// Starts the process and waits for its address. Blocks.
    pub(super) fn start(topics: &[&str], partitions: i32) -> Result<Self, MockBrokerError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([SUBCOMMAND, &partitions.to_string()])
            .args(topics)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal is for us only; the broker ends when we close its stdin.
            .process_group(0)
            .spawn()?;
        let line = process.stdin.take();
        let stdout = process.stdout.take();
        let mut broker = Self { process, line, bootstrap_servers: String::new() };
        broker.bootstrap_servers = stdout.and_then(first_line).ok_or(MockBrokerError::Silent)?;
        Ok(broker)
    }

    pub(super) fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }
}

impl Drop for MockBroker {
    fn drop(&mut self) {
        self.line = None;
        // The mock cluster has nothing to lose, so do not wait for librdkafka's clean-up. An error means that the process has ended.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Reads the first line; `None` if the process ends or prints nothing.
fn first_line(stdout: impl Read + Send + 'static) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if BufReader::new(stdout).read_line(&mut line).is_ok() {
            drop(sender.send(line));
        }
    });
    let line = receiver.recv_timeout(START_WITHIN).ok()?;
    Some(line.trim().to_owned()).filter(|line| !line.is_empty())
}
