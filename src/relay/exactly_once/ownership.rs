//! The lanes that a worker publishes in transactions, and the fault of an error of a transaction.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::fault::{self, Class, Fault};
use crate::sink::progress::METADATA_MAX_BYTES;
use crate::sink::transactions::TransactionError;
use event_outbox::code::Code;

/// Metadata is not made smaller than this, however little a broker accepts.
const METADATA_MIN_BYTES: usize = 256;

/// The lanes that a worker publishes in transactions, as far as the worker knows.
#[derive(Debug)]
pub(crate) struct Ownership {
    pub(super) transactional_id: String,
    /// The transactional id of the start. Later ones have a number behind it.
    first_id: String,
    /// The number of transactional ids that were left.
    left: u32,
    /// True if the last transaction has written records: its id is busy until each of their partitions has taken the end of the transaction.
    pub(super) has_written: bool,
    /// The lanes that are its own, with their epochs, and nothing of them in doubt. Of the producer it has now.
    pub(super) settled: BTreeMap<i16, i64>,
    /// The time since which the worker has waited for lanes that another worker has not released.
    pub(super) contested_since: Option<Instant>,
    /// The most text per lane and batch.
    pub(super) metadata_bytes: usize,
}

impl Ownership {
    /// Begins without lanes, for worker `index` of the relay `relay`; `prefix` is the name of the progress group.
    pub(crate) fn new(prefix: &str, relay: uuid::Uuid, index: usize) -> Self {
        let first_id = format!("{prefix}.{relay}.{index}");
        Self {
            transactional_id: first_id.clone(),
            first_id,
            left: 0,
            has_written: false,
            settled: BTreeMap::new(),
            contested_since: None,
            metadata_bytes: METADATA_MAX_BYTES,
        }
    }

    pub(crate) fn transactional_id(&self) -> &str {
        &self.transactional_id
    }

    /// Forgets which lanes are settled: see the head of this file.
    pub(crate) fn invalidate(&mut self) {
        self.settled.clear();
    }

    /// Goes on under a new transactional id, without lanes. Returns the id that is left.
    pub(super) fn leave_id(&mut self) -> String {
        self.invalidate();
        self.has_written = false;
        self.left += 1;
        std::mem::replace(&mut self.transactional_id, format!("{}-{}", self.first_id, self.left))
    }

    /// A broker may accept less than the default.
    pub(super) fn metadata_was_refused(&mut self) {
        self.metadata_bytes = (self.metadata_bytes / 2).max(METADATA_MIN_BYTES);
    }
}

/// Returns the name under which [the obstacles](crate::relay::obstacles::Obstacles) lists transactions of a worker that do not come about.
pub(crate) fn transactions_of(worker: usize) -> String {
    format!("transactions of worker {worker}")
}

/// The relay of a transactional id.
pub(super) fn relay_of(transactional_id: &str) -> Option<&str> {
    let (rest, _worker) = transactional_id.rsplit_once('.')?;
    rest.rsplit_once('.').map(|(_prefix, relay)| relay)
}

/// The fault of an error without a code.
const UNUSABLE: Fault =
    Fault { class: Class::Outage, code: Code::TransactionsUnusable, next_step: "check that the brokers run" };

/// Returns the fault of an error of Kafka that stops a transaction.
pub(crate) fn fault_of(error: &TransactionError) -> Fault {
    match error {
        TransactionError::Kafka(_) => error.code().map_or(UNUSABLE, fault::classify_kafka),
        TransactionError::Fenced => {
            Fault { class: Class::Outage, code: Code::ProducerFenced, next_step: "none: it goes back to work" }
        }
        TransactionError::Topic { .. } => Fault {
            class: Class::ActionRequired,
            code: Code::ProgressTopic,
            next_step: "create the topic, or let the relay's user create it; see `outbox-relay check`",
        },
    }
}

/// An error without what librdkafka may quote.
pub(crate) fn describe_transaction(error: &TransactionError) -> String {
    match error.code() {
        Some(code) => format!("{code:?}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transactional_id_of_a_worker_names_its_relay() {
        let relay = uuid::Uuid::from_u128(7);
        let mut ownership = Ownership::new("outbox-relay.1", relay, 2);
        let first = ownership.leave_id();
        let second = ownership.leave_id();
        assert!(first != second && second != ownership.transactional_id());
        for id in [first.as_str(), second.as_str(), ownership.transactional_id()] {
            assert_eq!(relay_of(id), Some(relay.to_string().as_str()), "{id}");
        }
    }
}
