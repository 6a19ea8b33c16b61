//! Measures whether the machine and both servers respond, without the relay. It sends a record to a separate topic and a query to Postgres
//! 20 times a second. A beat that takes long is a standstill, in which no relay could have published anything. The query assigns no
//! transaction id, so the server stays quiet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::Executor;
use tokio::task::JoinHandle;

use crate::truth::{Standstill, now};
use lab::Outbox;
use lab::kafka::RealKafka;

const BETWEEN_BEATS: Duration = Duration::from_millis(50);

/// The longest beat, in milliseconds, that is not a standstill.
const ORDINARY: i64 = 100;

/// A task that measures until the standstills are wanted.
#[derive(Debug)]
pub(crate) struct Pulse {
    ends: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<Vec<Standstill>>>,
}

impl Pulse {
    /// Starts to measure, on a topic next to the outbox's own.
    pub(crate) async fn start(outbox: &Outbox, kafka: &RealKafka) -> anyhow::Result<Self> {
        let topic = format!("{}-pulse", outbox.topic);
        kafka.create_topic(&topic, 1, &[]).await?;
        let producer: FutureProducer = kafka.client().set("acks", "all").set("linger.ms", "0").create()?;
        let ends = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(beat(outbox.clone(), producer, topic, Arc::clone(&ends)));
        Ok(Self { ends, task })
    }

    /// Stops; returns the standstills.
    pub(crate) async fn end(self) -> anyhow::Result<Vec<Standstill>> {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn beat(
    outbox: Outbox,
    producer: FutureProducer,
    topic: String,
    ends: Arc<AtomicBool>,
) -> anyhow::Result<Vec<Standstill>> {
    let mut connection = outbox.connect().await?;
    let mut standstills = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        let due = now() + BETWEEN_BEATS.as_millis() as i64;
        tokio::time::sleep(BETWEEN_BEATS).await;
        connection.execute("select 1").await.context("the pulse's query")?;
        let record = FutureRecord::<(), [u8]>::to(&topic).payload(b"beat");
        producer
            .send(record, Duration::from_secs(60))
            .await
            .map_err(|(error, _)| error)
            .context("the pulse's record")?;
        let ended = now();
        if ended - due > ORDINARY {
            standstills.push(Standstill { from: due, to: ended });
        }
    }
    Ok(standstills)
}
