//! Runs servers for `outbox-relay demo`, the tests and the benchmarks, and the two demos themselves.
//!
//! - `child_server`: a server process that ends with the process that started it, however that one ends
//! - `directory`: a temporary directory that is removed in the same way
//! - `postgres`: a private Postgres server, from local or downloaded binaries
//! - `binaries`: finds these binaries
//! - `server_user`: the unprivileged user that runs a server if we are root
//! - `port`: ports that stay ours across a restart
//!
//! The demo itself:
//! - `flow`: its steps, from the servers to the reconciliation
//! - `servers`: private servers or the user's own; `mock_broker`: the mock of Kafka; `topic`: a topic on a real cluster
//! - `relay_process`: the relay, killed and started again
//! - `shop`: the application; `consumer`: applies its events
//! - `observed`: gathers and compares the results; `reconciliation`: the report of the comparison
//! - `output`: the messages meanwhile
//! - `order_flow`: the other demo, of four services that consume each other's events

mod binaries;
mod child_server;
mod consumer;
mod directory;
mod download;
mod flow;
mod mock_broker;
mod observed;
mod order_flow;
mod output;
mod port;
mod postgres;
mod reconciliation;
mod relay_process;
mod server_user;
mod servers;
mod shop;
mod topic;

pub use binaries::{BinariesError, BinariesFrom, ServerBinaries};
pub use child_server::{ChildServer, ServerCommand};
pub use consumer::ConsumerError;
pub use directory::TemporaryDirectory;
pub use download::{DownloadError, cache_directory};
pub use flow::{DemoError, DemoOptions, run};
pub use mock_broker::MockBrokerError;
pub use mock_broker::{SUBCOMMAND as MOCK_BROKER, serve as serve_mock_broker};
pub use nix::sys::signal::Signal;
pub use order_flow::{
    FlowProcess, OrderFlowError, OrderFlowOptions, OrderReconciliation, Service, UnknownService, run as run_order_flow,
};
pub use order_flow::{SERVICE, ServiceLocation, serve as serve_service};
pub use port::free_port;
pub use postgres::{PostgresError, PostgresOptions, PrivatePostgres};
pub use reconciliation::{Promise, Reconciliation};
pub use server_user::ServerUser;
pub use servers::{HalfGiven, OwnServers, ServerChoice, ServersError, is_relay_variable, names_own_servers};
pub use topic::TopicError;
