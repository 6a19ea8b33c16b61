//! Servers of one's own: what `outbox-relay demo`, the tests and the benchmarks run against.
//!
//! - `child_server`: a server process that ends with the process that started it, whatever ends that one.
//! - `directory`: a temporary directory that goes the same way.
//! - `postgres`: a private Postgres server, from local binaries or downloaded ones.
//! - `binaries`: where those binaries come from.
//! - `server_user`: the unprivileged user a server runs as when we are root.
//! - `port`: ports that stay ours across a restart.
//!
//! The demo itself:
//! - `flow`: its course, from the servers to the reconciliation.
//! - `servers`: private ones, or the user's own; `mock_broker`: the stand-in for Kafka; `topic`: one on a real cluster.
//! - `relay_process`: the relay, killed and started again.
//! - `shop`: the application; `consumer`: who applies its events.
//! - `observed`: what is there at the end, compared; `reconciliation`: what that comes to.
//! - `output`: what is said meanwhile.
//! - `order_flow`: the other demo, of four services that consume each other's events.

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
    Member, OrderFlowError, OrderFlowOptions, OrderReconciliation, Service, UnknownService, run as run_order_flow,
};
pub use order_flow::{SERVICE, ServiceLocation, serve as serve_service};
pub use port::free_port;
pub use postgres::{PostgresError, PostgresOptions, PrivatePostgres};
pub use reconciliation::{Promise, Reconciliation};
pub use server_user::ServerUser;
pub use servers::{HalfGiven, OwnServers, ServerChoice, ServersError, names_own_servers};
pub use topic::TopicError;
