//! Gives a handler the transaction of its effect, the event, and an outbox to write to.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use crate::consumer::runtime::delivery::Event;
use crate::event::{EventId, Identity, NewEvent};
use crate::outbox::{EmitError, Outbox};

/// The headers of the trace that an event belongs to.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// An event as a handler gets it, before its payload is parsed.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub(super) event: Arc<Event>,
    /// The payload after all upcasters.
    pub(super) payload: Option<Arc<[u8]>>,
    /// The version of the payload.
    pub(super) version: i32,
}

/// The parts of a call that do not depend on its events.
pub(super) struct Work {
    /// `None` in a test without a database.
    pub(super) tx: Option<OwnedMutexGuard<Transaction<'static, Postgres>>>,
    pub(super) outbox: Outbox,
    pub(super) attempt: u32,
    /// In a test, the events that the handler has emitted.
    pub(super) recorder: Option<Recorder>,
}

/// The events that handlers have emitted in a test.
#[derive(Debug, Clone, Default)]
pub(super) struct Recorder(Arc<Mutex<Vec<NewEvent>>>);

impl Recorder {
    pub(super) fn take(&self) -> Vec<NewEvent> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Work {
    fn tx(&mut self) -> &mut PgConnection {
        self.tx.as_mut().expect("this test has no database: give it one with `Test::database`")
    }

    /// Writes an event that `cause` has caused.
    async fn emit(&mut self, cause: &Event, event: NewEvent) -> Result<EventId, EmitError> {
        let mut event = event
            .default_header("correlation-id", &cause.correlation_id)
            .default_header("causation-id", cause.event_id.to_string());
        for name in TRACE {
            if let Some(value) = cause.header(name) {
                event = event.default_header(name, value);
            }
        }
        let id = match &mut self.tx {
            Some(tx) => self.outbox.emit(tx, &event).await?,
            None => {
                #[cfg(feature = "schema")]
                self.outbox.check(&event)?;
                match event.identity {
                    Some(Identity::Id(id)) => id,
                    Some(Identity::DedupeKey(_)) | None => EventId(Uuid::new_v4()),
                }
            }
        };
        if let Some(recorder) = &self.recorder {
            recorder.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        }
        Ok(id)
    }
}

/// The transaction and the event of one call of a handler. The handler drops it at its end; then the runtime commits, or rolls back if the
/// handler failed.
pub struct Context {
    pub(super) work: Work,
    pub(super) input: Input,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("event", &self.input.event).finish_non_exhaustive()
    }
}

impl Context {
    /// Returns the transaction in which the event is marked as processed. Effects outside of it may happen more than once.
    ///
    /// # Panics
    /// In a test without a database; see [`testing`](crate::consumer::testing).
    pub fn tx(&mut self) -> &mut PgConnection {
        self.work.tx()
    }

    /// Returns the event.
    pub fn event(&self) -> &Event {
        &self.input.event
    }

    /// Returns the payload after all upcasters; `None` for a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.input.payload.as_deref()
    }

    /// Returns the version of [`Context::payload`]. [`Event::event_version`] is the version that was written.
    pub fn version(&self) -> i32 {
        self.input.version
    }

    /// Returns the number of this attempt, 1 for the first. Attempts that failed because of an outage are not counted.
    pub fn attempt(&self) -> u32 {
        self.work.attempt
    }

    /// Writes an event to this service's outbox, in the same transaction. Sets the headers `correlation-id` (of the event in hand),
    /// `causation-id` (the id of the event in hand), `traceparent` and `tracestate` unless `event` has them.
    ///
    /// # Errors
    /// [`EmitError`]; return it with `?`, because the transaction can only be rolled back.
    pub async fn emit(&mut self, event: NewEvent) -> Result<EventId, EmitError> {
        self.work.emit(&self.input.event, event).await
    }
}

/// The transaction of one call of a batch handler: see [`Consumer::on_batch`](super::Consumer::on_batch).
pub struct BatchContext {
    pub(super) work: Work,
}

impl fmt::Debug for BatchContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchContext").finish_non_exhaustive()
    }
}

impl BatchContext {
    /// Returns the transaction in which all events of the batch are marked as processed. Effects outside of it may happen more than once.
    ///
    /// # Panics
    /// In a test without a database; see [`testing`](crate::consumer::testing).
    pub fn tx(&mut self) -> &mut PgConnection {
        self.work.tx()
    }

    /// Writes an event to this service's outbox, in the same transaction, as [`Context::emit`] does. `cause` is the event of the batch that
    /// caused it.
    ///
    /// # Errors
    /// [`EmitError`]; return it with `?`, because the transaction can only be rolled back.
    pub async fn emit(&mut self, cause: &Event, event: NewEvent) -> Result<EventId, EmitError> {
        self.work.emit(cause, event).await
    }
}

/// An event of a batch, with its payload.
#[derive(Debug, Clone)]
pub struct BatchEvent<T> {
    /// The event.
    pub event: Arc<Event>,
    /// The payload after all upcasters, parsed.
    pub payload: T,
}
