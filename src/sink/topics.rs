//! Whether a topic can be written, asked before anything is sent to it: a record that fails for good after its successors went
//! out cannot be put right.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;

use crate::sink::broker::{Broker, BrokerDown};

/// A broker that creates topics on demand answers "unknown" or "no leader yet" first.
const ATTEMPTS: usize = 4;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(150);

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TopicState {
    /// It exists and may be seen.
    Writable,
    /// It does not exist, or a right is missing; a sentence for the operator.
    Closed(String),
}

/// The topics seen so far; shared by the workers of a relay.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    writable: Mutex<HashSet<String>>,
}

impl Topics {
    /// True when the topic has been seen and not failed since.
    pub(crate) fn is_known(&self, topic: &str) -> bool {
        self.lock().contains(topic)
    }

    /// The topic has to be asked for again.
    pub(crate) fn forget(&self, topic: &str) {
        self.lock().remove(topic);
    }

    /// Asks the cluster.
    ///
    /// # Errors
    /// [`BrokerDown`] when it does not answer.
    pub(crate) async fn check(&self, broker: &Arc<Broker>, topic: &str) -> Result<TopicState, BrokerDown> {
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(ATTEMPT_PAUSE).await;
            }
            match broker.topic_error(topic).await? {
                None => {
                    self.lock().insert(topic.to_owned());
                    return Ok(TopicState::Writable);
                }
                Some(code @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic)) => {
                    return Ok(TopicState::Closed(closed(code)));
                }
                Some(code) => last = Some(code),
            }
        }
        Ok(TopicState::Closed(last.map(closed).unwrap_or_default()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.writable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operator's sentence for a topic that cannot be written.
pub(crate) fn closed(code: RDKafkaErrorCode) -> String {
    match code {
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
            "the topic does not exist; create it".to_owned()
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => {
            "the right to write the topic is missing; grant WRITE and DESCRIBE on it".to_owned()
        }
        code => format!("the topic cannot be written ({code:?})"),
    }
}
