//! Handles the events of one partition one after the other, each until it is finished.
//!
//! An event is finished when it is applied, recognised as repeated, ignored, or acknowledged as a dead letter. Only then its offset may be
//! committed. A failed attempt that may help is made again after a pause. The partition waits meanwhile, but the group does not notice,
//! because another thread polls. A worker that is told to stop ends after its current attempt.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, watch};

use crate::code::Code;
use crate::consumer::dead_letter::{DeadLetter, Reason};
use crate::consumer::runtime::attempt::{AttemptResult, Call};
use crate::consumer::runtime::delivery::{Delivery, Event};
use crate::consumer::runtime::failed::{Action, Failed, Kind};
use crate::consumer::runtime::held::Gate;
use crate::consumer::runtime::options::{ConsumerError, UnknownType};
use crate::consumer::runtime::pause::Pause;
use crate::consumer::runtime::progress::Progress;
use crate::consumer::runtime::shared::Shared;

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: mpsc::UnboundedReceiver<Delivery>,
    pub(super) progress: Arc<Progress>,
    pub(super) stop: watch::Receiver<bool>,
}

/// The reason why an event must be delivered again: the worker was told to stop, or hit a fatal error.
enum Unfinished {
    Interrupted,
    Fatal(ConsumerError),
}

/// An event that will not be applied, and the reason.
struct Failure {
    reason: Reason,
    error: String,
    path: Option<String>,
    attempts: u32,
    first_failed_at: DateTime<Utc>,
    action: Option<Action>,
}

impl Failure {
    fn new(failed: &Failed, reason: Reason, attempts: u32, first_failed_at: Option<DateTime<Utc>>) -> Self {
        Self {
            reason: failed.reason.unwrap_or(reason),
            error: failed.describe(),
            path: failed.path.clone(),
            attempts,
            first_failed_at: first_failed_at.unwrap_or_else(Utc::now),
            action: failed.action,
        }
    }
}

impl Worker {
    pub(super) async fn run(mut self) {
        loop {
            let delivery = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return,
                delivery = self.queue.recv() => delivery,
            };
            let Some(delivery) = delivery else { return };
            match self.deliver(&delivery).await {
                Ok(()) => {}
                Err(Unfinished::Interrupted) => return,
                Err(Unfinished::Fatal(error)) => return self.shared.shutdown.fail(error),
            }
            self.progress.done(&delivery);
        }
    }

    async fn deliver(&mut self, delivery: &Delivery) -> Result<(), Unfinished> {
        let (event, payload) = match delivery.decode() {
            Ok(decoded) => decoded,
            Err(error) => {
                let failed = Failed::permanent(error);
                let failure = Failure::new(&failed, Reason::Undecodable, 0, None);
                return self.end(delivery, None, failure).await;
            }
        };
        let source_topic = match delivery.redriven_by(&self.shared.group) {
            Some(dead_letter) => dead_letter.source_topic,
            None => delivery.topic.clone(),
        };
        let event = Arc::new(event);
        match self.take(&event, payload) {
            Ok(Some((handler, version, payload))) => {
                let call = Call { event, source_topic, handler, payload, version };
                self.attempts(delivery, &call).await
            }
            Ok(None) => {
                self.shared.stats.add_ignored(1);
                Ok(())
            }
            Err(failed) => self.refuse(delivery, &event, &source_topic, &failed).await,
        }
    }

    /// Finds the event's handler, and the payload and version to call it with.
    #[expect(clippy::type_complexity, reason = "the three only travel from here to the one call")]
    fn take(
        &self,
        event: &Event,
        payload: Option<Vec<u8>>,
    ) -> Result<Option<(crate::consumer::runtime::registry::Handler, i32, Option<Arc<[u8]>>)>, Failed> {
        let shared = &self.shared;
        #[cfg(feature = "schema")]
        if let (Some(schemas), Some(payload)) = (&shared.schemas, &payload) {
            schemas.check(&event.event_type, event.event_version, payload).map_err(|invalid| {
                let path = invalid.path.clone();
                Failed::permanent(invalid).because(Reason::Invalid).at(path)
            })?;
        }
        match shared.registry.take(&event.event_type, event.event_version, payload)? {
            Some(taken) => Ok(Some((taken.handler, taken.version, taken.payload.map(Arc::from)))),
            None if shared.unknown_type == UnknownType::Ignore => Ok(None),
            None => {
                let error = format!("no handler takes {}", event.event_type);
                Err(Failed::permanent(error).because(Reason::UnknownType))
            }
        }
    }

    async fn attempts(&mut self, delivery: &Delivery, call: &Call) -> Result<(), Unfinished> {
        let (mut attempt, mut first_failed_at, mut pause) = (1, None, Pause::from_retry(&self.shared.retry));
        loop {
            let failed = match self.shared.attempt_context.attempt(call, delivery, attempt).await {
                Ok(AttemptResult::Held) => return self.behind(delivery, &call.event, &call.source_topic).await,
                Ok(result) => return self.count(result),
                Err(failed) => failed,
            };
            // An outage is not the event's fault.
            if failed.kind != Kind::Outage {
                first_failed_at.get_or_insert_with(Utc::now);
            }
            let exhausted = failed.kind == Kind::Transient && attempt >= self.shared.retry.attempts;
            if failed.kind == Kind::Permanent || exhausted {
                let reason = if exhausted { Reason::Exhausted } else { Reason::Permanent };
                let failure = Failure::new(&failed, reason, attempt, first_failed_at);
                return self.end(delivery, Some((&call.event, &call.source_topic)), failure).await;
            }
            pause.log_first(|| warn_of(&call.event, &failed));
            self.interruptible(tokio::time::sleep(pause.next())).await?;
            self.shared.stats.add_retried(1);
            if failed.kind == Kind::Transient {
                attempt += 1;
            }
        }
    }

    fn count(&self, result: AttemptResult) -> Result<(), Unfinished> {
        match result {
            AttemptResult::Applied => self.shared.stats.add_applied(1),
            AttemptResult::Repeated | AttemptResult::Parked | AttemptResult::Held => self.shared.stats.add_repeated(1),
        }
        Ok(())
    }

    /// Ends an event that no handler is called for. First looks whether another member has applied the event before, or its key is held.
    async fn refuse(
        &mut self,
        delivery: &Delivery,
        event: &Event,
        source_topic: &str,
        failed: &Failed,
    ) -> Result<(), Unfinished> {
        let mut pause = Pause::from_retry(&self.shared.retry);
        loop {
            match self.shared.attempt_context.look(event, source_topic, delivery).await {
                Ok(Gate::Repeated) => return self.count(AttemptResult::Repeated),
                Ok(Gate::Parked) => return self.count(AttemptResult::Parked),
                Ok(Gate::Held) => return self.behind(delivery, event, source_topic).await,
                Ok(Gate::Open | Gate::Redriven) => {
                    let failure = Failure::new(failed, Reason::Permanent, 0, None);
                    return self.end(delivery, Some((event, source_topic)), failure).await;
                }
                Err(error) => self.wait(&mut pause, event, error).await?,
            }
        }
    }

    /// Sends an event of a held key to the dead letter topic, where it waits behind the earlier events of its key.
    async fn behind(&mut self, delivery: &Delivery, event: &Event, source_topic: &str) -> Result<(), Unfinished> {
        let failure = Failure {
            reason: Reason::Held,
            error: "an earlier event of its key is a dead letter".to_owned(),
            path: None,
            attempts: 0,
            first_failed_at: Utc::now(),
            action: Some(Action::HoldKey),
        };
        self.end(delivery, Some((event, source_topic)), failure).await
    }

    /// Does what the policy says with a failed event: stop, skip or hold the key.
    async fn end(
        &mut self,
        delivery: &Delivery,
        named: Option<(&Event, &str)>,
        failure: Failure,
    ) -> Result<(), Unfinished> {
        let event_type = named.map(|(event, _)| event.event_type.as_str());
        let action = failure.action.unwrap_or_else(|| self.shared.policy.action(failure.reason, event_type));
        if action == Action::Stop {
            return Err(Unfinished::Fatal(ConsumerError::Stopped {
                topic: delivery.topic.clone(),
                partition: delivery.partition,
                offset: delivery.offset,
                reason: failure.reason,
                error: failure.error,
            }));
        }
        self.send(delivery, named, &failure).await?;
        let Some((event, source_topic)) = named else { return Ok(()) };
        if action == Action::HoldKey && delivery.key.is_some() {
            self.park(delivery, event, source_topic, failure.reason).await
        } else {
            self.release(event).await
        }
    }

    /// Sends a dead letter and returns once it is acknowledged, however long that takes. The event's offset must not be committed before.
    async fn send(
        &mut self,
        delivery: &Delivery,
        named: Option<(&Event, &str)>,
        failure: &Failure,
    ) -> Result<(), Unfinished> {
        let shared = Arc::clone(&self.shared);
        let dead_letter = dead_letter(&shared.group, delivery, failure);
        let topic = (shared.dead_letter_topic)(&dead_letter.source_topic);
        let mut pause = Pause::from_retry(&shared.retry);
        loop {
            let sent = shared.dead_letters.send(&topic, delivery, delivery.headers_of(&dead_letter));
            let Err(refusal) = self.interruptible(sent).await? else { break };
            pause.log_first(|| {
                tracing::error!(
                    code = %Code::DeadLetterUnsent,
                    topic,
                    error = %refusal,
                    source_topic = delivery.topic,
                    partition = delivery.partition,
                    next_step = "create the dead letter topic, grant WRITE on it, or raise its max.message.bytes",
                    consequence = "its partition waits",
                    "a dead letter cannot be sent"
                );
            });
            self.interruptible(tokio::time::sleep(pause.next())).await?;
        }
        shared.stats.add_dead(1);
        if failure.reason != Reason::Held {
            tracing::error!(
                code = %Code::DeadLetter,
                event.id = named.map(|(event, _)| event.event_id.to_string()),
                "event.type" = named.map(|(event, _)| event.event_type.as_str()),
                topic,
                reason = %failure.reason,
                error = failure.error,
                attempts = failure.attempts,
                next_step = "fix the cause, then redrive the dead letter",
                "an event became a dead letter"
            );
        }
        Ok(())
    }

    async fn park(
        &mut self,
        delivery: &Delivery,
        event: &Event,
        source_topic: &str,
        reason: Reason,
    ) -> Result<(), Unfinished> {
        let (shared, mut pause) = (Arc::clone(&self.shared), Pause::from_retry(&self.shared.retry));
        while let Err(error) = shared.attempt_context.park(event, source_topic, delivery, reason).await {
            self.wait(&mut pause, event, error).await?;
        }
        shared.stats.add_held(1);
        Ok(())
    }

    /// Releases the key that a skipped event holds.
    async fn release(&mut self, event: &Event) -> Result<(), Unfinished> {
        let (shared, mut pause) = (Arc::clone(&self.shared), Pause::from_retry(&self.shared.retry));
        while let Err(error) = shared.attempt_context.release(event).await {
            self.wait(&mut pause, event, error).await?;
        }
        Ok(())
    }

    /// Logs a database error and waits for the next attempt. The statement has to succeed sooner or later.
    async fn wait(&mut self, pause: &mut Pause, event: &Event, error: sqlx::Error) -> Result<(), Unfinished> {
        pause.log_first(|| warn_of(event, &Failed::from(error)));
        self.interruptible(tokio::time::sleep(pause.next())).await
    }

    async fn interruptible<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Unfinished> {
        tokio::select! {
            biased;
            () = stopped(&mut self.stop) => Err(Unfinished::Interrupted),
            done = work => Ok(done),
        }
    }
}

/// Returns when the owner of the partition tells the worker to stop, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn warn_of(event: &Event, failed: &Failed) {
    tracing::warn!(
        code = %Code::EventRetried,
        event.id = %event.event_id,
        "event.type" = event.event_type,
        topic = event.topic,
        partition = event.partition,
        offset = event.offset,
        error = failed.describe(),
        consequence = "its partition waits, other partitions go on",
        "an event is tried again"
    );
}

fn dead_letter(group: &str, delivery: &Delivery, failure: &Failure) -> DeadLetter {
    let before = delivery.redriven_by(group);
    let attempts = failure.attempts + before.as_ref().map_or(0, |dead_letter| dead_letter.attempts);
    let (reason, error, path) = (failure.reason, failure.error.clone(), failure.path.clone());
    match before {
        Some(before) => DeadLetter { reason, error, path, attempts, ..before },
        None => DeadLetter {
            reason,
            error,
            path,
            attempts,
            group: group.to_owned(),
            source_topic: delivery.topic.clone(),
            source_partition: delivery.partition,
            source_offset: delivery.offset,
            first_failed_at: failure.first_failed_at,
        },
    }
}
