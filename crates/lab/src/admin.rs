//! Asks a relay's admin address as a probe or a scraper does.

use std::net::SocketAddr;

use anyhow::Context;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::eventually::{SOON, eventually};
use super::relay::{Relay, RelayProcess};

/// An answer of the admin address.
#[derive(Debug)]
pub struct Answered {
    /// The HTTP status code.
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    /// The body as text.
    pub body: String,
}

impl Answered {
    /// Parses the body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }
}

/// The admin address of a relay, and the token to send with each request.
#[derive(Debug, Clone)]
pub struct Admin {
    address: SocketAddr,
    token: Option<String>,
}

impl Admin {
    /// Returns the admin address of a relay that was told which one to take.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, token: None }
    }

    /// Waits until the relay has logged the address that it chose.
    pub async fn from_relay(relay: &RelayProcess) -> anyhow::Result<Self> {
        let line = relay.wait_for("admin_listening").await;
        let address = line["address"].as_str().unwrap_or_default().parse().with_context(|| line.to_string())?;
        Ok(Self { address, token: None })
    }

    /// Returns the same address with a token.
    pub fn showing(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// Returns the address that the relay listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a GET request and returns the answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answered> {
        self.request("GET", path).await
    }

    /// Sends one request and reads the whole answer.
    pub async fn request(&self, method: &str, path: &str) -> anyhow::Result<Answered> {
        let token = self.token.as_ref().map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(format!("{method} {path} HTTP/1.0\r\nHost: relay\r\n{token}\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let status = head.get(9..12).context("no status")?.parse()?;
        Ok(Answered { status, head: head.to_lowercase(), body: body.to_owned() })
    }

    /// Asks `/readyz` until the answer has this status and `matches` is true for its body.
    pub async fn until_ready_says(&self, status: u16, matches: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("/readyz says {status}"), SOON * 2, || async {
            let answered = self.get("/readyz").await.map_err(|error| format!("{error:?}"))?;
            let body = answered.json().map_err(|error| format!("{error:?}"))?;
            if answered.status == status && matches(&body) { Ok(body) } else { Err(format!("{answered:?}")) }
        })
        .await
    }
}

/// Gives the relay an admin address on a free port, and a stall limit of 1 s.
pub fn with_admin(relay: Relay) -> Relay {
    relay.with("RELAY_ADMIN_ADDRESS", "127.0.0.1:0").with("RELAY_STALL_AFTER", "1s")
}
