//! Recognizes variables of others. They are no settings, and the relay must not fail to start because of a neighbour.
//!
//! Kafka's own scripts and images read variables that begin with `KAFKA_`: [`is_of_kafka`]. Kubernetes sets in every pod of a namespace with a service called `kafka`, `relay`, `kafka-...` or
//! `relay-...`:
//!
//! ```text
//! KAFKA_SERVICE_HOST=10.0.0.11             KAFKA_PORT=tcp://10.0.0.11:9092
//! KAFKA_SERVICE_PORT=9092                  KAFKA_PORT_9092_TCP=tcp://10.0.0.11:9092
//! KAFKA_SERVICE_PORT_CLIENT=9092           KAFKA_PORT_9092_TCP_PROTO=tcp  (_PORT, _ADDR)
//! ```

/// Returns true for the variables above. `KAFKA_PORT` counts only with a URL as Kubernetes sets it, so that a port number that
/// was meant as a setting is still rejected.
pub(super) fn is_kubernetes(name: &str, value: &str) -> bool {
    let parts: Vec<&str> = name.split('_').collect();
    // The service's own name ends before the first of these patterns that matches.
    (1..parts.len()).any(|at| match &parts[at..] {
        ["SERVICE", "HOST"] | ["SERVICE", "PORT"] => true,
        ["SERVICE", "PORT", port_name @ ..] => port_name.iter().all(|part| !part.is_empty()),
        ["PORT"] => is_link(value),
        ["PORT", number, protocol] => is_port(number) && is_protocol(protocol),
        ["PORT", number, protocol, "PROTO" | "PORT" | "ADDR"] => is_port(number) && is_protocol(protocol),
        _ => false,
    })
}

/// Returns true for variables of Kafka's scripts (`bin/kafka-run-class.sh`) and of images of its broker, such as `KAFKA_HEAP_OPTS`.
pub(super) fn is_of_kafka(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "ADVERTISED_LISTENERS",
        "CLUSTER_ID",
        "CONF_DIR",
        "DATA_DIR",
        "HOME",
        "JMX_HOSTNAME",
        "JMX_PORT",
        "LISTENERS",
        "LOG4J_LOGGERS",
        "LOG_DIRS",
        "MODE",
        "VERSION",
    ];
    name.strip_prefix("KAFKA_")
        .is_some_and(|rest| rest.ends_with("OPTS") || rest.starts_with("CFG_") || NAMES.contains(&rest))
}

/// Returns true for a name that others give to the setting `KAFKA_BOOTSTRAP_SERVERS`.
pub(super) fn means_the_brokers(name: &str) -> bool {
    matches!(
        name.strip_prefix("KAFKA_"),
        Some(
            "BROKERS"
                | "BROKER"
                | "BROKER_LIST"
                | "BROKERS_LIST"
                | "BOOTSTRAP"
                | "BOOTSTRAP_SERVER"
                | "SERVERS"
                | "HOSTS"
                | "HOST"
                | "URL"
        )
    )
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

fn is_protocol(text: &str) -> bool {
    matches!(text, "TCP" | "UDP" | "SCTP")
}

fn is_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_a_service_are_ignored() {
        for (name, value) in [
            ("KAFKA_SERVICE_HOST", "10.0.0.11"),
            ("KAFKA_SERVICE_PORT", "9092"),
            ("KAFKA_SERVICE_PORT_CLIENT", "9092"),
            ("KAFKA_SERVICE_PORT_TCP_CLIENT", "9092"),
            ("KAFKA_PORT", "tcp://10.0.0.11:9092"),
            ("KAFKA_PORT_9092_TCP", "tcp://10.0.0.11:9092"),
            ("KAFKA_PORT_9092_TCP_PROTO", "tcp"),
            ("KAFKA_PORT_9092_TCP_PORT", "9092"),
            ("KAFKA_PORT_9092_TCP_ADDR", "10.0.0.11"),
            ("RELAY_SERVICE_HOST", "10.0.0.12"),
            ("RELAY_PORT", "tcp://10.0.0.12:8080"),
            ("KAFKA_UI_SERVICE_HOST", "10.0.0.13"),
            ("KAFKA_UI_PORT_80_TCP_ADDR", "10.0.0.13"),
            ("RELAY_METRICS_PORT", "tcp://10.0.0.14:80"),
        ] {
            assert!(is_kubernetes(name, value), "{name}={value}");
        }
    }

    #[test]
    fn the_variables_of_kafkas_scripts_are_ignored() {
        for name in ["KAFKA_HOME", "KAFKA_OPTS", "KAFKA_HEAP_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS", "KAFKA_CFG_NODE_ID"] {
            assert!(is_of_kafka(name), "{name}");
        }
        for name in ["KAFKA_ACKS", "KAFKA_LINGR_MS", "KAFKA_BROKERS", "HOME"] {
            assert!(!is_of_kafka(name), "{name}");
        }
    }

    #[test]
    fn nothing_else_is_ignored() {
        for (name, value) in [
            ("KAFKA_PORT", "9092"),
            ("RELAY_PORT", "8080"),
            ("KAFKA_SERVICE", "x"),
            ("KAFKA_HOST", "10.0.0.11"),
            ("KAFKA_PORT_X_TCP", "x"),
            ("KAFKA_PORT_9092_HTTP", "x"),
            ("KAFKA_PORT_9092_TCP_NAME", "x"),
            ("RELAY_BATCHSIZE", "1"),
            ("SERVICE_HOST", "x"),
        ] {
            assert!(!is_kubernetes(name, value), "{name}={value}");
        }
    }
}
