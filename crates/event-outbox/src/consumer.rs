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

#[cfg(feature = "consumer-kafka")]
mod attempt;
#[cfg(feature = "consumer-kafka")]
mod context;
pub mod dead_letter;
#[cfg(feature = "consumer-kafka")]
mod dead_letter_producer;
#[cfg(feature = "consumer-kafka")]
mod delivery;
#[cfg(feature = "consumer-kafka")]
mod failed;
#[cfg(feature = "consumer-kafka")]
mod group;
#[cfg(feature = "consumer-kafka")]
mod held;
mod inbox;
#[cfg(feature = "consumer-kafka")]
mod pause;
#[cfg(feature = "consumer-kafka")]
mod progress;
#[cfg(feature = "consumer-kafka")]
mod registry;
#[cfg(feature = "consumer-kafka")]
mod runtime;
#[cfg(feature = "consumer-kafka")]
mod shared;
#[cfg(feature = "consumer-kafka")]
mod stats;
#[cfg(feature = "consumer-kafka")]
mod worker;

#[cfg(feature = "consumer-kafka")]
pub use context::Context;
pub use dead_letter::{DeadLetter, Reason};
#[cfg(feature = "consumer-kafka")]
pub use delivery::Event;
#[cfg(feature = "consumer-kafka")]
pub use failed::{Action, Failed, Policy};
pub use inbox::{Inbox, Once};
#[cfg(feature = "consumer-kafka")]
pub use runtime::{Consumer, ConsumerError, Retry, UnknownType};
#[cfg(feature = "consumer-kafka")]
pub use stats::Stats;
