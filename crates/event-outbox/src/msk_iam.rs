//! Logs in to Amazon MSK with IAM: the mechanism that AWS calls `AWS_MSK_IAM`.
//!
//! The broker takes a token through SASL's OAUTHBEARER. The token is the URL of a request that is signed with the credentials of AWS
//! (Signature Version 4) and that nobody sends.
//!
//! - `signature`: signs the URL
//! - `credentials`: finds credentials as the SDKs of AWS do: variables, web identity, profile, container, instance
//! - `profile`: reads the files `credentials` and `config`
//! - `http`: asks the endpoints that give out temporary credentials

mod credentials;
mod http;
mod profile;
mod signature;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};

use credentials::Credentials;

/// The name that AWS gives the mechanism. librdkafka knows it as OAUTHBEARER.
pub const MECHANISM: &str = "AWS_MSK_IAM";

/// The name of this client in the access log of the cluster.
const USER_AGENT: &str = concat!("event-outbox/", env!("CARGO_PKG_VERSION"));

/// Temporary credentials are fetched again this long before they end.
const RENEW_BEFORE: TimeDelta = TimeDelta::minutes(5);

/// A token for the mechanism OAUTHBEARER.
pub struct Token {
    /// The signed URL in base64. A secret.
    pub value: String,
    /// The end of the token, in milliseconds since 1970.
    pub expires_at_ms: i64,
}

/// Prints no token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires_at_ms", &self.expires_at_ms).finish_non_exhaustive()
    }
}

/// The error of a login that has no token. Its text names no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MskIamError {
    /// No source has credentials, or a source is incomplete. Somebody has to change the configuration.
    #[error("{0}")]
    NoCredentials(String),
    /// An endpoint of AWS refused the request. Somebody has to change a role or a policy.
    #[error("{0}")]
    Refused(String),
    /// An endpoint of AWS does not answer, or answers that it cannot help for now.
    #[error("{0}")]
    Unreachable(String),
}

/// Makes tokens for a cluster. Clones share their credentials.
#[derive(Clone)]
pub struct MskIam {
    region: Arc<str>,
    /// The variables that begin with `AWS_`, and `HOME`.
    environment: Arc<BTreeMap<String, String>>,
    /// Temporary credentials until shortly before their end.
    kept: Arc<Mutex<Option<Credentials>>>,
    /// The error of the last token, if there was none.
    failed: Arc<Mutex<Option<MskIamError>>>,
}

/// Prints no credentials.
impl fmt::Debug for MskIam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MskIam").field("region", &self.region).finish_non_exhaustive()
    }
}

impl MskIam {
    /// Reads region and credentials from these variables. The brokers' names say the region if they are those that AWS gave them, such as
    /// `b-1.shop.abcdef.c2.kafka.eu-central-1.amazonaws.com:9098`; else `AWS_REGION`, `AWS_DEFAULT_REGION` or the profile does.
    ///
    /// # Errors
    /// [`MskIamError::NoCredentials`] if nothing names a region. Credentials are looked for with the first token.
    pub fn new(brokers: &str, environment: BTreeMap<String, String>) -> Result<Self, MskIamError> {
        let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
        let region = region_of(brokers)
            .or_else(|| variable("AWS_REGION"))
            .or_else(|| variable("AWS_DEFAULT_REGION"))
            .or_else(|| profile::Profile::read(&environment).ok()?.get("region").map(str::to_owned))
            .ok_or_else(|| MskIamError::NoCredentials("no region of AWS is known; set AWS_REGION".to_owned()))?;
        let is_region = region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_region {
            return Err(MskIamError::NoCredentials("AWS_REGION is no region such as eu-central-1".to_owned()));
        }
        Ok(Self {
            region: region.into(),
            environment: Arc::new(environment),
            kept: Arc::default(),
            failed: Arc::default(),
        })
    }

    /// Reads the variables of this process: see [`MskIam::new`].
    ///
    /// # Errors
    /// As [`MskIam::new`].
    pub fn from_env(brokers: &str) -> Result<Self, MskIamError> {
        let is_read = |name: &str| name.starts_with("AWS_") || name == "HOME";
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok().filter(|name| is_read(name))?, value.into_string().ok()?))
        });
        Self::new(brokers, variables.collect())
    }

    /// Returns the region of the cluster.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Signs a token that is good for 15 minutes, or for as long as the credentials. Blocks for some seconds if temporary credentials have to
    /// be fetched and their endpoint does not answer.
    ///
    /// # Errors
    /// The reason why there are no credentials.
    pub fn token(&self) -> Result<Token, MskIamError> {
        let made = self.signed(Utc::now());
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = made.as_ref().err().cloned();
        made
    }

    /// Returns the error of the last token, if there was none.
    pub fn failure(&self) -> Option<MskIamError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn signed(&self, now: DateTime<Utc>) -> Result<Token, MskIamError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let credentials = match kept.take().filter(|kept| kept.is_fresh(now, RENEW_BEFORE)) {
            Some(credentials) => credentials,
            None => credentials::find(&self.environment, &self.region)?,
        };
        let token = signature::token(&credentials, &self.region, USER_AGENT, now);
        // Credentials of files and variables are read again each time, so that a rotation needs no restart.
        *kept = Some(credentials).filter(|credentials| credentials.expires_at.is_some());
        Ok(token)
    }
}

/// Returns the region in the name of a broker of MSK.
fn region_of(brokers: &str) -> Option<String> {
    brokers.split(',').find_map(|broker| {
        let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host);
        let host = host.strip_suffix(".cn").unwrap_or(host).strip_suffix(".amazonaws.com")?;
        let (rest, region) = host.rsplit_once('.')?;
        let service = rest.rsplit('.').next()?;
        ["kafka", "kafka-serverless"].contains(&service).then(|| region.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(given: &[(&str, &str)]) -> BTreeMap<String, String> {
        given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_brokers_name_the_region() {
        let of = |brokers| region_of(brokers);
        assert_eq!(of("b-1.shop.abc.c2.kafka.eu-central-1.amazonaws.com:9098").as_deref(), Some("eu-central-1"));
        assert_eq!(of("boot-x.c2.kafka-serverless.us-east-1.amazonaws.com:9098").as_deref(), Some("us-east-1"));
        assert_eq!(of("b-1.a.b.c2.kafka.cn-north-1.amazonaws.com.cn:9098").as_deref(), Some("cn-north-1"));
        assert_eq!(of("a:1,b.c:2,sqs.eu-west-1.amazonaws.com:3"), None);
        let given = environment(&[("AWS_REGION", "eu-west-1")]);
        assert_eq!(MskIam::new("localhost:9098", given).unwrap().region(), "eu-west-1");
        let wrong = environment(&[("AWS_REGION", "a/b")]);
        assert!(MskIam::new("localhost:9098", wrong).unwrap_err().to_string().contains("AWS_REGION"));
        assert!(MskIam::new("localhost:9098", environment(&[])).unwrap_err().to_string().contains("AWS_REGION"));
    }

    #[test]
    fn a_failure_is_kept_until_there_is_a_token() {
        let none = environment(&[("AWS_REGION", "eu-west-1"), ("AWS_EC2_METADATA_DISABLED", "true")]);
        let login = MskIam::new("localhost:9098", none).unwrap();
        let error = login.token().unwrap_err();
        assert!(matches!(error, MskIamError::NoCredentials(_)), "{error}");
        assert_eq!(login.failure(), Some(error));
        let given = [("AWS_REGION", "eu-west-1"), ("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "hunter2")];
        let login = MskIam::new("localhost:9098", environment(&given)).unwrap();
        let token = login.token().unwrap();
        assert!(login.failure().is_none() && token.expires_at_ms > Utc::now().timestamp_millis() + 890_000);
        assert!(!format!("{login:?} {token:?}").contains("hunter2"));
    }
}
