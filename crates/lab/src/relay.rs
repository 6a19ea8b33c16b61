//! Runs relays as in production: processes of the built binary, configured by their environment and observed through their log.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
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
use super::schemas;

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Sets the binary to start, `env!("CARGO_BIN_EXE_outbox-relay")`. This crate does not depend on the relay, so it cannot know the path.
pub fn use_binary(path: impl Into<PathBuf>) {
    BINARY.get_or_init(|| path.into());
}

/// Returns the binary of the relay.
///
/// # Panics
/// Panics if [`use_binary`] has not been called.
pub fn binary() -> &'static Path {
    BINARY.get().expect("use_binary has not been called")
}

/// The longest drain, on a busy machine.
const EXIT_WITHIN: Duration = Duration::from_secs(60);

/// The number of last lines of a relay's log that a failed test prints.
const TAIL: usize = 60;

/// The number of last warnings and errors of each relay in the message of a failed test, and the characters of each.
const WARNINGS: usize = 6;
const WIDTH: usize = 400;

thread_local! {
    /// The logs of the relays that this thread's test has started.
    static LOGS: RefCell<Vec<(String, Log)>> = const { RefCell::new(Vec::new()) };
}

/// A binary with arguments and the environment of a relay. It inherits no variables.
#[derive(Debug, Clone, Default)]
pub struct Relay {
    environment: BTreeMap<String, String>,
    arguments: Vec<String>,
    /// Another binary than the one under test.
    binary: Option<PathBuf>,
}

impl Relay {
    /// Returns the binary with an empty environment.
    pub fn bare() -> Self {
        Self::default()
    }

    /// Returns a relay with the settings that every relay needs.
    pub fn new(database_url: &str, brokers: &str) -> Self {
        Self::bare().with("DATABASE_URL", database_url).with("KAFKA_BOOTSTRAP_SERVERS", brokers)
    }

    /// Sets a variable.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// Uses another binary than the one under test: that of a former release.
    pub fn of_binary(self, path: &Path) -> Self {
        Self { binary: Some(path.to_owned()), ..self }
    }

    /// Adds an argument, which comes after the command. With an empty command it is the first one, so it may be a global option.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts `outbox-relay run` under this name.
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

    /// Starts the relay and waits until it is ready.
    pub async fn start_ready(&self, name: &str) -> anyhow::Result<RelayProcess> {
        let relay = self.start(name)?;
        relay.wait_for("ready").await;
        Ok(relay)
    }

    /// Runs a command until it ends. JSON on stdout is compared with the command's schema.
    pub async fn output(&self, command: &str) -> anyhow::Result<Output> {
        let mut process = self.command(command);
        let output = tokio::task::spawn_blocking(move || process.stdin(Stdio::null()).output()).await??;
        let output = Output {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        };
        let words: Vec<&str> = std::iter::once(command).chain(self.arguments.iter().map(String::as_str)).collect();
        if words.contains(&"--json") {
            let named = words.iter().copied().filter(|word| !word.is_empty() && !word.starts_with('-'));
            schemas::check(&named.collect::<Vec<_>>(), &output.stdout)?;
        }
        Ok(output)
    }

    /// Runs a command whose stdout and stderr have lost their reader, as behind `| head`. Returns its exit code.
    pub async fn code_unread(&self, command: &str) -> anyhow::Result<Option<i32>> {
        let (stdout, stderr) = (closed_pipe()?, closed_pipe()?);
        let mut command = self.command(command);
        let run = move || command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).status();
        Ok(tokio::task::spawn_blocking(run).await??.code())
    }

    /// Starts a relay whose log has lost its reader.
    pub fn start_unread(&self) -> anyhow::Result<UnreadRelay> {
        let mut command = self.command("run");
        Ok(UnreadRelay(command.stdin(Stdio::null()).stdout(closed_pipe()?).stderr(closed_pipe()?).spawn()?))
    }

    /// Starts a relay whose log takes a few lines, because nobody reads it before [`UnreadRelay::read`].
    #[cfg(target_os = "linux")]
    pub fn start_with_a_log_that_fills(&self) -> anyhow::Result<UnreadRelay> {
        let mut command = self.command("run");
        let relay = UnreadRelay(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
        // The least that Linux allows.
        nix::fcntl::fcntl(relay.0.stderr.as_ref().context("no stderr")?, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096))?;
        Ok(relay)
    }

    pub(crate) fn command(&self, command: &str) -> Command {
        let mut process = Command::new(self.binary.as_deref().unwrap_or_else(|| binary()));
        process.env_clear().envs(&self.environment);
        if !command.is_empty() {
            process.arg(command);
        }
        process.args(&self.arguments);
        process
    }
}

/// Returns the end for writing of a pipe that nobody reads.
fn closed_pipe() -> anyhow::Result<Stdio> {
    let (_, writer) = std::io::pipe()?;
    Ok(writer.into())
}

/// The output of a command that has ended.
#[derive(Debug)]
pub struct Output {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

/// A running relay. Dropping it kills the process.
#[derive(Debug)]
pub struct RelayProcess {
    child: Child,
    log: Log,
}

impl RelayProcess {
    /// Kills the relay with SIGKILL. Returns when the process is gone.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        ensure!(status.signal() == Some(Signal::SIGKILL as i32), "it had ended before: {status}");
        Ok(())
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Stops the relay with SIGTERM and returns its exit code.
    pub async fn stop(self) -> anyhow::Result<Option<i32>> {
        self.signal(Signal::SIGTERM)?;
        Ok(self.exit().await?.code())
    }

    /// Waits until the relay has ended.
    pub async fn exit(mut self) -> anyhow::Result<ExitStatus> {
        let child = Mutex::new(&mut self.child);
        let status = eventually("the relay exits", EXIT_WITHIN, || async {
            child.lock().expect("the child").try_wait().transpose().ok_or("it runs")
        });
        Ok(status.await?)
    }

    /// Returns true until the relay has ended.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Returns the lines so far with this `notice` or this `code`. The line that ends an incident repeats its code and does not count.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let is_named = |line: &Value| match name.starts_with("OR-") {
            true => line["code"] == name && line["notice"] != "resolved",
            false => line["notice"] == name,
        };
        self.log.lines().iter().filter_map(|line| parse(line)).filter(is_named).collect()
    }

    /// Returns the lines so far that end an incident with this code.
    pub fn ends_of(&self, code: &str) -> Vec<Value> {
        self.lines("resolved").into_iter().filter(|line| line["code"] == code).collect()
    }

    /// Returns every line so far, unchanged.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Waits for a line with this `notice` or this `code`, and returns the first one.
    pub async fn wait_for(&self, name: &str) -> Value {
        self.wait_for_line(name, |_| true).await
    }

    /// Waits for the end of an incident with this code, and returns the first such line.
    pub async fn wait_for_end_of(&self, code: &str) -> Value {
        self.wait_for_line("resolved", |line| line["code"] == code).await
    }

    /// Waits for a line with this `notice` or this `code` for which `matches` is true.
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
        end(&mut self.child);
    }
}

/// A running relay whose log the kit does not read. Dropping it kills the process, so that a failed test leaves no relay running.
#[derive(Debug)]
pub struct UnreadRelay(Child);

impl UnreadRelay {
    /// Returns true until the relay has ended.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Reads the rest of the log, and drops it.
    ///
    /// # Errors
    /// The log is read already, or has no reader.
    pub fn read(&mut self) -> anyhow::Result<()> {
        let mut log = self.0.stderr.take().context("no stderr")?;
        // Ends with the relay.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(())
    }
}

impl Drop for UnreadRelay {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// Kills the process and waits for its end.
fn end(child: &mut Child) {
    // Fails if it has ended already.
    let _ = child.kill();
    let _ = child.wait();
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

/// Clears the list of the relays of this thread's test. If the test has `failed`, or with `OUTBOX_RELAY_TEST_LOGS=1`, prints their last lines
/// first. Returns the last warnings and errors of each relay, which belong in the message of the failure.
pub fn end_of_test(failed: bool) -> String {
    let prints = failed || std::env::var_os("OUTBOX_RELAY_TEST_LOGS").is_some_and(|value| value == "1");
    let (mut warnings, width) = (String::new(), WIDTH);
    for (name, log) in LOGS.take() {
        let lines = log.lines();
        if prints {
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            eprintln!("--- log of relay {name}, last {} of {} lines\n{}", tail.len(), lines.len(), tail.join("\n"));
        }
        let is_warning = |line: &&String| parse(line).is_none_or(|line| line["level"] != "INFO");
        let mut last: Vec<_> = lines.iter().rev().filter(is_warning).take(WARNINGS).collect();
        last.reverse();
        for line in last {
            let _ = write!(warnings, "\n{name}: {line:.width$}");
        }
    }
    warnings
}
