//! Gives the clients of a consumer tokens for the mechanism OAUTHBEARER.

use std::error::Error;
use std::sync::Arc;

use rdkafka::client::OAuthToken;

type Source = dyn Fn() -> Result<OAuthToken, Box<dyn Error>> + Send + Sync;

/// The source of tokens, if the consumer has one.
#[derive(Clone, Default)]
pub(super) struct Tokens(Option<Arc<Source>>);

impl Tokens {
    pub(super) fn new(source: impl Fn() -> Result<OAuthToken, Box<dyn Error>> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(source)))
    }

    /// Returns a token. librdkafka asks on the thread that polls the client, before the last fifth of the last token's life.
    pub(super) fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        match &self.0 {
            Some(source) => source(),
            None => Err("no source of tokens: see Consumer::tokens".into()),
        }
    }
}
