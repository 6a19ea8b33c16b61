//! Runs the relay under test: this program as a separate process, with settings that point it at the schema.
//!
//! The relay ends with the bench, even if the bench is killed: a shell reads the names of signals from a pipe, passes them on to
//! the relay, and sends SIGKILL when the pipe ends.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::bench_schema::BenchSchema;
use super::failure::BenchError;

const GUARD: &str = r#"while read -r signal; do kill -s "$signal" "$1"; done; kill -s KILL "$1""#;

/// The number of log lines that an error repeats.
const LOG_LINES: usize = 20;

/// The longest wait for a clean stop. A stop takes at most `shutdown_timeout`, by default 40 s.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// The program, environment and settings of a relay to start.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) file: Option<PathBuf>,
    /// The bench's environment without `RELAY_*`.
    pub(crate) env: BTreeMap<String, String>,
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

/// A running relay; dropping the value kills the relay. The fields are in the order in which they must be dropped: a guard that
/// outlived its relay would signal a process id that may belong to another process.
pub(crate) struct RelayProcess {
    guard: Child,
    relay: Child,
    pub(crate) pid: u32,
    pub(crate) name: String,
    log: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl RelayProcess {
    /// Starts relay `index` of the schema.
    pub(crate) fn start(launch: &Launch, schema: &BenchSchema, index: usize) -> Result<Self, BenchError> {
        let name = schema.relay_name(index);
        let mut relay = Command::new(&launch.program)
            .args(arguments(launch, &schema.name, &name))
            .env_clear()
            .envs(&launch.env)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal must reach only the bench, which ends its relays itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = relay.id().ok_or_else(|| std::io::Error::other("the relay ended at once"))?;
        let guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "guard", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let lines = relay.stderr.take().map(|stderr| BufReader::new(stderr).lines());
        let kept = Arc::clone(&log);
        let reader = tokio::spawn(async move {
            let Some(mut lines) = lines else { return };
            while let Ok(Some(line)) = lines.next_line().await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line);
                if kept.len() > LOG_LINES {
                    kept.pop_front();
                }
            }
        });
        Ok(Self { guard, relay, pid, name, log, reader })
    }

    /// Returns an error with the end of the log if the relay has ended.
    pub(crate) fn check(&mut self) -> Result<(), BenchError> {
        match self.relay.try_wait()? {
            None => Ok(()),
            Some(status) => Err(BenchError::RelayEnded { status: status.to_string(), log: self.log_tail() }),
        }
    }

    /// Ends the relay with SIGKILL and waits until its process is gone.
    pub(crate) async fn kill(mut self) -> Result<(), BenchError> {
        // Kill first: the caller has already read the clock.
        self.relay.start_kill()?;
        self.guard.kill().await?;
        self.relay.wait().await?;
        Ok(())
    }

    /// Stops the relay cleanly with SIGTERM. Returns the fields of its last log line, the summary of the run.
    pub(crate) async fn stop(mut self) -> Result<serde_json::Value, BenchError> {
        if let Some(line) = &mut self.guard.stdin {
            line.write_all(b"TERM\n").await?;
        }
        let ended = tokio::time::timeout(STOP_WITHIN, self.relay.wait()).await;
        let status = match ended {
            Ok(status) => status?,
            Err(_) => {
                let (what, log) = (format!("{} to stop", self.name), self.log_tail());
                return Err(BenchError::Stalled { what, within: STOP_WITHIN, log });
            }
        };
        // Stop the guard at once: the relay's process id is free now.
        self.guard.kill().await?;
        // The reader ends with the relay's stderr. A panic in it would only lose the log.
        let _ = (&mut self.reader).await;
        if !status.success() {
            return Err(BenchError::RelayEnded { status: status.to_string(), log: self.log_tail() });
        }
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(log.back().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default())
    }

    /// Returns the last lines of the log.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(|line| format!("  {line}\n")).collect()
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
