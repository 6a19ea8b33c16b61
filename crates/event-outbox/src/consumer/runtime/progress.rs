//! Counts the finished and the queued records of a partition. The worker and the polling thread share the counts.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use crate::consumer::runtime::delivery::Delivery;

/// Most bytes that may be queued per partition, because records may be of any size and memory is limited.
const MOST_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Progress {
    /// Records in the queue, including the one that the worker handles.
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// The offset to commit; -1 before the first event is finished.
    next: AtomicI64,
    /// The timestamp of the record at work; -1 if there is none.
    at_work_ms: AtomicI64,
}

impl Default for Progress {
    fn default() -> Self {
        let none = || AtomicI64::new(-1);
        Self { records: AtomicUsize::new(0), bytes: AtomicUsize::new(0), next: none(), at_work_ms: none() }
    }
}

impl Progress {
    /// Counts a record that is about to be queued.
    pub(super) fn wait(&self, delivery: &Delivery) {
        self.records.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(delivery.size(), Ordering::AcqRel);
    }

    /// Notes the record that is handled from now on.
    pub(super) fn begin(&self, delivery: &Delivery) {
        self.at_work_ms.store(delivery.timestamp.unwrap_or(-1), Ordering::Release);
    }

    /// Counts a record that is finished.
    pub(super) fn done(&self, delivery: &Delivery) {
        self.next.store(delivery.offset + 1, Ordering::Release);
        self.at_work_ms.store(-1, Ordering::Release);
        self.records.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(delivery.size(), Ordering::AcqRel);
    }

    /// Returns the offset to commit, or `None` before the first event is finished.
    pub(super) fn next(&self) -> Option<i64> {
        Some(self.next.load(Ordering::Acquire)).filter(|next| *next >= 0)
    }

    /// Returns the timestamp of the record at work, in milliseconds since 1970.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        Some(self.at_work_ms.load(Ordering::Acquire)).filter(|at| *at >= 0)
    }

    /// Returns true if no more records are to be fetched.
    pub(super) fn is_full(&self, most: usize) -> bool {
        self.records.load(Ordering::Acquire) >= most || self.bytes.load(Ordering::Acquire) >= MOST_BYTES
    }

    /// Returns true if fetching may go on. The limit is half of the full queue, because librdkafka fetches again the records that it had
    /// fetched ahead of a pause.
    pub(super) fn has_room(&self, most: usize) -> bool {
        self.records.load(Ordering::Acquire) <= most / 2 && self.bytes.load(Ordering::Acquire) <= MOST_BYTES / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, size: usize) -> Delivery {
        Delivery {
            topic: "t".to_owned(),
            partition: 0,
            offset,
            key: None,
            value: Some(vec![0; size]),
            headers: Vec::new(),
            timestamp: None,
            parked: false,
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
        (0..3).for_each(|offset| progress.done(&record(offset, MOST_BYTES / 4)));
        assert!(progress.has_room(1_000) && progress.next() == Some(3));
    }
}
