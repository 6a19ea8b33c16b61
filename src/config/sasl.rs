//! Finds security settings that contradict each other. librdkafka would ignore them, connect in plain text and log a warning.

use super::mistake::Mistake;
use super::resolved::Resolved;

const PROTOCOL: &str = "security.protocol";
const MECHANISM: &str = "sasl.mechanisms";
const USERNAME: &str = "sasl.username";
const PASSWORD: &str = "sasl.password";

/// Without effect unless the protocol is one with SASL.
const SASL: [&str; 3] = [USERNAME, PASSWORD, MECHANISM];

/// Without effect unless the protocol is one with TLS.
const SSL: [&str; 10] = [
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.key.location",
    "ssl.key.pem",
    "ssl.key.password",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.crl.location",
];

/// Lists the contradictions between `security.protocol` and the other security settings.
pub(super) fn conflicts(from: &Resolved) -> Vec<Mistake> {
    let given = from.property(PROTOCOL);
    let protocol = given.map_or("plaintext".into(), |(_, text)| text.to_lowercase());
    let is_known = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"].contains(&protocol.as_str());
    if !is_known || (from.has_property(PROTOCOL) && given.is_none()) {
        return Vec::new();
    }
    let is_used = |name: &str| match name {
        name if SASL.contains(&name) => protocol.starts_with("sasl"),
        name if SSL.contains(&name) => protocol.ends_with("ssl"),
        _ => true,
    };
    let unused = from
        .properties()
        .filter(|(name, ..)| !is_used(name))
        .map(|(_, label, _)| Mistake::new(label, format!("has no effect while KAFKA_SECURITY_PROTOCOL is {protocol}")));
    let mut mistakes: Vec<_> = unused.collect();
    if let Some((label, _)) = given.filter(|_| protocol.starts_with("sasl")) {
        mistakes.extend(missing(from, label));
    }
    mistakes
}

/// What a SASL connection needs and was not given.
fn missing(from: &Resolved, protocol_label: &str) -> Vec<Mistake> {
    const MECHANISMS: &str = "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER";
    let Some((label, mechanism)) = from.property(MECHANISM) else {
        return vec![Mistake::new(protocol_label, "needs KAFKA_SASL_MECHANISM beside it").expected(MECHANISMS)];
    };
    match mechanism {
        "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512" => [(USERNAME, "USERNAME"), (PASSWORD, "PASSWORD")]
            .into_iter()
            .filter(|(name, _)| !from.has_property(name))
            .map(|(_, what)| Mistake::new(format!("KAFKA_SASL_{what}"), format!("missing, {label} needs it")))
            .collect(),
        "OAUTHBEARER" => Vec::new(),
        other => vec![Mistake::new(label, "").given(other).expected(MECHANISMS)],
    }
}
