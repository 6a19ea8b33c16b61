//! Fetches the jars of Debezium and Kafka Connect with Maven, once per user.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use lab::demo::cache_directory;

const POM: &str = include_str!("pom.xml");

/// Returns the directory of the jars. A copy of the pom is kept beside them; a changed pom fetches them again.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
    let cache = cache_directory().context("no home directory to keep Debezium's jars in")?;
    let directory = cache.join("debezium");
    if fs::read_to_string(directory.join("pom.xml")).is_ok_and(|pom| pom == POM) {
        return Ok(directory);
    }
    eprintln!("fetching Debezium and Kafka Connect");
    fs::create_dir_all(&cache)?;
    let staging = tempfile::Builder::new().prefix("debezium-").tempdir_in(&cache)?;
    fs::write(staging.path().join("pom.xml"), POM)?;
    let output = Command::new("mvn")
        .args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=."])
        .current_dir(staging.path())
        .stdin(Stdio::null())
        .output()
        .context("mvn")?;
    ensure!(
        output.status.success(),
        "mvn could not fetch Debezium: {}",
        String::from_utf8_lossy(&output.stdout).trim()
    );
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::rename(staging.keep(), &directory).context("cannot put Debezium's jars in place")?;
    Ok(directory)
}
