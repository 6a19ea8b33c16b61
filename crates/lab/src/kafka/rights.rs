//! Rights on topics. librdkafka's bindings cannot set them, so this asks Kafka's own client.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::RealKafka;
use super::jars;

/// Properties of a broker that minds rights. Where there is no rule everything is allowed.
pub const MINDS_RIGHTS: &[(&str, &str)] = &[
    ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
    ("allow.everyone.if.no.acl.found", "true"),
];

impl RealKafka {
    /// What everybody may do with a topic from now on: one operation, `ALL` or `NONE`. Takes a broker that minds.
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
