//! The brokers and the pass-through to librdkafka.

use std::fmt;
use std::path::Path;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use secrecy::{ExposeSecret, SecretString};

use super::mistake::Mistake;
use super::pem::{self, Holds};
use super::producer::{DEFAULT_PARTITIONER, RuleOutcome, apply_rules};
use super::property::Property;
use super::resolved::{Given, Resolved};
use super::{brokers, sasl};

/// How to reach the brokers.
#[derive(Clone)]
pub struct KafkaSettings {
    brokers: String,
    properties: Vec<(&'static str, PropertyValue)>,
}

/// The value of one librdkafka property.
#[derive(Clone)]
pub enum PropertyValue {
    /// May be shown.
    Plain(String),
    /// Must not be shown.
    Secret(SecretString),
}

impl PropertyValue {
    /// The value itself, for librdkafka and nobody else.
    pub fn expose(&self) -> &str {
        match self {
            PropertyValue::Plain(text) => text,
            PropertyValue::Secret(text) => text.expose_secret(),
        }
    }

    /// The value for people: `set` for a secret.
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
    pub(super) fn read(from: &mut Resolved) -> Option<KafkaSettings> {
        let brokers = from.required("kafka_bootstrap_servers", |_, text| brokers::parse(text));
        let mut mistakes = Vec::new();
        let mut properties = Vec::new();
        for (canonical, given) in from.properties() {
            let Some(property) = Property::named(canonical) else { continue };
            match check(property, &given) {
                Ok(()) => properties.push((property.name, value(property, given.text))),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        mistakes.extend(sasl::conflicts(from));
        from.mistakes.append(&mut mistakes);
        from.non_defaults.extend(properties.iter().map(|(name, value)| (*name, value.shown().to_owned())));
        if !from.has_property("partitioner") {
            properties.push(("partitioner", PropertyValue::Plain(DEFAULT_PARTITIONER.into())));
        }
        Some(KafkaSettings { brokers: brokers?, properties })
    }

    /// `host:port,host:port`, as librdkafka takes it.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// What was passed through, and the partitioner. An alias such as `linger.ms` is under the name librdkafka stores it by,
    /// here `queue.buffering.max.ms`: of two aliases in one client, chance decides.
    pub fn properties(&self) -> impl Iterator<Item = (&'static str, &PropertyValue)> {
        self.properties.iter().map(|(name, value)| (*name, value))
    }

    /// A producer's configuration: the relay's `defaults`, overridden by what was passed through.
    pub fn producer_config(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        self.client_config(defaults, self.properties())
    }

    /// A consumer's configuration: as [`KafkaSettings::producer_config`], without what is a producer's alone.
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
        // An entity id written into entity_type by mistake must not create a hundred topics.
        config.set("allow.auto.create.topics", "false");
        for (name, value) in defaults {
            config.set(canonical(name), *value);
        }
        for (name, value) in properties {
            config.set(name, value.expose());
        }
        config
    }
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

fn check(property: &Property, given: &Given) -> Result<(), Mistake> {
    let text = given.text.as_str();
    let mistake = |problem: &str| {
        let mistake = Mistake::new(&given.label, problem);
        if property.is_secret() { mistake } else { mistake.given(text) }
    };
    if text.contains('\0') {
        return Err(Mistake::new(&given.label, "holds a NUL byte"));
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
    if property.kind.is_misread(text) {
        return Err(mistake("").expected(property.kind.accepted()));
    }
    if let Some(unsupported) = librdkafka_refuses(property.name, text) {
        return Err(match unsupported {
            Some(why) => mistake(&why),
            None => mistake("").expected(property.kind.accepted()),
        });
    }
    file_problem(property.name, text).map_or(Ok(()), |problem| Err(mistake(&problem)))
}

/// `Some` if librdkafka does not take the value, with the reason if its build is the reason. Its other words repeat the
/// value, and are dropped.
fn librdkafka_refuses(name: &str, value: &str) -> Option<Option<String>> {
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(_, why, _, _)) if why.contains("not supported in this build") => {
            Some(Some("this build of librdkafka does not support it".into()))
        }
        Err(_) => Some(None),
    }
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
