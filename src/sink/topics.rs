//! Whether a topic can be written, asked before anything is sent to it: a record that fails for good after its successors went
//! out cannot be put right.
//!
//! Workers read the answers from memory. One task asks the cluster: for a few topics one by one, for many with one request for all of
//! them, and again for those that are closed while somebody waits for them.
//!
//! - [`asking`]: the task that asks
//! - [`table`]: what is known

mod asking;
mod table;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::{Notify, watch};

use crate::fault;
use event_outbox::code::Code;
pub(crate) use table::Answer;
use table::Table;

/// Up to this many topics are asked for one by one. librdkafka's bindings ask for one topic or for all.
const FEW: usize = 8;

/// A topic that is new to the relay is asked for again after this pause: it may have been created a moment ago.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(150);
const ATTEMPTS: usize = 2;

/// The same where asking may create the topic: the broker answers "unknown" or "no leader yet" first.
const ATTEMPTS_TO_CREATE: usize = 4;

/// How often it is looked whether a topic is due to be asked for.
const TICK: Duration = Duration::from_secs(1);

/// Fetching the list of all topics may take this share of the time.
const LIST_SHARE: u32 = 20;
const LIST_INTERVAL_LONGEST: Duration = Duration::from_secs(30);

/// With more topics than the watch asks for one by one in this time, the counts of their partitions come from the list.
const COUNTS_INTERVAL: Duration = Duration::from_secs(300);
const WATCHED: usize = 30;

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TopicState {
    /// It exists and may be seen.
    Writable,
    /// It does not exist, a right is missing, or it refuses records; a message for the operator.
    Closed(String),
    /// The cluster has not answered yet.
    Unknown,
}

/// The topics of a relay; shared by its workers.
#[derive(Debug)]
pub(crate) struct Topics {
    table: Mutex<Table>,
    /// Somebody waits for an answer.
    asked: Notify,
    /// Changes with every answer.
    answered: watch::Sender<()>,
    /// Asking for a topic may create it, because the operator said so.
    creates: bool,
}

/// The last list of all topics.
struct Listed {
    at: Option<Instant>,
    /// To the next one, unless somebody waits for it.
    interval: Duration,
}

impl Listed {
    fn is_older_than(&self, time: Duration) -> bool {
        self.at.is_none_or(|at| at.elapsed() >= time)
    }
}

impl Topics {
    /// `creates`: the brokers may create a topic that is asked for (`allow.auto.create.topics`).
    pub(crate) fn new(creates: bool) -> Self {
        Self { table: Mutex::default(), asked: Notify::new(), answered: watch::Sender::new(()), creates }
    }

    /// Returns true when the topic can be written, as far as is known. Asks nobody.
    pub(crate) fn is_known(&self, topic: &str) -> bool {
        self.table().is_writable(topic, Instant::now())
    }

    /// Returns the state of each topic. Waits at most `wait` for those that are not known.
    pub(crate) async fn resolve(&self, topics: &[String], wait: Duration) -> HashMap<String, TopicState> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut answered = self.answered.subscribe();
        loop {
            let states = self.states(topics);
            if !states.values().any(|state| *state == TopicState::Unknown) {
                return states;
            }
            self.asked.notify_one();
            // Fails only when the relay is gone.
            if !matches!(tokio::time::timeout_at(deadline, answered.changed()).await, Ok(Ok(()))) {
                return states;
            }
        }
    }

    /// Returns the state of each topic, as far as is known. Asks nobody; those that cannot be written are asked for in the background for as
    /// long as this is called for them.
    pub(crate) fn states(&self, topics: &[String]) -> HashMap<String, TopicState> {
        let (mut table, now) = (self.table(), Instant::now());
        topics.iter().map(|topic| (topic.clone(), table.state(topic, now))).collect()
    }

    /// Notes that the topic refused a record.
    pub(crate) fn refused(&self, topic: &str) {
        self.table().refused(topic, Instant::now());
    }

    /// Notes that the topic took a record.
    pub(crate) fn acknowledged(&self, topic: &str) {
        self.table().acknowledged(topic);
    }

    /// Returns the number of partitions to spread a topic's records over. All producers of a relay use this one and none its own: two that
    /// learn of new partitions at different times would send an entity's events to two partitions in turn.
    pub(crate) fn partitions(&self, topic: &str) -> Option<i32> {
        self.table().partitions(topic)
    }

    /// Changes when a topic's records are to be spread over another number of partitions.
    pub(crate) fn layout(&self) -> u64 {
        self.table().layout()
    }

    /// Returns a topic whose answer tells the watch that the cluster is there, and is wanted anyway.
    pub(super) fn stalest(&self) -> Option<String> {
        self.table().stalest()
    }

    /// Takes in what the cluster says of a topic.
    pub(super) fn update(&self, topic: &str, answer: Answer) {
        self.table().update(topic, answer, Instant::now());
        self.answered.send_replace(());
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operator's message for a topic that cannot be written.
pub(crate) fn closed(code: RDKafkaErrorCode) -> String {
    // A topic that is deleted under a producer is reported as an unknown partition, not as an unknown topic.
    match fault::classify_kafka(code).code {
        Code::TopicMissing => "the topic does not exist; create it".to_owned(),
        Code::TopicUnauthorized => "the right to write the topic is missing; grant WRITE and DESCRIBE on it".to_owned(),
        _ => format!("the topic cannot be written ({code:?})"),
    }
}
