//! Runs the member of the consumer group: one thread polls, hands records to the workers of their partitions and commits offsets.
//!
//! A partition goes through these states: assigned, at work, stopping, ended, offset committed, given back. The thread polls as long as
//! it is a member, however long handlers take, so a long retry does not make it leave the group. A partition with a full queue is paused.
//! The poll itself calls the rebalance callbacks on the same thread, so nothing else changes the partitions meanwhile.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use rdkafka::client::{ClientContext, OAuthToken};
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

/// The longest wait of a poll for a record. A resume and a stop take effect at most this much later.
const POLL: Duration = Duration::from_millis(20);

/// The time without errors after which an incident is over. librdkafka tries to reach a broker at least once a second and reports each
/// failure.
const SILENCE: Duration = Duration::from_secs(60);

/// Time limit for the last commit and the group's answer. Both take milliseconds while the brokers are up.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// Time limit for an aborted task to end. A task that never yields cannot be aborted.
const ABORT_WITHIN: Duration = Duration::from_secs(5);

/// Polls and commits until the stop signal. Blocks.
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

/// Commits the finished offsets and leaves the group. If the brokers are down, both block for a session or a request timeout, which may be
/// longer than the caller waits. Giving up costs only redeliveries, which the inbox skips.
fn leave(consumer: BaseConsumer<Member>) {
    let (done, left) = std_mpsc::channel();
    std::thread::spawn(move || {
        let member = Arc::clone(consumer.context());
        member.commit(&consumer, CommitMode::Sync);
        member.partitions().clear();
        drop(consumer);
        // The receiver is gone if this took too long.
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

/// Logs each kind of error once per incident. librdkafka goes on by itself and repeats its errors.
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

/// The errors that have been logged in the current incident. It is over when a record arrives, or when no error came for [`SILENCE`].
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
        // librdkafka reports one outage with all of these codes in turn, for each broker and each attempt.
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
    /// Disconnects when the task is gone.
    ended: std_mpsc::Receiver<()>,
    paused: bool,
    committed: i64,
}

/// The callbacks of librdkafka, and the partitions that they are about.
struct Member {
    shared: Arc<Shared>,
    runtime: Handle,
    partitions: Mutex<Vec<Partition>>,
    /// True after a failed commit: the next commit repeats all offsets.
    again: AtomicBool,
}

impl Member {
    /// Locks the partitions. Do not hold the lock across a poll, because the poll runs the callbacks.
    fn partitions(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the record to its worker. Returns false if the worker has ended without a stop signal.
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
        // The action `Stop` of the policy ends a worker, too.
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

    /// Resumes paused partitions whose queue has room again.
    fn resume(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        for partition in self.partitions().iter_mut().filter(|partition| partition.paused) {
            if partition.progress.has_room(self.shared.limits.queue) {
                consumer.resume(&partition.list(None)?)?;
                partition.paused = false;
            }
        }
        Ok(())
    }

    /// Commits the finished offsets. A failure costs only redeliveries, which the inbox skips.
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

    /// Waits for the handlers at work, and aborts those that take longer than the drain limit.
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
                consequence = "the handler is aborted, and its event is redelivered",
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
        // A member that the group has expelled cannot commit any more.
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
            // The partition may have been paused when this member had it before.
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
