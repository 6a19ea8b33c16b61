//! Produces records without Postgres.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, ProducerContext, ThreadedProducer};
use uuid::Uuid;

use crate::bench::Bench;
use crate::bench::bench_schema::BenchSchema;
use crate::bench::failure::BenchError;
use crate::sink::client::ClientSettings;
use event_outbox::envelope::Envelope;
use event_outbox::event::{EventHeaders, EventId, OutboxId, Payload, StoredEvent};

/// The time without an ack after which the broker counts as stuck.
const STALLED: Duration = Duration::from_secs(30);

/// The pause when the producer's queue is full.
const PAUSE: Duration = Duration::from_micros(200);

/// The number of records that warm a producer up. Afterwards it knows broker, topic and producer id.
const FIRST: u64 = 100;

/// The number of different records of a run, built before the clock starts.
const RECORDS: usize = 2_000;

#[derive(Default)]
struct Acks {
    acked: AtomicU64,
    failed: AtomicBool,
}

struct Context(Arc<Acks>);

impl ClientContext for Context {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext<NoCustomPartitioner> for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.acked.fetch_add(1, Ordering::Relaxed);
        } else {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// A record as the relay would build it.
struct Record {
    key: String,
    value: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
}

/// Measures the rate in events per second.
pub(super) async fn produce(
    bench: &Bench,
    schema: &BenchSchema,
    events: u64,
    workers: usize,
) -> Result<f64, BenchError> {
    bench.begin("limit of produce");
    bench.progress.set_message("producing");
    let relay = &bench.settings.relay;
    let settings = ClientSettings::new(bench.schemas.kafka(), relay.batch_size, relay.batch_bytes);
    let records: Arc<[Record]> = records(bench).into();
    let share = events.div_ceil(workers as u64);
    let mut producers = Vec::new();
    for _ in 0..workers {
        let acks = Arc::new(Acks::default());
        let producer = settings.config().create_with_context(Context(Arc::clone(&acks)))?;
        producers.push(Producer { producer, acks, topic: schema.name.clone(), records: Arc::clone(&records), sent: 0 });
    }
    let warm = on_threads(producers, FIRST).await?;
    let began = Instant::now();
    on_threads(warm, share).await?;
    Ok((share * workers as u64) as f64 / began.elapsed().as_secs_f64())
}

async fn on_threads(producers: Vec<Producer>, events: u64) -> Result<Vec<Producer>, BenchError> {
    let threads: Vec<_> = producers
        .into_iter()
        .map(|mut producer| tokio::task::spawn_blocking(move || producer.produce(events).map(|()| producer)))
        .collect();
    let mut done = Vec::new();
    for thread in threads {
        done.push(thread.await.map_err(|_| BenchError::Thread)??);
    }
    Ok(done)
}

struct Producer {
    producer: ThreadedProducer<Context>,
    acks: Arc<Acks>,
    topic: String,
    records: Arc<[Record]>,
    sent: u64,
}

impl Producer {
    /// Sends `events` records and waits for their acks.
    fn produce(&mut self, events: u64) -> Result<(), BenchError> {
        let until = self.sent + events;
        let (mut seen, mut moved) = (0, Instant::now());
        while self.acks.acked.load(Ordering::Relaxed) < until {
            let acked = self.acks.acked.load(Ordering::Relaxed);
            if acked > seen {
                (seen, moved) = (acked, Instant::now());
            }
            if self.acks.failed.load(Ordering::Relaxed) || moved.elapsed() > STALLED {
                let what = "acks of produced records".to_owned();
                return Err(BenchError::Stalled { what, within: moved.elapsed(), log: String::new() });
            }
            if self.sent == until || !self.send_one()? {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// Sends one record. Returns false if the queue is full.
    fn send_one(&mut self) -> Result<bool, BenchError> {
        let record = &self.records[self.sent as usize % self.records.len()];
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let sent = BaseRecord::to(&self.topic).key(&record.key).payload(&record.value).headers(headers);
        match self.producer.send(sent) {
            Ok(()) => {
                self.sent += 1;
                Ok(true)
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((error, _)) => Err(error.into()),
        }
    }
}

fn records(bench: &Bench) -> Vec<Record> {
    let envelope = bench.settings.relay.envelope;
    bench.samples.iter().take(RECORDS).enumerate().map(|(n, sample)| record(envelope, n as i64, sample)).collect()
}

fn record(envelope: Envelope, n: i64, sample: &str) -> Record {
    let key = format!("order-{n}");
    let event = StoredEvent {
        id: OutboxId(n),
        event_id: EventId(Uuid::new_v4()),
        entity_type: "order",
        entity_id: Some(&key),
        event_type: "OrderPlaced",
        event_version: 1,
        payload: Payload::Json(sample.as_bytes()),
        headers: EventHeaders::default(),
        topic: None,
        created_at: chrono::Utc::now(),
    };
    let mut headers = Vec::new();
    envelope.headers(&event, None, &mut |name, value| headers.push((name.to_owned(), value.to_vec())));
    let value = envelope.value(&event, None, &mut Vec::new()).unwrap_or_default().to_vec();
    Record { key: key.clone(), value, headers }
}
