//! Runs a server process that ends with us: when its [`ChildServer`] is dropped, on Ctrl-C, and even if we are killed with SIGKILL.
//!
//! A shell runs between us and the server. It holds the reading end of a pipe (the line), and we hold the only writing end. So the kernel
//! closes the line when we end, for whatever reason. States of the shell:
//!
//! 1. the server runs, and a watcher waits for the end of the line;
//! 2. the line has ended: the watcher sends the stop signal, and SIGKILL when the grace period is over;
//! 3. the server has ended, in 1 by itself or in 2: the shell reaps it, ends the watcher and itself.
//!
//! State 3 ends our child process, so a `waitpid` shows whether the server runs. A check by process id could meet another process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::server_user::ServerUser;

/// The bytes of the server's log that an error repeats.
const LOG_TAIL: u64 = 4096;

/// Runs the server. `$1` is the stop signal, `$2` the grace period in seconds; the program and its arguments follow. stdin is the line,
/// stdout receives the server's process id, stderr is the log.
///
/// CONT follows the stop signal, because a stopped process would not handle it. The last TERM goes to the shell's own process group (0) and
/// ends the watcher and its `sleep`; the shell itself ignores TERM by then.
const SCRIPT: &str = r#"
signal=$1 grace=$2
shift 2
exec 3<&0
"$@" </dev/null >&2 3<&- &
server=$!
echo "$server"
exec >&2
(
    read -r line <&3
    kill -s "$signal" "$server"
    kill -s CONT "$server"
    while [ "$grace" -gt 0 ] && kill -0 "$server"; do
        sleep 1
        grace=$((grace - 1))
    done
    kill -s KILL "$server"
) 2>/dev/null &
trap 'kill -s "$signal" "$server"' HUP INT TERM
wait "$server"
status=$?
while kill -0 "$server" 2>/dev/null; do
    wait "$server"
    status=$?
done
echo "the server ended with status $status"
trap '' TERM
kill -s TERM 0
exit "$status"
"#;

/// The command of a server, and the way to stop it.
#[derive(Debug, Clone)]
pub struct ServerCommand {
    program: OsString,
    arguments: Vec<OsString>,
    stop_signal: Signal,
    grace: Duration,
    directory: PathBuf,
    log: PathBuf,
    user: Option<ServerUser>,
    environment: Vec<(OsString, OsString)>,
    hidden: Vec<OsString>,
}

impl ServerCommand {
    /// Creates the command of a server that runs in `directory` and writes stdout and stderr to `log`. It stops on SIGTERM and is killed
    /// ten seconds later.
    pub fn new(program: impl AsRef<OsStr>, directory: &Path, log: &Path) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            stop_signal: Signal::SIGTERM,
            grace: Duration::from_secs(10),
            directory: directory.to_owned(),
            log: log.to_owned(),
            user: None,
            environment: Vec::new(),
            hidden: Vec::new(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets variables in addition to those of this process.
    #[must_use]
    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, variables: impl IntoIterator<Item = (N, V)>) -> Self {
        let owned = |(name, value): (N, V)| (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.extend(variables.into_iter().map(owned));
        self
    }

    /// Hides variables of this process from the server.
    #[must_use]
    pub fn without<N: AsRef<OsStr>>(mut self, variables: impl IntoIterator<Item = N>) -> Self {
        self.hidden.extend(variables.into_iter().map(|name| name.as_ref().to_owned()));
        self
    }

    /// Sets the signal that asks the server to stop, and the grace period before SIGKILL in whole seconds.
    #[must_use]
    pub fn stops_on(mut self, signal: Signal, grace: Duration) -> Self {
        self.stop_signal = signal;
        self.grace = grace;
        self
    }

    /// Runs the server as this user; `None` runs it as ourselves.
    #[must_use]
    pub fn as_user(mut self, user: Option<ServerUser>) -> Self {
        self.user = user;
        self
    }
}

/// A running server on its line. Dropping it stops the server and waits for its end.
#[derive(Debug)]
pub struct ChildServer {
    shell: Child,
    line: Option<ChildStdin>,
    server: Pid,
    log: PathBuf,
}

impl ChildServer {
    /// Starts the shell and the server. If the server's program cannot be executed, [`ChildServer::is_running`] and
    /// [`ChildServer::log_tail`] show it later.
    ///
    /// # Errors
    /// An I/O error if the log cannot be opened, the directory not entered, the user not assumed or the shell not started.
    pub fn start(command: &ServerCommand) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(&command.log)?;
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", SCRIPT, "child-server", command.stop_signal.as_str().trim_start_matches("SIG")])
            .arg(command.grace.as_secs().to_string())
            .arg(&command.program)
            .args(&command.arguments)
            .envs(command.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&command.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // A process group of its own: Ctrl-C at the terminal reaches only us, and our end stops the server in order.
            .process_group(0);
        for name in &command.hidden {
            shell.env_remove(name);
        }
        if let Some(user) = &command.user {
            user.run(&mut shell);
        }
        let mut shell = shell.spawn()?;
        let line = shell.stdin.take();
        let server = read_process_id(&mut shell)?;
        Ok(Self { shell, line, server, log: command.log.clone() })
    }

    /// Returns the server's process id.
    pub fn pid(&self) -> u32 {
        self.server.as_raw().unsigned_abs()
    }

    /// Returns the process id of the shell, which ends after the server.
    pub(super) fn shell_pid(&self) -> u32 {
        self.shell.id()
    }

    /// Returns false once the server has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.shell.try_wait(), Ok(None))
    }

    /// Sends the server a signal. SIGSTOP freezes it and SIGCONT resumes it.
    ///
    /// # Errors
    /// An I/O error if the server has ended.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if !self.is_running() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the server has ended"));
        }
        Ok(kill(self.server, signal)?)
    }

    /// Closes the line and waits until the server has ended: at most the grace period, then it is killed. Blocks. Returns the exit status,
    /// also when called again; `None` if it is not known. The exit code of a server that a signal has ended is 128 and the signal.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        self.line = None;
        self.shell.wait().ok()
    }

    /// Kills the server with SIGKILL and waits until it has ended. Blocks.
    pub fn kill(&mut self) {
        // An error means that the server has ended already.
        drop(self.signal(Signal::SIGKILL));
        self.stop();
    }

    /// Returns the end of the server's log.
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("(cannot read {}: {error})", self.log.display()))
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read_process_id(shell: &mut Child) -> io::Result<Pid> {
    let mut line = String::new();
    if let Some(stdout) = shell.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let id = line.trim().parse().map_err(|_| io::Error::other("the shell did not name the server's process id"))?;
    Ok(Pid::from_raw(id))
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
