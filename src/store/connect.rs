//! Opens sessions. Tries the servers of `DATABASE_URL` and the addresses of each, as libpq does, and accepts only a server that fits.
//!
//! - `tls`: the handshake, with the rules of libpq
//! - `bridge`: hands an open socket to sqlx
//! - `notifications`: reads notifications from what the server sends
//!
//! The next address is tried when the last one failed, or has not answered for [`HEAD_START`]. So a dead address delays a failover by less
//! than a second, however long its own time-out is.

mod bridge;
mod notifications;
#[cfg_attr(not(feature = "tls"), path = "connect/no_tls.rs")]
mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rand::seq::SliceRandom;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::Instant;

use crate::config::{DatabaseSettings, Host, Server, SocketSettings, TargetSession, TlsMode};
use crate::fault::{Class, Fault, NotConnected, READ_ONLY, classify_database, describe};
use crate::store::search_path;
use event_outbox::code::Code;
pub(crate) use notifications::Notifications;
use notifications::Tap;

/// The time that an address may take before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(300);

/// The time that the other addresses still have after a server has answered that it cannot be written. It may become the primary meanwhile,
/// and is asked again with the next attempt.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The SQLSTATE class of refused logins.
const LOGIN_REFUSED: &str = "28";

/// The purpose of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Writes. Only a server that can be written is accepted.
    Write,
    /// Only reads. Unless `target_session_attrs` says otherwise, a server that can be written is preferred, because a standby lags behind.
    Read,
    /// Only reads, among others the registry of the relays. The registry is an unlogged table, which a standby cannot read.
    ReadRelays,
}

/// A failed attempt.
struct Failed {
    /// The server, and the address if the name has several.
    server: String,
    error: sqlx::Error,
}

/// Attempts that were not begun. They are boxed, because the compiler cannot show that the nested ones may move between threads.
type Attempts<'a, T> = Vec<BoxFuture<'a, Result<T, Vec<Failed>>>>;

/// Opens a session that calls itself `application_name` in `pg_stat_activity`.
///
/// # Errors
/// The error of the only attempt, or a [`NotConnected`] that names every server that was tried.
pub(crate) async fn connect(
    database: &DatabaseSettings,
    application_name: &str,
    purpose: Purpose,
) -> Result<PgConnection, sqlx::Error> {
    open(database, application_name, purpose, None).await
}

/// Opens a session that can write, and returns its notifications as well. They need `listen`.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_to_listen(
    database: &DatabaseSettings,
    application_name: &str,
) -> Result<(PgConnection, Notifications), sqlx::Error> {
    let (tap, notifications) = notifications::tap();
    Ok((open(database, application_name, Purpose::Write, Some(tap)).await?, notifications))
}

async fn open(
    database: &DatabaseSettings,
    application_name: &str,
    purpose: Purpose,
    tap: Option<Tap>,
) -> Result<PgConnection, sqlx::Error> {
    let mut rounds = rounds(database.target_session, purpose)?.iter();
    let mut wanted = rounds.next().copied().unwrap_or(TargetSession::Any);
    loop {
        let failed = match first_server(database, application_name, wanted, tap.as_ref()).await {
            Ok(conn) => return Ok(conn),
            Err(failed) => failed,
        };
        let is_refused = failed.iter().any(|failed| is_read_only(&failed.error));
        match rounds.next() {
            Some(next) if is_refused => wanted = *next,
            _ => return Err(summary(failed)),
        }
    }
}

/// Returns the kinds of server to look for, one after the other.
fn rounds(given: Option<TargetSession>, purpose: Purpose) -> Result<&'static [TargetSession], sqlx::Error> {
    use TargetSession::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
    Ok(match (purpose, given) {
        (Purpose::Write | Purpose::ReadRelays, Some(ReadOnly | Standby)) => {
            let reason =
                "target_session_attrs asks for a standby or a read-only server, and this command needs the primary";
            return Err(NotConnected { reason: reason.to_owned(), fault: UNWRITABLE }.into());
        }
        (Purpose::Write, _) | (Purpose::Read, Some(ReadWrite)) => &[ReadWrite],
        (Purpose::ReadRelays, _) => &[ReadWrite, Primary],
        (Purpose::Read, None) => &[ReadWrite, Any],
        (Purpose::Read, Some(Any)) => &[Any],
        (Purpose::Read, Some(Primary)) => &[Primary],
        (Purpose::Read, Some(ReadOnly)) => &[ReadOnly],
        (Purpose::Read, Some(Standby)) => &[Standby],
        (Purpose::Read, Some(PreferStandby)) => &[Standby, Any],
    })
}

const UNWRITABLE: Fault = Fault {
    class: Class::ActionRequired,
    code: Code::DatabaseReadOnly,
    next_step: "set target_session_attrs=read-write in DATABASE_URL, or remove it",
};

/// Returns a session on the first server that fits.
async fn first_server(
    database: &DatabaseSettings,
    application_name: &str,
    wanted: TargetSession,
    tap: Option<&Tap>,
) -> Result<PgConnection, Vec<Failed>> {
    let mut servers: Vec<&Server> = database.servers.iter().collect();
    if database.in_random_order {
        servers.shuffle(&mut rand::rng());
    }
    let mut attempts: Attempts<'_, _> = Vec::new();
    for server in servers {
        let options = database.session_options(server).application_name(application_name).disable_statement_logging();
        attempts.push(first_address(Attempt { database, server, options, wanted, tap: tap.cloned() }).boxed());
    }
    staggered(attempts).await
}

/// Returns a session on the first of the server's addresses that answers.
async fn first_address(attempt: Attempt<'_>) -> Result<PgConnection, Vec<Failed>> {
    let (database, server) = (attempt.database, attempt.server);
    let failed = |error| vec![Failed { server: server.to_string(), error }];
    let name = match (&server.host, server.address) {
        (Host::Socket(directory), _) => {
            let opened = async {
                let options = &attempt.options;
                let opened = match attempt.local(directory, &search_path::from_the_first_packet(options)).await {
                    Err(error) if search_path::is_refused(&error) => attempt.local(directory, options).await,
                    opened => opened,
                };
                attempt.checked(opened?).await
            };
            return within(database.connect_timeout, opened).await.map_err(failed);
        }
        (Host::Name(_), Some(address)) => address.to_string(),
        (Host::Name(name), None) => name.clone(),
    };
    let resolved = async { Ok(lookup_host((name.as_str(), server.port)).await?.collect::<Vec<_>>()) };
    let addresses = within(database.connect_timeout, resolved).await.map_err(failed)?;
    let (attempt, count) = (&attempt, addresses.len());
    let mut attempts: Attempts<'_, _> = Vec::new();
    for address in addresses {
        let opened = async move {
            let opened = within(database.connect_timeout, attempt.open(address)).await;
            let server = if count > 1 { format!("{server} ({})", address.ip()) } else { server.to_string() };
            opened.map_err(|error| vec![Failed { server, error }])
        };
        attempts.push(opened.boxed());
    }
    staggered(attempts).await
}

/// Runs the attempts in order, each with a head start before the next. Returns the first success, or all failures. A refused login ends the
/// search, as with libpq.
async fn staggered<T>(attempts: Attempts<'_, T>) -> Result<T, Vec<Failed>> {
    let mut attempts = attempts.into_iter();
    let (mut running, mut failures) = (FuturesUnordered::new(), Vec::new());
    let mut refused_at = None;
    loop {
        running.extend(attempts.next());
        tokio::select! {
            biased;
            Some(done) = running.next() => match done {
                Ok(opened) => return Ok(opened),
                Err(failed) => {
                    let ends = failed.iter().any(|failed| is_login_refused(&failed.error));
                    if failed.iter().any(|failed| is_read_only(&failed.error)) {
                        refused_at.get_or_insert_with(Instant::now);
                    }
                    failures.extend(failed);
                    if ends || (running.is_empty() && attempts.len() == 0) {
                        return Err(failures);
                    }
                }
            },
            () = tokio::time::sleep(HEAD_START), if attempts.len() > 0 => {}
            () = tokio::time::sleep_until(refused_at.unwrap_or_else(Instant::now) + PATIENCE),
                if refused_at.is_some() && attempts.len() == 0 => return Err(failures),
            else => return Err(failures),
        }
    }
}

async fn within<T>(timeout: Duration, step: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(timeout, step).await {
        Ok(done) => done,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// One server that is tried.
struct Attempt<'d> {
    database: &'d DatabaseSettings,
    server: &'d Server,
    options: PgConnectOptions,
    wanted: TargetSession,
    /// Where notifications go.
    tap: Option<Tap>,
}

impl Attempt<'_> {
    /// Opens a session at an address, with TLS as libpq's `sslmode` says.
    async fn open(&self, address: SocketAddr) -> Result<PgConnection, sqlx::Error> {
        let opened = match self.opened(address, &search_path::from_the_first_packet(&self.options)).await {
            Err(error) if search_path::is_refused(&error) => self.opened(address, &self.options).await,
            opened => opened,
        };
        self.checked(opened?).await
    }

    async fn opened(&self, address: SocketAddr, options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        match self.database.tls.mode {
            TlsMode::Disable => self.plain(address, options).await,
            TlsMode::Allow => match self.plain(address, options).await {
                Err(error) if is_login_refused(&error) => self.encrypted(address, options).await,
                other => other,
            },
            TlsMode::Prefer => match self.encrypted(address, options).await {
                Err(error) if matches!(error, sqlx::Error::Tls(_)) || is_login_refused(&error) => {
                    self.plain(address, options).await
                }
                other => other,
            },
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => self.encrypted(address, options).await,
        }
    }

    /// Opens a session at a Unix socket.
    async fn local(&self, directory: &Path, options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        let port = self.server.port;
        if self.tap.is_some() {
            let socket = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?;
            return bridge::open(socket, options, self.tap.clone()).await;
        }
        let options = options.clone().socket(directory).port(port).ssl_mode(PgSslMode::Disable);
        PgConnection::connect_with(&options).await
    }

    async fn plain(&self, address: SocketAddr, options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        if self.tap.is_some() || self.database.socket != SocketSettings::default() {
            return bridge::open(self.socket(address).await?, options, self.tap.clone()).await;
        }
        let options = options.clone().host(&address.ip().to_string()).port(address.port());
        PgConnection::connect_with(&options.ssl_mode(PgSslMode::Disable)).await
    }

    async fn encrypted(&self, address: SocketAddr, options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        let socket = self.socket(address).await?;
        let Host::Name(name) = &self.server.host else { return self.plain(address, options).await };
        let stream = tls::encrypt(socket, &self.database.tls, name).await?;
        bridge::open(stream, options, self.tap.clone()).await
    }

    /// Opens a TCP socket with the settings of the connection.
    async fn socket(&self, address: SocketAddr) -> Result<TcpStream, sqlx::Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (socket, settings) = (socket2::SockRef::from(&stream), self.database.socket);
        socket.set_keepalive(!settings.no_keepalives)?;
        if !settings.no_keepalives {
            let mut keepalive = socket2::TcpKeepalive::new();
            if let Some(idle) = settings.idle {
                keepalive = keepalive.with_time(idle);
            }
            if let Some(interval) = settings.interval {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(count) = settings.count {
                keepalive = keepalive.with_retries(count);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(target_os = "linux")]
        if settings.user_timeout.is_some() {
            socket.set_tcp_user_timeout(settings.user_timeout)?;
        }
        Ok(stream)
    }

    /// Returns the session if its server is of the wanted kind.
    async fn checked(&self, mut conn: PgConnection) -> Result<PgConnection, sqlx::Error> {
        let Some(problem) = unfit(&mut conn, self.wanted).await? else { return Ok(conn) };
        // Dropping the connection ends it as well.
        drop(conn.close().await);
        Err(NotConnected { reason: format!("{} {problem}", self.server), fault: READ_ONLY }.into())
    }
}

/// Returns what keeps the session from being of the wanted kind.
async fn unfit(conn: &mut PgConnection, wanted: TargetSession) -> Result<Option<&'static str>, sqlx::Error> {
    if wanted == TargetSession::Any {
        return Ok(None);
    }
    let (is_standby, is_read_only) = state(conn).await?;
    Ok(match wanted {
        TargetSession::ReadWrite | TargetSession::Primary if is_standby => Some("is a standby and cannot be written"),
        TargetSession::ReadWrite if is_read_only => Some("is read-only: default_transaction_read_only is on"),
        TargetSession::ReadOnly if !is_read_only => Some("can be written, and target_session_attrs asks for another"),
        TargetSession::Standby | TargetSession::PreferStandby if !is_standby => Some("is no standby"),
        _ => None,
    })
}

/// Asks whether the server is a standby, and whether transactions are read-only by default. Sends no prepared statement, because a pooler
/// may stand in between.
async fn state(conn: &mut PgConnection) -> Result<(bool, bool), sqlx::Error> {
    let sql = "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on'";
    let row = conn.fetch_one(sqlx::raw_sql(sql)).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Returns why the session cannot write, if so.
///
/// # Errors
/// Any database error.
pub(crate) async fn cannot_write(conn: &mut PgConnection) -> Result<Option<&'static str>, sqlx::Error> {
    unfit(conn, TargetSession::ReadWrite).await
}

fn is_login_refused(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code.starts_with(LOGIN_REFUSED))
}

fn is_read_only(error: &sqlx::Error) -> bool {
    NotConnected::within(error).is_some_and(|error| error.fault == READ_ONLY)
}

/// Makes one error of all failures. A server that cannot be written says most, one that does not answer says least.
fn summary(mut failures: Vec<Failed>) -> sqlx::Error {
    let worth = |failed: &Failed| match classify_database(&failed.error).code {
        Code::DatabaseUnreachable => 0,
        Code::DatabaseReadOnly => 2,
        _ => 1,
    };
    // `max_by_key` returns the last of equal ones; the first server counts.
    let Some(first) = failures.iter().rev().max_by_key(|failed| worth(failed)) else {
        return sqlx::Error::Io(std::io::Error::other("the host name has no address"));
    };
    let fault = classify_database(&first.error);
    if failures.len() == 1 {
        return failures.remove(0).error;
    }
    let reasons = failures.iter().map(|Failed { server, error }| match NotConnected::within(error) {
        Some(error) => error.reason.clone(),
        None => format!("{server}: {}", describe(error)),
    });
    NotConnected { reason: reasons.collect::<Vec<_>>().join("; "), fault }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(error: sqlx::Error) -> Vec<Failed> {
        vec![Failed { server: "h".to_owned(), error }]
    }

    fn refused(reason: &str) -> sqlx::Error {
        NotConnected { reason: reason.to_owned(), fault: READ_ONLY }.into()
    }

    fn reset() -> sqlx::Error {
        sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())
    }

    #[tokio::test]
    async fn an_address_that_never_answers_does_not_keep_the_next_one_waiting() {
        let attempts: Attempts<'_, u8> =
            vec![std::future::pending().boxed(), async { Err(failure(reset())) }.boxed(), async { Ok(3) }.boxed()];
        assert_eq!(staggered(attempts).await.ok(), Some(3));
    }

    #[tokio::test]
    async fn a_standby_ends_the_wait_for_an_address_that_never_answers() {
        let attempts: Attempts<'_, u8> =
            vec![std::future::pending().boxed(), async { Err(failure(refused("h2 is a standby"))) }.boxed()];
        let failures = staggered(attempts).await.err().unwrap();
        assert!(failures.len() == 1 && is_read_only(&failures[0].error));
    }

    #[tokio::test]
    async fn no_address_at_all_is_an_error() {
        assert!(staggered(Attempts::<'_, u8>::new()).await.is_err_and(|failures| failures.is_empty()));
        assert!(summary(Vec::new()).to_string().contains("no address"));
    }

    #[test]
    fn the_error_of_several_servers_names_all_and_is_that_of_the_one_that_says_most() {
        let failures = [reset(), refused("h2 is a standby"), reset()].map(failure).into_iter().flatten().collect();
        let error = summary(failures);
        assert_eq!(classify_database(&error), READ_ONLY);
        let text = describe(&error);
        assert!(text.starts_with("h: ") && text.contains("; h2 is a standby; h: "), "{text}");
    }

    #[test]
    fn a_command_that_writes_never_asks_for_a_standby() {
        for given in [TargetSession::ReadOnly, TargetSession::Standby] {
            let error = rounds(Some(given), Purpose::Write).err().unwrap();
            assert_eq!(classify_database(&error).code, Code::DatabaseReadOnly);
        }
        for given in [TargetSession::Any, TargetSession::Primary, TargetSession::PreferStandby] {
            assert_eq!(rounds(Some(given), Purpose::Write).ok(), Some(&[TargetSession::ReadWrite][..]));
        }
    }
}
