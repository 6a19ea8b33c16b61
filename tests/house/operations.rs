//! Checks that what an operator reads agrees: runbook, dashboard, alert rules and metrics use the same names, and figures that stand in
//! several documents are the same figure.

use std::collections::BTreeSet;
use std::path::Path;

use event_outbox::code::Code;
use event_outbox::notice::Notice;

use crate::log_lines::documents;

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const DASHBOARD: &str = "deploy/grafana/outbox-relay.json";
const CONSUMER_ALERTS: &str = "deploy/prometheus/consumers.yml";
const CONSUMER_DASHBOARD: &str = "deploy/grafana/outbox-consumers.json";
const CONSUMER_REFERENCE: &str = "docs/reference/consumer.md";
const RUNBOOK: &str = "docs/how-to/runbook.md";

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of the repository")
}

/// Returns the words of a text that consist of these characters.
fn words(text: &str, belongs: impl Fn(char) -> bool) -> BTreeSet<&str> {
    text.split(|c: char| !belongs(c)).filter(|word| !word.is_empty()).collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

/// Returns the metrics of a relay that a text names. The parts of a histogram count as the histogram.
fn metrics(text: &str) -> BTreeSet<&str> {
    let names = words(text, is_name).into_iter().filter(|word| word.starts_with("outbox_relay_"));
    names
        .map(|name| ["_bucket", "_count", "_sum"].iter().fold(name, |name, part| name.trim_end_matches(part)))
        .collect()
}

/// Returns the names that follow `before`, up to the end of the line.
fn after<'t>(text: &'t str, before: &str) -> BTreeSet<&'t str> {
    text.split(before).skip(1).filter_map(|rest| rest.lines().next()).map(str::trim).collect()
}

#[test]
fn every_alert_has_its_entry_in_the_runbook_and_links_to_it() {
    let (alerts, runbook) = (read(ALERTS) + &read(CONSUMER_ALERTS), read(RUNBOOK));
    let named = after(&alerts, "- alert: ");
    let entries: BTreeSet<_> =
        after(&runbook, "\n### ").into_iter().filter(|heading| heading.starts_with("Outbox")).collect();
    assert!(named.len() > 10 && named == entries, "{:?}", named.symmetric_difference(&entries).collect::<Vec<_>>());
    for rule in alerts.split("- alert: ").skip(1) {
        let (name, link) = (rule.lines().next().unwrap_or_default().trim(), after(rule, "runbook_url: "));
        let link = link.first().copied().unwrap_or_default();
        let anchor = format!("#{}'", name.to_lowercase());
        assert!(
            link.starts_with("'{{ or $externalLabels.outbox_runbook \"https://"),
            "{name} has no absolute link: {link}"
        );
        assert!(link.ends_with(&anchor), "{name} links to {link}");
    }
}

#[test]
fn runbook_dashboard_alerts_and_documents_name_metrics_that_exist() {
    let reference = read("docs/reference/metrics.md");
    let known = metrics(&reference);
    for path in [ALERTS, DASHBOARD, RUNBOOK, "docs/how-to/monitor.md", "docs/how-to/size.md"] {
        let text = read(path);
        let unknown: Vec<_> = metrics(&text).difference(&known).copied().collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}, which /metrics does not have");
    }
    let dashboard = read(DASHBOARD);
    let shown = metrics(&dashboard);
    let alerts = read(ALERTS);
    let alone: Vec<_> = metrics(&alerts).difference(&shown).copied().filter(|name| !name.ends_with("_info")).collect();
    assert!(alone.is_empty(), "alerts use {alone:?}, which the dashboard does not show");
}

/// Returns the metrics of a consumer that a text names.
fn consumer_metrics(text: &str) -> BTreeSet<&str> {
    words(text, is_name).into_iter().filter(|word| word.starts_with("outbox_consumer_")).collect()
}

#[tokio::test]
async fn consumers_write_the_metrics_that_documents_dashboard_and_alerts_name() {
    let pool = sqlx::PgPool::connect_lazy("postgres://localhost/none").expect("a URL");
    let text = event_outbox::consumer::Consumer::new("billing", pool).stats().to_prometheus();
    let written = consumer_metrics(&text);
    assert!(written.len() > 15, "{written:?}");
    let reference = read(CONSUMER_REFERENCE);
    assert_eq!(consumer_metrics(&reference), written, "{CONSUMER_REFERENCE}");
    let (alerts, dashboard, runbook) = (read(CONSUMER_ALERTS), read(CONSUMER_DASHBOARD), read(RUNBOOK));
    assert_eq!(consumer_metrics(&dashboard), written, "{CONSUMER_DASHBOARD}");
    for text in [&alerts, &runbook] {
        assert!(consumer_metrics(text).is_subset(&written), "{:?}", consumer_metrics(text).difference(&written));
    }
}

#[test]
fn alerts_name_log_lines_codes_and_commands_that_exist() {
    let alerts = read(ALERTS) + &read(CONSUMER_ALERTS);
    let notices: BTreeSet<String> = Notice::ALL.iter().map(Notice::to_string).collect();
    let codes: BTreeSet<String> = Code::ALL.iter().map(Code::to_string).collect();
    let commands = read("docs/reference/commands.md");
    for line in alerts.lines().filter(|line| line.trim_start().starts_with("description: ")) {
        let lines = words(line, is_name)
            .into_iter()
            .filter(|word| word.trim_matches('_').contains('_') && !word.starts_with("outbox_"));
        for notice in lines {
            assert!(notices.contains(notice), "no log line is called {notice}: {line}");
        }
        for code in
            words(line, |c| c.is_ascii_alphanumeric() || c == '-').into_iter().filter(|word| word.starts_with("OR-"))
        {
            assert!(codes.contains(code), "there is no code {code}: {line}");
        }
        for command in line.split("`outbox-relay ").skip(1).filter_map(|rest| rest.split([' ', '`']).next()) {
            assert!(
                commands.contains(&format!("Usage: outbox-relay {command} ")),
                "there is no command {command}: {line}"
            );
        }
    }
}

#[test]
fn the_wal_of_an_event_is_one_number_in_all_documents() {
    let mut figures = BTreeSet::new();
    for text in documents() {
        let lines =
            text.lines().filter(|line| line.contains("WAL") && line.contains("event") && line.contains(" bytes"));
        for line in lines {
            let before = line.split(" bytes").next().unwrap_or_default();
            figures.insert(before.rsplit(' ').next().unwrap_or_default().to_owned());
        }
    }
    assert_eq!(figures, BTreeSet::from(["890".to_owned()]));
}
