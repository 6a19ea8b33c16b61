//! Says whether the brokers answer, for a screen that shows everything else without them.

use std::time::Duration;

use serde::Serialize;

use super::Status;
use super::next::{About, step};
use crate::config::KafkaSettings;
use crate::sink::silence::silence;

/// The longest wait for an answer. A cluster that is away is usually known to be so within milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What the brokers answered.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Brokers {
    /// The addresses that were asked; missing if none are configured.
    pub(crate) asked: Option<String>,
    /// True if a broker answered.
    pub(crate) answer: bool,
    /// The reason why no broker answered, or why none was asked.
    pub(crate) reason: Option<String>,
    #[serde(skip)]
    next_step: Option<&'static str>,
}

impl Brokers {
    /// Asks the configured brokers.
    pub(crate) async fn ask(kafka: Option<&KafkaSettings>) -> Self {
        let Some(kafka) = kafka else {
            let reason = Some("KAFKA_BOOTSTRAP_SERVERS is not set, or a KAFKA_ setting is wrong".to_owned());
            return Self { reason, ..Self::default() };
        };
        let asked = Some(kafka.brokers().to_owned());
        match silence(kafka, ANSWER_WITHIN).await {
            Ok(None) => Self { asked, answer: true, ..Self::default() },
            Ok(Some(silence)) => {
                Self { asked, answer: false, reason: Some(silence.reason), next_step: Some(silence.fault.next_step) }
            }
            // The client's own text may quote a secret.
            Err(_) => {
                let reason = Some("librdkafka refuses the combination of the KAFKA_ settings".to_owned());
                Self { asked, answer: false, reason, next_step: Some("outbox-relay check") }
            }
        }
    }
}

impl Status {
    /// Takes in what the brokers answered. Brokers that were asked and are silent come first in what has to be done.
    pub(crate) fn take_brokers(&mut self, brokers: Brokers) {
        if let (Some(asked), Some(reason), Some(next_step)) = (&brokers.asked, &brokers.reason, brokers.next_step) {
            self.next.insert(0, step(About::Brokers, format!("no broker of {asked} answers: {reason}"), next_step));
        }
        self.brokers = Some(brokers);
    }
}
