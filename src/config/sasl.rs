//! Finds security settings that contradict each other. librdkafka would ignore them, connect in plain text and log a warning.

use event_outbox::msk_iam::MECHANISM as MECHANISM_OF_MSK;

use super::mistake::Mistake;
use super::property::variable;
use super::resolved::Resolved;

const PROTOCOL: &str = "security.protocol";
const MECHANISM: &str = "sasl.mechanisms";
const USERNAME: &str = "sasl.username";
const PASSWORD: &str = "sasl.password";
const METHOD: &str = "sasl.oauthbearer.method";

/// The mechanisms that the relay can log in with.
const MECHANISMS: &str = "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER, AWS_MSK_IAM";

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

/// Lists what a SASL connection needs and was not given.
fn missing(from: &Resolved, protocol_label: &str) -> Vec<Mistake> {
    let Some((label, mechanism)) = from.property(MECHANISM) else {
        return vec![Mistake::new(protocol_label, "needs KAFKA_SASL_MECHANISM beside it").expected(MECHANISMS)];
    };
    match mechanism {
        "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512" => without(from, label, &[USERNAME, PASSWORD]),
        "OAUTHBEARER" => missing_for_tokens(from, label),
        // Its region and credentials are checked where they are read.
        MECHANISM_OF_MSK => Vec::new(),
        "GSSAPI" => vec![
            Mistake::new(label, "GSSAPI (Kerberos) needs the Cyrus SASL library, which this binary is built without")
                .expected(MECHANISMS),
        ],
        other => vec![Mistake::new(label, "").given(other).expected(MECHANISMS)],
    }
}

/// Lists what the mechanism OAUTHBEARER needs and was not given. librdkafka fetches its tokens from an OpenID provider, or makes unsecured
/// ones itself for brokers of tests.
fn missing_for_tokens(from: &Resolved, label: &str) -> Vec<Mistake> {
    if !from.has_property(METHOD) {
        let is_unsecured = from.property("enable.sasl.oauthbearer.unsecure.jwt");
        return match is_unsecured {
            Some((_, value)) if ["true", "t", "1"].iter().any(|yes| value.eq_ignore_ascii_case(yes)) => Vec::new(),
            _ => vec![Mistake::new(label, "OAUTHBEARER needs KAFKA_SASL_OAUTHBEARER_METHOD=oidc beside it")],
        };
    }
    if from.has_property("sasl.oauthbearer.metadata.authentication.type") {
        return Vec::new();
    }
    // Another grant has an assertion in place of a secret, which librdkafka checks itself.
    let needed: &[&str] = match from.has_property("sasl.oauthbearer.grant.type") {
        true => &["sasl.oauthbearer.token.endpoint.url"],
        false => {
            &["sasl.oauthbearer.token.endpoint.url", "sasl.oauthbearer.client.id", "sasl.oauthbearer.client.secret"]
        }
    };
    without(from, label, needed)
}

/// Makes a mistake of each property that was not given and that the setting `label` needs.
fn without(from: &Resolved, label: &str, needed: &[&str]) -> Vec<Mistake> {
    let missing = needed.iter().filter(|name| !from.has_property(name));
    missing
        .map(|name| Mistake::new(format!("KAFKA_{}", variable(name)), format!("missing, {label} needs it")))
        .collect()
}
