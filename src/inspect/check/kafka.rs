//! Checks whether the brokers answer, and finds the reason if they do not.

use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigEntry, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::advertised::Advertised;
use super::finding::Finding;
use crate::config::KafkaSettings;
use crate::fault;
use crate::sink::client;
use crate::sink::login::{self, Complaint};
use crate::sink::reader::{ANSWER_WITHIN, Partition, Reader};
use event_outbox::code::Code;

/// The clients of a check.
pub(super) struct Cluster {
    pub(super) reader: Arc<Reader>,
    /// `None` for a login that cannot ask for configurations.
    admin: Option<AdminClient<DefaultClientContext>>,
    /// The brokers; at least one.
    pub(super) brokers: Vec<Advertised>,
    /// True when the relay's client settings let the brokers create a topic.
    lets_create: bool,
}

impl Cluster {
    /// Connects to the cluster, or returns the reason why it does not answer.
    pub(super) async fn reach(kafka: &KafkaSettings) -> Result<Result<Self, Finding>, KafkaError> {
        let settings = kafka.clone();
        let reader = Arc::new(blocking(move || Reader::new(&settings)).await??);
        let mut config = kafka.producer_config(&[("client.id", "outbox-relay")]);
        config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
        let lets_create = client::creates_topics(&config);
        let admin = login::admin(&config, kafka)?;
        let asking = Arc::clone(&reader);
        let (answer, complaint) = blocking(move || {
            let answer = asking.brokers();
            (answer, asking.complaint())
        })
        .await?;
        let brokers: Vec<_> =
            answer.into_iter().flatten().map(|(id, host, port)| Advertised { id, host, port }).collect();
        if brokers.is_empty() {
            return Ok(Err(away(kafka.brokers(), complaint)));
        }
        Ok(Ok(Self { reader, admin, brokers, lets_create }))
    }

    /// Returns the partitions of a topic, or the cluster's error about it.
    pub(super) async fn topic(&self, topic: &str) -> Result<Result<Vec<Partition>, RDKafkaErrorCode>, KafkaError> {
        let (reader, topic) = (Arc::clone(&self.reader), topic.to_owned());
        blocking(move || reader.partitions(&topic)).await?
    }

    /// Returns the names of all topics that the user may see.
    pub(super) async fn topics(&self) -> Result<Vec<String>, KafkaError> {
        let reader = Arc::clone(&self.reader);
        blocking(move || reader.topics()).await?
    }

    /// Returns a topic's configuration; `None` if the user lacks the right to see it.
    pub(super) async fn topic_config(&self, topic: &str) -> Option<Vec<ConfigEntry>> {
        self.config(&ResourceSpecifier::Topic(topic)).await
    }

    /// Returns true when the brokers create a topic that the relay asks for, and the relay's settings allow it.
    pub(super) async fn creates_topics(&self) -> bool {
        self.lets_create && value(&self.broker_config().await, "auto.create.topics.enable") == Some("true")
    }

    /// Returns a broker's configuration; empty if the user lacks the right to see it.
    pub(super) async fn broker_config(&self) -> Vec<ConfigEntry> {
        let Some(first) = self.brokers.first() else { return Vec::new() };
        self.config(&ResourceSpecifier::Broker(first.id)).await.unwrap_or_default()
    }

    async fn config(&self, of: &ResourceSpecifier<'_>) -> Option<Vec<ConfigEntry>> {
        let options = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN));
        let described = self.admin.as_ref()?.describe_configs([of], &options).await.ok()?;
        described.into_iter().next()?.ok().map(|resource| resource.entries)
    }
}

/// Returns the value of a property.
pub(super) fn value<'e>(entries: &'e [ConfigEntry], name: &str) -> Option<&'e str> {
    entries.iter().find(|entry| entry.name == name)?.value.as_deref()
}

/// Runs a call of librdkafka on a blocking thread.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, KafkaError> {
    tokio::task::spawn_blocking(call).await.map_err(|_| KafkaError::Canceled)
}

fn away(brokers: &str, complaint: Option<Complaint>) -> Finding {
    use RDKafkaErrorCode::{Authentication, Resolve, SSL, SaslAuthenticationFailed, UnsupportedSASLMechanism};
    let silence = || {
        let code = RDKafkaErrorCode::BrokerTransportFailure;
        Complaint { code, reason: "no answer".to_owned(), fault: fault::classify_kafka(code) }
    };
    let Complaint { code, reason, fault } = complaint.unwrap_or_else(silence);
    let fix = fault.next_step;
    match code {
        _ if matches!(fault.code, Code::TokenServerAway | Code::TokenRefused) => {
            Finding::error(fault.code, format!("There is no token for the login to {brokers}: {reason}."), fix)
        }
        Resolve => Finding::error(Code::BrokerName, format!("The name of a broker cannot be resolved: {reason}."), fix),
        SSL => Finding::error(Code::BrokerTls, format!("The TLS connection to {brokers} fails: {reason}."), fix),
        Authentication | SaslAuthenticationFailed | UnsupportedSASLMechanism => {
            Finding::error(Code::BrokerLogin, format!("The brokers at {brokers} reject the login: {reason}."), fix)
        }
        _ => Finding::error(
            Code::BrokerUnreachable,
            format!("No broker of {brokers} answers: {reason}."),
            "check that the brokers run, KAFKA_BOOTSTRAP_SERVERS, their advertised.listeners, and KAFKA_SECURITY_PROTOCOL",
        ),
    }
}
