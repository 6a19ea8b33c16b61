//! Runs `outbox-relay check`, and the same check beside a relay that starts.

use std::time::Duration;

use clap::Args;

use super::exit::Failure;
use super::{output, runtime, target};
use crate::config::Settings;
use crate::inspect::check::{self, Finding, Report, Scope, Severity};
use crate::observe::terminal::{Tone, paint};
use crate::text;
use event_outbox::notice::Notice;

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Exit 1 for warnings as well
    #[arg(long)]
    strict: bool,
    /// Report transactions that are older than this
    #[arg(long, default_value = "5m", value_name = "AGE", value_parser = humantime::parse_duration)]
    transaction_age: Duration,
    /// Check this topic as well, for example before the first event; may be repeated
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,
}

impl Check {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        let scope = Scope { transaction: self.transaction_age, topics: self.topics };
        let report = runtime()?.block_on(check::run(settings, &scope));
        if self.json {
            output::json(&report)?;
        } else {
            output::text(&shown(&report, settings));
        }
        let enough = if self.strict { Severity::Warning } else { Severity::Error };
        let count = report.findings.iter().filter(|finding| finding.severity >= enough).count();
        match report.worst() {
            Some(worst) if worst >= enough => {
                let noun = if count == 1 { "finding" } else { "findings" };
                Err(Failure::finding(format!("{count} {noun} to be fixed"))
                    .hint("each finding names its fix; docs/reference/findings.md lists them all"))
            }
            _ => Ok(()),
        }
    }
}

fn shown(report: &Report, settings: &Settings) -> String {
    let brokers = settings.kafka.as_ref().map_or("no brokers", |kafka| kafka.brokers());
    let mut text =
        format!("{} in {}, {brokers}\n", target::names(&settings.outbox).outbox(), settings.database.target());
    for passed in &report.passed {
        text += &format!("\nok       {passed}");
    }
    for unchecked in &report.unchecked {
        text += &format!("\nskipped  {unchecked}");
    }
    text += "\n";
    for Finding { code, id, severity, message, fix } in &report.findings {
        let tone = match severity {
            Severity::Error => Tone::Bad,
            Severity::Warning => Tone::Doubtful,
            Severity::Note => Tone::Strong,
        };
        let (severity, message) = (paint(tone, format!("{severity:<8}")), text::sentence(message));
        text += &format!("\n{severity} {code} {id}\n  {message}\n  fix: {fix}\n");
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings, notes) = (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
    text + &format!("\n{errors} errors, {warnings} warnings, {notes} notes\n")
}

/// The pause before the check is repeated because Postgres or Kafka did not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Runs the check beside a relay that starts, and logs its findings. The relay does not wait for the check. Findings that stop
/// the relay, or that are an outage, are left out here: the relay logs them itself.
pub(super) async fn preflight(settings: Settings) {
    let mut report = check::run(&settings, &Scope::default()).await;
    while report.is_incomplete() {
        tokio::time::sleep(LOOK_AGAIN).await;
        report = check::run(&settings, &Scope::default()).await;
    }
    for finding in report.beyond_the_fatal() {
        log(finding);
    }
    tracing::debug!(findings = report.findings.len(), "the check has ended");
}

fn log(finding: &Finding) {
    let Finding { code, id, severity, message, fix } = finding;
    match severity {
        Severity::Error => tracing::error!(
            code = %code,
            notice = %Notice::CheckFinding,
            finding = id,
            reason = message,
            next_step = fix,
            "the check at start has a finding"
        ),
        Severity::Warning => tracing::warn!(
            code = %code,
            notice = %Notice::CheckFinding,
            finding = id,
            reason = message,
            next_step = fix,
            "the check at start has a finding"
        ),
        Severity::Note => tracing::info!(
            code = %code,
            notice = %Notice::CheckFinding,
            finding = id,
            reason = message,
            next_step = fix,
            "the check at start has a finding"
        ),
    }
}
