//! Applies pauses for one worker. The pauses are read again when the generation has changed (the counter of pauses), and when a pause has
//! expired. While everything is paused, a worker claims nothing and begins no transaction.

use std::collections::HashMap;
#[cfg(test)]
use std::collections::HashSet;
use std::time::Instant;

use crate::store::pauses::{Pause, Scope};

/// The pauses in force.
#[derive(Debug, Clone, Default)]
pub(crate) struct PauseFilter {
    everything: bool,
    /// The reasons of paused topics, by topic.
    topics: HashMap<String, String>,
    /// The paused entities by entity id: the type and the reason. A pause may leave the type open.
    entities: HashMap<String, Vec<(Option<String>, String)>>,
    /// The time at which the first of the pauses expires.
    until: Option<Instant>,
}

/// The topic or the entity that is named by the pause of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PausedBy {
    /// The event's topic.
    Topic(String),
    /// The event's entity, with the type that the pause names.
    Entity(Option<String>, String),
}

impl PauseFilter {
    pub(crate) fn new(active: &[Pause], now: Instant) -> Self {
        let mut filter = Self::default();
        for pause in active {
            match &pause.scope {
                Scope::All => filter.everything = true,
                Scope::Topic { topic } => {
                    filter.topics.insert(topic.clone(), pause.reason.clone());
                }
                Scope::Entity { entity_type, entity_id } => {
                    let of_id = filter.entities.entry(entity_id.clone()).or_default();
                    of_id.push((entity_type.clone(), pause.reason.clone()));
                }
            }
            let until = pause.remaining.and_then(|remaining| now.checked_add(remaining));
            filter.until = filter.until.into_iter().chain(until).min();
        }
        filter
    }

    /// Returns true if nothing is paused.
    pub(crate) fn is_empty(&self) -> bool {
        !self.everything && self.topics.is_empty() && self.entities.is_empty()
    }

    /// Returns true while nothing at all may be claimed.
    pub(crate) fn blocks_everything(&self) -> bool {
        self.everything
    }

    /// Returns true once a pause has ended by itself: pauses have to be read again.
    pub(crate) fn has_ended(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Returns true for a topic that is paused.
    pub(crate) fn blocks_topic(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// Returns true for an entity (type, id) that a pause names. Without a type, the pause must name no type either.
    pub(crate) fn blocks_entity(&self, entity_type: Option<&str>, entity_id: &str) -> bool {
        let mut of_id = self.entities.get(entity_id).into_iter().flatten();
        of_id.any(|(named, _)| named.is_none() || named.as_deref() == entity_type)
    }

    /// Returns the pause that covers an event, and its reason.
    pub(crate) fn blocking(
        &self,
        topic: Option<&str>,
        entity_type: &str,
        entity_id: Option<&str>,
    ) -> Option<(PausedBy, &str)> {
        if self.topics.is_empty() && self.entities.is_empty() {
            return None;
        }
        if let Some((topic, reason)) = topic.and_then(|topic| self.topics.get_key_value(topic)) {
            return Some((PausedBy::Topic(topic.clone()), reason));
        }
        let entity_id = entity_id?;
        let of_id = self.entities.get(entity_id)?;
        let (named, reason) =
            of_id.iter().find(|(named, _)| named.as_deref().is_none_or(|named| named == entity_type))?;
        Some((PausedBy::Entity(named.clone(), entity_id.to_owned()), reason))
    }

    /// Returns the topics that are paused.
    #[cfg(test)]
    fn topics(&self) -> HashSet<&str> {
        self.topics.keys().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::DateTime;

    use super::*;

    fn pause(scope: Scope, remaining: Option<Duration>) -> Pause {
        let since = DateTime::UNIX_EPOCH;
        Pause {
            scope,
            reason: "why".to_owned(),
            paused_by: "me".to_owned(),
            since,
            lasts_s: 0.0,
            expires_at: None,
            remaining,
        }
    }

    fn topic(topic: &str) -> Scope {
        Scope::Topic { topic: topic.to_owned() }
    }

    fn entity(entity_type: Option<&str>, id: &str) -> Scope {
        Scope::Entity { entity_type: entity_type.map(str::to_owned), entity_id: id.to_owned() }
    }

    #[test]
    fn what_is_paused_does_not_pass_and_everything_else_does() {
        let active = [pause(topic("t"), None), pause(entity(None, "1"), None), pause(entity(Some("order"), "2"), None)];
        let filter = PauseFilter::new(&active, Instant::now());
        let blocking = |topic, of, id| filter.blocking(Some(topic), of, Some(id)).map(|(by, _)| by);
        assert_eq!(blocking("t", "order", "9"), Some(PausedBy::Topic("t".to_owned())));
        assert_eq!(blocking("u", "customer", "1"), Some(PausedBy::Entity(None, "1".to_owned())));
        assert_eq!(blocking("u", "order", "2"), Some(PausedBy::Entity(Some("order".to_owned()), "2".to_owned())));
        assert_eq!(blocking("u", "customer", "2"), None);
        assert_eq!(filter.blocking(None, "order", None), None);
        assert!(!filter.blocks_everything() && filter.topics() == HashSet::from(["t"]));
        assert!(filter.blocks_entity(Some("order"), "2") && !filter.blocks_entity(None, "2"));
        assert!(filter.blocks_entity(None, "1") && filter.blocks_entity(Some("order"), "1"));
    }

    #[test]
    fn the_first_end_counts() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let filter = PauseFilter::new(&[pause(Scope::All, Some(second * 2)), pause(topic("t"), Some(second))], now);
        assert!(filter.blocks_everything() && !filter.has_ended(now) && filter.has_ended(now + second));
        assert!(!PauseFilter::new(&[pause(Scope::All, None)], now).has_ended(now + second));
    }
}
