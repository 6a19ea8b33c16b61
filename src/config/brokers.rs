//! Parses `KAFKA_BOOTSTRAP_SERVERS`, a list of `host:port`.

/// Checks every broker and returns the list without spaces. The error names the position of the first wrong one.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let brokers: Vec<&str> = text.split(',').map(str::trim).collect();
    for (index, broker) in brokers.iter().enumerate() {
        if let Some(problem) = problem(broker) {
            return Err(format!(
                "broker {} of {} {problem}, expected a comma-separated list of host:port",
                index + 1,
                brokers.len()
            ));
        }
    }
    Ok(brokers.join(","))
}

fn problem(broker: &str) -> Option<&'static str> {
    if broker.is_empty() {
        return Some("is empty");
    }
    if broker.contains("://") {
        return Some("has a scheme; say which protocol with KAFKA_SECURITY_PROTOCOL");
    }
    let Some((host, port)) = broker.rsplit_once(':') else { return Some("has no port") };
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Some("has a port that is not a number from 1 to 65535");
    }
    (!is_host(host)).then_some("has a host that is not a host name or an address")
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => super::host::is_name(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_brokers_loses_its_spaces() {
        assert_eq!(
            parse("a:9092, b.example.com:9093 ,[::1]:1,10.0.0.1:65535").unwrap(),
            "a:9092,b.example.com:9093,[::1]:1,10.0.0.1:65535"
        );
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        for (text, part) in [
            ("", "broker 1 of 1 is empty"),
            ("a:1,,b:2", "broker 2 of 3 is empty"),
            ("a", "no port"),
            ("a:", "port"),
            ("a:0", "port"),
            ("a:+1", "port"),
            ("a:99999", "port"),
            ("a:kafka", "port"),
            (":9092", "host"),
            ("my host:9092", "host"),
            ("a..b:9092", "host"),
            ("[::g]:9092", "host"),
            ("::1:9092", "host"),
            ("PLAINTEXT://a:9092", "scheme"),
            ("user:pw@a:9092", "host"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}
