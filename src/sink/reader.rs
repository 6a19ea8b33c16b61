//! Reads topics for commands. Never joins a group, commits nothing, creates no topic.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::metadata::MetadataBroker;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSettings;
use crate::sink::broker::ANY_TOPIC;
use crate::sink::client::log_level;
use crate::sink::login::{self, Complaint, Quiet};

/// The time limit for an answer of the cluster.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The pause of a partition whose next records are not fetched because enough are queued. With librdkafka's 1,000 ms, the queue is empty for
/// most of the pause (<https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md>).
pub(crate) const BACKOFF: (&str, &str) = ("fetch.queue.backoff.ms", "5");

const SETTINGS: &[(&str, &str)] = &[
    ("client.id", "outbox-relay"),
    // librdkafka requires a group id for a consumer; the reader joins no group.
    ("group.id", "outbox-relay-reader"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("enable.partition.eof", "true"),
    ("auto.offset.reset", "earliest"),
    ("allow.auto.create.topics", "false"),
    ("fetch.wait.max.ms", "50"),
    ("queued.max.messages.kbytes", "16384"),
    BACKOFF,
    ("log.connection.close", "false"),
    ("reconnect.backoff.max.ms", "500"),
];

/// A range of offsets of a partition: from `from` to before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) partition: i32,
    pub(crate) from: i64,
    pub(crate) end: i64,
}

/// A partition as the cluster describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) id: i32,
    pub(crate) has_leader: bool,
    pub(crate) replicas: usize,
    pub(crate) in_sync: usize,
}

/// A consumer that reads assigned partitions. Its calls block.
pub(crate) struct Reader {
    consumer: BaseConsumer<Quiet>,
}

impl Reader {
    /// # Errors
    /// The error that librdkafka finds in the settings. Its message may quote a setting.
    pub(crate) fn new(kafka: &KafkaSettings) -> Result<Self, KafkaError> {
        let mut config = kafka.consumer_config(&[]);
        for (name, value) in SETTINGS {
            config.set(*name, *value);
        }
        config.set_log_level(log_level(&config));
        Ok(Self { consumer: login::consumer(&config, kafka)? })
    }

    /// Returns the ids of the brokers.
    ///
    /// # Errors
    /// Any error of the client; [`Reader::complaint`] may know more.
    pub(crate) fn brokers(&self) -> Result<Vec<(i32, String, u16)>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(None, ANSWER_WITHIN)?;
        let address = |broker: &MetadataBroker| (broker.id(), broker.host().to_owned(), broker.port() as u16);
        Ok(metadata.brokers().iter().map(address).collect())
    }

    /// Returns true if the cluster answers a small request within this time.
    pub(crate) fn answers(&self, within: Duration) -> bool {
        self.consumer.fetch_metadata(Some(ANY_TOPIC), within).is_ok()
    }

    /// Returns the partitions of a topic, or the cluster's error code for it.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) fn partitions(&self, topic: &str) -> Result<Result<Vec<Partition>, RDKafkaErrorCode>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), ANSWER_WITHIN)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(Err(RDKafkaErrorCode::UnknownTopicOrPartition));
        };
        if let Some(code) = found.error() {
            return Ok(Err(code.into()));
        }
        let partition = |partition: &rdkafka::metadata::MetadataPartition| Partition {
            id: partition.id(),
            has_leader: partition.leader() >= 0,
            replicas: partition.replicas().len(),
            in_sync: partition.isr().len(),
        };
        Ok(Ok(found.partitions().iter().map(partition).collect()))
    }

    /// Returns the most useful error that the client has met so far: the first one about security, or else the first one.
    pub(crate) fn complaint(&self) -> Option<Complaint> {
        // Polls to serve the callbacks.
        while let Some(Err(error)) = self.consumer.poll(Duration::from_millis(20)) {
            self.consumer.context().error(error.clone(), &error.to_string());
        }
        self.consumer.context().complaint()
    }

    /// Returns the most useful error once the client has lost every broker that it knows, or was refused. Until then another broker may
    /// answer.
    pub(crate) fn lost_all(&self) -> Option<Complaint> {
        let complaint = self.complaint()?;
        (self.consumer.context().has_lost_all() || complaint.is_security()).then_some(complaint)
    }

    /// Returns the first offset of a partition, and the offset after its last record.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
        self.consumer.fetch_watermarks(topic, partition, ANSWER_WITHIN)
    }

    /// Returns, for each partition, the first offset whose record has a timestamp of `millis` or later; the end if there is none.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) fn since(&self, topic: &str, partitions: &[i32], millis: i64) -> Result<Vec<Part>, KafkaError> {
        let (mut wanted, mut parts) = (TopicPartitionList::new(), Vec::new());
        // Reads the ends first. A record that arrives during the lookup of times then has an offset beyond the end.
        for partition in partitions {
            wanted.add_partition_offset(topic, *partition, Offset::Offset(millis))?;
            let (_, end) = self.watermarks(topic, *partition)?;
            parts.push(Part { partition: *partition, from: end, end });
        }
        for element in self.consumer.offsets_for_times(wanted, ANSWER_WITHIN)?.elements_for_topic(topic) {
            let part = parts.iter_mut().find(|part| part.partition == element.partition());
            if let (Some(part), Offset::Offset(offset)) = (part, element.offset()) {
                part.from = offset.min(part.end);
            }
        }
        Ok(parts)
    }

    /// Reads parts of a topic until `each` breaks, everything is read, or `within` is over. Returns true if everything was read.
    ///
    /// # Errors
    /// Any error of the client, except those it recovers from.
    pub(crate) fn read(
        &self,
        topic: &str,
        parts: &[Part],
        within: Duration,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<bool, KafkaError> {
        let mut unread: Vec<Part> = parts.iter().filter(|part| part.from < part.end).copied().collect();
        let mut list = TopicPartitionList::new();
        for part in &unread {
            list.add_partition_offset(topic, part.partition, Offset::Offset(part.from))?;
        }
        self.consumer.assign(&list)?;
        let deadline = Instant::now() + within;
        while !unread.is_empty() && Instant::now() < deadline {
            match self.consumer.poll(Duration::from_millis(50)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => unread.retain(|part| part.partition != partition),
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => return Err(error),
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let wanted = unread.iter().any(|part| part.partition == partition && offset < part.end);
                    unread.retain(|part| part.partition != partition || offset + 1 < part.end);
                    if wanted && each(&message).is_break() {
                        break;
                    }
                }
            }
        }
        let all = unread.is_empty();
        self.consumer.unassign()?;
        Ok(all)
    }

    /// Reads parts of a topic until `each` breaks, or everything is read. Returns the partitions that were not read to their end, because
    /// they returned no record for `patience` or because `each` broke.
    ///
    /// # Errors
    /// Any error of the client, except those it recovers from.
    pub(crate) fn read_patiently(
        &self,
        topic: &str,
        parts: &[Part],
        patience: Duration,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<i32>, KafkaError> {
        let mut left: Vec<Part> = parts.iter().filter(|part| part.from < part.end).copied().collect();
        while !left.is_empty() {
            let (mut next, mut broke) = (left.clone(), false);
            self.read(topic, &left, patience, |message| {
                let partition = message.partition();
                next.iter_mut()
                    .filter(|part| part.partition == partition)
                    .for_each(|part| part.from = message.offset() + 1);
                broke = each(message).is_break();
                if broke { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .map(|all| if all { next.clear() } else { next.retain(|part| part.from < part.end) })?;
            // No partition made progress, for example because it has no leader.
            if broke || next == left {
                return Ok(next.into_iter().map(|part| part.partition).collect());
            }
            left = next;
        }
        Ok(Vec::new())
    }

    /// Returns the names of all topics that the user may see.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) fn topics(&self) -> Result<Vec<String>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(None, ANSWER_WITHIN)?;
        Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
    }

    /// Starts to follow topics from these offsets.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) fn follow(&self, parts: &[(String, i32, i64)]) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (topic, partition, from) in parts {
            list.add_partition_offset(topic, *partition, Offset::Offset(*from))?;
        }
        self.consumer.incremental_assign(&list)
    }

    /// Returns the next record of the followed topics, if one arrives within `within`.
    pub(crate) fn next(&self, within: Duration) -> Option<BorrowedMessage<'_>> {
        // Ignores errors: they are temporary, or the other part of the command reports them.
        self.consumer.poll(within).and_then(Result::ok)
    }
}

/// The next thing that a reader of assigned partitions meets.
pub(crate) enum Heard<'m> {
    Record(BorrowedMessage<'m>),
    /// The end of this partition, for now.
    End(i32),
    Nothing,
}

impl Reader {
    /// Returns what comes next in the followed topics, or [`Heard::Nothing`] after `within`.
    ///
    /// # Errors
    /// Any error of the client, except those it recovers from.
    pub(crate) fn poll(&self, within: Duration) -> Result<Heard<'_>, KafkaError> {
        match self.consumer.poll(within) {
            None => Ok(Heard::Nothing),
            Some(Ok(message)) => Ok(Heard::Record(message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => Ok(Heard::End(partition)),
            Some(Err(error)) if is_passing(&error) => Ok(Heard::Nothing),
            Some(Err(error)) => Err(error),
        }
    }

    /// Ends the following of all topics.
    ///
    /// # Errors
    /// Any error of the client.
    pub(crate) fn unfollow(&self) -> Result<(), KafkaError> {
        self.consumer.unassign()
    }
}

/// Returns the first header with this name, as text.
pub(crate) fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m str> {
    let headers = message.headers()?;
    let at = (0..headers.count()).find(|at| headers.get(*at).key == name)?;
    std::str::from_utf8(headers.get(at).value?).ok()
}

/// Returns true for errors of a lost connection: librdkafka reports them and recovers by itself.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut};
    matches!(error.rdkafka_error_code(), Some(BrokerTransportFailure | AllBrokersDown | OperationTimedOut))
}
