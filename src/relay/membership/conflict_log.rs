//! Logs live relays that do not go together: one line when a conflict begins, one when it lasts too long, one when it is over.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::store::relay_conflicts::{self, Conflict, RelayFacts};
use event_outbox::code::Code;
use event_outbox::notice::Notice;

/// A conflict that was logged.
#[derive(Debug)]
struct Logged {
    seen_at: Instant,
    is_lasting: bool,
}

/// The conflicts that a relay has logged, by code.
#[derive(Debug, Default)]
pub(crate) struct ConflictLog(BTreeMap<Code, Logged>);

impl ConflictLog {
    /// Logs the conflicts between the `live` relays that are new or last too long, and those that are over. Returns the conflicts.
    pub(crate) fn log_changes(&mut self, live: &[RelayFacts]) -> Vec<Conflict> {
        let found = relay_conflicts::conflicts(live);
        for conflict in &found {
            let known = self.0.get(&conflict.code);
            if known.is_none_or(|logged| conflict.is_lasting && !logged.is_lasting) {
                log(conflict);
            }
            let logged = self.0.entry(conflict.code);
            logged.or_insert(Logged { seen_at: Instant::now(), is_lasting: false }).is_lasting |= conflict.is_lasting;
        }
        self.0.retain(|code, logged| {
            let still = found.iter().any(|conflict| conflict.code == *code);
            if !still {
                tracing::info!(
                    notice = %Notice::Resolved,
                    code = %code,
                    lasted_s = logged.seen_at.elapsed().as_secs(),
                    "live relays go together again"
                );
            }
            still
        });
        found
    }
}

fn log(conflict: &Conflict) {
    let Conflict { code, since_s, is_lasting, message, next_step } = conflict;
    if *is_lasting {
        tracing::error!(
            code = %code,
            notice = %Notice::RelayConflict,
            reason = message,
            since_s,
            next_step,
            "live relays do not go together"
        );
    } else {
        tracing::warn!(
            code = %code,
            notice = %Notice::RelayConflict,
            reason = message,
            since_s,
            next_step,
            "live relays do not go together"
        );
    }
}
