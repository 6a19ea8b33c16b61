//! Applies each event once, in the consumer's own database.
//!
//! The relay delivers each event at least once. [`Inbox`] turns that into one effect: it marks the event in the transaction of the effect,
//! and works with any Kafka client. [`Consumer`] (feature `consumer-kafka`) is a complete consumer with handlers by event type and version,
//! retries and dead letters.
//!
//! - `inbox`: remembers which events a group has processed
//! - [`dead_letter`]: the headers of a dead letter
//! - `failed`: classifies errors and decides what happens to the event
//! - `runtime`: the builder of a consumer
//! - `group`: the group member, which polls, distributes records and commits offsets
//! - `worker`: handles the events of one partition in order
//! - `attempt`: one attempt, in one transaction
//! - `held`: the held keys of a group
//! - `dead_letter_producer`: sends dead letters
//! - `progress`: the offset that a partition has reached, and the size of its queue
//! - `pause`: the pause between two attempts; `shared`: the state that all parts share
//! - `registry`: handlers and upcasters
//! - `context`, `delivery`: the event and the transaction that a handler gets

pub mod dead_letter;
mod inbox;
#[cfg(feature = "consumer-kafka")]
mod runtime;

pub use dead_letter::{DeadLetter, Reason};
pub use inbox::{Inbox, Once};
#[cfg(feature = "consumer-kafka")]
pub use runtime::{Action, Consumer, ConsumerError, Context, Event, Failed, Policy, Retry, Stats, UnknownType};
