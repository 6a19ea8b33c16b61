//! Holds the state that the parts of a running consumer share, and the request to end it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::consumer::runtime::attempt::AttemptContext;
use crate::consumer::runtime::control::Control;
use crate::consumer::runtime::dead_letter_producer::DeadLetterProducer;
use crate::consumer::runtime::failed::Policy;
use crate::consumer::runtime::handlers::Handlers;
use crate::consumer::runtime::hook::Hook;
use crate::consumer::runtime::options::{ConsumerError, Lost};
use crate::consumer::runtime::retry::Retries;
use crate::consumer::runtime::stats::Stats;
use crate::consumer::runtime::tokens::Tokens;

pub(super) type TopicOf = Arc<dyn Fn(&str) -> String + Send + Sync>;

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) queue: usize,
    pub(super) concurrency: usize,
    pub(super) batch: usize,
    pub(super) commit_interval: Duration,
    pub(super) drain: Duration,
    pub(super) slow_after: Duration,
    pub(super) handler_timeout: Option<Duration>,
    pub(super) lost: Lost,
}

pub(super) struct Shared {
    pub(super) group: String,
    pub(super) dead_letters: DeadLetterProducer,
    pub(super) attempt_context: AttemptContext,
    pub(super) handlers: Handlers,
    pub(super) policy: Policy,
    pub(super) retries: Retries,
    pub(super) before_dead_letter: Option<Hook>,
    pub(super) control: Control,
    pub(super) dead_letter_topic: TopicOf,
    pub(super) limits: Limits,
    pub(super) stats: Arc<Stats>,
    pub(super) tokens: Tokens,
    pub(super) shutdown: Shutdown,
}

/// The request to end the consumer, and the error that caused it.
#[derive(Default)]
pub(super) struct Shutdown {
    stop: AtomicBool,
    error: Mutex<Option<ConsumerError>>,
}

impl Shutdown {
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(super) fn is_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Ends the consumer. Of several errors the first is reported.
    pub(super) fn fail(&self, error: ConsumerError) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop();
    }

    pub(super) fn take_error(&self) -> Option<ConsumerError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub(super) struct StopOnDrop(pub(super) Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.shutdown.stop();
    }
}
