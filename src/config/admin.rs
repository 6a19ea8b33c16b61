//! Reads the address for probes and metrics, and the token that a caller must present.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use secrecy::{ExposeSecret, SecretString};

use super::mistake::Mistake;
use super::resolved::Resolved;
use super::setting::{self, Kind};
use super::value::Value;

/// The admin address, for probes and metrics.
#[derive(Clone)]
pub struct AdminSettings {
    /// The address to listen on; `None`: the relay does not listen.
    pub address: Option<SocketAddr>,
    token: Option<SecretString>,
}

impl AdminSettings {
    pub(super) fn read(from: &mut Resolved) -> Self {
        let settings =
            Self { address: from.optional(&setting::ADMIN_ADDRESS), token: from.optional(&setting::ADMIN_TOKEN) };
        if let Some(address) = settings.address.filter(|address| !address.ip().is_loopback())
            && !from.is_given(&setting::ADMIN_TOKEN)
        {
            let problem = format!("{address} can be reached from other hosts, which needs RELAY_ADMIN_TOKEN");
            from.mistakes.push(Mistake::new("RELAY_ADMIN_ADDRESS", problem));
        }
        settings
    }

    /// Returns the token that a caller must present. Never print it.
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
impl Value for SocketAddr {
    fn parse(_: &Kind, text: &str) -> Result<Self, String> {
        let localhost = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
        let localhost = localhost.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        localhost.or_else(|| text.parse().ok()).ok_or_else(String::new)
    }
}

/// What fits into a header as it is.
impl Value for SecretString {
    fn parse(kind: &Kind, text: &str) -> Result<Self, String> {
        match kind {
            Kind::Secret { min_len, max_len }
                if (*min_len..=*max_len).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Ok(text.into())
            }
            _ => Err(String::new()),
        }
    }
}
