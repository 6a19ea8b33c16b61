//! Runs the how-to pages about moving over as they stand, while an application writes all the while: no event is missing, none comes twice,
//! and each entity keeps its order, in both directions.
//!
//! Kafka Connect is too heavy for every run. A small reader of the replication slot stands in for the connector (`connector`): it sees what
//! `pgoutput` sends for the publication, as a connector does. `just debezium-parity` follows the page about Debezium with a real connector.

mod application;
mod connector;
mod page;
mod polling;

use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::{PostgresOptions, PrivatePostgres};
use lab::kafka::RealKafka;
use lab::{SOON, eventually, options_for_tests, trials};
use libtest_mimic::Trial;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::documents::needs_psql;
use application::{Application, OF_DEBEZIUM};
use connector::{Connector, PUBLICATION, SLOT};
use page::Page;
use polling::the_page_about_a_polling_loop_works_as_it_stands_while_the_application_writes;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            the_page_about_debezium_works_as_it_stands_while_the_application_writes,
            the_page_about_a_polling_loop_works_as_it_stands_while_the_application_writes;
        with_kafka:
            a_publication_for_all_tables_is_cut_as_the_page_says,
            a_connector_gets_a_publication_of_its_own_as_the_page_says;
    }
}

/// The requests to Kafka Connect.
const CURL: &str = "case \"$*\" in
'-fsS -X PATCH '*/connectors/orders-outbox/config\\ *)
  printf '%s\\n' \"$*\" | sed -n 's/.*\"publication.name\": \"\\([a-z_]*\\)\".*/\\1/p' > publication.name ;;
*/connectors/orders-outbox/stop) : > connector.stop; until [ -e connector.stopped ]; do sleep 0.02; done ;;
*/connectors/orders-outbox/resume) rm connector.stop ;;
*) exit 22 ;;
esac";

/// The number of events that each side publishes before the next step.
const EVENTS: u64 = 300;

/// An application with an outbox table, a connector that reads it, and a shell for the page's commands.
struct Stage {
    page: Page,
    postgres: PrivatePostgres,
    application: Application,
    connector: Connector,
}

impl Stage {
    async fn new(kafka: &RealKafka, publication: &str, entity_type: &'static str) -> anyhow::Result<Self> {
        needs_psql()?;
        let mut options: PostgresOptions = options_for_tests();
        options.settings.push(("wal_level".to_owned(), "logical".to_owned()));
        let postgres = PrivatePostgres::start(options).await?;
        let mut owner = postgres.connect("postgres").await?;
        let owner_url = postgres.url("postgres");
        let (_, place) = owner_url.rsplit_once('@').context("a user")?;
        let of = |user: &str| format!("postgres://{user}@{place}");
        let environment = vec![
            ("OWNER_URL", owner_url.clone()),
            ("DATABASE_URL", of("relay:change-me")),
            ("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap()),
            ("CONNECT_URL", "http://connect".to_owned()),
        ];
        let page = Page::open("docs/how-to/switch-from-debezium.md", environment)?;
        page.install("curl", CURL)?;
        application::create(&mut owner, OF_DEBEZIUM).await?;
        let publish = format!("create publication {PUBLICATION} for {publication}");
        owner.execute(AssertSqlSafe(publish)).await?;
        let slot = format!("select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
        owner.execute(AssertSqlSafe(slot)).await?;
        let connector = Connector::start(owner, kafka, page.directory())?;
        let application = Application::start(&of("app:app"), OF_DEBEZIUM, entity_type).await?;
        Ok(Self { page, postgres, application, connector })
    }

    async fn owner(&self) -> anyhow::Result<PgConnection> {
        Ok(self.postgres.connect("postgres").await?)
    }

    /// Waits until the connector has published more events.
    async fn until_connector_works(&self) {
        let before = self.connector.published();
        eventually("the connector publishes", SOON, || async {
            let more = self.connector.published() - before;
            if more >= EVENTS { Ok(()) } else { Err(more) }
        })
        .await;
    }

    /// Waits until the relay has published more events.
    async fn until_relay_works(&self) -> anyhow::Result<()> {
        let before = self.published().await?;
        eventually("the relay publishes", SOON, || async {
            match self.published().await {
                Ok(published) if published >= before + EVENTS as i64 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        Ok(())
    }

    async fn published(&self) -> anyhow::Result<i64> {
        let sql = "select count(*) from public.event_outbox where status = 'PUBLISHED'";
        Ok(sqlx::query_scalar(sql).fetch_one(&mut self.owner().await?).await?)
    }

    /// Waits until the topic has as many records as the table has events, and checks them. Returns how many each side wrote.
    async fn check(&self, kafka: &RealKafka, topic: &str) -> anyhow::Result<(usize, usize)> {
        let mut owner = self.owner().await?;
        let events: i64 = sqlx::query_scalar("select count(*) from public.outbox").fetch_one(&mut owner).await?;
        eventually("all events are on the topic", SOON, || async {
            match kafka.read_topic(topic).await {
                Ok(records) if records.len() as i64 >= events => Ok(()),
                Ok(records) => Err(format!("{} of {events}", records.len())),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await;
        application::check(&mut owner, OF_DEBEZIUM, &kafka.read_topic(topic).await?).await
    }
}

/// Makes the outbox as the page says.
async fn make_outbox(stage: &Stage) -> anyhow::Result<()> {
    let [make] = stage.page.commands("1. Make the outbox")?;
    std::fs::write(stage.page.directory().join("connector.json"), include_str!("switch/connector.json"))?;
    stage.page.run(&make).await.map(drop)
}

async fn the_page_about_debezium_works_as_it_stands_while_the_application_writes() -> anyhow::Result<()> {
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    kafka.create_topic("outbox.event.order", 6, &[]).await?;
    let mut stage = Stage::new(&kafka, "table public.outbox", "order").await?;
    let [_, look, options] = stage.page.commands("Before you begin")?;
    let seen = stage.page.run(&look).await?;
    ensure!(seen.contains("public.outbox") && seen.contains("pgoutput"), "{seen}");
    stage.page.run(&options).await?;
    make_outbox(&stage).await?;
    stage.until_connector_works().await;

    let [create, shadow] = stage.page.commands("2. Send everything to shadow topics")?;
    stage.page.run(&create).await?;
    let relay = stage.page.start(&shadow)?;
    let [compare] = stage.page.commands("3. Compare")?;
    ensure!(compare.contains("--until 10000"), "{compare}");
    // A day's traffic takes a day; the number is the only thing that is changed.
    let compared = stage.page.run(&compare.replace("10000", "1000")).await?;
    ensure!(compared.trim_end().ends_with("equal"), "{compared}");
    let [end] = stage.page.commands("4. End the shadow")?;
    stage.page.run(&end).await?;
    relay.stop().await?;
    stage.until_connector_works().await;

    let [cut, drain, stop, run] = stage.page.commands("5. Cut")?;
    stage.application.longest_ms();
    stage.page.run(&cut).await?;
    eprintln!("the longest transaction during the cut: {:.1} ms", stage.application.longest_ms());
    stage.page.run(&drain).await?;
    stage.page.run(&stop).await?;
    let relay = stage.page.start(&run)?;
    stage.until_relay_works().await?;
    let [look] = stage.page.commands("6. Look")?;
    let verdict = stage.page.run(&look).await?;
    ensure!(verdict.trim_end().ends_with("clean"), "{verdict}");

    let [undo, resume] = stage.page.commands("Undo")?;
    stage.application.longest_ms();
    stage.page.run(&undo).await?;
    eprintln!("the longest transaction during the undo: {:.1} ms", stage.application.longest_ms());
    relay.stop().await?;
    stage.page.run(&resume).await?;
    stage.until_connector_works().await;

    // The connector is deleted before the slot is dropped.
    let [clean_up] = stage.page.commands("7. Clean up")?;
    stage.application.stop().await?;
    stage.check(&kafka, "outbox.event.order").await?;
    stage.connector.end().await?;
    stage.page.run(&clean_up).await?;
    let (relayed, connected) = stage.check(&kafka, "outbox.event.order").await?;
    ensure!(
        relayed as u64 >= EVENTS && connected as u64 >= 3 * EVENTS,
        "{relayed} by the relay, {connected} by the connector"
    );
    Ok(())
}

/// Cuts over, goes back, and checks the topic.
async fn there_and_back(
    mut stage: Stage,
    kafka: &RealKafka,
    topic: &str,
    [cut, drain, undo]: [String; 3],
) -> anyhow::Result<()> {
    let [_, _, stop, run] = stage.page.commands("5. Cut")?;
    stage.until_connector_works().await;
    stage.page.run(&cut).await?;
    stage.page.run(&drain).await?;
    stage.page.run(&stop).await?;
    let relay = stage.page.start(&run)?;
    stage.until_relay_works().await?;
    let [_, resume] = stage.page.commands("Undo")?;
    stage.page.run(&undo).await?;
    relay.stop().await?;
    stage.page.run(&resume).await?;
    stage.until_connector_works().await;
    stage.application.stop().await?;
    let (relayed, connected) = stage.check(kafka, topic).await?;
    let both = relayed as u64 >= EVENTS && connected as u64 >= 2 * EVENTS;
    ensure!(both, "{relayed} records by the relay, {connected} by the connector");
    stage.connector.end().await
}

/// Replaces parts of commands, each of which has to be there.
fn replaced(text: &str, pairs: &[(&str, &str)]) -> anyhow::Result<String> {
    pairs.iter().try_fold(text.to_owned(), |text, (from, to)| {
        ensure!(text.contains(from), "no {from} in {text}");
        Ok(text.replace(from, to))
    })
}

/// The publication of a connector that was started with Debezium's defaults.
async fn a_publication_for_all_tables_is_cut_as_the_page_says(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    kafka.create_topic("outbox.event.all", 6, &[]).await?;
    let stage = Stage::new(&kafka, "all tables", "all").await?;
    make_outbox(&stage).await?;
    let (_, part) = stage.page.text.split_once("\n## A publication for all tables\n").context("no such part")?;
    let add_table = "alter publication dbz_publication add table public.outbox";
    let [silence, marker, publish] = [
        "alter publication dbz_publication set (publish = 'truncate')",
        "truncate outbox_cut",
        "alter publication dbz_publication set (publish = 'insert, update, delete, truncate')",
    ];
    for statement in [silence, marker, publish, add_table] {
        ensure!(part.contains(&format!("`{statement}`")), "{statement}");
    }
    let drop_table = "  -c \"alter publication dbz_publication drop table public.outbox\" \\\n";
    let add_marker = "alter publication dbz_publication add table outbox_cut";
    let ([cut, drain, _, _], [undo, _]) = (stage.page.commands("5. Cut")?, stage.page.commands("Undo")?);
    let commands = [
        replaced(&cut, &[(drop_table, ""), (add_marker, silence)])?,
        replaced(&drain, &[("insert into outbox_cut default values", marker)])?,
        replaced(&undo, &[(add_table, publish)])?,
    ];
    there_and_back(stage, &kafka, "outbox.event.all", commands).await
}

/// The connector leaves a publication for all tables, which others need, while the application writes.
async fn a_connector_gets_a_publication_of_its_own_as_the_page_says(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    kafka.create_topic("outbox.event.own", 6, &[]).await?;
    let stage = Stage::new(&kafka, "all tables", "own").await?;
    make_outbox(&stage).await?;
    stage.until_connector_works().await;
    let [own] = stage.page.commands("A publication for all tables")?;
    stage.page.run(&own).await?;
    let used = std::fs::read_to_string(stage.page.directory().join("publication.name"))?;
    ensure!(used.trim() == "outbox_publication", "{used}");
    let ([cut, drain, _, _], [undo, _]) = (stage.page.commands("5. Cut")?, stage.page.commands("Undo")?);
    let other = [("dbz_publication", "outbox_publication")];
    let commands = [replaced(&cut, &other)?, drain, replaced(&undo, &other)?];
    there_and_back(stage, &kafka, "outbox.event.own", commands).await
}
