//! The properties librdkafka knows: what they accept, which are secret, which are two names of one. `names` holds the list.
//!
//! The ranges are kept there because librdkafka reads integers with `strtol` into an `int`: it takes `4294967297` for 1
//! and `010` for 8.

mod names;

pub(super) use names::{CONSUMER_PROPERTIES, INTERNAL_PROPERTIES, JAVA_PROPERTIES, PROPERTIES};

use PropertyKind::{Float, Integer, List, OneOf, Text};

/// One property of the pass-through.
#[derive(Debug)]
pub(super) struct Property {
    /// Its dotted name.
    pub(super) name: &'static str,
    /// The other name of the same property, under which it is stored.
    pub(super) alias_of: Option<&'static str>,
    /// A producer's alone: a consumer must not be given it.
    pub(super) producer_only: bool,
    /// What it accepts.
    pub(super) kind: PropertyKind,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum PropertyKind {
    Integer(i64, i64),
    Float(i64, i64),
    OneOf(&'static str),
    List(&'static str),
    Text,
}

impl PropertyKind {
    /// What is accepted, as the end of a sentence that begins with "expected".
    pub(super) fn accepted(self) -> String {
        match self {
            Integer(min, max) => format!("an integer from {min} to {max}"),
            Float(min, max) => format!("a number from {min} to {max}"),
            OneOf(words) => format!("one of {words}"),
            List(words) => format!("a comma-separated list out of {words}"),
            Text => "a value that librdkafka accepts".into(),
        }
    }

    /// What librdkafka itself would misread; the rest is left to it.
    pub(super) fn is_misread(self, value: &str) -> bool {
        match self {
            Integer(min, max) => {
                !value.parse::<i64>().is_ok_and(|number| (min..=max).contains(&number) && number.to_string() == value)
            }
            Float(min, max) => !value.parse::<f64>().is_ok_and(|number| (min as f64..=max as f64).contains(&number)),
            OneOf(_) | List(_) | Text => false,
        }
    }
}

impl Property {
    /// The property of that dotted name.
    pub(super) fn named(name: &str) -> Option<&'static Property> {
        PROPERTIES.iter().find(|property| property.name == name)
    }

    /// The property of `KAFKA_<name>`, without the prefix.
    pub(super) fn from_variable(name: &str) -> Option<&'static Property> {
        PROPERTIES.iter().find(|property| variable(property.name) == name)
    }

    /// The one name librdkafka stores it under. Two aliases in one client would win by chance.
    pub(super) fn canonical(&self) -> &'static str {
        self.alias_of.unwrap_or(self.name)
    }

    /// True if its value must never be shown.
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

/// `sasl.username` -> `SASL_USERNAME`.
pub(super) fn variable(name: &str) -> String {
    name.replace('.', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rdkafka::config::ClientConfig;

    use super::*;

    /// `None` if the build of librdkafka lacks what the property is about.
    fn librdkafka_takes(name: &str, value: &str) -> Option<bool> {
        match ClientConfig::new().set(name, value).create_native_config() {
            Ok(_) => Some(true),
            Err(error) if error.to_string().contains("not supported in this build") => None,
            Err(_) => Some(false),
        }
    }

    #[test]
    fn the_linked_librdkafka_knows_every_name() {
        let is_known = |name: &str| match ClientConfig::new().set(name, "").create_native_config() {
            Ok(_) => true,
            Err(error) => !error.to_string().contains("No such configuration property"),
        };
        for name in PROPERTIES.iter().map(|property| property.name).chain(CONSUMER_PROPERTIES.iter().copied()) {
            assert!(is_known(name), "{name}");
        }
        assert!(!is_known("no.such.property"));
    }

    #[test]
    fn every_range_is_librdkafkas_own() {
        for property in PROPERTIES {
            let (Integer(min, max) | Float(min, max)) = property.kind else { continue };
            assert_ne!(librdkafka_takes(property.name, &min.to_string()), Some(false), "{} {min}", property.name);
            assert_ne!(librdkafka_takes(property.name, &max.to_string()), Some(false), "{} {max}", property.name);
            if max < i64::from(i32::MAX) {
                assert_ne!(
                    librdkafka_takes(property.name, &(max + 1).to_string()),
                    Some(true),
                    "{} above {max}",
                    property.name
                );
            }
        }
    }

    #[test]
    fn every_word_is_librdkafkas_own() {
        for property in PROPERTIES {
            let (OneOf(words) | List(words)) = property.kind else { continue };
            for word in words.split(", ") {
                assert_ne!(librdkafka_takes(property.name, word), Some(false), "{} {word}", property.name);
            }
            assert_ne!(librdkafka_takes(property.name, "no-such-word"), Some(true), "{}", property.name);
        }
    }

    #[test]
    fn integers_that_librdkafka_would_misread_are_caught_first() {
        let kind = Property::named("message.max.bytes").unwrap().kind;
        assert_eq!(
            librdkafka_takes("message.max.bytes", "4294969296"),
            Some(true),
            "read as 2000, if this still passes"
        );
        for value in ["4294969296", "02000", "0x7d0", "999", "1000000001", "", "many", " 2000"] {
            assert!(kind.is_misread(value), "{value}");
        }
        assert!(!kind.is_misread("2000"));
    }

    #[test]
    fn variables_are_unambiguous_and_aliases_point_at_a_property() {
        let variables: BTreeSet<_> = PROPERTIES.iter().map(|property| variable(property.name)).collect();
        assert_eq!(variables.len(), PROPERTIES.len());
        for property in PROPERTIES {
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
