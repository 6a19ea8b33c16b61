//! Makes one attempt to apply one event, or the events of a batch: marks, effects and commit in one transaction.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use sqlx::{PgPool, Postgres, Transaction};
use tokio::sync::{Mutex, Notify};

use crate::code::Code;
use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::context::{Input, Recorder, Work};
use crate::consumer::runtime::delivery::{Delivery, Event};
use crate::consumer::runtime::failed::Failed;
use crate::consumer::runtime::held::{Gate, Heads, Held, HeldRow};
use crate::consumer::runtime::registry::Handler;
use crate::event::EventId;
use crate::notice::Notice;
use crate::outbox::Outbox;
use crate::transaction;

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
    pub(super) group: String,
    pub(super) pool: PgPool,
    pub(super) held: Held,
    pub(super) outbox: Outbox,
    /// Wakes the drain of held keys: the head of a key is gone.
    pub(super) head_gone: Arc<Notify>,
}

/// The result of an attempt with a batch that did not fail.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BatchResult {
    /// The effects are committed.
    Applied { applied: usize, repeated: usize },
    /// Nothing was applied: these events have a row, or their keys are held. They have to be applied one by one.
    Apart(Vec<EventId>),
}

/// An event and the handler to call with it.
pub(super) struct Call {
    pub(super) input: Input,
    pub(super) source_topic: String,
    pub(super) handler: Handler,
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
        let (gate, _) = self.held.gate(&mut tx, event.event_id, source_topic, delivery).await?;
        if gate == Gate::Repeated {
            tx.commit().await?;
        }
        Ok(gate)
    }

    /// Gives a failed event its row: its key is held until the event is applied or given up.
    pub(super) async fn park(
        &self,
        event: &Event,
        source_topic: &str,
        delivery: &Delivery,
        row: &HeldRow,
    ) -> Result<(), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        self.held.park(&mut tx, event.event_id, source_topic, delivery, row).await?;
        tx.commit().await
    }

    /// Parks the event behind the others of its key. Returns false if the key was freed in the meantime.
    pub(super) async fn park_behind(
        &self,
        event: &Event,
        source_topic: &str,
        delivery: &Delivery,
    ) -> Result<bool, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let parked = self.held.park_behind(&mut tx, event.event_id, source_topic, delivery).await?;
        if parked {
            tx.commit().await?;
        }
        Ok(parked)
    }

    /// Deletes the row of an event that will not be applied.
    pub(super) async fn release(&self, event: &Event) -> Result<(), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let freed = self.held.delete(&mut tx, event.event_id).await?;
        tx.commit().await?;
        self.head_is_gone(event, freed);
        Ok(())
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
        let event = &call.input.event;
        let mut tx = self.pool.begin().await?;
        if let Some(parked) = &delivery.parked
            && !self.held.claim(&mut tx, event.event_id, parked).await?
        {
            return Ok(AttemptResult::Parked);
        }
        let (gate, begun) = self.held.gate(&mut tx, event.event_id, &call.source_topic, delivery).await?;
        match gate {
            Gate::Open | Gate::Redriven => {}
            Gate::Held => return Ok(AttemptResult::Held),
            Gate::Parked => return Ok(AttemptResult::Parked),
            Gate::Repeated => {
                tx.commit().await?;
                return Ok(AttemptResult::Repeated);
            }
        }
        let inputs = vec![call.input.clone()];
        let mut tx =
            run(&call.handler, inputs, Running { tx, begun, attempt, outbox: self.outbox.clone(), recorder: None })
                .await?;
        let is_head = gate == Gate::Redriven;
        let freed = is_head && self.held.delete(&mut tx, event.event_id).await?;
        tx.commit().await?;
        if is_head {
            self.head_is_gone(event, freed);
        }
        Ok(AttemptResult::Applied)
    }

    /// Applies events of one topic and one handler in one transaction and commits, without those that have been applied before.
    ///
    /// # Errors
    /// As [`Self::attempt`].
    pub(super) async fn attempt_all(&self, calls: &[&Call]) -> Result<BatchResult, Failed> {
        let Some(first) = calls.first() else { return Ok(BatchResult::Applied { applied: 0, repeated: 0 }) };
        let mut tx = self.pool.begin().await?;
        let ids: Vec<EventId> = calls.iter().map(|call| call.input.event.event_id).collect();
        let (mut new, begun) = self.held.mark_all(&mut tx, &ids).await?;
        let keys: Vec<Option<&[u8]>> = calls.iter().map(|call| call.input.event.key.as_deref()).collect();
        // Reads after the marks, because a mark may have waited for a member that gave the event a row.
        let apart = self.held.held_among(&mut tx, &first.source_topic, &ids, &keys).await?;
        if !apart.is_empty() {
            return Ok(BatchResult::Apart(apart));
        }
        // An event that is in the batch twice is new once.
        let fresh = calls.iter().filter(|call| new.remove(&call.input.event.event_id));
        let inputs: Vec<Input> = fresh.map(|call| call.input.clone()).collect();
        let (applied, repeated) = (inputs.len(), calls.len() - inputs.len());
        if applied > 0 {
            tx = run(
                &first.handler,
                inputs,
                Running { tx, begun, attempt: 1, outbox: self.outbox.clone(), recorder: None },
            )
            .await?;
        }
        tx.commit().await?;
        Ok(BatchResult::Applied { applied, repeated })
    }

    /// Looks at the heads of all held keys, reads the records of at most `most`, none of them of a paused topic, and counts the events that
    /// have a row.
    pub(super) async fn heads(&self, most: usize, paused: &[String]) -> Result<(Heads, i64), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let heads = self.held.heads(&mut tx, most, paused).await?;
        let parked = if heads.held + heads.retrying == 0 { 0 } else { self.held.count(&mut tx).await? };
        tx.commit().await?;
        Ok((heads, parked))
    }

    fn head_is_gone(&self, event: &Event, freed: bool) {
        if freed {
            tracing::info!(
                notice = %Notice::Resolved,
                code = %Code::KeyHeld,
                group = self.group,
                event.id = %event.event_id,
                topic = event.topic,
                "a held key is free again"
            );
        } else {
            self.head_gone.notify_one();
        }
    }
}

/// A transaction, and what a handler needs besides.
pub(super) struct Running {
    pub(super) tx: Transaction<'static, Postgres>,
    /// The id of the transaction.
    pub(super) begun: String,
    pub(super) attempt: u32,
    pub(super) outbox: Outbox,
    pub(super) recorder: Option<Recorder>,
}

/// Calls the handler in the transaction, and returns the transaction if a commit would keep the effects.
pub(super) async fn run(
    handler: &Handler,
    inputs: Vec<Input>,
    running: Running,
) -> Result<Transaction<'static, Postgres>, Failed> {
    let Running { tx, begun, attempt, outbox, recorder } = running;
    let Some(event) = inputs.first().map(|input| Arc::clone(&input.event)) else { return Ok(tx) };
    let tx = Arc::new(Mutex::new(tx));
    let guard = Arc::clone(&tx).lock_owned().await;
    let work = Work { tx: Some(guard), outbox, attempt, recorder };
    call(handler, work, inputs).await?;
    let Some(tx) = Arc::into_inner(tx) else {
        return Err(Failed::permanent("the handler has ended, but its Context is still held, perhaps by a task"));
    };
    let mut tx = tx.into_inner();
    keeps_its_effects(&mut tx, &begun, &event).await?;
    Ok(tx)
}

/// Calls the handler, and turns a panic into a failure.
pub(super) async fn call(handler: &Handler, work: Work, inputs: Vec<Input>) -> Result<(), Failed> {
    // The call itself is inside too: a handler that is not an async function may panic before it returns its future.
    let handled = AssertUnwindSafe(handler.call(work, inputs)).catch_unwind().await;
    handled.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
}

/// Fails if the commit would not keep the effects: Postgres has aborted the transaction, or it is not the one that has the mark.
async fn keeps_its_effects(tx: &mut Transaction<'static, Postgres>, begun: &str, event: &Event) -> Result<(), Failed> {
    let aborted = |error: &sqlx::Error| {
        error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == transaction::ABORTED)
    };
    let hidden = match transaction::id(tx).await {
        Ok(now) if now.as_deref() == Some(begun) => return Ok(()),
        Ok(_) => "the handler has ended the transaction of its event: it must not run COMMIT or ROLLBACK itself",
        Err(error) if aborted(&error) => {
            "the handler returned Ok, but one of its statements had failed, so Postgres keeps no effect of it: return the error, or run \
             a statement that may fail in a savepoint (ctx.tx().begin())"
        }
        Err(error) => return Err(error.into()),
    };
    tracing::error!(
        code = %Code::TransactionAborted,
        event.id = %event.event_id,
        "event.type" = event.event_type,
        topic = event.topic,
        partition = event.partition,
        offset = event.offset,
        error = hidden,
        next_step = "return the error with `?`, or run the statement in a savepoint: ctx.tx().begin()",
        "a handler hid a database error"
    );
    Err(Failed::permanent(hidden).because(Reason::Aborted))
}

fn panicked(panic: &(dyn Any + Send)) -> Failed {
    let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failed::permanent(format!("the handler panicked: {}", message.unwrap_or("with no message")))
        .because(Reason::Panicked)
}
