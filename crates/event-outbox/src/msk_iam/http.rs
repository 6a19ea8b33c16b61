//! Asks the endpoints that give out temporary credentials. Blocks, for some seconds at most.

use std::sync::Arc;
use std::time::Duration;

use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy, http::Response};

use super::MskIamError;

/// The longest wait for the connection, and for the whole answer. Instances and containers answer within milliseconds.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The longest answer; credentials have a few kilobytes.
const LONGEST: u64 = 64 << 10;

/// Asks one endpoint. Its answers are text.
pub(super) struct Endpoint {
    agent: Agent,
    /// The name of the endpoint in errors.
    what: &'static str,
}

impl Endpoint {
    /// Makes a client for an endpoint of this machine or network, which no proxy stands before.
    pub(super) fn nearby(what: &'static str) -> Self {
        Self::new(what, None)
    }

    /// Makes a client for an endpoint that may be behind the proxy of the environment.
    pub(super) fn remote(what: &'static str) -> Self {
        Self::new(what, Proxy::try_from_env())
    }

    fn new(what: &'static str, proxy: Option<Proxy>) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_global(Some(ANSWER_WITHIN));
        Self { agent: config.build().into(), what }
    }

    pub(super) fn get(&self, url: &str, header: Option<(&str, &str)>) -> Result<String, MskIamError> {
        let request = self.agent.get(self.uri(url)?);
        let request = header.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        self.text(request.call())
    }

    pub(super) fn put(&self, url: &str, header: (&str, &str)) -> Result<String, MskIamError> {
        self.text(self.agent.put(self.uri(url)?).header(header.0, header.1).send_empty())
    }

    pub(super) fn post_form(&self, url: &str, form: &[(&str, &str)]) -> Result<String, MskIamError> {
        self.text(self.agent.post(self.uri(url)?).send_form(form.iter().copied()))
    }

    fn uri(&self, url: &str) -> Result<Uri, MskIamError> {
        url.parse().map_err(|_| MskIamError::NoCredentials(format!("the address of {} is no URL", self.what)))
    }

    /// Returns the text of an answer. Texts of refusals are left out, because they may repeat what was sent.
    fn text(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<String, MskIamError> {
        let unreachable =
            |why: &dyn std::fmt::Display| MskIamError::Unreachable(format!("{} does not answer: {why}", self.what));
        let mut answer = answer.map_err(|error| unreachable(&error))?;
        match answer.status().as_u16() {
            200 => answer.body_mut().with_config().limit(LONGEST).read_to_string().map_err(|error| unreachable(&error)),
            code @ (408 | 429 | 500..) => Err(MskIamError::Unreachable(format!("{} answers HTTP {code}", self.what))),
            code => Err(MskIamError::Refused(format!("{} refuses the request: HTTP {code}", self.what))),
        }
    }
}
