//! `outbox-relay check`.

use std::time::Duration;

use clap::Args;

use super::exit::Failure;
use super::{migrate, runtime};
use crate::check::{self, Limits, Report, Severity};
use crate::config::Settings;

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Print the findings as one JSON object
    #[arg(long)]
    json: bool,
    /// Exit 1 for warnings as well
    #[arg(long)]
    strict: bool,
    /// Age of a transaction that is a finding
    #[arg(long, default_value = "5m", value_name = "AGE", value_parser = humantime::parse_duration)]
    transaction_age: Duration,
}

impl Check {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        let limits = Limits { transaction: self.transaction_age };
        let report = runtime()?.block_on(check::run(settings, limits));
        if self.json {
            let text = serde_json::to_string_pretty(&report)
                .map_err(|error| Failure::unexpected("the findings cannot be written as JSON", error))?;
            println!("{text}");
        } else {
            print(&report, settings);
        }
        let enough = if self.strict { Severity::Warning } else { Severity::Error };
        let count = report.findings.iter().filter(|finding| finding.severity >= enough).count();
        match report.worst() {
            Some(worst) if worst >= enough => {
                let noun = if count == 1 { "finding" } else { "findings" };
                Err(Failure::finding(format!("{count} {noun} to be mended"))
                    .hint("each finding names what mends it; docs/operations.md, \"check\", lists them all"))
            }
            _ => Ok(()),
        }
    }
}

fn print(report: &Report, settings: &Settings) {
    let brokers = settings.kafka.as_ref().map_or("no brokers", |kafka| kafka.brokers());
    println!("{} in {}, {brokers}", migrate::names(&settings.outbox).outbox(), settings.database.target());
    for finding in &report.findings {
        println!("\n{:<8} {}\n  {}\n  mend: {}", finding.severity, finding.id, finding.sentence, finding.mend);
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    println!(
        "\n{} errors, {} warnings, {} notes",
        count(Severity::Error),
        count(Severity::Warning),
        count(Severity::Note)
    );
}

/// How long to wait for servers that are away before looking again.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// The check of a relay that starts: beside it, so that it waits for nothing, and told in its log. What stops the relay altogether,
/// or is an outage, it tells itself.
pub(super) async fn preflight(settings: Settings) {
    let mut report = check::run(&settings, Limits::default()).await;
    while report.is_incomplete() {
        tokio::time::sleep(LOOK_AGAIN).await;
        report = check::run(&settings, Limits::default()).await;
    }
    for finding in report.beyond_the_fatal() {
        let (id, next_step) = (finding.id, &finding.mend);
        match finding.severity {
            Severity::Error => tracing::error!(finding = id, next_step, "check: {}", finding.sentence),
            Severity::Warning => tracing::warn!(finding = id, next_step, "check: {}", finding.sentence),
            Severity::Note => tracing::info!(finding = id, next_step, "check: {}", finding.sentence),
        }
    }
    tracing::debug!(findings = report.findings.len(), "the check has ended");
}
