//! The relay under test: this very program as a process of its own, with settings that point it at the schema.
//!
//! It ends with the bench, even if that is killed: a shell beside it reads the names of signals from a pipe, passes them on, and
//! sends SIGKILL when the pipe ends.

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

/// Lines of its log that an error repeats.
const LOG_LINES: usize = 20;

/// A clean stop takes its `shutdown_timeout` at most, which is 40 s by default.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// How a relay is started.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) file: Option<PathBuf>,
    /// The bench's own environment without `RELAY_*`.
    pub(crate) env: BTreeMap<String, String>,
    /// `--set`, in order.
    pub(crate) overrides: Vec<(String, String)>,
}

/// The settings that point a relay at a schema. They come last on its command line, so that nothing sends it to another table.
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

/// A running relay; dropping it kills it. Fields in the order in which they must go: a guard that outlived its relay would shoot
/// at a process id that may be another's.
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
            // Ctrl-C at the terminal is for the bench, which ends its relays itself.
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

    /// An error, with the end of its log, once it has ended.
    pub(crate) fn check(&mut self) -> Result<(), BenchError> {
        match self.relay.try_wait()? {
            None => Ok(()),
            Some(status) => Err(BenchError::RelayEnded { status: status.to_string(), log: self.log_tail() }),
        }
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub(crate) async fn kill(mut self) -> Result<(), BenchError> {
        // Before anything else: the caller has looked at the clock.
        self.relay.start_kill()?;
        self.guard.kill().await?;
        self.relay.wait().await?;
        Ok(())
    }

    /// Stops it in order (SIGTERM). Returns the fields of its last log line, in which it sums itself up.
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
        // At once: its process id is free.
        self.guard.kill().await?;
        // Ends with the relay's stderr; a panic in it would only cost the log.
        let _ = (&mut self.reader).await;
        if !status.success() {
            return Err(BenchError::RelayEnded { status: status.to_string(), log: self.log_tail() });
        }
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(log.back().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default())
    }

    /// The end of its log.
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
    // A preflight check is not what is measured.
    arguments.extend(["run".into(), "--no-check".into()]);
    arguments
}
