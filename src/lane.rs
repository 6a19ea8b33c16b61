//! Computes who owns which lanes, how far each lane has come, and which of its events wait. A lane is the unit of ordering and of
//! ownership. Nothing here does I/O.
//!
//! - [`share`]: the lanes that each worker gets
//! - [`snapshot`]: the transactions that had ended when a statement began
//! - [`progress`]: how far the claims of a lane have come, and how a claim changes the progress
//! - [`hold`]: the records of events that wait although claims have passed them
//! - [`murmur2`]: the partition of a key

pub(crate) mod hold;
pub(crate) mod murmur2;
pub(crate) mod progress;
pub(crate) mod share;
pub(crate) mod snapshot;

pub(crate) use share::{LaneRange, WorkerAssignment, at_work};
