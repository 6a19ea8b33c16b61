//! A partition that is assigned to this member, with its lanes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::lane::Lanes;
use crate::consumer::runtime::prepared::{Job, Origin};
use crate::consumer::runtime::progress::Progress;
use crate::consumer::runtime::shared::Shared;

pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) number: i32,
    pub(super) lanes: Lanes,
    progress: Arc<Progress>,
    /// The records that were read before the partition went back to an earlier offset, and are not finished.
    earlier: Vec<Arc<Progress>>,
    pub(super) paused: bool,
    /// The offset that was committed last; -1 before the first commit.
    pub(super) committed: i64,
    /// The offset after the last record that was handed over, or after the committed one.
    pub(super) expected: i64,
    /// The offset of the last record that was handed over; -1 before the first.
    last: i64,
    last_at: Instant,
    /// True if a record came after a silence in which the topic may have been created anew, and nobody has looked since.
    may_be_anew: bool,
}

/// The time without a record that is shorter than the deletion of a topic and its creation. A client that reads the topic waits about half a
/// second after the errors that this causes.
const SILENCE: Duration = Duration::from_millis(250);

impl Partition {
    pub(super) fn start(shared: &Arc<Shared>, runtime: &Handle, delivery: &Delivery) -> Self {
        Self {
            topic: delivery.topic.clone(),
            number: delivery.partition,
            lanes: Lanes::start(shared, runtime),
            progress: Arc::default(),
            earlier: Vec::new(),
            paused: false,
            committed: -1,
            expected: delivery.offset,
            last: -1,
            last_at: Instant::now(),
            may_be_anew: false,
        }
    }

    /// Hands the record to its lane, behind those that are there. Returns false if the lane has ended.
    pub(super) fn hand_over(&mut self, delivery: Delivery) -> bool {
        if delivery.offset <= self.last {
            self.earlier.push(std::mem::take(&mut self.progress));
            self.committed = -1;
        }
        (self.expected, self.last) = (delivery.offset + 1, delivery.offset);
        let since_last = self.last_at.elapsed();
        self.last_at += since_last;
        self.may_be_anew |= since_last > SILENCE && self.committed >= 0;
        self.progress.wait(&delivery);
        self.lanes.send(Job { delivery, origin: Origin::Partition(Arc::clone(&self.progress)) })
    }

    /// Returns true if the topic may have been created anew before its last record came. Asks once.
    pub(super) fn take_may_be_anew(&mut self) -> bool {
        std::mem::take(&mut self.may_be_anew)
    }

    /// Forgets the offsets of a topic that does not exist any more. Returns the partition's number.
    pub(super) fn begin_anew(&mut self) -> i32 {
        self.earlier.push(std::mem::take(&mut self.progress));
        (self.committed, self.last) = (-1, -1);
        self.number
    }

    /// Returns the offset to commit, if there is one. Records from before the partition went back might not be read again, so nothing is
    /// committed until they are finished.
    pub(super) fn next(&mut self) -> Option<i64> {
        self.earlier.retain(|progress| !progress.is_empty());
        if self.earlier.is_empty() { self.progress.next() } else { None }
    }

    /// Returns the offset of the first record that is not finished.
    pub(super) fn position(&self) -> Option<i64> {
        self.progress.next()
    }

    pub(super) fn oldest_ms(&self) -> Option<i64> {
        self.progress.oldest_ms()
    }

    pub(super) fn is_full(&self, most: usize) -> bool {
        self.progress.is_full(most)
    }

    pub(super) fn has_room(&self, most: usize) -> bool {
        self.progress.has_room(most)
    }

    pub(super) fn holds(&self, delivery: &Delivery) -> bool {
        self.number == delivery.partition && self.topic == delivery.topic
    }

    pub(super) fn is_in(&self, list: &TopicPartitionList) -> bool {
        list.find_partition(&self.topic, self.number).is_some()
    }

    pub(super) fn list(&self) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, self.number, Offset::Invalid)?;
        Ok(list)
    }
}
