//! What keeps events from being published, found and logged.
//!
//! - [`outage`]: a server that is away, from its start to its end
//! - [`stall_monitor`]: events that wait although nothing seems to block them

pub(crate) mod outage;
pub(crate) mod stall_monitor;
