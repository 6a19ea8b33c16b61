//! Takes over tables from which other programs publish today. Writes SQL and settings; changes nothing by itself.
//!
//! - [`trigger`]: the trigger that turns a row of any table into an event
//! - [`debezium`]: the connector of Debezium's outbox event router

pub(crate) mod debezium;
pub(crate) mod trigger;
