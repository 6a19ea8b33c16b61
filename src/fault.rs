//! What an error of Postgres or Kafka means for the relay, whether it costs the row an attempt, and what the operator does next. Matched by
//! code, never by the text of a message.
//!
//! - `kafka`, `postgres`: the tables, as data
//! - `page`: the same for people, docs/reference/failures.md
//!
//! How long is waited before what may heal is tried again is in `relay::pace`.

mod describe;
mod kafka;
#[cfg(test)]
mod page;
mod postgres;

pub(crate) use describe::{describe, shortened};
pub(crate) use kafka::classify_kafka;
pub(crate) use postgres::classify_database;

use event_outbox::code::Code;

/// What an error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A server is away or busy: wait, then do the same again. Costs no attempt.
    Outage,
    /// One topic cannot be written: hold its rows. Costs no attempt.
    Destination,
    /// The row itself cannot be sent: by policy. Costs the row an attempt.
    Row,
    /// Somebody has to change something before it can work; tried again all the same. Costs no attempt.
    ActionRequired,
}

/// What an error means, and the operator's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) class: Class,
    /// Its entry in docs/how-to/runbook.md.
    pub(crate) code: Code,
    /// The operator's next step.
    pub(crate) next_step: &'static str,
}

const fn fault(class: Class, code: Code, next_step: &'static str) -> Fault {
    Fault { class, code, next_step }
}
