//! Finds topics that were deleted and created again, and reads them from their beginning.
//!
//! librdkafka goes on at the offset that it had reached in the old topic, and would skip the first records of the new one. Kafka deletes a
//! group's offsets together with a topic, so an offset that was committed and is gone tells of a deletion. Committing an offset of the new
//! topic would hide that.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::code::Code;
use crate::consumer::runtime::member::Member;
use crate::consumer::runtime::subscription::is_missing;

/// The interval between two looks at the committed offsets.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Time limit for an answer. It blocks the polling thread.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Recreated {
    looked_at: Instant,
    /// True if the last look had no answer.
    is_due: bool,
}

impl Recreated {
    pub(super) fn new() -> Self {
        Self { looked_at: Instant::now(), is_due: false }
    }

    /// Looks for offsets that are gone, and goes to the beginning of their topics. Looks from time to time, and after each silence. Call it
    /// before each commit, and commit nothing if it returns false.
    pub(super) fn look(&mut self, consumer: &BaseConsumer<Member>) -> bool {
        let member = consumer.context();
        self.is_due |= member.may_be_anew() || self.looked_at.elapsed() >= LOOK_EVERY;
        let committed = member.committed();
        if !self.is_due || committed.count() == 0 {
            return true;
        }
        // Without an answer the next look finds out.
        let Ok(found) = consumer.committed_offsets(committed, ANSWER_WITHIN) else { return false };
        (self.is_due, self.looked_at) = (false, Instant::now());
        let gone = found.elements().into_iter().filter(|one| one.error().is_ok() && one.offset() == Offset::Invalid);
        let topics: BTreeSet<String> = gone.map(|one| one.topic().to_owned()).collect();
        for topic in topics.iter().filter(|topic| is_missing(consumer, topic) == Some(false)) {
            tracing::warn!(
                code = %Code::OffsetsWentBack,
                topic,
                consequence = "it is read from its beginning; events that were applied are skipped",
                "a topic was deleted and created again"
            );
            for partition in member.begin_anew(topic) {
                if let Err(error) = consumer.seek(topic, partition, Offset::Beginning, ANSWER_WITHIN) {
                    tracing::warn!(code = %Code::GroupFails, %error, topic, partition, "a partition cannot be read anew");
                }
            }
        }
        topics.is_empty()
    }
}
