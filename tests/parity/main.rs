//! Compares records of a real Debezium connector with those of a relay behind the trigger of `outbox-relay import debezium`: `just
//! debezium-parity`. With `OUTBOX_RELAY_BLESS=1` it writes the connector's records to golden.json.
//!
//! - `cases`: the configurations, each with its table and its rows
//! - `connect`: the connector

mod cases;
mod connect;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::demo::{PostgresOptions, PrivatePostgres};
use lab::kafka::{RealKafka, Record};
use lab::{Outbox, eventually, long, trials};
use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};

use cases::Case;
use connect::Connect;

/// The partitions of a topic.
const PARTITIONS: i32 = 8;

/// The writers and the rounds of each case: all rows are written as often, and those of the first writer's first round become golden.
const WRITERS: usize = 3;
const ROUNDS: usize = 10;

/// The longest wait for the connectors, all of which read at once.
const READ_WITHIN: Duration = Duration::from_secs(180);

/// Headers that only one side sends, as docs/reference/debezium.md says.
const CONNECTORS_OWN: &str = "__debezium.context.";
const RELAYS_OWN: [&str; 4] = ["event-id", "event-type", "event-version", "sequence"];

fn main() -> ExitCode {
    lab::relay::use_binary(env!("CARGO_BIN_EXE_outbox-relay"));
    lab::run(Arguments::from_args(), long(trials()))
}

fn trials() -> Vec<Trial> {
    trials! { alone: the_relay_sends_what_the_connector_sent; }
}

/// A record beside its topic.
type Found = (String, Record);

/// The connector writes all its records first. Then the topics are made anew, and relays publish the rows that the triggers wrote meanwhile.
async fn the_relay_sends_what_the_connector_sent() -> anyhow::Result<()> {
    let only = std::env::var("OUTBOX_RELAY_CASE").ok();
    let cases: Vec<Case> = cases::cases()
        .into_iter()
        .filter(|case| only.as_ref().is_none_or(|only| case.name.contains(only.as_str())))
        .collect();
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
    let postgres = PrivatePostgres::start(options).await?;
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
    for one in &prepared {
        wrote.insert(
            one.case.name,
            one.read_of_connector(&kafka, &connect).await.with_context(|| one.case.name.to_owned())?,
        );
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
    let mut differences = Vec::new();
    for one in &prepared {
        let of_relay = one.publish(&kafka, &topics).await.with_context(|| one.case.name.to_owned())?;
        differences.extend(compare(one.case, &wrote[one.case.name], &of_relay));
        eprintln!(
            "{}: {} records of the connector, {} of the relay",
            one.case.name,
            wrote[one.case.name].len(),
            of_relay.len()
        );
    }
    if std::env::var_os("OUTBOX_RELAY_BLESS").is_some() && only.is_none() {
        bless(&cases, &wrote)?;
    }
    ensure!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.iter().take(60).cloned().collect::<Vec<_>>().join("\n")
    );
    postgres.stop().await;
    Ok(())
}

/// A case with its database, its trigger and its connector.
struct Prepared<'a> {
    case: &'a Case,
    outbox: Outbox,
    url: String,
    env: Vec<(String, String)>,
}

impl<'a> Prepared<'a> {
    async fn new(case: &'a Case, postgres: &PrivatePostgres, connect: &Connect) -> anyhow::Result<Self> {
        postgres
            .connect("postgres")
            .await?
            .execute(AssertSqlSafe(format!("create database \"{}\"", case.name)))
            .await?;
        let outbox = Outbox::on_database(postgres, case.name, case.name).await?;
        outbox.connect().await?.execute(sqlx::raw_sql(AssertSqlSafe(case.table.to_owned()))).await?;
        let url = postgres.url(case.name);
        let (_, rest) = url.split_once("://").context("a URL")?;
        let (login, _) = rest.split_once('@').context("a login")?;
        let (user, password) = login.split_once(':').context("a password")?;
        let options = case.options(Some((postgres.port(), user, password, case.name)));
        let directory = tempfile::tempdir()?;
        let [file, sql, env] = ["connector.json", "trigger.sql", "relay.env"].map(|name| directory.path().join(name));
        std::fs::write(&file, json!({"name": case.name, "config": options}).to_string())?;
        let imported = Command::new(lab::relay::binary())
            .env_clear()
            .env("DATABASE_URL", &url)
            .args(["import", "debezium"])
            .arg(&file)
            .arg("--sql")
            .arg(&sql)
            .arg("--env")
            .arg(&env)
            .output()?;
        ensure!(
            imported.status.success(),
            "{}{}",
            String::from_utf8_lossy(&imported.stdout),
            String::from_utf8_lossy(&imported.stderr)
        );
        let trigger = std::fs::read_to_string(sql)?;
        let trigger = format!("begin; {trigger} commit;");
        outbox.connect().await?.execute(sqlx::raw_sql(AssertSqlSafe(trigger))).await?;
        let env = std::fs::read_to_string(env)?;
        let env = env.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        connect.create(case.name, options)?;
        Ok(Self { case, outbox, url, env })
    }

    async fn until_reading(&self) {
        let active =
            format!("select count(*) from pg_replication_slots where slot_name = '{}' and active", self.case.name);
        eventually(self.case.name, READ_WITHIN, || async {
            match self.outbox.number(&active).await {
                Ok(1) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Writes the rows. Each writer has keys of its own, so that the order of its events is defined.
    async fn write(&self, (writers, rounds): (usize, usize)) -> anyhow::Result<()> {
        let writing = (0..writers).map(|writer| async move {
            let mut connection = self.outbox.connect().await?;
            for round in 0..rounds {
                for statement in self.case.statements(writer, round) {
                    let transaction = format!("begin; {statement}; commit");
                    connection.execute(sqlx::raw_sql(AssertSqlSafe(transaction))).await.context(statement)?;
                }
            }
            anyhow::Ok(())
        });
        for written in futures_util::future::join_all(writing).await {
            written?;
        }
        Ok(())
    }

    async fn records(&self, kafka: &RealKafka) -> anyhow::Result<Vec<Found>> {
        let mut found = Vec::new();
        for topic in kafka.topics()?.into_iter().filter(|topic| self.case.owns(topic)) {
            found.extend(kafka.read_topic(&topic).await?.into_iter().map(|record| (topic.clone(), record)));
        }
        Ok(found)
    }

    /// Reads what the connector wrote: everything, or nothing if the case is one at which it stops.
    async fn read_of_connector(&self, kafka: &RealKafka, connect: &Connect) -> anyhow::Result<Vec<Found>> {
        let events = usize::try_from(self.outbox.number("select count(*) from event_outbox").await?)?;
        let case = self.case;
        eventually(case.name, READ_WITHIN, || async {
            let (state, trace) = connect.task(case.name).map_err(|error| error.to_string())?;
            let found = self.records(kafka).await.map_err(|error| error.to_string())?.len();
            match (case.stops.is_some(), state.as_str()) {
                (true, "FAILED") => Ok(()),
                (false, "FAILED") => panic!("{}: the connector stopped: {trace}", case.name),
                (false, _) if found == events => Ok(()),
                _ => Err(format!("{state}, {found} of {events} records")),
            }
        })
        .await;
        self.records(kafka).await
    }

    /// Publishes the rows that the trigger has written, with the settings of `import`.
    async fn publish(&self, kafka: &RealKafka, topics: &BTreeSet<String>) -> anyhow::Result<Vec<Found>> {
        let mut own: BTreeSet<String> = topics.iter().filter(|topic| self.case.owns(topic)).cloned().collect();
        own.insert(format!("parity.{}.order", self.case.name));
        for topic in &own {
            kafka.create_topic(topic, PARTITIONS, &[]).await?;
        }
        let mut relay = lab::Relay::new(&self.url, &kafka.bootstrap());
        for (name, value) in &self.env {
            relay = relay.with(name, value);
        }
        let running = relay.start_ready(self.case.name).await?;
        self.outbox.until_settled().await;
        ensure!(running.stop().await? == Some(0));
        let dead = self.outbox.number("select count(*) from event_outbox where status = 'DEAD'").await?;
        ensure!(dead == 0, "{dead} events are DEAD");
        self.records(kafka).await
    }
}

/// Returns everything in which the records of the two differ, except for what `import` announces.
fn compare(case: &Case, connector: &[Found], relay: &[Found]) -> Vec<String> {
    if let Some((key, value)) = case.stops {
        let sent = |(_, record): &Found| {
            (record.key.as_deref() == Some(key.as_bytes())) && record.value.as_deref() == Some(value.as_bytes())
        };
        return match (connector, relay) {
            ([], [only]) if sent(only) => Vec::new(),
            _ => vec![format!("{}: the connector wrote {}, the relay {relay:?}", case.name, connector.len())],
        };
    }
    let id = |(_, record): &Found| record.header("id").unwrap_or("no header id").to_owned();
    let by_id = |found: &[Found]| found.iter().map(|one| (id(one), one.clone())).collect::<HashMap<_, _>>();
    let (left, right) = (by_id(connector), by_id(relay));
    let mut differences = Vec::new();
    let mut differ = |text: String| differences.push(format!("{}: {text}", case.name));
    if left.len() != connector.len() || right.len() != relay.len() {
        differ(format!("ids repeat: {} of {} and {} of {}", left.len(), connector.len(), right.len(), relay.len()));
    }
    for id in left.keys().filter(|id| !right.contains_key(*id)) {
        differ(format!("{id} is missing"));
    }
    for (id, ours) in &right {
        let Some(theirs) = left.get(id) else {
            differ(format!("{id} is only the relay's"));
            continue;
        };
        let show = |bytes: &Option<Vec<u8>>| {
            bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).chars().take(600).collect::<String>())
        };
        if theirs.0 != ours.0 {
            differ(format!("{id}: topic {} became {}", theirs.0, ours.0));
        }
        if theirs.1.key != ours.1.key {
            differ(format!("{id}: key {:?} became {:?}", show(&theirs.1.key), show(&ours.1.key)));
        }
        if theirs.1.value != ours.1.value {
            differ(format!("{id}: value {:?} became {:?}", show(&theirs.1.value), show(&ours.1.value)));
        }
        if theirs.1.partition != ours.1.partition && theirs.1.key.is_some() {
            differ(format!("{id}: partition {} became {}", theirs.1.partition, ours.1.partition));
        }
        let (a, b) = (headers(&theirs.1, CONNECTORS_OWN, &[]), headers(&ours.1, CONNECTORS_OWN, &RELAYS_OWN));
        let a: Vec<_> = a.into_iter().filter(|(name, _)| !RELAYS_OWN.contains(&name.as_str())).collect();
        if a != b {
            differ(format!("{id}: headers {a:?} became {b:?}"));
        }
        if case.options.get("transforms.outbox.table.field.event.timestamp").is_some()
            && theirs.1.timestamp != ours.1.timestamp
        {
            differ(format!("{id}: timestamp {:?} became {:?}", theirs.1.timestamp, ours.1.timestamp));
        }
    }
    // The order of each key that only one writer has.
    let is_shared = |key: &Option<Vec<u8>>| {
        let text = key.as_deref().map_or_else(String::new, |key| String::from_utf8_lossy(key).into_owned());
        ["", "\"\""].contains(&text.as_str()) || text.ends_with(":\"\"}")
    };
    let orders = |found: &[Found]| {
        let mut sorted: Vec<_> = found.iter().collect();
        sorted.sort_by_key(|(topic, record)| (topic.clone(), record.partition, record.offset));
        let mut orders: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for one in sorted.into_iter().filter(|(_, record)| !is_shared(&record.key)) {
            orders.entry((one.0.clone(), one.1.partition, one.1.key.clone())).or_default().push(id(one));
        }
        orders
    };
    if case.rows[0].contains("{w}") && orders(connector) != orders(relay) {
        differ("the order of a key differs".to_owned());
    }
    differences
}

/// Returns headers as sorted text, without those of one side and without those that have no value.
fn headers(record: &Record, prefix: &str, without: &[&str]) -> Vec<(String, String)> {
    let mut headers: Vec<_> = record
        .headers
        .iter()
        .filter(|(name, _)| !name.starts_with(prefix) && !without.contains(&name.as_str()))
        .filter_map(|(name, value)| Some((name.clone(), String::from_utf8_lossy(value.as_ref()?).into_owned())))
        .collect();
    headers.sort();
    headers
}

/// Writes the records of the first writer's first round.
fn bless(cases: &[Case], wrote: &BTreeMap<&str, Vec<Found>>) -> anyhow::Result<()> {
    let text = |bytes: &Option<Vec<u8>>| match bytes {
        None => Value::Null,
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
        },
    };
    let mut golden = serde_json::Map::new();
    for case in cases.iter().filter(|case| case.stops.is_none()) {
        let first: Vec<String> = case.statements(0, 0);
        let mut records: Vec<_> = wrote[case.name]
            .iter()
            .filter(|(_, record)| record.header("id").is_some_and(|id| first.iter().any(|row| row.contains(&uuid_in(id)))))
            .filter(|(_, record)| record.value.as_ref().is_none_or(|value| value.len() < 20_000))
            .map(|(topic, record)| {
                let headers: BTreeMap<_, _> = headers(record, CONNECTORS_OWN, &[]).into_iter().collect();
                json!({"topic": topic, "partition": record.partition, "key": text(&record.key), "value": text(&record.value), "headers": headers})
            })
            .collect();
        records.sort_by_key(|record| record["headers"]["id"].as_str().unwrap_or_default().to_owned());
        golden.insert(case.name.to_owned(), Value::Array(records));
    }
    let golden = json!({"connector": cases::CONNECTOR, "partitions": PARTITIONS, "cases": golden});
    std::fs::write(cases::golden(), serde_json::to_string_pretty(&golden)? + "\n")?;
    Ok(())
}

/// Returns the uuid in a header `id`, which may stand in other text.
fn uuid_in(id: &str) -> String {
    let is_part = |c: char| c.is_ascii_hexdigit() || c == '-';
    id.split(|c| !is_part(c))
        .map(|part| part.trim_start_matches('-'))
        .find(|part| part.len() == 36)
        .unwrap_or(id)
        .to_owned()
}
