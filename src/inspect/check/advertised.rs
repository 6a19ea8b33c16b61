//! Connects to the address that each broker advertises. The bootstrap address only names these addresses; records go there.

use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::finding::Finding;
use event_outbox::code::Code;

/// The longest wait for one address.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A broker of the cluster and its advertised address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advertised {
    pub(crate) id: i32,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Returns a finding for each broker whose advertised address cannot be reached.
pub(super) async fn findings(brokers: &[Advertised]) -> Vec<Finding> {
    join_all(brokers.iter().map(finding)).await.into_iter().flatten().collect()
}

async fn finding(broker: &Advertised) -> Option<Finding> {
    let Advertised { id, host, port } = broker;
    let resolved = timeout(ANSWER_WITHIN, lookup_host((host.as_str(), *port))).await.unwrap_or_else(|_| silence());
    let addresses: Vec<_> = match resolved {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return Some(Finding::error(
                Code::BrokerName,
                format!(
                    "Broker {id} advertises {host}:{port}, and this host cannot resolve the name: {error}. Its partitions get no records."
                ),
                "set advertised.listeners of the broker to a name that this host can resolve, or add the name to the DNS",
            ));
        }
    };
    let connected = timeout(ANSWER_WITHIN, TcpStream::connect(&addresses[..])).await.unwrap_or_else(|_| silence());
    let error = connected.err()?;
    Some(Finding::error(
        Code::BrokerUnreachable,
        format!(
            "Broker {id} advertises {host}:{port}, and this host cannot connect to it: {error}. Its partitions get no records."
        ),
        "set advertised.listeners of the broker to an address that this host reaches, or open the firewall",
    ))
}

fn silence<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_nobody_reaches_is_named_with_the_reason() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let open = listener.local_addr().expect("an address").port();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let dead = closed.local_addr().expect("an address").port();
        drop(closed);
        let broker = |id, host: &str, port| Advertised { id, host: host.to_owned(), port };
        let brokers =
            [broker(1, "127.0.0.1", open), broker(2, "127.0.0.1", dead), broker(3, "no-such-host.invalid", 9092)];
        let found = findings(&brokers).await;
        let codes: Vec<_> = found.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [Code::BrokerUnreachable, Code::BrokerName], "{found:?}");
        assert!(found[0].message.contains(&format!("Broker 2 advertises 127.0.0.1:{dead}")), "{found:?}");
    }
}
