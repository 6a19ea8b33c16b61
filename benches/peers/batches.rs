//! Runs a polling loop with batches, `go/loop.go`: what a good engineer would write instead of one row at a time.

use std::path::Path;

use lab::demo::{ChildServer, ServerCommand, TemporaryDirectory};
use lab::languages;

use crate::drain::drain;
use crate::latency::latencies;
use crate::outbox::Outbox;
use crate::report::System;
use crate::topic::Topic;
use crate::{Servers, Sizes};

pub(crate) fn measure(servers: &mut Servers, sizes: &Sizes) -> anyhow::Result<Vec<System>> {
    let program = languages::go_loop("peers")?;
    let mut outbox = Outbox::make(servers, sizes, "peers_batches", &[])?;
    outbox.index_pending(servers)?;
    let topic = Topic::make(servers, sizes, "peers_batches")?;
    let directory = TemporaryDirectory::create(None)?;
    outbox.seed_rows(servers, sizes.events)?;
    let log = directory.path().join("batches.log");
    let command = ServerCommand::new(Path::new(program.command.get_program()), directory.path(), &log).envs([
        ("DATABASE_URL", outbox.url.clone()),
        ("KAFKA_BOOTSTRAP_SERVERS", servers.kafka.bootstrap()),
        ("TOPIC", topic.name.clone()),
    ]);
    let (drained, running) =
        drain(servers, &mut outbox, &topic, sizes.events, true, None, || Ok(Some(ChildServer::start(&command)?)))?;
    let running = running.expect("it was started");
    let latencies = latencies(&outbox, &topic, &running, sizes, f64::INFINITY)?;
    Ok(vec![System { name: "loop in batches".to_owned(), drain: drained, latencies }])
}
