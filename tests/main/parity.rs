//! Holds the relay to what a real Debezium connector wrote, without a connector: tests/parity/golden.json has its records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use lab::kafka::RealKafka;
use lab::{Outbox, Relay, TestDatabase, trials};
use libtest_mimic::Trial;

use crate::documents::document;
use crate::import::{apply, take_over};

#[path = "../parity/cases.rs"]
pub(crate) mod cases;
#[path = "../parity/differing.rs"]
mod differing;
#[expect(dead_code, reason = "only a run with a connector writes the file")]
#[path = "../parity/golden.rs"]
mod golden;
#[path = "../parity/records.rs"]
mod records;
#[path = "../parity/tables.rs"]
mod tables;

use cases::Case;
use golden::Golden;
use records::{LONG, Sent, compare};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone: the_page_names_the_versions_that_wrote_the_records;
        with_both: the_relay_writes_what_a_real_connector_wrote;
    }
}

/// Applies a case's trigger to its table, and writes the rows. Returns the settings that `import` writes.
async fn write_rows(outbox: &Outbox, relay: &Relay, case: &Case) -> anyhow::Result<BTreeMap<String, String>> {
    let directory = tempfile::tempdir()?;
    let env = directory.path().join("relay.env");
    let undo = take_over(outbox, relay, case, &["--env", env.to_str().context("a path")?]).await?;
    for statement in case.statements(0, 0) {
        apply(outbox, &statement).await?;
    }
    apply(outbox, &undo).await?;
    apply(outbox, "drop table if exists outbox; drop type if exists mood; drop schema if exists shop cascade").await?;
    let env = fs::read_to_string(env)?;
    let settings = env.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    Ok(settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

async fn the_relay_writes_what_a_real_connector_wrote(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let golden = Golden::read()?;
    let (outbox, asked) = (Outbox::from_database(&database), Relay::bare().with("DATABASE_URL", database.url()));
    let cases: Vec<_> = cases::cases().into_iter().filter(|case| case.stops.is_none()).collect();
    let (names, known): (BTreeSet<_>, BTreeSet<_>) =
        (cases.iter().map(|case| case.name).collect(), golden.cases.keys().map(String::as_str).collect());
    ensure!(names == known, "golden.json has the cases {known:?}, not {names:?}: just debezium-parity writes it");
    for topic in golden.cases.values().flatten().map(|record| &record.topic).collect::<BTreeSet<_>>() {
        kafka.create_topic(topic, golden.partitions, &[]).await?;
    }
    // Cases with the same settings share a relay.
    for with_timestamp in [false, true] {
        let mut settings = BTreeSet::new();
        for case in cases.iter().filter(|case| case.has_timestamp() == with_timestamp) {
            settings.insert(write_rows(&outbox, &asked, case).await.with_context(|| case.name.to_owned())?);
        }
        let settings: Vec<_> = settings.into_iter().collect();
        let [settings] = settings.as_slice() else { bail!("several settings: {settings:?}") };
        let relay = Relay::new(&database.url(), &kafka.bootstrap());
        let relay = settings.iter().fold(relay, |relay, (name, value)| relay.with(name, value));
        let running = relay.start_ready("parity").await?;
        outbox.until_settled().await;
        ensure!(running.stop().await? == Some(0));
    }
    outbox.all_published().await?;
    let topics = kafka.topics()?;
    let mut differences = Vec::new();
    for case in &cases {
        let mut sent = Vec::new();
        for topic in topics.iter().filter(|topic| case.owns(topic)) {
            let records = kafka.read_topic(topic).await?;
            sent.extend(records.iter().map(|record| Sent::new(case, topic, record, LONG)));
        }
        differences.extend(compare(case, &golden.cases[case.name], &sent));
    }
    ensure!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    Ok(())
}

/// A new connector needs a new run of the matrix, and the page says what was run.
async fn the_page_names_the_versions_that_wrote_the_records() -> anyhow::Result<()> {
    let (golden, page) = (Golden::read()?, document("docs/reference/debezium.md")?);
    let pom = include_str!("../parity/pom.xml");
    for (program, version) in &golden.versions {
        ensure!(page.contains(&format!("{program} {version}")), "the page does not name {program} {version}");
    }
    for program in ["Debezium", "Kafka Connect"] {
        let version = golden.versions.get(program).context(program)?;
        ensure!(pom.contains(&format!("<version>{version}</version>")), "the POM has another {program} than {version}");
    }
    Ok(())
}
