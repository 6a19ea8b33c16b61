//! Runs Debezium's Postgres connector on Kafka Connect standalone, one connector for each case.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::demo::{ChildServer, ServerCommand, Signal, TemporaryDirectory, free_port};
use serde_json::{Map, Value, json};

const POM: &str = include_str!("pom.xml");

/// The time limit for the worker to stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A worker of Kafka Connect.
pub(crate) struct Connect {
    server: ChildServer,
    port: u16,
    _directory: TemporaryDirectory,
}

impl Connect {
    /// Starts a worker without connectors.
    pub(crate) async fn start(brokers: &str) -> anyhow::Result<Self> {
        let jars = lab::kafka::fetched("debezium-parity", "Debezium", POM)?;
        let directory = TemporaryDirectory::create(None)?;
        let port = free_port()?;
        let worker = directory.path().join("worker.properties");
        fs::write(
            &worker,
            format!(
                "bootstrap.servers={brokers}\nlisteners=http://127.0.0.1:{port}\n\
                 key.converter=org.apache.kafka.connect.json.JsonConverter\nvalue.converter=org.apache.kafka.connect.json.JsonConverter\n\
                 offset.storage.file.filename={}\noffset.flush.interval.ms=1000\n",
                directory.path().join("offsets").display()
            ),
        )?;
        let command = ServerCommand::new("java", directory.path(), &directory.path().join("connect.log"))
            .args(["-Xms256m", "-Xmx1500m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"])
            .args([
                Path::new("-cp"),
                &jars.join("*"),
                Path::new("org.apache.kafka.connect.cli.ConnectStandalone"),
                &worker,
            ])
            .stops_on(Signal::SIGTERM, STOP_WITHIN);
        let connect = Self { server: ChildServer::start(&command)?, port, _directory: directory };
        lab::eventually("Kafka Connect answers", Duration::from_secs(120), || async {
            connect.call("GET", "/connectors", None).map(drop).map_err(|error| error.to_string())
        })
        .await;
        Ok(connect)
    }

    /// Creates a connector.
    pub(crate) fn create(&self, name: &str, options: Map<String, Value>) -> anyhow::Result<()> {
        let body = json!({"name": name, "config": options}).to_string();
        self.call("POST", "/connectors", Some(&body)).map(drop).with_context(|| self.server.log_tail())
    }

    /// Deletes a connector.
    pub(crate) fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.call("DELETE", &format!("/connectors/{name}"), None).map(drop)
    }

    /// Returns the address of the worker.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the state of a connector's task, such as `RUNNING`, and why it failed.
    pub(crate) fn task(&self, name: &str) -> anyhow::Result<(String, String)> {
        let status: Value = serde_json::from_str(&self.call("GET", &format!("/connectors/{name}/status"), None)?)?;
        let task = &status["tasks"][0];
        let text = |name: &str| task[name].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("trace")))
    }

    /// Stops the worker.
    pub(crate) fn stop(mut self) {
        self.server.stop();
    }

    fn call(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let body = body.unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.split_whitespace().nth(1).is_some_and(|code| code.starts_with('2')), "{answer}");
        Ok(answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
    }
}

/// Returns the version of a program in the POM.
///
/// # Errors
/// Returns an error if the POM does not name the program.
pub(crate) fn version_of(artifact: &str) -> anyhow::Result<String> {
    let (_, after) = POM.split_once(&format!("<artifactId>{artifact}</artifactId>")).context("no such artifact")?;
    let (_, after) = after.split_once("<version>").context("no version")?;
    Ok(after.split('<').next().unwrap_or_default().to_owned())
}
