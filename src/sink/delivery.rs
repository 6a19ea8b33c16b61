//! Tracks the outcome of each record of a batch. The producer's thread reports the outcomes, and the worker waits for them.
//!
//! A record is open -> acked, or open -> failed. A record that is still open when the worker stops waiting is *unknown*: it may be on the
//! topic.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{NoCustomPartitioner, ProducerContext};
use tokio::sync::Notify;

use crate::sink::broker::SuspicionSender;
use crate::sink::client::log_line;
use crate::sink::produce_error;

/// The outcome of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The record has no report yet: it may or may not be on the topic.
    Open,
    /// The record is on the topic, on all in-sync replicas.
    Acked,
    /// The record was refused, or dropped with its producer.
    Failed(RDKafkaErrorCode),
}

#[derive(Debug, Default)]
struct Batch {
    number: u32,
    open: usize,
    outcomes: Vec<Outcome>,
    /// The time of the last report, or of the start.
    moved_at: Option<Instant>,
    /// The last error of records that are sent again, and its time.
    error: Option<(RDKafkaErrorCode, Instant)>,
}

/// The time after which an error no longer explains why there is no answer. By default librdkafka retries at least every second.
const ERROR_COUNTS: Duration = Duration::from_secs(10);

/// The outcomes of a batch, shared between a worker and its producer's thread.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    batch: Mutex<Batch>,
    settled: Notify,
    /// The number of times that a connection broke so far.
    breaks: AtomicU64,
}

impl Deliveries {
    fn batch(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a batch of `records` and returns its number. Reports of earlier batches are ignored from now on.
    pub(crate) fn begin(&self, records: usize) -> u32 {
        let mut batch = self.batch();
        batch.number = batch.number.wrapping_add(1);
        batch.open = records;
        batch.error = None;
        batch.moved_at = Some(Instant::now());
        batch.outcomes.clear();
        batch.outcomes.resize(records, Outcome::Open);
        batch.number
    }

    /// Waits until no record is open. Cancel safe.
    pub(crate) async fn all_settled(&self) {
        loop {
            // Registers for the notification before it checks, so that no report in between is missed.
            let settled = self.settled.notified();
            if self.are_settled() {
                return;
            }
            settled.await;
        }
    }

    /// Returns true if no record is open.
    pub(crate) fn are_settled(&self) -> bool {
        self.batch().open == 0
    }

    /// Returns true if a record of the batch is acknowledged.
    pub(crate) fn has_acked(&self) -> bool {
        self.batch().outcomes.contains(&Outcome::Acked)
    }

    /// Returns the time since the last report of the batch, or since its start.
    pub(crate) fn quiet_for(&self) -> Duration {
        self.batch().moved_at.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Returns true if this is the current batch and a record of it is open.
    pub(crate) fn is_open(&self, number: u32) -> bool {
        let batch = self.batch();
        batch.number == number && batch.open > 0
    }

    /// Returns the outcomes known so far.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.batch().outcomes.clone()
    }

    fn report(&self, opaque: usize, outcome: Outcome) {
        let (number, slot) = ((opaque >> 32) as u32, opaque & 0xffff_ffff);
        let mut batch = self.batch();
        if batch.number != number {
            return;
        }
        if let Some(entry @ Outcome::Open) = batch.outcomes.get_mut(slot) {
            *entry = outcome;
            batch.moved_at = Some(Instant::now());
            batch.open -= 1;
            if batch.open == 0 {
                self.settled.notify_one();
            }
        }
    }

    /// Returns why the open records of the batch have not been acknowledged, if a broker has reported an error lately.
    pub(crate) fn retried_error(&self) -> Option<RDKafkaErrorCode> {
        self.batch().error.filter(|(_, at)| at.elapsed() < ERROR_COUNTS).map(|(code, _)| code)
    }

    fn note_error(&self, code: RDKafkaErrorCode) {
        self.batch().error = Some((code, Instant::now()));
    }

    /// Returns the number of times that a connection broke so far.
    pub(crate) fn breaks(&self) -> u64 {
        self.breaks.load(Ordering::Relaxed)
    }

    /// Marks a record as failed that was refused before it was queued, or will not be queued.
    pub(crate) fn refuse(&self, opaque: usize, code: RDKafkaErrorCode) {
        self.report(opaque, Outcome::Failed(code));
    }
}

/// Returns true for librdkafka's line about a connection that worked and broke. librdkafka itself closes a connection to a bootstrap address
/// when it knows the broker's own, and to a coordinator that has moved.
fn is_break(facility: &str, message: &str) -> bool {
    facility == "FAIL"
        && message.contains("in state UP")
        && !message.contains("(_DESTROY")
        && !message.contains("nodename change")
}

/// Packs the number of a batch and a record's index in it into one word, which travels with the record.
pub(crate) fn opaque(batch: u32, slot: usize) -> usize {
    ((batch as usize) << 32) | slot
}

/// The context that receives librdkafka's callbacks.
pub(crate) struct Context {
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) suspicions: SuspicionSender,
    /// True if the operator has asked for librdkafka's debug lines (`KAFKA_DEBUG`).
    pub(crate) is_debugged: bool,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.suspicions.login.log(facility, message);
        if let Some(code) = produce_error::parse(facility, message) {
            self.deliveries.note_error(code);
        }
        if is_break(facility, message) {
            self.deliveries.breaks.fetch_add(1, Ordering::Relaxed);
        }
        if self.is_debugged || !matches!(level, RDKafkaLogLevel::Debug) {
            log_line(level, facility, message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.suspicions.client_error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.suspicions.login.token()
    }
}

impl ProducerContext<NoCustomPartitioner> for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let outcome = match result {
            Ok(_) => Outcome::Acked,
            Err((error, _)) => Outcome::Failed(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        self.deliveries.report(opaque, outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_report_of_an_earlier_batch_does_not_count() {
        let deliveries = Deliveries::default();
        let first = deliveries.begin(2);
        deliveries.report(opaque(first, 0), Outcome::Acked);
        let second = deliveries.begin(1);
        deliveries.report(opaque(first, 0), Outcome::Acked);
        assert_eq!(deliveries.outcomes(), [Outcome::Open]);
        deliveries.report(opaque(second, 0), Outcome::Acked);
        deliveries.report(opaque(second, 0), Outcome::Failed(RDKafkaErrorCode::PurgeQueue));
        deliveries.all_settled().await;
        assert_eq!(deliveries.outcomes(), [Outcome::Acked]);
    }

    #[test]
    fn only_a_connection_that_worked_can_break() {
        for (line, is_one) in [
            ("[thrd:TxnCoordinator]: TxnCoordinator: Disconnected (after 7ms in state UP) (_TRANSPORT)", true),
            (
                "[thrd:a:9092/1]: a:9092/1: 1 request(s) timed out: disconnect (after 60000ms in state UP) (_TIMED_OUT)",
                true,
            ),
            ("[thrd:a:9092/1]: a:9092/1: Connection refused (after 0ms in state CONNECT) (_TRANSPORT)", false),
            ("[thrd:a:9092/bootstrap]: Decommissioning this broker (after 1ms in state UP) (_DESTROY_BROKER)", false),
            (
                "[thrd:GroupCoordinator]: Closing connection due to nodename change (after 9ms in state UP) (_TRANSPORT)",
                false,
            ),
        ] {
            assert_eq!(is_break("FAIL", line), is_one, "{line}");
        }
        assert!(!is_break("STATE", "in state UP"));
    }

    #[test]
    fn an_error_is_of_its_batch_alone() {
        let deliveries = Deliveries::default();
        deliveries.begin(1);
        assert_eq!(deliveries.retried_error(), None);
        deliveries.note_error(RDKafkaErrorCode::NotEnoughReplicas);
        assert_eq!(deliveries.retried_error(), Some(RDKafkaErrorCode::NotEnoughReplicas));
        deliveries.begin(1);
        assert_eq!(deliveries.retried_error(), None);
    }
}
