//! Runs servers for `outbox-relay demo`, the tests and the benchmarks, and the two demos themselves.
//!
//! - `child_server`: a server process that ends with the process that started it, however that one ends
//! - `directory`: a temporary directory that is removed in the same way
//! - `postgres`: a private Postgres server, from local or downloaded binaries
//! - `binaries`: finds these binaries
//! - `server_user`: the unprivileged user that runs a server if we are root
//! - `port`: ports that stay ours across a restart
//!
//! The demos:
//! - `shop`: one outbox, a busy shop, a relay that is killed, and a consumer
//! - `order_flow`: four services that consume each other's events, any process of which is killed
//!
//! Parts of both:
//! - `stage`: opens the servers and clears them away; `servers`: private servers or the user's own; `mock_broker`: the mock of Kafka;
//!   `topic`: topics and groups on a real cluster
//! - `program`: a relay or a service as a process; `shown_log`: its log on the screen; `consumer`: begins a consumer
//! - `watch`: reads the topics; `outbox_row`: reads the outboxes, and compares both by the ledger
//! - `reconciliation`: the promises, and whether each was kept; `patience`: notices that nothing changes any more
//! - `output`: the messages meanwhile; `picture`: the numbers meanwhile, on a terminal

mod binaries;
mod child_server;
mod consumer;
mod directory;
mod download;
mod mock_broker;
mod order_flow;
mod outbox_row;
mod output;
mod patience;
mod picture;
mod port;
mod postgres;
mod program;
mod reconciliation;
mod server_user;
mod servers;
mod shop;
mod shown_log;
mod stage;
mod topic;
mod watch;

pub use binaries::{BinariesError, BinariesFrom, ServerBinaries};
pub use child_server::{ChildServer, ServerCommand};
pub use directory::TemporaryDirectory;
pub use download::{DownloadError, cache_directory};
pub use mock_broker::MockBrokerError;
pub use mock_broker::{SUBCOMMAND as MOCK_BROKER, serve as serve_mock_broker};
pub use nix::sys::signal::Signal;
pub use order_flow::{FlowProcess, OrderFlowOptions, Service, UnknownService, run as run_order_flow};
pub use order_flow::{SERVICE, ServiceLocation, serve as serve_service};
pub use port::free_port;
pub use postgres::{PostgresError, PostgresOptions, PrivatePostgres};
pub use reconciliation::{Promise, Reconciliation};
pub use server_user::ServerUser;
pub use servers::{HalfGiven, OwnServers, ServerChoice, ServersError, is_relay_variable, names_own_servers};
pub use shop::run;
pub use stage::{DemoError, DemoOptions};
pub use topic::TopicError;
pub use watch::WatchError;
