//! Decodes a record and finds its handler, before an attempt is made.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::consumer::runtime::attempt::Call;
use crate::consumer::runtime::context::Input;
use crate::consumer::runtime::delivery::{Delivery, Event};
use crate::consumer::runtime::failed::Failed;
use crate::consumer::runtime::progress::Progress;
use crate::consumer::runtime::registry::Taken;
use crate::consumer::runtime::shared::Shared;
use crate::envelope::Undecodable;

/// A record on its way to a handler.
pub(super) struct Job {
    pub(super) delivery: Delivery,
    pub(super) origin: Origin,
}

/// The source of a record. It is told when the record is finished.
pub(super) enum Origin {
    Partition(Arc<Progress>),
    Drain(#[expect(dead_code, reason = "the drain learns it when the ticket is dropped")] Ticket),
}

/// The place of a record in Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    topic: String,
    partition: i32,
    offset: i64,
}

impl Place {
    pub(super) fn of(delivery: &Delivery) -> Self {
        Self { topic: delivery.topic.clone(), partition: delivery.partition, offset: delivery.offset }
    }
}

/// Tells the drain of held keys, when it is dropped, that the record is finished.
pub(super) struct Ticket {
    pub(super) place: Place,
    pub(super) ended: mpsc::UnboundedSender<Place>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // The drain may have ended before.
        let _ = self.ended.send(self.place.clone());
    }
}

/// A record, and what to do with it.
pub(super) struct Prepared {
    pub(super) job: Job,
    pub(super) step: Step,
}

/// The step that a record needs.
pub(super) enum Step {
    /// Calls a handler.
    Call(Call),
    /// Skips an event whose type no handler takes.
    Ignore(Arc<Event>),
    /// Ends an event that no handler can be called for.
    Refuse { event: Arc<Event>, source_topic: String, failed: Failed },
    /// Ends a record that names no event.
    Undecodable(Undecodable),
}

impl Prepared {
    pub(super) fn new(shared: &Shared, job: Job) -> Self {
        let step = Step::of(shared, &job.delivery);
        Self { job, step }
    }

    /// Tells the record's origin that it is finished.
    pub(super) fn done(&self) {
        if let Origin::Partition(progress) = &self.job.origin {
            progress.done(self.job.delivery.offset);
        }
    }

    /// Returns true if one call of a handler may get this event and those of `other`. Events with a row of their own are handled alone.
    pub(super) fn joins(&self, other: &Self) -> bool {
        let plain = |prepared: &'_ Self| match &prepared.step {
            Step::Call(call) => {
                prepared.job.delivery.parked.is_none() && call.source_topic == prepared.job.delivery.topic
            }
            _ => false,
        };
        match (&self.step, &other.step) {
            (Step::Call(one), Step::Call(two)) => plain(self) && plain(other) && one.handler.joins(&two.handler),
            _ => false,
        }
    }
}

impl Step {
    fn of(shared: &Shared, delivery: &Delivery) -> Self {
        let (event, payload) = match delivery.decode() {
            Ok(decoded) => decoded,
            Err(error) => return Self::Undecodable(error),
        };
        let source_topic = match delivery.redriven_by(&shared.group) {
            Some(dead_letter) => dead_letter.source_topic,
            None => delivery.topic.clone(),
        };
        let event = Arc::new(event);
        match shared.handlers.take(&event, payload) {
            Ok(Some(Taken { handler, version, payload })) => {
                let input = Input { event, payload: payload.map(Arc::from), version };
                Self::Call(Call { input, source_topic, handler })
            }
            Ok(None) => Self::Ignore(event),
            Err(failed) => Self::Refuse { event, source_topic, failed },
        }
    }
}
