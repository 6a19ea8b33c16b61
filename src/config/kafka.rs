//! Reads the brokers and the properties that are passed through to librdkafka.

use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use secrecy::{ExposeSecret, SecretString};

use super::mistake::{Mistake, showable};
use super::pem::{self, Holds};
use super::producer::{DEFAULT_PARTITIONER, RuleOutcome, apply_rules};
use super::property::Property;
use super::resolved::Resolved;
use super::sources::Sources;
use super::{sasl, setting};
use event_outbox::msk_iam::{self, MskIam};

const PARTITIONER: &str = "partitioner";
const MECHANISM: &str = "sasl.mechanisms";

/// The connection to the brokers.
#[derive(Clone)]
pub struct KafkaSettings {
    brokers: String,
    properties: Vec<(&'static str, PropertyValue)>,
    /// Signs the tokens of the mechanism AWS_MSK_IAM; `None` for all others.
    msk_iam: Option<MskIam>,
    /// The login, if it was read again while the relay runs. Clones share it.
    reloaded: Arc<Reloaded>,
}

/// The properties of the login and of TLS that were read again.
#[derive(Default)]
struct Reloaded {
    properties: RwLock<Vec<(&'static str, PropertyValue)>>,
    /// Grows with each change. Clients of an older version are replaced.
    version: AtomicU64,
    /// The digest of the properties and of their files.
    digest: AtomicU64,
}

/// The value of one librdkafka property.
#[derive(Clone)]
pub enum PropertyValue {
    /// A value that may be shown.
    Plain(String),
    /// A value that must not be shown.
    Secret(SecretString),
}

impl PropertyValue {
    /// Returns the value itself, only for librdkafka.
    pub fn expose(&self) -> &str {
        match self {
            PropertyValue::Plain(text) => text,
            PropertyValue::Secret(text) => text.expose_secret(),
        }
    }

    /// Returns the value for people; a secret becomes `set`.
    pub fn shown(&self) -> &str {
        match self {
            PropertyValue::Plain(text) => text,
            PropertyValue::Secret(_) => "set",
        }
    }
}

impl fmt::Debug for PropertyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.shown(), f)
    }
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSettings").field("brokers", &self.brokers).field("properties", &self.properties).finish()
    }
}

impl KafkaSettings {
    pub(super) fn read(from: &mut Resolved, sources: &Sources) -> KafkaSettings {
        let brokers: String = from.get(&setting::KAFKA_BOOTSTRAP_SERVERS);
        let mut mistakes = Vec::new();
        let mut properties = Vec::new();
        let mut msk_iam = None;
        for (canonical, label, text) in from.properties() {
            let Some(property) = Property::named(canonical) else { continue };
            if property.name == MECHANISM && text == msk_iam::MECHANISM {
                match MskIam::new(&brokers, sources.variables_of_aws()) {
                    Ok(login) => msk_iam = Some(login),
                    Err(error) => mistakes.push(Mistake::new(label, error.to_string())),
                }
                properties.push((property.name, PropertyValue::Plain("OAUTHBEARER".to_owned())));
                continue;
            }
            match check(property, label, text) {
                Ok(()) => properties.push((property.name, value(property, text.to_owned()))),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        mistakes.extend(sasl::conflicts(from));
        from.mistakes.append(&mut mistakes);
        from.non_defaults.extend(properties.iter().map(|(name, value)| (*name, value.shown().to_owned())));
        if !from.has_property(PARTITIONER) {
            properties.push((PARTITIONER, PropertyValue::Plain(DEFAULT_PARTITIONER.into())));
        }
        let settings = KafkaSettings { brokers, properties, msk_iam, reloaded: Arc::default() };
        settings.reloaded.digest.store(settings.login_digest(), Ordering::Relaxed);
        settings
    }

    /// Takes login and certificates of settings that were read again, for the clients to come. Returns true if they are others, or if the
    /// content of a file is another one.
    pub(super) fn adopt(&self, fresh: &Self) -> bool {
        let digest = fresh.login_digest();
        if self.reloaded.digest.swap(digest, Ordering::Relaxed) == digest {
            return false;
        }
        let login = fresh.login().map(|(name, value)| (name, value.clone())).collect();
        *self.reloaded.properties.write().unwrap_or_else(PoisonError::into_inner) = login;
        self.reloaded.version.fetch_add(1, Ordering::Release);
        true
    }

    /// Returns a number that grows when login or certificates have changed.
    pub(crate) fn version(&self) -> u64 {
        self.reloaded.version.load(Ordering::Acquire)
    }

    /// Sets the login that was read again, if one was.
    pub(crate) fn renew_login(&self, config: &mut ClientConfig) {
        for (name, value) in self.reloaded.properties.read().unwrap_or_else(PoisonError::into_inner).iter() {
            config.set(*name, value.expose());
        }
    }

    fn login(&self) -> impl Iterator<Item = (&'static str, &PropertyValue)> {
        self.properties().filter(|(name, _)| is_login(name))
    }

    fn login_digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, value) in self.login() {
            (name, value.expose()).hash(&mut hasher);
            if name.ends_with(".location") || name.ends_with(".file") {
                fs::read(value.expose()).ok().hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Returns what signs the tokens of a login with IAM, if that is the mechanism.
    pub(crate) fn msk_iam(&self) -> Option<&MskIam> {
        self.msk_iam.as_ref()
    }

    /// Returns the brokers as `host:port,host:port`, the form of librdkafka.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Returns the same login and properties for other brokers.
    ///
    /// # Errors
    /// Why the text is no list of brokers.
    pub fn with_brokers(&self, brokers: &str) -> Result<Self, String> {
        Ok(Self { brokers: super::brokers::parse(brokers)?, ..self.clone() })
    }

    /// Returns the properties that were passed through, and the partitioner. An alias such as `linger.ms` is listed under
    /// librdkafka's own name, here `queue.buffering.max.ms`, because chance decides between two aliases in one client.
    pub fn properties(&self) -> impl Iterator<Item = (&'static str, &PropertyValue)> {
        self.properties.iter().map(|(name, value)| (*name, value))
    }

    /// Returns the partitioner.
    pub fn partitioner(&self) -> &str {
        self.value_of(PARTITIONER).unwrap_or(DEFAULT_PARTITIONER)
    }

    /// Returns a producer's configuration: the relay's `defaults`, overridden by the properties that were passed through.
    pub fn producer_config(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        self.client_config(defaults, self.properties())
    }

    /// Returns a consumer's configuration: as [`KafkaSettings::producer_config`], without properties that only producers have.
    pub fn consumer_config(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let shared = |name: &str| Property::named(name).is_some_and(|property| !property.producer_only);
        self.client_config(defaults, self.properties().filter(|(name, _)| shared(name)))
    }

    fn client_config<'a>(
        &self,
        defaults: &[(&str, &str)],
        properties: impl Iterator<Item = (&'static str, &'a PropertyValue)>,
    ) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("metadata.broker.list", &self.brokers);
        // If a service writes entity ids into entity_type by mistake, hundreds of topics must not be created.
        config.set("allow.auto.create.topics", "false");
        for (name, value) in defaults {
            config.set(canonical(name), *value);
        }
        config.set("socket.connection.setup.timeout.ms", self.setup_timeout());
        for (name, value) in properties {
            config.set(name, value.expose());
        }
        self.renew_login(&mut config);
        let has_authorities = ["ssl.ca.location", "ssl.ca.pem"].iter().any(|name| config.get(name).is_some());
        if self.is_encrypted() && !has_authorities {
            // The linked OpenSSL looks for certificates in the directory it was built for. This makes librdkafka look where systems
            // keep them.
            config.set("ssl.ca.location", "probe");
        }
        // The same for the connection to the server of tokens.
        if config.get("sasl.oauthbearer.method").is_some()
            && ["https.ca.location", "https.ca.pem"].iter().all(|name| config.get(name).is_none())
        {
            config.set("https.ca.location", "probe");
        }
        config
    }

    /// Returns the longest set-up of a connection, in milliseconds. A bootstrap address that does not answer costs this time; the default of
    /// librdkafka is 30 s. It includes the handshakes of TLS and SASL.
    fn setup_timeout(&self) -> &'static str {
        match self.protocol() {
            Some(protocol) if !protocol.eq_ignore_ascii_case("plaintext") => "5000",
            _ => "1000",
        }
    }

    /// Returns the hosts of the brokers.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &str> {
        self.brokers.split(',').map(|broker| broker.rsplit_once(':').map_or(broker, |(host, _)| host))
    }

    /// Returns true if the login sends a secret as it is.
    pub(super) fn sends_secret(&self) -> bool {
        let has_login = self.protocol().is_some_and(|protocol| protocol.to_ascii_lowercase().starts_with("sasl"));
        has_login && self.value_of(MECHANISM).is_some_and(|mechanism| matches!(mechanism, "PLAIN" | "OAUTHBEARER"))
    }

    /// Returns true if any server passes for a broker.
    pub(super) fn is_unverified(&self) -> bool {
        let is_off = |value: &str| ["false", "f", "0"].iter().any(|no| value.eq_ignore_ascii_case(no));
        self.value_of("enable.ssl.certificate.verification").is_some_and(is_off)
            || self
                .value_of("ssl.endpoint.identification.algorithm")
                .is_some_and(|value| value.eq_ignore_ascii_case("none"))
    }

    /// Returns the files that librdkafka reads secrets from.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = PathBuf> {
        const FILES: [&str; 4] = [
            "ssl.key.location",
            "ssl.keystore.location",
            "sasl.oauthbearer.assertion.private.key.file",
            "sasl.oauthbearer.assertion.file",
        ];
        FILES.into_iter().filter_map(|name| self.value_of(name)).map(PathBuf::from)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.protocol().is_some_and(|protocol| protocol.to_ascii_lowercase().ends_with("ssl"))
    }

    fn protocol(&self) -> Option<&str> {
        self.value_of("security.protocol")
    }

    fn value_of(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(known, _)| *known == name).map(|(_, value)| value.expose())
    }
}

/// Returns true for a property of the login or of TLS, which a running relay takes over.
pub(super) fn is_login(name: &str) -> bool {
    ["sasl.", "ssl.", "https."].iter().any(|prefix| name.starts_with(prefix))
}

fn canonical(name: &str) -> &str {
    match Property::named(name) {
        Some(property) => property.canonical(),
        None => name,
    }
}

fn value(property: &Property, text: String) -> PropertyValue {
    if property.is_secret() { PropertyValue::Secret(text.into()) } else { PropertyValue::Plain(text) }
}

fn check(property: &Property, label: &str, text: &str) -> Result<(), Mistake> {
    let mistake = |problem: &str| {
        let mistake = Mistake::new(label, problem);
        if property.is_secret() { mistake } else { mistake.given(text) }
    };
    if text.contains('\0') {
        return Err(Mistake::new(label, "holds a NUL byte"));
    }
    match apply_rules(property.canonical(), text) {
        RuleOutcome::Allowed => return Ok(()),
        RuleOutcome::Unruled => {}
        RuleOutcome::Refused(refusal) => {
            let mistake = mistake(refusal.reason);
            return Err(match refusal.accepted {
                Some(accepted) => mistake.expected(accepted),
                None => mistake,
            });
        }
    }
    let problem = librdkafka_refuses(property, text).or_else(|| file_problem(property.name, text));
    problem.map_or(Ok(()), |problem| Err(mistake(&problem)))
}

/// Returns why librdkafka does not take the value. Its words repeat the value, and are dropped where that must not be shown.
fn librdkafka_refuses(property: &Property, value: &str) -> Option<String> {
    let is_shown = !property.is_secret() && showable(value);
    let why = match ClientConfig::new().set(property.name, value).create_native_config() {
        Ok(_) if property.is_secret() => return None,
        Ok(config) => return config.get(property.name).ok().and_then(|read| misread(value, &read)),
        Err(KafkaError::ClientConfig(_, why, ..)) => why,
        Err(_) => String::new(),
    };
    Some(match why.trim() {
        why if why.contains("not supported in this build") => "this build of librdkafka does not support it".into(),
        why if is_shown && !why.is_empty() => format!("librdkafka: {why}"),
        _ => "librdkafka does not accept the value".into(),
    })
}

/// Returns what librdkafka takes a number for, if not for what was given. It reads as far as it can, into an `int` and by the rules of C: `5s`
/// as 5, `010` as 8, `4294967297` as 1.
fn misread(given: &str, read: &str) -> Option<String> {
    let number: f64 = read.parse().ok()?;
    // Of a float it shows six digits.
    let is_same = |given: f64| (given - number).abs() <= given.abs() * 1e-5;
    let is_right = given == read || given.parse().is_ok_and(is_same);
    (!is_right).then(|| format!("librdkafka would read it as {read}"))
}

fn file_problem(name: &str, path: &str) -> Option<String> {
    let holds = match name {
        "ssl.ca.location" | "https.ca.location" if path == "probe" || Path::new(path).is_dir() => return None,
        "ssl.ca.location" | "https.ca.location" | "ssl.certificate.location" => Holds::Certificates,
        "ssl.key.location" | "sasl.oauthbearer.assertion.private.key.file" => Holds::PrivateKey,
        "ssl.crl.location" => Holds::RevocationList,
        "ssl.keystore.location"
        | "sasl.oauthbearer.assertion.file"
        | "sasl.oauthbearer.assertion.jwt.template.file" => Holds::Bytes,
        _ => return None,
    };
    pem::problem(Path::new(path), holds).map(|problem| format!("the file {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_librdkafka_would_misread_are_refused() {
        let refused = |name: &str, value: &str| librdkafka_refuses(Property::named(name).unwrap(), value);
        let bytes = ClientConfig::new().set("message.max.bytes", "4294969296").create_native_config();
        assert_eq!(bytes.unwrap().get("message.max.bytes").unwrap(), "2000", "librdkafka refuses it by now");
        for value in ["4294969296", "02000", "0x7d0", "999", "1000000001", "", "many", " 2000", "2000 bytes"] {
            assert!(refused("message.max.bytes", value).is_some(), "{value}");
        }
        assert_eq!(refused("linger.ms", "5s").as_deref(), Some("librdkafka would read it as 5"));
        for (name, value) in [
            ("message.max.bytes", "2000"),
            ("linger.ms", "0.5"),
            ("linger.ms", "123456.789"),
            ("compression.level", "-1"),
            ("client.id", "007"),
            ("client.id", "nan"),
            ("broker.version.fallback", "0.10"),
            ("socket.keepalive.enable", "1"),
        ] {
            assert_eq!(refused(name, value), None, "{name}={value}");
        }
    }

    #[test]
    fn librdkafka_says_what_it_accepts_and_repeats_no_secret() {
        let refused = |name: &str, value: &str| librdkafka_refuses(Property::named(name).unwrap(), value).unwrap();
        let range = refused("socket.timeout.ms", "5");
        assert!(range.contains("socket.timeout.ms") && range.contains("10..300000"), "{range}");
        let word = refused("security.protocol", "hunter2@");
        assert_eq!(word, "librdkafka does not accept the value");
    }
}
