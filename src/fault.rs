//! Classifies errors of Postgres and Kafka: what an error means for the relay, whether it costs the row an attempt, and the operator's next
//! step. Errors are matched by code, never by the text of a message.
//!
//! - `kafka`, `postgres`: the tables of codes
//! - `not_connected`: the error of sessions that were not opened
//! - `page`: renders the tables as docs/reference/failures.md
//!
//! `relay::pace` has the pauses between attempts.

mod describe;
mod kafka;
mod not_connected;
#[cfg(test)]
mod page;
mod postgres;

pub(crate) use describe::{describe, shortened};
#[cfg(test)]
pub(crate) use kafka::PRODUCE_CODES;
pub(crate) use kafka::{
    NO_ANSWER, TOKEN_REFUSED, TOKEN_SERVER_AWAY, classify_kafka, codes as kafka_codes,
    runbook_codes as kafka_runbook_codes,
};
pub(crate) use not_connected::{NotConnected, READ_ONLY};
pub(crate) use postgres::{classify_database, missing_outbox};

use event_outbox::code::Code;

/// The class of an error, which decides how the relay reacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A server is unavailable or busy: the relay waits, then does the same again. Costs no attempt.
    Outage,
    /// One topic cannot be written: the relay holds its rows. Costs no attempt.
    Destination,
    /// The row itself cannot be sent: the policy `RELAY_ON_POISON` decides. Costs the row an attempt.
    Row,
    /// A person has to change something first; the relay keeps trying anyway. Costs no attempt.
    ActionRequired,
}

/// The meaning of an error, and the operator's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) class: Class,
    /// The code of its entry in docs/how-to/runbook.md.
    pub(crate) code: Code,
    /// The operator's next step.
    pub(crate) next_step: &'static str,
}

const fn fault(class: Class, code: Code, next_step: &'static str) -> Fault {
    Fault { class, code, next_step }
}
