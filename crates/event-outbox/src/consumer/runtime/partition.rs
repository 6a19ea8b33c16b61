//! A partition that is assigned to this member, and the task that handles its events.

use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::code::Code;
use crate::consumer::runtime::applier::Applier;
use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::progress::Progress;
use crate::consumer::runtime::shared::Shared;
use crate::consumer::runtime::worker::Worker;

/// Time limit for an aborted task to end. A task that never yields cannot be aborted.
const ABORT_WITHIN: Duration = Duration::from_secs(5);

/// A task that can be told to stop, and aborted if it does not.
pub(super) struct Task {
    stop: watch::Sender<bool>,
    abort: AbortHandle,
    /// Disconnects when the task is gone.
    ended: Mutex<std_mpsc::Receiver<()>>,
}

impl Task {
    pub(super) fn spawn<F>(runtime: &Handle, run: impl FnOnce(watch::Receiver<bool>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = std_mpsc::channel::<()>();
        let run = run(stopped);
        let task = runtime.spawn(async move {
            let _alive = alive;
            run.await;
        });
        Self { stop, abort: task.abort_handle(), ended: Mutex::new(ended) }
    }

    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for the end of the task until `deadline`. Returns true if it has ended.
    pub(super) fn ends_by(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(left)
            != Err(std_mpsc::RecvTimeoutError::Timeout)
    }

    /// Aborts the task. Its transaction is rolled back and its event is delivered again.
    pub(super) fn abort(&self, topic: &str, partition: i32) {
        tracing::warn!(
            code = %Code::HandlerSlow,
            topic,
            partition,
            consequence = "the handler is aborted, and its event is redelivered",
            "a handler did not end in time"
        );
        self.abort.abort();
        if !self.ends_by(Instant::now() + ABORT_WITHIN) {
            tracing::error!(
                code = %Code::HandlerStuck,
                topic,
                partition,
                next_step = "do not block in handlers",
                "a handler cannot be aborted"
            );
        }
    }
}

pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) number: i32,
    pub(super) queue: mpsc::UnboundedSender<Delivery>,
    pub(super) progress: Arc<Progress>,
    pub(super) task: Task,
    pub(super) paused: bool,
    /// The offset that was committed last; -1 before the first commit.
    pub(super) committed: i64,
    /// The offset after the last record that was handed over.
    pub(super) expected: i64,
}

impl Partition {
    pub(super) fn start(shared: &Arc<Shared>, runtime: &Handle, delivery: &Delivery) -> Self {
        let (queue, records) = mpsc::unbounded_channel();
        let progress = Arc::new(Progress::default());
        let task = Task::spawn(runtime, |stop| {
            let applier = Applier { shared: Arc::clone(shared), stop };
            Worker { applier, queue: records, progress: Arc::clone(&progress) }.run()
        });
        Self {
            topic: delivery.topic.clone(),
            number: delivery.partition,
            queue,
            progress,
            task,
            paused: false,
            committed: -1,
            expected: delivery.offset,
        }
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
