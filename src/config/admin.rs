//! Reads the address for probes and metrics, and the token that a caller must present.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

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
    /// Clones share the token, which is read again while the relay runs.
    token: Arc<RwLock<Option<SecretString>>>,
}

impl AdminSettings {
    pub(super) fn read(from: &mut Resolved) -> Self {
        let token = Arc::new(RwLock::new(from.optional(&setting::ADMIN_TOKEN)));
        let settings = Self { address: from.optional(&setting::ADMIN_ADDRESS), token };
        if let Some(address) = settings.address.filter(|address| !address.ip().is_loopback())
            && !from.is_given(&setting::ADMIN_TOKEN)
        {
            let problem = format!("{address} can be reached from other hosts, which needs RELAY_ADMIN_TOKEN");
            from.mistakes.push(Mistake::new("RELAY_ADMIN_ADDRESS", problem));
        }
        settings
    }

    /// Returns the token that a caller must present. Never print it.
    pub(crate) fn token(&self) -> Option<SecretString> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the token of settings that were read again. Returns true if it is another one. A token is never taken away, because the address
    /// may need one.
    pub(crate) fn adopt(&self, fresh: &Self) -> bool {
        let Some(new) = fresh.token() else { return false };
        let mut token = self.token.write().unwrap_or_else(PoisonError::into_inner);
        let is_same = token.as_ref().is_some_and(|old| old.expose_secret() == new.expose_secret());
        *token = Some(new);
        !is_same
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
