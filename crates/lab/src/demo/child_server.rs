//! A server process that ends with us: when its [`ChildServer`] is dropped, on Ctrl-C, and even when we are killed with SIGKILL.
//!
//! A shell stands between us and the server. It holds the reading end of a pipe (the line) whose only writing end is ours, so the kernel
//! tells it of our end, however that came about. States of the shell:
//!
//! 1. the server runs, a watcher waits for the end of the line;
//! 2. the line has ended: the watcher sends the stop signal, and SIGKILL once the grace is over;
//! 3. the server has ended, in 1 by itself or in 2: the shell reaps it, ends the watcher and itself.
//!
//! We see 3 as the end of our child, so "is it running" is a `waitpid`, never a guess by process id.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::server_user::ServerUser;

/// Bytes of the server's log that an error repeats.
const LOG_TAIL: u64 = 4096;

/// `$1` stop signal, `$2` seconds of grace, then the program and its arguments. stdin is the line, stdout takes the server's process
/// id, stderr is the log.
///
/// CONT follows the stop signal because a stopped process would not see it. The last TERM goes to the shell's own process group
/// (0) and takes the watcher and its `sleep` along; the shell itself ignores it by then.
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

/// What to start and how to stop it.
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
}

impl ServerCommand {
    /// A server that runs in `directory`, writes its stdout and stderr to `log`, stops on SIGTERM and is killed ten seconds after that.
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
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets variables, beside those of this process.
    #[must_use]
    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, variables: impl IntoIterator<Item = (N, V)>) -> Self {
        let owned = |(name, value): (N, V)| (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.extend(variables.into_iter().map(owned));
        self
    }

    /// The signal that asks the server to stop, and how long (in whole seconds) it may take before SIGKILL.
    #[must_use]
    pub fn stops_on(mut self, signal: Signal, grace: Duration) -> Self {
        self.stop_signal = signal;
        self.grace = grace;
        self
    }

    /// Runs the server as this user; `None` as ourselves.
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
    /// Starts the server. That it could be executed at all shows only afterwards, in [`ChildServer::is_running`] and [`ChildServer::log_tail`].
    ///
    /// # Errors
    /// When the log cannot be opened, the directory not entered, the user not taken on or the shell not started.
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
            // A group of its own: Ctrl-C at the terminal is for us, the server is stopped in order by our end.
            .process_group(0);
        if let Some(user) = &command.user {
            user.run(&mut shell);
        }
        let mut shell = shell.spawn()?;
        let line = shell.stdin.take();
        let server = read_process_id(&mut shell)?;
        Ok(Self { shell, line, server, log: command.log.clone() })
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.server.as_raw().unsigned_abs()
    }

    /// Process id of the shell that ends after the server.
    pub(super) fn shell_pid(&self) -> u32 {
        self.shell.id()
    }

    /// False once the server has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.shell.try_wait(), Ok(None))
    }

    /// Sends the server a signal; SIGSTOP and SIGCONT freeze and thaw it.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if !self.is_running() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the server has ended"));
        }
        Ok(kill(self.server, signal)?)
    }

    /// Lets go of the line and waits until the server is gone: at most its grace, then it is killed. Blocks; does nothing the second time.
    pub fn stop(&mut self) {
        self.line = None;
        // Only a failed waitpid can end here, and then there is no child to wait for.
        drop(self.shell.wait());
    }

    /// Kills the server with SIGKILL and waits until it is gone. Blocks.
    pub fn kill(&mut self) {
        // An error says that it has ended already.
        drop(self.signal(Signal::SIGKILL));
        self.stop();
    }

    /// The end of the server's log.
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
