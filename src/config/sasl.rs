//! Settings of security that contradict each other. librdkafka would connect without them, in plain text, and log a warning.

use super::mistake::Mistake;
use super::resolved::{Given, Resolved};

/// Every contradiction between `security.protocol` and what was given beside it.
pub(super) fn conflicts(from: &Resolved) -> Vec<Mistake> {
    let given = from.properties();
    let find = |name: &str| given.iter().find(|(known, _)| *known == name).map(|(_, given)| given);
    let protocol = find("security.protocol").map_or("plaintext".into(), |given| given.text.to_lowercase());
    let is_known = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"].contains(&protocol.as_str());
    if !is_known || (from.has_property("security.protocol") && find("security.protocol").is_none()) {
        return Vec::new();
    }
    let mut mistakes = Vec::new();
    for (name, given) in &given {
        let used = match *name {
            "sasl.username" | "sasl.password" | "sasl.mechanisms" => protocol.starts_with("sasl"),
            "ssl.ca.location"
            | "ssl.ca.pem"
            | "ssl.certificate.location"
            | "ssl.certificate.pem"
            | "ssl.key.location"
            | "ssl.key.pem"
            | "ssl.key.password"
            | "ssl.keystore.location"
            | "ssl.keystore.password"
            | "ssl.crl.location" => protocol.ends_with("ssl"),
            _ => true,
        };
        if !used {
            let problem = format!("has no effect while KAFKA_SECURITY_PROTOCOL is {protocol}");
            mistakes.push(Mistake::new(&given.label, problem));
        }
    }
    if let Some(given) = find("security.protocol")
        && protocol.starts_with("sasl")
    {
        mistakes.extend(missing(from, given, find("sasl.mechanisms")));
    }
    mistakes
}

/// What a SASL connection needs and was not given.
fn missing(from: &Resolved, protocol: &Given, mechanism: Option<&Given>) -> Vec<Mistake> {
    const MECHANISMS: &str = "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER";
    let Some(mechanism) = mechanism else {
        return vec![Mistake::new(&protocol.label, "needs KAFKA_SASL_MECHANISM beside it").expected(MECHANISMS)];
    };
    match mechanism.text.as_str() {
        "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512" => [("sasl.username", "USERNAME"), ("sasl.password", "PASSWORD")]
            .into_iter()
            .filter(|(name, _)| !from.has_property(name))
            .map(|(_, what)| {
                Mistake::new(format!("KAFKA_SASL_{what}"), format!("missing, {} needs it", mechanism.label))
            })
            .collect(),
        "OAUTHBEARER" => Vec::new(),
        other => vec![Mistake::new(&mechanism.label, "").given(other).expected(MECHANISMS)],
    }
}
