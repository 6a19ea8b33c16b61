//! Applies the events that are parked behind held keys, once the events before them have ended.
//!
//! Each member of a group does this for all keys. Two members that take the same event wait for each other at its mark in the inbox, and the
//! second finds it processed. An event is only applied while it is the head of its key, so a key keeps its order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::consumer::runtime::applier::{Applier, Unfinished};
use crate::consumer::runtime::held::Head;
use crate::event::EventId;

/// The pause between two looks at the heads. A member looks at once when it has applied a head itself; the pause is for heads that another
/// member has applied, or an operator has discarded.
const PAUSE: Duration = Duration::from_secs(2);

/// The share of its time that a member may look. With very many held keys it looks less often.
const SHARE: u32 = 20;

pub(super) struct Drain {
    pub(super) applier: Applier,
}

impl Drain {
    pub(super) async fn run(mut self) {
        let head_gone = Arc::clone(&self.applier.shared.attempt_context.head_gone);
        let mut before = Vec::new();
        loop {
            let looked_at = Instant::now();
            let heads = self.look().await;
            let took = looked_at.elapsed();
            let ready: Vec<EventId> = heads.iter().filter(|head| head.ready.is_some()).map(|head| head.event).collect();
            // Without a change since the last look, something holds the same heads up, such as another member that applies them.
            if !ready.is_empty() && ready != before {
                before = ready;
                if !self.apply(heads).await {
                    return;
                }
                continue;
            }
            before.clear();
            tokio::select! {
                biased;
                () = self.applier.stopped() => return,
                () = head_gone.notified() => {}
                () = tokio::time::sleep(PAUSE.max(took * SHARE)) => {}
            }
        }
    }

    /// Reads the heads of all held keys. While the database is away there are none; the workers log that.
    async fn look(&self) -> Vec<Head> {
        let shared = &self.applier.shared;
        let heads = shared.attempt_context.heads().await;
        match heads {
            Ok((heads, parked)) => {
                let oldest = heads.iter().map(|head| head.age_seconds).fold(0.0, f64::max);
                shared.stats.set_keys(heads.len() as u64, parked.unsigned_abs(), oldest as u64);
                heads
            }
            Err(error) => {
                tracing::debug!(%error, "the held keys cannot be read for now");
                Vec::new()
            }
        }
    }

    /// Applies the heads that are ready. Returns false if the consumer is to end.
    async fn apply(&mut self, heads: Vec<Head>) -> bool {
        for delivery in heads.into_iter().filter_map(|head| head.ready) {
            match self.applier.deliver(&delivery).await {
                Ok(()) => {}
                Err(Unfinished::Interrupted) => return false,
                Err(Unfinished::Fatal(error)) => {
                    self.applier.shared.shutdown.fail(error);
                    return false;
                }
            }
        }
        true
    }
}
