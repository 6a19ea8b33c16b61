//! Calls the handlers of a consumer in tests, without Kafka.
//!
//! A test gives an event to the consumer that the service runs, so handlers, versions, upcasters, schemas and policies are tested together:
//!
//! ```
//! use event_outbox::consumer::testing::{Outcome, Test};
//! use event_outbox::consumer::{Consumer, Context, Failed};
//! use event_outbox::event::NewEvent;
//! use serde_json::{Value, json};
//! use sqlx::PgPool;
//!
//! async fn confirm(mut ctx: Context, order: Value) -> Result<(), Failed> {
//!     let id = order["orderId"].as_str().ok_or_else(|| Failed::permanent("the order has no id"))?;
//!     ctx.emit(NewEvent::new("order", id, "OrderConfirmed")).await?;
//!     Ok(())
//! }
//!
//! /// The service's own function.
//! fn consumer(pool: PgPool) -> Consumer {
//!     Consumer::new("billing", pool).on("OrderPlaced", 1..=1, confirm)
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! // The pool connects to nothing, because these tests use no database.
//! let consumer = consumer(PgPool::connect_lazy("postgres://nowhere")?);
//!
//! let placed = NewEvent::new("order", "o-1", "OrderPlaced");
//! let tested = Test::new(placed.clone().json(&json!({"orderId": "o-1"}))?).deliver_to(&consumer).await?;
//! assert!(tested.is_applied());
//! assert_eq!(tested.emitted[0].event_type(), "OrderConfirmed");
//!
//! let tested = Test::new(placed.json(&json!({}))?).deliver_to(&consumer).await?;
//! assert_eq!(tested.failed().map(|failed| failed.to_string()).as_deref(), Some("the order has no id"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A handler that runs SQL needs a real transaction, because only Postgres says what its SQL does. [`Test::database`] takes the pool of a
//! scratch database with the service's tables; the inbox is not needed. The handler's transaction is open after the call and is in
//! [`Tested::tx`], so that the test can look at the effects. It is rolled back when it is dropped, so tests can share the database.
//! In a test without a database, [`Context::tx`](super::Context::tx) panics, and the outcome is a failure that says so.

use std::sync::Arc;

use sqlx::{PgPool, Postgres, Transaction};
use uuid::Uuid;

use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::Consumer;
use crate::consumer::runtime::attempt::{Running, call, run};
use crate::consumer::runtime::context::{Input, Recorder, Work};
use crate::consumer::runtime::delivery::Event;
use crate::consumer::runtime::failed::{Action, Failed};
use crate::consumer::runtime::registry::{Handler, Taken};
use crate::consumer::runtime::retry::{AfterFailure, Next, Retry};
use crate::event::{Body, EventId, Identity, NewEvent};
use crate::outbox::Outbox;

/// A call of a handler in a test.
#[derive(Debug, Clone)]
pub struct Test {
    events: Vec<NewEvent>,
    topic: String,
    attempt: u32,
    pool: Option<PgPool>,
}

/// The result of a call of a handler in a test.
#[derive(Debug)]
pub struct Tested {
    /// What the runtime would do next.
    pub outcome: Outcome,
    /// The events that the handler emitted, with the headers that the runtime adds. Those of a handler that failed are here, too, although
    /// they would be rolled back.
    pub emitted: Vec<NewEvent>,
    /// The handler's transaction, if the test has a database and the handler did not fail. It is rolled back when it is dropped.
    pub tx: Option<Transaction<'static, Postgres>>,
}

/// What the runtime would do after a call of a handler.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Commits the effect.
    Applied,
    /// Skips the event, because no handler takes its type.
    Ignored,
    /// Tries again after a pause. `None` stands for an outage, which is tried again until it is over.
    Retried(Failed, Option<Retry>),
    /// Gives the event up.
    Rejected {
        /// The error.
        failed: Failed,
        /// The reason in the dead letter.
        reason: Reason,
        /// What follows. The hook before a dead letter is not asked in tests.
        action: Action,
    },
}

impl Tested {
    /// Returns true if the effect would be committed.
    pub fn is_applied(&self) -> bool {
        matches!(self.outcome, Outcome::Applied)
    }

    /// Returns the error of the handler, or the reason why none was called.
    pub fn failed(&self) -> Option<&Failed> {
        match &self.outcome {
            Outcome::Retried(failed, _) | Outcome::Rejected { failed, .. } => Some(failed),
            Outcome::Applied | Outcome::Ignored => None,
        }
    }
}

impl Test {
    /// Creates a test with one event.
    pub fn new(event: NewEvent) -> Self {
        Self { events: vec![event], topic: "test-events".to_owned(), attempt: 1, pool: None }
    }

    /// Adds an event of the same type, for a batch handler.
    pub fn and(mut self, event: NewEvent) -> Self {
        self.events.push(event);
        self
    }

    /// Sets the topic that the event is read from.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = topic.into();
        self
    }

    /// Sets the number of the attempt, 1 by default.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Gives the handler a transaction in this database.
    pub fn database(mut self, pool: PgPool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Makes one attempt with the handler that the consumer has for the event. Needs no Kafka, and does not mark the event as processed.
    ///
    /// # Errors
    /// The error of the test's database. Errors of the handler are in [`Tested::outcome`].
    ///
    /// # Panics
    /// If the test has several events and the consumer would not give them to one batch handler.
    pub async fn deliver_to(self, consumer: &Consumer) -> Result<Tested, sqlx::Error> {
        let mut handler: Option<Handler> = None;
        let mut inputs = Vec::new();
        for event in &self.events {
            let (event, payload) = self.received(event);
            match consumer.handlers.take(&event, payload) {
                Ok(Some(Taken { handler: found, version, payload })) => {
                    let joins = handler.as_ref().is_none_or(|first| first.joins(&found));
                    assert!(joins, "several events in one call need one handler of `Consumer::on_batch`");
                    handler = Some(found);
                    inputs.push(Input { event, payload: payload.map(Arc::from), version });
                }
                Ok(None) => return Ok(Tested { outcome: Outcome::Ignored, emitted: Vec::new(), tx: None }),
                Err(failed) => return Ok(Tested::refused(consumer, &event, failed, self.attempt)),
            }
        }
        let (Some(handler), Some(event)) = (handler, inputs.first().map(|input| Arc::clone(&input.event))) else {
            return Ok(Tested { outcome: Outcome::Ignored, emitted: Vec::new(), tx: None });
        };
        let recorder = Recorder::default();
        let outbox = consumer.outbox.clone();
        let outbox =
            outbox.unwrap_or_else(|| Outbox::new(&consumer.names).prepared_statements(consumer.prepared_statements));
        let (attempt, recording) = (self.attempt, Some(recorder.clone()));
        let called = match &self.pool {
            Some(pool) => {
                let mut tx = pool.begin().await?;
                let sql = "select pg_catalog.pg_current_xact_id()::pg_catalog.text";
                let begun: String = sqlx::query_scalar(sql).persistent(false).fetch_one(&mut *tx).await?;
                run(&handler, inputs, Running { tx, begun, attempt, outbox, recorder: recording }).await.map(Some)
            }
            None => {
                let work = Work { tx: None, outbox, attempt, recorder: recording };
                call(&handler, work, inputs).await.map(|()| None)
            }
        };
        let emitted = recorder.take();
        match called {
            Ok(tx) => Ok(Tested { outcome: Outcome::Applied, emitted, tx }),
            Err(failed) => Ok(Tested { emitted, ..Tested::refused(consumer, &event, failed, self.attempt) }),
        }
    }

    /// Returns the event as a consumer would receive it, and its payload.
    fn received(&self, event: &NewEvent) -> (Arc<Event>, Option<Vec<u8>>) {
        let event_id = match &event.identity {
            Some(Identity::Id(id)) => *id,
            Some(Identity::DedupeKey(_)) | None => EventId(Uuid::new_v4()),
        };
        let payload = match &event.body {
            Body::Json(text) => Some(text.clone().into_bytes()),
            Body::Bytes(bytes) => Some(bytes.clone()),
            Body::Tombstone => None,
        };
        let headers = event.headers.iter().map(|(name, value)| (name.clone(), Some(value.clone().into_bytes())));
        let event = Event {
            event_id,
            event_type: event.event_type.clone(),
            event_version: event.event_version,
            sequence: None,
            correlation_id: event.headers.get("correlation-id").cloned().unwrap_or_else(|| event_id.to_string()),
            key: event.entity_id.clone().map(String::into_bytes),
            topic: self.topic.clone(),
            partition: 0,
            offset: 0,
            headers: headers.collect(),
        };
        (Arc::new(event), payload)
    }
}

impl Tested {
    fn refused(consumer: &Consumer, event: &Event, failed: Failed, attempt: u32) -> Self {
        let (mut reason, then) = match consumer.retries.next(event, &failed, attempt) {
            Next::Outage => return Self::retried(failed, None),
            Next::Failed(AfterFailure::Retry(retry)) => return Self::retried(failed, Some(retry)),
            Next::Failed(AfterFailure::GiveUp { reason, then }) => (reason, then),
        };
        reason = failed.reason.unwrap_or(reason);
        let action = failed.action.or(then);
        let action = action.unwrap_or_else(|| consumer.policy.action(reason, Some(&event.event_type)));
        Self { outcome: Outcome::Rejected { failed, reason, action }, emitted: Vec::new(), tx: None }
    }

    fn retried(failed: Failed, retry: Option<Retry>) -> Self {
        Self { outcome: Outcome::Retried(failed, retry), emitted: Vec::new(), tx: None }
    }
}
