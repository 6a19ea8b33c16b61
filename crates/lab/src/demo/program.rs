//! Runs the program as operators do: a relay or a service in a process of its own, which can be killed and started again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::block_in_place;

use super::child_server::{ChildServer, ServerCommand};
use super::directory::TemporaryDirectory;
use super::servers::OutboxLocation;
use super::stage::DemoOptions;

/// The grace period of a process, which ends at once if it has nothing left to do. A relay whose servers are down is killed.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// One process at a time, with one log for all of them.
#[derive(Debug)]
pub(super) struct Program {
    command: ServerCommand,
    log: PathBuf,
    process: Option<ChildServer>,
}

impl Program {
    /// Prepares a program with the settings of the outbox and `more`. Its files in the directory have this name. The settings go into a
    /// file, because a command line is visible to everybody on the machine.
    pub(super) fn new(
        options: &DemoOptions,
        location: &OutboxLocation,
        more: &toml::Table,
        directory: &TemporaryDirectory,
        name: &str,
        arguments: &[&str],
    ) -> io::Result<Self> {
        let (config, log) =
            (directory.path().join(format!("{name}.toml")), directory.path().join(format!("{name}.log")));
        let mut settings = location.settings.clone();
        settings.extend(more.clone());
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&config)?
            .write_all(settings.to_string().as_bytes())?;
        File::create(&log)?;
        let command = ServerCommand::new(&options.program, directory.path(), &log)
            .envs(&options.env)
            .without(&location.hidden_variables)
            .args(arguments)
            .args(["--config".as_ref(), config.as_os_str()])
            .stops_on(Signal::SIGTERM, DRAIN_WITHIN);
        Ok(Self { command, log, process: None })
    }

    /// Starts the next process.
    pub(super) fn start(&mut self, directory: &mut TemporaryDirectory) -> io::Result<()> {
        let process = ChildServer::start(&self.command)?;
        directory.outlives(&process)?;
        self.process = Some(process);
        Ok(())
    }

    /// Returns the id of the running process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(ChildServer::pid)
    }

    /// Returns true if the process has ended although nobody stopped it.
    pub(super) fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| !process.is_running())
    }

    /// Kills the process with SIGKILL and waits until it has ended. Returns its id.
    pub(super) fn kill(&mut self) -> Option<u32> {
        let mut process = self.process.take()?;
        block_in_place(|| process.kill());
        Some(process.pid())
    }

    /// Stops the process with SIGTERM and waits until it has drained.
    pub(super) fn stop(&mut self) {
        block_in_place(|| self.process = None);
    }

    /// Returns the path of the log.
    pub(super) fn log_file(&self) -> &Path {
        &self.log
    }

    /// Returns the log.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the last lines of the log.
    pub(super) fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}
