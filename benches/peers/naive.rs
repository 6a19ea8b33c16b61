//! Runs the polling loop of most articles on the outbox: every half second a hundred rows `for update skip locked`; send one row,
//! wait for its ack, mark it.

use std::time::Duration;

use anyhow::Context;
use lab::demo::{ChildServer, ServerCommand, TemporaryDirectory};
use rdkafka::ClientConfig;
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::AsyncRuntime;
use sqlx::{Connection, PgConnection, Row};

use crate::drain::drain;
use crate::latency::latencies;
use crate::outbox::Outbox;
use crate::report::System;
use crate::topic::Topic;
use crate::{Servers, Sizes};

/// The most events per second at which latencies are measured. The loop keeps up with little more.
const MOST: f64 = 100.0;

pub(crate) fn measure(servers: &mut Servers, sizes: &Sizes) -> anyhow::Result<Vec<System>> {
    let mut outbox = Outbox::make(servers, sizes, "peers_naive", &[])?;
    outbox.index_pending(servers)?;
    let topic = Topic::make(servers, sizes, "peers_naive")?;
    let directory = TemporaryDirectory::create(None)?;
    outbox.seed_rows(servers, sizes.naive_events)?;
    let command = ServerCommand::new(std::env::current_exe()?, directory.path(), &directory.path().join("naive.log"))
        .args(["naive-loop", &outbox.url, &servers.kafka.bootstrap(), &topic.name]);
    let (drained, naive) = drain(servers, &mut outbox, &topic, sizes.naive_events, true, None, || {
        Ok(Some(ChildServer::start(&command)?))
    })?;
    let naive = naive.expect("it was started");
    let latencies = latencies(&outbox, &topic, &naive, sizes, MOST)?;
    Ok(vec![System { name: "naive loop".to_owned(), drain: drained, latencies }])
}

type Producer = FutureProducer<DefaultClientContext, Tokio>;

/// The runtime that rdkafka's feature `tokio` would provide. No other code of this repository needs the feature.
struct Tokio;

impl AsyncRuntime for Tokio {
    type Delay = tokio::time::Sleep;

    fn spawn<T: Future<Output = ()> + Send + 'static>(task: T) {
        tokio::spawn(task);
    }

    fn delay_for(duration: Duration) -> Self::Delay {
        tokio::time::sleep(duration)
    }
}

/// Runs the loop as a process, with database, brokers and topic as arguments.
pub(crate) fn run_loop() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(2);
    let mut next = || arguments.next().context("naive-loop URL BROKERS TOPIC");
    let (url, brokers, topic) = (next()?, next()?, next()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let producer: Producer = ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
        let mut conn = PgConnection::connect(&url).await?;
        loop {
            if batch(&mut conn, &producer, &topic).await? == 0 {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    })
}

async fn batch(conn: &mut PgConnection, producer: &Producer, topic: &str) -> anyhow::Result<usize> {
    let mut transaction = conn.begin().await?;
    let rows = sqlx::query(
        "select id, entity_id, payload::text from event_outbox where status = 'PENDING' \
         order by id limit 100 for update skip locked",
    )
    .fetch_all(&mut *transaction)
    .await?;
    for row in &rows {
        let (id, key, payload): (i64, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let record = FutureRecord::to(topic).key(key).payload(payload);
        producer.send(record, None).await.map_err(|(error, _)| error)?;
        sqlx::query("update event_outbox set status = 'PUBLISHED', published_at = now() where id = $1")
            .bind(id)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(rows.len())
}
