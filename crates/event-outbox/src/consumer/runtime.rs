//! Builds and runs a consumer.
//!
//! - `options`: the options and the errors of a consumer
//! - `failed`: classifies errors and decides what happens to the event
//! - `group`: the group member, which polls, distributes records and commits offsets
//! - `worker`: handles the events of one partition in order
//! - `attempt`: one attempt, in one transaction
//! - `held`: the held keys of a group
//! - `dead_letter_producer`: sends dead letters
//! - `progress`: the offset that a partition has reached, and the size of its queue
//! - `pause`: the pause between two attempts; `shared`: the state that all parts share
//! - `registry`: handlers and upcasters
//! - `tokens`: tokens for the login
//! - `context`, `delivery`: the event and the transaction that a handler gets

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
mod tokens;
mod worker;

pub use context::Context;
pub use delivery::Event;
pub use failed::{Action, Failed, Policy};
pub use options::{ConsumerError, Retry, UnknownType};
pub use stats::Stats;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::OAuthToken;
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
use crate::consumer::runtime::tokens::Tokens;
#[cfg(feature = "msk-iam")]
use crate::msk_iam::MskIam;
use crate::notice::Notice;
use crate::outbox::Outbox;
#[cfg(feature = "schema")]
use crate::schemas::Schemas;

/// Settings that apply unless the user sets them.
const DEFAULTS: [(&str, &str); 7] = [
    // Without a committed offset, read all that the topic holds: the inbox knows which events have been applied.
    ("auto.offset.reset", "earliest"),
    // Only partitions that move to another member are revoked.
    ("partition.assignment.strategy", "cooperative-sticky"),
    // Most kilobytes fetched ahead for all partitions. The default of librdkafka is 64 MiB, more than most services have to spare.
    ("queued.max.messages.kbytes", "16384"),
    ("client.id", "outbox-relay-consumer"),
    ("reconnect.backoff.max.ms", "1000"),
    ("socket.nagle.disable", "true"),
    ("log.connection.close", "false"),
];

/// Settings that the guarantees depend on; the user cannot change them.
const GUARANTEES: [(&str, &str); 2] = [("enable.auto.commit", "false"), ("enable.auto.offset.store", "false")];

/// A member of a consumer group that applies each event of its topics once.
///
/// Partitions are worked on in parallel, each in order. An event is marked as processed in the transaction of its effect, and its offset is
/// committed after that. Failed events are tried again with growing pauses while the member stays in its group. Events that cannot be
/// applied go to a dead letter topic, `<topic>.<group>.dlq` by default; see [`Policy`].
///
/// ```no_run
/// use event_outbox::consumer::{Consumer, Context, Failed};
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
/// # async fn run(pool: sqlx::PgPool) -> Result<(), event_outbox::consumer::ConsumerError> {
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
    prepared_statements: bool,
    #[cfg(feature = "schema")]
    schemas: Option<Schemas>,
    stats: Arc<Stats>,
    tokens: Tokens,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's settings are left out, because a password may be among them.
        f.debug_struct("Consumer").field("group", &self.group).field("topics", &self.topics).finish_non_exhaustive()
    }
}

impl Consumer {
    /// Creates a member of the group. The inbox and the effects of the handlers are in the database of `pool`. The pool needs one
    /// connection per partition that is worked on at the same time; with fewer, partitions wait for each other.
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
            prepared_statements: true,
            #[cfg(feature = "schema")]
            schemas: None,
            stats: Arc::default(),
            tokens: Tokens::default(),
        }
    }

    /// Sets a property of librdkafka, for example `bootstrap.servers` or `sasl.password`. The producer of dead letters gets the property,
    /// too.
    pub fn kafka(mut self, property: impl Into<String>, value: impl Into<String>) -> Self {
        self.client.set(property, value);
        self
    }

    /// Sets the source of tokens for the mechanism OAUTHBEARER. It is called on the thread that polls, so it should answer within seconds.
    /// With `sasl.oauthbearer.method=oidc` librdkafka fetches the tokens itself, if it is built with libcurl.
    pub fn tokens(mut self, source: impl Fn() -> Result<OAuthToken, Box<dyn Error>> + Send + Sync + 'static) -> Self {
        self.client.set("sasl.mechanism", "OAUTHBEARER");
        self.tokens = Tokens::new(source);
        self
    }

    /// Logs in to Amazon MSK with IAM. `security.protocol` has to be `sasl_ssl`, which needs rdkafka's feature `ssl`.
    #[cfg(feature = "msk-iam")]
    pub fn msk_iam(self, login: MskIam) -> Self {
        self.tokens(move || {
            let token = login.token()?;
            let principal_name = "event-outbox".to_owned();
            Ok(OAuthToken { token: token.value, principal_name, lifetime_ms: token.expires_at_ms })
        })
    }

    /// Adds a topic to read. Call it once per topic. A retry topic, to which `outbox-relay dlq redrive --to` sends the group's dead
    /// letters, is one more topic. If an event fails again there, it goes to the dead letter topic of the topic that it was first read
    /// from.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// Adds the handler of an event type for a range of versions, such as `1..=2` or `3..`. The payload is parsed as `T`, a tombstone as
    /// JSON `null`.
    pub fn on<T, F, Fut>(mut self, event_type: &str, versions: impl RangeBounds<i32>, handler: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        self.registry.on(event_type, &versions, handler);
        self
    }

    /// Adds a handler for payloads that are not JSON. The handler reads [`Context::payload`].
    pub fn on_raw<F, Fut>(mut self, event_type: &str, versions: impl RangeBounds<i32>, handler: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        self.registry.on_any(event_type, &versions, handler);
        self
    }

    /// Adds an upcaster, which brings a payload of version `from` to the next version. It runs only if no handler takes version `from`.
    pub fn upcast<A, B, F>(mut self, event_type: &str, from: i32, upcaster: F) -> Self
    where
        A: DeserializeOwned,
        B: Serialize,
        F: Fn(A) -> Result<B, Failed> + Send + Sync + 'static,
    {
        self.registry.upcast(event_type, from, upcaster);
        self
    }

    /// Sets the treatment of events that cannot be applied. By default all are skipped.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the attempts and pauses for transient errors.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Sets the treatment of events whose type no handler takes. By default they are ignored.
    pub fn unknown_type(mut self, unknown_type: UnknownType) -> Self {
        self.unknown_type = unknown_type;
        self
    }

    /// Sets the function from a source topic to its dead letter topic.
    pub fn dead_letter_topic(mut self, topic_of: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.dead_letter_topic = Arc::new(topic_of);
        self
    }

    /// Sets the names of inbox and outbox, if they are not the default ones.
    pub fn names(mut self, names: Names) -> Self {
        self.names = names;
        self
    }

    /// Sets whether the runtime keeps prepared statements; true by default. Set false behind a transaction-mode pooler that does not know
    /// them, such as PgBouncer before 1.21. Handlers then have to call `persistent(false)` on their queries, and the pool's options need
    /// `extra_float_digits(None)`, which PgBouncer refuses at the start of a session.
    pub fn prepared_statements(mut self, prepared_statements: bool) -> Self {
        self.prepared_statements = prepared_statements;
        self
    }

    /// Sets the outbox that [`Context::emit`] writes to. The default is the outbox of [`Consumer::names`].
    pub fn outbox(mut self, outbox: Outbox) -> Self {
        self.outbox = Some(outbox);
        self
    }

    /// Checks payloads against these schemas as they were written, before any upcaster. An invalid payload is a failure with the path of
    /// the member.
    #[cfg(feature = "schema")]
    pub fn schemas(mut self, schemas: Schemas) -> Self {
        self.schemas = Some(schemas);
        self
    }

    /// Sets the most records of a partition that may wait in memory, 2,000 by default. Beyond this number, or 4 MiB, fetching pauses. A
    /// smaller number is not faster, because librdkafka fetches again the records that it had fetched ahead of a pause.
    pub fn queue(mut self, records: usize) -> Self {
        self.limits.queue = records.max(1);
        self
    }

    /// Sets the interval between two commits of offsets, 500 ms by default. After a crash, events since the last commit are delivered again
    /// and skipped.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.limits.commit_interval = interval;
        self
    }

    /// Sets the time that handlers may take to end when their partition is revoked or the consumer stops, 30 s by default. After that their
    /// transactions are rolled back. Must be shorter than `max.poll.interval.ms`.
    pub fn drain(mut self, within: Duration) -> Self {
        self.limits.drain = within;
        self
    }

    /// Returns the counters of this consumer. They go on counting while the consumer runs.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Runs until `stop` is ready. Then waits for the handlers at work, commits their offsets and leaves the group.
    ///
    /// # Errors
    /// [`ConsumerError`]. Handlers have ended and offsets are committed in that case, too.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ConsumerError> {
        let config = self.check()?;
        let held = Held::new(&self.group, &self.names, self.prepared_statements);
        // In a transaction, because a pooler may send the parts of a statement to two servers.
        let parked = match self.pool.begin().await {
            Ok(mut tx) => held.count(&mut tx).await,
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
            dead_letters: DeadLetterProducer::new(&self.client, self.tokens.clone())?,
            attempt_context: AttemptContext {
                pool: self.pool,
                held,
                outbox: self
                    .outbox
                    .unwrap_or_else(|| Outbox::new(&self.names).prepared_statements(self.prepared_statements)),
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
            tokens: self.tokens,
            shutdown: Shutdown::default(),
        });
        // Stops the polling thread even if this future is dropped.
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

    /// Checks the configuration and returns the client's settings.
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
            // The new group protocol has no client-side assignment strategy and refuses the setting.
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
