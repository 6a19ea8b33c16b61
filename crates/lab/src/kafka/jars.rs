//! Fetches jars with Maven, once per user: those of Kafka, and of programs beside it.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::demo::cache_directory;
use anyhow::{Context, ensure};

const POM: &str = include_str!("pom.xml");

/// The reason why this machine has no real Kafka.
#[derive(Debug, Clone)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Returns the directory of the jars, and fetches them first if they are missing.
pub(super) fn directory() -> Result<PathBuf, Unavailable> {
    runs("java", "-version")?;
    let cache = cache_directory().ok_or_else(|| Unavailable("no home directory to keep Kafka's jars in".to_owned()))?;
    let directory = cache.join("kafka-4.1.1");
    fetch_once(&cache, &directory, "Kafka", POM).map_err(|error| Unavailable(format!("{error:#}")))?;
    Ok(directory)
}

/// Returns the directory `name` of the user's cache with the dependencies of `pom`, and fetches them first if they are missing. `what` names
/// the program that they are of.
///
/// # Errors
/// Returns an error if there is no home directory, or if Maven is missing or fails.
pub fn fetched(name: &str, what: &str, pom: &str) -> anyhow::Result<PathBuf> {
    let cache = cache_directory().with_context(|| format!("no home directory to keep {what}'s jars in"))?;
    let directory = cache.join(name);
    if !is_complete(&directory, pom) {
        eprintln!("fetching {what}");
    }
    fetch_once(&cache, &directory, what, pom)?;
    Ok(directory)
}

fn fetch_once(cache: &Path, directory: &Path, what: &str, pom: &str) -> anyhow::Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("{} cannot be written", cache.display()))?;
    // Several suites may run at once. The lock ends with its process.
    let lock = File::create(cache.join(format!("{}.lock", what.to_lowercase())))?;
    lock.lock()?;
    if is_complete(directory, pom) {
        return Ok(());
    }
    runs("mvn", "-version")?;
    fetch(cache, directory, what, pom)
}

/// Returns true if the directory has the jars of this pom. A copy of the pom beside the jars says which ones they are.
fn is_complete(directory: &Path, pom: &str) -> bool {
    fs::read_to_string(directory.join("pom.xml")).is_ok_and(|found| found == pom)
}

fn fetch(cache: &Path, directory: &Path, what: &str, pom: &str) -> anyhow::Result<()> {
    let staging = tempfile::Builder::new().prefix("jars-").tempdir_in(cache)?;
    fs::write(staging.path().join("pom.xml"), pom)?;
    let output = Command::new("mvn")
        .args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=."])
        .current_dir(staging.path())
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "mvn could not fetch {what}: {}", String::from_utf8_lossy(&output.stdout).trim());
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::rename(staging.keep(), directory).with_context(|| format!("cannot put {what}'s jars in place"))
}

/// Runs the program, because finding it is not enough: macOS has a `java` that only reports that no Java is installed.
fn runs(program: &str, argument: &str) -> Result<(), Unavailable> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Unavailable(format!("{program} does not run ({})", output.status))),
        Err(_) => Err(Unavailable(format!("{program} not found"))),
    }
}
