//! Handles the events of one partition one after the other, each until it is finished.
//!
//! An event is finished when it is applied, recognised as repeated, ignored, parked behind a held key, or acknowledged as a dead letter. Only
//! then its offset may be committed. A worker that is told to stop ends after its current attempt.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::consumer::runtime::applier::{Applier, Unfinished};
use crate::consumer::runtime::delivery::Delivery;
use crate::consumer::runtime::progress::Progress;

pub(super) struct Worker {
    pub(super) applier: Applier,
    pub(super) queue: mpsc::UnboundedReceiver<Delivery>,
    pub(super) progress: Arc<Progress>,
}

impl Worker {
    pub(super) async fn run(mut self) {
        loop {
            let delivery = tokio::select! {
                biased;
                () = self.applier.stopped() => return,
                delivery = self.queue.recv() => delivery,
            };
            let Some(delivery) = delivery else { return };
            self.progress.begin(&delivery);
            match self.applier.deliver(&delivery).await {
                Ok(()) => {}
                Err(Unfinished::Interrupted) => return,
                Err(Unfinished::Fatal(error)) => return self.applier.shared.shutdown.fail(error),
            }
            self.progress.done(&delivery);
        }
    }
}
