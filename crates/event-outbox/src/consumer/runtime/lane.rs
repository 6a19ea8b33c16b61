//! The queues of events in memory, and the workers that empty them.
//!
//! There is one queue per key. It begins in the consumer's database, with the rows of a key that was set aside, and goes on in memory, in the
//! lane of the key. A lane is a queue of records with one worker: the key's hash chooses it, so events of a key stay in order, and keys of
//! different lanes are worked on side by side. Each partition has `concurrency` lanes. The drain of held keys has as many; they take the
//! events from the database, while the lanes of the partition add later events of these keys there.
//!
//! An event is finished when it is applied, recognised as repeated, ignored, set aside in the database, or acknowledged as a dead letter. Only
//! then its offset may be committed. A worker that is told to stop ends after its current attempt.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::consumer::runtime::applier::{Applier, Unfinished};
use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::prepared::{Job, Origin, Prepared};
use crate::consumer::runtime::shared::Shared;
use crate::consumer::runtime::task::Task;

/// The lanes of a partition, or of the drain.
pub(super) struct Lanes(Vec<(mpsc::UnboundedSender<Job>, Task)>);

impl Lanes {
    pub(super) fn start(shared: &Arc<Shared>, runtime: &Handle) -> Self {
        let lane = |_| {
            let (queue, jobs) = mpsc::unbounded_channel();
            let task = Task::spawn(runtime, |stop| {
                let applier = Applier { shared: Arc::clone(shared), stop };
                Lane { applier, jobs, next: None }.run()
            });
            (queue, task)
        };
        Self((0..shared.limits.concurrency).map(lane).collect())
    }

    /// Queues a record behind the others of its key. Returns false if its worker has ended.
    pub(super) fn send(&self, job: Job) -> bool {
        self.0[lane_of(&job.delivery, self.0.len())].0.send(job).is_ok()
    }

    pub(super) fn stop(&self) {
        self.0.iter().for_each(|(_, task)| task.stop());
    }

    /// Waits for the end of all workers until `deadline`. Returns true if they have ended.
    pub(super) fn end_by(&self, deadline: Instant) -> bool {
        // All of them are looked at, so that each has the same time.
        self.0.iter().filter(|(_, task)| !task.ends_by(deadline)).count() == 0
    }

    /// Aborts the workers that have not ended.
    pub(super) fn abort(&self, topic: &str, partition: i32) {
        self.0
            .iter()
            .filter(|(_, task)| !task.ends_by(Instant::now()))
            .for_each(|(_, task)| task.abort(topic, partition));
    }
}

/// Returns the lane of a record. Records without a key have no order and go round.
fn lane_of(delivery: &Delivery, lanes: usize) -> usize {
    let number = match &delivery.key {
        Some(key) => {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            hasher.finish()
        }
        None => delivery.offset.unsigned_abs(),
    };
    (number % lanes as u64) as usize
}

/// The worker of a lane.
struct Lane {
    applier: Applier,
    jobs: mpsc::UnboundedReceiver<Job>,
    /// The record that was taken from the queue and did not join the batch.
    next: Option<Prepared>,
}

impl Lane {
    async fn run(mut self) {
        while let Some(batch) = self.take().await {
            match self.applier.deliver_all(batch).await {
                Ok(()) => {}
                Err(Unfinished::Interrupted) => return,
                Err(Unfinished::Fatal(error)) => return self.applier.shared.shutdown.fail(error),
            }
        }
    }

    /// Waits for a record that may be handled now, and takes those behind it that can be handled in the same call.
    async fn take(&mut self) -> Option<Vec<Prepared>> {
        let shared = Arc::clone(&self.applier.shared);
        let first = loop {
            let first = match self.next.take() {
                Some(first) => first,
                None => {
                    let job = self.applier.interruptible(self.jobs.recv()).await.ok()??;
                    Prepared::new(&shared, job)
                }
            };
            let topic = &first.job.delivery.topic;
            match first.job.origin {
                Origin::Partition(_) => {
                    self.applier.interruptible(shared.control.resumed(topic)).await.ok()?;
                    break first;
                }
                // It stays in its row, and the drain takes it again. Here it would hold up the other topics of the lane.
                Origin::Drain(_) if shared.control.is_paused(topic) => {}
                Origin::Drain(_) => break first,
            }
        };
        let most = shared.limits.batch.min(shared.control.burst());
        let mut batch = vec![first];
        while batch.len() < most && batch[0].joins(&batch[0]) {
            let Ok(job) = self.jobs.try_recv() else { break };
            let prepared = Prepared::new(&shared, job);
            if !prepared.joins(&batch[0]) {
                self.next = Some(prepared);
                break;
            }
            batch.push(prepared);
        }
        self.applier.interruptible(shared.control.admit(batch.len())).await.ok()?;
        Some(batch)
    }
}
