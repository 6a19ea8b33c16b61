//! Logs each kind of error of the client once per incident. librdkafka goes on by itself and repeats its errors.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::code::Code;

/// The time without errors after which an incident is over. librdkafka tries to reach a broker at least once a second and reports each
/// failure.
const SILENCE: Duration = Duration::from_secs(60);

/// The errors that have been logged in the current incident. It is over when a record arrives, or when no error came for [`SILENCE`].
#[derive(Default)]
pub(super) struct IncidentLog {
    logged: Vec<Option<RDKafkaErrorCode>>,
    heard_at: Option<Instant>,
}

impl IncidentLog {
    pub(super) fn log_once(&mut self, error: &KafkaError) {
        if self.is_news(error.rdkafka_error_code(), Instant::now()) {
            tracing::warn!(
                code = %Code::ConsumerOutage,
                %error,
                next_step = "check that the brokers run, the topics exist and the user may READ them",
                "Kafka cannot be read for now"
            );
        }
    }

    fn is_news(&mut self, code: Option<RDKafkaErrorCode>, now: Instant) -> bool {
        use RDKafkaErrorCode as Kafka;
        if self.heard_at.is_some_and(|heard_at| now.duration_since(heard_at) > SILENCE) {
            self.logged.clear();
        }
        self.heard_at = Some(now);
        // librdkafka reports one outage with all of these codes in turn, for each broker and each attempt.
        let outage = [Kafka::BrokerTransportFailure, Kafka::AllBrokersDown, Kafka::Resolve, Kafka::OperationTimedOut];
        let code = code.map(|code| if outage.contains(&code) { Kafka::AllBrokersDown } else { code });
        let news = !self.logged.contains(&code);
        if news {
            self.logged.push(code);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_once_however_it_is_reported_and_the_next_one_again() {
        use RDKafkaErrorCode as Code;
        let (mut incidents, start) = (IncidentLog::default(), Instant::now());
        let mut news = |code, seconds| incidents.is_news(Some(code), start + Duration::from_secs(seconds));
        assert!(news(Code::BrokerTransportFailure, 0));
        assert!(!news(Code::AllBrokersDown, 0));
        assert!(!news(Code::BrokerTransportFailure, 50));
        assert!(!news(Code::Resolve, 100));
        assert!(news(Code::TopicAuthorizationFailed, 101));
        assert!(!news(Code::AllBrokersDown, 102));
        assert!(news(Code::BrokerTransportFailure, 102 + SILENCE.as_secs() + 1));
    }
}
