//! Compares records of a real Debezium connector with those of a relay behind the trigger of `outbox-relay import debezium`: `just
//! debezium-parity`. With `OUTBOX_RELAY_BLESS=1` it writes the connector's records to golden.json, to which the suite `main` holds the relay
//! without a connector.
//!
//! - `cases`, `tables`, `differing`: the configurations, each with its table and its rows
//! - `connect`: the connector
//! - `prepared`: a case with its database, its trigger and its connector
//! - `records`: the comparison
//! - `golden`: the file
//! - `load`: both beside each other while an application writes
//! - `cut`: the page about leaving Debezium

#[expect(dead_code, reason = "the switch from a polling loop uses the rest")]
#[path = "../main/switch/application.rs"]
mod application;
mod cases;
mod connect;
mod cut;
mod differing;
#[expect(dead_code, reason = "the suite `main` runs pages without a connector")]
#[path = "../main/documents.rs"]
mod documents;
#[expect(dead_code, reason = "only the suite `main` reads the file")]
mod golden;
mod load;
#[expect(dead_code, reason = "the stand-in for a connector uses the rest")]
#[path = "../main/switch/page.rs"]
mod page;
mod prepared;
mod records;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use lab::demo::{PostgresOptions, PrivatePostgres};
use lab::kafka::RealKafka;
use lab::{eventually, long, trials};
use libtest_mimic::{Arguments, Trial};

use cases::Case;
use connect::Connect;
use cut::the_page_about_debezium_works_with_a_real_connector;
use golden::Golden;
use load::the_relay_keeps_the_connectors_records_and_order_under_load;
use prepared::{Found, Prepared};
use records::{LONG, Sent, compare};

/// The partitions of a topic.
const PARTITIONS: i32 = 8;

/// The writers and the rounds of each case: all rows are written as often, and those of the first writer's first round become golden.
const WRITERS: usize = 3;
const ROUNDS: usize = 10;

fn main() -> ExitCode {
    lab::relay::use_binary(env!("CARGO_BIN_EXE_outbox-relay"));
    lab::run(Arguments::from_args(), long(trials()))
}

fn trials() -> Vec<Trial> {
    trials! {
        alone:
            the_relay_sends_what_the_connector_sent,
            the_relay_keeps_the_connectors_records_and_order_under_load,
            the_page_about_debezium_works_with_a_real_connector;
    }
}

/// Starts a Kafka and a Postgres for connectors.
async fn servers() -> anyhow::Result<(RealKafka, PrivatePostgres)> {
    let partitions = PARTITIONS.to_string();
    let kafka = RealKafka::start(&[
        ("num.partitions", &partitions),
        ("auto.create.topics.enable", "true"),
        ("message.max.bytes", "4000000"),
    ])?;
    let settings = [("wal_level", "logical"), ("max_replication_slots", "60"), ("max_wal_senders", "60")];
    let options = PostgresOptions {
        durable: false,
        max_connections: 300,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..PostgresOptions::default()
    };
    Ok((kafka, PrivatePostgres::start(options).await?))
}

/// The connector writes all its records first. Then the topics are made anew, and relays publish the rows that the triggers wrote meanwhile.
async fn the_relay_sends_what_the_connector_sent() -> anyhow::Result<()> {
    let only = std::env::var("OUTBOX_RELAY_CASE").ok();
    let cases: Vec<Case> = cases::cases()
        .into_iter()
        .filter(|case| only.as_ref().is_none_or(|only| case.name.contains(only.as_str())))
        .collect();
    let (kafka, postgres) = servers().await?;
    let connect = Connect::start(&kafka.bootstrap()).await?;
    let mut prepared = Vec::new();
    for case in &cases {
        prepared.push(Prepared::new(case, &postgres, &connect).await.with_context(|| case.name.to_owned())?);
    }
    for one in &prepared {
        one.until_reading().await;
        one.write(if one.case.stops.is_some() { (1, 1) } else { (WRITERS, ROUNDS) })
            .await
            .with_context(|| one.case.name.to_owned())?;
    }
    let mut wrote = BTreeMap::new();
    let mut differences = Vec::new();
    for one in &prepared {
        let name = one.case.name;
        match one.read_of_connector(&kafka, &connect).await.with_context(|| name.to_owned())? {
            Ok(found) => drop(wrote.insert(name, found)),
            Err(trouble) => differences.push(format!("{name}: {trouble}")),
        }
    }
    connect.stop();
    let topics: BTreeSet<String> =
        kafka.topics()?.into_iter().filter(|topic| cases.iter().any(|case| case.owns(topic))).collect();
    for topic in &topics {
        kafka.delete_topic(topic).await?;
    }
    eventually("the topics are gone", lab::SOON, || async {
        let left: Vec<_> = kafka
            .topics()
            .map_err(|error| error.to_string())?
            .into_iter()
            .filter(|topic| topics.contains(topic))
            .collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    for one in &prepared {
        let Some(of_connector) = wrote.get(one.case.name) else { continue };
        let of_relay = one.publish(&kafka, &topics).await.with_context(|| one.case.name.to_owned())?;
        eprintln!(
            "{}: {} records of the connector, {} of the relay",
            one.case.name,
            of_connector.len(),
            of_relay.len()
        );
        let sent = |found: &[Found]| -> Vec<Sent> {
            found.iter().map(|(topic, record)| Sent::new(one.case, topic, record, usize::MAX)).collect()
        };
        differences.extend(compare(one.case, &sent(of_connector), &sent(&of_relay)));
    }
    ensure!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.iter().take(200).cloned().collect::<Vec<_>>().join("\n")
    );
    if std::env::var_os("OUTBOX_RELAY_BLESS").is_some() && only.is_none() {
        bless(&cases, &wrote, &postgres).await?;
    }
    postgres.stop().await;
    Ok(())
}

/// Writes golden.json.
async fn bless(cases: &[Case], wrote: &BTreeMap<&str, Vec<Found>>, postgres: &PrivatePostgres) -> anyhow::Result<()> {
    let of_cases = cases.iter().filter(|case| case.stops.is_none()).map(|case| {
        let sent = wrote[case.name].iter().map(|(topic, record)| Sent::new(case, topic, record, LONG)).collect();
        (case.name.to_owned(), Golden::first_round(case, sent))
    });
    let java = Command::new("java").arg("-version").output()?.stderr;
    let java = String::from_utf8_lossy(&java).split('"').nth(1).context("the version of Java")?.to_owned();
    let sql = "select split_part(current_setting('server_version'), ' ', 1)";
    let server: String = sqlx::query_scalar(sql).fetch_one(&mut postgres.connect("postgres").await?).await?;
    let versions = [
        ("Debezium", connect::version_of("debezium-connector-postgres")?),
        ("Kafka Connect", connect::version_of("connect-runtime")?),
        ("Java", java),
        ("PostgreSQL", server),
    ];
    let versions = versions.map(|(name, version)| (name.to_owned(), version)).into();
    Golden { versions, partitions: PARTITIONS, cases: of_cases.collect() }.write()
}
