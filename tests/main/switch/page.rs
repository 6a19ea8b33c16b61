//! A page of docs/how-to, and a shell for its commands.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use lab::kafka::install_tools;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::documents::{blocks, document, shell, worked};

/// A page whose commands are run in a directory of their own.
pub(crate) struct Page {
    pub(crate) text: String,
    directory: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Page {
    /// Opens the page. It has to name each variable of the environment.
    pub(crate) fn open(path: &str, environment: Vec<(&'static str, String)>) -> anyhow::Result<Self> {
        let page = Self { text: document(path)?, directory: tempfile::tempdir()?, environment };
        for (name, value) in &page.environment {
            // Addresses are other ones here, settings are those of the page.
            let value = if name.starts_with("RELAY_") { format!("{value}\n") } else { String::new() };
            ensure!(page.text.contains(&format!("export {name}={value}")), "{path} does not set {name}");
        }
        install_tools(page.directory())?;
        Ok(page)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Installs a program that the commands call.
    pub(crate) fn install(&self, name: &str, script: &str) -> anyhow::Result<()> {
        let path = self.directory().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// Returns the blocks of commands of one part of the page. There have to be `N`.
    pub(crate) fn commands<const N: usize>(&self, heading: &str) -> anyhow::Result<[String; N]> {
        let found: Vec<_> = blocks(&self.text, heading, "sh")?.into_iter().map(str::to_owned).collect();
        let count = found.len();
        found.try_into().ok().with_context(|| format!("{heading} has {count} blocks, not {N}"))
    }

    fn shell(&self, words: &[&str], script: &str) -> anyhow::Result<Command> {
        let mut command = shell(words, script, self.directory())?;
        command
            .current_dir(self.directory())
            .envs(self.environment.iter().map(|(name, value)| (*name, value.as_str())));
        Ok(command)
    }

    /// Runs commands, which must end well. Returns what they print.
    pub(crate) async fn run(&self, script: &str) -> anyhow::Result<String> {
        // Commands that wait for something wait for ever if it does not come.
        let mut command = self.shell(&["timeout", "120", "sh"], script)?;
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        worked(&output).with_context(|| script.to_owned())
    }

    /// Runs commands whose last one is a relay.
    pub(crate) fn start(&self, script: &str) -> anyhow::Result<Running> {
        let (before, last) = script.trim_end().rsplit_once("outbox-relay run").context("no relay")?;
        ensure!(last.is_empty(), "{last:?} comes after the relay");
        // The relay takes the place of the shell, so that it gets the signal.
        let log = fs::File::create(self.directory().join("relay.log"))?;
        let mut shell = self.shell(&["sh"], &format!("{before}exec outbox-relay run"))?;
        Ok(Running(shell.stdout(Stdio::null()).stderr(log).spawn()?))
    }
}

/// A relay that the page starts.
pub(crate) struct Running(Child);

impl Running {
    /// Stops it with SIGTERM, as the page says.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "the relay has ended by itself");
        kill(Pid::from_raw(self.0.id().try_into()?), Signal::SIGTERM)?;
        let status = tokio::task::spawn_blocking(move || self.0.wait()).await??;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
