//! Relays as they run in production: processes of the built binary, told by their environment, heard by their log.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::eventually::{SOON, eventually};

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Names the binary to start, `env!("CARGO_BIN_EXE_outbox-relay")`: this crate does not depend on the relay, and cannot know.
pub fn use_binary(path: impl Into<PathBuf>) {
    BINARY.get_or_init(|| path.into());
}

/// The binary of the relay.
///
/// # Panics
/// Before [`use_binary`].
pub fn binary() -> &'static Path {
    BINARY.get().expect("the suite has not named the relay's binary")
}

/// A drain, on a machine that is busy.
const EXIT_WITHIN: Duration = Duration::from_secs(60);

/// How many of its last lines tell why a test failed.
const TAIL: usize = 30;

thread_local! {
    /// The logs of the relays that this thread's test has started.
    static LOGS: RefCell<Vec<(String, Log)>> = const { RefCell::new(Vec::new()) };
}

/// The environment of a relay: nothing is inherited.
#[derive(Debug, Clone, Default)]
pub struct Relay {
    environment: BTreeMap<String, String>,
    arguments: Vec<String>,
}

impl Relay {
    /// The binary with a clean environment.
    pub fn bare() -> Self {
        Self::default()
    }

    /// What every relay needs.
    pub fn new(database_url: &str, brokers: &str) -> Self {
        Self::bare().with("DATABASE_URL", database_url).with("KAFKA_BOOTSTRAP_SERVERS", brokers)
    }

    /// Sets a variable.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// Arguments before the command, or after it.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts `outbox-relay run` under that name.
    pub fn start(&self, name: &str) -> anyhow::Result<RelayProcess> {
        let mut child = self
            .command("run")
            .env("RELAY_NAME", name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("the relay's binary")?;
        let log = Log::default();
        let stderr = child.stderr.take().context("no stderr")?;
        let heard = log.clone();
        std::thread::spawn(move || heard.fill_from(stderr));
        LOGS.with_borrow_mut(|logs| logs.push((name.to_owned(), log.clone())));
        Ok(RelayProcess { child, log })
    }

    /// Starts it and waits until it works.
    pub async fn start_ready(&self, name: &str) -> anyhow::Result<RelayProcess> {
        let relay = self.start(name)?;
        relay.wait_for("ready").await;
        Ok(relay)
    }

    /// Runs a command to its end.
    pub async fn output(&self, command: &str) -> anyhow::Result<Output> {
        let mut command = self.command(command);
        let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await??;
        Ok(Output {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    fn command(&self, command: &str) -> Command {
        let mut process = Command::new(binary());
        process.env_clear().envs(&self.environment);
        if !command.is_empty() {
            process.arg(command);
        }
        process.args(&self.arguments);
        process
    }
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub struct Output {
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

/// A running relay; dropping it kills it.
#[derive(Debug)]
pub struct RelayProcess {
    child: Child,
    log: Log,
}

impl RelayProcess {
    /// SIGKILL. Returns when it is gone.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        ensure!(status.signal() == Some(Signal::SIGKILL as i32), "it had ended before: {status}");
        Ok(())
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// SIGTERM, and the code it exits with.
    pub async fn stop(self) -> anyhow::Result<Option<i32>> {
        self.signal(Signal::SIGTERM)?;
        Ok(self.exit().await?.code())
    }

    /// Waits for its end.
    pub async fn exit(mut self) -> anyhow::Result<ExitStatus> {
        let child = Mutex::new(&mut self.child);
        let status = eventually("the relay exits", EXIT_WITHIN, || async {
            child.lock().expect("the child").try_wait().transpose().ok_or("it runs")
        });
        Ok(status.await?)
    }

    /// True until it has ended.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Returns the lines so far with this `notice`, or with this `code`. The end of an incident repeats its code and does not count.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let is_named = |line: &Value| match name.starts_with("OR-") {
            true => line["code"] == name && line["notice"] != "resolved",
            false => line["notice"] == name,
        };
        self.log.lines().iter().filter_map(|line| parse(line)).filter(is_named).collect()
    }

    /// Returns the lines so far that end an incident of this code.
    pub fn ends_of(&self, code: &str) -> Vec<Value> {
        self.lines("resolved").into_iter().filter(|line| line["code"] == code).collect()
    }

    /// Every line so far, as it was written.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Waits for a line with this `notice` or this `code`; returns the first.
    pub async fn wait_for(&self, name: &str) -> Value {
        self.wait_for_line(name, |_| true).await
    }

    /// Waits for the end of an incident of this code; returns the first.
    pub async fn wait_for_end_of(&self, code: &str) -> Value {
        self.wait_for_line("resolved", |line| line["code"] == code).await
    }

    /// Waits for a line with this `notice` or this `code` of which `matches` is true.
    pub async fn wait_for_line(&self, name: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let what = format!("the relay logs {name:?}");
        eventually(&what, SOON * 2, || async {
            self.lines(name).into_iter().find(|line| matches(line)).ok_or("it has not logged it")
        })
        .await
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        // It may have ended; then there is nobody to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("the log").clone()
    }

    fn fill_from(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            self.0.lock().expect("the log").push(line);
        }
    }
}

/// Forgets the relays of this thread's test; when it has `failed`, their last lines come first.
pub fn end_of_test(failed: bool) {
    for (name, log) in LOGS.take() {
        if failed {
            let lines = log.lines();
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            eprintln!("--- log of relay {name}, last {} of {} lines\n{}", tail.len(), lines.len(), tail.join("\n"));
        }
    }
}
