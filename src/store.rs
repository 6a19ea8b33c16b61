//! Holds every SQL statement of the relay: one function per statement, one file per subject.
//!
//! - [`connect`]: opens sessions, on the right server of several
//! - [`session`]: a worker's connection, and the transaction that locks lanes
//! - [`search_path`]: keeps users' schemas out of every statement
//! - [`claim`]: reads and locks the rows of a batch
//! - [`settle`]: settles claimed rows that were not published
//! - [`delivery`]: which worker publishes a lane exactly once
//! - [`held_keys`]: the keys that consumers hold
//! - [`holds`]: the rows of the hold table
//! - [`pauses`]: topics and entities that operators have paused
//! - [`dead`]: events that need a decision, and what is decided
//! - [`discarded`]: events about which somebody has decided
//! - [`retention`]: removing what is old
//! - [`replay`]: events that are published again
//! - [`parts`]: what an outbox consists of
//! - [`roles`]: who may do what
//! - [`routes`]: the topics of the events that wait
//! - [`sources`]: the topics that consumer groups read
//! - [`audit`]: the book of what operators change
//! - [`plan`]: how the planner would find work
//! - [`app_table`]: what the catalog knows about a table of the application
//! - [`adopt`]: hands the table of a polling loop over
//! - [`capture`]: turns the changes of a table of the application into events
//! - [`short_locks`]: strong locks on a table in use
//! - [`relay_registry`]: the relays that are alive
//! - [`relay_conflicts`]: live relays that do not go together
//! - [`columns`]: the columns of a table of the application
//! - [`counts`]: counts for the status line
//!
//! For people who look, in read-only transactions ([`read_only`]):
//! - [`backlog`]: what waits, by lane, route and reason, and how fast it moves
//! - [`fleet`]: the relays, and who works on which lane
//! - [`pending`]: SQL for what claims have not met
//! - [`held`]: why an event is held
//! - [`kinds`]: the types and topics of the events that there are
//! - [`queue_head`]: the first events that wait in a relay's lanes, how vacuum fares
//! - [`activity`]: who holds transactions and locks

pub mod plan;

pub(crate) mod activity;
pub(crate) mod adopt;
pub(crate) mod app_table;
pub(crate) mod audit;
pub(crate) mod backlog;
pub(crate) mod capture;
pub(crate) mod claim;
pub(crate) mod columns;
pub(crate) mod connect;
pub(crate) mod counts;
pub(crate) mod dead;
pub(crate) mod delivery;
pub(crate) mod discarded;
pub(crate) mod fleet;
pub(crate) mod held;
pub(crate) mod held_keys;
pub(crate) mod holds;
pub(crate) mod kinds;
pub(crate) mod parts;
pub(crate) mod pauses;
pub(crate) mod pending;
pub(crate) mod queue_head;
pub(crate) mod read_only;
pub(crate) mod relay_conflicts;
pub(crate) mod relay_registry;
pub(crate) mod replay;
pub(crate) mod retention;
pub(crate) mod roles;
pub(crate) mod routes;
pub(crate) mod search_path;
pub(crate) mod session;
pub(crate) mod settle;
pub(crate) mod short_locks;
pub(crate) mod sources;
pub(crate) mod wake_up;
