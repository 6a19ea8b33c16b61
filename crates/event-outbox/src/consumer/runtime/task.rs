//! Runs a task that stops when it is asked to, and is aborted if it does not.

use std::sync::{Mutex, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::code::Code;

/// Time limit for an aborted task to end. A task that never yields cannot be aborted.
const ABORT_WITHIN: Duration = Duration::from_secs(5);

/// A task that stops when it is asked to, and is aborted if it does not.
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
