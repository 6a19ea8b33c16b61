//! Runs this relay with its defaults, on a table whose inserts wake it.

use lab::demo::{ChildServer, ServerCommand, TemporaryDirectory};

use crate::drain::drain;
use crate::latency::latencies;
use crate::outbox::Outbox;
use crate::report::{OURS, System};
use crate::topic::Topic;
use crate::{Servers, Sizes};

pub(crate) fn measure(servers: &mut Servers, sizes: &Sizes) -> anyhow::Result<Vec<System>> {
    let mut outbox = Outbox::make(servers, sizes, "peers_relay", &["--wake-up-trigger"])?;
    let topic = Topic::make(servers, sizes, "peers_relay")?;
    let directory = TemporaryDirectory::create(None)?;
    outbox.seed_rows(servers, sizes.events)?;
    let command = ServerCommand::new("env", directory.path(), &directory.path().join("relay.log")).args([
        format!("DATABASE_URL={}", outbox.url),
        format!("KAFKA_BOOTSTRAP_SERVERS={}", servers.kafka.bootstrap()),
        format!("RELAY_TOPIC={}", topic.name),
        env!("CARGO_BIN_EXE_outbox-relay").to_owned(),
        "run".to_owned(),
    ]);
    let (drained, relay) =
        drain(servers, &mut outbox, &topic, sizes.events, true, None, || Ok(Some(ChildServer::start(&command)?)))?;
    let relay = relay.expect("it was started");
    let latencies = latencies(&outbox, &topic, &relay, sizes, f64::INFINITY)?;
    Ok(vec![System { name: OURS.to_owned(), drain: drained, latencies }])
}
