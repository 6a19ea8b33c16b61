//! Everything the relay says to Postgres: one function per statement, one file per family.
//!
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
//! - [`routes`]: the topics of the events that wait
//! - [`audit`]: the book of what operators change
//! - [`plan`]: how the planner would find work
//! - [`relay_registry`]: the relays that are alive
//! - [`counts`]: counts for the status line
//!
//! For people who look, in read-only transactions ([`read_only`]):
//! - [`backlog`]: what waits, by lane, route and reason, and how fast it moves
//! - [`fleet`]: the relays, and who works on which lane
//! - [`pending`]: SQL for what claims have not met, and for what holds keep
//! - [`queue_head`]: the first events that wait in a relay's lanes, how vacuum fares
//! - [`activity`]: who holds transactions and locks

pub mod plan;

pub(crate) mod activity;
pub(crate) mod audit;
pub(crate) mod backlog;
pub(crate) mod claim;
pub(crate) mod counts;
pub(crate) mod dead;
pub(crate) mod delivery;
pub(crate) mod fleet;
pub(crate) mod holds;
pub(crate) mod pauses;
pub(crate) mod pending;
pub(crate) mod queue_head;
pub(crate) mod read_only;
pub(crate) mod relay_registry;
pub(crate) mod replay;
pub(crate) mod retention;
pub(crate) mod roles;
pub(crate) mod routes;
pub(crate) mod session;
pub(crate) mod settle;
