//! The properties librdkafka knows: which are secret, which are two names of one. `names` holds the list. What they accept is
//! librdkafka's to say.

mod names;

use std::sync::LazyLock;

pub(super) use names::JAVA_PROPERTIES;

/// One librdkafka property that settings can pass through.
#[derive(Debug)]
pub(super) struct Property {
    /// The dotted name.
    pub(super) name: &'static str,
    /// The other name of the same property, under which librdkafka stores the value.
    pub(super) alias_of: Option<&'static str>,
    /// True for a property that only producers have; a consumer must not be given it.
    pub(super) producer_only: bool,
}

/// Properties of clients and producers that are set as text.
pub(super) static PROPERTIES: LazyLock<Vec<Property>> = LazyLock::new(|| {
    let property = |name, producer_only| {
        let alias_of = names::ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, of)| *of);
        Property { name, alias_of, producer_only }
    };
    let client = names::CLIENT.split_whitespace().map(|name| property(name, false));
    client.chain(names::PRODUCER.split_whitespace().map(|name| property(name, true))).collect()
});

/// The names of properties that the relay knows and does not pass through.
pub(super) fn not_passed_through() -> impl Iterator<Item = &'static str> {
    let java = JAVA_PROPERTIES.iter().map(|(name, _)| *name);
    names::CONSUMER.split_whitespace().chain(names::INTERNAL.split_whitespace()).chain(java)
}

/// Why a property that exists is none of the relay's.
pub(super) fn known_elsewhere(property: &str) -> Option<String> {
    let is_in = |names: &str| names.split_whitespace().any(|name| name == property);
    if is_in(names::CONSUMER) {
        return Some("a consumer property, without effect on the relay's producer".into());
    }
    if is_in(names::INTERNAL) {
        return Some("a callback or object of librdkafka, which cannot be set as text and belongs to the relay".into());
    }
    let (_, instead) = JAVA_PROPERTIES.iter().find(|(name, _)| *name == property)?;
    Some(format!("a property of the Java client; {instead}"))
}

impl Property {
    /// Finds the property with this dotted name.
    pub(super) fn named(name: &str) -> Option<&'static Property> {
        PROPERTIES.iter().find(|property| property.name == name)
    }

    /// Finds the property of the variable `KAFKA_<name>`; the prefix is left out.
    pub(super) fn from_variable(name: &str) -> Option<&'static Property> {
        PROPERTIES.iter().find(|property| variable(property.name) == name)
    }

    /// Returns the one name under which librdkafka stores the value. If a client had two aliases, chance would decide which one wins.
    pub(super) fn canonical(&self) -> &'static str {
        self.alias_of.unwrap_or(self.name)
    }

    /// Returns true if the value must never be shown.
    pub(super) fn is_secret(&self) -> bool {
        const SECRET: [&str; 9] = [
            "sasl.kerberos.kinit.cmd",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.extensions",
            "sasl.oauthbearer.token.endpoint.url",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.assertion.private.key.pem",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.client.credentials.client.secret",
            "sasl.password",
        ];
        let name = self.name;
        SECRET.contains(&name) || name.ends_with("password") || name.ends_with(".pem")
    }
}

/// Converts `sasl.username` to `SASL_USERNAME`.
pub(super) fn variable(name: &str) -> String {
    name.replace('.', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rdkafka::config::ClientConfig;

    use super::*;

    #[test]
    fn the_linked_librdkafka_knows_every_name() {
        let is_known = |name: &str| match ClientConfig::new().set(name, "").create_native_config() {
            Ok(_) => true,
            Err(error) => !error.to_string().contains("No such configuration property"),
        };
        for name in PROPERTIES.iter().map(|property| property.name).chain(names::CONSUMER.split_whitespace()) {
            assert!(is_known(name), "{name}");
        }
        assert!(!is_known("no.such.property"));
    }

    #[test]
    fn variables_are_unambiguous_and_aliases_point_at_a_property() {
        let variables: BTreeSet<_> = PROPERTIES.iter().map(|property| variable(property.name)).collect();
        assert_eq!(variables.len(), PROPERTIES.len());
        for property in PROPERTIES.iter() {
            let canonical = Property::named(property.canonical()).unwrap();
            assert!(canonical.alias_of.is_none(), "{}", property.name);
            assert_eq!(canonical.is_secret(), property.is_secret(), "{}", property.name);
        }
    }

    #[test]
    fn every_property_that_librdkafka_redacts_is_a_secret_but_for_names_and_paths() {
        for name in [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.ca.pem",
            "ssl.keystore.password",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.client.credentials.client.secret",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.assertion.private.key.pem",
        ] {
            assert!(Property::named(name).unwrap().is_secret(), "{name}");
        }
        for name in ["sasl.username", "ssl.key.location", "linger.ms"] {
            assert!(!Property::named(name).unwrap().is_secret(), "{name}");
        }
    }
}
