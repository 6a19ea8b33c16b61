//! A temporary directory that is removed with us, even when we are killed with SIGKILL: a shell on a line (see `child_server`) removes it.
//!
//! The shell is told of every server that works in the directory and waits for the last one's end before it removes anything. It is
//! apart from the server's own shell because the directory outlives the server in a test that stops it and starts it again.

use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::child_server::ChildServer;
use super::server_user::ServerUser;

/// `$1` the directory. The wait is bounded (60 s, longer than any grace) because a process whose parent died stays a zombie
/// in a container without an init that reaps it, and `kill -0` takes it for alive.
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
    /// Creates a directory that belongs to `user` (or to us), where that user can get at it.
    ///
    /// # Errors
    /// When no temporary directory can be written, or the shell not be started.
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory until this server has ended. To be called after every start.
    ///
    /// # Errors
    /// When the shell is gone.
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

/// The first temporary directory whose every ancestor the user may pass; root's own may be closed to others.
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
