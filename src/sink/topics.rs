//! Whether a topic can be written, asked before anything is sent to it: a record that fails for good after its successors went
//! out cannot be put right.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use crate::fault;
use crate::observe::code::Code;
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

/// A topic that exists but refuses records is tried again after this long, then after twice as long, up to the longest.
const REFUSAL_PAUSE: Duration = Duration::from_secs(2);
const REFUSAL_PAUSE_LONGEST: Duration = Duration::from_secs(60);

/// A topic that does not exist is asked for again after this long.
const MISSING_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
enum Known {
    Writable,
    /// It refused a record, although the cluster shows it.
    Refused {
        until: Instant,
        pause: Duration,
    },
    /// The cluster does not show it; other workers need not ask at once.
    Missing {
        until: Instant,
    },
}

/// The topics seen so far; shared by the workers of a relay.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    known: Mutex<HashMap<String, Known>>,
}

impl Topics {
    /// True when the topic has been seen and has not refused a record since.
    pub(crate) fn is_known(&self, topic: &str) -> bool {
        matches!(self.lock().get(topic), Some(Known::Writable))
    }

    /// The topic refused a record.
    pub(crate) fn refused(&self, topic: &str) {
        let mut known = self.lock();
        let pause = match known.get(topic) {
            Some(Known::Refused { until, .. }) if *until > Instant::now() => return,
            Some(Known::Refused { pause, .. }) => (*pause * 2).min(REFUSAL_PAUSE_LONGEST),
            _ => REFUSAL_PAUSE,
        };
        known.insert(topic.to_owned(), Known::Refused { until: Instant::now() + pause, pause });
    }

    /// The topic took a record.
    pub(crate) fn acknowledged(&self, topic: &str) {
        if let Some(known @ Known::Refused { .. }) = self.lock().get_mut(topic) {
            *known = Known::Writable;
        }
    }

    /// Asks the cluster.
    ///
    /// # Errors
    /// [`BrokerDown`] when it does not answer.
    ///
    /// A topic that is new to the relay is asked for more than once: the broker may be creating it. One that is held once.
    pub(crate) async fn check(&self, broker: &Arc<Broker>, topic: &str, held: bool) -> Result<TopicState, BrokerDown> {
        match self.lock().get(topic) {
            Some(Known::Refused { until, .. }) if *until > Instant::now() => {
                return Ok(TopicState::Closed("the topic refuses records; it is tried again before long".to_owned()));
            }
            Some(Known::Missing { until }) if *until > Instant::now() => {
                return Ok(TopicState::Closed(closed(RDKafkaErrorCode::UnknownTopic)));
            }
            _ => {}
        }
        let mut last = None;
        for attempt in 0..if held { 1 } else { ATTEMPTS } {
            if attempt > 0 {
                tokio::time::sleep(ATTEMPT_PAUSE).await;
            }
            match broker.topic_error(topic).await? {
                None => {
                    let mut known = self.lock();
                    if !matches!(known.get(topic), Some(Known::Refused { .. })) {
                        known.insert(topic.to_owned(), Known::Writable);
                    }
                    return Ok(TopicState::Writable);
                }
                Some(code @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic)) => {
                    return Ok(TopicState::Closed(closed(code)));
                }
                Some(code) => last = Some(code),
            }
        }
        let mut known = self.lock();
        if !matches!(known.get(topic), Some(Known::Refused { .. })) {
            known.insert(topic.to_owned(), Known::Missing { until: Instant::now() + MISSING_PAUSE });
        }
        Ok(TopicState::Closed(last.map(closed).unwrap_or_default()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operator's sentence for a topic that cannot be written.
pub(crate) fn closed(code: RDKafkaErrorCode) -> String {
    // A topic that is deleted under a producer is told as an unknown partition, not as an unknown topic.
    match fault::of_kafka(code).code {
        Code::TopicMissing => "the topic does not exist; create it".to_owned(),
        Code::TopicUnauthorized => "the right to write the topic is missing; grant WRITE and DESCRIBE on it".to_owned(),
        _ => format!("the topic cannot be written ({code:?})"),
    }
}
