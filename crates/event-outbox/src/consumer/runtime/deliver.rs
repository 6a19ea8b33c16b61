//! Applies one event: makes attempts until the event is finished.
//!
//! A failed attempt that may help is made again after a pause. The lane waits meanwhile, or the event is set aside with its key. The group
//! does not notice, because another thread polls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tracing::Instrument;

use crate::code::Code;
use crate::consumer::dead_letter::{Reason, cut};
use crate::consumer::runtime::applier::{Applier, Unfinished};
use crate::consumer::runtime::attempt::{AttemptResult, Call};
use crate::consumer::runtime::delivery::{Delivery, Event};
use crate::consumer::runtime::failed::Failed;
use crate::consumer::runtime::failure::{Failure, warn_of};
use crate::consumer::runtime::held::{Gate, HeldRow, RETRYING};
use crate::consumer::runtime::pause::Pause;
use crate::consumer::runtime::prepared::{Prepared, Step};
use crate::consumer::runtime::retry::{AfterFailure, Next};
use crate::notice::Notice;

/// What became of an event whose key is held.
enum Behind {
    Parked,
    /// The key was freed in the meantime: try the event again.
    Freed,
}

impl Applier {
    pub(super) async fn deliver(&mut self, prepared: &Prepared) -> Result<(), Unfinished> {
        let delivery = &prepared.job.delivery;
        match &prepared.step {
            Step::Call(call) => self.attempts(delivery, call).await,
            Step::Ignore(event) => {
                self.ignore(event);
                // A row that nobody takes any more must not hold its key for ever.
                if delivery.parked.is_some() { self.release(event).await } else { Ok(()) }
            }
            Step::Refuse { event, source_topic, failed } => self.refuse(delivery, event, source_topic, failed).await,
            Step::Undecodable(error) => {
                let failed = Failed::permanent(error.clone());
                let failure = Failure::new(&failed, Reason::Undecodable, 0, None);
                self.end(delivery, None, failure).await
            }
        }
    }

    fn ignore(&self, event: &Event) {
        self.shared.stats.add_ignored(1);
        if self.shared.stats.is_new_type(&event.event_type) {
            tracing::info!(
                notice = %Notice::TypeIgnored,
                group = self.shared.group,
                "event.type" = event.event_type,
                topic = event.topic,
                partition = event.partition,
                offset = event.offset,
                consequence = "events of this type are skipped; `unknown_type` of the consumer decides",
                "no handler takes an event type"
            );
        }
    }

    async fn attempts(&mut self, delivery: &Delivery, call: &Call) -> Result<(), Unfinished> {
        let event = &call.input.event;
        let (before, mut first_failed_at) = match &delivery.parked {
            Some(row) => (row.attempts, row.first_failed_at),
            None => (0, None),
        };
        let (shared, began) = (Arc::clone(&self.shared), Instant::now());
        let (mut attempt, mut pause) = (before + 1, Pause::from_retry(&shared.retries.default));
        loop {
            let make = || shared.attempt_context.attempt(call, delivery, attempt);
            let (failed, next) = match self.outlast_outages(event, attempt, 1, &mut pause, make).await? {
                Ok(AttemptResult::Held) => match self.behind(delivery, event, &call.source_topic).await? {
                    Behind::Parked => return Ok(()),
                    Behind::Freed => continue,
                },
                Ok(result) => {
                    if pause.is_logged() || before > 0 && result == AttemptResult::Applied {
                        resolved(event, began, first_failed_at);
                    }
                    return self.count(result);
                }
                Err(failure) => failure,
            };
            first_failed_at.get_or_insert_with(Utc::now);
            let waits = match next {
                AfterFailure::Retry(retry) => {
                    let waits = retry.pause(attempt);
                    // An event that is parked already waits in its row, so that its lane goes on.
                    if (retry.set_aside || delivery.parked.is_some()) && delivery.key.is_some() {
                        let row = HeldRow {
                            reason: RETRYING,
                            error: Some(cut(&failed.to_string().replace('\0', ""))),
                            attempts: attempt,
                            due_in: Some(waits),
                            first_failed_at,
                        };
                        return self.set_aside(delivery, call, row, &failed).await;
                    }
                    attempt += 1;
                    waits
                }
                AfterFailure::GiveUp { reason, then } => {
                    // A handler that has ended its transaction itself may have left a mark. That is its fault, and is reported.
                    if failed.reason != Some(Reason::Aborted)
                        && let Some(result) = self.finished(delivery, event, &call.source_topic).await?
                    {
                        if pause.is_logged() {
                            resolved(event, began, first_failed_at);
                        }
                        return self.count(result);
                    }
                    let mut failure = Failure::new(&failed, reason, attempt, first_failed_at);
                    failure.action = failure.action.or(then);
                    return self.end(delivery, Some((event, &call.source_topic)), failure).await;
                }
            };
            self.before_retry(&mut pause, waits, event, &failed, 1).await?;
        }
    }

    /// Makes attempts until the result is no outage, which is not the fault of the events. `event` is the first of these `events`.
    pub(super) async fn outlast_outages<T, F>(
        &mut self,
        event: &Event,
        attempt: u32,
        events: usize,
        pause: &mut Pause,
        make: impl Fn() -> F,
    ) -> Result<Result<T, (Failed, AfterFailure)>, Unfinished>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        loop {
            let failed = match self.watched(event, attempt, make()).await {
                Ok(result) => return Ok(Ok(result)),
                Err(failed) => failed,
            };
            match self.shared.retries.next(event, &failed, attempt) {
                Next::Outage => {
                    let waits = pause.next();
                    self.before_retry(pause, waits, event, &failed, events).await?;
                }
                Next::Failed(after) => return Ok(Err((failed, after))),
            }
        }
    }

    /// Logs the first failure, and waits until the next attempt is due.
    async fn before_retry(
        &mut self,
        pause: &mut Pause,
        waits: Duration,
        event: &Event,
        failed: &Failed,
        events: usize,
    ) -> Result<(), Unfinished> {
        pause.log_first(|| warn_of(event, failed, "its lane waits, other lanes and partitions go on"));
        self.interruptible(tokio::time::sleep(waits)).await?;
        self.shared.stats.add_retried(events);
        Ok(())
    }

    /// Parks an event with the time of its next attempt. The drain makes that attempt.
    async fn set_aside(
        &mut self,
        delivery: &Delivery,
        call: &Call,
        row: HeldRow,
        failed: &Failed,
    ) -> Result<(), Unfinished> {
        let (shared, event) = (Arc::clone(&self.shared), &call.input.event);
        if delivery.parked.is_none() {
            warn_of(event, failed, "its key waits, all other keys go on");
        }
        let mut pause = Pause::from_retry(&shared.retries.default);
        while let Err(error) = shared.attempt_context.park(event, &call.source_topic, delivery, &row).await {
            self.wait(&mut pause, event, error).await?;
        }
        match delivery.parked {
            Some(_) => shared.stats.add_retried(1),
            None => shared.stats.add_held(1),
        }
        // The drain has to know when the event is due.
        shared.attempt_context.head_gone.notify_one();
        Ok(())
    }

    /// Makes an attempt in a span of its own, logs a handler that takes long, and ends one that takes too long. `event` is the first event of
    /// the attempt.
    pub(super) async fn watched<T>(
        &self,
        event: &Event,
        attempt: u32,
        attempting: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        let shared = &self.shared;
        let span = tracing::info_span!(
            "event",
            group = shared.group,
            event.id = %event.event_id,
            "event.type" = event.event_type,
            topic = event.topic,
            partition = event.partition,
            offset = event.offset,
            attempt
        );
        let _at_work = shared.stats.at_work();
        let mut attempting = std::pin::pin!(attempting.instrument(span));
        let began = Instant::now();
        let mut slow = std::pin::pin!(tokio::time::sleep(shared.limits.slow_after));
        let timeout = async {
            match shared.limits.handler_timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let mut timeout = std::pin::pin!(timeout);
        let mut is_slow = false;
        loop {
            tokio::select! {
                biased;
                done = &mut attempting => return done,
                () = &mut timeout => {
                    return Err(Failed::transient(format!("the handler did not end within {:?}", began.elapsed())));
                }
                () = &mut slow, if !is_slow => {
                    is_slow = true;
                    self.hangs(event, began.elapsed());
                }
            }
        }
    }

    fn hangs(&self, event: &Event, running: Duration) {
        tracing::warn!(
            code = %Code::HandlerHangs,
            group = self.shared.group,
            event.id = %event.event_id,
            "event.type" = event.event_type,
            key = event.key_text(),
            topic = event.topic,
            partition = event.partition,
            offset = event.offset,
            running_s = running.as_secs(),
            next_step = "see what the handler waits for; `handler_timeout` of the consumer ends it",
            consequence = "its lane waits, other lanes and partitions go on",
            "a handler has not ended yet"
        );
    }

    fn count(&self, result: AttemptResult) -> Result<(), Unfinished> {
        match result {
            AttemptResult::Applied => self.shared.stats.add_applied(1),
            AttemptResult::Repeated | AttemptResult::Parked => self.shared.stats.add_repeated(1),
            // It was counted when it was parked.
            AttemptResult::Held => {}
        }
        Ok(())
    }

    /// Ends an event that no handler is called for.
    async fn refuse(
        &mut self,
        delivery: &Delivery,
        event: &Arc<Event>,
        source_topic: &str,
        failed: &Failed,
    ) -> Result<(), Unfinished> {
        match self.finished(delivery, event, source_topic).await? {
            Some(result) => self.count(result),
            None => {
                let failure = Failure::new(failed, Reason::Permanent, 0, None);
                self.end(delivery, Some((event, source_topic)), failure).await
            }
        }
    }

    /// Returns what became of an event that is to be ended, or `None` if nothing did. A commit may have succeeded although its attempt failed:
    /// `handler_timeout` or a lost connection ended the wait for its answer. Another member may have applied the event, or its key is held,
    /// and the event is parked behind the earlier ones.
    async fn finished(
        &mut self,
        delivery: &Delivery,
        event: &Event,
        source_topic: &str,
    ) -> Result<Option<AttemptResult>, Unfinished> {
        let mut pause = Pause::from_retry(&self.shared.retries.default);
        loop {
            match self.shared.attempt_context.look(event, source_topic, delivery).await {
                Ok(Gate::Repeated) => return Ok(Some(AttemptResult::Repeated)),
                Ok(Gate::Parked) => return Ok(Some(AttemptResult::Parked)),
                Ok(Gate::Held) => {
                    if let Behind::Parked = self.behind(delivery, event, source_topic).await? {
                        return Ok(Some(AttemptResult::Held));
                    }
                }
                Ok(Gate::Open | Gate::Redriven) => return Ok(None),
                Err(error) => self.wait(&mut pause, event, error).await?,
            }
        }
    }

    /// Parks an event of a held key behind the earlier events of the key, with its record.
    async fn behind(&mut self, delivery: &Delivery, event: &Event, source_topic: &str) -> Result<Behind, Unfinished> {
        let (shared, mut pause) = (Arc::clone(&self.shared), Pause::from_retry(&self.shared.retries.default));
        loop {
            match shared.attempt_context.park_behind(event, source_topic, delivery).await {
                Ok(true) => {
                    shared.stats.add_held(1);
                    return Ok(Behind::Parked);
                }
                Ok(false) => return Ok(Behind::Freed),
                Err(error) => self.wait(&mut pause, event, error).await?,
            }
        }
    }
}

/// Logs that an event was applied after an attempt that had failed.
pub(super) fn resolved(event: &Event, began: Instant, first_failed_at: Option<DateTime<Utc>>) {
    let since_failure = first_failed_at.and_then(|at| (Utc::now() - at).to_std().ok());
    tracing::info!(
        notice = %Notice::Resolved,
        code = %Code::EventRetried,
        event.id = %event.event_id,
        "event.type" = event.event_type,
        topic = event.topic,
        partition = event.partition,
        offset = event.offset,
        after_s = since_failure.unwrap_or_default().max(began.elapsed()).as_secs(),
        "a retried event was applied"
    );
}
