//! Drains a topic through a handler with one insert: the consumer runtime, per event and in batches, and a loop with franz-go and the same
//! inbox, one after the other on the same Postgres and Kafka: `just consumer-bench`.
//!
//! Each run begins with a new group and empty tables. Its time is that from the start of the consumer to the last effect, so joining the
//! group counts. After each run the effects are counted: each event has one.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;
use event_outbox::consumer::{BatchContext, BatchEvent, Consumer, Context, Failed};
use event_outbox::names::Names;
use event_outbox::schema::{self, MigrateOptions};
use lab::demo::{PostgresOptions, PrivatePostgres};
use lab::kafka::RealKafka;
use lab::languages;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

const TOPIC: &str = "drained";

/// The consumer runtime beside a loop with franz-go
#[derive(Debug, Parser)]
struct Sizes {
    /// Events of the topic
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Events that are drained one by one, which takes long
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    single_events: u32,
    /// Partitions of the topic
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=100))]
    partitions: i32,
    /// Keys of each partition that are worked on at once, in the run that is named so
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    concurrency: u8,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Set by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Deserialize)]
struct Counted {
    n: i64,
}

/// The result of one run.
#[derive(Debug, Serialize)]
struct Measured {
    system: String,
    events: u32,
    seconds: f64,
    events_per_s: f64,
}

struct Bench {
    kafka: RealKafka,
    url: String,
    pool: PgPool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let sizes = Sizes::parse();
    let go = languages::go_loop("consumers")?;
    eprintln!("starting Kafka and Postgres");
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let postgres = PrivatePostgres::start(postgres_options()).await?;
    let url = postgres.url("postgres");
    let pool = PgPoolOptions::new().max_connections(150).test_before_acquire(false).connect(&url).await?;
    schema::migrate(&mut *pool.acquire().await?, &Names::default(), &MigrateOptions::default()).await?;
    sqlx::query(
        "create table effects (event_id uuid, entity text, n bigint, place bigint generated always as identity)",
    )
    .execute(&pool)
    .await?;
    let bench = Bench { kafka, url, pool };
    bench.kafka.create_topic(TOPIC, sizes.partitions, &[]).await?;
    let (single, all) = (sizes.single_events.min(sizes.events), sizes.events);
    bench.produce(single)?;
    let lanes = usize::from(sizes.concurrency);
    let mut measured = vec![
        bench.runtime("event-outbox, per event", single, |consumer| consumer.on("Counted", 1..=1, insert)).await?,
        bench
            .runtime(&format!("event-outbox, per event, {lanes} keys at once"), single, |consumer| {
                consumer.concurrency(lanes).on("Counted", 1..=1, insert)
            })
            .await?,
        bench.franz("franz-go, per event", single, go.command.get_program(), "each").await?,
    ];
    bench.produce(all - single)?;
    measured.push(
        bench.runtime("event-outbox, batches", all, |consumer| consumer.on_batch("Counted", 1..=1, insert_all)).await?,
    );
    measured.push(bench.franz("franz-go, batches", all, go.command.get_program(), "fetch").await?);
    if sizes.json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
    } else {
        for Measured { system, events, seconds, events_per_s } in &measured {
            println!("{system:<40} {events:>8} events {seconds:>8.1} s {events_per_s:>9.0} events/s");
        }
    }
    Ok(())
}

async fn insert(mut ctx: Context, event: Counted) -> Result<(), Failed> {
    let (id, entity) = (ctx.event().event_id.0, ctx.event().key_text().map(str::to_owned));
    let insert = sqlx::query("insert into effects (event_id, entity, n) values ($1, $2, $3)");
    insert.bind(id).bind(entity).bind(event.n).execute(ctx.tx()).await?;
    Ok(())
}

async fn insert_all(mut ctx: BatchContext, events: Vec<BatchEvent<Counted>>) -> Result<(), Failed> {
    let ids: Vec<Uuid> = events.iter().map(|one| one.event.event_id.0).collect();
    let entities: Vec<Option<&str>> = events.iter().map(|one| one.event.key_text()).collect();
    let numbers: Vec<i64> = events.iter().map(|one| one.payload.n).collect();
    let sql = "insert into effects (event_id, entity, n) select * from unnest($1::uuid[], $2::text[], $3::int8[])";
    sqlx::query(sql).bind(ids).bind(entities).bind(numbers).execute(ctx.tx()).await?;
    Ok(())
}

fn header<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header { key, value: Some(value) }
}

impl Bench {
    /// Adds events of a thousand keys to the topic.
    fn produce(&self, events: u32) -> anyhow::Result<()> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.kafka.bootstrap()).set("linger.ms", "20");
        let producer: BaseProducer = config.create()?;
        for n in 0..events {
            let (key, value, id) = (format!("e{}", n % 1_000), format!(r#"{{"n": {n}}}"#), Uuid::new_v4().to_string());
            let headers = OwnedHeaders::new().insert(header("event-id", &id)).insert(header("event-type", "Counted"));
            let mut record = BaseRecord::to(TOPIC).key(&key).payload(&value).headers(headers);
            while let Err((error, refused)) = producer.send(record) {
                ensure!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
                producer.poll(Duration::from_millis(50));
                record = refused;
            }
        }
        Ok(producer.flush(Duration::from_secs(60))?)
    }

    async fn runtime(
        &self,
        system: &str,
        events: u32,
        with: impl FnOnce(Consumer) -> Consumer,
    ) -> anyhow::Result<Measured> {
        self.clear().await?;
        let consumer = Consumer::new(format!("runtime-{}", Uuid::new_v4()), self.pool.clone());
        let consumer = with(consumer.kafka("bootstrap.servers", self.kafka.bootstrap()).topic(TOPIC));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let began = Instant::now();
        let running = tokio::spawn(consumer.run(async move {
            let _ = stopped.await;
        }));
        let measured = self.until(system, events, began).await?;
        let _ = stop.send(());
        running.await??;
        Ok(measured)
    }

    async fn franz(
        &self,
        system: &str,
        events: u32,
        program: &std::ffi::OsStr,
        mode: &str,
    ) -> anyhow::Result<Measured> {
        self.clear().await?;
        let began = Instant::now();
        let child = Command::new(program)
            .envs([("DATABASE_URL", self.url.as_str()), ("TOPIC", TOPIC), ("MODE", mode)])
            .env("KAFKA_BOOTSTRAP_SERVERS", self.kafka.bootstrap())
            .env("GROUP", format!("franz-{}", Uuid::new_v4()))
            .spawn()?;
        let mut child = Ended(child);
        let measured = self.until(system, events, began).await?;
        kill(Pid::from_raw(child.0.id().try_into()?), Signal::SIGTERM)?;
        child.0.wait()?;
        Ok(measured)
    }

    async fn clear(&self) -> anyhow::Result<()> {
        sqlx::query("truncate effects, processed_events restart identity").execute(&self.pool).await?;
        sqlx::query("checkpoint").execute(&self.pool).await?;
        Ok(())
    }

    async fn effects(&self) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar("select count(*) from effects").fetch_one(&self.pool).await?)
    }

    /// Waits until each event has its effect.
    async fn until(&self, system: &str, events: u32, began: Instant) -> anyhow::Result<Measured> {
        eprintln!("{system}: {events} events");
        let wanted = i64::from(events);
        let count = "select count(*), count(distinct event_id) from effects";
        // The sequence tells without reading the table how many rows were begun, so that the rows are counted at the end only.
        let begun = "select case when is_called then last_value else 0 end from effects_place_seq";
        loop {
            let begun: i64 = sqlx::query_scalar(begun).fetch_one(&self.pool).await?;
            if begun >= wanted && self.effects().await? >= wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        let (effects, distinct): (i64, i64) = sqlx::query_as(count).fetch_one(&self.pool).await?;
        ensure!(effects == wanted && distinct == wanted, "{system}: {effects} effects of {distinct} events");
        let events_per_s = f64::from(events) / seconds;
        Ok(Measured { system: system.to_owned(), events, seconds, events_per_s })
    }
}

/// Ends the process when it is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the options of a durable server on a small machine.
fn postgres_options() -> PostgresOptions {
    let settings = [("shared_buffers", "1GB"), ("max_wal_size", "8GB")];
    PostgresOptions {
        durable: true,
        max_connections: 200,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..PostgresOptions::default()
    }
}
