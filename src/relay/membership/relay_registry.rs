//! Judges which relays are alive: a relay lives if its heartbeat changes while this relay looks, on this relay's monotonic clock. The
//! server's clock may be set back or forward, so the time that a heartbeat carries is compared only with itself.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::store::relay_registry::RelayRow;

#[derive(Debug, Clone, Copy)]
struct LastHeartbeat {
    seen_at: i64,
    /// The time at which this heartbeat was first read. `age` is how old it was then.
    read_at: Instant,
    age: Duration,
    /// True when the session that kept the heartbeat is gone.
    has_ended: bool,
}

impl LastHeartbeat {
    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.read_at) + self.age
    }
}

#[derive(Debug, Default)]
struct Heard {
    relays: HashMap<Uuid, LastHeartbeat>,
    looked_at: Option<Instant>,
}

/// The relays of an outbox as this relay sees them. Shared by the heartbeat and by workers that need a new answer at once.
#[derive(Debug, Default)]
pub(crate) struct RelayRegistry(Mutex<Heard>);

impl RelayRegistry {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in all rows of the registry as they were just read.
    pub(crate) fn observe(&self, rows: &[RelayRow], now: Instant) {
        let mut heard = self.heard();
        let since_last_look = heard.looked_at.replace(now).map(|at| now.saturating_duration_since(at));
        heard.relays.retain(|id, _| rows.iter().any(|row| row.id == *id));
        for row in rows {
            let known = heard.relays.get(&row.id).copied();
            if let Some(known) = known.filter(|known| known.seen_at == row.seen_at) {
                let same = LastHeartbeat { has_ended: row.has_ended, ..known };
                heard.relays.insert(row.id, same);
                continue;
            }
            // The server's clock is used only to place the heartbeat between two looks. At the first look nothing but its age is known.
            let age = Duration::try_from_secs_f64(row.age_s.max(0.0)).unwrap_or_default();
            let longest = known.and(since_last_look).unwrap_or(Duration::MAX);
            let age = age.min(longest);
            let heartbeat = LastHeartbeat { seen_at: row.seen_at, read_at: now, age, has_ended: row.has_ended };
            heard.relays.insert(row.id, heartbeat);
        }
    }

    /// Returns true when the relay's heartbeat has changed within `within` and the session that keeps it still exists.
    pub(crate) fn is_alive(&self, id: Uuid, within: Duration, now: Instant) -> bool {
        self.heard().relays.get(&id).is_some_and(|heartbeat| !heartbeat.has_ended && heartbeat.silence(now) < within)
    }

    /// Returns the relays that have been silent for longer than `longer_than`, each with its last heartbeat.
    pub(crate) fn silent_for(&self, longer_than: Duration, now: Instant) -> Vec<(Uuid, i64)> {
        let heard = self.heard();
        let gone = heard.relays.iter().filter(|(_, heartbeat)| heartbeat.silence(now) > longer_than);
        gone.map(|(id, heartbeat)| (*id, heartbeat.seen_at)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn row(seen_at: i64, age_s: f64) -> RelayRow {
        RelayRow { id: Uuid::from_u128(1), workers: 2, seen_at, age_s, ..RelayRow::default() }
    }

    fn alive(registry: &RelayRegistry, now: Instant) -> bool {
        registry.is_alive(Uuid::from_u128(1), 3 * SECOND, now)
    }

    #[test]
    fn a_relay_whose_heartbeat_does_not_change_is_gone_whatever_the_clock_says() {
        let (registry, now) = (RelayRegistry::default(), Instant::now());
        // Its last heartbeat lies an hour ahead: the clock was set back.
        registry.observe(&[row(3_600_000_000, -3600.0)], now);
        assert!(alive(&registry, now));
        for seconds in 1..5 {
            registry.observe(&[row(3_600_000_000, -3600.0 + f64::from(seconds))], now + seconds * SECOND);
        }
        assert!(!alive(&registry, now + 4 * SECOND));
        assert_eq!(registry.silent_for(3 * SECOND, now + 4 * SECOND), [(Uuid::from_u128(1), 3_600_000_000)]);
    }

    #[test]
    fn a_relay_whose_session_is_gone_is_gone_at_once_and_back_with_its_next_heartbeat() {
        let (registry, now) = (RelayRegistry::default(), Instant::now());
        registry.observe(&[row(1_000, 0.0)], now);
        registry.observe(&[RelayRow { has_ended: true, ..row(1_000, 0.1) }], now);
        assert!(!alive(&registry, now));
        registry.observe(&[row(2_000, 0.0)], now);
        assert!(alive(&registry, now));
    }

    #[test]
    fn a_relay_whose_heartbeat_changes_is_alive_whatever_the_clock_says() {
        let (registry, now) = (RelayRegistry::default(), Instant::now());
        registry.observe(&[row(1_000, 0.0)], now);
        // The clock was set forward after each heartbeat, then back.
        registry.observe(&[row(2_000, 7200.0)], now + 2 * SECOND);
        assert!(alive(&registry, now + 2 * SECOND), "it beat between two looks");
        registry.observe(&[row(3_000, -7200.0)], now + 4 * SECOND);
        assert!(alive(&registry, now + 4 * SECOND));
        assert!(!alive(&registry, now + 8 * SECOND));
    }

    #[test]
    fn what_was_left_behind_long_ago_is_gone_at_the_first_look_and_a_row_removed_is_forgotten() {
        let (registry, now) = (RelayRegistry::default(), Instant::now());
        registry.observe(&[row(1_000, 86_400.0)], now);
        assert!(!alive(&registry, now));
        assert_eq!(registry.silent_for(60 * SECOND, now).len(), 1);
        registry.observe(&[], now + SECOND);
        assert!(registry.silent_for(60 * SECOND, now + SECOND).is_empty());
    }
}
