//! Runs a real PgBouncer in front of a test's database.

use std::fs;
use std::path::PathBuf;

use crate::demo::{ChildServer, ServerCommand, ServerUser, Signal, TemporaryDirectory, free_port};
use anyhow::{Context, ensure};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use super::database::TestDatabase;
use super::eventually::{SOON, eventually};
use super::trial::Missing;

/// A running PgBouncer. Dropping it stops it. The order of the fields is the order of dropping.
#[derive(Debug)]
pub struct PgBouncer {
    server: ChildServer,
    _directory: TemporaryDirectory,
    url: String,
}

impl PgBouncer {
    /// Starts a PgBouncer in this pool mode, else with its defaults, and waits until a client can connect. Returns `Err` with [`Missing`] if none is installed.
    pub async fn start(database: &TestDatabase, mode: &str) -> anyhow::Result<Self> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(PathBuf::from);
        let program = program
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| Missing("pgbouncer is not installed".to_owned()))?;
        let url = database.url();
        let (user, rest) = url.trim_start_matches("postgres://").split_once(':').context("no user")?;
        let (password, rest) = rest.split_once('@').context("no password")?;
        let (host, _) = rest.split_once('/').context("no database")?;
        let (host, server_port) = host.split_once(':').context("no port")?;
        let (port, name) = (free_port()?, database.name());
        let run_as = ServerUser::in_place_of_root();
        let mut directory = TemporaryDirectory::create(run_as.as_ref())?;
        let configuration = directory.path().join("pgbouncer.ini");
        fs::write(
            &configuration,
            format!(
                "[databases]\n{name} = host={host} port={server_port} dbname={name} user={user} password={password}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\nunix_socket_dir =\n\
                 pool_mode = {mode}\n"
            ),
        )?;
        let command = ServerCommand::new(program, directory.path(), &directory.path().join("log"))
            .args([&configuration])
            .stops_on(Signal::SIGTERM, SOON)
            .as_user(run_as);
        let mut server = ChildServer::start(&command)?;
        directory.outlives(&server)?;
        let url = format!("postgres://{user}:{password}@127.0.0.1:{port}/{name}?sslmode=disable");
        let options: PgConnectOptions = url.parse()?;
        let options = options.extra_float_digits(None);
        eventually("PgBouncer lets a client through", SOON, || async {
            PgConnection::connect_with(&options).await.map_err(|error| error.to_string())
        })
        .await;
        ensure!(server.is_running(), "{}", server.log_tail());
        Ok(Self { server, _directory: directory, url })
    }

    /// Returns the URL of the test's database through the pooler.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops the pooler. Blocks.
    pub fn stop(mut self) {
        self.server.stop();
    }
}
