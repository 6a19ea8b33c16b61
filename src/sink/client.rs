//! Builds librdkafka's settings from the operator's settings and from those that the guarantees depend on. The latter take precedence.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::config::KafkaSettings;
use crate::sink::produce_error::DEBUG_CONTEXT;

/// The defaults for every client. The operator may change them.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "outbox-relay"),
    ("compression.type", "lz4"),
    // With the default of 10 s, recovery would wait that long after a broker is back.
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "500"),
    // The time for which a topic may be unknown while its creation spreads through the cluster.
    ("topic.metadata.propagation.max.ms", "5000"),
    ("socket.nagle.disable", "true"),
    ("socket.keepalive.enable", "true"),
    ("log.connection.close", "false"),
];

/// The settings that G2 and G3 depend on. The configuration refuses to change them.
const GUARANTEES: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // No record follows one that failed for good: the producer stops, and all unacknowledged records are sent again.
    ("enable.gapless.guarantee", "true"),
    // Never gives a record up: a timed-out record that is sent again later would arrive after its successors. The batch has its own
    // timeout.
    ("message.timeout.ms", "0"),
];

/// Returns the log level of the client. Without it, KAFKA_DEBUG would have no effect.
pub(crate) fn log_level(config: &ClientConfig) -> RDKafkaLogLevel {
    if config.get("debug").is_some() { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info }
}

/// librdkafka repeats itself for as long as a broker is away. Its lines are for those who ask; incidents are logged by the relay.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let message = if is_about_tokens(facility) { "a token cannot be fetched" } else { message };
    tracing::debug!(target: "librdkafka", level = ?level, facility, "{message}");
}

/// Returns true for log lines of librdkafka that quote the token server's URL and its answer.
pub(crate) fn is_about_tokens(facility: &str) -> bool {
    matches!(facility, "OIDC" | "JWT")
}

/// Returns true if the operator has asked for a producer's debug lines, besides the lines that the relay reads itself.
pub(crate) fn is_debugged(config: &ClientConfig) -> bool {
    config.get("debug") != Some(DEBUG_CONTEXT)
}

/// A large batch is handed over in about that time, and goes out in one request per partition instead of several.
const LINGER_MS: &str = "2";

/// The settings from which the relay's clients are made.
#[derive(Clone)]
pub(crate) struct ClientSettings {
    config: ClientConfig,
    kafka: KafkaSettings,
    /// True if the operator has set the linger time.
    linger_is_set: bool,
    /// The operator's debug contexts.
    debug: Option<String>,
}

/// The retry backoff of a transactional producer. With librdkafka's default of 100 ms, each small transaction waits for it once and takes
/// 105 ms instead of 5 ms.
const TRANSACTION_RETRY_MS: &str = "10";

/// The default of `message.max.bytes` in librdkafka.
const MESSAGE_MAX_BYTES: usize = 1_000_000;

/// The default limit of a broker (`transaction.max.timeout.ms`).
const LONGEST_TRANSACTION: Duration = Duration::from_secs(15 * 60);

impl ClientSettings {
    /// Builds the settings. A producer never has more than `batch_size` events and `batch_bytes` bytes to send at once.
    pub(crate) fn new(kafka: &KafkaSettings, batch_size: usize, batch_bytes: usize) -> Self {
        let messages = batch_size.saturating_mul(2).clamp(1000, 10_000_000).to_string();
        // Envelopes and headers need space in addition to the payloads. librdkafka's own limit is 2 TiB.
        let kbytes = (64 * 1024 + batch_bytes / 512).min(2_147_483_647).to_string();
        let mut config = kafka.producer_config(DEFAULTS);
        for (name, value) in GUARANTEES {
            config.set(*name, *value);
        }
        // The queue must hold a whole batch: if it were full in the middle of one, later records could overtake earlier ones.
        config.set("queue.buffering.max.messages", &messages);
        config.set("queue.buffering.max.kbytes", &kbytes);
        let linger_is_set = ["linger.ms", "queue.buffering.max.ms"].iter().any(|name| config.get(name).is_some());
        if !linger_is_set {
            config.set("linger.ms", LINGER_MS);
        }
        let debug = config.get("debug").map(str::to_owned);
        let contexts = debug.iter().map(String::as_str).chain([DEBUG_CONTEXT]);
        config.set("debug", contexts.collect::<Vec<_>>().join(","));
        config.set_log_level(log_level(&config));
        Self { config, kafka: kafka.clone(), linger_is_set, debug }
    }

    /// Returns the operator's settings, for clients of another kind.
    pub(crate) fn kafka(&self) -> &KafkaSettings {
        &self.kafka
    }

    /// Returns the settings of a producer that publishes in transactions. The coordinator rolls back a transaction that is open for longer
    /// than `longest`.
    pub(crate) fn transactional(&self, id: &str, longest: Duration) -> ClientConfig {
        let mut config = self.config();
        config.set("transactional.id", id);
        config.set("transaction.timeout.ms", longest.min(LONGEST_TRANSACTION).as_millis().to_string());
        // Neither setting is needed: after any failure the whole transaction is rolled back, and librdkafka limits a record's time by its
        // transaction.
        config.remove("message.timeout.ms");
        config.remove("enable.gapless.guarantee");
        if config.get("retry.backoff.ms").is_none() {
            config.set("retry.backoff.ms", TRANSACTION_RETRY_MS);
        }
        // Records collect in the queue anyway while their partitions are added to the transaction.
        if !self.linger_is_set {
            config.set("linger.ms", "0");
        }
        config
    }

    /// Returns the settings of a producer that sends each record at once; `None` if the operator has set the linger time.
    ///
    /// librdkafka waits in whole milliseconds, so any linger time costs a small batch at least one. Without a linger time its thread spins
    /// while records wait behind five requests in flight, so do not use this for large batches.
    pub(crate) fn prompt(&self) -> Option<ClientConfig> {
        let mut config = self.config();
        config.set("linger.ms", "0");
        (!self.linger_is_set).then_some(config)
    }

    /// Returns the largest record that the producers accept, in bytes (`message.max.bytes`).
    pub(crate) fn message_max_bytes(&self) -> usize {
        let configured = ["message.max.bytes", "max.request.size"].iter().find_map(|name| self.config.get(name));
        configured.and_then(|bytes| bytes.parse().ok()).unwrap_or(MESSAGE_MAX_BYTES)
    }

    /// Returns the settings of a client that only sends requests for metadata. An idempotent client would break permanently if the right to
    /// be idempotent were missing, and would not connect again.
    pub(crate) fn watching(&self) -> ClientConfig {
        let mut config = self.config();
        config.set("enable.idempotence", "false");
        config.remove("enable.gapless.guarantee");
        match &self.debug {
            Some(debug) => drop(config.set("debug", debug)),
            None => drop(config.remove("debug")),
        }
        config.set_log_level(log_level(&config));
        config
    }

    /// Returns true if this client lets the brokers create topics: see [`creates_topics`].
    pub(crate) fn creates_topics(&self) -> bool {
        creates_topics(&self.config)
    }

    /// Returns the settings of a producer, with the login that is in force.
    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = self.config.clone();
        self.kafka.renew_login(&mut config);
        config
    }
}

/// Returns true if a client with this configuration lets the brokers create a topic that it asks for.
pub(crate) fn creates_topics(config: &ClientConfig) -> bool {
    let allowed = config.get("allow.auto.create.topics");
    allowed.is_some_and(|allowed| ["true", "t", "1"].iter().any(|yes| allowed.eq_ignore_ascii_case(yes)))
}
