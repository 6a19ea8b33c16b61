//! The sleep of a relay, shared by its workers and the task that wakes them: see [`wake_up`](crate::relay::wake_up).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

/// The state that workers look at. It changes with each wake-up, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sleep {
    /// The number of times that the relay has fallen asleep or woken up.
    pub(crate) changes: u64,
    /// The longest pause of a worker that has looked since this state began and found nothing; `None` while the relay is awake.
    pub(crate) pause: Option<Duration>,
}

/// The state of the task, shared with the workers.
pub(crate) struct WakeUp {
    sleep: watch::Sender<Sleep>,
    began: Instant,
    /// The time of the last work, in microseconds since `began`.
    worked_at: AtomicU64,
    /// Notified when a worker finds work in its sleep.
    works: Notify,
}

impl Default for WakeUp {
    fn default() -> Self {
        let sleep = watch::Sender::new(Sleep::default());
        Self { sleep, began: Instant::now(), worked_at: AtomicU64::new(0), works: Notify::new() }
    }
}

impl WakeUp {
    /// Returns the state, which changes when workers have to look.
    pub(crate) fn state(&self) -> watch::Receiver<Sleep> {
        self.sleep.subscribe()
    }

    /// Records that a worker has found work.
    pub(crate) fn worked(&self) {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.worked_at.store(now, Ordering::Relaxed);
        if self.sleep.borrow().pause.is_some() {
            self.works.notify_one();
        }
    }

    /// Waits until a worker has found work in its sleep.
    pub(crate) async fn found_work(&self) {
        self.works.notified().await;
    }

    /// Returns the time of the last work, which only compares with another one.
    pub(crate) fn worked_at(&self) -> u64 {
        self.worked_at.load(Ordering::Relaxed)
    }

    /// Returns how long no worker has had work.
    pub(crate) fn idle_for(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_micros(self.worked_at.load(Ordering::Relaxed)))
    }

    /// Returns the longest pause of a worker now; zero while the relay is awake.
    pub(crate) fn sleeps_for(&self) -> Duration {
        self.sleep.borrow().pause.unwrap_or_default()
    }

    /// Lets workers sleep for at most `pause` between two looks, or wakes them.
    pub(crate) fn set(&self, pause: Option<Duration>) {
        self.sleep.send_modify(|sleep| *sleep = Sleep { changes: sleep.changes + 1, pause });
    }
}
