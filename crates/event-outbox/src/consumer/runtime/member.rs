//! The member's partitions, and the callbacks of librdkafka about them.
//!
//! A partition goes through these states: assigned, at work, stopping, offset committed, given back. A partition that is revoked is given
//! back although its handler may still be at work, because librdkafka pauses all other partitions until then. The next owner reads the event
//! of that handler again, and waits at its mark in the inbox until the handler's transaction has ended: so the order is kept, and the event
//! has one effect.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Statistics;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::code::Code;
use crate::consumer::runtime::applier::Applier;
use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::drain::Drain;
use crate::consumer::runtime::gap;
use crate::consumer::runtime::group_offsets::GroupOffsets;
use crate::consumer::runtime::lane::Lanes;
use crate::consumer::runtime::options::ConsumerError;
use crate::consumer::runtime::partition::Partition;
use crate::consumer::runtime::shared::Shared;
use crate::consumer::runtime::task::Task;
use crate::notice::Notice;

/// The time that handlers may take before a revoked partition is given back without them. Most end within it, so that no event is read
/// again. The polling thread waits meanwhile.
const GRACE: Duration = Duration::from_millis(300);

/// The pause between two attempts of the last commit, in which the member takes part in the rebalance.
const REBALANCED_AFTER: Duration = Duration::from_millis(50);

/// Time limit for an answer of Kafka. It blocks the polling thread.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Time limit for the answer before partitions are given back. Without it their last offsets are not committed, and events come again.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A partition that was given back before its handler had ended.
struct Leaving {
    partition: Partition,
    deadline: Instant,
}

/// The callbacks of librdkafka, and the partitions that they are about.
pub(super) struct Member {
    shared: Arc<Shared>,
    runtime: Handle,
    partitions: Mutex<Vec<Partition>>,
    leaving: Mutex<Vec<Leaving>>,
    drain: Task,
    /// The lanes of the events that the drain applies.
    drained: Arc<Lanes>,
    /// What is committed is decided by these. Lock the partitions before them.
    offsets: Mutex<GroupOffsets>,
    /// True after a commit that failed, until Kafka answers again.
    is_reported: AtomicBool,
}

impl Member {
    pub(super) fn new(shared: &Arc<Shared>, runtime: Handle) -> Self {
        let drained = Arc::new(Lanes::start(shared, &runtime));
        let lanes = Arc::clone(&drained);
        let drain = |stop| Drain { applier: Applier { shared: Arc::clone(shared), stop }, lanes }.run();
        let drain = Task::spawn(&runtime, drain);
        Self {
            shared: Arc::clone(shared),
            runtime,
            partitions: Mutex::default(),
            leaving: Mutex::default(),
            drain,
            drained,
            offsets: Mutex::new(GroupOffsets::new()),
            is_reported: AtomicBool::new(false),
        }
    }

    /// Locks the partitions. Do not hold the lock across a poll, because the poll runs the callbacks.
    fn partitions(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leaving(&self) -> MutexGuard<'_, Vec<Leaving>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offsets(&self) -> MutexGuard<'_, GroupOffsets> {
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the record to its worker. Returns true if the queue of its partition is full.
    pub(super) fn hand_over(&self, consumer: &BaseConsumer<Self>, delivery: Delivery) -> Result<bool, ConsumerError> {
        let (shared, mut partitions) = (&self.shared, self.partitions());
        let index = match partitions.iter().position(|partition| partition.holds(&delivery)) {
            Some(index) => {
                gap::between(consumer, &delivery, partitions[index].expected, shared.limits.lost)?;
                index
            }
            None => {
                let known = self.offsets().committed(&delivery.topic, delivery.partition);
                let committed = gap::before_first(consumer, &delivery, known, shared.limits.lost)?;
                partitions.push(Partition::start(shared, &self.runtime, &delivery));
                let index = partitions.len() - 1;
                partitions[index].expected = committed.unwrap_or(delivery.offset).min(delivery.offset + 1);
                if committed.is_some_and(|committed| committed > delivery.offset) {
                    went_back(&delivery);
                }
                index
            }
        };
        let partition = &mut partitions[index];
        if delivery.offset + 1 < partition.expected {
            went_back(&delivery);
        }
        if delivery.offset == 0 {
            self.offsets().is_at_beginning(&delivery.topic, delivery.partition);
        }
        // The action `Stop` of the policy ends a worker, too.
        if !partition.hand_over(delivery) && !shared.shutdown.is_requested() {
            return Err(ConsumerError::Task);
        }
        Ok(partition.is_full(shared.limits.queue))
    }

    /// Pauses partitions whose queue is full or whose topic is paused, and resumes them when neither holds any more.
    pub(super) fn pause_and_resume(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        let (most, control) = (self.shared.limits.queue, &self.shared.control);
        self.shared.stats.set_paused(control.is_any_paused());
        for partition in self.partitions().iter_mut() {
            let is_paused = control.is_paused(&partition.topic);
            if !partition.paused && (is_paused || partition.is_full(most)) {
                consumer.pause(&partition.list()?)?;
                partition.paused = true;
            } else if partition.paused && !is_paused && partition.has_room(most) {
                consumer.resume(&partition.list()?)?;
                partition.paused = false;
            }
        }
        Ok(())
    }

    /// Commits the finished offsets. A failure costs only redeliveries, which the inbox skips. Asks for the group's offsets from time to time
    /// if there is nothing to commit.
    pub(super) fn commit(&self, consumer: &BaseConsumer<Self>) {
        let oldest = self.partitions().iter().filter_map(|partition| partition.oldest_ms()).min();
        self.shared.stats.set_oldest_ms(oldest);
        if let Err(error) = self.try_commit(consumer, CommitMode::Async, ANSWER_WITHIN) {
            return self.commit_failed(&error);
        }
        let is_old = self.offsets().is_old();
        if is_old && let Err(error) = self.ask(consumer, ANSWER_WITHIN) {
            tracing::debug!(%error, "the group's offsets cannot be read for now");
        }
    }

    /// Commits the finished offsets before the member leaves. The group refuses them while it is being balanced anew; then the member takes
    /// part until they are accepted. What it is given meanwhile is left to the next owner.
    pub(super) fn commit_last(&self, consumer: &BaseConsumer<Self>, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let Err(error) = self.try_commit(consumer, CommitMode::Sync, ANSWER_WITHIN) else { return };
            let passes = matches!(
                error.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::RebalanceInProgress
                        | RDKafkaErrorCode::IllegalGeneration
                        | RDKafkaErrorCode::OperationTimedOut
                )
            );
            if !passes || Instant::now() >= deadline {
                return self.commit_failed(&error);
            }
            drop(consumer.poll(REBALANCED_AFTER));
        }
    }

    /// Commits the finished offsets that the group does not have. Commits nothing unless Kafka has just said which offsets the group has:
    /// see [`GroupOffsets`].
    fn try_commit(&self, consumer: &BaseConsumer<Self>, mode: CommitMode, within: Duration) -> KafkaResult<()> {
        if self.due().count() == 0 {
            return Ok(());
        }
        self.ask(consumer, within)?;
        let due = self.due();
        if due.count() == 0 {
            return Ok(());
        }
        let is_first = self.offsets().sent(&due);
        consumer.commit(&due, mode)?;
        if is_first && matches!(mode, CommitMode::Async) {
            // A deletion of the topic can only be noticed once the offset is known. Kafka answers in the order of the questions.
            self.ask(consumer, within)?;
        }
        Ok(())
    }

    /// Returns the finished offsets that the group does not have and that may be committed.
    fn due(&self) -> TopicPartitionList {
        let (mut partitions, offsets) = (self.partitions(), self.offsets());
        let mut due = TopicPartitionList::new();
        for partition in partitions.iter_mut() {
            if let Some(next) = partition.next()
                && offsets.lack(&partition.topic, partition.number, next)
                && let Err(error) = due.add_partition_offset(&partition.topic, partition.number, Offset::Offset(next))
            {
                tracing::debug!(%error, next, "no offset of Kafka");
            }
        }
        due
    }

    /// Asks which offsets the group has. Blocks.
    fn ask(&self, consumer: &BaseConsumer<Self>, within: Duration) -> KafkaResult<()> {
        let all = self.offsets().all();
        if all.count() == 0 {
            return Ok(());
        }
        let answer = consumer.committed_offsets(all, within)?;
        self.offsets().answered(&answer)?;
        self.is_reported.store(false, Ordering::Release);
        if self.offsets().are_unconfirmed() {
            self.commit_failed(&"Kafka does not keep the offsets that are sent");
        }
        Ok(())
    }

    /// Returns the partitions to be read from their beginning, by topic.
    pub(super) fn gone(&self) -> BTreeMap<String, Vec<i32>> {
        self.offsets().gone()
    }

    /// The partition is read from its beginning from now on.
    pub(super) fn begin_anew(&self, topic: &str, number: i32) {
        let mut partitions = self.partitions();
        let own = partitions.iter_mut().find(|partition| partition.number == number && partition.topic == topic);
        own.into_iter().for_each(Partition::begin_anew);
        self.offsets().begun(topic, number);
    }

    fn commit_failed(&self, error: &dyn Display) {
        if !self.is_reported.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                code = %Code::OffsetsUncommitted,
                %error,
                consequence = "the events are applied and will be skipped if redelivered",
                "offsets cannot be committed"
            );
        }
    }

    /// Ends all tasks. Waits for the handlers at work, and aborts those that take longer than the drain limit.
    pub(super) fn end_all(&self) {
        let partitions = self.partitions();
        partitions.iter().for_each(|partition| partition.lanes.stop());
        self.drain.stop();
        self.drained.stop();
        let deadline = Instant::now() + self.shared.limits.drain;
        let leaving = self.leaving();
        for partition in partitions.iter().chain(leaving.iter().map(|leaving| &leaving.partition)) {
            if !partition.lanes.end_by(deadline) {
                partition.lanes.abort(&partition.topic, partition.number);
            }
        }
        if !self.drained.end_by(deadline) {
            self.drained.abort("processed_events_held", -1);
        }
        if !self.drain.ends_by(deadline) {
            self.drain.abort("processed_events_held", -1);
        }
    }

    /// Drops the partitions, whose tasks have ended.
    pub(super) fn clear(&self) {
        self.partitions().clear();
    }

    /// Aborts the handlers of partitions that were given back, if they have had their time.
    pub(super) fn abort_late(&self) {
        let now = Instant::now();
        self.leaving().retain(|Leaving { partition, deadline }| {
            let has_ended = partition.lanes.end_by(now);
            if !has_ended && now >= *deadline {
                partition.lanes.abort(&partition.topic, partition.number);
            }
            !has_ended && now < *deadline
        });
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, assigned: &TopicPartitionList) {
        self.shared.stats.add_assigned(assigned.count());
        tracing::info!(
            notice = %Notice::PartitionsAssigned,
            group = self.shared.group,
            partitions = assigned.count(),
            "partitions are assigned"
        );
        self.offsets().assigned(assigned);
        // Asks before the client does: a topic that is deleted in between is read from its beginning.
        if let Err(error) = self.ask(consumer, ANSWER_WITHIN) {
            tracing::debug!(%error, "the group's offsets cannot be read for now");
        }
        let done = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(assigned),
            _ => consumer.assign(assigned),
        };
        if let Err(error) = done {
            tracing::warn!(code = %Code::GroupFails, %error, "the group cannot assign its partitions");
        } else if let Err(error) = consumer.resume(assigned) {
            // The partition may have been paused when this member had it before.
            tracing::warn!(code = %Code::PartitionsStay, %error, "newly assigned partitions cannot be resumed");
        }
    }

    fn is_revoked(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let stopping = self.shared.shutdown.is_requested();
        if !stopping {
            self.shared.stats.add_revoked(list.count());
            tracing::info!(
                notice = %Notice::PartitionsRevoked,
                group = self.shared.group,
                partitions = list.count(),
                "partitions are revoked"
            );
        }
        {
            let partitions = self.partitions();
            let going = || partitions.iter().filter(|partition| partition.is_in(list));
            going().for_each(|partition| partition.lanes.stop());
            let grace = Instant::now() + GRACE.min(self.shared.limits.drain);
            let late = going().filter(|partition| !partition.lanes.end_by(grace)).count();
            tracing::debug!(late, "revoked partitions are given back");
        }
        // A member that the group has expelled cannot commit any more.
        if !consumer.assignment_lost()
            && let Err(error) = self.try_commit(consumer, CommitMode::Sync, LAST_ANSWER_WITHIN)
        {
            self.commit_failed(&error);
        }
        self.offsets().revoked(list);
        let (now, deadline) = (Instant::now(), Instant::now() + self.shared.limits.drain);
        let going = self.partitions().extract_if(.., |partition| partition.is_in(list)).collect::<Vec<_>>();
        let late = going.into_iter().filter(|partition| !partition.lanes.end_by(now));
        self.leaving().extend(late.map(|partition| Leaving { partition, deadline }));
        let unassigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            _ => consumer.unassign(),
        };
        if let Err(error) = unassigned {
            tracing::warn!(code = %Code::GroupFails, %error, "the group cannot assign its partitions");
        }
    }
}

fn went_back(delivery: &Delivery) {
    tracing::warn!(
        code = %Code::OffsetsWentBack,
        topic = delivery.topic,
        partition = delivery.partition,
        offset = delivery.offset,
        consequence = "events that were applied are skipped, the others are applied",
        "a partition is read from an earlier offset"
    );
}

impl ClientContext for Member {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.shared.tokens.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", level = ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "the consumer's client reports an error");
    }

    fn stats(&self, statistics: Statistics) {
        let partitions = self.partitions();
        let mut lag = 0;
        for (topic, found) in &statistics.topics {
            for (number, found) in found.partitions.iter().filter(|(number, _)| **number >= 0) {
                let own = partitions.iter().find(|own| own.number == *number && own.topic == *topic);
                let next = own.and_then(Partition::position).unwrap_or(found.committed_offset);
                if found.hi_offset >= 0 && (own.is_some() || found.fetch_state == "active") {
                    lag += found.hi_offset - next.max(found.lo_offset).max(0).min(found.hi_offset);
                }
            }
        }
        self.shared.stats.set_lag(lag.unsigned_abs());
    }
}

impl ConsumerContext for Member {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assigned(consumer, list),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => self.is_revoked(consumer, list),
            _ => {
                let error: RDKafkaErrorCode = kind.into();
                tracing::warn!(code = %Code::GroupFails, %error, "the group cannot assign its partitions");
                self.is_revoked(consumer, list);
            }
        }
    }
}
