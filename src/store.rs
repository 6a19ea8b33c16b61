//! Everything the relay says to Postgres: one function per statement, one file per family.
//!
//! - [`names`]: the quoted identifiers of one outbox
//! - [`schema`]: migrations, their version, the number of lanes
//! - [`session`]: a connection, the transaction that owns lanes
//! - [`snapshot`]: which transactions a statement saw as running
//! - [`claim`]: the rows of a batch
//! - [`settle`]: what becomes of them
//! - [`holds`]: topics and entities held back
//! - [`plan`]: how the planner would find work
//! - [`members`]: the relays that are alive
//! - [`stats`]: counts for the status line

pub mod names;
pub mod plan;
pub mod schema;

pub(crate) mod claim;
mod hash;
pub(crate) mod holds;
pub(crate) mod members;
pub(crate) mod session;
pub(crate) mod settle;
pub(crate) mod snapshot;
pub(crate) mod stats;

pub use names::Names;
