//! Prepares a case: a database with the application's table and the trigger, and a connector.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::demo::PrivatePostgres;
use lab::kafka::{RealKafka, Record};
use lab::{Outbox, Relay, eventually};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor};

use crate::PARTITIONS;
use crate::cases::{Case, Stop};
use crate::connect::Connect;

/// The longest wait for the connectors, all of which read at once.
const READ_WITHIN: Duration = Duration::from_secs(180);

/// A record beside its topic.
pub(crate) type Found = (String, Record);

/// A case with its database, its trigger and its connector.
pub(crate) struct Prepared<'a> {
    pub(crate) case: &'a Case,
    pub(crate) outbox: Outbox,
    url: String,
    env: Vec<(String, String)>,
}

impl<'a> Prepared<'a> {
    pub(crate) async fn new(case: &'a Case, postgres: &PrivatePostgres, connect: &Connect) -> anyhow::Result<Self> {
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

    pub(crate) async fn until_reading(&self) {
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
    pub(crate) async fn write(&self, (writers, rounds): (usize, usize)) -> anyhow::Result<()> {
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

    /// Reads what the connector wrote: everything, or nothing if the case is one at which it stops. An inner error says how it differs.
    pub(crate) async fn read_of_connector(
        &self,
        kafka: &RealKafka,
        connect: &Connect,
    ) -> anyhow::Result<Result<Vec<Found>, String>> {
        let events = usize::try_from(self.outbox.number("select count(*) from event_outbox").await?)?;
        let case = self.case;
        let deadline = Instant::now() + READ_WITHIN;
        let trouble = eventually(case.name, READ_WITHIN + lab::SOON, || async {
            let (state, trace) = connect.task(case.name).map_err(|error| error.to_string())?;
            let found = self.records(kafka).await.map_err(|error| error.to_string())?.len();
            match (case.stops.is_some(), state.as_str()) {
                (true, "FAILED") => Ok(None),
                (false, "FAILED") => {
                    Ok(Some(format!("the connector stopped after {found} of {events} records: {trace}")))
                }
                (false, _) if found == events => Ok(None),
                _ if Instant::now() > deadline => {
                    Ok(Some(format!("the connector is {state} and wrote {found} of {events} records")))
                }
                _ => Err(format!("{state}, {found} of {events} records")),
            }
        })
        .await;
        match trouble {
            Some(trouble) => Ok(Err(trouble)),
            None => Ok(Ok(self.records(kafka).await?)),
        }
    }

    /// Returns a relay with the settings of `import`.
    pub(crate) fn relay(&self, kafka: &RealKafka) -> Relay {
        let relay = Relay::new(&self.url, &kafka.bootstrap());
        self.env.iter().fold(relay, |relay, (name, value)| relay.with(name, value))
    }

    /// Publishes the rows that the trigger has written, with the settings of `import`.
    pub(crate) async fn publish(&self, kafka: &RealKafka, topics: &BTreeSet<String>) -> anyhow::Result<Vec<Found>> {
        let mut own: BTreeSet<String> = topics.iter().filter(|topic| self.case.owns(topic)).cloned().collect();
        own.insert(format!("parity.{}.order", self.case.name));
        for topic in &own {
            kafka.create_topic(topic, PARTITIONS, &[]).await?;
        }
        let running = self.relay(kafka).start_ready(self.case.name).await?;
        self.outbox.until_settled().await;
        ensure!(running.stop().await? == Some(0));
        let dead = self.outbox.number("select count(*) from event_outbox where status = 'DEAD'").await?;
        let expected = i64::from(matches!(self.case.stops, Some(Stop::Dead)));
        ensure!(dead == expected, "{dead} events are DEAD");
        self.records(kafka).await
    }
}
