//! What a handler works with: the transaction of its effect, the event, and this service's own outbox.

use std::sync::Arc;

use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::OwnedMutexGuard;

use crate::consumer::runtime::delivery::Event;
use crate::event::{EventId, NewEvent};
use crate::outbox::{EmitError, Outbox};

/// Headers of the trace that an event belongs to.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// Given to a handler, which drops it when it ends; the runtime then commits, or rolls back where the handler has failed.
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
    /// The transaction in which the event is marked as processed. Effects outside of it may happen more than once.
    pub fn tx(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The payload as the handler gets it, upcast; `None` for a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.as_deref()
    }

    /// Version of the payload as the handler gets it; [`Event::event_version`] is the one it was written with.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// 1 for the first attempt.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Writes an event to this service's own outbox, in the same transaction. It gets the headers `correlation-id` (this event's),
    /// `causation-id` (this event's id), `traceparent` and `tracestate`, unless they are set.
    ///
    /// # Errors
    /// [`EmitError`], to be handed on with `?`.
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
