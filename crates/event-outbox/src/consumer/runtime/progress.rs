//! Tracks which records of a partition are finished. Records finish in any order when keys are worked on side by side; the offset to commit
//! is that of the first record that is not finished.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::consumer::runtime::delivery::Delivery;

/// Most bytes that may be queued per partition, because records may be of any size and memory is limited.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// The records of a partition from the first one that is not finished, in the order of their offsets. The workers and the polling thread
/// share it.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    records: VecDeque<Record>,
    /// The bytes of the records that are not finished.
    bytes: usize,
    /// The offset to commit. Before a record is finished it is that of the first one: once the group has an offset, a deletion of the topic
    /// is noticed.
    next: Option<i64>,
}

#[derive(Debug)]
struct Record {
    offset: i64,
    size: usize,
    /// Milliseconds since 1970.
    timestamp: Option<i64>,
    is_done: bool,
}

impl Progress {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record that is about to be queued. Offsets have to ascend.
    pub(super) fn wait(&self, delivery: &Delivery) {
        let mut window = self.window();
        debug_assert!(window.records.back().is_none_or(|last| last.offset < delivery.offset), "offsets ascend");
        let (offset, size, timestamp) = (delivery.offset, delivery.size(), delivery.timestamp);
        window.bytes += size;
        window.next.get_or_insert(offset);
        window.records.push_back(Record { offset, size, timestamp, is_done: false });
    }

    /// Marks a record as finished, and moves on to the first one that is not.
    pub(super) fn done(&self, offset: i64) {
        let mut window = self.window();
        let Ok(index) = window.records.binary_search_by_key(&offset, |record| record.offset) else { return };
        if std::mem::replace(&mut window.records[index].is_done, true) {
            return;
        }
        window.bytes -= window.records[index].size;
        while let Some(record) = window.records.pop_front_if(|record| record.is_done) {
            window.next = Some(record.offset + 1);
        }
    }

    /// Returns the offset to commit, that of the first record that is not finished. `None` before the first record.
    pub(super) fn next(&self) -> Option<i64> {
        self.window().next
    }

    /// Returns the timestamp of the first record that is not finished, in milliseconds since 1970.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        self.window().records.front()?.timestamp
    }

    /// Returns true if all records are finished.
    pub(super) fn is_empty(&self) -> bool {
        self.window().records.is_empty()
    }

    /// Returns true if no more records are to be fetched. Finished records behind one that is not count, too: after a crash they would be
    /// read again.
    pub(super) fn is_full(&self, most: usize) -> bool {
        let window = self.window();
        window.records.len() >= most || window.bytes >= MOST_BYTES
    }

    /// Returns true if fetching may go on. The limit is a quarter of the full queue, because librdkafka fetches again the records that it
    /// had fetched ahead of a pause.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let window = self.window();
        window.records.len() <= most / 4 && window.bytes <= MOST_BYTES / 4
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn record(offset: i64, size: usize) -> Delivery {
        Delivery {
            topic: "t".to_owned(),
            partition: 0,
            offset,
            key: None,
            value: Some(vec![0; size]),
            headers: Arc::default(),
            timestamp: Some(offset * 10),
            parked: None,
        }
    }

    #[test]
    fn many_small_records_and_a_few_large_ones_are_both_enough() {
        let progress = Progress::default();
        (0..4).for_each(|offset| progress.wait(&record(offset, 1)));
        assert!(progress.is_full(4) && !progress.has_room(4) && !progress.is_full(5));
        let progress = Progress::default();
        (0..4).for_each(|offset| progress.wait(&record(offset, MOST_BYTES / 4)));
        assert!(progress.is_full(1_000) && !progress.has_room(1_000));
        (0..3).for_each(|offset| progress.done(offset));
        assert!(progress.has_room(1_000) && progress.next() == Some(3));
    }

    #[test]
    fn one_record_that_is_not_finished_bounds_those_behind_it() {
        let progress = Progress::default();
        (0..10).for_each(|offset| progress.wait(&record(offset, 1)));
        (1..10).for_each(|offset| progress.done(offset));
        assert!(progress.is_full(10) && progress.next() == Some(0));
        progress.done(0);
        assert!(progress.is_empty() && progress.next() == Some(10));
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Reads a record this many offsets after the last one.
        Read(i64),
        /// Finishes one of the records that have been read, perhaps a second time.
        Finish(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![(1..4_i64).prop_map(Step::Read), any::<prop::sample::Index>().prop_map(Step::Finish)]
    }

    proptest! {
        /// The model is a map from offset to whether the record is finished.
        #[test]
        fn the_offset_to_commit_is_that_after_the_longest_finished_prefix(steps in prop::collection::vec(step(), 0..200)) {
            let (progress, mut model, mut last) = (Progress::default(), BTreeMap::new(), -1);
            for step in steps {
                match step {
                    Step::Read(gap) => {
                        last += gap;
                        progress.wait(&record(last, 7));
                        model.insert(last, false);
                    }
                    Step::Finish(index) if !model.is_empty() => {
                        let offset = *index.get(&model.keys().copied().collect::<Vec<_>>());
                        progress.done(offset);
                        model.insert(offset, true);
                    }
                    Step::Finish(_) => {}
                }
                let prefix = model.iter().take_while(|(_, done)| **done).last().map(|(offset, _)| offset + 1);
                prop_assert_eq!(progress.next(), prefix.or(model.keys().next().copied()));
                let first = model.iter().find(|(_, done)| !**done).map(|(offset, _)| offset * 10);
                prop_assert_eq!(progress.oldest_ms(), first);
                let unfinished = model.values().filter(|done| !**done).count();
                prop_assert_eq!(progress.is_empty(), unfinished == 0);
                prop_assert_eq!(progress.window().bytes, unfinished * 7);
            }
        }
    }
}
