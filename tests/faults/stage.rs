//! Runs a trial: relays behind proxies, an application that writes all the time, a sampler of the rows, and the final check.

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

/// The relays, load and sampler of one trial.
pub(crate) struct Stage {
    pub(crate) outbox: Outbox,
    pub(crate) random: StdRng,
    pub(crate) relays: Vec<ProxiedRelay>,
    tune: fn(Relay) -> Relay,
    load: Load,
    sampler: Sampler,
    /// The number of duplicates that the faults so far may have caused.
    duplicates_allowed: u64,
    /// True if nothing may be sent twice, whatever the faults.
    nothing_repeats: bool,
    started: AtomicU64,
}

impl Stage {
    /// Starts `relays` relays at work under load. `trial` is mixed into the seed.
    pub(crate) async fn open(trial: &str, outbox: &Outbox, kafka: &RealKafka, relays: usize) -> anyhow::Result<Self> {
        Self::open_with(trial, outbox, kafka, relays, |relay| relay).await
    }

    /// Does the same as [`Self::open`], with other settings of the relays.
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

    /// Does the same as [`Self::open_with`]; the seed decides whether relays mark or delete what they have published.
    pub(crate) async fn open_to_settle(
        trial: &str,
        outbox: &Outbox,
        kafka: &RealKafka,
        relays: usize,
        tune: fn(Relay) -> Relay,
    ) -> anyhow::Result<Self> {
        let deletes = random_of(&format!("{trial} settles")).random_bool(0.5);
        let outbox = if deletes { outbox.deleting().await? } else { outbox.clone() };
        Self::open_with(trial, &outbox, kafka, relays, tune).await
    }

    /// Starts a stage on an existing topic.
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

    /// Allows no duplicates, because the relays publish exactly once.
    pub(crate) fn where_nothing_repeats(mut self) -> Self {
        self.nothing_repeats = true;
        self
    }

    /// Changes the settings of relays that join from now on.
    pub(crate) fn newcomers_are(&mut self, tune: fn(Relay) -> Relay) {
        self.tune = tune;
    }

    /// Starts one more relay.
    pub(crate) async fn join(&mut self, kafka: &RealKafka) -> anyhow::Result<()> {
        let name = format!("{}-{}", self.outbox.topic, self.started.fetch_add(1, Ordering::Relaxed));
        self.relays.push(ProxiedRelay::start(&name, &self.outbox, kafka, self.tune).await?);
        Ok(())
    }

    /// Stops one relay; it sends nothing twice.
    pub(crate) async fn leave(&mut self) -> anyhow::Result<()> {
        let leaver = self.random.random_range(0..self.relays.len());
        self.relays.swap_remove(leaver).stop().await
    }

    /// Returns a random relay.
    pub(crate) fn anyone(&mut self) -> &mut ProxiedRelay {
        let victim = self.random.random_range(0..self.relays.len());
        &mut self.relays[victim]
    }

    /// Returns the number of events committed so far.
    pub(crate) fn committed(&self) -> i64 {
        self.load.committed()
    }

    /// Lets the load run for a random time.
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

    /// Writes an event if the application hardly writes any, so that there is one to wait for or to lock.
    pub(crate) async fn probe_if_quiet(&self) -> bool {
        let quiet = self.load.pace().is_quiet();
        if quiet {
            eventually("an event can be written", SOON * 2, || self.outbox.write(PROBE, 1, 1)).await;
        }
        quiet
    }

    /// Waits until events that commit from now on are on the topic, which shows that the relays work.
    pub(crate) async fn until_moving(&self) -> anyhow::Result<()> {
        if self.probe_if_quiet().await {
            self.outbox.until_settled_of(PROBE).await;
            return Ok(());
        }
        let sql = format!("select count(*) from {} where status = 'PUBLISHED'", self.outbox.events());
        let published = self.outbox.number(&sql).await?;
        self.outbox.until_published(published + 1).await;
        Ok(())
    }

    /// Kills a relay at exactly this spot of a batch and starts it again, `times` times. Another relay works beside it all the time.
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

    /// Allows the events in flight of this many relays to be sent again.
    pub(crate) fn may_repeat(&mut self, relays: u64) {
        if !self.nothing_repeats {
            self.duplicates_allowed += relays * IN_FLIGHT;
        }
    }

    /// Discards the rows that the sampler has seen. A crash of Postgres may lose the last marks, which are not flushed one by one; that
    /// causes a duplicate, but never a loss.
    pub(crate) fn discard_sightings(&mut self) {
        self.sampler = Sampler::start(&self.outbox);
    }

    /// Ends the load, waits until no row is pending, and stops the relays. Fails unless every guarantee was kept.
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

/// Checks that poison is DEAD after one attempt, and that no other event has cost an attempt.
async fn check_row_states(outbox: &Outbox) -> anyhow::Result<()> {
    let wrong = format!(
        "select count(*) from {} where case when event_type = '{POISON}' \
         then status <> 'DEAD' or attempts <> 1 else status <> 'PUBLISHED' or attempts <> 0 end",
        outbox.events()
    );
    let wrong = outbox.number(&wrong).await.context("the states of the rows")?;
    ensure!(
        wrong == 0,
        "{wrong} rows have another state than PUBLISHED at no cost, or DEAD after one attempt for poison"
    );
    Ok(())
}
