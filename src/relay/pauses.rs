//! Pauses as a relay keeps to them.
//!
//! A row that is met while its topic or its entity is paused is held, like one whose topic cannot be written: no later claim walks
//! it. When the pause has ended its rows are released in the order of their ids, a batch at a time; until the last one is, later rows
//! of the same are held still, so that none overtakes.
//!
//! A [`Gate`] is what one worker knows: paused (in force) -> lifted (rows are held still) -> gone. It is learnt anew, from the pauses
//! and from the held rows, when the lanes' generation or the counter of pauses has changed, and when a pause has expired. While
//! everything is paused a worker claims nothing and begins no transaction.

use std::collections::HashMap;
use std::time::Instant;

use crate::lane::LaneRange;
use crate::relay::batch::Fate;
use crate::relay::shared::Shared;
use crate::relay::stint::Stint;
use crate::relay::turn::{Hands, TurnError, within};
use crate::store::holds::{Hold, paused_entity_reason, paused_topic_reason};
use crate::store::pauses::{self, Pause, Scope};

/// What a held row says once the pause is over.
const LIFTED: &str = "the pause is over, waits for those before it";

/// Why rows do not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Closed {
    Paused(String),
    /// Rows up to this id have been released, and pass.
    Lifted {
        released: i64,
    },
}

impl Closed {
    /// The reason, for a row that does not pass.
    fn holds(&self, id: i64) -> Option<&str> {
        match self {
            Closed::Paused(why) => Some(why),
            Closed::Lifted { released } if id <= *released => None,
            Closed::Lifted { .. } => Some(LIFTED),
        }
    }
}

/// What one worker lets pass.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    everything: bool,
    topics: HashMap<String, Closed>,
    /// By the entity's id; a pause may leave the type open.
    entities: HashMap<String, Vec<(Option<String>, Closed)>>,
    /// When the first of the pauses expires.
    until: Option<Instant>,
}

impl Gate {
    /// From the pauses in force and from what rows are held for.
    fn new(active: &[Pause], held: &[Hold], now: Instant) -> Self {
        let mut gate = Self::default();
        for pause in active {
            let closed = Closed::Paused(pause.reason.clone());
            match &pause.scope {
                Scope::All => gate.everything = true,
                Scope::Topic { topic } => {
                    gate.topics.insert(topic.clone(), closed);
                }
                Scope::Entity { entity_type, entity_id } => {
                    gate.entities.entry(entity_id.clone()).or_default().push((entity_type.clone(), closed));
                }
            }
            let until = pause.remaining.and_then(|remaining| now.checked_add(remaining));
            gate.until = gate.until.into_iter().chain(until).min();
        }
        for hold in held {
            match hold {
                Hold::PausedTopic(topic) => {
                    gate.topics.entry(topic.clone()).or_insert(Closed::Lifted { released: 0 });
                }
                Hold::PausedEntity(kind, id) if gate.entity(kind, id).is_none() => {
                    let lifted = Closed::Lifted { released: 0 };
                    gate.entities.entry(id.clone()).or_default().push((Some(kind.clone()), lifted));
                }
                Hold::PausedEntity(..) | Hold::Topic(_) | Hold::Entity(..) => {}
            }
        }
        gate
    }

    /// True while nothing at all may be claimed.
    pub(crate) fn is_shut(&self) -> bool {
        self.everything
    }

    /// True once a pause has expired: what holds has to be learnt anew.
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// True for a topic none of whose rows passes.
    pub(crate) fn shuts_topic(&self, topic: &str) -> bool {
        matches!(self.topics.get(topic), Some(Closed::Paused(_)))
    }

    /// The fate of a row that does not pass. A row whose topic is not known has none.
    pub(crate) fn fate(&self, topic: Option<&str>, kind: &str, entity: Option<&str>, id: i64) -> Option<Fate> {
        if self.topics.is_empty() && self.entities.is_empty() {
            return None;
        }
        let by_topic = topic.and_then(|topic| {
            let why = self.topics.get(topic)?.holds(id)?;
            Some(paused_topic_reason(topic, why))
        });
        let by_entity = || {
            let why = self.entity(kind, entity?)?.holds(id)?;
            Some(paused_entity_reason(why))
        };
        by_topic.or_else(by_entity).map(|reason| Fate::Held { reason, attempts: 0 })
    }

    /// A pause in force comes before one that was lifted.
    fn entity(&self, kind: &str, id: &str) -> Option<&Closed> {
        let of_id = self.entities.get(id)?.iter();
        let mut of_kind = of_id.filter(|(named, _)| named.as_deref().is_none_or(|named| named == kind));
        let first = of_kind.next()?;
        Some(&of_kind.find(|(_, closed)| matches!(closed, Closed::Paused(_))).unwrap_or(first).1)
    }

    /// Something whose pause is over and whose rows wait to be released.
    pub(crate) fn lifted(&self) -> Option<Hold> {
        let is_lifted = |closed: &Closed| matches!(closed, Closed::Lifted { .. });
        let topic = self.topics.iter().find(|(_, closed)| is_lifted(closed));
        let entities =
            || self.entities.iter().flat_map(|(id, of_id)| of_id.iter().map(move |(kind, closed)| (id, kind, closed)));
        topic.map(|(topic, _)| Hold::PausedTopic(topic.clone())).or_else(|| {
            let (id, kind, _) = entities().find(|(_, _, closed)| is_lifted(closed))?;
            Some(Hold::PausedEntity(kind.clone()?, id.clone()))
        })
    }

    /// Rows of `hold` have been released up to `highest`; `None`: all of them.
    fn released(&mut self, hold: &Hold, highest: Option<i64>) {
        match (hold, highest) {
            (Hold::PausedTopic(topic), Some(released)) => {
                self.topics.insert(topic.clone(), Closed::Lifted { released });
            }
            (Hold::PausedTopic(topic), None) => {
                self.topics.remove(topic);
            }
            (Hold::PausedEntity(kind, id), highest) => {
                let of_id = self.entities.entry(id.clone()).or_default();
                of_id.retain(|(named, _)| named.as_deref() != Some(kind));
                if let Some(released) = highest {
                    of_id.push((Some(kind.clone()), Closed::Lifted { released }));
                }
                if of_id.is_empty() {
                    self.entities.remove(id);
                }
            }
            (Hold::Topic(_) | Hold::Entity(..), _) => {}
        }
    }
}

impl Hands<'_> {
    /// Learns what is paused, in the transaction that owns the lanes.
    pub(super) async fn learn_pauses(&mut self, stint: &mut Stint, held: &[Hold]) -> Result<(), TurnError> {
        let active = within(pauses::active(self.conn, &self.shared.options.names)).await?;
        stint.gate = Gate::new(&active, held, Instant::now());
        Ok(())
    }

    /// Releases a batch of what waited for a pause that is over. One at a time, like topics.
    pub(super) async fn release_paused(&mut self, stint: &mut Stint, lanes: LaneRange) -> Result<(), TurnError> {
        let Some(hold) = stint.gate.lifted().filter(|_| !stint.gate.is_shut()) else { return Ok(()) };
        let (limit, persistent) = (self.shared.options.batch_size, self.shared.options.prepared_statements);
        let released = within(self.shared.holds.release(self.conn, lanes, &hold, limit, persistent)).await?;
        stint.gate.released(&hold, released.map(|highest| highest.0));
        stint.frontier.reset();
        self.bump_generation(stint, lanes).await
    }
}

/// The pauses a relay has told of: a line when one begins, a line when it ends.
#[derive(Debug, Default)]
pub(crate) struct Told(HashMap<Scope, Instant>);

impl Told {
    /// Compares what is paused now with what was.
    pub(crate) fn tell(&mut self, shared: &Shared, active: &[Pause]) {
        for pause in active {
            let expires_at = pause.expires_at.map(|at| at.to_rfc3339());
            let until = expires_at.as_deref().map(|at| format!(", until {at}")).unwrap_or_default();
            shared.block(&what(&pause.scope), &format!("{}{until}", pause.reason));
            if self.0.contains_key(&pause.scope) {
                continue;
            }
            self.0.insert(pause.scope.clone(), Instant::now());
            tracing::info!(
                paused = %pause.scope,
                reason = pause.reason,
                paused_by = pause.paused_by,
                expires_at,
                "a pause is in force: its events wait, in order, until it is resumed or expires"
            );
        }
        self.0.retain(|scope, since| {
            let still = active.iter().any(|pause| pause.scope == *scope);
            if !still {
                shared.unblock(&what(scope));
                tracing::info!(
                    paused = %scope,
                    lasted_s = since.elapsed().as_secs(),
                    "the pause is over: its events go out in order"
                );
            }
            still
        });
    }
}

fn what(scope: &Scope) -> String {
    format!("pause of {scope}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::DateTime;

    use super::*;

    fn pause(scope: Scope, remaining: Option<Duration>) -> Pause {
        let since = DateTime::UNIX_EPOCH;
        Pause { scope, reason: "why".to_owned(), paused_by: "me".to_owned(), since, expires_at: None, remaining }
    }

    fn topic(topic: &str) -> Scope {
        Scope::Topic { topic: topic.to_owned() }
    }

    fn entity(kind: Option<&str>, id: &str) -> Scope {
        Scope::Entity { entity_type: kind.map(str::to_owned), entity_id: id.to_owned() }
    }

    fn held(fate: Option<Fate>) -> Option<String> {
        fate.map(|fate| match fate {
            Fate::Held { reason, attempts: 0 } => reason,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_is_paused_does_not_pass_and_everything_else_does() {
        let active = [pause(topic("t"), None), pause(entity(None, "1"), None), pause(entity(Some("order"), "2"), None)];
        let gate = Gate::new(&active, &[], Instant::now());
        let fate = |topic, kind, id| held(gate.fate(Some(topic), kind, Some(id), 7));
        assert_eq!(fate("t", "order", "9").as_deref(), Some("paused topic t: why"));
        assert_eq!(fate("u", "customer", "1").as_deref(), Some("paused entity: why"));
        assert_eq!(fate("u", "order", "2").as_deref(), Some("paused entity: why"));
        assert_eq!(fate("u", "customer", "2"), None);
        assert_eq!(held(gate.fate(None, "order", None, 7)), None);
        assert!(gate.lifted().is_none() && !gate.is_shut() && gate.shuts_topic("t"));
    }

    #[test]
    fn after_a_pause_rows_pass_up_to_the_last_that_was_released() {
        let hold = Hold::PausedTopic("t".to_owned());
        let mut gate = Gate::new(&[], std::slice::from_ref(&hold), Instant::now());
        assert_eq!(gate.lifted(), Some(hold.clone()));
        assert!(!gate.shuts_topic("t") && gate.fate(Some("t"), "order", None, 1).is_some());
        gate.released(&hold, Some(10));
        assert!(gate.fate(Some("t"), "order", None, 10).is_none());
        assert!(gate.fate(Some("t"), "order", None, 11).is_some());
        gate.released(&hold, None);
        assert!(gate.fate(Some("t"), "order", None, 11).is_none() && gate.lifted().is_none());
    }

    #[test]
    fn an_entity_that_another_pause_names_is_not_released() {
        let hold = Hold::PausedEntity("order".to_owned(), "1".to_owned());
        let gate = Gate::new(&[pause(entity(None, "1"), None)], std::slice::from_ref(&hold), Instant::now());
        assert_eq!(gate.lifted(), None);
        let mut gate =
            Gate::new(&[pause(entity(Some("customer"), "1"), None)], std::slice::from_ref(&hold), Instant::now());
        assert_eq!(gate.lifted(), Some(hold.clone()));
        gate.released(&hold, None);
        assert!(
            gate.fate(None, "order", Some("1"), 1).is_none() && gate.fate(None, "customer", Some("1"), 1).is_some()
        );
    }

    #[test]
    fn the_first_expiry_counts() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let gate = Gate::new(&[pause(Scope::All, Some(second * 2)), pause(topic("t"), Some(second))], &[], now);
        assert!(gate.is_shut() && !gate.has_expired(now) && gate.has_expired(now + second));
        assert!(!Gate::new(&[pause(Scope::All, None)], &[], now).has_expired(now + second));
    }
}
