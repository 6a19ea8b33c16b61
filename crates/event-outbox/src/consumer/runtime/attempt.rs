//! Makes one attempt to apply one event: mark, effect and commit in one transaction.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use sqlx::PgPool;
use tokio::sync::Mutex;

use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::context::Context;
use crate::consumer::runtime::delivery::{Delivery, Event};
use crate::consumer::runtime::failed::Failed;
use crate::consumer::runtime::held::{Gate, Held};
use crate::consumer::runtime::registry::Handler;
use crate::outbox::Outbox;

/// The result of an attempt that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptResult {
    /// The effect is committed.
    Applied,
    /// The event had been applied before.
    Repeated,
    /// The event's key is held, and an earlier event of the key has to be applied first.
    Held,
    /// The event has been parked before.
    Parked,
}

/// The parts that every attempt of a consumer needs.
#[derive(Debug, Clone)]
pub(super) struct AttemptContext {
    pub(super) pool: PgPool,
    pub(super) held: Held,
    pub(super) outbox: Outbox,
}

/// An event and the handler to call with it.
pub(super) struct Call {
    pub(super) event: Arc<Event>,
    pub(super) source_topic: String,
    pub(super) handler: Handler,
    pub(super) payload: Option<Arc<[u8]>>,
    pub(super) version: i32,
}

impl AttemptContext {
    /// Checks whether the event may be applied, without applying it. For an event that failed before a handler got it.
    pub(super) async fn look(
        &self,
        event: &Event,
        source_topic: &str,
        delivery: &Delivery,
    ) -> Result<Gate, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let gate = self.held.gate(&mut tx, event.event_id, source_topic, delivery).await?;
        if gate == Gate::Repeated {
            tx.commit().await?;
        }
        Ok(gate)
    }

    /// Parks the event: its key stays held until the event is applied.
    pub(super) async fn park(
        &self,
        event: &Event,
        source_topic: &str,
        delivery: &Delivery,
        reason: Reason,
    ) -> Result<(), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        self.held.park(&mut tx, event.event_id, source_topic, delivery, reason).await?;
        tx.commit().await
    }

    /// Releases the key that the event holds.
    pub(super) async fn release(&self, event: &Event) -> Result<(), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        self.held.delete(&mut tx, event.event_id).await?;
        tx.commit().await
    }

    /// Applies the event in one transaction and commits.
    ///
    /// # Errors
    /// The error of the handler or of the database. The transaction is then rolled back, or its outcome is unknown if the commit failed;
    /// the next attempt finds out by the mark.
    pub(super) async fn attempt(
        &self,
        call: &Call,
        delivery: &Delivery,
        attempt: u32,
    ) -> Result<AttemptResult, Failed> {
        let event = call.event.event_id;
        let mut tx = self.pool.begin().await?;
        let gate = self.held.gate(&mut tx, event, &call.source_topic, delivery).await?;
        match gate {
            Gate::Open | Gate::Redriven => {}
            Gate::Held => return Ok(AttemptResult::Held),
            Gate::Parked => return Ok(AttemptResult::Parked),
            Gate::Repeated => {
                tx.commit().await?;
                return Ok(AttemptResult::Repeated);
            }
        }
        let tx = Arc::new(Mutex::new(tx));
        let context = Context {
            tx: Arc::clone(&tx).lock_owned().await,
            event: Arc::clone(&call.event),
            payload: call.payload.clone(),
            version: call.version,
            attempt,
            outbox: self.outbox.clone(),
        };
        // The call itself is inside too: a handler that is not an async function may panic before it returns its future.
        let handled = AssertUnwindSafe(async { (call.handler)(context).await }).catch_unwind().await;
        handled.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))?;
        let Some(tx) = Arc::into_inner(tx) else {
            return Err(Failed::permanent("the handler has ended, but its Context is still held, perhaps by a task"));
        };
        let mut tx = tx.into_inner();
        if gate == Gate::Redriven {
            self.held.delete(&mut tx, event).await?;
        }
        tx.commit().await?;
        Ok(AttemptResult::Applied)
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Failed {
    let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failed::permanent(format!("the handler panicked: {}", message.unwrap_or("with no message")))
        .because(Reason::Panicked)
}
