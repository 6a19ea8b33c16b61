//! Reads topics from their beginning that were deleted and created again.
//!
//! librdkafka goes on at the offset that it had reached in the old topic, and would skip the first records of the new one.
//! [`GroupOffsets`](super::group_offsets::GroupOffsets) notices the deletion.

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::code::Code;
use crate::consumer::runtime::member::{ANSWER_WITHIN, Member};
use crate::consumer::runtime::subscription::is_missing;

#[derive(Default)]
pub(super) struct Recreated {
    /// True after a partition could not be read anew, until all are.
    is_reported: bool,
}

impl Recreated {
    /// Goes to the beginning of partitions whose topic was deleted, once it is there again. Call it again and again: a partition that fails
    /// is tried again, and meanwhile nothing of it is committed.
    pub(super) fn read_anew(&mut self, consumer: &BaseConsumer<Member>) {
        let member = consumer.context();
        let gone = member.gone();
        self.is_reported &= !gone.is_empty();
        for (topic, partitions) in gone.iter().filter(|(topic, _)| is_missing(consumer, topic) == Some(false)) {
            let mut begun = 0;
            for partition in partitions {
                match consumer.seek(topic, *partition, Offset::Beginning, ANSWER_WITHIN) {
                    Ok(()) => {
                        member.begin_anew(topic, *partition);
                        begun += 1;
                    }
                    Err(error) if !self.is_reported => {
                        self.is_reported = true;
                        tracing::warn!(
                            code = %Code::GroupFails,
                            %error,
                            topic,
                            partition,
                            consequence = "no offset of it is committed until it is read from its beginning",
                            "a partition cannot be read anew"
                        );
                    }
                    Err(error) => tracing::debug!(%error, topic, partition, "a partition cannot be read anew"),
                }
            }
            if begun > 0 {
                tracing::warn!(
                    code = %Code::OffsetsWentBack,
                    topic,
                    consequence = "it is read from its beginning; events that were applied are skipped",
                    "a topic was deleted and created again"
                );
            }
        }
    }
}
