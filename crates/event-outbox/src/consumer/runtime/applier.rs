//! The part of a task that applies events: what it shares with others, and how it is told to stop.

use std::sync::Arc;

use tokio::sync::watch;

use crate::consumer::runtime::options::ConsumerError;
use crate::consumer::runtime::shared::Shared;

pub(super) struct Applier {
    pub(super) shared: Arc<Shared>,
    pub(super) stop: watch::Receiver<bool>,
}

/// The reason why an event must be delivered again: the task was told to stop, or hit a fatal error.
pub(super) enum Unfinished {
    Interrupted,
    Fatal(ConsumerError),
}

impl Applier {
    pub(super) async fn interruptible<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Unfinished> {
        tokio::select! {
            biased;
            () = self.stopped() => Err(Unfinished::Interrupted),
            done = work => Ok(done),
        }
    }

    /// Returns when the owner of the task tells it to stop, or is gone.
    pub(super) async fn stopped(&mut self) {
        let _ = self.stop.wait_for(|stop| *stop).await;
    }
}
