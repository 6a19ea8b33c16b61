//! Keeps the offsets that the group has in Kafka, of the partitions of this member, as far as Kafka has named them.
//!
//! Kafka deletes a group's offsets together with a topic. An offset that was there and is gone tells of a deletion, until an offset of the
//! old topic is committed to a new one of the same name: that would hide the deletion, and skip the first records of the new topic. So the
//! member asks for the offsets before each commit. What it has sent is not what the group has: a commit may fail, and nobody says so.
//!
//! A partition is in one of these states:
//!
//! - `Nothing`: Kafka has named no offset. The partition was just assigned, or the group has never had an offset of it.
//! - `At`: Kafka has named this offset.
//! - `Gone`: an offset of the topic was there and is gone. Nothing is committed until the partition is read from its beginning.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

/// The longest time between two questions. The end of a new topic may be where that of the old one was: then there is nothing to commit.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// The answers in a row that lack an offset which was sent, before this is reported. Single commits fail while the group is balanced anew.
const UNCONFIRMED: u32 = 3;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Nothing,
    At(i64),
    Gone,
}

#[derive(Debug, Default)]
struct Known {
    state: State,
    /// The offset that was sent since the last answer.
    sent: Option<i64>,
}

/// The offsets of the group, by topic and partition.
#[derive(Debug)]
pub(super) struct GroupOffsets {
    topics: BTreeMap<String, BTreeMap<i32, Known>>,
    answered_at: Instant,
    /// The answers in a row that lacked an offset which was sent.
    unconfirmed: u32,
}

impl GroupOffsets {
    pub(super) fn new() -> Self {
        Self { topics: BTreeMap::new(), answered_at: Instant::now(), unconfirmed: 0 }
    }

    pub(super) fn assigned(&mut self, list: &TopicPartitionList) {
        for one in list.elements() {
            self.topics.entry(one.topic().to_owned()).or_default().insert(one.partition(), Known::default());
        }
    }

    pub(super) fn revoked(&mut self, list: &TopicPartitionList) {
        for one in list.elements() {
            if let Some(partitions) = self.topics.get_mut(one.topic()) {
                partitions.remove(&one.partition());
            }
        }
        self.topics.retain(|_, partitions| !partitions.is_empty());
    }

    /// Returns the partitions to ask about: all of them.
    pub(super) fn all(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (topic, partitions) in &self.topics {
            for partition in partitions.keys() {
                list.add_partition(topic, *partition);
            }
        }
        list
    }

    /// Returns true if the last answer is so old that Kafka has to be asked without a commit.
    pub(super) fn is_old(&self) -> bool {
        self.answered_at.elapsed() >= ASK_EVERY
    }

    /// Takes an answer of Kafka about all partitions.
    ///
    /// # Errors
    /// The error of a partition that Kafka gives no offset of.
    pub(super) fn answered(&mut self, list: &TopicPartitionList) -> KafkaResult<()> {
        let (mut answered, mut confirmed, mut missed) = (Ok(()), false, false);
        for one in list.elements() {
            if let Err(error) = one.error() {
                answered = Err(error);
                continue;
            }
            let Some(partitions) = self.topics.get_mut(one.topic()) else { continue };
            let Some(known) = partitions.get_mut(&one.partition()) else { continue };
            match (one.offset(), known.state) {
                // Without its topic the group would have no offset. The topic was created again, and this offset came from an earlier commit.
                (_, State::Gone) => {}
                (Offset::Offset(offset), _) => {
                    known.state = State::At(offset);
                    if let Some(sent) = known.sent.take() {
                        confirmed |= sent == offset;
                        missed |= sent != offset;
                    }
                }
                (_, State::Nothing) => missed |= known.sent.take().is_some(),
                // A topic is deleted with all its partitions.
                (_, State::At(_)) => {
                    partitions.values_mut().for_each(|known| *known = Known { state: State::Gone, sent: None });
                }
            }
        }
        if missed {
            self.unconfirmed = self.unconfirmed.saturating_add(1);
        } else if confirmed {
            self.unconfirmed = 0;
        }
        if answered.is_ok() {
            self.answered_at = Instant::now();
        }
        answered
    }

    /// Returns true once per incident in which Kafka does not keep the offsets that are sent.
    pub(super) fn are_unconfirmed(&mut self) -> bool {
        let is_news = self.unconfirmed == UNCONFIRMED;
        self.unconfirmed += u32::from(is_news);
        is_news
    }

    fn state(&self, topic: &str, partition: i32) -> Option<State> {
        self.topics.get(topic).and_then(|partitions| partitions.get(&partition)).map(|known| known.state)
    }

    /// Returns the offset that Kafka has named last.
    pub(super) fn committed(&self, topic: &str, partition: i32) -> Option<i64> {
        match self.state(topic, partition) {
            Some(State::At(committed)) => Some(committed),
            Some(State::Nothing | State::Gone) | None => None,
        }
    }

    /// Returns true if the group does not have this offset, and it may be committed.
    pub(super) fn lack(&self, topic: &str, partition: i32, offset: i64) -> bool {
        match self.state(topic, partition) {
            Some(State::Nothing) => true,
            Some(State::At(committed)) => committed != offset,
            Some(State::Gone) | None => false,
        }
    }

    /// Remembers what was sent. Returns true if the group has had no offset of one of these partitions.
    pub(super) fn sent(&mut self, list: &TopicPartitionList) -> bool {
        let mut is_first = false;
        for one in list.elements() {
            let partitions = self.topics.get_mut(one.topic());
            if let (Some(known), Offset::Offset(offset)) =
                (partitions.and_then(|partitions| partitions.get_mut(&one.partition())), one.offset())
            {
                known.sent = Some(offset);
                is_first |= known.state == State::Nothing;
            }
        }
        is_first
    }

    /// Returns the partitions to be read from their beginning, by topic.
    pub(super) fn gone(&self) -> BTreeMap<String, Vec<i32>> {
        let gone = |partitions: &BTreeMap<i32, Known>| {
            partitions.iter().filter(|(_, known)| known.state == State::Gone).map(|(partition, _)| *partition).collect()
        };
        let all = self.topics.iter().map(|(topic, partitions)| (topic.clone(), gone(partitions)));
        all.filter(|(_, gone): &(String, Vec<i32>)| !gone.is_empty()).collect()
    }

    /// The client has read the first record. If the group was beyond it, the client has gone to the beginning by itself, and need not be told
    /// to. A partition that is gone stays so, because the record may have been fetched from the old topic.
    pub(super) fn is_at_beginning(&mut self, topic: &str, partition: i32) {
        if let Some(State::At(1..)) = self.state(topic, partition) {
            self.begun(topic, partition);
        }
    }

    /// The partition is read from its beginning.
    pub(super) fn begun(&mut self, topic: &str, partition: i32) {
        if let Some(known) = self.topics.get_mut(topic).and_then(|partitions| partitions.get_mut(&partition)) {
            *known = Known::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a list of partitions of topic `t`; `None` stands for a partition without an offset.
    fn list(offsets: &[(i32, Option<i64>)]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let offset = offset.map_or(Offset::Invalid, Offset::Offset);
            list.add_partition_offset("t", *partition, offset).expect("an offset");
        }
        list
    }

    fn assigned(partitions: &[i32]) -> GroupOffsets {
        let mut offsets = GroupOffsets::new();
        offsets.assigned(&list(&partitions.iter().map(|partition| (*partition, None)).collect::<Vec<_>>()));
        offsets
    }

    fn answer(offsets: &mut GroupOffsets, answer: &[(i32, Option<i64>)]) {
        offsets.answered(&list(answer)).expect("no partition has an error");
    }

    #[test]
    fn an_offset_that_was_there_and_is_gone_stops_the_commits_of_its_topic_until_it_is_read_anew() {
        let mut offsets = assigned(&[0, 1]);
        answer(&mut offsets, &[(0, Some(7)), (1, None)]);
        assert!(offsets.lack("t", 0, 8) && offsets.lack("t", 1, 3) && !offsets.lack("t", 0, 7));
        assert_eq!((offsets.committed("t", 0), offsets.committed("t", 1)), (Some(7), None));
        answer(&mut offsets, &[(0, None), (1, None)]);
        assert_eq!(offsets.gone(), BTreeMap::from([("t".to_owned(), vec![0, 1])]));
        // An offset that an earlier commit has brought to the new topic changes nothing.
        answer(&mut offsets, &[(0, Some(9)), (1, None)]);
        assert!(!offsets.lack("t", 0, 10) && !offsets.lack("t", 1, 3));
        offsets.begun("t", 0);
        assert_eq!(offsets.gone(), BTreeMap::from([("t".to_owned(), vec![1])]));
        assert!(offsets.lack("t", 0, 1) && !offsets.lack("t", 1, 1));
        answer(&mut offsets, &[(0, None), (1, None)]);
        assert!(offsets.lack("t", 0, 1), "a topic that is read anew has no offset yet");
    }

    #[test]
    fn a_client_that_has_gone_to_the_beginning_by_itself_need_not_be_told_to() {
        let mut offsets = assigned(&[0]);
        answer(&mut offsets, &[(0, Some(7))]);
        offsets.is_at_beginning("t", 0);
        answer(&mut offsets, &[(0, None)]);
        assert!(offsets.gone().is_empty() && offsets.lack("t", 0, 0));
        // The first record of a group that has applied none yet.
        answer(&mut offsets, &[(0, Some(0))]);
        offsets.is_at_beginning("t", 0);
        answer(&mut offsets, &[(0, None)]);
        offsets.is_at_beginning("t", 0);
        assert!(!offsets.gone().is_empty() && !offsets.lack("t", 0, 1));
    }

    #[test]
    fn an_offset_that_was_sent_is_not_one_that_the_group_has() {
        let mut offsets = assigned(&[0]);
        answer(&mut offsets, &[(0, None)]);
        assert!(offsets.sent(&list(&[(0, Some(5))])), "the first offset of the group");
        assert!(offsets.lack("t", 0, 5));
        answer(&mut offsets, &[(0, None)]);
        assert!(offsets.lack("t", 0, 5) && offsets.gone().is_empty(), "the commit has failed");
        offsets.sent(&list(&[(0, Some(5))]));
        answer(&mut offsets, &[(0, Some(5))]);
        assert!(!offsets.lack("t", 0, 5) && !offsets.sent(&list(&[(0, Some(6))])));
    }

    #[test]
    fn commits_that_fail_again_and_again_are_reported_once_per_incident() {
        let mut offsets = assigned(&[0]);
        for _ in 0..2 {
            let mut reports = 0;
            for _ in 0..10 {
                offsets.sent(&list(&[(0, Some(6))]));
                answer(&mut offsets, &[(0, Some(5))]);
                reports += u32::from(offsets.are_unconfirmed());
            }
            assert_eq!(reports, 1);
            offsets.sent(&list(&[(0, Some(6))]));
            answer(&mut offsets, &[(0, Some(6))]);
        }
    }

    #[test]
    fn a_partition_that_was_given_back_is_asked_about_and_committed_no_more() {
        let mut offsets = assigned(&[0, 1]);
        answer(&mut offsets, &[(0, Some(7)), (1, Some(7))]);
        offsets.revoked(&list(&[(0, None)]));
        assert!(offsets.all().count() == 1 && !offsets.lack("t", 0, 8) && offsets.lack("t", 1, 8));
        // An answer that was on its way.
        answer(&mut offsets, &[(0, None), (1, Some(7))]);
        assert!(offsets.gone().is_empty());
        offsets.assigned(&list(&[(0, None)]));
        answer(&mut offsets, &[(0, None), (1, Some(7))]);
        assert!(offsets.gone().is_empty(), "what another member has done meanwhile is unknown");
    }
}
