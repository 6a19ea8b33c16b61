//! Servers of one's own: what `outbox-relay demo`, the tests and the benchmarks run against.
//!
//! - `tether`: a server process that ends with the process that started it, whatever ends that one.
//! - `directory`: a temporary directory that goes the same way.
//! - `postgres`: a private Postgres server, from local binaries or downloaded ones.
//! - `binaries`: where those binaries come from.
//! - `server_user`: the unprivileged user a server runs as when we are root.
//! - `port`: ports that stay ours across a restart.

mod binaries;
mod directory;
mod download;
mod port;
mod postgres;
mod server_user;
mod tether;

pub use binaries::{BinariesError, BinariesFrom, ServerBinaries};
pub use directory::TetheredDirectory;
pub use download::{DownloadError, cache_directory};
pub use nix::sys::signal::Signal;
pub use port::free_port;
pub use postgres::{PostgresError, PostgresOptions, PrivatePostgres};
pub use server_user::ServerUser;
pub use tether::{ServerCommand, Tether};
