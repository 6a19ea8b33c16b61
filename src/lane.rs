//! Lanes: the unit of ordering and of ownership.
//!
//! - [`share`]: which lanes a worker is due
//! - [`frontier`]: from which id a claim has to look

pub(crate) mod frontier;
pub(crate) mod share;

pub(crate) use share::{LaneRange, at_work};
