//! A trial's run: relays behind proxies, an application that writes all the while, somebody who watches the rows, and the reckoning.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use event_outbox::ledger::{Report, Rules};
use rand::Rng;
use rand::rngs::StdRng;

use crate::proxied_relay::{IN_FLIGHT, ProxiedRelay};
use crate::proxy::{Catch, Spot};
use crate::sampler::Sampler;
use lab::kafka::RealKafka;
use lab::load::{Load, Pace, Plan};
use lab::rough::POISON;
use lab::seed::random_of;
use lab::{Outbox, Relay, SOON, eventually};

/// Entities of the load.
const ENTITIES: i64 = 320;

/// Events between two faults.
const BETWEEN_FAULTS: std::ops::Range<i64> = 40..240;

/// Milliseconds between two faults where hardly anything commits.
const BETWEEN_FAULTS_IN_QUIET: std::ops::Range<u64> = 200..3_000;

/// The entity of events that the stage writes itself.
const PROBE: &str = "probe";

/// See the head of this file.
pub(crate) struct Stage {
    pub(crate) outbox: Outbox,
    pub(crate) random: StdRng,
    pub(crate) relays: Vec<ProxiedRelay>,
    tune: fn(Relay) -> Relay,
    load: Load,
    sampler: Sampler,
    /// Duplicates that the faults so far may have caused.
    duplicates_allowed: u64,
    /// Nothing may be sent twice, whatever the faults.
    nothing_repeats: bool,
    started: AtomicU64,
}

impl Stage {
    /// So many relays at work under load. `trial` is what the seed is mixed with.
    pub(crate) async fn open(trial: &str, outbox: &Outbox, kafka: &RealKafka, relays: usize) -> anyhow::Result<Self> {
        Self::open_with(trial, outbox, kafka, relays, |relay| relay).await
    }

    /// The same with other settings of the relays.
    pub(crate) async fn open_with(
        trial: &str,
        outbox: &Outbox,
        kafka: &RealKafka,
        relays: usize,
        tune: fn(Relay) -> Relay,
    ) -> anyhow::Result<Self> {
        outbox.create_topic(kafka).await?;
        Self::open_on_topic(trial, outbox, kafka, relays, tune).await
    }

    /// On a topic that is there.
    pub(crate) async fn open_on_topic(
        trial: &str,
        outbox: &Outbox,
        kafka: &RealKafka,
        relays: usize,
        tune: fn(Relay) -> Relay,
    ) -> anyhow::Result<Self> {
        let mut random = random_of(trial);
        let mut stage = Self {
            load: Load::start(outbox, Plan::rough(ENTITIES, random.random())),
            sampler: Sampler::start(outbox),
            outbox: outbox.clone(),
            random,
            relays: Vec::new(),
            tune,
            duplicates_allowed: 0,
            nothing_repeats: false,
            started: AtomicU64::new(0),
        };
        for _ in 0..relays {
            stage.join(kafka).await?;
        }
        for relay in &stage.relays {
            relay.until_ready().await?;
        }
        stage.outbox.until_published(1).await;
        Ok(stage)
    }

    /// The relays publish exactly once.
    pub(crate) fn where_nothing_repeats(mut self) -> Self {
        self.nothing_repeats = true;
        self
    }

    /// Other settings of the relays that join from here on.
    pub(crate) fn newcomers_are(&mut self, tune: fn(Relay) -> Relay) {
        self.tune = tune;
    }

    /// One relay more.
    pub(crate) async fn join(&mut self, kafka: &RealKafka) -> anyhow::Result<()> {
        let name = format!("{}-{}", self.outbox.topic, self.started.fetch_add(1, Ordering::Relaxed));
        self.relays.push(ProxiedRelay::start(&name, &self.outbox, kafka, self.tune).await?);
        Ok(())
    }

    /// One relay fewer; it sends nothing twice.
    pub(crate) async fn leave(&mut self) -> anyhow::Result<()> {
        let leaver = self.random.random_range(0..self.relays.len());
        self.relays.swap_remove(leaver).stop().await
    }

    /// A relay.
    pub(crate) fn anyone(&mut self) -> &mut ProxiedRelay {
        let victim = self.random.random_range(0..self.relays.len());
        &mut self.relays[victim]
    }

    /// Events committed so far.
    pub(crate) fn committed(&self) -> i64 {
        self.load.committed()
    }

    /// Lets the load go on for a random while.
    pub(crate) async fn moment(&mut self) {
        if self.load.pace().is_quiet() {
            let millis = self.random.random_range(BETWEEN_FAULTS_IN_QUIET);
            return tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        let events = self.random.random_range(BETWEEN_FAULTS);
        self.load.until_committed(self.load.committed() + events).await;
    }

    /// Changes how much the application writes.
    pub(crate) fn set_pace(&self, pace: Pace) {
        self.load.set_pace(pace);
    }

    /// Writes an event where the application hardly writes any, so that there is one to wait for or to lock.
    pub(crate) async fn probe_if_quiet(&self) -> bool {
        let quiet = self.load.pace().is_quiet();
        if quiet {
            eventually("an event can be written", SOON * 2, || self.outbox.write(PROBE, 1, 1)).await;
        }
        quiet
    }

    /// Until events that commit from now on are on the topic: the relays work.
    pub(crate) async fn until_moving(&self) -> anyhow::Result<()> {
        if self.probe_if_quiet().await {
            self.outbox.until_settled_of(PROBE).await;
            return Ok(());
        }
        let sql = "select count(*) from event_outbox where status = 'PUBLISHED'";
        let published = self.outbox.number(sql).await?;
        self.outbox.until_published(published + 1).await;
        Ok(())
    }

    /// Kills a relay that has got exactly that far with a batch, and starts it again, so many times; another one works beside it all the
    /// while.
    pub(crate) async fn kill_at(&mut self, spot: Spot, catch: Catch, times: usize) -> anyhow::Result<()> {
        for kill in 1..=times {
            self.moment().await;
            self.may_repeat(1);
            let victim = &mut self.relays[0];
            let proxy = if spot.is_of_kafka() { &victim.kafka } else { &victim.postgres };
            proxy.set_trap(spot, catch);
            proxy.until_sprung(kill).await;
            victim.kill()?;
            self.until_moving().await?;
            let victim = &mut self.relays[0];
            victim.revive()?;
            victim.until_ready().await?;
        }
        self.moment().await;
        Ok(())
    }

    /// What so many relays have in flight may be sent again.
    pub(crate) fn may_repeat(&mut self, relays: u64) {
        if !self.nothing_repeats {
            self.duplicates_allowed += relays * IN_FLIGHT;
        }
    }

    /// A crash of Postgres may forget the last marks, which are not flushed one by one (a duplicate, never a loss): what was seen of
    /// the rows before it does not count.
    pub(crate) fn discard_sightings(&mut self) {
        self.sampler = Sampler::start(&self.outbox);
    }

    /// Ends the load, waits until no row is pending, stops the relays, and fails unless every promise was kept.
    pub(crate) async fn close(mut self, kafka: &RealKafka) -> anyhow::Result<Report> {
        let rules = Rules { duplicates_allowed: Some(self.duplicates_allowed), pending_allowed: false };
        let mut book = self.load.end(rules).await?;
        self.outbox.until_settled().await;
        book.sighted(self.sampler.end().await?);
        for relay in &mut self.relays {
            relay.stop().await?;
        }
        check_row_states(&self.outbox).await?;
        let report = book.compare(&self.outbox, kafka).await?;
        ensure!(report.is_clean(), "{report}");
        Ok(report)
    }
}

/// Poison is DEAD after one attempt, and nothing else has cost one.
async fn check_row_states(outbox: &Outbox) -> anyhow::Result<()> {
    let wrong = format!(
        "select count(*) from event_outbox where case when event_type = '{POISON}' \
         then status <> 'DEAD' or attempts <> 1 else status <> 'PUBLISHED' or attempts <> 0 end"
    );
    let wrong = outbox.number(&wrong).await.context("the states of the rows")?;
    ensure!(
        wrong == 0,
        "{wrong} rows have another state than PUBLISHED at no cost, or DEAD after one attempt for poison"
    );
    Ok(())
}
