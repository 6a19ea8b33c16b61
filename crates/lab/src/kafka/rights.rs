//! Sets rights on topics with Kafka's own Java client, because librdkafka's bindings cannot set them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::RealKafka;
use super::jars;

/// Properties of a broker that checks rights. Resources without a rule are open to everybody.
pub const MINDS_RIGHTS: &[(&str, &str)] = &[
    ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
    ("allow.everyone.if.no.acl.found", "true"),
];

impl RealKafka {
    /// Sets the right that everybody has on a topic: one operation, `ALL` or `NONE`. Needs a broker with [`MINDS_RIGHTS`].
    pub async fn set_rights(&self, topic: &str, operation: &str) -> anyhow::Result<()> {
        let mut command = Command::new("java");
        command
            .args(["-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp"])
            .arg(jars::directory()?.join("*"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kafka/Rights.java"))
            .args([&self.bootstrap(), topic, operation]);
        let output = tokio::task::spawn_blocking(move || command.output()).await?.context("java")?;
        ensure!(output.status.success(), "Rights: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
