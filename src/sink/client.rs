//! librdkafka's settings: the operator's, and those a guarantee rests on, which win.

use rdkafka::ClientConfig;

/// What holds for every client unless the operator says otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "outbox-relay"),
    // Java's partitioner, so that other producers of a topic agree on an entity's partition.
    ("partitioner", "murmur2_random"),
    ("compression.type", "lz4"),
    // A batch is handed over in one go, so there is nothing to linger for; a fraction of a millisecond lets the queue fill.
    ("linger.ms", "0.5"),
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

/// What a client of the relay is made from.
#[derive(Clone)]
pub(crate) struct ClientSettings {
    config: ClientConfig,
}

impl ClientSettings {
    /// `properties` are the operator's, checked by the configuration. `batch_size` and `batch_bytes` bound what a producer is
    /// ever given at once.
    pub(crate) fn new<'a>(
        brokers: &str,
        properties: impl Iterator<Item = (&'a str, &'a str)>,
        batch_size: usize,
        batch_bytes: usize,
    ) -> Self {
        let mut config = ClientConfig::new();
        for (name, value) in DEFAULTS {
            config.set(*name, *value);
        }
        config.set("queue.buffering.max.messages", (2 * batch_size).max(1000).to_string());
        // Envelopes and headers come on top of the payloads.
        config.set("queue.buffering.max.kbytes", (64 * 1024 + 2 * batch_bytes / 1024).to_string());
        for (name, value) in properties {
            config.set(name, value);
        }
        for (name, value) in GUARANTEES {
            config.set(*name, *value);
        }
        config.set("bootstrap.servers", brokers);
        config.set_log_level(rdkafka::config::RDKafkaLogLevel::Info);
        Self { config }
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }
}
