//! Remembers which events only one topic has shown so far. It decides when reading may stop, and nothing else: the comparison itself has
//! every event.

use std::collections::{HashMap, VecDeque};

use super::fact::{Digest, Side};

/// The most events that are remembered; about 30 MB.
const MOST: usize = 300_000;

/// The events that only one topic has shown so far.
#[derive(Debug)]
pub(crate) struct Window {
    /// The side that has shown the event, and whether its record is behind the end of the comparison.
    open: HashMap<Digest, (Side, bool)>,
    /// The number of open events whose record is not behind the end.
    waiting: usize,
    arrived: VecDeque<Digest>,
    most: usize,
    matched: u64,
    /// True once an event had to be forgotten.
    is_cut: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self::holding(MOST)
    }
}

impl Window {
    fn holding(most: usize) -> Self {
        Self { open: HashMap::new(), waiting: 0, arrived: VecDeque::new(), most, matched: 0, is_cut: false }
    }

    /// Takes a record of an event. `late` is true for a record behind the end of the comparison.
    pub(crate) fn take(&mut self, id: Digest, side: Side, late: bool) {
        if self.close(id, side) || self.open.contains_key(&id) {
            return;
        }
        self.open.insert(id, (side, late));
        self.waiting += usize::from(!late);
        self.arrived.push_back(id);
        if self.arrived.len() > 2 * self.most {
            let open = &self.open;
            self.arrived.retain(|id| open.contains_key(id));
        }
        while self.open.len() > self.most
            && let Some(oldest) = self.arrived.pop_front()
        {
            self.is_cut |= self.remove(&oldest);
        }
    }

    /// Takes a record that may only complete an event. Returns true if it did.
    pub(crate) fn close(&mut self, id: Digest, side: Side) -> bool {
        let completes = self.open.get(&id).is_some_and(|(open, _)| *open != side);
        if completes {
            self.remove(&id);
            self.matched += 1;
        }
        completes
    }

    /// Returns true if the event was open.
    fn remove(&mut self, id: &Digest) -> bool {
        let removed = self.open.remove(id);
        self.waiting -= usize::from(removed.is_some_and(|(_, late)| !late));
        removed.is_some()
    }

    /// Returns the number of events that both topics have shown. An event that was forgotten, or repeated, makes it inexact.
    pub(crate) fn matched(&self) -> u64 {
        self.matched
    }

    /// Returns true if every event of the comparison was shown by both topics.
    pub(crate) fn is_complete(&self) -> bool {
        self.waiting == 0 && !self.is_cut
    }

    /// Returns true if no event was forgotten.
    pub(crate) fn is_exact(&self) -> bool {
        !self.is_cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_open_until_the_other_topic_shows_it() {
        let mut window = Window::holding(10);
        window.take([1; 16], Side::Left, false);
        window.take([1; 16], Side::Left, false);
        assert!(!window.is_complete());
        assert!(!window.close([2; 16], Side::Right), "a record that completes nothing");
        window.take([1; 16], Side::Right, false);
        assert!(window.is_complete());
        assert_eq!(window.matched(), 1);
    }

    #[test]
    fn a_record_behind_the_end_completes_an_event_and_is_not_waited_for() {
        let mut window = Window::holding(10);
        window.take([1; 16], Side::Left, true);
        assert!(window.is_complete());
        window.take([1; 16], Side::Right, false);
        assert!(window.is_complete());
        assert_eq!(window.matched(), 1);
        window.take([2; 16], Side::Right, false);
        assert!(!window.is_complete());
    }

    #[test]
    fn the_oldest_event_is_forgotten_once_there_are_too_many() {
        let mut window = Window::holding(2);
        for id in 1..=3 {
            window.take([id; 16], Side::Left, false);
        }
        assert!(!window.is_exact());
        for id in 1..=3 {
            window.close([id; 16], Side::Right);
        }
        assert_eq!(window.matched(), 2);
        assert!(!window.is_complete(), "an event was forgotten");
        for id in 0..100 {
            window.take([id; 16], Side::Left, false);
            window.take([id; 16], Side::Right, false);
        }
        assert!(window.arrived.len() <= 4, "{}", window.arrived.len());
    }
}
