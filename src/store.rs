//! Everything the relay says to Postgres: one function per statement, one file per family.
//!
//! - [`names`]: the quoted identifiers of one outbox
//! - [`schema`]: migrations, their version, the number of lanes
//! - [`session`]: a connection, the transaction that owns lanes
//! - [`claim`]: the rows of a batch
//! - [`settle`]: what becomes of them
//! - [`delivery`]: which worker publishes a lane exactly once
//! - [`holds`]: the records of what is held
//! - [`pauses`]: topics and entities that operators have paused
//! - [`dead`]: events that need a decision, and what is decided
//! - [`retention`]: removing what is old
//! - [`replay`]: events that are published again
//! - [`roles`]: who may do what
//! - [`audit`]: the book of what operators change
//! - [`plan`]: how the planner would find work
//! - [`members`]: the relays that are alive
//! - [`stats`]: counts for the status line
//!
//! For people who look, in read-only transactions ([`reading`]):
//! - [`backlog`]: what waits, by lane, route and reason, and how fast it moves
//! - [`fleet`]: the relays, and who works on which lane
//! - [`pending`]: SQL for what claims have not met, and for what holds keep
//! - [`waiting`]: what waits in a relay's lanes, how vacuum fares
//! - [`activity`]: who holds transactions and locks

pub mod names;
#[cfg(feature = "relay")]
pub mod plan;
pub mod schema;

#[cfg(feature = "relay")]
pub(crate) mod activity;
#[cfg(feature = "relay")]
pub(crate) mod audit;
#[cfg(feature = "relay")]
pub(crate) mod backlog;
#[cfg(feature = "relay")]
pub(crate) mod claim;
#[cfg(feature = "relay")]
pub(crate) mod dead;
#[cfg(feature = "relay")]
pub(crate) mod delivery;
#[cfg(feature = "relay")]
pub(crate) mod fleet;
pub(crate) mod hash;
#[cfg(feature = "relay")]
pub(crate) mod holds;
#[cfg(feature = "relay")]
pub(crate) mod members;
#[cfg(feature = "relay")]
pub(crate) mod pauses;
#[cfg(feature = "relay")]
pub(crate) mod pending;
#[cfg(feature = "relay")]
pub(crate) mod reading;
#[cfg(feature = "relay")]
pub(crate) mod replay;
#[cfg(feature = "relay")]
pub(crate) mod retention;
#[cfg(feature = "relay")]
pub(crate) mod roles;
#[cfg(feature = "relay")]
pub(crate) mod session;
#[cfg(feature = "relay")]
pub(crate) mod settle;
#[cfg(feature = "relay")]
pub(crate) mod stats;
#[cfg(feature = "relay")]
pub(crate) mod waiting;

pub use names::Names;
