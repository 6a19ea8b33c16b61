//! Applies one event: finds its handler, and makes attempts until the event is finished.
//!
//! A failed attempt that may help is made again after a pause. The partition waits meanwhile, but the group does not notice, because another
//! thread polls.

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use tracing::Instrument;

use crate::code::Code;
use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::applier::{Applier, Unfinished};
use crate::consumer::runtime::attempt::{AttemptResult, Call};
use crate::consumer::runtime::delivery::{Delivery, Event};
use crate::consumer::runtime::failed::{Failed, Kind};
use crate::consumer::runtime::failure::{Failure, warn_of};
use crate::consumer::runtime::held::Gate;
use crate::consumer::runtime::options::UnknownType;
use crate::consumer::runtime::pause::Pause;
use crate::consumer::runtime::registry::Taken;
use crate::notice::Notice;

/// What became of an event whose key is held.
enum Behind {
    Parked,
    /// The key was freed in the meantime: try the event again.
    Freed,
}

impl Applier {
    pub(super) async fn deliver(&mut self, delivery: &Delivery) -> Result<(), Unfinished> {
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
            Ok(Some(Taken { handler, version, payload })) => {
                let call = Call { event, source_topic, handler, payload: payload.map(Arc::from), version };
                self.attempts(delivery, &call).await
            }
            Ok(None) => {
                self.ignore(&event);
                // A row that nobody takes any more must not hold its key for ever.
                if delivery.parked { self.release(&event).await } else { Ok(()) }
            }
            Err(failed) => self.refuse(delivery, &event, &source_topic, &failed).await,
        }
    }

    /// Finds the event's handler, and the payload and version to call it with; `None` if the event is to be ignored.
    fn take(&self, event: &Event, payload: Option<Vec<u8>>) -> Result<Option<Taken>, Failed> {
        let shared = &self.shared;
        #[cfg(feature = "schema")]
        if let (Some(schemas), Some(payload)) = (&shared.schemas, &payload) {
            schemas.check(&event.event_type, event.event_version, payload).map_err(|invalid| {
                let path = invalid.path.clone();
                Failed::permanent(invalid).because(Reason::Invalid).at(path)
            })?;
        }
        match shared.registry.take(&event.event_type, event.event_version, payload)? {
            Some(taken) => Ok(Some(taken)),
            None if shared.unknown_type == UnknownType::Ignore => Ok(None),
            None => {
                let error = format!("no handler takes {}", event.event_type);
                Err(Failed::permanent(error).because(Reason::UnknownType))
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
        let (mut attempt, mut first_failed_at, mut pause) = (1, None, Pause::from_retry(&self.shared.retry));
        let (began, mut retried) = (Instant::now(), false);
        loop {
            let failed = match self.watched(call, delivery, attempt).await {
                Ok(AttemptResult::Held) => match self.behind(delivery, &call.event, &call.source_topic).await? {
                    Behind::Parked => return Ok(()),
                    Behind::Freed => continue,
                },
                Ok(result) => {
                    if retried {
                        resolved(&call.event, began);
                    }
                    return self.count(result);
                }
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
            retried = true;
            if failed.kind == Kind::Transient {
                attempt += 1;
            }
        }
    }

    /// Makes an attempt in a span of its own, logs a handler that takes long, and ends one that takes too long.
    async fn watched(&self, call: &Call, delivery: &Delivery, attempt: u32) -> Result<AttemptResult, Failed> {
        let (shared, event) = (&self.shared, &call.event);
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
        let attempting = shared.attempt_context.attempt(call, delivery, attempt).instrument(span);
        let mut attempting = std::pin::pin!(attempting);
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
                    tracing::warn!(
                        code = %Code::HandlerHangs,
                        group = shared.group,
                        event.id = %event.event_id,
                        "event.type" = event.event_type,
                        key = event.key_text(),
                        topic = event.topic,
                        partition = event.partition,
                        offset = event.offset,
                        running_s = began.elapsed().as_secs(),
                        next_step = "see what the handler waits for; `handler_timeout` of the consumer ends it",
                        consequence = "its partition waits, other partitions go on",
                        "a handler has not ended yet"
                    );
                }
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
                Ok(Gate::Held) => match self.behind(delivery, event, source_topic).await? {
                    Behind::Parked => return Ok(()),
                    Behind::Freed => {}
                },
                Ok(Gate::Open | Gate::Redriven) => {
                    let mut failure = Failure::new(failed, Reason::Permanent, 0, None);
                    if failure.reason == Reason::UnknownType {
                        failure.action = self.shared.unknown_type.action();
                    }
                    return self.end(delivery, Some((event, source_topic)), failure).await;
                }
                Err(error) => self.wait(&mut pause, event, error).await?,
            }
        }
    }

    /// Parks an event of a held key behind the earlier events of the key, with its record.
    async fn behind(&mut self, delivery: &Delivery, event: &Event, source_topic: &str) -> Result<Behind, Unfinished> {
        let (shared, mut pause) = (Arc::clone(&self.shared), Pause::from_retry(&self.shared.retry));
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

fn resolved(event: &Event, began: Instant) {
    tracing::info!(
        notice = %Notice::Resolved,
        code = %Code::EventRetried,
        event.id = %event.event_id,
        "event.type" = event.event_type,
        topic = event.topic,
        partition = event.partition,
        offset = event.offset,
        after_s = began.elapsed().as_secs(),
        "a retried event was applied"
    );
}
