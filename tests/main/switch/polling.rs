//! Publishes the rows of an application's table in a loop, as many teams have written it, and runs the page that replaces the loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::demo::PrivatePostgres;
use lab::kafka::RealKafka;
use lab::{SOON, eventually, options_for_tests};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sqlx::PgConnection;
use tokio::task::JoinHandle;

use super::application::{self, Application, OF_A_LOOP};
use super::page::Page;
use crate::documents::needs_psql;

/// A loop that runs beside the test. The file `loop.stop` tells it to stop between two batches, and it answers with the file `loop.stopped`.
pub(crate) struct PollingLoop {
    task: Option<JoinHandle<anyhow::Result<()>>>,
    ended: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
}

impl PollingLoop {
    /// Starts it. Both files are in `directory`.
    pub(crate) fn start(conn: PgConnection, kafka: &RealKafka, directory: &Path) -> anyhow::Result<Self> {
        let mut config = kafka.client();
        config.set("enable.idempotence", "true").set("partitioner", "murmur2_random");
        let producer: BaseProducer = config.create()?;
        let (ended, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = run(conn, producer, directory.to_owned(), Arc::clone(&ended), Arc::clone(&published));
        Ok(Self { task: Some(tokio::spawn(task)), ended, published })
    }

    /// Returns the number of records that it has published.
    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    /// Ends it, and returns its error if there was one.
    pub(crate) async fn end(&mut self) -> anyhow::Result<()> {
        self.ended.store(true, Ordering::SeqCst);
        match self.task.take() {
            Some(task) => task.await?,
            None => Ok(()),
        }
    }
}

async fn run(
    mut conn: PgConnection,
    producer: BaseProducer,
    directory: PathBuf,
    ended: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let [stop, stopped] = ["loop.stop", "loop.stopped"].map(|name| directory.join(name));
    while !ended.load(Ordering::SeqCst) {
        if stop.exists() {
            std::fs::write(&stopped, "")?;
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        // It was started again, or has never been stopped.
        let _ = std::fs::remove_file(&stopped);
        // It holds no lock while it publishes, so it must not be in the middle of a batch at the cut.
        let sql = "select id, event_uuid::text, aggregate_type, aggregate_id, payload::text from public.outbox \
                   where status = 'NEW' order by id limit 200";
        let rows: Vec<(i64, String, String, String, String)> = sqlx::query_as(sql).fetch_all(&mut conn).await?;
        for (_, id, entity_type, entity, payload) in &rows {
            let topic = format!("{entity_type}-events");
            let headers = OwnedHeaders::new().insert(Header { key: "event-id", value: Some(id) });
            producer
                .send(BaseRecord::to(&topic).key(entity).payload(payload).headers(headers))
                .map_err(|(error, _)| error)?;
        }
        producer.flush(Duration::from_secs(30))?;
        let ids: Vec<i64> = rows.iter().map(|(id, ..)| *id).collect();
        let mark = "update public.outbox set status = 'PUBLISHED' where id = any($1)";
        sqlx::query(mark).bind(&ids).execute(&mut conn).await?;
        published.fetch_add(ids.len() as u64, Ordering::SeqCst);
        if ids.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

/// The loop's service. Both requests return when the loop has followed them.
const SYSTEMCTL: &str = "case \"$*\" in
'stop outbox-loop') : > loop.stop; until [ -e loop.stopped ]; do sleep 0.02; done ;;
'start outbox-loop') rm loop.stop; while [ -e loop.stopped ]; do sleep 0.02; done ;;
*) exit 5 ;;
esac";

const TOPIC: &str = "order-events";

pub(crate) async fn the_page_about_a_polling_loop_works_as_it_stands_while_the_application_writes() -> anyhow::Result<()>
{
    needs_psql()?;
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    kafka.create_topic(TOPIC, 6, &[]).await?;
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let mut owner = postgres.connect("postgres").await?;
    application::create(&mut owner, OF_A_LOOP).await?;
    let owner_url = postgres.url("postgres");
    let (_, place) = owner_url.rsplit_once('@').context("a user")?;
    let of = |user: &str| format!("postgres://{user}@{place}");
    let environment = vec![
        ("OWNER_URL", owner_url.clone()),
        ("DATABASE_URL", of("relay:change-me")),
        ("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap()),
        ("RELAY_ENVELOPE", "raw".to_owned()),
    ];
    let page = Page::open("docs/how-to/switch-from-a-polling-loop.md", environment)?;
    page.install("systemctl", SYSTEMCTL)?;
    let mut polling = PollingLoop::start(postgres.connect("postgres").await?, &kafka, page.directory())?;
    let mut application = Application::start(&of("app:app"), OF_A_LOOP, "order").await?;

    // `adopt` reads from the rows what the loop writes into them.
    until_works(&polling, 100).await;
    let [make] = page.commands("1. Make the outbox")?;
    page.run(&make).await?;
    // The page compares the last thousand events.
    until_works(&polling, 1_200).await;
    let [copy, shadow] = page.commands("2. Publish a copy to shadow topics")?;
    page.run(&copy).await?;
    let relay = page.start(&shadow)?;
    let [compare, remove] = page.commands("3. Compare")?;
    let compared = page.run(&compare).await?;
    ensure!(compared.trim_end().ends_with("equal"), "{compared}");
    relay.stop().await?;
    page.run(&remove).await?;

    let [drain, cut, run] = page.commands("4. Cut")?;
    page.run(&drain).await?;
    application.longest_ms();
    page.run(&cut).await?;
    eprintln!("the longest transaction during the cut: {:.1} ms", application.longest_ms());
    let relay = page.start(&run)?;
    let published = "select count(*) from public.event_outbox where status = 'PUBLISHED'";
    let before: i64 = sqlx::query_scalar(published).fetch_one(&mut owner).await?;
    eventually("the relay publishes", SOON, || async {
        let mut conn = postgres.connect("postgres").await.map_err(|error| error.to_string())?;
        match sqlx::query_scalar::<_, i64>(published).fetch_one(&mut conn).await {
            Ok(now) if now >= before + 300 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let [look] = page.commands("5. Look")?;
    let verdict = page.run(&look).await?;
    ensure!(verdict.trim_end().ends_with("clean"), "{verdict}");

    let [undo, start] = page.commands("Undo")?;
    application.longest_ms();
    page.run(&undo).await?;
    eprintln!("the longest transaction during the undo: {:.1} ms", application.longest_ms());
    relay.stop().await?;
    page.run(&start).await?;
    until_works(&polling, 300).await;
    application.stop().await?;
    let events: i64 = sqlx::query_scalar("select count(*) from public.outbox").fetch_one(&mut owner).await?;
    eventually("all events are on the topic", SOON, || async {
        match kafka.read_topic(TOPIC).await {
            Ok(records) if records.len() as i64 >= events => Ok(()),
            Ok(records) => Err(format!("{} of {events}", records.len())),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await;
    polling.end().await?;
    let (relayed, looped) = application::check(&mut owner, OF_A_LOOP, &kafka.read_topic(TOPIC).await?).await?;
    ensure!(relayed >= 300 && looped >= 1_500, "{relayed} records by the relay, {looped} by the loop");
    let [clean_up] = page.commands("6. Clean up")?;
    page.run(&clean_up).await.map(drop)
}

/// Waits until the loop has published this many events more.
async fn until_works(polling: &PollingLoop, more: u64) {
    let before = polling.published();
    eventually("the loop publishes", SOON, || async {
        let done = polling.published() - before;
        if done >= more { Ok(()) } else { Err(done) }
    })
    .await;
}
