//! Reports to the service manager by the protocol of sd_notify(3): datagrams of lines `NAME=value` to the socket in `NOTIFY_SOCKET`.
//!
//! Without the variable nothing is sent. What leads to each message is in `cli::service`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::net::UnixDatagram;

use crate::text;

/// The variables of the protocol. The service manager sets them; they are not settings of the relay.
const SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// The most characters of a status. systemd shows one line.
const STATUS_LENGTH: usize = 1024;

/// A change of state that is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// The service has started, or has read its settings again.
    Ready,
    /// The service begins to read its settings again.
    Reloading,
    /// The service drains, for this long at most.
    Stopping(Duration),
    /// The service is alive.
    Alive,
    /// What the service does, for people.
    Status(String),
}

impl State {
    /// Returns the lines of the state.
    fn lines(&self) -> io::Result<String> {
        Ok(match self {
            Self::Ready => "READY=1\n".to_owned(),
            Self::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}\n", monotonic_usec()?),
            Self::Stopping(within) => format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", within.as_micros()),
            Self::Alive => "WATCHDOG=1\n".to_owned(),
            Self::Status(status) => format!("STATUS={}\n", text::sentence(status).at_most(STATUS_LENGTH)),
        })
    }
}

/// Returns the time since the machine started, on the clock that systemd compares reloads by.
fn monotonic_usec() -> io::Result<u128> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_micros())
}

/// The service manager that has started this process.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Connects to the service manager; `None` if none has started this process.
    ///
    /// # Errors
    /// An I/O error if the socket cannot be reached.
    pub(crate) fn from_environment() -> io::Result<Option<Self>> {
        let named = [SOCKET, WATCHDOG_USEC, WATCHDOG_PID];
        let variables = named.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
        Self::connect(&variables, std::process::id())
    }

    fn connect(variables: &BTreeMap<&str, OsString>, pid: u32) -> io::Result<Option<Self>> {
        let Some(address) = variables.get(SOCKET).filter(|address| !address.is_empty()) else { return Ok(None) };
        let socket = StdDatagram::unbound()?;
        connect(&socket, address)?;
        socket.set_nonblocking(true)?;
        let number = |name: &str| variables.get(name)?.to_str()?.parse::<u64>().ok();
        // The variables may be inherited from a parent that is watched itself.
        let is_ours = !variables.contains_key(WATCHDOG_PID) || number(WATCHDOG_PID) == Some(u64::from(pid));
        let watchdog = number(WATCHDOG_USEC).filter(|usec| is_ours && *usec > 0).map(Duration::from_micros);
        Ok(Some(Self { socket: UnixDatagram::from_std(socket)?, watchdog }))
    }

    /// Returns the time after which the service manager ends a service that it has not heard of; `None` if it does not.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Reports the states in one message. Waits while the service manager's queue is full.
    ///
    /// # Errors
    /// An I/O error if the service manager is gone.
    pub(crate) async fn notify(&self, states: &[State]) -> io::Result<()> {
        let message = states.iter().map(State::lines).collect::<io::Result<String>>()?;
        self.socket.send(message.as_bytes()).await.map(drop)
    }
}

/// Connects to a path, or to the abstract name behind an `@`.
fn connect(socket: &StdDatagram, address: &OsStr) -> io::Result<()> {
    match address.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
        }
        [b'/', ..] => socket.connect(address),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "NOTIFY_SOCKET is neither a path nor an abstract name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(socket: &str, rest: &[(&'static str, &str)]) -> BTreeMap<&'static str, OsString> {
        let rest = rest.iter().map(|(name, value)| (*name, OsString::from(value)));
        std::iter::once((SOCKET, OsString::from(socket))).chain(rest).collect()
    }

    async fn received(manager: &StdDatagram) -> String {
        let mut buffer = [0; 4096];
        let read = manager.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    #[tokio::test]
    async fn a_message_has_a_line_for_each_state_and_no_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let manager = StdDatagram::bind(&path).expect("a socket");
        let service = ServiceManager::connect(&variables(path.to_str().expect("a path"), &[]), 7);
        let service = service.expect("a connection").expect("a manager");
        let status = State::Status("held\nREADY=1 \u{1b}[2J".to_owned());
        service.notify(&[State::Ready, status, State::Alive]).await.expect("it is sent");
        let message = received(&manager).await;
        let lines: Vec<_> = message.lines().collect();
        assert_eq!(lines.len(), 3, "{message:?}");
        assert!(
            lines[0] == "READY=1" && lines[1].starts_with("STATUS=held") && lines[2] == "WATCHDOG=1",
            "{message:?}"
        );
        assert!(!message.contains('\u{1b}'), "{message:?}");

        let before = monotonic_usec().expect("a clock");
        service.notify(&[State::Reloading]).await.expect("it is sent");
        let message = received(&manager).await;
        let at = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.trim().parse::<u128>().ok());
        assert!(at.is_some_and(|at| at >= before), "{message:?}");

        drop(manager);
        assert!(service.notify(&[State::Alive]).await.is_err(), "nobody listens");
    }

    #[tokio::test]
    async fn a_watchdog_counts_if_it_is_meant_for_this_process() {
        let name = format!("@outbox-relay-test-{}", uuid::Uuid::new_v4());
        let address =
            <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name[1..]);
        let _manager = StdDatagram::bind_addr(&address.expect("a name")).expect("a socket");
        let watchdog = |rest: &[(&'static str, &str)]| {
            let manager =
                ServiceManager::connect(&variables(&name, rest), 7).expect("a connection").expect("a manager");
            manager.watchdog()
        };
        assert_eq!(watchdog(&[]), None);
        assert_eq!(watchdog(&[(WATCHDOG_USEC, "30000000")]), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(&[(WATCHDOG_USEC, "30000000"), (WATCHDOG_PID, "7")]), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(&[(WATCHDOG_USEC, "30000000"), (WATCHDOG_PID, "8")]), None);
        assert_eq!(watchdog(&[(WATCHDOG_USEC, "soon")]), None);
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_an_error_and_none_is_none() {
        assert!(ServiceManager::connect(&variables("/nowhere/notify", &[]), 7).is_err());
        assert!(ServiceManager::connect(&variables("vsock:2:1234", &[]), 7).is_err());
        assert!(ServiceManager::connect(&variables("", &[]), 7).expect("no error").is_none());
        assert!(ServiceManager::connect(&BTreeMap::new(), 7).expect("no error").is_none());
    }
}
