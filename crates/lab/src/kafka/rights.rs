//! Sets rights on topics, groups and transactional ids with Kafka's own Java client, because librdkafka's bindings cannot set them.

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
        self.change_rights(["TOPIC", "LITERAL", topic], operation).await
    }

    /// Does the same for all groups or transactional ids (`GROUP`, `TRANSACTIONAL_ID`) that begin with `prefix`.
    pub async fn set_rights_on_all(&self, kind: &str, prefix: &str, operation: &str) -> anyhow::Result<()> {
        self.change_rights([kind, "PREFIXED", prefix], operation).await
    }

    async fn change_rights(&self, on: [&str; 3], operation: &str) -> anyhow::Result<()> {
        let mut command = Command::new("java");
        command
            .args(["-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp"])
            .arg(jars::directory()?.join("*"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kafka/Rights.java"))
            .arg(self.bootstrap())
            .args(on)
            .arg(operation);
        let output = tokio::task::spawn_blocking(move || command.output()).await?.context("java")?;
        ensure!(output.status.success(), "Rights: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
