//! Gives a handler the transaction of its effect, the event, and an outbox to write to.

use std::sync::Arc;

use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::OwnedMutexGuard;

use crate::consumer::runtime::delivery::Event;
use crate::event::{EventId, NewEvent};
use crate::outbox::{EmitError, Outbox};

/// The headers of the trace that an event belongs to.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// The transaction and the event of one call of a handler. The handler drops it at its end; then the runtime commits, or rolls back if the
/// handler failed.
#[derive(Debug)]
pub struct Context {
    pub(super) tx: OwnedMutexGuard<Transaction<'static, Postgres>>,
    pub(super) event: Arc<Event>,
    pub(super) payload: Option<Arc<[u8]>>,
    pub(super) version: i32,
    pub(super) attempt: u32,
    pub(super) outbox: Outbox,
}

impl Context {
    /// Returns the transaction in which the event is marked as processed. Effects outside of it may happen more than once.
    pub fn tx(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Returns the event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Returns the payload after all upcasters; `None` for a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.as_deref()
    }

    /// Returns the version of [`Context::payload`]. [`Event::event_version`] is the version that was written.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Returns the number of this attempt, 1 for the first. Attempts that failed because of an outage are not counted.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Writes an event to this service's outbox, in the same transaction. Sets the headers `correlation-id` (of the event in hand),
    /// `causation-id` (the id of the event in hand), `traceparent` and `tracestate` unless `event` has them.
    ///
    /// # Errors
    /// [`EmitError`]; return it with `?`, because the transaction can only be rolled back.
    pub async fn emit(&mut self, event: NewEvent) -> Result<EventId, EmitError> {
        let mut event = event
            .default_header("correlation-id", &self.event.correlation_id)
            .default_header("causation-id", self.event.event_id.to_string());
        for name in TRACE {
            if let Some(value) = self.event.header(name) {
                event = event.default_header(name, value);
            }
        }
        self.outbox.emit(&mut self.tx, &event).await
    }
}
