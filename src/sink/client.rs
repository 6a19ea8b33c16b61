//! librdkafka's settings: the operator's, and those a guarantee rests on, which win.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::config::KafkaSettings;

/// What holds for every client unless the operator says otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "outbox-relay"),
    ("compression.type", "lz4"),
    // The default of 10 s would be how long recovery waits after a broker is back.
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "500"),
    // How long a topic may be unknown while its creation spreads in the cluster.
    ("topic.metadata.propagation.max.ms", "5000"),
    ("socket.nagle.disable", "true"),
    ("socket.keepalive.enable", "true"),
    ("log.connection.close", "false"),
];

/// G2 and G3 rest on these; the configuration refuses to change them.
const GUARANTEES: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // Nothing follows a record that failed for good: the producer stops, and the whole unacknowledged suffix is sent again.
    ("enable.gapless.guarantee", "true"),
    // Never give a record up: a gap after a timeout, followed by a retry, inverts the order. The batch has its own bound.
    ("message.timeout.ms", "0"),
];

/// What the client is asked to log: without this, KAFKA_DEBUG would have no effect.
pub(crate) fn log_level(config: &ClientConfig) -> RDKafkaLogLevel {
    if config.get("debug").is_some() { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info }
}

/// librdkafka repeats itself for as long as a broker is away. Its lines are for those who ask; incidents are logged by the relay.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(target: "librdkafka", level = ?level, facility, "{message}");
}

/// A large batch is handed over in about that time, and goes out in one request per partition instead of several.
const LINGER_MS: &str = "2";

/// What a client of the relay is made from.
#[derive(Clone)]
pub(crate) struct ClientSettings {
    config: ClientConfig,
    kafka: KafkaSettings,
    /// The operator has said how long to linger.
    linger_is_set: bool,
}

/// With librdkafka's default of 100 ms each small transaction waits for it once: 105 ms instead of 5.
const TRANSACTION_RETRY_MS: &str = "10";

/// librdkafka's default of `message.max.bytes`.
const MESSAGE_MAX_BYTES: usize = 1_000_000;

/// What a broker allows unless told otherwise (`transaction.max.timeout.ms`).
const LONGEST_TRANSACTION: Duration = Duration::from_secs(15 * 60);

impl ClientSettings {
    /// `batch_size` events and `batch_bytes` bound what a producer is ever given at once.
    pub(crate) fn new(kafka: &KafkaSettings, batch_size: usize, batch_bytes: usize) -> Self {
        let messages = batch_size.saturating_mul(2).clamp(1000, 10_000_000).to_string();
        // Envelopes and headers come on top of the payloads. librdkafka's own limit is 2 TiB.
        let kbytes = (64 * 1024 + batch_bytes / 512).min(2_147_483_647).to_string();
        let mut config = kafka.producer_config(DEFAULTS);
        for (name, value) in GUARANTEES {
            config.set(*name, *value);
        }
        // A whole batch has to fit: a full queue in the middle of it would let later records pass earlier ones.
        config.set("queue.buffering.max.messages", &messages);
        config.set("queue.buffering.max.kbytes", &kbytes);
        let linger_is_set = ["linger.ms", "queue.buffering.max.ms"].iter().any(|name| config.get(name).is_some());
        if !linger_is_set {
            config.set("linger.ms", LINGER_MS);
        }
        config.set_log_level(log_level(&config));
        Self { config, kafka: kafka.clone(), linger_is_set }
    }

    /// The operator's settings, for clients of another kind.
    pub(crate) fn kafka(&self) -> &KafkaSettings {
        &self.kafka
    }

    /// For a producer that publishes in transactions. The coordinator rolls one back that is open for longer than `longest`.
    pub(crate) fn transactional(&self, id: &str, longest: Duration) -> ClientConfig {
        let mut config = self.config.clone();
        config.set("transactional.id", id);
        config.set("transaction.timeout.ms", longest.min(LONGEST_TRANSACTION).as_millis().to_string());
        // Neither is needed: after any failure the whole transaction is rolled back. librdkafka bounds a record by its transaction.
        config.remove("message.timeout.ms");
        config.remove("enable.gapless.guarantee");
        if config.get("retry.backoff.ms").is_none() {
            config.set("retry.backoff.ms", TRANSACTION_RETRY_MS);
        }
        // Records gather while their partitions are added to the transaction.
        if !self.linger_is_set {
            config.set("linger.ms", "0");
        }
        config
    }

    /// For a producer that sends each record at once; `None` where the operator has said how long to linger.
    ///
    /// librdkafka waits for whole milliseconds: whatever linger there is costs a small batch one. Without any, its thread spins while
    /// records wait behind five that are in flight, so this is not for large batches.
    pub(crate) fn prompt(&self) -> Option<ClientConfig> {
        let mut config = self.config.clone();
        config.set("linger.ms", "0");
        (!self.linger_is_set).then_some(config)
    }

    /// The largest record that the producers accept, in bytes (`message.max.bytes`).
    pub(crate) fn message_max_bytes(&self) -> usize {
        let configured = ["message.max.bytes", "max.request.size"].iter().find_map(|name| self.config.get(name));
        configured.and_then(|bytes| bytes.parse().ok()).unwrap_or(MESSAGE_MAX_BYTES)
    }

    /// For a client that asks and sends nothing. An idempotent one would be broken for good by a missing right, and not connect again.
    pub(crate) fn watching(&self) -> ClientConfig {
        let mut config = self.config.clone();
        config.set("enable.idempotence", "false");
        config.remove("enable.gapless.guarantee");
        config
    }

    /// See [`creates_topics`].
    pub(crate) fn creates_topics(&self) -> bool {
        creates_topics(&self.config)
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }
}

/// Returns true when a client of this configuration lets the brokers create a topic that it asks for.
pub(crate) fn creates_topics(config: &ClientConfig) -> bool {
    let allowed = config.get("allow.auto.create.topics");
    allowed.is_some_and(|allowed| ["true", "t", "1"].iter().any(|yes| allowed.eq_ignore_ascii_case(yes)))
}
