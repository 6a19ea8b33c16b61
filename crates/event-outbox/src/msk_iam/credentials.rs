//! Finds credentials where the SDKs of AWS find them, in their order. The first source that is configured decides: if it fails, no other one
//! is asked.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::SecretString;
use serde::Deserialize;

use super::MskIamError;
use super::http::Endpoint;
use super::profile::Profile;

/// The name of a session of a web identity, unless `AWS_ROLE_SESSION_NAME` has another.
const SESSION: &str = "event-outbox";

const CONTAINER: &str = "http://169.254.170.2";
const INSTANCE: &str = "http://169.254.169.254";

/// Where containers get credentials from, beside loopback addresses and HTTPS.
const CONTAINER_HOSTS: [&str; 4] = ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]", "localhost"];

/// Keys that a request can be signed with.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) access_key: String,
    pub(super) secret_key: SecretString,
    pub(super) session_token: Option<SecretString>,
    /// The end of temporary credentials; `None` for those that are read again each time.
    pub(super) expires_at: Option<DateTime<Utc>>,
}

impl Credentials {
    /// Returns true until `before` their end.
    pub(super) fn is_fresh(&self, now: DateTime<Utc>, before: TimeDelta) -> bool {
        self.expires_at.is_some_and(|at| now + before < at)
    }
}

/// The answer of the endpoints of containers and instances.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
    expiration: Option<DateTime<Utc>>,
}

type Environment = BTreeMap<String, String>;

fn variable<'e>(environment: &'e Environment, name: &str) -> Option<&'e str> {
    environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// Returns the credentials of the first source that is configured.
///
/// # Errors
/// The reason why it has none.
pub(super) fn find(environment: &Environment, region: &str) -> Result<Credentials, MskIamError> {
    let given = |name: &str| variable(environment, name);
    if let (Some(access_key), Some(secret)) = (given("AWS_ACCESS_KEY_ID"), given("AWS_SECRET_ACCESS_KEY")) {
        return Ok(fixed(access_key, secret, given("AWS_SESSION_TOKEN")));
    }
    if let (Some(file), Some(role)) = (given("AWS_WEB_IDENTITY_TOKEN_FILE"), given("AWS_ROLE_ARN")) {
        return web_identity(environment, region, file, role);
    }
    let profile = Profile::read(environment)?;
    if let (Some(access_key), Some(secret)) = (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key"))
        && profile.get("role_arn").is_none()
    {
        return Ok(fixed(access_key, secret, profile.get("aws_session_token")));
    }
    if let (Some(file), Some(role)) = (profile.get("web_identity_token_file"), profile.get("role_arn")) {
        return web_identity(environment, region, file, role);
    }
    if let Some(name) = profile.unsupported() {
        let text =
            format!("the profile {:?} uses {name}, which is not supported; use keys or a web identity", profile.name);
        return Err(MskIamError::NoCredentials(text));
    }
    if let Some(path) = given("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        return container(environment, &format!("{CONTAINER}{path}"));
    }
    if let Some(url) = given("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return container(environment, url);
    }
    instance(environment)
}

fn fixed(access_key: &str, secret: &str, session: Option<&str>) -> Credentials {
    Credentials {
        access_key: access_key.to_owned(),
        secret_key: secret.into(),
        session_token: session.map(Into::into),
        expires_at: None,
    }
}

fn read(what: &str, path: &str) -> Result<String, MskIamError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| MskIamError::NoCredentials(format!("{what} ({path}) cannot be read: {error}")))?;
    Ok(text.trim().to_owned())
}

/// Exchanges the token of a web identity, such as a pod's, for credentials of a role.
fn web_identity(environment: &Environment, region: &str, file: &str, role: &str) -> Result<Credentials, MskIamError> {
    let token = read("the web identity token", file)?;
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let url = variable(environment, "AWS_ENDPOINT_URL_STS").map(str::to_owned);
    let url = url.unwrap_or_else(|| format!("https://sts.{region}.{domain}"));
    let session = variable(environment, "AWS_ROLE_SESSION_NAME").unwrap_or(SESSION);
    let answer = Endpoint::remote("the Security Token Service").post_form(
        &url,
        &[
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", session),
            ("WebIdentityToken", &token),
        ],
    )?;
    let element = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text.trim())
    };
    let found = || {
        Some(Credentials {
            access_key: element("AccessKeyId")?.to_owned(),
            secret_key: element("SecretAccessKey")?.into(),
            session_token: Some(element("SessionToken")?.into()),
            expires_at: Some(element("Expiration")?.parse().ok()?),
        })
    };
    found().ok_or_else(|| not_understood("the Security Token Service"))
}

/// Asks the endpoint of a container (ECS, or EKS Pod Identity).
fn container(environment: &Environment, url: &str) -> Result<Credentials, MskIamError> {
    const WHAT: &str = "the container's endpoint of credentials";
    let host = url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(rest));
    let host = host.rsplit_once(':').filter(|_| !host.ends_with(']')).map_or(host, |(host, _)| host);
    let is_near = CONTAINER_HOSTS.contains(&host) || host.starts_with("127.") || host == "[::1]";
    if !url.starts_with("https://") && !is_near {
        let text = "AWS_CONTAINER_CREDENTIALS_FULL_URI is neither HTTPS nor an address of this host".to_owned();
        return Err(MskIamError::NoCredentials(text));
    }
    let token = match variable(environment, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(file) => Some(read("the container's token", file)?),
        None => variable(environment, "AWS_CONTAINER_AUTHORIZATION_TOKEN").map(str::to_owned),
    };
    let header = token.as_deref().map(|token| ("Authorization", token));
    parsed(WHAT, &Endpoint::nearby(WHAT).get(url, header)?)
}

/// Asks the metadata of an EC2 instance (version 2).
fn instance(environment: &Environment) -> Result<Credentials, MskIamError> {
    const WHAT: &str = "the instance's metadata";
    const SOURCES: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_WEB_IDENTITY_TOKEN_FILE and \
                           AWS_ROLE_ARN, or run on AWS";
    if variable(environment, "AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(MskIamError::NoCredentials(format!("there are no credentials of AWS; {SOURCES}")));
    }
    let base = variable(environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or(INSTANCE).trim_end_matches('/');
    let endpoint = Endpoint::nearby(WHAT);
    let token = endpoint.put(&format!("{base}/latest/api/token"), ("X-aws-ec2-metadata-token-ttl-seconds", "21600"));
    let token = token.map_err(|error| match error {
        MskIamError::Unreachable(_) => {
            MskIamError::Unreachable(format!("there are no credentials of AWS, and {WHAT} does not answer; {SOURCES}"))
        }
        other => other,
    })?;
    let header = Some(("X-aws-ec2-metadata-token", token.trim()));
    let roles = format!("{base}/latest/meta-data/iam/security-credentials/");
    let role = endpoint.get(&roles, header)?;
    let role = role.lines().next().unwrap_or_default().trim();
    if role.is_empty() {
        return Err(MskIamError::NoCredentials("the instance has no role".to_owned()));
    }
    parsed(WHAT, &endpoint.get(&format!("{roles}{role}"), header)?)
}

fn parsed(what: &str, text: &str) -> Result<Credentials, MskIamError> {
    // The error of the parser is left out, because it may quote the text.
    let answer: Answer = serde_json::from_str(text).map_err(|_| not_understood(what))?;
    Ok(Credentials {
        access_key: answer.access_key_id,
        secret_key: answer.secret_access_key.into(),
        session_token: answer.token.map(Into::into),
        expires_at: answer.expiration,
    })
}

fn not_understood(what: &str) -> MskIamError {
    MskIamError::Unreachable(format!("{what} answers something else than credentials"))
}

#[cfg(test)]
mod tests;
