//! Topics: asked for before they are used, held while they cannot be.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use crate::fault::Class;
use crate::observe::code::Code;
use crate::relay::batch::{Closed, Fate, Sent};
use crate::relay::stint::Stint;
use crate::relay::turn::{Hands, TurnError};
use crate::sink::delivery::Outcome;
use crate::sink::topics::TopicState;
use crate::store::holds::Hold;

/// How often a topic that is held is asked for.
const TOPIC_INTERVAL: Duration = Duration::from_secs(2);

/// How long a turn may ask for topics it does not know; the rows of the others are left for the next.
const ASKING_TIME: Duration = Duration::from_secs(1);

impl Hands<'_> {
    pub(super) fn topics_are_due(&self, stint: &Stint) -> bool {
        stint.releasing.is_some()
            || stint.topics_checked.elapsed() >= TOPIC_INTERVAL && stint.held_topics().next().is_some()
    }

    /// The held topics that can be written again.
    pub(super) async fn reopened_topics(&mut self, stint: &mut Stint) -> Result<Vec<String>, TurnError> {
        if !self.topics_are_due(stint) {
            return Ok(Vec::new());
        }
        let mut reopened = Vec::new();
        if let Some((topic, _)) = &stint.releasing
            && self.shared.topics.is_known(topic)
        {
            return Ok(vec![topic.clone()]);
        }
        for topic in stint.held_topics() {
            if self.shared.topics.check(&self.shared.broker, topic, true).await? == TopicState::Writable {
                reopened.push(topic.to_owned());
            }
        }
        stint.topics_checked = Instant::now();
        Ok(reopened)
    }

    /// Of the topics of a batch, those that cannot be written, with the reason.
    pub(super) async fn closed_topics(
        &mut self,
        stint: &mut Stint,
        topics: &[String],
    ) -> Result<HashMap<String, Closed>, TurnError> {
        let began = Instant::now();
        let mut closed = HashMap::new();
        for topic in topics {
            let hold = Hold::Topic(topic.clone());
            if stint.gate.shuts_topic(topic) {
                // Nothing is sent to it, so nothing is asked.
            } else if stint.holds.contains(&hold) {
                let released = match &stint.releasing {
                    Some((releasing, highest)) if releasing == topic => highest.0,
                    _ => 0,
                };
                closed.insert(topic.clone(), Closed::Held { why: "waits for the topic".to_owned(), released });
            } else if self.shared.topics.is_known(topic) {
            } else if began.elapsed() >= ASKING_TIME {
                closed.insert(topic.clone(), Closed::Unasked);
            } else if let TopicState::Closed(why) = self.shared.topics.check(&self.shared.broker, topic, false).await? {
                self.tell_closed(topic, &why);
                stint.holds.insert(hold);
                closed.insert(topic.clone(), Closed::Held { why, released: 0 });
            }
        }
        Ok(closed)
    }

    pub(super) fn refused_topic(&self, stint: &mut Stint, topic: &str, code: RDKafkaErrorCode) {
        self.shared.topics.refused(topic);
        if stint.holds.insert(Hold::Topic(topic.to_owned())) {
            self.tell_closed(topic, &crate::sink::topics::closed(code));
        }
    }

    fn tell_closed(&self, topic: &str, why: &str) {
        if self.shared.block(&format!("topic {topic}"), why) {
            self.shared.options.vitals.metrics.failed(Class::Destination, 1);
            tracing::warn!(code = %Code::TopicClosed, topic, reason = why, "a topic cannot be written: its events are held, all others go on");
        }
    }

    /// The end of a topic's incident: something was acknowledged on it.
    pub(super) fn tell_topics(&self, sent: &Sent, outcomes: &[Outcome]) {
        let mut last = usize::MAX;
        for fate in &sent.fates {
            let Fate::Sent { slot, topic } = *fate else { continue };
            if topic == last || outcomes.get(slot) != Some(&Outcome::Acked) {
                continue;
            }
            last = topic;
            let name = &sent.topics[topic];
            self.shared.topics.acknowledged(name);
            if self.shared.unblock(&format!("topic {name}")) {
                tracing::info!(topic = name, "the topic can be written again");
            }
        }
    }
}
