//! Ends an event that will not be applied: as a dead letter, as the head of a held key, or by stopping the consumer.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::code::Code;
use crate::consumer::dead_letter::{DeadLetter, Reason, cut};
use crate::consumer::runtime::applier::{Applier, Unfinished};
use crate::consumer::runtime::delivery::{Delivery, Event};
use crate::consumer::runtime::failed::{Action, Failed};
use crate::consumer::runtime::held::HeldRow;
use crate::consumer::runtime::hook::{Rejected, ask};
use crate::consumer::runtime::options::ConsumerError;
use crate::consumer::runtime::pause::Pause;

/// An event that will not be applied, and the reason.
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) error: String,
    pub(super) path: Option<String>,
    pub(super) attempts: u32,
    pub(super) first_failed_at: DateTime<Utc>,
    pub(super) action: Option<Action>,
}

impl Failure {
    pub(super) fn new(failed: &Failed, reason: Reason, attempts: u32, first_failed_at: Option<DateTime<Utc>>) -> Self {
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

impl Applier {
    /// Does what the policy says with a failed event: stop, skip or hold the key.
    pub(super) async fn end(
        &mut self,
        delivery: &Delivery,
        named: Option<(&Arc<Event>, &str)>,
        failure: Failure,
    ) -> Result<(), Unfinished> {
        let shared = Arc::clone(&self.shared);
        let event_type = named.map(|(event, _)| event.event_type.as_str());
        let mut action = failure.action.unwrap_or_else(|| shared.policy.action(failure.reason, event_type));
        if let Some(hook) = &shared.before_dead_letter {
            let rejected = rejected(delivery, named.map(|(event, _)| event), &failure, action);
            action = self.interruptible(ask(hook, rejected)).await?;
        }
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
            self.hold(delivery, event, source_topic, &failure).await
        } else {
            self.release(event).await
        }
    }

    /// Sends a dead letter and returns once it is acknowledged, however long that takes. The event's offset must not be committed before.
    async fn send(
        &mut self,
        delivery: &Delivery,
        named: Option<(&Arc<Event>, &str)>,
        failure: &Failure,
    ) -> Result<(), Unfinished> {
        let shared = Arc::clone(&self.shared);
        let dead_letter = dead_letter(&shared.group, delivery, failure);
        let topic = (shared.dead_letter_topic)(&dead_letter.source_topic);
        let mut pause = Pause::from_retry(&shared.retries.default);
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
        Ok(())
    }

    /// Makes the failed event the head of its key.
    async fn hold(
        &mut self,
        delivery: &Delivery,
        event: &Event,
        source_topic: &str,
        failure: &Failure,
    ) -> Result<(), Unfinished> {
        let (shared, mut pause) = (Arc::clone(&self.shared), Pause::from_retry(&self.shared.retries.default));
        let row = HeldRow {
            reason: failure.reason.name(),
            // Postgres takes no NUL in a text.
            error: Some(cut(&failure.error.replace('\0', ""))),
            attempts: failure.attempts,
            due_in: None,
            first_failed_at: Some(failure.first_failed_at),
        };
        while let Err(refusal) = shared.attempt_context.park(event, source_topic, delivery, &row).await {
            self.wait(&mut pause, event, refusal).await?;
        }
        shared.stats.add_held(1);
        tracing::warn!(
            code = %Code::KeyHeld,
            group = shared.group,
            key = event.key_text(),
            event.id = %event.event_id,
            "event.type" = event.event_type,
            topic = source_topic,
            reason = %failure.reason,
            consequence = "later events of the key wait in processed_events_held",
            next_step = "fix the cause, then `outbox-relay dlq redrive` or `dlq discard` the dead letter",
            "a key is held"
        );
        Ok(())
    }

    /// Releases the key that a skipped event holds.
    pub(super) async fn release(&mut self, event: &Event) -> Result<(), Unfinished> {
        let (shared, mut pause) = (Arc::clone(&self.shared), Pause::from_retry(&self.shared.retries.default));
        while let Err(error) = shared.attempt_context.release(event).await {
            self.wait(&mut pause, event, error).await?;
        }
        Ok(())
    }

    /// Logs a database error and waits for the next attempt. The statement has to succeed sooner or later.
    pub(super) async fn wait(
        &mut self,
        pause: &mut Pause,
        event: &Event,
        error: sqlx::Error,
    ) -> Result<(), Unfinished> {
        pause.log_first(|| warn_of(event, &Failed::from(error), "its lane waits, other lanes and partitions go on"));
        self.interruptible(tokio::time::sleep(pause.next())).await
    }
}

pub(super) fn warn_of(event: &Event, failed: &Failed, consequence: &str) {
    tracing::warn!(
        code = %Code::EventRetried,
        event.id = %event.event_id,
        "event.type" = event.event_type,
        topic = event.topic,
        partition = event.partition,
        offset = event.offset,
        error = failed.describe(),
        consequence,
        "an event is tried again"
    );
}

fn rejected(delivery: &Delivery, event: Option<&Arc<Event>>, failure: &Failure, action: Action) -> Rejected {
    Rejected {
        event: event.cloned(),
        topic: delivery.topic.clone(),
        partition: delivery.partition,
        offset: delivery.offset,
        reason: failure.reason,
        error: failure.error.clone(),
        attempts: failure.attempts,
        action,
    }
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
