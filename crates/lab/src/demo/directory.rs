//! Creates a temporary directory that is removed when we end, even by SIGKILL: a shell on a line (see `child_server`) removes it.
//!
//! The shell is told about every server that works in the directory, and waits for the end of the last one before it removes the directory.
//! It is not the server's own shell, because the directory outlives the server in a test that stops the server and starts it again.

use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::child_server::ChildServer;
use super::server_user::ServerUser;

/// Waits for the servers and removes the directory `$1`. The wait is limited to 60 s, which is longer than any grace period. In a container
/// without an init that reaps processes, a process whose parent died stays a zombie, and `kill -0` takes it for alive.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
server=
while read -r line; do server=$line; done
tries=600
while [ -n "$server" ] && [ "$tries" -gt 0 ] && kill -0 "$server" 2>/dev/null; do
    sleep 0.1
    tries=$((tries - 1))
done
rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
"#;

/// A temporary directory. Dropping it removes it.
#[derive(Debug)]
pub struct TemporaryDirectory {
    path: PathBuf,
    shell: Child,
    line: Option<ChildStdin>,
}

impl TemporaryDirectory {
    /// Creates a directory that belongs to `user` (or to us), in a place that the user can reach.
    ///
    /// # Errors
    /// An I/O error if no temporary directory can be written, or the shell cannot be started.
    pub fn create(user: Option<&ServerUser>) -> io::Result<Self> {
        let parent = parent_for(user)?;
        let created = tempfile::Builder::new().prefix("outbox-relay-").tempdir_in(parent)?;
        if let Some(user) = user {
            chown(created.path(), Some(user.uid()), Some(user.gid()))?;
        }
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "directory"])
            .arg(created.path())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let line = shell.stdin.take();
        Ok(Self { path: created.keep(), shell, line })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory until this server has ended. Call it after every start of a server.
    ///
    /// # Errors
    /// An I/O error if the shell is gone.
    pub fn outlives(&mut self, server: &ChildServer) -> io::Result<()> {
        let line = self.line.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(line, "{}", server.shell_pid())
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        self.line = None;
        drop(self.shell.wait());
    }
}

/// Returns the first temporary directory that the user can reach through all its ancestors. Root's own may be closed to others.
fn parent_for(user: Option<&ServerUser>) -> io::Result<PathBuf> {
    let ours = std::env::temp_dir();
    if user.is_none() {
        return Ok(ours);
    }
    [ours, PathBuf::from("/tmp"), PathBuf::from("/var/tmp")]
        .into_iter()
        .find(|candidate| open_to_all(candidate))
        .ok_or_else(|| io::Error::other("no temporary directory that the server's user may enter"))
}

fn open_to_all(path: &Path) -> bool {
    let passable =
        |path: &Path| path.metadata().is_ok_and(|data| data.is_dir() && data.permissions().mode() & 0o001 != 0);
    path.is_absolute() && path.ancestors().all(passable)
}
