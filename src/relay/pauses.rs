//! Logs pauses: one line when a pause begins, one line when it ends. `worker/pauses.rs` applies the pauses.

use std::collections::HashMap;
use std::time::Instant;

use crate::relay::health::outage::Component;
use crate::relay::shared::Shared;
use crate::store::pauses::{Pause, Scope};
use event_outbox::notice::Notice;

/// The pauses that a relay has logged, with the time at which each was first seen.
#[derive(Debug, Default)]
pub(crate) struct PauseLog(HashMap<Scope, Instant>);

impl PauseLog {
    /// Logs the pauses that began and those that ended since the last call.
    pub(crate) fn log_changes(&mut self, shared: &Shared, active: &[Pause]) {
        for pause in active {
            let expires_at = pause.expires_at.map(|at| at.to_rfc3339());
            let until = expires_at.as_deref().map(|at| format!(", until {at}")).unwrap_or_default();
            shared.obstacles.block(Component::Heartbeat, &what(&pause.scope), &format!("{}{until}", pause.reason));
            if self.0.contains_key(&pause.scope) {
                continue;
            }
            self.0.insert(pause.scope.clone(), Instant::now());
            tracing::info!(
                notice = %Notice::PauseStarted,
                paused = %pause.scope,
                reason = pause.reason,
                paused_by = pause.paused_by,
                expires_at,
                consequence = "its events wait, in order, until it is resumed or expires",
                "a pause is in force"
            );
        }
        self.0.retain(|scope, since| {
            let still = active.iter().any(|pause| pause.scope == *scope);
            if !still {
                shared.obstacles.unblock(Component::Heartbeat, &what(scope));
                tracing::info!(
                    notice = %Notice::PauseEnded,
                    paused = %scope,
                    lasted_s = since.elapsed().as_secs(),
                    consequence = "its events go out in order",
                    "the pause is over"
                );
            }
            still
        });
    }
}

fn what(scope: &Scope) -> String {
    format!("pause of {scope}")
}
