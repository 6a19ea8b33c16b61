//! Finds out at once whether a cluster answers, for commands that would otherwise wait for it without a word.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::KafkaSettings;
use crate::fault::{self, Fault};
use crate::sink::login::Complaint;
use crate::sink::reader::Reader;

/// The time limit of one request. After it the client's errors are looked at.
const ASKED_FOR: Duration = Duration::from_millis(200);

/// A cluster that does not answer.
#[derive(Debug, Clone)]
pub(crate) struct Silence {
    pub(crate) reason: String,
    pub(crate) fault: Fault,
}

/// Returns why the cluster does not answer, as soon as the client knows, at the latest after `within`; `None` if it answers.
///
/// # Errors
/// The error that librdkafka finds in the settings. Its message may quote a setting.
pub(crate) async fn silence(kafka: &KafkaSettings, within: Duration) -> Result<Option<Silence>, KafkaError> {
    let reader = Reader::new(kafka)?;
    let asked = tokio::task::spawn_blocking(move || ask(&reader, within)).await;
    asked.map_err(|_| KafkaError::Canceled)
}

fn ask(reader: &Reader, within: Duration) -> Option<Silence> {
    let deadline = Instant::now() + within;
    loop {
        if reader.answers(ASKED_FOR) {
            return None;
        }
        let complaint = reader.lost_all();
        if complaint.is_some() || Instant::now() >= deadline {
            let unknown = || {
                let reason = format!("no answer within {} s", within.as_secs());
                (reason, fault::classify_kafka(RDKafkaErrorCode::AllBrokersDown))
            };
            let (reason, fault) = complaint.map_or_else(unknown, |Complaint { reason, fault, .. }| (reason, fault));
            return Some(Silence { reason, fault });
        }
    }
}
