//! Finds out whether a topic can be written before anything is sent to it. If a record failed for good after its successors were sent, the
//! order could not be restored.
//!
//! Workers read the answers from memory. One task asks the cluster: it asks for few topics one by one, and for many with one request for
//! all topics. It asks again for closed topics while workers wait for them.
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

use crate::fault::{self, Fault};
use event_outbox::code::Code;
pub(crate) use table::Answer;
use table::Table;

/// The largest number of topics that are asked for one by one. librdkafka's bindings ask for one topic or for all.
const FEW: usize = 8;

/// The pause before a topic that is new to the relay is asked for again. It may have been created a moment ago.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(150);
const ATTEMPTS: usize = 2;

/// The number of attempts if asking may create the topic: the broker answers "unknown" or "no leader yet" first.
const ATTEMPTS_TO_CREATE: usize = 4;

/// The interval at which the task checks which topics are due.
const TICK: Duration = Duration::from_secs(1);

/// The factor between the duration of a request for all topics and the interval of such requests. Requests take at most 1/20 of the time.
const LIST_SHARE: u32 = 20;
const LIST_INTERVAL_LONGEST: Duration = Duration::from_secs(30);

/// The interval for updating partition counts from the list. The list is used if there are more topics than the watch can ask for one by
/// one in this time.
const COUNTS_INTERVAL: Duration = Duration::from_secs(300);
const WATCHED: usize = 30;

/// The known state of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TopicState {
    /// The topic exists and may be seen.
    Writable,
    /// The topic does not exist, a right is missing, or it refuses records.
    Closed(Closure),
    /// The cluster has not answered yet.
    Unknown,
}

/// The topics of a relay, shared by its workers.
#[derive(Debug)]
pub(crate) struct Topics {
    table: Mutex<Table>,
    /// Notified when a worker waits for an answer.
    asked: Notify,
    /// Changes with every answer.
    answered: watch::Sender<()>,
    /// True if asking for a topic may create it, because the operator allowed it.
    creates: bool,
}

/// The last request for all topics.
struct Listed {
    at: Option<Instant>,
    /// The time until the next list, unless a worker waits for it.
    interval: Duration,
}

impl Listed {
    fn is_older_than(&self, time: Duration) -> bool {
        self.at.is_none_or(|at| at.elapsed() >= time)
    }
}

impl Topics {
    /// Creates an empty table. `creates` means that the brokers may create a topic that is asked for (`allow.auto.create.topics`).
    pub(crate) fn new(creates: bool) -> Self {
        Self { table: Mutex::default(), asked: Notify::new(), answered: watch::Sender::new(()), creates }
    }

    /// Returns true if the topic can be written, as far as is known. Sends no request.
    pub(crate) fn is_known(&self, topic: &str) -> bool {
        self.table().is_writable(topic, Instant::now())
    }

    /// Returns the state of each topic. Waits at most `wait` for unknown ones.
    pub(crate) async fn resolve(&self, topics: &[String], wait: Duration) -> HashMap<String, TopicState> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut answered = self.answered.subscribe();
        loop {
            let states = self.states(topics);
            if !states.values().any(|state| *state == TopicState::Unknown) {
                return states;
            }
            self.asked.notify_one();
            // Fails only if the relay is gone.
            if !matches!(tokio::time::timeout_at(deadline, answered.changed()).await, Ok(Ok(()))) {
                return states;
            }
        }
    }

    /// Returns the state of each topic, as far as is known. Sends no request itself. The task asks for topics that cannot be written for as
    /// long as this is called for them.
    pub(crate) fn states(&self, topics: &[String]) -> HashMap<String, TopicState> {
        let (mut table, now) = (self.table(), Instant::now());
        topics.iter().map(|topic| (topic.clone(), table.state(topic, now))).collect()
    }

    /// Notes that the topic refused a record.
    pub(crate) fn refused(&self, topic: &str, code: RDKafkaErrorCode) {
        self.table().refused(topic, code, Instant::now());
    }

    /// Notes that the topic took a record.
    pub(crate) fn acknowledged(&self, topic: &str) {
        self.table().acknowledged(topic);
    }

    /// Returns the number of partitions to spread a topic's records over. All producers of a relay use this number and not their own. Two
    /// producers that learn of new partitions at different times would send an entity's events to two partitions alternately.
    pub(crate) fn partitions(&self, topic: &str) -> Option<i32> {
        self.table().partitions(topic)
    }

    /// Returns the number of partitions of each topic by a new answer of the cluster. Waits at most `wait` for answers; a topic without one is
    /// left out. An older answer would not show partitions that were added before an event was written.
    pub(crate) async fn count_again(&self, topics: &[String], wait: Duration) -> HashMap<String, i32> {
        let (asked, deadline) = (Instant::now(), tokio::time::Instant::now() + wait);
        let mut answered = self.answered.subscribe();
        loop {
            let counts: HashMap<String, i32> = {
                let mut table = self.table();
                let count = |topic: &String| Some((topic.clone(), table.counted_since(topic, asked)?));
                topics.iter().filter_map(count).collect()
            };
            if counts.len() == topics.len() {
                return counts;
            }
            self.asked.notify_one();
            // Fails only if the relay is gone.
            if !matches!(tokio::time::timeout_at(deadline, answered.changed()).await, Ok(Ok(()))) {
                return counts;
            }
        }
    }

    /// Returns a number that changes when a topic's records have to be spread over another number of partitions.
    pub(crate) fn layout(&self) -> u64 {
        self.table().layout()
    }

    /// Returns the topic with the oldest answer. The watch asks for it: the answer shows that the cluster can be reached, and updates the
    /// topic.
    pub(super) fn stalest(&self) -> Option<String> {
        self.table().stalest()
    }

    /// Stores the cluster's answer about a topic.
    pub(super) fn update(&self, topic: &str, answer: Answer) {
        self.table().update(topic, answer, Instant::now());
        self.answered.send_replace(());
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a topic cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closure {
    /// A message for the operator. Ends with the runbook code.
    pub(crate) why: String,
    pub(crate) fault: Fault,
}

/// Returns the meaning of the cluster's answer about a topic, or about a record of the topic.
pub(crate) fn closed(code: RDKafkaErrorCode) -> Closure {
    let fault = fault::classify_kafka(code);
    // A topic that is deleted while a producer uses it is reported as an unknown partition, not as an unknown topic.
    let why = match fault.code {
        Code::TopicMissing => "the topic does not exist; create it".to_owned(),
        Code::TopicUnauthorized => "the right to write the topic is missing; grant WRITE and DESCRIBE on it".to_owned(),
        _ => format!("the topic cannot be written ({code:?}); {}", fault.next_step),
    };
    Closure { why: format!("{why} ({})", fault.code), fault }
}
