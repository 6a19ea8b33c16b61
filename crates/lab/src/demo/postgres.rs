//! Runs a private Postgres server on a port of 127.0.0.1, with a password that nobody else knows, in a directory that is removed with it.
//!
//! A server is either running, or stopped with its data kept (after [`PrivatePostgres::shut_down`], [`PrivatePostgres::stop_hard`] or
//! [`PrivatePostgres::kill`]). [`PrivatePostgres::start_again`] starts a stopped server on the same port. Dropping the server in either
//! state removes everything.

mod copy;
mod initdb;

use std::io;
use std::path::Path;
use std::time::Duration;

use rand::Rng;
use rand::distr::Alphanumeric;
use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use tokio::time::{Instant, sleep, timeout};

use super::Signal;
use super::binaries::{BinariesError, BinariesFrom, ServerBinaries};
use super::child_server::{ChildServer, ServerCommand};
use super::directory::TemporaryDirectory;
use super::port::{free_port, is_free};
use super::server_user::ServerUser;

/// The superuser of every private server.
const USER: &str = "postgres";

/// The longest start of a server, including a crash recovery on a slow disk.
const START_WITHIN: Duration = Duration::from_secs(60);

/// The longest fast shutdown before SIGKILL. It writes a checkpoint of all shared buffers.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// The pause between two attempts to connect to a starting server.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

/// The longest handshake of one attempt.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(2);

/// The number of ports to try, because another process may take a free port before the server listens on it.
const PORTS_TO_TRY: u32 = 5;

/// The options of a private server.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The source of its binaries.
    pub binaries: BinariesFrom,
    /// True if commits survive a crash of the machine (fsync). A server for tests is faster without.
    pub durable: bool,
    /// The setting `max_connections`.
    pub max_connections: u32,
    /// Additional settings, with names and values as in postgresql.conf. They take precedence over ours.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    /// Returns options with any binaries, durable, with 100 connections.
    fn default() -> Self {
        Self { binaries: BinariesFrom::Anywhere, durable: true, max_connections: 100, settings: Vec::new() }
    }
}

/// The reason why a private server does not run.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No binaries were found.
    #[error("no Postgres server to start")]
    Binaries(#[from] BinariesError),
    /// A file or a process could not be created.
    #[error("cannot prepare or start the private Postgres server")]
    System(#[from] io::Error),
    /// `initdb` failed.
    #[error("initdb failed:\n{0}")]
    Initdb(String),
    /// `pg_basebackup` failed.
    #[error("the server cannot be copied:\n{0}")]
    Copy(String),
    /// The server ended while it was starting.
    #[error("the private Postgres server ended while it started; its log ends with:\n{log}")]
    Ended {
        /// The end of its log.
        log: String,
    },
    /// The server runs, but accepts no connection.
    #[error("the private Postgres server accepts no connection after {START_WITHIN:?}; its log ends with:\n{log}")]
    NotReady {
        /// The end of its log.
        log: String,
        /// The error of the last attempt.
        #[source]
        source: sqlx::Error,
    },
}

/// A private server. The order of the fields is the order of dropping: the server before its directory.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: ChildServer,
    directory: TemporaryDirectory,
    user: Option<ServerUser>,
    binaries: ServerBinaries,
    options: PostgresOptions,
    port: u16,
    password: SecretString,
}

impl PrivatePostgres {
    /// Finds binaries, creates a data directory, starts the server and waits until it accepts connections.
    ///
    /// # Errors
    /// [`PostgresError`].
    pub async fn start(options: PostgresOptions) -> Result<Self, PostgresError> {
        let user = ServerUser::in_place_of_root();
        let directory = TemporaryDirectory::create(user.as_ref())?;
        let binaries = ServerBinaries::find(&options.binaries, user.as_ref(), directory.path()).await?;
        let password = SecretString::from(random_password());
        initdb::run(&binaries, directory.path(), user.as_ref(), &password).await?;
        Self::start_in(directory, user, binaries, options, password).await
    }

    /// Starts the server on the data in the directory and waits until it accepts connections.
    async fn start_in(
        directory: TemporaryDirectory,
        user: Option<ServerUser>,
        binaries: ServerBinaries,
        options: PostgresOptions,
        password: SecretString,
    ) -> Result<Self, PostgresError> {
        let port = free_port()?;
        let server = ChildServer::start(&command(&binaries, &directory, &options, port, user.as_ref()))?;
        let mut postgres = Self { server, directory, user, binaries, options, port, password };
        postgres.directory.outlives(&postgres.server)?;
        postgres.until_ready_on_some_port().await?;
        Ok(postgres)
    }

    /// Returns the port on 127.0.0.1, which never changes.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Returns the server's major version.
    pub fn major(&self) -> u32 {
        self.binaries.major()
    }

    /// Returns the directory of all the server's files. It is removed with the server.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the URL of one of the databases. Contains the password.
    pub fn url(&self, database: &str) -> String {
        let (password, port) = (self.password.expose_secret(), self.port);
        format!("postgres://{USER}:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// Returns the connection options of one of the databases, for sqlx.
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(USER)
            .password(self.password.expose_secret())
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// Opens a connection to one of the databases.
    ///
    /// # Errors
    /// A database error if the server is stopped, or has no such database.
    pub async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        self.connect_options(database).connect().await
    }

    /// Ends all sessions and stops the server with its data kept.
    pub async fn shut_down(&mut self) {
        blocking(|| self.server.stop());
    }

    /// Stops the server at once and without a checkpoint, like a crash of the server (immediate shutdown). The data is kept, and the next
    /// start recovers it.
    pub async fn stop_hard(&mut self) {
        blocking(|| {
            // An error means that the server has ended already. The signal of `stop` that follows has no effect, because Postgres never
            // returns to a milder shutdown.
            drop(self.server.signal(Signal::SIGQUIT));
            self.server.stop();
        });
    }

    /// Kills the postmaster with SIGKILL and keeps the data. Its backends end as soon as they notice.
    pub async fn kill(&mut self) {
        blocking(|| self.server.kill());
    }

    /// Starts a stopped server on the same data and the same port, and waits until it accepts connections.
    ///
    /// # Errors
    /// [`PostgresError`].
    pub async fn start_again(&mut self) -> Result<(), PostgresError> {
        blocking(|| self.server.stop());
        let deadline = Instant::now() + START_WITHIN;
        loop {
            self.launch()?;
            match self.until_ready().await {
                // After a SIGKILL the remaining backends hold the shared memory for a moment, and the new postmaster ends.
                Err(PostgresError::Ended { .. }) if Instant::now() < deadline => sleep(BETWEEN_ATTEMPTS).await,
                outcome => return outcome,
            }
        }
    }

    /// Shuts the server down and starts it again.
    ///
    /// # Errors
    /// [`PostgresError`].
    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        self.shut_down().await;
        self.start_again().await
    }

    /// Stops the server and removes its directory before it returns. Dropping the server does the same.
    pub async fn stop(self) {
        blocking(|| drop(self));
    }

    /// Sends the postmaster a signal.
    ///
    /// # Errors
    /// An I/O error if the server has ended.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        self.server.signal(signal)
    }

    fn launch(&mut self) -> io::Result<()> {
        let command = command(&self.binaries, &self.directory, &self.options, self.port, self.user.as_ref());
        self.server = ChildServer::start(&command)?;
        self.directory.outlives(&self.server)
    }

    /// Tries several ports. Only for the first start, because later the clients know the port.
    async fn until_ready_on_some_port(&mut self) -> Result<(), PostgresError> {
        for _ in 1..PORTS_TO_TRY {
            match self.until_ready().await {
                // Our server has ended and its port is in use, so another process has taken the port.
                Err(PostgresError::Ended { .. }) if !is_free(self.port) => self.port = free_port()?,
                outcome => return outcome,
            }
            self.launch()?;
        }
        self.until_ready().await
    }

    /// Connects with a time limit, because a process that took our port may accept the connection and never answer.
    async fn attempt(&self) -> Result<PgConnection, sqlx::Error> {
        let silent = |_| sqlx::Error::Io(io::ErrorKind::TimedOut.into());
        timeout(ATTEMPT_WITHIN, self.connect("postgres")).await.map_err(silent)?
    }

    async fn until_ready(&mut self) -> Result<(), PostgresError> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let attempt = self.attempt().await;
            if !self.server.is_running() {
                return Err(PostgresError::Ended { log: self.server.log_tail() });
            }
            match attempt {
                Ok(_) => return Ok(()),
                Err(source) if Instant::now() > deadline => {
                    return Err(PostgresError::NotReady { log: self.server.log_tail(), source });
                }
                Err(_) => sleep(BETWEEN_ATTEMPTS).await,
            }
        }
    }
}

fn command(
    binaries: &ServerBinaries,
    directory: &TemporaryDirectory,
    options: &PostgresOptions,
    port: u16,
    user: Option<&ServerUser>,
) -> ServerCommand {
    let on_if_durable = if options.durable { "on" } else { "off" };
    let ours = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        // No socket, because its path may be longer than the 107 bytes that are allowed.
        ("unix_socket_directories", String::new()),
        ("max_connections", options.max_connections.to_string()),
        ("fsync", on_if_durable.to_owned()),
        ("full_page_writes", on_if_durable.to_owned()),
        ("logging_collector", "off".to_owned()),
    ];
    let theirs = options.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
    let settings =
        ours.into_iter().chain(theirs).flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
    ServerCommand::new(binaries.program("postgres"), directory.path(), &directory.path().join("postgres.log"))
        .args([Path::new("-D"), &directory.path().join(initdb::DATA)])
        .args(settings)
        // SIGINT is the fast shutdown, which does not wait until sessions end by themselves.
        .stops_on(Signal::SIGINT, STOP_WITHIN)
        .as_user(user.cloned())
}

fn random_password() -> String {
    rand::rng().sample_iter(Alphanumeric).take(32).map(char::from).collect()
}

/// Waits for a process to end without blocking the other tasks of a multi-threaded runtime.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
