//! Sets and checks the options of a consumer.

use std::error::Error;
use std::future::Future;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Names;
use crate::consumer::runtime::Consumer;
use crate::consumer::runtime::context::{BatchContext, BatchEvent, Context};
use crate::consumer::runtime::control::Control;
use crate::consumer::runtime::delivery::Event;
use crate::consumer::runtime::failed::{Action, Failed, Policy};
use crate::consumer::runtime::hook::Rejected;
use crate::consumer::runtime::options::{ConsumerError, Lost, UnknownType};
use crate::consumer::runtime::retry::Retry;
use crate::consumer::runtime::stats::Stats;
use crate::consumer::runtime::tokens::Tokens;
#[cfg(feature = "msk-iam")]
use crate::msk_iam::MskIam;
use crate::outbox::Outbox;
use crate::route::check_topic;
#[cfg(feature = "schema")]
use crate::schemas::Schemas;

/// The most bytes of a partition in one answer of a broker. A larger batch of records comes alone.
const FETCH_BYTES: &str = "max.partition.fetch.bytes";

/// The older name of [`FETCH_BYTES`]. A client that is given both takes any of them.
const FETCH_BYTES_ALIAS: &str = "fetch.message.max.bytes";

/// Settings that apply unless the user sets them.
const DEFAULTS: [(&str, &str); 12] = [
    // Without a committed offset, read all that the topic holds: the inbox knows which events have been applied.
    ("auto.offset.reset", "earliest"),
    // Only partitions that move to another member are revoked.
    ("partition.assignment.strategy", "cooperative-sticky"),
    // Most kilobytes fetched ahead for all partitions. The default of librdkafka is 64 MiB, more than most services have to spare.
    ("queued.max.messages.kbytes", "16384"),
    // How long a partition pauses when that much is queued. The default of librdkafka is a second, in which the queue runs empty.
    ("fetch.queue.backoff.ms", "5"),
    // What is fetched of a partition at once. A pause drops the records that were fetched ahead, so less is fetched twice.
    (FETCH_BYTES, "262144"),
    ("client.id", "outbox-relay-consumer"),
    // The time until a new partition is read. The default of librdkafka is five minutes.
    ("topic.metadata.refresh.interval.ms", "5000"),
    // The interval between two measurements of the lag.
    ("statistics.interval.ms", "5000"),
    ("reconnect.backoff.max.ms", "1000"),
    // librdkafka repeats a commit twice that Kafka refuses because the topic is gone. A topic that is created again in between would get an
    // offset of the old one. The pauses begin with this and double.
    ("retry.backoff.ms", "1"),
    ("socket.nagle.disable", "true"),
    ("log.connection.close", "false"),
];

/// The most workers of a partition.
const MOST_WORKERS: usize = 256;

/// Settings that the guarantees depend on; the user cannot change them.
const GUARANTEES: [(&str, &str); 2] = [("enable.auto.commit", "false"), ("enable.auto.offset.store", "false")];

impl Consumer {
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

    /// Adds a topic to read. Call it once per topic. The retry topic of each, `<topic>.<group>.retry`, is read as well as soon as it exists:
    /// `outbox-relay dlq redrive` sends the group's dead letters there. If an event fails again, it goes to the dead letter topic of the
    /// topic that it was first read from.
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
        self.handlers.registry.on(event_type, &versions, handler);
        self
    }

    /// Adds a handler that gets many events of a type at once, and applies them in one transaction. It gets those that wait for it, in their
    /// order, up to [`Consumer::batch`]. Use it for effects that cost less together, such as one `insert … select from unnest(…)`.
    ///
    /// If a batch fails, it is halved until the events that are the cause stand alone. Those are retried or given up like the events of any
    /// handler, and all others are applied. Each event has one effect.
    pub fn on_batch<T, F, Fut>(mut self, event_type: &str, versions: impl RangeBounds<i32>, handler: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(BatchContext, Vec<BatchEvent<T>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        self.handlers.registry.on_batch(event_type, &versions, handler);
        self
    }

    /// Adds a handler for payloads that are not JSON. The handler reads [`Context::payload`].
    pub fn on_raw<F, Fut>(mut self, event_type: &str, versions: impl RangeBounds<i32>, handler: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        self.handlers.registry.on_any(event_type, &versions, handler);
        self
    }

    /// Adds an upcaster, which brings a payload of version `from` to the next version. It runs only if no handler takes version `from`.
    pub fn upcast<A, B, F>(mut self, event_type: &str, from: i32, upcaster: F) -> Self
    where
        A: DeserializeOwned,
        B: Serialize,
        F: Fn(A) -> Result<B, Failed> + Send + Sync + 'static,
    {
        self.handlers.registry.upcast(event_type, from, upcaster);
        self
    }

    /// Sets the treatment of events that cannot be applied. By default all are skipped.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the attempts and pauses for transient errors.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retries.default = retry;
        self
    }

    /// Sets the attempts and pauses for transient errors with events of one type.
    pub fn retry_type(mut self, event_type: impl Into<String>, retry: Retry) -> Self {
        self.retries.by_type.insert(event_type.into(), retry);
        self
    }

    /// Sets the attempts and pauses by error. The function is called after each attempt that failed. `None` leaves it to
    /// [`Consumer::retry_type`] and [`Consumer::retry`]. `Some` holds for any kind of error: it gives a permanent one more attempts, or
    /// bounds those of an outage.
    ///
    /// ```no_run
    /// # use event_outbox::consumer::{Consumer, Kind, Retry};
    /// # use std::time::Duration;
    /// # fn with(consumer: Consumer) -> Consumer {
    /// consumer.retry_when(|event, failed| {
    ///     let is_io = failed.error().downcast_ref::<std::io::Error>().is_some();
    ///     (is_io && event.event_type == "OrderPlaced")
    ///         .then(|| Retry { attempts: 3, longest_pause: Duration::from_secs(1), ..Retry::default() })
    /// })
    /// # }
    /// ```
    pub fn retry_when(mut self, choose: impl Fn(&Event, &Failed) -> Option<Retry> + Send + Sync + 'static) -> Self {
        self.retries.by_error = Some(Arc::new(choose));
        self
    }

    /// Sets a function that is asked before an event is given up: after its last attempt, and before its dead letter is sent. It returns the
    /// action to take, `rejected.action` to change nothing. The partition or the lane waits for it. After a crash it may be asked again.
    ///
    /// ```no_run
    /// # use event_outbox::consumer::{Action, Consumer, Reason};
    /// # fn with(consumer: Consumer) -> Consumer {
    /// consumer.before_dead_letter(async |rejected| {
    ///     eprintln!("{:?} is given up: {}", rejected.event, rejected.error);
    ///     if rejected.reason == Reason::Invalid { Action::Stop } else { rejected.action }
    /// })
    /// # }
    /// ```
    pub fn before_dead_letter<F, Fut>(mut self, hook: F) -> Self
    where
        F: Fn(Rejected) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Action> + Send + 'static,
    {
        self.before_dead_letter = Some(Arc::new(move |rejected| Box::pin(hook(rejected))));
        self
    }

    /// Sets how many keys of a partition are worked on at the same time, 1 by default. Events of one key stay in order; the key's hash
    /// chooses its worker. Each worker needs a connection of the pool. An offset is committed when all events before it are finished too.
    pub fn concurrency(mut self, workers: usize) -> Self {
        self.limits.concurrency = workers.clamp(1, MOST_WORKERS);
        self
    }

    /// Sets the most events that a handler of [`Consumer::on_batch`] gets at once, 500 by default. It does not wait for them: it gets what
    /// is there.
    pub fn batch(mut self, events: usize) -> Self {
        self.limits.batch = events.max(1);
        self
    }

    /// Returns a handle that pauses this consumer and bounds its rate while it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Sets the treatment of events whose type no handler takes. By default they are ignored.
    pub fn unknown_type(mut self, unknown_type: UnknownType) -> Self {
        self.handlers.unknown_type = unknown_type;
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
        self.handlers.schemas = Some(schemas);
        self
    }

    /// Sets the most records of a partition that may wait in memory, 5,000 by default. Beyond this number, or 4 MiB, fetching pauses. A
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

    /// Sets the time after which a handler that has not ended is logged, 30 s by default.
    pub fn slow_after(mut self, after: Duration) -> Self {
        self.limits.slow_after = after;
        self
    }

    /// Sets the time that an attempt may take. After that it is rolled back, and counts as a transient failure. If it was committing by then,
    /// it may have succeeded: before another attempt, and before the event is given up, the consumer finds out by the mark. By default there is no limit.
    /// A handler that blocks its thread cannot be ended.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.limits.handler_timeout = Some(timeout);
        self
    }

    /// Sets what follows when retention has removed events before the group read them. By default the consumer logs it and goes on.
    pub fn lost(mut self, lost: Lost) -> Self {
        self.limits.lost = lost;
        self
    }

    /// Returns the counters of this consumer. They go on counting while the consumer runs.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Checks the configuration and returns the client's settings.
    pub(super) fn check(&self) -> Result<ClientConfig, ConsumerError> {
        let refuse = |why: String| Err(ConsumerError::Configuration(why));
        if let Some(conflict) = self.handlers.registry.conflicts.first() {
            return refuse(conflict.clone());
        }
        if self.topics.is_empty() || self.handlers.registry.is_empty() {
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
        for topic in &self.topics {
            let dead_letters = (self.dead_letter_topic)(topic);
            for name in [topic, &dead_letters] {
                if let Err(mistake) = check_topic(name) {
                    return refuse(format!("Kafka does not allow the topic name {name:?}: {mistake}"));
                }
            }
        }
        let mut config = self.client.clone();
        for (name, value) in DEFAULTS {
            // The new group protocol has no client-side assignment strategy and refuses the setting.
            let other_protocol = name == "partition.assignment.strategy" && config.get("group.protocol").is_some();
            let has_alias = name == FETCH_BYTES && config.get(FETCH_BYTES_ALIAS).is_some();
            if config.get(name).is_none() && !other_protocol && !has_alias {
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
