//! Stands in for systemd: hears what a relay reports by the protocol of sd_notify(3), and judges by it whether the relay is alive.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::eventually::eventually;
use super::relay::Relay;

/// The time without a sign of life after which systemd would end a relay. The relay sends several in it.
pub const WATCHDOG: Duration = Duration::from_secs(2);

/// The longest wait for a message, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A message: its lines, `NAME=value` each.
pub type Message = Vec<String>;

/// A service manager that hears one relay.
#[derive(Debug)]
pub struct ServiceManager {
    address: String,
    heard: Arc<Mutex<Vec<(Instant, Message)>>>,
    /// Holds the file of the socket, if it has one.
    _directory: Option<TempDir>,
}

impl ServiceManager {
    /// Listens on a socket that has a file, in a directory of its own.
    pub fn listen() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("notify");
        let manager = Self::hear(UnixDatagram::bind(&path)?, path.display().to_string());
        Ok(Self { _directory: Some(directory), ..manager })
    }

    /// Listens on a socket that has a name and no file.
    pub fn abstract_socket() -> anyhow::Result<Self> {
        let name = format!("outbox-relay-{}", uuid::Uuid::new_v4());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        Ok(Self::hear(socket, format!("@{name}")))
    }

    fn hear(socket: UnixDatagram, address: String) -> Self {
        let heard = Arc::<Mutex<Vec<_>>>::default();
        let hears = Arc::clone(&heard);
        // Ends with the process: nothing wakes a thread that reads a socket.
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(read) = socket.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..read]).lines().map(str::to_owned).collect();
                hears.lock().expect("the messages").push((Instant::now(), message));
            }
        });
        Self { address, heard, _directory: None }
    }

    /// Returns the relay with the variables that systemd gives to a service with a watchdog.
    pub fn start(&self, relay: Relay) -> Relay {
        relay.with("NOTIFY_SOCKET", &self.address).with("WATCHDOG_USEC", WATCHDOG.as_micros())
    }

    /// Returns every message so far.
    pub fn messages(&self) -> Vec<Message> {
        self.heard.lock().expect("the messages").iter().map(|(_, message)| message.clone()).collect()
    }

    /// Waits for the first message of which `matches` is true, and returns its position.
    pub async fn wait_for(&self, what: &str, matches: impl Fn(&Message) -> bool) -> usize {
        eventually(what, PATIENCE, || async {
            let messages = self.messages();
            messages.iter().position(&matches).ok_or_else(|| messages.into_iter().rev().take(3).collect::<Vec<_>>())
        })
        .await
    }

    /// Waits for a message with this line.
    pub async fn wait_for_line(&self, line: &str) -> usize {
        self.wait_for(line, |message| message.iter().any(|found| found == line)).await
    }

    /// Waits for a status that contains the text.
    pub async fn wait_for_status(&self, text: &str) -> usize {
        let is_status = |line: &String| line.strip_prefix("STATUS=").is_some_and(|status| status.contains(text));
        self.wait_for(text, |message| message.iter().any(is_status)).await
    }

    /// Waits for this number of signs of life from now on.
    pub async fn wait_for_signs_of_life(&self, number: usize) {
        let so_far = self.signs_of_life().len();
        eventually("signs of life", PATIENCE, || async {
            let more = self.signs_of_life().len() - so_far;
            if more >= number { Ok(()) } else { Err(more) }
        })
        .await;
    }

    /// Waits until systemd would end the relay, because it has not shown a sign of life for too long.
    pub async fn until_given_up(&self) {
        eventually("no sign of life", PATIENCE, || async {
            let last = self.signs_of_life().last().copied();
            last.filter(|last| last.elapsed() > WATCHDOG).map(drop).ok_or("there are signs of life")
        })
        .await;
    }

    fn signs_of_life(&self) -> Vec<Instant> {
        let is_sign = |message: &Message| message.iter().any(|line| line == "WATCHDOG=1");
        let heard = self.heard.lock().expect("the messages");
        heard.iter().filter(|(_, message)| is_sign(message)).map(|(at, _)| *at).collect()
    }
}
