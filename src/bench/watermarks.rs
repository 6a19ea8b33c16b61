//! Counts the records of a topic cheaply: by the partitions' high watermarks, without consuming.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::bench_schema::{BenchSchema, BenchSchemas};
use super::failure::BenchError;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Watermarks {
    client: Arc<BaseConsumer>,
    topic: String,
    partitions: i32,
}

impl Watermarks {
    pub(crate) fn new(schemas: &BenchSchemas, schema: &BenchSchema) -> Result<Self, BenchError> {
        let client = schemas.kafka().consumer_config(&[("client.id", "outbox-relay-bench")]).create()?;
        Ok(Self { client: Arc::new(client), topic: schema.name.clone(), partitions: schema.partitions })
    }

    /// Returns the number of records on the topic; a record that was sent twice counts twice.
    pub(crate) async fn records(&self) -> Result<u64, BenchError> {
        let this = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            (0..this.partitions).try_fold(0, |sum, partition| {
                let (_, high) = this.client.fetch_watermarks(&this.topic, partition, ANSWER_WITHIN)?;
                Ok::<u64, BenchError>(sum + high as u64)
            })
        });
        asked.await.map_err(|_| BenchError::Thread)?
    }
}
