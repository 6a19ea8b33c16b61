//! Tests `/metrics`: the values of the metrics, and that dashboard, alert rules and documentation name only metrics that exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use sqlx::Executor;

use lab::admin::{Admin, with_admin};
use lab::kafka::RealKafka;
use lab::{Missing, Outbox, Relay, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            the_alert_rules_hold_by_promtool,
            every_alert_says_what_is_the_matter_and_where_to_read_on;
        with_both:
            metrics_count_what_went_out_what_waits_and_what_failed,
            metrics_show_what_vacuum_waits_for_and_what_is_unscanned,
            dashboard_alerts_and_documentation_name_metrics_that_exist;
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(repository(path)).with_context(|| path.to_owned())
}

/// Returns the value of a sample, by its name with labels.
fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// Reads the metrics until all of these have that value.
async fn until(admin: &Admin, wanted: &[(&str, f64)]) -> String {
    eventually("the metrics say so", SOON * 2, || async {
        let text = admin.get("/metrics").await.map_err(|error| format!("{error:?}"))?.body;
        let seen: Vec<_> = wanted.iter().map(|(name, _)| (*name, value(&text, name))).collect();
        let all = wanted.iter().zip(&seen).all(|((_, wanted), (_, seen))| *seen == Some(*wanted));
        if all { Ok(text) } else { Err(format!("{seen:?}")) }
    })
    .await
}

async fn metrics_count_what_went_out_what_waits_and_what_failed(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write_backlog(300, 20).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers, topic, available_at) values \
             ('order', 'dead', 'X', '{}', '{\"a\": 1}', null, null), \
             ('order', 'held', 'X', '{}', '{}', 'never-created-for-metrics', null), \
             ('order', 'scheduled', 'X', '{}', '{}', null, now() + interval '1 day')",
        )
        .await?;
    let paused = Relay::bare().with("DATABASE_URL", database.url()).argument("--topic").argument("another");
    let paused = paused.argument("--reason").argument("a trial").output("pause").await?;
    ensure!(paused.code == Some(0), "{paused:?}");
    let relay = with_admin(outbox.relay(&kafka)).start_ready("counts").await?;
    let admin = Admin::from_relay(&relay).await?;
    let acknowledged = format!("outbox_relay_acknowledged_records_total{{topic=\"{}\"}}", outbox.topic);
    let text = until(
        &admin,
        &[
            ("outbox_relay_published_events_total", 300.0),
            (&acknowledged, 300.0),
            ("outbox_relay_insert_to_ack_seconds_count", 300.0),
            ("outbox_relay_pending_events", 0.0),
            ("outbox_relay_scheduled_events", 1.0),
            ("outbox_relay_held_events", 1.0),
            ("outbox_relay_dead_events", 1.0),
            ("outbox_relay_pauses{scope=\"topic\"}", 1.0),
            ("outbox_relay_pauses{scope=\"all\"}", 0.0),
            ("outbox_relay_failures_total{class=\"row\"}", 1.0),
            ("outbox_relay_failures_total{class=\"destination\"}", 1.0),
            ("outbox_relay_failures_total{class=\"outage\"}", 0.0),
            ("outbox_relay_owned_lanes", 16.0),
            ("outbox_relay_lanes", 16.0),
            ("outbox_relay_reachable{server=\"kafka\"}", 1.0),
            ("outbox_relay_reachable{server=\"postgres\"}", 1.0),
            // The held event waits, and no other event moves any more.
            ("outbox_relay_stalled{cause=\"topic\"}", 1.0),
            ("outbox_relay_stalled{cause=\"lock\"}", 0.0),
            ("outbox_relay_ready", 0.0),
        ],
    )
    .await;
    ensure!(value(&text, "outbox_relay_batches_total").is_some_and(|batches| batches >= 1.0), "{text}");
    ensure!(value(&text, "outbox_relay_insert_to_ack_seconds_sum").is_some_and(|sum| sum > 0.0), "{text}");
    ensure!(!text.contains("\"e1\"") && !text.contains("held\",entity"), "an entity is a label:\n{text}");
    Ok(())
}

async fn metrics_show_what_vacuum_waits_for_and_what_is_unscanned(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.execute("alter table event_outbox set (autovacuum_enabled = off)").await?;
    outbox.write("locked", 1, 1).await?;
    let mut open = outbox.connect().await?;
    open.execute("begin; select from event_outbox for update").await?;
    outbox.write_backlog(500, 20).await?;
    let relay = with_admin(outbox.relay(&kafka)).start_ready("vacuum").await?;
    let admin = Admin::from_relay(&relay).await?;
    outbox.until_published(500).await;
    let named = |text: &str, name: &str| value(text, &format!("outbox_relay_{name}"));
    eventually("unscanned ids, vacuum and dead rows are reported", SOON, || async {
        let text = admin.get("/metrics").await.map_err(|error| format!("{error:?}"))?.body;
        let lags = ["0", "1", "2"].map(|worker| named(&text, &format!("unscanned_events{{worker=\"{worker}\"}}")));
        let seen =
            ["vacuum_held_back_seconds", "dead_tuples", "looked_at_timestamp_seconds"].map(|name| named(&text, name));
        // The locked event holds its entity, but does not keep claims back.
        let scanned = lags.iter().flatten().any(|lag| *lag < 100.0);
        let reported = seen[0] > Some(1.0) && seen[1] >= Some(500.0) && seen[2] > Some(1e9);
        if scanned && reported { Ok(()) } else { Err(format!("{lags:?} {seen:?}")) }
    })
    .await;
    open.execute("rollback").await?;
    outbox.until_settled().await;
    Ok(())
}

/// Returns the names of our metrics in a text. A histogram's parts count as the histogram.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
    let names = words.filter(|word| word.starts_with("outbox_relay_"));
    names
        .map(|name| {
            ["_bucket", "_count", "_sum"].iter().fold(name, |name, part| name.trim_end_matches(part)).to_owned()
        })
        .collect()
}

async fn dashboard_alerts_and_documentation_name_metrics_that_exist(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = with_admin(outbox.relay(&kafka)).start_ready("named").await?;
    let admin = Admin::from_relay(&relay).await?;
    outbox.write("a", 1, 10).await?;
    let text = until(&admin, &[("outbox_relay_published_events_total", 10.0), ("outbox_relay_ready", 1.0)]).await;
    let families: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect();
    let samples: BTreeSet<_> =
        names_in(&text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n"));
    ensure!(families == samples, "{:?}", families.symmetric_difference(&samples).collect::<Vec<_>>());
    for path in ["deploy/grafana/outbox-relay.json", "deploy/prometheus/alerts.yml", "docs/reference/metrics.md"] {
        let named = names_in(&read(path)?);
        let unknown: Vec<_> = named.difference(&families).collect();
        ensure!(!named.is_empty() && unknown.is_empty(), "{path} names {unknown:?}, which /metrics does not have");
    }
    let documented = names_in(&read("docs/reference/metrics.md")?);
    let undocumented: Vec<_> = families.difference(&documented).collect();
    ensure!(undocumented.is_empty(), "docs/reference/metrics.md does not say what {undocumented:?} mean");
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/outbox-relay.json")?)?;
    ensure!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 10), "no panels");
    promtool(&["check", "metrics"], Some(text)).await
}

async fn the_alert_rules_hold_by_promtool() -> anyhow::Result<()> {
    let path = |name: &str| repository(&format!("deploy/prometheus/{name}")).display().to_string();
    for (rules, tests) in [("alerts.yml", "alerts_test.yml"), ("consumers.yml", "consumers_test.yml")] {
        promtool(&["check", "rules", &path(rules)], None).await?;
        promtool(&["test", "rules", &path(tests)], None).await?;
    }
    Ok(())
}

async fn every_alert_says_what_is_the_matter_and_where_to_read_on() -> anyhow::Result<()> {
    let rules = read("deploy/prometheus/alerts.yml")? + &read("deploy/prometheus/consumers.yml")?;
    let tests = read("deploy/prometheus/alerts_test.yml")? + &read("deploy/prometheus/consumers_test.yml")?;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default();
        for part in [
            "severity: ",
            "summary: ",
            "description: ",
            "runbook_url: '{{ or $externalLabels.outbox_runbook \"https://",
        ] {
            ensure!(rule.contains(part), "{name} has no {part}");
        }
        ensure!(tests.contains(&format!("alertname: {name}\n")), "no test of {name}");
    }
    Ok(())
}

/// Runs promtool with `input` on its stdin; returns [`Missing`] where promtool is not installed.
async fn promtool(arguments: &[&str], input: Option<String>) -> anyhow::Result<()> {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Missing("promtool is not installed (Debian: prometheus)".to_owned()).into());
        }
        child => child?,
    };
    std::io::Write::write_all(&mut child.stdin.take().context("stdin")?, input.unwrap_or_default().as_bytes())?;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "promtool {arguments:?}: {out}\n{err}");
    Ok(())
}
