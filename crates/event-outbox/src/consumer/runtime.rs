//! The consumer as its user builds it.
//!
//! - [`options`]: the options and the errors of a consumer

mod attempt;
mod context;
mod dead_letter_producer;
mod delivery;
mod failed;
mod group;
mod held;
mod options;
mod pause;
mod progress;
mod registry;
mod shared;
mod stats;
mod worker;

pub use context::Context;
pub use delivery::Event;
pub use failed::{Action, Failed, Policy};
pub use options::{ConsumerError, Retry, UnknownType};
pub use stats::Stats;

use std::fmt;
use std::future::Future;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::PgPool;

use crate::Names;
use crate::consumer::dead_letter::DeadLetter;
use crate::consumer::runtime::attempt::AttemptContext;
use crate::consumer::runtime::dead_letter_producer::DeadLetterProducer;
use crate::consumer::runtime::held::Held;
use crate::consumer::runtime::registry::Registry;
use crate::consumer::runtime::shared::{Limits, Shared, Shutdown, StopOnDrop, TopicOf};
use crate::notice::Notice;
use crate::outbox::Outbox;
#[cfg(feature = "schema")]
use crate::schemas::Schemas;

/// What holds unless the user says otherwise.
const DEFAULTS: [(&str, &str); 7] = [
    // Without an offset, all that the topic holds: the inbox knows what has been applied.
    ("auto.offset.reset", "earliest"),
    // Only what moves from one member to another is taken from anyone.
    ("partition.assignment.strategy", "cooperative-sticky"),
    // Fetched ahead, all partitions together; the client's own 64 MiB are more than most services' memory allows for.
    ("queued.max.messages.kbytes", "16384"),
    ("client.id", "outbox-relay-consumer"),
    ("reconnect.backoff.max.ms", "1000"),
    ("socket.nagle.disable", "true"),
    ("log.connection.close", "false"),
];

/// What the guarantees rest on.
const GUARANTEES: [(&str, &str); 2] = [("enable.auto.commit", "false"), ("enable.auto.offset.store", "false")];

/// A group of handlers that applies each event of its topics once.
///
/// Its partitions are worked on side by side, each in order. An event is marked as processed in the transaction of its effect, and
/// its offset is committed after that. Errors are tried again with growing pauses, while the member stays in its group; what
/// cannot be applied goes to a dead letter topic, `<topic>.<group>.dlq` by default, by [`Policy`].
///
/// ```no_run
/// use outbox_relay::consumer::{Consumer, Context, Failed};
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// #[serde(rename_all = "camelCase")]
/// struct OrderPlaced {
///     order_id: String,
///     total_cents: i64,
/// }
///
/// async fn book(mut ctx: Context, order: OrderPlaced) -> Result<(), Failed> {
///     sqlx::query("insert into invoices (order_id, cents) values ($1, $2)")
///         .bind(order.order_id)
///         .bind(order.total_cents)
///         .execute(ctx.tx())
///         .await?;
///     Ok(())
/// }
///
/// # async fn run(pool: sqlx::PgPool) -> Result<(), outbox_relay::consumer::ConsumerError> {
/// Consumer::new("billing", pool)
///     .kafka("bootstrap.servers", "localhost:9092")
///     .topic("order-events")
///     .on("OrderPlaced", 1..=2, book)
///     .run(async { tokio::signal::ctrl_c().await.expect("Ctrl-C can be listened to") })
///     .await
/// # }
/// ```
pub struct Consumer {
    group: String,
    pool: PgPool,
    names: Names,
    client: ClientConfig,
    topics: Vec<String>,
    registry: Registry,
    policy: Policy,
    retry: Retry,
    unknown_type: UnknownType,
    dead_letter_topic: TopicOf,
    limits: Limits,
    outbox: Option<Outbox>,
    #[cfg(feature = "schema")]
    schemas: Option<Schemas>,
    stats: Arc<Stats>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client's settings: a password may be among them.
        f.debug_struct("Consumer").field("group", &self.group).field("topics", &self.topics).finish_non_exhaustive()
    }
}

impl Consumer {
    /// A member of the group, whose inbox and effects are in the database of `pool`. The pool needs a connection for each partition
    /// that is worked on at the same time; with fewer, partitions wait for each other.
    pub fn new(group: impl Into<String>, pool: PgPool) -> Self {
        let group = group.into();
        let of_group = group.clone();
        Self {
            group,
            pool,
            names: Names::default(),
            client: ClientConfig::new(),
            topics: Vec::new(),
            registry: Registry::default(),
            policy: Policy::default(),
            retry: Retry::default(),
            unknown_type: UnknownType::default(),
            dead_letter_topic: Arc::new(move |topic| DeadLetter::default_topic(topic, &of_group)),
            limits: Limits {
                queue: 2_000,
                commit_interval: Duration::from_millis(500),
                drain: Duration::from_secs(30),
            },
            outbox: None,
            #[cfg(feature = "schema")]
            schemas: None,
            stats: Arc::default(),
        }
    }

    /// A setting of librdkafka, for example `bootstrap.servers` or `sasl.password`; the producer of dead letters gets it, too.
    pub fn kafka(mut self, property: impl Into<String>, value: impl Into<String>) -> Self {
        self.client.set(property, value);
        self
    }

    /// A topic to read; may be called more than once: a retry topic of the group, to which `outbox-relay dlq redrive --to` sends its dead
    /// letters, is one more. What dies again there goes to the dead letter topic of the topic it was read from first.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// The handler of an event type, for a range of versions: `1..=2`, `3..`. The payload is read as `T`; a tombstone as JSON `null`.
    pub fn on<T, F, Fut>(mut self, event_type: &str, versions: impl RangeBounds<i32>, handler: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        self.registry.on(event_type, &versions, handler);
        self
    }

    /// The same for payloads that are no JSON: the handler reads [`Context::payload`].
    pub fn on_raw<F, Fut>(mut self, event_type: &str, versions: impl RangeBounds<i32>, handler: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        self.registry.on_any(event_type, &versions, handler);
        self
    }

    /// Brings payloads of version `from` to the next one, where no handler takes `from`.
    pub fn upcast<A, B, F>(mut self, event_type: &str, from: i32, upcaster: F) -> Self
    where
        A: DeserializeOwned,
        B: Serialize,
        F: Fn(A) -> Result<B, Failed> + Send + Sync + 'static,
    {
        self.registry.upcast(event_type, from, upcaster);
        self
    }

    /// What becomes of events that cannot be applied; all are skipped by default.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How often transient errors are tried again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// What becomes of events whose type no handler knows; they are ignored by default.
    pub fn unknown_type(mut self, unknown_type: UnknownType) -> Self {
        self.unknown_type = unknown_type;
        self
    }

    /// The dead letter topic of a source topic.
    pub fn dead_letter_topic(mut self, topic_of: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.dead_letter_topic = Arc::new(topic_of);
        self
    }

    /// The names of inbox and outbox, where they are not the default ones.
    pub fn names(mut self, names: Names) -> Self {
        self.names = names;
        self
    }

    /// The outbox that [`Context::emit`] writes to; the one of [`Consumer::names`] by default.
    pub fn outbox(mut self, outbox: Outbox) -> Self {
        self.outbox = Some(outbox);
        self
    }

    /// Payloads are checked as they were written, before any upcaster; an invalid one is a failure with its path.
    #[cfg(feature = "schema")]
    pub fn schemas(mut self, schemas: Schemas) -> Self {
        self.schemas = Some(schemas);
        self
    }

    /// Records of a partition that may wait in memory; fetching pauses beyond, and at 4 MiB. 2,000 by default. Fewer are no faster: what the
    /// client has fetched ahead of a pause it fetches again.
    pub fn queue(mut self, records: usize) -> Self {
        self.limits.queue = records.max(1);
        self
    }

    /// How often offsets are committed. What is applied and not committed is delivered again after a crash, and skipped. 500 ms by
    /// default.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.limits.commit_interval = interval;
        self
    }

    /// How long handlers may take to end when their partition goes to another member, or the consumer stops; then their
    /// transactions are rolled back. 30 s by default; to be shorter than `max.poll.interval.ms`.
    pub fn drain(mut self, within: Duration) -> Self {
        self.limits.drain = within;
        self
    }

    /// Its counters; they go on while it runs.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Runs until `stop` is ready, then ends the handlers that are at work, commits their offsets and leaves the group.
    ///
    /// # Errors
    /// [`ConsumerError`]; handlers have been ended and offsets committed in that case, too.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ConsumerError> {
        let config = self.check()?;
        let held = Held::new(&self.group, &self.names);
        let parked = match self.pool.acquire().await {
            Ok(mut conn) => held.count(&mut conn).await,
            Err(error) => Err(error),
        };
        let parked = parked.map_err(ConsumerError::Inbox)?;
        tracing::info!(
            notice = %Notice::Starting,
            group = self.group,
            topics = self.topics.join(" "),
            parked,
            "the consumer is starting"
        );
        let shared = Arc::new(Shared {
            dead_letters: DeadLetterProducer::new(&self.client)?,
            attempt_context: AttemptContext {
                pool: self.pool,
                held,
                outbox: self.outbox.unwrap_or_else(|| Outbox::new(&self.names)),
            },
            group: self.group,
            registry: self.registry,
            policy: self.policy,
            retry: self.retry,
            unknown_type: self.unknown_type,
            dead_letter_topic: self.dead_letter_topic,
            limits: self.limits,
            #[cfg(feature = "schema")]
            schemas: self.schemas,
            stats: self.stats,
            shutdown: Shutdown::default(),
        });
        // However this future ends, the thread hears of it.
        let _stop = StopOnDrop(Arc::clone(&shared));
        let (runtime, of_thread) = (tokio::runtime::Handle::current(), Arc::clone(&shared));
        let topics = self.topics;
        let mut polling = tokio::task::spawn_blocking(move || group::run(&of_thread, &config, &topics, runtime));
        let polled = tokio::select! {
            biased;
            polled = &mut polling => polled,
            () = stop => {
                shared.shutdown.stop();
                polling.await
            }
        };
        polled.unwrap_or(Err(ConsumerError::Task))?;
        shared.shutdown.take_error().map_or(Ok(()), Err)
    }

    /// The client's settings.
    fn check(&self) -> Result<ClientConfig, ConsumerError> {
        let refuse = |why: String| Err(ConsumerError::Configuration(why));
        if let Some(conflict) = self.registry.conflicts.first() {
            return refuse(conflict.clone());
        }
        if self.topics.is_empty() || self.registry.is_empty() {
            return refuse("it needs a topic and a handler".to_owned());
        }
        if self.group.is_empty() || self.client.get("bootstrap.servers").is_none() {
            return refuse("it needs a group and `bootstrap.servers`".to_owned());
        }
        for name in ["group.id", "enable.auto.commit", "enable.auto.offset.store"] {
            if self.client.get(name).is_some() {
                return refuse(format!("`{name}` is set by the consumer itself"));
            }
        }
        let mut config = self.client.clone();
        for (name, value) in DEFAULTS {
            // The new group protocol has no client-side strategy and refuses one.
            let other_protocol = name == "partition.assignment.strategy" && config.get("group.protocol").is_some();
            if config.get(name).is_none() && !other_protocol {
                config.set(name, value);
            }
        }
        for (name, value) in GUARANTEES {
            config.set(name, value);
        }
        config.set("group.id", &self.group).set_log_level(RDKafkaLogLevel::Info);
        Ok(config)
    }
}
