//! Finds and logs the reasons that keep events from being published.
//!
//! - [`outage`]: a server that is away, from its start to its end
//! - [`stall_monitor`]: events that wait although nothing seems to block them

pub(crate) mod outage;
pub(crate) mod stall_monitor;
