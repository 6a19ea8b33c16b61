//! Rejects producer settings that would break a guarantee, with the reason. No setting is overridden silently.

/// The relay's rule for one librdkafka property.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// No value is accepted.
    Never(&'static str),
    /// The accepted values; upper and lower case are equal.
    Only(&'static [&'static str], &'static str),
    /// Numbers up to this one are accepted.
    AtMost(i64, &'static str),
    /// Numbers from this one up are accepted.
    AtLeast(i64, &'static str),
}

/// A refusal: the reason, and the accepted values, if there are any.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) accepted: Option<String>,
}

/// The result of the rules for one value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RuleOutcome {
    /// The value would break a guarantee.
    Refused(Refusal),
    /// The rule names this value, so that librdkafka accepts it.
    Allowed,
    /// The relay has no rule; librdkafka decides.
    Unruled,
}

/// A number of retries that lasts for the longest `publish_timeout`, 15 min, at the shortest `retry.backoff.ms`, 1 ms.
const ENOUGH_RETRIES: i64 = 1_000_000;

/// The rules by canonical name.
const RULES: &[(&str, Rule)] = &[
    ("metadata.broker.list", Rule::Never("the brokers have a setting of their own: KAFKA_BOOTSTRAP_SERVERS")),
    (
        "enable.idempotence",
        Rule::Only(&["true"], "without idempotence a retried batch can be written twice or out of order"),
    ),
    (
        "request.required.acks",
        Rule::Only(&["all", "-1"], "an event counts as published once all in-sync replicas have it"),
    ),
    (
        "max.in.flight.requests.per.connection",
        Rule::AtMost(5, "an idempotent producer keeps order for at most 5 requests in flight"),
    ),
    (
        "message.timeout.ms",
        Rule::Never(
            "a message given up while later ones go out inverts the order; use RELAY_PUBLISH_TIMEOUT, which bounds a batch",
        ),
    ),
    (
        "message.send.max.retries",
        Rule::AtLeast(ENOUGH_RETRIES, "a message given up while later ones go out inverts the order"),
    ),
    ("transactional.id", Rule::Never("reserved for the relay's own transactions")),
    ("transaction.timeout.ms", Rule::Never("reserved for the relay's own transactions")),
    ("enable.gapless.guarantee", Rule::Never("set by the relay")),
    ("queuing.strategy", Rule::Only(&["fifo"], "lifo sends later events first")),
    ("delivery.report.only.error", Rule::Only(&["false"], "the relay marks an event when its delivery is reported")),
    (
        "partitioner",
        Rule::Only(
            &["murmur2_random", "murmur2", "consistent", "fnv1a", "fnv1a_random"],
            "an entity's events must share a partition: random spreads them all, consistent_random those whose entity id is empty",
        ),
    ),
    ("enabled_events", Rule::Never("set by the relay")),
    ("log.queue", Rule::Never("set by the relay")),
    ("internal.termination.signal", Rule::Never("set by the relay")),
    ("plugin.library.paths", Rule::Never("a plugin can change the settings the guarantees rest on")),
];

/// The partitioner of the Java client, which other producers of the same topics most likely use.
pub(super) const DEFAULT_PARTITIONER: &str = "murmur2_random";

/// Applies the rules to one value of the property with that canonical name. The range check rejects a value that is no number.
pub(super) fn apply_rules(canonical: &str, value: &str) -> RuleOutcome {
    let Some((_, rule)) = RULES.iter().find(|(name, _)| *name == canonical) else { return RuleOutcome::Unruled };
    let number = value.parse::<i64>().ok();
    let refused = |reason, accepted| RuleOutcome::Refused(Refusal { reason, accepted });
    match *rule {
        Rule::Never(reason) => refused(reason, None),
        Rule::Only(values, _) if values.iter().any(|known| value.eq_ignore_ascii_case(known)) => RuleOutcome::Allowed,
        Rule::Only(values, reason) => refused(reason, Some(values.join(" or "))),
        Rule::AtMost(max, reason) if number.is_some_and(|n| n > max) => refused(reason, Some(format!("at most {max}"))),
        Rule::AtLeast(min, reason) if number.is_some_and(|n| n < min) => {
            refused(reason, Some(format!("{min} or more")))
        }
        Rule::AtMost(..) | Rule::AtLeast(..) => RuleOutcome::Unruled,
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;

    use super::super::property::Property;
    use super::*;

    fn is_refused(name: &str, value: &str) -> bool {
        let canonical = Property::named(name).unwrap().canonical();
        matches!(apply_rules(canonical, value), RuleOutcome::Refused(_))
    }

    #[test]
    fn unsafe_values_are_refused_under_every_alias() {
        for (name, value) in [
            ("enable.idempotence", "false"),
            ("acks", "1"),
            ("acks", "0"),
            ("request.required.acks", "2"),
            ("max.in.flight", "6"),
            ("max.in.flight.requests.per.connection", "1000"),
            ("message.timeout.ms", "0"),
            ("delivery.timeout.ms", "300000"),
            ("retries", "0"),
            ("message.send.max.retries", "10"),
            ("transactional.id", "relay"),
            ("enable.gapless.guarantee", "true"),
            ("queuing.strategy", "lifo"),
            ("delivery.report.only.error", "true"),
            ("partitioner", "random"),
            ("partitioner", "consistent_random"),
            ("bootstrap.servers", "a:1"),
            ("metadata.broker.list", "a:1"),
            ("plugin.library.paths", "x"),
            ("enabled_events", "0"),
        ] {
            assert!(is_refused(name, value), "{name}={value}");
        }
    }

    #[test]
    fn safe_values_are_not_refused() {
        for (name, value) in [
            ("enable.idempotence", "true"),
            ("enable.idempotence", "TRUE"),
            ("acks", "all"),
            ("acks", "-1"),
            ("max.in.flight", "5"),
            ("max.in.flight", "1"),
            ("retries", "2147483647"),
            ("partitioner", "consistent"),
            ("partitioner", "murmur2_random"),
            ("queuing.strategy", "fifo"),
            ("linger.ms", "5"),
            ("queue.buffering.max.messages", "0"),
            ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
        ] {
            assert!(!is_refused(name, value), "{name}={value}");
        }
    }

    #[test]
    fn every_rule_is_about_a_canonical_name_and_every_value_it_names_is_librdkafkas() {
        for (name, rule) in RULES {
            assert!(Property::named(name).is_some_and(|property| property.alias_of.is_none()), "{name}");
            let Rule::Only(values, _) = rule else { continue };
            for value in *values {
                assert!(ClientConfig::new().set(*name, *value).create_native_config().is_ok(), "{name}={value}");
            }
        }
    }
}
