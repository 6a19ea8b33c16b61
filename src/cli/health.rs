//! Runs `outbox-relay health`: asks a running relay. A container's health check then needs no other program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::exit::Failure;
use super::runtime;
use crate::config::{AdminSettings, Settings};
use crate::observe::print::out;

/// The time limit of a probe. It may be short, because the relay answers from memory.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// The most bytes to read; every answer of a probe is shorter.
const LONGEST_ANSWER: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Ask whether the relay's loops move, not whether it can publish
    #[arg(long)]
    live: bool,
}

impl Health {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        let Some(address) = settings.admin.address else {
            return Err(Failure::usage("RELAY_ADMIN_ADDRESS is not set, so no relay can be asked")
                .hint("set it to where the relay has it, for example 127.0.0.1:9187"));
        };
        let (address, path) = (reachable(address), if self.live { "/livez" } else { "/readyz" });
        let (status, body) = runtime()?.block_on(ask(address, path, &settings.admin)).map_err(|error| {
            Failure::finding(format!("no answer from {address}"))
                .because(error)
                .hint("the relay does not run, or has another RELAY_ADMIN_ADDRESS")
        })?;
        // JSON, which must not be broken to the width of a terminal.
        out!("{body}");
        match status {
            200 => Ok(()),
            401 => Err(Failure::finding(format!("{address} wants another RELAY_ADMIN_TOKEN"))),
            _ => Err(Failure::finding(format!("{path} of {address} answers {status}"))),
        }
    }
}

/// Returns the address to connect to: loopback if the relay listens on all interfaces.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(address: SocketAddr, path: &str, admin: &AdminSettings) -> std::io::Result<(u16, String)> {
    let header = |token: SecretString| format!("Authorization: Bearer {}\r\n", token.expose_secret());
    let token = admin.token().map(header).unwrap_or_default();
    // In HTTP/1.0 the end of the connection ends the answer.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{token}\r\n");
    let answered = tokio::time::timeout(ANSWERS_WITHIN, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(LONGEST_ANSWER).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    });
    let answer = answered.await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    parse(&answer).ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "this is no HTTP"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        let answer =
            "HTTP/1.0 503 Service Unavailable\r\ncontent-type: application/json\r\n\r\n{\"state\":\"stalled\"}\n";
        assert_eq!(parse(answer), Some((503, "{\"state\":\"stalled\"}\n".to_owned())));
        assert_eq!(parse("SSH-2.0-OpenSSH\r\n\r\n"), None);
    }

    #[test]
    fn an_address_of_all_interfaces_is_asked_on_this_host() {
        let asked = |text: &str| text.parse().map(reachable).map(|address| address.to_string());
        assert_eq!(asked("0.0.0.0:1").as_deref(), Ok("127.0.0.1:1"));
        assert_eq!(asked("[::]:1").as_deref(), Ok("[::1]:1"));
        assert_eq!(asked("10.0.0.1:1").as_deref(), Ok("10.0.0.1:1"));
    }
}
