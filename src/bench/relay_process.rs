//! Runs the relay under test: this program as a separate process, with settings that point it at the schema. The relay ends with the bench,
//! even if the bench is killed.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use lab::demo::{ChildServer, ServerCommand, Signal, TemporaryDirectory};
use tokio::task::block_in_place;

use super::bench_schema::BenchSchema;
use super::failure::BenchError;

/// The longest wait for a clean stop. A stop takes at most `shutdown_timeout`, by default 40 s.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// The name of the relay's log in its directory.
const LOG: &str = "relay.log";

/// The program, environment and settings of a relay to start.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) file: Option<PathBuf>,
    /// The environment variables of the bench that the relay must not see.
    pub(crate) hidden_variables: Vec<String>,
    /// The arguments of `--set`, in order.
    pub(crate) overrides: Vec<(String, String)>,
}

/// Returns the settings that point a relay at a schema. They come last on its command line, so that no other setting overrides them.
pub(crate) fn settings_of(name: &str, relay: &str) -> Vec<(String, String)> {
    let settings = [
        ("schema", name),
        ("table", "event_outbox"),
        ("processed_table", "processed_events"),
        ("topic", name),
        ("name", relay),
        ("log_format", "json"),
    ];
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// A running relay; dropping the value kills the relay. The fields are in the order of dropping: the process before its directory.
pub(crate) struct RelayProcess {
    server: ChildServer,
    directory: TemporaryDirectory,
    pub(crate) pid: u32,
    pub(crate) name: String,
}

impl RelayProcess {
    /// Starts relay `index` of the schema.
    pub(crate) fn start(launch: &Launch, schema: &BenchSchema, index: usize) -> Result<Self, BenchError> {
        let name = schema.relay_name(index);
        let mut directory = TemporaryDirectory::create(None)?;
        // The relay's working directory is the bench's, because the settings may contain relative paths.
        let command = ServerCommand::new(&launch.program, &std::env::current_dir()?, &directory.path().join(LOG))
            .without(&launch.hidden_variables)
            .args(arguments(launch, &schema.name, &name))
            .stops_on(Signal::SIGTERM, STOP_WITHIN);
        let server = block_in_place(|| ChildServer::start(&command))?;
        directory.outlives(&server)?;
        Ok(Self { pid: server.pid(), server, directory, name })
    }

    /// Returns an error with the end of the log if the relay has ended.
    pub(crate) fn check(&mut self) -> Result<(), BenchError> {
        if self.server.is_running() { Ok(()) } else { Err(BenchError::RelayEnded { log: self.log_tail() }) }
    }

    /// Ends the relay with SIGKILL and waits until its process is gone.
    pub(crate) fn kill(mut self) {
        block_in_place(|| self.server.kill());
    }

    /// Stops the relay cleanly with SIGTERM. Returns the fields of its last log line, the summary of the run.
    pub(crate) fn stop(mut self) -> Result<serde_json::Value, BenchError> {
        if !block_in_place(|| self.server.stop()).is_some_and(|status| status.success()) {
            return Err(BenchError::RelayEnded { log: self.log_tail() });
        }
        let log = fs::read_to_string(self.directory.path().join(LOG))?;
        // The last line of all is a word of the shell around the relay.
        Ok(log.lines().rev().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default())
    }

    /// Returns the end of the log, which names the exit status if the relay has ended.
    pub(crate) fn log_tail(&self) -> String {
        self.server.log_tail()
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        self.server.kill();
    }
}

fn arguments(launch: &Launch, schema: &str, name: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    if let Some(file) = &launch.file {
        arguments.extend(["--config".into(), file.into()]);
    }
    for (name, value) in launch.overrides.iter().cloned().chain(settings_of(schema, name)) {
        arguments.extend(["--set".into(), format!("{name}={value}").into()]);
    }
    // The preflight check must not be part of the measurement.
    arguments.extend(["run".into(), "--no-check".into()]);
    arguments
}
