//! Runs a container as a container runtime would: as another user without capabilities, on a read-only file system, with the mounted files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use anyhow::{Context, ensure};
use lab::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use super::container::{Cluster, Container};

/// Prepares a mount namespace: the binary and the files of `$1` on a read-only `/mnt`, an empty `/tmp`, and the rest read-only. Then runs what
/// follows `$2` as the user `$2` without capabilities.
const ENTER: &str = r#"
    mount -t tmpfs -o mode=755 tmpfs /mnt
    mkdir /mnt/bin /mnt/etc
    touch /mnt/bin/outbox-relay
    mount --bind "$0" /mnt/bin/outbox-relay
    mount --bind "$1" /mnt/etc
    mount -o remount,ro /mnt
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mount -o remount,bind,ro /
    cd /
    user=$2
    shift 2
    exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"#;

/// The place of one container: its mounted files.
pub(super) struct Node {
    files: TempDir,
    /// True if this process may make a mount namespace. Otherwise the container runs as the user of the test.
    isolates: bool,
}

impl Node {
    /// Writes the files of the container, as the kubelet does.
    pub(super) fn new(container: &Container, cluster: &Cluster) -> anyhow::Result<Self> {
        let node = Self { files: tempfile::tempdir()?, isolates: may_isolate() };
        fs::set_permissions(node.files.path(), Permissions::from_mode(0o755))?;
        for (name, content) in cluster.contents(container)? {
            let path = node.files.path().join(name);
            fs::write(&path, content)?;
            fs::set_permissions(&path, Permissions::from_mode(container.mode))?;
            if node.isolates {
                chown(&path, Some(0), Some(container.user))?;
            }
        }
        if node.isolates {
            let written = |path: &str| node.exec(container, &["touch", path]);
            ensure!(written("/tmp/new")?.status.success(), "/tmp cannot be written");
            for path in ["/new", "/mnt/bin/new", "/mnt/etc/new"] {
                ensure!(!written(path)?.status.success(), "the file system is not read-only");
            }
        }
        Ok(node)
    }

    /// Returns a command in the container, with its variables.
    fn command(&self, container: &Container, words: &[impl AsRef<str>]) -> anyhow::Result<Command> {
        let binary = lab::relay::binary();
        let own = self.files.path().to_str().context("a path")?;
        let words = words.iter().map(AsRef::as_ref);
        let (folder, mounted, mut command) = if self.isolates {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-e", "-c", ENTER]).arg(binary).arg(own).arg(container.user.to_string());
            command.args(words);
            ("/mnt/bin", "/mnt/etc", command)
        } else {
            let mut command = Command::new("env");
            command.args(words);
            (binary.parent().and_then(|folder| folder.to_str()).context("a folder")?, own, command)
        };
        command.env_clear().env("PATH", format!("{folder}:/usr/sbin:/usr/bin:/sbin:/bin")).env("HOME", "/");
        for (name, value) in &container.environment {
            command.env(name, value.replace(&container.mounted, mounted));
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command in the container, as a probe does.
    pub(super) fn exec(&self, container: &Container, words: &[impl AsRef<str>]) -> anyhow::Result<Output> {
        Ok(self.command(container, words)?.output()?)
    }

    /// Runs a probe of the container.
    pub(super) fn probe(&self, container: &Container, name: &str) -> anyhow::Result<Output> {
        self.exec(container, container.probes.get(name).with_context(|| format!("no {name}"))?)
    }

    /// Runs the container until it ends.
    pub(super) async fn run(&self, container: &Container) -> anyhow::Result<Output> {
        let mut command = self.command(container, &entry(container)?)?;
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }

    /// Starts the container.
    pub(super) fn start(&self, container: &Container) -> anyhow::Result<Running> {
        let child = self.command(container, &entry(container)?)?.spawn().context("the container")?;
        Ok(Running(child))
    }
}

/// Returns the image's entry point and the arguments of the container.
fn entry(container: &Container) -> anyhow::Result<Vec<String>> {
    let image = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Dockerfile"))?;
    let last = image.lines().rfind(|line| line.starts_with("ENTRYPOINT ")).context("no entry point")?;
    ensure!(last.ends_with("outbox-relay\"]"), "the image has the entry point {last}");
    Ok([vec!["outbox-relay".to_owned()], container.arguments.clone()].concat())
}

/// Returns true if this process may enter a mount namespace and become another user there.
fn may_isolate() -> bool {
    let probe = || Command::new("unshare").args(["--mount", "setpriv", "--reuid", "65532", "true"]).output();
    geteuid().is_root() && probe().is_ok_and(|output| output.status.success())
}

/// A running container. Dropping it kills it.
pub(super) struct Running(Child);

impl Running {
    /// Ends the container as the kubelet does, and returns its exit code.
    pub(super) async fn terminate(mut self) -> anyhow::Result<Option<i32>> {
        kill(Pid::from_raw(self.0.id().try_into()?), Signal::SIGTERM)?;
        let child = Mutex::new(&mut self.0);
        let status = eventually("the container ends", SOON * 2, || async {
            child.lock().expect("the child").try_wait().transpose().ok_or("it runs")
        });
        Ok(status.await?.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if the container has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
