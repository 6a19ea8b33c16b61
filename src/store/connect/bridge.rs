//! Hands an open socket to sqlx, which opens its own sockets only. sqlx connects to a private Unix socket of this process, and a task copies
//! between that and the server. So TLS, keepalives and the choice of an address are ours.

use std::io;
use std::path::PathBuf;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::{UnixListener, UnixStream};

use super::{notifications::Tap, tls};

/// The port in the name of the private socket.
const PORT: u16 = 5432;

/// The longest time in which the end of a connection is announced to its server.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(1);

/// Begins a session over `server`. The session ends with its server's connection, and the other way round. `tap` gets a message for each
/// notification, and is dropped when the session ends.
pub(super) async fn open<S>(
    server: S,
    options: &PgConnectOptions,
    tap: Option<Tap>,
) -> Result<PgConnection, sqlx::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let local = Local::listen()?;
    let options = options.clone().socket(&local.directory).port(PORT).ssl_mode(PgSslMode::Disable);
    let mut bridge = Box::pin(async move {
        let client = local.accept().await?;
        drop(local);
        carry(client, server, tap).await
    });
    let mut connecting = std::pin::pin!(PgConnection::connect_with(&options));
    tokio::select! {
        biased;
        connected = &mut connecting => {
            let conn = connected?;
            // The task ends with the connection, so nobody has to end it.
            tokio::spawn(bridge);
            Ok(conn)
        }
        // The server has ended the connection; its last message may wait on our side.
        ended = &mut bridge => match (connecting.await, ended) {
            (Err(sqlx::Error::Io(_)), Err(error)) if tls::is_of_tls(&error) => Err(sqlx::Error::Tls(error.into())),
            (connected, _) => connected,
        },
    }
}

/// Copies in both directions until one side ends. Then both end at once: a server must not keep locks for a client that is gone.
async fn carry<S>(client: UnixStream, server: S, tap: Option<Tap>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = split(server);
    let mut down = std::pin::pin!(async {
        match tap {
            Some(tap) => tap.copy(&mut from_server, &mut to_client).await,
            None => copy(&mut from_server, &mut to_client).await,
        }
    });
    let ended = tokio::select! {
        ended = copy(&mut from_client, &mut to_server) => match ended {
            // A server that takes no more has said why, perhaps by an alert about our certificate.
            Err(error) => tokio::time::timeout(GOODBYE, &mut down).await.unwrap_or(Err(error)),
            ended => ended,
        },
        ended = &mut down => ended,
    };
    // A server that does not take the goodbye notices the end of the socket.
    drop(tokio::time::timeout(GOODBYE, to_server.shutdown()).await);
    ended.map(drop)
}

/// A private socket that only this process may connect to.
struct Local {
    listener: UnixListener,
    directory: PathBuf,
    #[cfg(not(target_os = "linux"))]
    _files: tempfile::TempDir,
}

impl Local {
    /// Listens on an abstract name, which needs no writable directory.
    #[cfg(target_os = "linux")]
    fn listen() -> io::Result<Self> {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("outbox-relay-{}", uuid::Uuid::new_v4());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(format!("{name}/.s.PGSQL.{PORT}"))?;
        let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, directory: format!("\0{name}").into() })
    }

    /// Listens in a directory of its own, which only this user may enter.
    #[cfg(not(target_os = "linux"))]
    fn listen() -> io::Result<Self> {
        let files = tempfile::tempdir()?;
        let listener = UnixListener::bind(files.path().join(format!(".s.PGSQL.{PORT}")))?;
        Ok(Self { listener, directory: files.path().to_owned(), _files: files })
    }

    /// Waits for sqlx. Drops connections of other processes, which may connect to an abstract name.
    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (client, _) = self.listener.accept().await?;
            let pid = client.peer_cred()?.pid();
            if pid.is_some_and(|pid| u32::try_from(pid) == Ok(std::process::id())) {
                return Ok(client);
            }
        }
    }
}
