//! Sends dead letters one at a time and waits until all in-sync replicas have acknowledged the record.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseRecord, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;

use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::tokens::Tokens;

/// Settings that the acknowledgement depends on. `partitioner` sends a key to the same partition as the relay does.
const SETTINGS: [(&str, &str); 6] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("partitioner", "murmur2_random"),
    // A worker waits this long, then logs the failure and tries again.
    ("message.timeout.ms", "15000"),
    ("linger.ms", "0"),
    // The record fitted its own topic. Only the broker knows whether it fits this one.
    ("message.max.bytes", "100000000"),
];

/// The longest wait for acknowledgements when the producer is dropped.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

type Answer = oneshot::Sender<Result<(), RDKafkaErrorCode>>;

#[derive(Clone)]
struct Acknowledgements(Tokens);

impl ClientContext for Acknowledgements {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.0.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", level = ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "the dead letter producer reports an error");
    }
}

impl ProducerContext<NoCustomPartitioner> for Acknowledgements {
    type DeliveryOpaque = Box<Answer>;

    fn delivery(&self, result: &DeliveryResult<'_>, answer: Box<Answer>) {
        let outcome = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        // The receiver is gone if the worker was stopped in the meantime.
        let _ = answer.send(outcome);
    }
}

/// The producer of dead letters.
pub(super) struct DeadLetterProducer {
    config: ClientConfig,
    context: Acknowledgements,
    producer: Mutex<Arc<ThreadedProducer<Acknowledgements>>>,
}

impl DeadLetterProducer {
    /// Creates the producer with the client's settings and [`SETTINGS`].
    ///
    /// # Errors
    /// The error of librdkafka if it refuses the settings.
    pub(super) fn new(client: &ClientConfig, tokens: Tokens) -> Result<Self, KafkaError> {
        let mut config = client.clone();
        for (name, value) in SETTINGS {
            config.set(name, value);
        }
        let context = Acknowledgements(tokens);
        let producer = config.create_with_context(context.clone())?;
        Ok(Self { config, context, producer: Mutex::new(Arc::new(producer)) })
    }

    /// Returns the producer, and replaces it first if it has met a fatal error. An idempotent producer refuses all records after a fatal
    /// error, such as a missing right. Its records were reported as failed, so they are sent again.
    fn producer(&self) -> Arc<ThreadedProducer<Acknowledgements>> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if producer.client().fatal_error().is_some()
            && let Ok(next) = self.config.create_with_context(self.context.clone())
        {
            *producer = Arc::new(next);
        }
        Arc::clone(&producer)
    }

    /// Sends the record of `delivery` with these headers and returns once it is acknowledged.
    pub(super) async fn send(
        &self,
        topic: &str,
        delivery: &Delivery,
        headers: OwnedHeaders,
    ) -> Result<(), RDKafkaErrorCode> {
        let (answer, acknowledged) = oneshot::channel();
        let mut record =
            BaseRecord::<[u8], [u8], Box<Answer>>::with_opaque_to(topic, Box::new(answer)).headers(headers);
        record.key = delivery.key.as_deref();
        record.payload = delivery.value.as_deref();
        record.timestamp = delivery.timestamp;
        self.producer()
            .send(record)
            .map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown))?;
        acknowledged.await.unwrap_or(Err(RDKafkaErrorCode::PurgeInflight))
    }
}

impl Drop for DeadLetterProducer {
    fn drop(&mut self) {
        // Records that are not acknowledged in time are sent again, because their offsets are not committed.
        let producer = self.producer.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = producer.flush(FLUSH_WITHIN);
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    #[tokio::test]
    async fn a_producer_that_was_refused_for_good_is_replaced_so_that_a_right_that_is_granted_later_helps() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("dead", 1, 1).expect("a topic");
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED];
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &refused);
        let client = ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).clone();
        let dead_letters = DeadLetterProducer::new(&client, Tokens::default()).expect("a producer");
        let delivery = Delivery {
            topic: "source".to_owned(),
            partition: 0,
            offset: 0,
            key: None,
            value: Some(b"{}".to_vec()),
            headers: Arc::default(),
            timestamp: None,
            parked: None,
        };
        let send = || dead_letters.send("dead", &delivery, OwnedHeaders::new());
        send().await.expect_err("refused");
        assert_eq!(send().await, Ok(()));
    }
}
