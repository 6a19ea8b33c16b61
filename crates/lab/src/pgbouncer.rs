//! Runs a real PgBouncer in front of a test's database.

use std::fs;
use std::path::{Path, PathBuf};

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
    /// Starts a PgBouncer in this pool mode, else with its defaults, and waits until a client can connect. By transaction, it has several
    /// servers, and gives each transaction the one that has waited longest, as it also happens under load: what belongs together and is in
    /// no transaction comes apart. Returns `Err` with [`Missing`] if none is installed.
    pub async fn start(database: &TestDatabase, mode: &str) -> anyhow::Result<Self> {
        Self::start_before(&database.url(), mode, None).await
    }

    /// Starts a PgBouncer in this pool mode that has one server for all clients, and lets them wait for it for two minutes. Returns `Err` with
    /// [`Missing`] if none is installed.
    pub async fn with_one_server(database: &TestDatabase, mode: &str) -> anyhow::Result<Self> {
        Self::launch(&database.url(), mode, "default_pool_size = 1\nquery_wait_timeout = 120\n", None).await
    }

    /// Starts a PgBouncer before the database of this URL, whose user all clients become. With a certificate and its key, both PEM files, it
    /// accepts TLS alone, as managed poolers do; the URL of the pooler then has `sslmode=require`. Returns `Err` with [`Missing`] if none is
    /// installed.
    pub async fn start_before(url: &str, mode: &str, tls: Option<[&Path; 2]>) -> anyhow::Result<Self> {
        let rotation = match mode {
            "transaction" => "server_round_robin = 1\nmin_pool_size = 3\n",
            _ => "",
        };
        Self::launch(url, mode, rotation, tls).await
    }

    /// Starts a PgBouncer with these lines in its configuration.
    async fn launch(url: &str, mode: &str, lines: &str, tls: Option<[&Path; 2]>) -> anyhow::Result<Self> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(PathBuf::from);
        let program = program
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| Missing("pgbouncer is not installed".to_owned()))?;
        let (user, rest) = url.trim_start_matches("postgres://").split_once(':').context("no user")?;
        let (password, rest) = rest.split_once('@').context("no password")?;
        let (host, name) = rest.split_once('/').context("no database")?;
        let (name, _) = name.split_once('?').unwrap_or((name, ""));
        let (host, server_port) = host.split_once(':').context("no port")?;
        let port = free_port()?;
        let run_as = ServerUser::in_place_of_root();
        let mut directory = TemporaryDirectory::create(run_as.as_ref())?;
        let configuration = directory.path().join("pgbouncer.ini");
        let mut encryption = String::new();
        if let Some([certificate, key]) = tls {
            let copies = ["pooler.pem", "pooler.key"].map(|name| directory.path().join(name));
            fs::write(&copies[0], fs::read(certificate)?)?;
            fs::write(&copies[1], fs::read(key)?)?;
            let [certificate, key] = copies.each_ref().map(|path| path.display());
            encryption = format!(
                "client_tls_sslmode = require\nclient_tls_cert_file = {certificate}\nclient_tls_key_file = {key}\n"
            );
        }
        fs::write(
            &configuration,
            format!(
                "[databases]\n{name} = host={host} port={server_port} dbname={name} user={user} password={password}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\nunix_socket_dir =\n\
                 pool_mode = {mode}\n{lines}{encryption}"
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
        eventually("PgBouncer answers", SOON, || async {
            match PgConnection::connect_with(&options).await {
                Ok(_) => Ok(()),
                // A pooler that asks for TLS refuses this client, and only then.
                Err(sqlx::Error::Database(_)) if tls.is_some() => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        let url = if tls.is_some() { url.replace("sslmode=disable", "sslmode=require") } else { url };
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
