//! Asks the service before an event is given up.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::code::Code;
use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::delivery::Event;
use crate::consumer::runtime::failed::Action;

pub(super) type Hook = Arc<dyn Fn(Rejected) -> BoxFuture<'static, Action> + Send + Sync>;

/// An event whose attempts are over: see [`Consumer::before_dead_letter`](super::Consumer::before_dead_letter).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Rejected {
    /// The event; `None` if the record names none.
    pub event: Option<Arc<Event>>,
    /// The topic that the record was read from.
    pub topic: String,
    /// The partition that the record was read from.
    pub partition: i32,
    /// The offset that the record was read from.
    pub offset: i64,
    /// The kind of failure.
    pub reason: Reason,
    /// The last error and its causes.
    pub error: String,
    /// The number of attempts.
    pub attempts: u32,
    /// The action that handler, retry and policy have chosen.
    pub action: Action,
}

/// Asks the hook for the action. A hook that panics changes nothing.
pub(super) async fn ask(hook: &Hook, rejected: Rejected) -> Action {
    let (action, topic, partition, offset) =
        (rejected.action, rejected.topic.clone(), rejected.partition, rejected.offset);
    let answer = AssertUnwindSafe(async { hook(rejected).await }).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        tracing::error!(
            code = %Code::HookPanicked,
            topic,
            partition,
            offset,
            ?action,
            next_step = "fix the function that was given to `before_dead_letter`",
            consequence = "the event ends as the policy says",
            "the hook before a dead letter panicked"
        );
        action
    })
}
