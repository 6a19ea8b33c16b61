//! Lanes: the unit of ordering and of ownership. Pure: no I/O.
//!
//! - [`share`]: which lanes a worker gets
//! - [`snapshot`]: which transactions a statement saw as ended
//! - [`progress`]: how far the claims of a lane have come, and what a claim changes of it
//! - [`hold`]: what keeps events from being published although claims have passed them

pub(crate) mod hold;
pub(crate) mod progress;
pub(crate) mod share;
pub(crate) mod snapshot;

pub(crate) use share::{LaneRange, WorkerAssignment, at_work};
