//! Chooses the user that runs a server. Postgres refuses to run as root, so root uses an unprivileged user.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::unistd::{User, geteuid};

/// An unprivileged user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUser {
    uid: u32,
    gid: u32,
}

impl ServerUser {
    /// Returns `None` if we are not root, because the server can then run as ourselves. Otherwise returns the user `postgres` if it exists,
    /// or else `nobody`.
    pub fn in_place_of_root() -> Option<Self> {
        geteuid().is_root().then(|| {
            let known = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
            // 65534 is nobody on every Linux. It works even in an image without /etc/passwd.
            known
                .map_or(Self { uid: 65534, gid: 65534 }, |user| Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
        })
    }

    /// Returns the user's id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns the id of the user's own group.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Makes the command run as this user, without root's supplementary groups.
    pub(super) fn run(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}
