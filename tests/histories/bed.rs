//! Sets up a run: a database of a private server with its outbox, a topic, relays with default settings, the pulse and the truth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lab::demo::PrivatePostgres;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::player;
use crate::pulse::Pulse;
use crate::truth::{Outcome, Standstill, Truth, Verdict, Written, now, rows};
use lab::kafka::RealKafka;
use lab::{Outbox, PARTITIONS, Relay, RelayProcess, options_for_tests};

/// The time after the last commit within which relays must publish everything. A row that is pending then counts as unpublished.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// Starts a private server, so that its transaction ids are the run's own.
pub(crate) async fn server() -> anyhow::Result<PrivatePostgres> {
    let mut options = options_for_tests();
    options.settings.push(("max_prepared_transactions".to_owned(), "64".to_owned()));
    Ok(PrivatePostgres::start(options).await?)
}

/// The database, topic, relays, pulse and truth of one run.
pub(crate) struct Bed {
    pub(crate) outbox: Outbox,
    pub(crate) truth: Arc<Truth>,
    settings: Relay,
    name: String,
    relays: Vec<RelayProcess>,
    pulse: Pulse,
}

impl Bed {
    /// Creates the database and the topic of that name, and starts a relay.
    pub(crate) async fn open(postgres: &PrivatePostgres, kafka: &RealKafka, name: &str) -> anyhow::Result<Self> {
        Self::open_with(postgres, kafka, name, 1, false, |relay| relay).await
    }

    /// Does the same as [`Self::open`], with several relays and other settings. With `deletes` they delete what they have published.
    pub(crate) async fn open_with(
        postgres: &PrivatePostgres,
        kafka: &RealKafka,
        name: &str,
        relays: usize,
        deletes: bool,
        tune: impl Fn(Relay) -> Relay,
    ) -> anyhow::Result<Self> {
        let mut connection = postgres.connect("postgres").await?;
        connection.execute(AssertSqlSafe(format!("create database \"{name}\""))).await?;
        connection.close().await?;
        let outbox = Outbox::on_database(postgres, name, name).await?;
        outbox.connect().await?.execute(player::SETUP).await?;
        let outbox = if deletes { outbox.deleting().await? } else { outbox };
        // The broker uses the machine's clock, so the time of append is comparable with the time of the commit.
        kafka.create_topic(name, PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]).await?;
        let (settings, pulse) = (tune(outbox.relay(kafka)), Pulse::start(&outbox, kafka).await?);
        let (truth, name) = (Arc::new(Truth::default()), name.to_owned());
        let mut bed = Self { outbox, truth, settings, name, relays: Vec::new(), pulse };
        for _ in 0..relays {
            let relay = bed.start_relay()?;
            relay.wait_for("ready").await;
            bed.relays.push(relay);
        }
        // Workers get their lanes a moment after the relay is ready. The first event shows that they have their lanes.
        let mut connection = bed.outbox.connect().await?;
        bed.insert(&mut connection, "first").await?;
        bed.until_settled().await?;
        Ok(bed)
    }

    /// Kills a relay and starts another in its place.
    pub(crate) fn replace_relay(&mut self, index: usize) -> anyhow::Result<()> {
        self.relays.swap_remove(index).kill()?;
        let relay = self.start_relay()?;
        self.relays.push(relay);
        Ok(())
    }

    /// Writes an event in a transaction of its own; the caller is the only writer of the entity.
    pub(crate) async fn insert(&self, connection: &mut PgConnection, entity: &str) -> anyhow::Result<()> {
        let written = self.insert_open(connection, entity).await?;
        self.truth.ended(vec![written], Outcome::Committed(now()));
        Ok(())
    }

    /// Writes an event in the caller's transaction.
    pub(crate) async fn insert_open(&self, connection: &mut PgConnection, entity: &str) -> anyhow::Result<Written> {
        let n = self.truth.next(entity);
        let event = lab::outbox::insert(connection, entity, n).await?;
        Ok(Written { event, entity: entity.to_owned(), n, poison: false })
    }

    /// Waits until no row is pending. Fails only when Postgres does not answer.
    pub(crate) async fn until_settled(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLES_WITHIN;
        let pending = "select count(*) from event_outbox where status = 'PENDING'";
        while self.outbox.number(pending).await? > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until everything is published, stops the relays and checks the run. `standstills` were caused by the run itself; with `None`,
    /// delays are not checked.
    pub(crate) async fn close(
        self,
        kafka: &RealKafka,
        standstills: Option<Vec<Standstill>>,
    ) -> anyhow::Result<Verdict> {
        self.until_settled().await?;
        let measured = self.pulse.end().await?;
        for relay in self.relays {
            let code = relay.stop().await?;
            ensure!(code == Some(0), "a relay exited with {code:?}");
        }
        let standstills = standstills.map(|own| [own, measured].concat());
        let records = kafka.read_topic(&self.outbox.topic).await?;
        Ok(self.truth.compare(&rows(&self.outbox).await?, &records, standstills.as_deref()))
    }

    fn start_relay(&self) -> anyhow::Result<RelayProcess> {
        self.settings.start(&self.name)
    }
}
