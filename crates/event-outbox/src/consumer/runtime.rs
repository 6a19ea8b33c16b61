//! Builds and runs a consumer.
//!
//! - `options`: the options and the errors of a consumer; `retry`: its attempts; `control`: pauses and bounds it; `hook`: asks the service
//! - `failed`: classifies errors and decides what happens to the event
//! - `builder`: the settings of a consumer, and their check
//! - `group`: the thread that polls and commits; `member`: its partitions; `partition`: one of them; `progress`: its finished records
//! - `group_offsets`: the offsets that the group has in Kafka; `recreated`: topics that were deleted and created again
//! - `subscription`: the topics and the retry topics; `gap`: records that are missing; `incidents`: errors of the client
//! - `lane`: the queues of events, and their workers; `drain`: takes the events that are parked in the database; `task`: a task that stops
//! - `prepared`: a record and its handler; `handlers`: decides which; `registry`: handlers and upcasters
//! - `deliver`: makes attempts until an event is finished; `together`: those of a batch; `failure`: ends one that will not be applied;
//!   `applier`: what they need
//! - `attempt`: one attempt, in one transaction
//! - `held`: the held keys of a group; `sources`: the topics that it reads
//! - `dead_letter_producer`: sends dead letters
//! - `pause`: the pause between two attempts; `shared`: the state that all parts share; `stats`: counts what happens; `exposition`: its metrics
//! - `tokens`: tokens for the login
//! - `context`, `delivery`: the event and the transaction that a handler gets
//! - `testing`: calls handlers in tests

mod applier;
mod attempt;
mod builder;
mod context;
mod control;
mod dead_letter_producer;
mod deliver;
mod delivery;
mod drain;
mod exposition;
mod failed;
mod failure;
mod gap;
mod group;
mod group_offsets;
mod handlers;
mod held;
mod hook;
mod incidents;
mod lane;
mod member;
mod options;
mod partition;
mod pause;
mod prepared;
mod progress;
mod recreated;
mod registry;
mod retry;
mod shared;
mod sources;
mod stats;
mod subscription;
mod task;
pub mod testing;
mod together;
mod tokens;

pub use context::{BatchContext, BatchEvent, Context};
pub use control::Control;
pub use delivery::Event;
pub use failed::{Action, Failed, Kind, Policy};
pub use hook::Rejected;
pub use options::{ConsumerError, Lost, UnknownType};
pub use retry::Retry;
pub use stats::Stats;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use sqlx::PgPool;

use crate::Names;
use crate::consumer::dead_letter::DeadLetter;
use crate::consumer::runtime::attempt::AttemptContext;
use crate::consumer::runtime::dead_letter_producer::DeadLetterProducer;
use crate::consumer::runtime::handlers::Handlers;
use crate::consumer::runtime::held::Held;
use crate::consumer::runtime::hook::Hook;
use crate::consumer::runtime::options::without_values;
use crate::consumer::runtime::retry::Retries;
use crate::consumer::runtime::shared::{Limits, Shared, Shutdown, StopOnDrop, TopicOf};
use crate::consumer::runtime::tokens::Tokens;
use crate::notice::Notice;
use crate::outbox::Outbox;

/// A member of a consumer group that applies each event of its topics once.
///
/// Partitions are worked on in parallel, each in order, and with [`Consumer::concurrency`] their keys, too. An event is marked as processed in the transaction of its effect, and its offset is
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
///     .run_until_signal()
///     .await
/// # }
/// ```
pub struct Consumer {
    group: String,
    pool: PgPool,
    names: Names,
    client: ClientConfig,
    topics: Vec<String>,
    handlers: Handlers,
    policy: Policy,
    retries: Retries,
    before_dead_letter: Option<Hook>,
    control: Control,
    dead_letter_topic: TopicOf,
    limits: Limits,
    outbox: Option<Outbox>,
    prepared_statements: bool,
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
    /// connection for each worker ([`Consumer::concurrency`]) of each partition, and as many for the keys that were set aside; with fewer,
    /// they wait for each other.
    pub fn new(group: impl Into<String>, pool: PgPool) -> Self {
        let group = group.into();
        let of_group = group.clone();
        Self {
            control: Control::new(&group),
            stats: Arc::new(Stats::new(&group)),
            group,
            pool,
            names: Names::default(),
            client: ClientConfig::new(),
            topics: Vec::new(),
            handlers: Handlers::default(),
            policy: Policy::default(),
            retries: Retries::default(),
            before_dead_letter: None,
            dead_letter_topic: Arc::new(move |topic| DeadLetter::default_topic(topic, &of_group)),
            limits: Limits {
                queue: 5_000,
                concurrency: 1,
                batch: 500,
                commit_interval: Duration::from_millis(500),
                drain: Duration::from_secs(30),
                slow_after: Duration::from_secs(30),
                handler_timeout: None,
                lost: Lost::default(),
            },
            outbox: None,
            prepared_statements: true,
            tokens: Tokens::default(),
        }
    }

    /// Runs until the process gets SIGTERM or SIGINT (Ctrl-C), as [`Consumer::run`] does. A supervisor such as Kubernetes sends SIGTERM. The
    /// first process of a container ignores both signals unless it asks for them, as this does.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn run_until_signal(self) -> Result<(), ConsumerError> {
        let signals = signals().map_err(ConsumerError::Signals)?;
        self.run(signals).await
    }

    /// Runs until `stop` is ready. Then waits for the handlers at work, commits their offsets and leaves the group.
    ///
    /// # Errors
    /// [`ConsumerError`]. Handlers have ended and offsets are committed in that case, too.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ConsumerError> {
        let config = self.check()?;
        let held = Held::new(&self.group, &self.names, self.prepared_statements);
        let parked = self.prepare(&held).await.map_err(ConsumerError::Inbox)?;
        tracing::info!(
            notice = %Notice::Starting,
            group = self.group,
            topics = self.topics.join(" "),
            parked,
            "the consumer is starting"
        );
        let shared = Arc::new(Shared {
            dead_letters: DeadLetterProducer::new(&self.client, self.tokens.clone()).map_err(without_values)?,
            attempt_context: AttemptContext {
                group: self.group.clone(),
                pool: self.pool,
                held,
                outbox: self
                    .outbox
                    .unwrap_or_else(|| Outbox::new(&self.names).prepared_statements(self.prepared_statements)),
                head_gone: Arc::default(),
            },
            group: self.group,
            handlers: self.handlers,
            policy: self.policy,
            retries: self.retries,
            before_dead_letter: self.before_dead_letter,
            control: self.control,
            dead_letter_topic: self.dead_letter_topic,
            limits: self.limits,
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

    /// Records which topics the group reads, so that the inbox is not pruned too early. Returns the number of events that hold a key or wait
    /// behind one.
    async fn prepare(&self, held: &Held) -> Result<i64, sqlx::Error> {
        // In a transaction, because a pooler may send the parts of a statement to two servers.
        let mut tx = self.pool.begin().await?;
        let parked = held.count(&mut tx).await?;
        let dead_letters = self.topics.iter().map(|topic| (self.dead_letter_topic)(topic));
        let topics = self.topics.iter().map(|topic| (topic.clone(), false));
        let topics: Vec<_> = topics.chain(dead_letters.map(|topic| (topic, true))).collect();
        sources::record(&mut tx, &self.names, &self.group, &topics, self.prepared_statements).await?;
        tx.commit().await?;
        Ok(parked)
    }
}

/// Returns a future that is ready when the process is told to end. Listens from now on.
#[cfg(unix)]
fn signals() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Returns a future that is ready when the process is told to end.
#[cfg(not(unix))]
fn signals() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        // If Ctrl-C cannot be listened to, only the end of the process ends the consumer.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
