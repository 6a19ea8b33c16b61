//! Keeps the holds of lanes: the records of events that wait although claims have passed them.
//!
//! A hold names a lane and a value: an event, an entity, a topic or a partition. While the hold exists, claims step over all events of the value,
//! however many there are. `from_id` is where these events begin. A pending event of the value with a lower id is covered by another hold,
//! or no claim has found it yet.
//!
//! ```text
//! none --a claim steps over an event--> active --its causes are gone--> releasing --the walk has reached the end--> none
//!                                         ^---an event of the value has to wait again---'
//! ```
//!
//! While a hold is releasing, a walk from `from_id` publishes the events that waited, in the order of ids. Other claims still step over the
//! value.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::lane::murmur2;
use event_outbox::backoff::Backoff;

/// The value that a hold names, besides its lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum HoldValue {
    /// One event without an entity.
    Row(i64),
    /// An entity; without a type, every entity of that id.
    Entity { entity_type: Option<String>, entity_id: String },
    /// A topic.
    Topic(String),
    /// The events of a topic whose keys are of `partition` while the topic has `of` partitions. The number is part of the value: if the
    /// topic gets more partitions, the events that wait and their successors stay together.
    Partition { topic: String, partition: i32, of: i32 },
}

impl HoldValue {
    /// Returns the topic and the partition that the value names.
    pub(crate) fn destination(&self) -> Option<(&str, Option<i32>)> {
        match self {
            Self::Topic(topic) => Some((topic, None)),
            Self::Partition { topic, partition, .. } => Some((topic, Some(*partition))),
            Self::Row(_) | Self::Entity { .. } => None,
        }
    }
}

/// Why events are held: the column `why` of the table of holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HoldKind {
    /// Another session has the first event locked.
    Locked,
    /// An event was refused for its own fault, and `on_poison` is `hold_entity`.
    Poison,
    /// The topic or the partition cannot be written.
    Topic,
    /// An operator has paused the topic or the entity.
    Paused,
}

impl HoldKind {
    /// The word in the table of holds.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Poison => "poison",
            Self::Topic => "topic",
            Self::Paused => "paused",
        }
    }

    /// Parses the word for a cause in the table of holds.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        [Self::Locked, Self::Poison, Self::Topic, Self::Paused].into_iter().find(|kind| kind.word() == word)
    }
}

/// Identifies a hold's record by its ctid and its key. The key is needed because VACUUM FULL may give the ctid to another record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordId {
    pub(crate) ctid: [u8; 6],
    pub(crate) id: i64,
}

/// One hold of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) value: HoldValue,
    pub(crate) kind: HoldKind,
    pub(crate) reason: String,
    pub(crate) from_id: i64,
    /// The locked event, or the event that was refused.
    pub(crate) head_id: Option<i64>,
    /// The number of events that wait: claims add the events that they step over, walks subtract the events that they publish.
    pub(crate) events: i64,
    /// True once an operator has decided about the event that was refused.
    pub(crate) released: bool,
}

/// A hold, and the state that a worker keeps about it.
#[derive(Debug, Clone)]
pub(crate) struct TrackedHold {
    pub(crate) hold: Hold,
    pub(crate) lane: i16,
    /// True once the hold's causes are gone: a walk publishes the events that waited.
    pub(crate) is_releasing: bool,
    /// The time of the next attempt to lock the locked event, and the back-off for later attempts.
    pub(crate) look: Option<(Instant, Backoff)>,
    /// The hold's record in the table of holds; `None` if the hold is not stored yet.
    pub(crate) record: Option<RecordId>,
}

/// The first and the longest pause before a locked event is tried again.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

impl TrackedHold {
    /// Looks again after a longer pause.
    pub(crate) fn look_later(&mut self, now: Instant) {
        let mut backoff = self.look.map_or_else(|| Backoff::new(FIRST_LOOK, LONGEST_LOOK), |(_, backoff)| backoff);
        self.look = Some((now + backoff.pause(), backoff));
    }
}

type Key = (i16, HoldValue);

/// The holds of the lanes that a worker owns.
#[derive(Debug, Clone, Default)]
pub(crate) struct HoldSet {
    held: BTreeMap<u32, TrackedHold>,
    by_key: HashMap<Key, u32>,
    /// The entity holds by entity id, whatever the type.
    entities: HashMap<String, Vec<u32>>,
    /// The partition holds by topic.
    partitions: HashMap<String, Vec<u32>>,
    next: u32,
    /// The holds that differ from their records.
    dirty: BTreeSet<u32>,
    /// The records of removed holds, to be deleted.
    gone: Vec<RecordId>,
}

/// An event, reduced to the columns that decide whether a hold covers it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) id: i64,
    pub(crate) lane: i16,
    pub(crate) entity_type: &'a str,
    pub(crate) entity_id: Option<&'a str>,
    /// The topic; `None` if the event has no legal topic, or the topic plays no part.
    pub(crate) topic: Option<&'a str>,
}

impl HoldSet {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &TrackedHold)> {
        self.held.iter().map(|(index, held)| (*index, held))
    }

    /// To change what is not stored.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut TrackedHold)> {
        self.held.iter_mut().map(|(index, held)| (*index, held))
    }

    /// Holds without a record, or with another one.
    pub(crate) fn dirty(&self) -> impl Iterator<Item = (u32, &TrackedHold)> {
        self.dirty.iter().filter_map(|index| Some((*index, self.held.get(index)?)))
    }

    /// Returns the records of removed holds.
    pub(crate) fn gone(&self) -> &[RecordId] {
        &self.gone
    }

    /// Returns true when records have to be written or deleted.
    pub(crate) fn has_changes(&self) -> bool {
        !self.dirty.is_empty() || !self.gone.is_empty()
    }

    /// Marks all holds as stored. `moved` lists the holds whose record has a new ctid.
    pub(crate) fn stored(&mut self, moved: impl IntoIterator<Item = (u32, RecordId)>) {
        for (index, record) in moved {
            if let Some(held) = self.held.get_mut(&index) {
                held.record = Some(record);
            }
        }
        self.dirty.clear();
        self.gone.clear();
    }

    pub(crate) fn peek(&self, index: u32) -> Option<&TrackedHold> {
        self.held.get(&index)
    }

    /// To change what is stored.
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut TrackedHold> {
        self.dirty.insert(index);
        self.held.get_mut(&index)
    }

    /// Records that a claim has stepped over an event. `counts` is true when this happens for the first time.
    pub(crate) fn step_over(&mut self, index: u32, id: i64, counts: bool) {
        if let Some(held) = self.get_mut(index) {
            held.hold.from_id = held.hold.from_id.min(id);
            held.hold.events += i64::from(counts);
        }
    }

    /// Returns the hold of exactly this value.
    pub(crate) fn find(&self, lane: i16, value: &HoldValue) -> Option<u32> {
        self.by_key.get(&(lane, value.clone())).copied()
    }

    /// Adds a hold. A second hold of the same value replaces the first.
    pub(crate) fn insert(&mut self, lane: i16, hold: Hold) -> u32 {
        if let Some(index) = self.find(lane, &hold.value) {
            self.remove(index);
        }
        let index = self.next;
        self.next += 1;
        match &hold.value {
            HoldValue::Entity { entity_id, .. } => self.entities.entry(entity_id.clone()).or_default().push(index),
            HoldValue::Partition { topic, .. } => self.partitions.entry(topic.clone()).or_default().push(index),
            HoldValue::Row(_) | HoldValue::Topic(_) => {}
        }
        self.by_key.insert((lane, hold.value.clone()), index);
        self.held.insert(index, TrackedHold { hold, lane, is_releasing: false, look: None, record: None });
        self.dirty.insert(index);
        index
    }

    /// Adds a hold that was read from its record.
    pub(crate) fn load(&mut self, lane: i16, hold: Hold, record: RecordId) {
        let index = self.insert(lane, hold);
        self.dirty.remove(&index);
        if let Some(held) = self.held.get_mut(&index) {
            held.is_releasing = held.hold.released;
            held.record = Some(record);
        }
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<TrackedHold> {
        let held = self.held.remove(&index)?;
        self.dirty.remove(&index);
        self.gone.extend(held.record);
        self.by_key.remove(&(held.lane, held.hold.value.clone()));
        match &held.hold.value {
            HoldValue::Entity { entity_id, .. } => drop_from(&mut self.entities, entity_id, index),
            HoldValue::Partition { topic, .. } => drop_from(&mut self.partitions, topic, index),
            HoldValue::Row(_) | HoldValue::Topic(_) => {}
        }
        Some(held)
    }

    /// Returns a hold that covers the event: an active hold if there is one, else one that is releasing.
    pub(crate) fn blocking(&self, event: Candidate<'_>) -> Option<u32> {
        if self.held.is_empty() {
            return None;
        }
        let topic = event.topic.and_then(|topic| self.find(event.lane, &HoldValue::Topic(topic.to_owned())));
        let of_entity = event.entity_id.and_then(|id| self.entities.get(id)).into_iter().flatten().copied();
        let of_topic = event.topic.and_then(|topic| self.partitions.get(topic)).filter(|_| event.entity_id.is_some());
        let hash = of_topic.and(event.entity_id).map_or(0, |id| murmur2::murmur2(id.as_bytes()));
        let row = event.entity_id.is_none().then(|| self.find(event.lane, &HoldValue::Row(event.id))).flatten();
        let matches = |index: &u32| match self.held.get(index) {
            Some(TrackedHold { hold: Hold { value: HoldValue::Entity { entity_type, .. }, .. }, lane, .. }) => {
                *lane == event.lane && entity_type.as_deref().is_none_or(|of| of == event.entity_type)
            }
            Some(TrackedHold {
                hold: Hold { value: HoldValue::Partition { partition, of, .. }, .. }, lane, ..
            }) => *lane == event.lane && murmur2::partition(hash, *of) == *partition,
            Some(_) => true,
            None => false,
        };
        let of_topic = of_topic.into_iter().flatten().copied();
        let mut found = topic.into_iter().chain(row).chain(of_topic).chain(of_entity).filter(matches);
        let first = found.next()?;
        let is_active = |index: &u32| self.held.get(index).is_some_and(|held| !held.is_releasing);
        if is_active(&first) { Some(first) } else { Some(found.find(is_active).unwrap_or(first)) }
    }

    /// Begins a hold, or makes an existing one active again. Returns its index.
    pub(crate) fn begin(&mut self, lane: i16, hold: Hold) -> u32 {
        let Hold { value, kind, reason, from_id, head_id, .. } = &hold;
        let Some(index) = self.find(lane, value) else {
            let (kind, index) = (*kind, self.insert(lane, hold));
            self.look_soon(index, kind);
            return index;
        };
        if let Some(held) = self.get_mut(index) {
            // `from_id` only goes down: a walk that has not come far has left earlier events of the value behind.
            held.hold.from_id = held.hold.from_id.min(*from_id);
            held.hold.released = false;
            held.is_releasing = false;
            held.hold.kind = *kind;
            held.hold.reason.clone_from(reason);
            held.hold.head_id = *head_id;
        }
        self.look_soon(index, *kind);
        index
    }

    fn look_soon(&mut self, index: u32, kind: HoldKind) {
        if let Some(held) = self.held.get_mut(&index) {
            held.look = None;
            if kind == HoldKind::Locked {
                held.look_later(Instant::now());
            }
        }
    }

    /// Counts the holds of a lane that exist because an event is locked.
    pub(crate) fn locked_of(&self, lane: i16) -> usize {
        self.held.values().filter(|held| held.lane == lane && held.hold.kind == HoldKind::Locked).count()
    }

    /// Returns the id at which the walk of all releasing holds goes on.
    pub(crate) fn releasing_from(&self) -> Option<i64> {
        self.held.values().filter(|held| held.is_releasing).map(|held| held.hold.from_id).min()
    }
}

fn drop_from(indices: &mut HashMap<String, Vec<u32>>, key: &str, index: u32) {
    if let Some(of_key) = indices.get_mut(key) {
        of_key.retain(|other| *other != index);
        if of_key.is_empty() {
            indices.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: RecordId = RecordId { ctid: [8; 6], id: 8 };

    fn hold(value: HoldValue, kind: HoldKind) -> Hold {
        Hold { value, kind, reason: "why".to_owned(), from_id: 5, head_id: None, events: 0, released: false }
    }

    fn entity(entity_type: Option<&str>, entity_id: &str) -> HoldValue {
        HoldValue::Entity { entity_type: entity_type.map(str::to_owned), entity_id: entity_id.to_owned() }
    }

    fn event(lane: i16, entity_id: Option<&'static str>) -> Candidate<'static> {
        Candidate { id: 9, lane, entity_type: "order", entity_id, topic: Some("order-events") }
    }

    #[test]
    fn a_hold_keeps_the_events_of_its_value_and_lane_alone() {
        let mut holds = HoldSet::default();
        assert_eq!(holds.blocking(event(1, Some("a"))), None);
        let typed = holds.insert(1, hold(entity(Some("order"), "a"), HoldKind::Poison));
        let any = holds.insert(1, hold(entity(None, "b"), HoldKind::Locked));
        let topic = holds.insert(2, hold(HoldValue::Topic("order-events".to_owned()), HoldKind::Topic));
        let row = holds.insert(1, hold(HoldValue::Row(9), HoldKind::Locked));
        assert_eq!(holds.blocking(event(1, Some("a"))), Some(typed));
        assert_eq!(holds.blocking(Candidate { entity_type: "customer", ..event(1, Some("a")) }), None);
        assert_eq!(holds.blocking(event(1, Some("b"))), Some(any));
        assert_eq!(holds.blocking(event(3, Some("b"))), None);
        assert_eq!(holds.blocking(event(2, Some("c"))), Some(topic));
        assert_eq!(holds.blocking(event(1, None)), Some(row));
        assert_eq!(holds.blocking(Candidate { id: 10, ..event(1, None) }), None);
        assert_eq!(holds.locked_of(1), 2);
        holds.remove(typed);
        assert_eq!(holds.blocking(event(1, Some("a"))), None);
    }

    #[test]
    fn a_partition_keeps_the_keys_that_were_in_it_when_the_hold_began() {
        let mut holds = HoldSet::default();
        let partition = |key: &str, of| murmur2::partition(murmur2::murmur2(key.as_bytes()), of);
        let value = HoldValue::Partition { topic: "order-events".to_owned(), partition: partition("a", 3), of: 3 };
        let index = holds.insert(1, hold(value, HoldKind::Topic));
        for key in ["a", "b", "c", "d", "e", "f", "g"] {
            let is_held = partition(key, 3) == partition("a", 3);
            assert_eq!(holds.blocking(event(1, Some(key))), is_held.then_some(index), "{key}");
            assert_eq!(holds.blocking(event(2, Some(key))), None, "another lane");
            assert_eq!(holds.blocking(Candidate { topic: Some("other"), ..event(1, Some(key)) }), None);
        }
        assert_eq!(holds.blocking(event(1, None)), None, "events without a key go to another partition");
        holds.remove(index);
        assert!(holds.blocking(event(1, Some("a"))).is_none() && holds.partitions.is_empty());
    }

    #[test]
    fn an_active_hold_comes_before_one_that_is_releasing() {
        let mut holds = HoldSet::default();
        let topic = holds.insert(1, hold(HoldValue::Topic("order-events".to_owned()), HoldKind::Topic));
        let of_entity = holds.insert(1, hold(entity(Some("order"), "a"), HoldKind::Poison));
        holds.get_mut(topic).unwrap().is_releasing = true;
        assert_eq!(holds.blocking(event(1, Some("a"))), Some(of_entity));
        holds.get_mut(of_entity).unwrap().is_releasing = true;
        assert_eq!(holds.blocking(event(1, Some("a"))), Some(topic));
        holds.get_mut(topic).unwrap().hold.from_id = 3;
        assert_eq!(holds.releasing_from(), Some(3));
    }

    #[test]
    fn what_is_not_stored_is_known() {
        let mut holds = HoldSet::default();
        holds.load(1, hold(entity(None, "a"), HoldKind::Locked), RecordId { ctid: [7; 6], id: 7 });
        assert!(!holds.has_changes());
        let index = holds.blocking(event(1, Some("a"))).unwrap();
        holds.step_over(index, 3, true);
        holds.step_over(index, 8, false);
        assert_eq!(
            holds.dirty().map(|(index, held)| (index, held.hold.from_id, held.hold.events)).collect::<Vec<_>>(),
            [(index, 3, 1)]
        );
        holds.stored([(index, RECORD)]);
        assert!(!holds.has_changes() && holds.peek(index).unwrap().record == Some(RECORD));
        holds.remove(index);
        assert_eq!((holds.gone(), holds.dirty().count()), (&[RECORD][..], 0));
    }

    #[test]
    fn a_second_hold_of_a_value_replaces_the_first() {
        let mut holds = HoldSet::default();
        holds.insert(1, hold(entity(None, "a"), HoldKind::Locked));
        let second = holds.insert(1, hold(entity(None, "a"), HoldKind::Paused));
        assert_eq!((holds.iter().count(), holds.find(1, &entity(None, "a"))), (1, Some(second)));
    }
}
