//! Runs a relay as a set of tasks. Workers claim, publish and settle; other tasks keep the heartbeat, watch the brokers and report.
//!
//! - [`options`]: what a relay is told
//! - [`shared`]: what its tasks share
//! - [`worker`]: one task, one connection, one producer: the loop, and its cycle in parts
//! - [`exactly_once`]: the protocol by which an event is on its topic once
//! - [`membership`]: the relays of an outbox, and the share of each
//! - [`health`]: what keeps events from being published, found and logged
//! - [`identity`]: the facts of an outbox that do not change
//! - [`obstacles`]: what blocks a part of the events
//! - [`pauses`]: what operators have paused, in the log
//! - [`retention`]: removes what is old
//! - [`stage_times`]: how long the stages of cycles take
//! - [`batch_metrics`]: what a batch adds to the metrics
//! - [`pace`]: how long to wait when there is nothing to do
//! - [`status_line`]: counts what waits, and logs it

mod batch_metrics;
mod exactly_once;
mod health;
mod identity;
mod membership;
mod obstacles;
mod options;
mod pace;
mod pauses;
mod retention;
mod shared;
mod sleep;
mod stage_times;
mod status_line;
mod wake_up;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use options::RelayOptions;

use crate::inspect::check::pooler;
use crate::observe::health::Readiness;
use crate::relay::identity::Fixed;
use crate::sink::broker::{Broker, BrokerChange};
use crate::store::delivery;
use crate::store::session::Sequence;
use crate::store::{search_path, session};
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::notice::Notice;
use event_outbox::schema::{self, MigrateOptions, SchemaError};
use health::outage::{Component, Outages, Server};
use shared::Shared;
use stage_times::Stage;

/// The error that keeps a relay from starting or from going on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// librdkafka does not accept the settings. The text names the property and may quote its value.
    #[error("the Kafka client cannot be created")]
    Client(#[source] rdkafka::error::KafkaError),
    /// A task of the relay ended by itself, which is a bug. A relay that goes on without the task would look alive and do nothing.
    #[error("a task of the relay has ended by itself")]
    Task(Option<tokio::task::JoinError>),
    /// The outbox is missing or has another version.
    #[error(transparent)]
    Schema(#[from] SchemaError),
}

/// The way in which a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything in flight was settled.
    Drained,
    /// `shutdown_timeout` passed. The rows in flight are still pending and will be sent again.
    TimedOut,
}

/// Runs a relay until `stop` becomes true, then drains it. Waits for a database or a broker that cannot be reached.
///
/// # Errors
/// [`RelayError`] when the settings or the schema cannot work. An outage is not an error.
pub async fn run(options: RelayOptions, mut stop: watch::Receiver<bool>) -> Result<Ended, RelayError> {
    let started = Instant::now();
    let (broker, suspicions) = Broker::new(&options.kafka).map_err(RelayError::Client)?;
    let (outages, ends) = Outages::new(options.names.clone(), options.database.clone());
    let outages = Arc::new(outages);

    let found = tokio::select! {
        found = look_at_outbox(&options, &outages) => found?,
        _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Drained),
    };
    let shutdown_timeout = options.relay.shutdown_timeout;
    let shared = Arc::new(Shared::new(options, &found, Arc::clone(&broker), Arc::clone(&outages)));

    let (changes, changed) = mpsc::unbounded_channel();
    let watching = tokio::spawn(Arc::clone(&broker).watch(Arc::clone(&shared.topics), suspicions, changes));
    let asking = tokio::spawn(Arc::clone(&shared.topics).run(broker));
    let reporting = tokio::spawn(report_broker(changed, Arc::clone(&outages)));
    let ending = tokio::spawn(outages.log_ends(ends));
    let mut tasks = JoinSet::new();
    for index in 0..shared.options.relay.workers {
        tasks.spawn(worker::run(Arc::clone(&shared), index, stop.clone()));
    }
    tasks.spawn(membership::heartbeat::run(Arc::clone(&shared), stop.clone()));
    tasks.spawn(status_line::run(Arc::clone(&shared), stop.clone()));
    tasks.spawn(health::stall_monitor::run(Arc::clone(&shared), started, stop.clone()));
    tokio::spawn(wake_up::run(Arc::clone(&shared), stop.clone()));
    tasks.spawn(retention::run(Arc::clone(&shared), stop.clone()));

    let ended = tokio::select! {
        // Fails only when the sender is gone, which means the same as `stop`.
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        Some(ended) = tasks.join_next() => ended,
    };
    // A task may see `stop` and end a moment before this task is woken by it.
    if ended.is_err() || !*stop.borrow() && stop.has_changed().is_ok() {
        return Err(RelayError::Task(ended.err()));
    }
    let asked = Instant::now();
    tracing::info!(
        notice = %Notice::Stopping,
        consequence = "events in flight are settled, no more are claimed",
        "relay is stopping"
    );
    let ended = drain(&mut tasks, shutdown_timeout).await;
    watching.abort();
    asking.abort();
    reporting.abort();
    ending.abort();
    let seconds = |stage| (shared.stage_times.seconds(stage) * 1e3).round() / 1e3;
    tracing::info!(
        notice = %Notice::Stopped,
        published_total = shared.published_total(),
        cycles = shared.stage_times.cycles(),
        claim_s = seconds(Stage::Claim),
        send_s = seconds(Stage::Send),
        acks_s = seconds(Stage::Acks),
        settle_s = seconds(Stage::Settle),
        drain_ms = asked.elapsed().as_millis() as u64,
        uptime_s = started.elapsed().as_secs(),
        "relay has stopped"
    );
    Ok(ended)
}

/// Begins an outage when the cluster goes away, and ends it when the cluster is back.
async fn report_broker(mut changed: mpsc::UnboundedReceiver<BrokerChange>, outages: Arc<Outages>) {
    while let Some(change) = changed.recv().await {
        match change {
            BrokerChange::Down { reason, fault } => outages.begin(Server::Kafka, Component::Watch, &reason, fault),
            BrokerChange::Up => outages.end(Server::Kafka, Component::Watch),
        }
    }
}

async fn drain(tasks: &mut JoinSet<()>, timeout: Duration) -> Ended {
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(timeout, all).await.is_ok() {
        return Ended::Drained;
    }
    tracing::warn!(
        code = %Code::ShutdownTimeout,
        shutdown_timeout_s = timeout.as_secs(),
        consequence = "the events stay pending and may be sent again",
        "RELAY_SHUTDOWN_TIMEOUT passed with events in flight"
    );
    tasks.abort_all();
    Ended::TimedOut
}

/// Waits for the database, then reads what is fixed of the outbox.
async fn look_at_outbox(options: &RelayOptions, outages: &Outages) -> Result<Fixed, RelayError> {
    let mut backoff = pace::backoff();
    loop {
        let connected = options.connect(&options.application_name()).await;
        let failed = match connected {
            Ok(mut conn) => match prepare(&mut conn, options).await {
                Ok(found) => {
                    outages.end(Server::Postgres, Component::Start);
                    return Ok(found);
                }
                Err(SchemaError::Database(error)) => error,
                Err(error) => return Err(error.into()),
            },
            Err(error) => error,
        };
        outages.database(Component::Start, &failed);
        if let Some(reason) = outages.reason(Server::Postgres) {
            options.telemetry.health.set(Readiness::Unready(reason));
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// Migrates the outbox, if the relay was told to, and reads its fixed properties.
async fn prepare(conn: &mut PgConnection, options: &RelayOptions) -> Result<Fixed, SchemaError> {
    if options.migrates {
        if let Some(reason) = pooler::refuse_upgrade(conn, &options.names, &options.database).await? {
            tracing::debug!(reason, "a transaction pooler cannot be excluded");
        }
        let migrated = schema::migrate(conn, &options.names, &MigrateOptions::default()).await?;
        tracing::info!(
            notice = %Notice::Migrated,
            from = migrated.from.unwrap_or(0),
            to = migrated.to,
            "the outbox is migrated"
        );
    }
    session::within(look(conn, &options.names)).await
}

/// Reads the fixed properties in one transaction. Otherwise a pooler may send the parts of a statement to two servers.
async fn look(conn: &mut PgConnection, names: &Names) -> Result<Fixed, SchemaError> {
    let mut tx = search_path::begin(conn).await?;
    let lanes = schema::lanes(&mut tx, names).await?;
    let sequence = Sequence::read(&mut tx, names).await?;
    let identity = delivery::identity(&mut tx, names).await?;
    tx.commit().await?;
    Ok(Fixed { lanes, sequence, identity })
}
