//! Implements the commands that send events again.
//!
//! - [`replay`]: publishes retained events again
//! - [`dlq`]: lists dead letters of consumers and redrives them
//! - [`rate`]: limits how fast a command works

pub(crate) mod dlq;
pub(crate) mod rate;
pub(crate) mod replay;
