//! Tests `outbox-relay bench`: it prints its metrics as JSON and leaves nothing behind. The tests do not judge the metrics.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use tokio::process::{Child, Command};

use lab::kafka::RealKafka;
use lab::{SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_bench_reports_its_metrics_as_json_and_removes_what_it_made,
            a_bench_of_retention_counts_what_the_relay_removed_meanwhile_apart,
            an_interrupted_bench_removes_what_it_made,
            a_killed_bench_takes_its_relays_along;
    }
}

async fn a_bench_reports_its_metrics_as_json_and_removes_what_it_made(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut command =
        bench(&database, &kafka, &["drain", "--events", "2000", "--json", "-", "--relay-set", "batch_size=500"]);
    // The bench ignores settings that are set for a relay of this machine.
    let output = command.env("RELAY_SCHEMA", "elsewhere").env("RELAY_BATCH_SIZE", "0").output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.stderr.is_empty(), "no terminal, no progress: {}", String::from_utf8_lossy(&output.stderr));
    lab::schemas::check(&["bench"], std::str::from_utf8(&output.stdout)?)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;

    ensure!(report["version"] == 1);
    ensure!(report["environment"]["relay_settings"] == serde_json::json!({"batch_size": "500"}), "{report}");
    ensure!(report["load"]["events"] == 2000 && report["load"]["entities"] == 10);
    let drain = &report["drain"];
    ensure!(drain["records"] == 2000 && drain["published"] == 2000, "{drain}");
    ensure!(drain["relay_summaries"][0]["published_total"] == 2000, "{drain}");
    for name in ["events_per_s", "events_per_s_from_start", "seconds", "first_record_after_ms"] {
        positive(drain, name)?;
    }
    for name in ["wal_bytes_per_event", "relay_cpu_us_per_event", "relay_peak_memory_bytes"] {
        positive(&drain["costs"], name)?;
    }
    for name in ["claim_and_mark_events_per_s", "claim_and_mark_wal_bytes_per_event", "produce_events_per_s"] {
        positive(&report["baseline"], name)?;
    }
    let run = report["run"].as_str().context("the run has no name")?;
    ensure!(run.starts_with("outbox_bench_"));
    nothing_is_left(&database, &kafka, run).await
}

async fn a_bench_of_retention_counts_what_the_relay_removed_meanwhile_apart(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let arguments = ["retention", "--events", "2000", "--retained", "3000", "--no-baseline", "--json", "-"];
    let output = bench(&database, &kafka, &arguments).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lab::schemas::check(&["bench"], std::str::from_utf8(&output.stdout)?)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let retention = &report["retention"];
    ensure!(retention["retained_rows"] == 3000 && retention["without"]["pruned"] == 0, "{retention}");
    for drain in [&retention["without"], &retention["with"]] {
        ensure!(drain["records"] == 2000 && drain["published"] == 2000, "{drain}");
    }
    // The number of pruned rows depends on the machine.
    ensure!(retention["with"]["pruned"].as_u64().is_some_and(|pruned| pruned <= 3000), "{retention}");
    positive(retention, "share_of_without")
}

async fn an_interrupted_bench_removes_what_it_made(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut running = idle_bench(&database, &kafka).await?;
    let made = schemas(&database).await?;
    ensure!(made.len() == 1 && topics(&kafka)?.contains(&made[0]), "{made:?}");
    signal(&running, "INT").await?;
    let status = running.wait().await?;
    ensure!(status.code() == Some(1), "{status}");
    nothing_is_left(&database, &kafka, &made[0]).await
}

async fn a_killed_bench_takes_its_relays_along(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut running = idle_bench(&database, &kafka).await?;
    running.kill().await?;
    eventually("the relays of a killed bench are gone", SOON, async || match relay_sessions(&database).await {
        Ok(0) => Ok(()),
        seen => Err(seen),
    })
    .await;
    // The bench can no longer remove its topics; the schema goes with the test's database.
    for topic in schemas(&database).await? {
        kafka.delete_topic(&topic).await?;
    }
    Ok(())
}

/// Starts a bench and waits until its relay runs.
async fn idle_bench(database: &TestDatabase, kafka: &RealKafka) -> anyhow::Result<Child> {
    let arguments = ["failover", "--no-baseline", "--rate", "10"];
    let running = bench(database, kafka, &arguments).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    eventually("the bench's relays are connected", SOON, async || match relay_sessions(database).await {
        Ok(1..) => Ok(()),
        seen => Err(seen),
    })
    .await;
    Ok(running)
}

async fn relay_sessions(database: &TestDatabase) -> anyhow::Result<i64> {
    let mut connection = database.connect().await?;
    let sql = "select count(*) from pg_stat_activity \
               where datname = current_database() and application_name like 'outbox-relay outbox_bench%'";
    Ok(sqlx::query_scalar(sql).fetch_one(&mut connection).await?)
}

async fn nothing_is_left(database: &TestDatabase, kafka: &RealKafka, run: &str) -> anyhow::Result<()> {
    let schemas = schemas(database).await?;
    ensure!(schemas.is_empty(), "{schemas:?}");
    // The broker removes a deleted topic a moment later.
    eventually("the bench's topics are gone", SOON, async || match topics(kafka) {
        Ok(topics) if !topics.iter().any(|topic| topic.starts_with(run)) => Ok(()),
        seen => Err(seen),
    })
    .await;
    Ok(())
}

/// Returns the schemas of benches. A bench's topic is named like its schema.
async fn schemas(database: &TestDatabase) -> anyhow::Result<Vec<String>> {
    let mut connection = database.connect().await?;
    let sql = "select nspname::text from pg_namespace where nspname like 'outbox\\_bench%'";
    Ok(sqlx::query_scalar(sql).fetch_all(&mut connection).await?)
}

fn topics(kafka: &RealKafka) -> anyhow::Result<Vec<String>> {
    let client: BaseConsumer = kafka.client().create()?;
    let metadata = client.fetch_metadata(None, Duration::from_secs(10))?;
    let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
    Ok(names.filter(|name| name.starts_with("outbox_bench_")).collect())
}

fn positive(object: &Value, name: &str) -> anyhow::Result<()> {
    let number = object[name].as_f64().with_context(|| format!("{name} is no number in {object}"))?;
    ensure!(number > 0.0, "{name} is {number}");
    Ok(())
}

fn bench(database: &TestDatabase, kafka: &RealKafka, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
    command
        .args(["bench", "--yes"])
        .args(arguments)
        .env("DATABASE_URL", database.url())
        .env("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap());
    command
}

async fn signal(process: &Child, name: &str) -> anyhow::Result<()> {
    let pid = process.id().context("the bench has ended")?;
    let status = Command::new("/bin/sh").args(["-c", &format!("kill -s {name} {pid}")]).status().await?;
    ensure!(status.success(), "kill: {status}");
    Ok(())
}
