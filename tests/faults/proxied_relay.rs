//! Runs the relays of a trial as processes, each behind its own proxies.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::proxy::{Protocol, Proxy, port_of};
use lab::kafka::RealKafka;
use lab::{Outbox, Relay, RelayProcess};

/// Events of a batch: what a worker may have in flight.
pub(crate) const BATCH: u64 = 100;

/// Workers of a relay.
const WORKERS: u64 = 2;

/// The most events that a relay has in flight, and so the most that it may send again after a fault.
pub(crate) const IN_FLIGHT: u64 = BATCH * WORKERS;

/// The time that a batch waits for its acks.
pub(crate) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(6);

/// One relay and the network around it.
#[derive(Debug)]
pub(crate) struct ProxiedRelay {
    name: String,
    settings: Relay,
    process: Option<RelayProcess>,
    pub(crate) postgres: Proxy,
    pub(crate) kafka: Proxy,
}

impl ProxiedRelay {
    /// Starts the relay; `tune` changes its settings.
    pub(crate) async fn start(
        name: &str,
        outbox: &Outbox,
        kafka: &RealKafka,
        tune: impl Fn(Relay) -> Relay,
    ) -> anyhow::Result<Self> {
        let postgres = Proxy::start(Protocol::Postgres, outbox.postgres_port()).await?;
        let kafka = Proxy::start(Protocol::Kafka, port_of(&kafka.bootstrap())?).await?;
        let settings = outbox
            .relay_through(postgres.port(), kafka.port())?
            .with("RELAY_BATCH_SIZE", BATCH)
            .with("RELAY_WORKERS", WORKERS)
            .with("RELAY_PUBLISH_TIMEOUT", format!("{}ms", PUBLISH_TIMEOUT.as_millis()))
            .with("RELAY_HEARTBEAT_INTERVAL", "1s");
        let mut relay = Self { name: name.to_owned(), settings: tune(settings), process: None, postgres, kafka };
        relay.revive()?;
        Ok(relay)
    }

    pub(crate) fn process(&self) -> anyhow::Result<&RelayProcess> {
        self.process.as_ref().context("the relay was killed")
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process()?.signal(signal)
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the relay was killed")?.kill()
    }

    /// Sends SIGTERM; the relay must drain and exit with 0.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let code = self.process.take().context("the relay was killed")?.stop().await?;
        ensure!(code == Some(0), "relay {} exited with {code:?}", self.name);
        Ok(())
    }

    /// Waits until the process ends after a signal; it must exit with 0.
    pub(crate) async fn exit(mut self) -> anyhow::Result<()> {
        let status = self.process.take().context("the relay was killed")?.exit().await?;
        ensure!(status.success(), "relay {} exited with {status}", self.name);
        Ok(())
    }

    /// Starts a new process in place of one that has ended.
    pub(crate) fn revive(&mut self) -> anyhow::Result<()> {
        self.process = Some(self.settings.start(&self.name)?);
        Ok(())
    }

    pub(crate) async fn until_ready(&self) -> anyhow::Result<()> {
        self.process()?.wait_for("ready").await;
        Ok(())
    }

    /// Returns the `application_name` of the relay's sessions.
    pub(crate) fn sessions(&self) -> String {
        format!("outbox-relay {}", self.name)
    }
}
