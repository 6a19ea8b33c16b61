//! Applies the events of a batch in one transaction. If that fails, the batch is halved until the events that are the cause stand alone, so
//! that they do not stop the others.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use crate::code::Code;
use crate::consumer::runtime::applier::{Applier, Unfinished};
use crate::consumer::runtime::attempt::{BatchResult, Call};
use crate::consumer::runtime::deliver::resolved;
use crate::consumer::runtime::delivery::Event;
use crate::consumer::runtime::failed::Failed;
use crate::consumer::runtime::pause::Pause;
use crate::consumer::runtime::prepared::{Prepared, Step};

impl Applier {
    /// Applies records in their order, those of a batch handler together. Tells each record's origin when it is finished.
    pub(super) async fn deliver_all(&mut self, batch: Vec<Prepared>) -> Result<(), Unfinished> {
        // The parts that are left, the first one last.
        let mut parts = vec![batch];
        let mut is_halved = false;
        while let Some(part) = parts.pop() {
            if let [alone] = &part[..] {
                self.deliver(alone).await?;
                alone.done();
                continue;
            }
            match self.together(&part).await? {
                Ok(BatchResult::Applied { applied, repeated }) => {
                    self.shared.stats.add_applied(applied);
                    self.shared.stats.add_repeated(repeated);
                    part.iter().for_each(Prepared::done);
                }
                // These are all events of their keys, so the others may be applied after them.
                Ok(BatchResult::Apart(events)) => {
                    let events: HashSet<_> = events.into_iter().collect();
                    let id = |prepared: &Prepared| call(prepared).map(|call| call.input.event.event_id);
                    let is_apart = |prepared: &Prepared| id(prepared).is_some_and(|id| events.contains(&id));
                    let (apart, rest): (Vec<_>, Vec<_>) = part.into_iter().partition(is_apart);
                    parts.extend(Some(rest).filter(|rest| !rest.is_empty()));
                    parts.extend(apart.into_iter().rev().map(|alone| vec![alone]));
                }
                Err(failed) => {
                    if !std::mem::replace(&mut is_halved, true) {
                        self.halved(&part, &failed);
                    }
                    self.shared.stats.add_halved(1);
                    let mut first = part;
                    let second = first.split_off(first.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        Ok(())
    }

    /// Makes attempts to apply these events together until the result is no outage.
    async fn together(&mut self, part: &[Prepared]) -> Result<Result<BatchResult, Failed>, Unfinished> {
        let shared = Arc::clone(&self.shared);
        let calls: Vec<&Call> = part.iter().filter_map(call).collect();
        let first: &Event = match calls.first() {
            Some(first) => &first.input.event,
            None => return Ok(Ok(BatchResult::Applied { applied: 0, repeated: 0 })),
        };
        let (mut pause, began) = (Pause::from_retry(&shared.retries.default), Instant::now());
        let make = || shared.attempt_context.attempt_all(&calls);
        let result = self.outlast_outages(first, 1, calls.len(), &mut pause, make).await?;
        if pause.is_logged() && result.is_ok() {
            resolved(first, began, None);
        }
        Ok(result.map_err(|(failed, _)| failed))
    }

    fn halved(&self, part: &[Prepared], failed: &Failed) {
        let Some(first) = part.iter().find_map(call).map(|call| &call.input.event) else { return };
        tracing::warn!(
            code = %Code::BatchHalved,
            group = self.shared.group,
            "event.type" = first.event_type,
            topic = first.topic,
            partition = first.partition,
            offset = first.offset,
            events = part.len(),
            error = %failed,
            consequence = "its events are applied in smaller batches, in the end one by one",
            "a batch failed"
        );
    }
}

fn call(prepared: &Prepared) -> Option<&Call> {
    match &prepared.step {
        Step::Call(call) => Some(call),
        _ => None,
    }
}
