//! Runs a container as Kubernetes would: as another user without capabilities, on a read-only file system, with the mounted files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use anyhow::{Context, ensure};
use lab::{SOON, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use super::pod::{Cluster, MOUNTED, Pod};

/// Prepares a mount namespace: the binary and the files of `$1` on a read-only `/mnt`, an empty `/tmp`, and the rest read-only. Then runs `$3` and
/// what follows it as the user `$2` without capabilities.
const ENTER: &str = r#"
    mount -t tmpfs -o mode=755 tmpfs /mnt
    mkdir /mnt/bin /mnt/etc
    touch /mnt/bin/outbox-relay
    mount --bind "$0" /mnt/bin/outbox-relay
    mount --bind "$1" /mnt/etc
    mount -o remount,ro tmpfs /mnt
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mount -o remount,bind,ro /
    user=$2
    shift 2
    exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"#;

/// The place of one pod: its mounted files.
pub(super) struct Node {
    files: TempDir,
    /// True if this process may make a mount namespace. Otherwise the container runs as the user of the test.
    isolates: bool,
}

impl Node {
    /// Writes the files of the pod, as the kubelet does.
    pub(super) fn new(pod: &Pod, cluster: &Cluster) -> anyhow::Result<Self> {
        pod.is_restricted()?;
        let node = Self { files: tempfile::tempdir()?, isolates: may_isolate() };
        fs::set_permissions(node.files.path(), Permissions::from_mode(0o755))?;
        let (files, mode) = pod.files(cluster)?;
        let (_, group) = pod.user()?;
        for (name, content) in files {
            let path = node.files.path().join(name);
            fs::write(&path, content)?;
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            if node.isolates {
                chown(&path, Some(0), Some(group.try_into()?))?;
            }
        }
        if node.isolates {
            let output = node.command(pod, &["touch", "/mnt/bin/new", "/etc/new"])?.output()?;
            ensure!(!output.status.success(), "the file system is not read-only");
        }
        Ok(node)
    }

    /// Returns the command in the container, with its variables.
    fn command(&self, pod: &Pod, words: &[impl AsRef<str>]) -> anyhow::Result<Command> {
        let binary = lab::relay::binary();
        let own = self.files.path().to_str().context("a path")?;
        let (path, mounted, mut command) = if self.isolates {
            let (user, group) = pod.user()?;
            ensure!(user == group, "{user} and {group}");
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-e", "-c", ENTER]).arg(binary).arg(own).arg(user.to_string());
            command.args(words.iter().map(AsRef::as_ref));
            ("/mnt/bin:/usr/bin:/bin".to_owned(), "/mnt/etc", command)
        } else {
            let mut command = Command::new(words[0].as_ref());
            command.args(words[1..].iter().map(AsRef::as_ref));
            let folder = binary.parent().context("a folder")?;
            (format!("{}:/usr/bin:/bin", folder.display()), own, command)
        };
        command.env_clear().env("PATH", format!("{path}:/usr/sbin:/sbin")).env("HOME", "/").stdin(Stdio::null());
        for (name, value) in &pod.environment {
            command.env(name, value.replace(MOUNTED, mounted));
        }
        Ok(command)
    }

    /// Runs a command in the container, as a probe does.
    pub(super) fn exec(&self, pod: &Pod, words: &[String]) -> anyhow::Result<Output> {
        ensure!(!words.is_empty(), "no command");
        Ok(self.command(pod, words)?.output()?)
    }

    /// The image's entry point, and the arguments of the pod.
    fn entry(pod: &Pod) -> anyhow::Result<Vec<String>> {
        let entry = "ENTRYPOINT [\"outbox-relay\"]";
        let image = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Dockerfile"))?;
        ensure!(image.contains(entry), "the image has another entry point than {entry}");
        Ok([vec!["outbox-relay".to_owned()], pod.arguments()?].concat())
    }

    /// Runs the container until it ends.
    pub(super) async fn run(&self, pod: &Pod) -> anyhow::Result<Output> {
        let mut command = self.command(pod, &Self::entry(pod)?)?;
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }

    /// Starts the container.
    pub(super) fn start(&self, pod: &Pod) -> anyhow::Result<Running> {
        let child = self.command(pod, &Self::entry(pod)?)?.spawn().context("the container")?;
        Ok(Running(child))
    }
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
