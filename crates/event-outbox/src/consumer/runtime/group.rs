//! The member of the group: one thread polls, hands records to the partitions' workers and commits offsets.
//!
//! A partition is assigned -> at work -> told to stop -> ended -> its offset committed -> given back. It polls for as long as it is
//! a member, whatever the handlers do, so that a long retry is no reason to leave: a partition whose queue is full is paused.
//! Rebalances are called by the poll, on the same thread, so nothing else touches the partitions meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::code::Code;
use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::options::ConsumerError;
use crate::consumer::runtime::progress::Progress;
use crate::consumer::runtime::shared::Shared;
use crate::consumer::runtime::worker::Worker;
use crate::notice::Notice;

/// How long a poll may wait for a record: a paused partition goes on, and a stop is heard, that much later at most.
const POLL: Duration = Duration::from_millis(20);

/// librdkafka tries at least once a second to reach a broker that is away, and reports each failure.
const SILENCE: Duration = Duration::from_secs(60);

/// For the last commit and the group's answer; both take milliseconds while the brokers are there.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// For a task that was aborted to be gone; one that never yields cannot be.
const ABORT_WITHIN: Duration = Duration::from_secs(5);

/// Runs until it is told to stop. Blocks.
pub(super) fn run(
    shared: &Arc<Shared>,
    config: &ClientConfig,
    topics: &[String],
    runtime: Handle,
) -> Result<(), ConsumerError> {
    let member =
        Member { shared: Arc::clone(shared), runtime, partitions: Mutex::default(), again: AtomicBool::new(false) };
    let consumer: BaseConsumer<Member> = config.create_with_context(member)?;
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics)?;
    let polled = poll(shared, &consumer);
    consumer.context().end_all();
    leave(consumer);
    polled
}

/// Commits what is done and leaves the group. Both wait for brokers that are away for as long as a session lasts, or a request, which is
/// longer than what stops us waits; all that they would spare us is repetitions, which the inbox skips.
fn leave(consumer: BaseConsumer<Member>) {
    let (done, left) = std_mpsc::channel();
    std::thread::spawn(move || {
        let member = Arc::clone(consumer.context());
        member.commit(&consumer, CommitMode::Sync);
        member.partitions().clear();
        drop(consumer);
        // Nobody waits any more if that took too long.
        let _ = done.send(());
    });
    if left.recv_timeout(LEAVE_WITHIN).is_err() {
        tracing::warn!(
            code = %Code::GroupNotLeft,
            reason = "the brokers do not answer",
            consequence = "events that were applied are skipped if they are redelivered",
            "the consumer ends without leaving its group"
        );
    }
}

fn poll(shared: &Shared, consumer: &BaseConsumer<Member>) -> Result<(), ConsumerError> {
    let member = consumer.context();
    let mut committed_at = Instant::now();
    let mut incidents = IncidentLog::default();
    while !shared.shutdown.is_requested() {
        match consumer.poll(POLL) {
            None => {}
            Some(Ok(message)) => {
                incidents = IncidentLog::default();
                if !member.hand_over(consumer, Delivery::new(&message))? {
                    return Err(ConsumerError::Task);
                }
            }
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(error.into()),
            Some(Err(error)) => log_once(&mut incidents, &error),
        }
        member.resume(consumer)?;
        if committed_at.elapsed() >= shared.limits.commit_interval {
            member.commit(consumer, CommitMode::Async);
            committed_at = Instant::now();
        }
    }
    Ok(())
}

/// librdkafka goes on by itself, and repeats itself.
fn log_once(incidents: &mut IncidentLog, error: &KafkaError) {
    if incidents.is_news(error.rdkafka_error_code(), Instant::now()) {
        tracing::warn!(
            code = %Code::ConsumerOutage,
            %error,
            next_step = "check that the brokers run, the topics exist and the user may READ them",
            "Kafka cannot be read for now"
        );
    }
}

/// What has been logged of an incident. It is over when a record comes, or when nothing more is heard of it.
#[derive(Default)]
struct IncidentLog {
    logged: Vec<Option<RDKafkaErrorCode>>,
    heard_at: Option<Instant>,
}

impl IncidentLog {
    fn is_news(&mut self, code: Option<RDKafkaErrorCode>, now: Instant) -> bool {
        use RDKafkaErrorCode as Kafka;
        if self.heard_at.is_some_and(|heard_at| now.duration_since(heard_at) > SILENCE) {
            self.logged.clear();
        }
        self.heard_at = Some(now);
        // One outage is reported as all of these, by turns, for each broker and each attempt to reach it.
        let outage = [Kafka::BrokerTransportFailure, Kafka::AllBrokersDown, Kafka::Resolve, Kafka::OperationTimedOut];
        let code = code.map(|code| if outage.contains(&code) { Kafka::AllBrokersDown } else { code });
        let news = !self.logged.contains(&code);
        if news {
            self.logged.push(code);
        }
        news
    }
}

struct Partition {
    topic: String,
    number: i32,
    queue: mpsc::UnboundedSender<Delivery>,
    progress: Arc<Progress>,
    stop: watch::Sender<bool>,
    abort: AbortHandle,
    /// Ends when the task is gone.
    ended: std_mpsc::Receiver<()>,
    paused: bool,
    committed: i64,
}

/// librdkafka's callbacks, and the partitions they are about.
struct Member {
    shared: Arc<Shared>,
    runtime: Handle,
    partitions: Mutex<Vec<Partition>>,
    /// A commit has failed: everything is committed again.
    again: AtomicBool,
}

impl Member {
    /// Never held across a poll, which calls back.
    fn partitions(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when the worker has ended although nobody told it to.
    fn hand_over(&self, consumer: &BaseConsumer<Self>, delivery: Delivery) -> KafkaResult<bool> {
        let mut partitions = self.partitions();
        let is_its =
            |partition: &Partition| partition.number == delivery.partition && partition.topic == delivery.topic;
        let index = partitions.iter().position(is_its).unwrap_or_else(|| {
            partitions.push(self.start(&delivery));
            partitions.len() - 1
        });
        let partition = &mut partitions[index];
        partition.progress.wait(&delivery);
        if partition.progress.is_full(self.shared.limits.queue) && !partition.paused {
            consumer.pause(&partition.list(None)?)?;
            partition.paused = true;
        }
        // The policy's stop ends a worker, too.
        Ok(partition.queue.send(delivery).is_ok() || self.shared.shutdown.is_requested())
    }

    fn start(&self, delivery: &Delivery) -> Partition {
        let (queue, records) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = std_mpsc::channel::<()>();
        let progress = Arc::new(Progress::default());
        let worker =
            Worker { shared: Arc::clone(&self.shared), queue: records, progress: Arc::clone(&progress), stop: stopped };
        let task = self.runtime.spawn(async move {
            let _alive = alive;
            worker.run().await;
        });
        Partition {
            topic: delivery.topic.clone(),
            number: delivery.partition,
            queue,
            progress,
            stop,
            abort: task.abort_handle(),
            ended,
            paused: false,
            committed: -1,
        }
    }

    /// Partitions whose queue has room again.
    fn resume(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        for partition in self.partitions().iter_mut().filter(|partition| partition.paused) {
            if partition.progress.has_room(self.shared.limits.queue) {
                consumer.resume(&partition.list(None)?)?;
                partition.paused = false;
            }
        }
        Ok(())
    }

    /// Commits what is done. Failing costs nothing but repetitions, which the inbox skips.
    fn commit(&self, consumer: &BaseConsumer<Self>, mode: CommitMode) {
        let again = self.again.swap(false, Ordering::AcqRel);
        let mut partitions = self.partitions();
        let mut done = TopicPartitionList::new();
        for partition in partitions.iter_mut() {
            let Some(next) = partition.progress.next() else { continue };
            if (next > partition.committed || again)
                && done.add_partition_offset(&partition.topic, partition.number, Offset::Offset(next)).is_ok()
            {
                partition.committed = next;
            }
        }
        drop(partitions);
        if done.count() == 0 {
            return;
        }
        if let Err(error) = consumer.commit(&done, mode) {
            self.commit_failed(&error);
        }
    }

    fn commit_failed(&self, error: &KafkaError) {
        if !self.again.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                code = %Code::OffsetsUncommitted,
                %error,
                consequence = "the events are applied and will be skipped if redelivered",
                "offsets cannot be committed"
            );
        }
    }

    fn end_all(&self) {
        let partitions = self.partitions();
        self.end(&partitions.iter().collect::<Vec<_>>());
    }

    /// Lets the handlers end that are at work, and aborts those that take too long.
    fn end(&self, partitions: &[&Partition]) {
        for partition in partitions {
            partition.stop.send_replace(true);
        }
        let deadline = Instant::now() + self.shared.limits.drain;
        for partition in partitions {
            let left = deadline.saturating_duration_since(Instant::now());
            if partition.ended.recv_timeout(left) != Err(std_mpsc::RecvTimeoutError::Timeout) {
                continue;
            }
            tracing::warn!(
                code = %Code::HandlerSlow,
                topic = partition.topic,
                partition = partition.number,
                consequence = "the handler is aborted, and its event comes again",
                "a handler did not end in time"
            );
            partition.abort.abort();
            if partition.ended.recv_timeout(ABORT_WITHIN) == Err(std_mpsc::RecvTimeoutError::Timeout) {
                tracing::error!(
                    code = %Code::HandlerStuck,
                    topic = partition.topic,
                    partition = partition.number,
                    next_step = "do not block in handlers",
                    "a handler cannot be aborted"
                );
            }
        }
    }

    fn give_back(&self, consumer: &BaseConsumer<Self>, revoked: &TopicPartitionList) {
        let is_revoked = |partition: &Partition| revoked.find_partition(&partition.topic, partition.number).is_some();
        {
            let partitions = self.partitions();
            let going: Vec<_> = partitions.iter().filter(|partition| is_revoked(partition)).collect();
            self.end(&going);
        }
        // A member that was thrown out has nothing to commit to.
        if !consumer.assignment_lost() {
            self.commit(consumer, CommitMode::Sync);
        }
        self.partitions().retain(|partition| !is_revoked(partition));
    }
}

impl Partition {
    fn list(&self, offset: Option<Offset>) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, self.number, offset.unwrap_or(Offset::Invalid))?;
        Ok(list)
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", level = ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "the consumer's client reports an error");
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Revoke(revoked) => {
                if !self.shared.shutdown.is_requested() {
                    self.shared.stats.add_revoked(revoked.count());
                    tracing::info!(
                        notice = %Notice::PartitionsRevoked,
                        group = self.shared.group,
                        partitions = revoked.count(),
                        "partitions are revoked"
                    );
                }
                self.give_back(consumer, revoked);
            }
            Rebalance::Assign(assigned) => {
                self.shared.stats.add_assigned(assigned.count());
                tracing::info!(
                    notice = %Notice::PartitionsAssigned,
                    group = self.shared.group,
                    partitions = assigned.count(),
                    "partitions are assigned"
                );
            }
            Rebalance::Error(error) => {
                tracing::warn!(code = %Code::GroupFails, %error, "the group cannot assign its partitions")
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(assigned) = rebalance
            && let Err(error) = consumer.resume(assigned)
        {
            // It may have been paused when this member had it before.
            tracing::warn!(code = %Code::PartitionsStay, %error, "newly assigned partitions cannot be resumed");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            self.commit_failed(&error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_once_however_it_is_reported_and_the_next_one_again() {
        use RDKafkaErrorCode as Code;
        let (mut incidents, start) = (IncidentLog::default(), Instant::now());
        let mut news = |code, seconds| incidents.is_news(Some(code), start + Duration::from_secs(seconds));
        assert!(news(Code::BrokerTransportFailure, 0));
        assert!(!news(Code::AllBrokersDown, 0));
        assert!(!news(Code::BrokerTransportFailure, 50));
        assert!(!news(Code::Resolve, 100));
        assert!(news(Code::TopicAuthorizationFailed, 101));
        assert!(!news(Code::AllBrokersDown, 102));
        assert!(news(Code::BrokerTransportFailure, 102 + SILENCE.as_secs() + 1));
    }
}
