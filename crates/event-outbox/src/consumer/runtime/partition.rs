//! A partition that is assigned to this member, with its lanes.

use std::sync::Arc;

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
    /// The offset after the last record that was handed over, or after the committed one.
    pub(super) expected: i64,
    /// The offset of the last record that was handed over; -1 before the first.
    last: i64,
}

impl Partition {
    pub(super) fn start(shared: &Arc<Shared>, runtime: &Handle, delivery: &Delivery) -> Self {
        Self {
            topic: delivery.topic.clone(),
            number: delivery.partition,
            lanes: Lanes::start(shared, runtime),
            progress: Arc::default(),
            earlier: Vec::new(),
            paused: false,
            expected: delivery.offset,
            last: -1,
        }
    }

    /// Hands the record to its lane, behind those that are there. Returns false if the lane has ended.
    pub(super) fn hand_over(&mut self, delivery: Delivery) -> bool {
        if delivery.offset <= self.last {
            self.earlier.push(std::mem::take(&mut self.progress));
        }
        (self.expected, self.last) = (delivery.offset + 1, delivery.offset);
        self.progress.wait(&delivery);
        self.lanes.send(Job { delivery, origin: Origin::Partition(Arc::clone(&self.progress)) })
    }

    /// Forgets the offsets of a topic that does not exist any more.
    pub(super) fn begin_anew(&mut self) {
        self.earlier.push(std::mem::take(&mut self.progress));
        self.last = -1;
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
