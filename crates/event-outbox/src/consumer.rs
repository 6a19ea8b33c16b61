//! The other half: one effect per event.
//!
//! The relay delivers at least once. [`Inbox`] makes that one effect, in the transaction of the effect, with any Kafka client
//! (feature `consumer`); [`Consumer`] is a whole consumer: handlers by type and version, retries, dead letters (feature
//! `consumer-kafka`).
//!
//! - `inbox`: what a group has processed
//! - [`dead_letter`]: what a dead letter says of itself
//! - `failed`: what an error means, and what becomes of the event
//! - `runtime`: the consumer as its user builds it
//! - `group`: the member of the group: polls, shares out, commits offsets
//! - `worker`: a partition, one event after the other
//! - `attempt`: one transaction
//! - `held`: keys that are held
//! - `dead_letter_producer`: sends dead letters
//! - `progress`: how far a partition is, and how much waits for it
//! - `pause`: between two attempts; `shared`: what all parts share
//! - `registry`: handlers and upcasters
//! - `context`, `delivery`: what a handler sees

pub mod dead_letter;
mod inbox;
#[cfg(feature = "consumer-kafka")]
mod runtime;

pub use dead_letter::{DeadLetter, Reason};
pub use inbox::{Inbox, Once};
#[cfg(feature = "consumer-kafka")]
pub use runtime::{Action, Consumer, ConsumerError, Context, Event, Failed, Policy, Retry, Stats, UnknownType};
