//! Gives clients the tokens of a login with IAM, and tells why a client has no token.
//!
//! Two mechanisms log in with tokens. For OAUTHBEARER librdkafka asks an OpenID provider itself, on a thread of its own. For AWS_MSK_IAM the
//! relay signs the tokens. librdkafka asks for one with an event, which only a poll serves: a client needs a poll before its first
//! connection, and one a second while nothing else polls it.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use event_outbox::msk_iam::{MskIam, MskIamError};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::{ClientContext, DefaultClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};

use crate::config::KafkaSettings;
use crate::fault::{Fault, TOKEN_REFUSED, TOKEN_SERVER_AWAY, classify_kafka};
use crate::sink::client::{is_about_tokens, log_line};

/// The interval of polls that serve the requests for tokens.
pub(crate) const SERVED_EVERY: Duration = Duration::from_secs(1);

/// The longest wait for the first token. Endpoints of AWS have a shorter limit.
const FIRST_WITHIN: Duration = Duration::from_secs(8);

/// The time for which a failure explains refused logins. librdkafka asks again within 10 s, or within a minute if the server answers with
/// an error of its own.
const EXPLAINS_FOR: Duration = Duration::from_secs(90);

/// The most errors that a client keeps. The first ones tell the cause.
const COMPLAINTS_KEPT: usize = 50;

/// The alerts by which a peer refuses a certificate: from `handshake_failure` to `access_denied`, and `certificate_required`.
const CERTIFICATE_ALERTS: [u8; 9] = [40, 42, 43, 44, 45, 46, 48, 49, 116];

/// The user whose token it is. Brokers take the user from the token itself.
const PRINCIPAL: &str = "outbox-relay";

/// The logins of one cluster's clients, and why the last one has no token.
#[derive(Clone, Default)]
pub(crate) struct Login {
    msk_iam: Option<MskIam>,
    /// The last failure of librdkafka to fetch a token.
    failed: Arc<Mutex<Option<(Instant, String, Fault)>>>,
}

impl Login {
    pub(crate) fn new(kafka: &KafkaSettings) -> Self {
        Self { msk_iam: kafka.msk_iam().cloned(), failed: Arc::default() }
    }

    /// Returns true if the client's events have to be polled for tokens.
    pub(crate) fn needs_polls(&self) -> bool {
        self.msk_iam.is_some()
    }

    /// Returns a token for librdkafka.
    ///
    /// # Errors
    /// The reason why there is none, which librdkafka repeats as an error of the client.
    pub(crate) fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let Some(msk_iam) = &self.msk_iam else { return Err("the mechanism has no tokens".into()) };
        let token = msk_iam.token()?;
        Ok(OAuthToken { token: token.value, principal_name: PRINCIPAL.to_owned(), lifetime_ms: token.expires_at_ms })
    }

    /// Reads a log line of librdkafka. Only its line says whether the token server refused the request or did not answer.
    pub(crate) fn log(&self, facility: &str, message: &str) {
        if let Some((reason, fault)) = failure_in(facility, message) {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), reason, fault));
        }
    }

    /// Returns why there is no token, if an error of the client is about that.
    pub(crate) fn explain(&self, code: Option<RDKafkaErrorCode>) -> Option<(String, Fault)> {
        if code != Some(RDKafkaErrorCode::Authentication) {
            return None;
        }
        if let Some(error) = self.msk_iam.as_ref().and_then(MskIam::failure) {
            let is_away = matches!(error, MskIamError::Unreachable(_));
            return Some((error.to_string(), if is_away { TOKEN_SERVER_AWAY } else { TOKEN_REFUSED }));
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed
            .as_ref()
            .filter(|(at, ..)| at.elapsed() < EXPLAINS_FOR)
            .map(|(_, reason, fault)| (reason.clone(), *fault))
    }
}

/// Returns the failure that librdkafka's line `Failed to retrieve OIDC token from "URL": TEXT (CODE)` is about. The URL and the text of the
/// answer are dropped, because they may have a secret in them.
fn failure_in(facility: &str, message: &str) -> Option<(String, Fault)> {
    if !is_about_tokens(facility) {
        return None;
    }
    let (text, code) = message.strip_suffix(')')?.rsplit_once(" (")?;
    let code: i32 = code.parse().ok()?;
    Some(match code {
        // Not an answer, but libcurl's own error.
        ..=0 => {
            let why = text.rsplit_once("\": ").map_or("no answer", |(_, why)| why);
            (format!("the token server does not answer: {why}"), TOKEN_SERVER_AWAY)
        }
        408 | 425 | 429 | 500.. => (format!("the token server answers HTTP {code}"), TOKEN_SERVER_AWAY),
        _ => (format!("the token server refuses the request: HTTP {code}"), TOKEN_REFUSED),
    })
}

/// Returns the code of a client's error. A broker that refuses the client's certificate says so after the handshake, which librdkafka takes for
/// a lost connection: only the number of the TLS alert (RFC 8446, section 6) tells.
pub(crate) fn code_of(code: Option<RDKafkaErrorCode>, reason: &str) -> Option<RDKafkaErrorCode> {
    let alert = || -> Option<u8> {
        let (_, rest) = reason.split_once("SSL alert number ")?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    match code {
        Some(RDKafkaErrorCode::BrokerTransportFailure)
            if alert().is_some_and(|alert| CERTIFICATE_ALERTS.contains(&alert)) =>
        {
            Some(RDKafkaErrorCode::SSL)
        }
        code => code,
    }
}

/// An error that a client has reported.
#[derive(Debug, Clone)]
pub(crate) struct Complaint {
    pub(crate) code: RDKafkaErrorCode,
    pub(crate) reason: String,
    pub(crate) fault: Fault,
}

impl Complaint {
    /// Returns true if the broker refused the login, or a certificate was refused.
    pub(crate) fn is_security(&self) -> bool {
        use RDKafkaErrorCode::{Authentication, SSL, SaslAuthenticationFailed, UnsupportedSASLMechanism};
        matches!(self.code, SSL | Authentication | SaslAuthenticationFailed | UnsupportedSASLMechanism)
    }
}

/// The context of a client that lives for one question or one command. It serves tokens, keeps the first errors and writes librdkafka's debug
/// log.
pub(crate) struct Quiet {
    login: Login,
    complaints: Mutex<Vec<Complaint>>,
    /// True once the client has asked for its first token.
    asked: AtomicBool,
}

impl Quiet {
    fn new(kafka: &KafkaSettings) -> Self {
        Self { login: Login::new(kafka), complaints: Mutex::default(), asked: AtomicBool::new(false) }
    }

    /// Returns the most useful error so far: the first one about security, or else the first one.
    pub(crate) fn complaint(&self) -> Option<Complaint> {
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.iter().find(|complaint| complaint.is_security()).or_else(|| complaints.first()).cloned()
    }

    /// Returns true once the client has lost every broker that it knows.
    pub(crate) fn has_lost_all(&self) -> bool {
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.iter().any(|complaint| complaint.code == RDKafkaErrorCode::AllBrokersDown)
    }

    /// Polls the client until it has its first token.
    fn first_token(&self, poll: impl Fn(Duration)) {
        let began = Instant::now();
        while self.login.needs_polls() && !self.asked.load(Ordering::Acquire) && began.elapsed() < FIRST_WITHIN {
            poll(Duration::from_millis(20));
        }
    }
}

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.login.log(facility, message);
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_line(RDKafkaLogLevel::Error, "ERROR", &format!("{error}: {reason}"));
        let code = code_of(error.rdkafka_error_code(), reason).unwrap_or(RDKafkaErrorCode::Unknown);
        let explained = self.login.explain(Some(code));
        let (reason, fault) = explained.unwrap_or_else(|| (reason.to_owned(), classify_kafka(code)));
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() < COMPLAINTS_KEPT {
            complaints.push(Complaint { code, reason, fault });
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let token = self.login.token();
        self.asked.store(true, Ordering::Release);
        token
    }
}

impl ConsumerContext for Quiet {}

impl ProducerContext<NoCustomPartitioner> for Quiet {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): ()) {}
}

/// Creates a consumer that has its token. Blocks for as long as the token takes.
///
/// # Errors
/// The error that librdkafka finds in the settings. Its message may quote a setting.
pub(crate) fn consumer(config: &ClientConfig, kafka: &KafkaSettings) -> Result<BaseConsumer<Quiet>, KafkaError> {
    let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet::new(kafka))?;
    consumer.context().first_token(|within| drop(consumer.poll(within)));
    Ok(consumer)
}

/// Creates a producer that has its token. Blocks for as long as the token takes.
///
/// # Errors
/// The error that librdkafka finds in the settings. Its message may quote a setting.
pub(crate) fn producer(config: &ClientConfig, kafka: &KafkaSettings) -> Result<BaseProducer<Quiet>, KafkaError> {
    let producer: BaseProducer<Quiet> = config.create_with_context(Quiet::new(kafka))?;
    producer.context().first_token(|within| producer.poll(within));
    Ok(producer)
}

/// Creates a client for requests about topics and configurations; `None` for a login with IAM. The Rust client polls no events of such a
/// client, so it would never get a token.
///
/// # Errors
/// The error that librdkafka finds in the settings. Its message may quote a setting.
pub(crate) fn admin(
    config: &ClientConfig,
    kafka: &KafkaSettings,
) -> Result<Option<AdminClient<DefaultClientContext>>, KafkaError> {
    if kafka.msk_iam().is_some() {
        return Ok(None);
    }
    config.create().map(Some)
}

/// Serves the requests for tokens of a producer that nobody else polls all the time, until it is dropped.
pub(crate) fn keep_served<C>(producer: &Arc<BaseProducer<C>>, login: &Login) -> Result<(), KafkaError>
where
    C: ProducerContext<NoCustomPartitioner> + 'static,
{
    if !login.needs_polls() {
        return Ok(());
    }
    let served: Weak<BaseProducer<C>> = Arc::downgrade(producer);
    let serve = move || {
        while let Some(producer) = served.upgrade() {
            producer.poll(Duration::from_millis(20));
            drop(producer);
            thread::sleep(SERVED_EVERY);
        }
    };
    let started = thread::Builder::new().name("kafka tokens".to_owned()).spawn(serve);
    started.map(drop).map_err(|error| KafkaError::ClientCreation(format!("cannot start a thread: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_token_server_is_told_from_an_outage_and_its_text_is_dropped() {
        let line = |text: &str, code: i32| {
            let message = format!("Failed to retrieve OIDC token from \"https://u:hunter2@id/token\": {text} ({code})");
            failure_in("OIDC", &message).unwrap()
        };
        let away = line("Failed to connect to id port 443: Connection refused", -1);
        assert_eq!(away.0, "the token server does not answer: Failed to connect to id port 443: Connection refused");
        assert_eq!(away.1, TOKEN_SERVER_AWAY);
        for (code, fault) in
            [(401, TOKEN_REFUSED), (400, TOKEN_REFUSED), (404, TOKEN_REFUSED), (503, TOKEN_SERVER_AWAY)]
        {
            let (reason, found) = line("{\"error\":\"hunter2\"}", code);
            assert!(reason.ends_with(&format!("HTTP {code}")) && !reason.contains("hunter2"), "{reason}");
            assert_eq!(found, fault, "{code}");
        }
        assert!(failure_in("FAIL", "x (401)").is_none() && failure_in("OIDC", "something else").is_none());
    }

    #[test]
    fn an_alert_about_a_certificate_is_no_lost_connection() {
        let lost = Some(RDKafkaErrorCode::BrokerTransportFailure);
        let alert = |number: u8| {
            format!("Receive failed: error:0A000416:SSL routines::x: SSL alert number {number} (after 0ms)")
        };
        assert_eq!(code_of(lost, &alert(46)), Some(RDKafkaErrorCode::SSL));
        assert_eq!(code_of(lost, &alert(116)), Some(RDKafkaErrorCode::SSL));
        assert_eq!(code_of(lost, &alert(80)), lost);
        assert_eq!(code_of(lost, "Connection refused"), lost);
    }
}
