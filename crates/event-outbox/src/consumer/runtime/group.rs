//! Runs the member of the consumer group: one thread polls, hands records to the workers of their partitions and commits offsets.
//!
//! The thread polls as long as it is a member, however long handlers take, so a long retry does not make it leave the group. A partition
//! with a full queue is paused. The poll itself calls the rebalance callback on the same thread, so nothing else changes the partitions
//! meanwhile.

use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use crate::code::Code;
use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::incidents::IncidentLog;
use crate::consumer::runtime::member::Member;
use crate::consumer::runtime::options::{ConsumerError, without_values};
use crate::consumer::runtime::recreated::Recreated;
use crate::consumer::runtime::shared::Shared;
use crate::consumer::runtime::subscription::Subscription;

/// The longest wait of a poll for a record. A resume and a stop take effect at most this much later.
const POLL: Duration = Duration::from_millis(20);

/// The most records that are taken before the other work of the loop, which looks at all partitions.
const BURST: usize = 100;

/// Time limit for the last commit and the group's answer. Both take milliseconds while the brokers are up.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// Polls and commits until the stop signal. Blocks.
pub(super) fn run(
    shared: &Arc<Shared>,
    config: &ClientConfig,
    topics: &[String],
    runtime: Handle,
) -> Result<(), ConsumerError> {
    let member = Member::new(shared, runtime);
    let consumer: BaseConsumer<Member> = config.create_with_context(member).map_err(without_values)?;
    let polled = poll(shared, &consumer, topics);
    shared.shutdown.stop();
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
        member.commit_last(&consumer, LEAVE_WITHIN / 2);
        member.clear();
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

fn poll(shared: &Shared, consumer: &BaseConsumer<Member>, topics: &[String]) -> Result<(), ConsumerError> {
    let member = consumer.context();
    let mut subscription = Subscription::start(consumer, &shared.group, topics)?;
    let mut committed_at = Instant::now();
    let mut incidents = IncidentLog::default();
    let mut recreated = Recreated::default();
    while !shared.shutdown.is_requested() {
        let mut wait = POLL;
        for _ in 0..BURST {
            match consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    incidents = IncidentLog::default();
                    let is_full = member.hand_over(consumer, Delivery::new(&message))?;
                    if is_full {
                        break;
                    }
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => return Err(error.into()),
                Some(Err(error)) => incidents.log_once(&error),
            }
            wait = Duration::ZERO;
        }
        member.pause_and_resume(consumer)?;
        member.abort_late();
        subscription.refresh(consumer)?;
        if committed_at.elapsed() >= shared.limits.commit_interval {
            member.commit(consumer);
            recreated.read_anew(consumer);
            committed_at = Instant::now();
        }
    }
    Ok(())
}
