//! Applies each event once, in the consumer's own database.
//!
//! The relay delivers each event at least once. [`Inbox`] turns that into one effect: it marks the event in the transaction of the effect,
//! and works with any Kafka client. [`Consumer`] (feature `consumer-kafka`) is a complete consumer with handlers by event type and version,
//! retries and dead letters.
//!
//! - `inbox`: remembers which events a group has processed
//! - [`dead_letter`]: the headers of a dead letter
//! - `runtime`: the complete consumer, and its parts
//! - `testing`: calls the handlers of a consumer in tests, without servers

pub mod dead_letter;
mod inbox;
#[cfg(feature = "consumer-kafka")]
mod runtime;

pub use dead_letter::{DeadLetter, Reason};
pub use inbox::{Inbox, Once};
#[cfg(feature = "consumer-kafka")]
pub use runtime::{
    Action, BatchContext, BatchEvent, Consumer, ConsumerError, Context, Control, Event, Failed, Kind, Lost, Policy,
    Rejected, Retry, Stats, UnknownType, testing,
};
