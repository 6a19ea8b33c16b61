//! Where the relay answers probes and shows its metrics, and who may ask.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use secrecy::{ExposeSecret, SecretString};

use super::mistake::Mistake;
use super::resolved::Resolved;
use super::setting::Kind;

/// The admin address: probes and metrics.
#[derive(Clone)]
pub struct AdminSettings {
    /// Where it listens; `None`: nowhere.
    pub address: Option<SocketAddr>,
    token: Option<SecretString>,
}

impl AdminSettings {
    pub(super) fn read(from: &mut Resolved) -> Option<Self> {
        let address = from.optional("admin_address", |_, text| address(text));
        let token = from.optional("admin_token", token);
        let settings = Self { address: address?, token: token? };
        if let Some(address) = settings.address.filter(|address| !address.ip().is_loopback())
            && settings.token.is_none()
        {
            let problem = format!("{address} can be reached from other hosts, which needs RELAY_ADMIN_TOKEN");
            from.mistakes.push(Mistake::new("RELAY_ADMIN_ADDRESS", problem));
        }
        Some(settings)
    }

    /// What a caller has to show; never print it.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_ref().map(ExposeSecret::expose_secret)
    }
}

impl fmt::Debug for AdminSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminSettings").field("address", &self.address).finish_non_exhaustive()
    }
}

/// No host names: one that resolves to more than is meant would open more than is meant.
fn address(text: &str) -> Result<SocketAddr, String> {
    let localhost = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let localhost = localhost.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    localhost.or_else(|| text.parse().ok()).ok_or_else(String::new)
}

/// What fits into a header as it is.
fn token(kind: &Kind, text: &str) -> Result<SecretString, String> {
    match kind {
        Kind::Secret { min_len, max_len }
            if (*min_len..=*max_len).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(text.into())
        }
        _ => Err(String::new()),
    }
}
