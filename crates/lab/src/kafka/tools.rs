//! Provides Kafka's command-line tools that documents use, for tests that run the documents' commands.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::jars;

/// Writes a `kafka-topics.sh` into `directory`, which belongs on the PATH of the commands.
///
/// # Errors
/// An error if this machine has no Kafka, or if the file cannot be written.
pub fn install_tools(directory: &Path) -> anyhow::Result<()> {
    let class_path = jars::directory()?.join("*");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kafka/Topics.java");
    let script = format!(
        "#!/bin/sh\nexec java -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp '{}' '{}' \"$@\"\n",
        class_path.display(),
        source.display()
    );
    let path = directory.join("kafka-topics.sh");
    fs::write(&path, script)?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}
