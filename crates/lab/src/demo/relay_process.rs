//! Runs the relay as operators do: `outbox-relay run` in a process of its own, which ends with us. Shows its log as it grows.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::{JoinSet, block_in_place};

use super::child_server::{ChildServer, ServerCommand};
use super::directory::TemporaryDirectory;
use super::output::DemoOutput;

/// The interval in which the log is read.
const LOG_INTERVAL: Duration = Duration::from_millis(50);

/// The longest drain. A relay without pending work drains at once, and a relay whose servers are down is killed.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// The settings of the relay. They go into a file, because a command line is visible to everybody on the machine.
#[derive(Debug)]
pub(super) struct RelaySetup {
    /// The settings for `--config`.
    pub(super) settings: toml::Table,
    /// The environment variables that the relay must not see.
    pub(super) hidden_variables: Vec<String>,
}

/// One relay at a time, killed and started again. The order of the fields is the order of dropping: the process before its directory.
#[derive(Debug)]
pub(super) struct RelayProcess {
    process: Option<ChildServer>,
    command: ServerCommand,
    log: Arc<Mutex<Log>>,
    _showing: JoinSet<()>,
    directory: TemporaryDirectory,
}

impl RelayProcess {
    /// Starts the first relay.
    pub(super) fn start(setup: &RelaySetup, output: DemoOutput) -> io::Result<Self> {
        let directory = TemporaryDirectory::create(None)?;
        let (config, log) = (directory.path().join("relay.toml"), directory.path().join("relay.log"));
        write_private(&config, &setup.settings.to_string())?;
        File::create(&log)?;
        // `env` becomes the program, so the process id is the relay's own.
        let command = ServerCommand::new("/usr/bin/env", directory.path(), &log)
            .args(setup.hidden_variables.iter().flat_map(|name| ["-u", name]))
            .args([std::env::current_exe()?.as_os_str(), "run".as_ref(), "--config".as_ref(), config.as_os_str()])
            .stops_on(Signal::SIGTERM, DRAIN_WITHIN);
        let log = Arc::new(Mutex::new(Log { file: File::open(&log)?, path: log, incomplete: Vec::new(), output }));
        let mut showing = JoinSet::new();
        showing.spawn(show(Arc::clone(&log)));
        let mut relay = Self { process: None, command, log, _showing: showing, directory };
        relay.start_again()?;
        Ok(relay)
    }

    /// Starts the next relay.
    pub(super) fn start_again(&mut self) -> io::Result<()> {
        let process = ChildServer::start(&self.command)?;
        self.directory.outlives(&process)?;
        self.process = Some(process);
        Ok(())
    }

    /// Returns the process id of the running relay.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(ChildServer::pid)
    }

    /// Returns false if the relay has ended although nobody stopped it.
    pub(super) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(ChildServer::is_running)
    }

    /// Kills the relay with SIGKILL and waits until it has ended.
    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            block_in_place(|| process.kill());
        }
        lock(&self.log).show_new_lines();
    }

    /// Stops the relay with SIGTERM and waits until it has drained.
    pub(super) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            block_in_place(|| process.stop());
        }
        lock(&self.log).show_new_lines();
    }
}

/// Shows the log until the task is dropped.
async fn show(log: Arc<Mutex<Log>>) {
    loop {
        tokio::time::sleep(LOG_INTERVAL).await;
        lock(&log).show_new_lines();
    }
}

fn lock(log: &Mutex<Log>) -> std::sync::MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The relay's log, and the position up to which it was shown.
#[derive(Debug)]
struct Log {
    file: File,
    path: PathBuf,
    incomplete: Vec<u8>,
    output: DemoOutput,
}

impl Log {
    fn show_new_lines(&mut self) {
        if let Err(error) = self.file.read_to_end(&mut self.incomplete) {
            self.output.say(format_args!("cannot read {}: {error}", self.path.display()));
        }
        while let Some(end) = self.incomplete.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.incomplete.drain(..=end).collect();
            self.output.relay_says(String::from_utf8_lossy(&line).trim_end());
        }
    }
}

/// Writes a file that only its owner can read.
pub(super) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}
