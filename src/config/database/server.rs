//! The servers of a connection, and what a session must be able to do.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::parameter::is_pem;

/// The place of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host name or an address.
    Name(String),
    /// The directory of a Unix socket.
    Socket(PathBuf),
}

/// One server of the list.
#[derive(Debug, Clone)]
pub struct Server {
    /// The host, which a certificate must name.
    pub host: Host,
    /// The address to connect to, in place of those that the host's name has.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// The password for this server; `None` if none was found.
    pub password: Option<SecretString>,
}

/// Formats `host:port`, for logs.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Socket(directory) => write!(f, "{}:{}", directory.display(), self.port),
        }
    }
}

/// The servers that a connection accepts, as libpq's `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    /// Any server.
    Any,
    /// A server whose sessions may write.
    ReadWrite,
    /// A server whose sessions may not write.
    ReadOnly,
    /// A server that is no standby.
    Primary,
    /// A standby.
    Standby,
    /// A standby, or any server if there is none.
    PreferStandby,
}

impl TargetSession {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => return None,
        })
    }
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// Never TLS.
    Disable,
    /// TLS if the server refuses a connection without.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// Only TLS. The certificate is verified if there is a root certificate.
    Require,
    /// Only TLS, with a certificate that the root certificate vouches for.
    VerifyCa,
    /// Only TLS, with a verified certificate that names the host.
    VerifyFull,
}

impl TlsMode {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
}

/// A PEM file, or PEM text. A file is read for each connection, so that a renewed certificate needs no restart.
#[derive(Clone)]
pub enum Pem {
    /// The path of a file.
    File(PathBuf),
    /// The text itself.
    Text(String),
}

impl Pem {
    pub(super) fn new(value: &str) -> Self {
        if is_pem(value) { Self::Text(value.to_owned()) } else { Self::File(value.into()) }
    }

    /// Reads the PEM text.
    ///
    /// # Errors
    /// An I/O error of the file.
    pub fn read(&self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::File(path) => crate::config::pem::read(path),
            Self::Text(text) => Ok(text.clone().into_bytes()),
        }
    }
}

/// The certificates that vouch for a server.
#[derive(Clone)]
pub enum Roots {
    /// The authorities of the operating system.
    System,
    /// The authorities in a file, and no others.
    Only(Pem),
}

/// How a connection is encrypted, and which servers it trusts.
#[derive(Clone)]
pub struct TlsSettings {
    /// When TLS is used, and what is verified.
    pub mode: TlsMode,
    /// The trusted certificates; `None` if the server is not verified.
    pub roots: Option<Roots>,
    /// The client's certificate and its key.
    pub client: Option<(Pem, Pem)>,
    /// True if the handshake names the host.
    pub sends_name: bool,
    /// The names of the lowest and the highest version of TLS.
    pub versions: (String, Option<String>),
}

/// The settings of a TCP socket. `None` leaves a setting to the system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketSettings {
    /// False if the system must not probe a silent connection.
    pub no_keepalives: bool,
    /// The silence before the first probe.
    pub idle: Option<Duration>,
    /// The time between two probes.
    pub interval: Option<Duration>,
    /// The number of lost probes after which the connection is dead.
    pub count: Option<u32>,
    /// The longest time that sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}
