//! Finds the binaries of a Postgres server on this machine, or downloads them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::download::{self, DownloadError};
use super::server_user::ServerUser;

/// The oldest usable server, because of `gen_random_uuid()` without an extension and `drop database ... with (force)`.
const OLDEST_MAJOR: u32 = 14;

/// Directories in which packages put the binaries without adding them to PATH. `*` stands for any name.
const USUAL_PLACES: [&str; 8] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/local/pgsql/bin",
];

/// The source of the binaries of a private server.
#[derive(Debug, Clone, Default)]
pub enum BinariesFrom {
    /// This machine if it has binaries, else the network.
    #[default]
    Anywhere,
    /// This directory, which must contain `postgres` and `initdb`.
    Directory(PathBuf),
    /// The network or an earlier download, even if this machine has binaries.
    Download,
    /// The network or an earlier download of this major version.
    Version(u32),
}

/// A directory with `postgres` and `initdb` that the server's user can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerBinaries {
    directory: PathBuf,
    version: Version,
}

/// The major version and the rest: 17.5, or 16.0 for a development version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// The reason why there are no binaries.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// The directory in [`BinariesFrom::Directory`] cannot be used.
    #[error("no usable Postgres server in {}", directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// The error of `postgres --version`.
        #[source]
        source: io::Error,
    },
    /// This machine has no binaries, and none could be downloaded.
    #[error("no Postgres server of version {OLDEST_MAJOR} or newer on this machine, and none could be downloaded")]
    Download(#[from] DownloadError),
}

impl ServerBinaries {
    /// Finds binaries that `user` (or we) can run.
    ///
    /// Downloads are kept in our cache directory. If there is none, or `user` cannot read it, they are put into `scratch`.
    ///
    /// # Errors
    /// [`BinariesError`] if there are no binaries, or none in the given directory.
    pub async fn find(from: &BinariesFrom, user: Option<&ServerUser>, scratch: &Path) -> Result<Self, BinariesError> {
        match from {
            BinariesFrom::Directory(directory) => Self::in_directory(directory, user).map_err(unusable(directory)),
            BinariesFrom::Anywhere => match Self::on_this_machine(user) {
                Some(found) => Ok(found),
                None => Self::downloaded(download::MAJOR, user, scratch).await,
            },
            BinariesFrom::Download => Self::downloaded(download::MAJOR, user, scratch).await,
            BinariesFrom::Version(major) => Self::downloaded(*major, user, scratch).await,
        }
    }

    /// Returns the path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns the directory of the programs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the server's major version.
    pub fn major(&self) -> u32 {
        self.version.0
    }

    /// Tries PATH first, because the user's shell would start these, and then the newest of the usual places.
    fn on_this_machine(user: Option<&ServerUser>) -> Option<Self> {
        let usable = |directory: PathBuf| Self::in_directory(&directory, user).ok();
        on_path()
            .into_iter()
            .chain(named_by_pg_config())
            .find_map(usable)
            .or_else(|| USUAL_PLACES.into_iter().flat_map(expand).filter_map(usable).max_by_key(|found| found.version))
    }

    /// Any version may be asked for by its number, also one that is too old for the relay.
    async fn downloaded(major: u32, user: Option<&ServerUser>, scratch: &Path) -> Result<Self, BinariesError> {
        let fetched = download::server(major, scratch).await?;
        if let Ok(found) = Self::in_directory_from(major, &fetched.join("bin"), user) {
            return Ok(found);
        }
        let copy = download::copy_for_others(&fetched, scratch).map_err(DownloadError::from)?.join("bin");
        Self::in_directory_from(major, &copy, user).map_err(unusable(&copy))
    }

    fn in_directory(directory: &Path, user: Option<&ServerUser>) -> io::Result<Self> {
        Self::in_directory_from(OLDEST_MAJOR, directory, user)
    }

    /// Runs `postgres --version`. Its success shows that the binaries exist, fit this machine, may be run by the user and are not older
    /// than `oldest`.
    fn in_directory_from(oldest: u32, directory: &Path, user: Option<&ServerUser>) -> io::Result<Self> {
        // A client-only package has neither program; some split packages have only `postgres`.
        directory.join("initdb").metadata()?;
        let mut command = Command::new(directory.join("postgres"));
        command.arg("--version").current_dir("/").stdin(Stdio::null());
        if let Some(user) = user {
            user.run(&mut command);
        }
        let output = command.output()?;
        let version = Version::parse(&String::from_utf8_lossy(&output.stdout))
            .filter(|version| output.status.success() && version.0 >= oldest)
            .ok_or_else(|| io::Error::other(format!("`postgres --version` says {output:?}")))?;
        Ok(Self { directory: directory.to_owned(), version })
    }
}

fn unusable(directory: &Path) -> impl FnOnce(io::Error) -> BinariesError {
    |source| BinariesError::Unusable { directory: directory.to_owned(), source }
}

impl Version {
    /// Parses `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` or `... 19devel`.
    fn parse(line: &str) -> Option<Self> {
        let number = line.split_once("(PostgreSQL) ")?.1;
        let mut parts = number.split(|character: char| !character.is_ascii_digit());
        let major = parts.next()?.parse().ok()?;
        Some(Self(major, parts.next().and_then(|minor| minor.parse().ok()).unwrap_or(0)))
    }
}

/// Returns the directories of PATH that have an `initdb`, with links resolved, because the server finds its libraries relative to its real
/// path.
fn on_path() -> Vec<PathBuf> {
    // PATH as any start of a program reads it; it is not configuration.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter_map(|directory| directory.join("initdb").canonicalize().ok())
        .filter_map(|initdb| initdb.parent().map(Path::to_owned))
        .collect()
}

fn named_by_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
    let directory = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (output.status.success() && directory.is_absolute()).then_some(directory)
}

/// Expands the one `*` of a pattern of [`USUAL_PLACES`].
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return vec![PathBuf::from(pattern)];
    };
    let Some((parent, prefix)) = before.rsplit_once('/') else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(after.trim_start_matches('/')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_packagers_make_of_it() {
        let of = |rest: &str| Version::parse(&format!("postgres (PostgreSQL) {rest}\n"));
        assert_eq!(of("15.18 (Debian 15.18-0+deb12u1)"), Some(Version(15, 18)));
        assert_eq!(of("17.5"), Some(Version(17, 5)));
        assert_eq!(of("19devel"), Some(Version(19, 0)));
        assert_eq!(of("nonsense"), None);
        assert_eq!(Version::parse("psql: not found"), None);
    }

    #[test]
    fn a_pattern_finds_what_is_there_and_nothing_else() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for name in ["pgsql-15", "pgsql-17", "mysql-8"] {
            std::fs::create_dir(root.path().join(name)).expect("a directory");
        }
        let mut found = expand(&format!("{}/pgsql-*/bin", root.path().display()));
        found.sort();
        assert_eq!(found, [root.path().join("pgsql-15/bin"), root.path().join("pgsql-17/bin")]);
        assert_eq!(expand("/nowhere/at/all/*/bin"), [] as [PathBuf; 0]);
    }
}
