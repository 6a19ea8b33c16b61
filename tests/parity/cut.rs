//! Follows docs/how-to/switch-from-debezium.md with a real connector, while an application writes all the while. The suite `main` does the same
//! with a reader of the slot in the connector's place.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::demo::PrivatePostgres;
use lab::eventually;
use lab::kafka::RealKafka;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::application::{self, Application, OF_DEBEZIUM};
use crate::connect::Connect;
use crate::documents::needs_psql;
use crate::page::{Page, Running};

const TOPIC: &str = "outbox.event.order";
const NAME: &str = "orders-outbox";
const CONNECTOR: &str = include_str!("../main/switch/connector.json");

/// The number of events that each side publishes before the next step.
const EVENTS: usize = 300;

/// The time limit for a connector to start, and to send what has piled up.
const WITHIN: Duration = Duration::from_secs(120);

/// A writer of records.
#[derive(Debug, Clone, Copy)]
enum Side {
    Relay,
    Connector,
}

/// An application's database, a connector that reads its outbox table, and a shell for the page's commands.
struct Stage {
    page: Page,
    kafka: RealKafka,
    postgres: PrivatePostgres,
    connect: Connect,
}

impl Stage {
    async fn new() -> anyhow::Result<Self> {
        let (kafka, postgres) = crate::servers().await?;
        kafka.create_topic(TOPIC, 6, &[]).await?;
        let connect = Connect::start(&kafka.bootstrap()).await?;
        let environment = vec![
            ("OWNER_URL", postgres.url("postgres")),
            ("DATABASE_URL", url_of(&postgres, "relay:change-me")?),
            ("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap()),
            ("CONNECT_URL", connect.url()),
        ];
        let page = Page::open("docs/how-to/switch-from-debezium.md", environment)?;
        let mut owner = postgres.connect("postgres").await?;
        application::create(&mut owner, OF_DEBEZIUM).await?;
        owner.execute("create publication dbz_publication for table public.outbox").await?;
        let stage = Self { page, kafka, postgres, connect };
        stage.start_connector()?;
        stage.until_slots("active").await;
        let [_, look, options] = stage.page.commands("Before you begin")?;
        let seen = stage.page.run(&look).await?;
        ensure!(seen.contains("public.outbox") && seen.contains("pgoutput"), "{seen}");
        stage.page.run(&options).await?;
        Ok(stage)
    }

    /// Starts the connector, with the configuration that the page's `import` reads.
    fn start_connector(&self) -> anyhow::Result<()> {
        let url = self.postgres.url("postgres");
        let (_, rest) = url.split_once("://").context("a URL")?;
        let (login, place) = rest.rsplit_once('@').context("a login")?;
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = place.split('/').next().and_then(|server| server.split_once(':')).context("a port")?;
        let mut connector: Value = serde_json::from_str(CONNECTOR)?;
        let options = connector["config"].as_object_mut().context("options")?;
        for (name, value) in
            [("hostname", host), ("port", port), ("user", user), ("password", password), ("dbname", "postgres")]
        {
            options.insert(format!("database.{name}"), json!(value));
        }
        let mut before = options.clone();
        // The page's commands set them.
        for option in ["publication.autocreate.mode", "heartbeat.interval.ms"] {
            before.remove(option).with_context(|| format!("no {option}"))?;
        }
        self.connect.create(NAME, before)?;
        std::fs::write(self.page.directory().join("connector.json"), connector.to_string())?;
        Ok(())
    }

    async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let mut owner = self.postgres.connect("postgres").await?;
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut owner).await?)
    }

    /// Waits until the slot is `active` or `not active`.
    async fn until_slots(&self, state: &str) {
        let sql = format!("select count(*) from pg_replication_slots where slot_name = 'debezium' and {state}");
        eventually("the state of the slot", WITHIN, || async {
            match self.number(&sql).await {
                Ok(1) => Ok(()),
                other => Err(format!("{other:?}, {:?}", self.connect.task(NAME))),
            }
        })
        .await;
    }

    /// Returns the number of records of a side. Those of the relay have a `sequence`.
    async fn records(&self, side: Side) -> anyhow::Result<usize> {
        let is_of_relay = matches!(side, Side::Relay);
        let records = self.kafka.read_topic(TOPIC).await?;
        Ok(records.iter().filter(|record| record.header("sequence").is_some() == is_of_relay).count())
    }

    /// Waits until a side has published more events.
    async fn until_works(&self, side: Side) -> anyhow::Result<()> {
        let before = self.records(side).await?;
        eventually("events are published", WITHIN, || async {
            match self.records(side).await {
                Ok(now) if now >= before + EVENTS => Ok(()),
                other => Err(format!("{side:?}: {before} before, now {other:?}, {:?}", self.connect.task(NAME))),
            }
        })
        .await;
        Ok(())
    }

    /// Sends everything to shadow topics, compares, and ends the shadow.
    async fn shadow(&self) -> anyhow::Result<()> {
        let [create, shadow] = self.page.commands("2. Send everything to shadow topics")?;
        self.page.run(&create).await?;
        let relay = self.page.start(&shadow)?;
        let [compare] = self.page.commands("3. Compare")?;
        // A day's traffic takes a day; the number is the only thing that is changed.
        let compared = self.page.run(&compare.replace("10000", "1000")).await?;
        ensure!(compared.trim_end().ends_with("equal"), "{compared}");
        let [end] = self.page.commands("4. End the shadow")?;
        self.page.run(&end).await?;
        relay.stop().await
    }

    /// Cuts over to the relay.
    async fn cut(&self, application: &Application) -> anyhow::Result<Running> {
        let [cut, drain, stop, run] = self.page.commands("5. Cut")?;
        application.longest_ms();
        self.page.run(&cut).await?;
        eprintln!("the longest transaction during the cut: {:.1} ms", application.longest_ms());
        self.page.run(&drain).await?;
        self.page.run(&stop).await?;
        let relay = self.page.start(&run)?;
        self.until_works(Side::Relay).await?;
        let [look] = self.page.commands("6. Look")?;
        let verdict = self.page.run(&look).await?;
        ensure!(verdict.trim_end().ends_with("clean"), "{verdict}");
        Ok(relay)
    }

    /// Gives the table back to the connector.
    async fn undo(&self, application: &Application, relay: Running) -> anyhow::Result<()> {
        let [undo, resume] = self.page.commands("Undo")?;
        application.longest_ms();
        self.page.run(&undo).await?;
        eprintln!("the longest transaction during the undo: {:.1} ms", application.longest_ms());
        relay.stop().await?;
        self.page.run(&resume).await?;
        self.until_works(Side::Connector).await
    }

    /// Waits until the topic has as many records as the table has events, and checks them.
    async fn check(&self) -> anyhow::Result<()> {
        let events = usize::try_from(self.number("select count(*) from public.outbox").await?)?;
        eventually("all events are on the topic", WITHIN, || async {
            match self.kafka.read_topic(TOPIC).await {
                Ok(records) if records.len() >= events => Ok(()),
                Ok(records) => Err(format!("{} of {events}, {:?}", records.len(), self.connect.task(NAME))),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await;
        let (mut owner, records) = (self.postgres.connect("postgres").await?, self.kafka.read_topic(TOPIC).await?);
        let (relayed, connected) = application::check(&mut owner, OF_DEBEZIUM, &records).await?;
        ensure!(relayed >= EVENTS && connected >= 3 * EVENTS, "{relayed} by the relay, {connected} by the connector");
        eprintln!(
            "{events} events, {relayed} of them by the relay and {connected} by the connector: none missing, none twice, each key in order"
        );
        Ok(())
    }
}

/// Returns the address of the database for a user.
fn url_of(postgres: &PrivatePostgres, login: &str) -> anyhow::Result<String> {
    let url = postgres.url("postgres");
    let (_, place) = url.rsplit_once('@').context("a user")?;
    Ok(format!("postgres://{login}@{place}"))
}

pub(crate) async fn the_page_about_debezium_works_with_a_real_connector() -> anyhow::Result<()> {
    needs_psql()?;
    let stage = Stage::new().await?;
    let mut application = Application::start(&url_of(&stage.postgres, "app:app")?, OF_DEBEZIUM, "order").await?;
    let [make] = stage.page.commands("1. Make the outbox")?;
    stage.page.run(&make).await?;
    stage.until_works(Side::Connector).await?;
    stage.shadow().await?;
    stage.until_works(Side::Connector).await?;
    let relay = stage.cut(&application).await?;
    stage.undo(&application, relay).await?;
    application.stop().await?;
    stage.check().await?;
    // The connector is deleted before the slot is dropped.
    stage.connect.delete(NAME)?;
    stage.until_slots("not active").await;
    let [clean_up] = stage.page.commands("7. Clean up")?;
    stage.page.run(&clean_up).await?;
    stage.connect.stop();
    stage.postgres.stop().await;
    Ok(())
}
