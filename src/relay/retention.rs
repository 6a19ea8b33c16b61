//! Removes events published long ago and inbox rows applied long ago, in the background.
//!
//! Only one relay at a time prunes: the first of the registry, guarded by a lock. Pruning yields to load: after each step it pauses in
//! proportion to the time the step took. The pause is long while claims come back full. Pruning then takes a tenth of one session,
//! otherwise half of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::watch;

use crate::config::{GivenDuration, Retention, RetentionSettings};
use crate::fault::describe;
use crate::fault::{self, Class};
use crate::inspect::dedup_window::{self, Question, Unknown, WindowViolation};
use crate::relay::health::outage::Component;
use crate::relay::shared::Shared;
use crate::store::retention::{self, Removal};
use crate::store::session::within;
use event_outbox::code::Code;
use event_outbox::notice::Notice;

/// The rows of a step, which takes some ten milliseconds.
const STEP: i64 = 500;

/// The pages of a step over the inbox, and the most rows that the step removes.
const PAGES: i64 = 32;
const PAGE_ROWS: i64 = 5_000;

/// The pause after a step, as a multiple of the time the step took.
const PAUSE_IDLE: u32 = 1;
const PAUSE_BUSY: u32 = 9;

/// A claim that came back full within this time means that there is a backlog.
const BUSY: Duration = Duration::from_secs(1);

/// The interval between walks from the start. Other walks begin where the last one ended; a walk from the start finds events that were
/// published late. It may take 1/`SWEEP_SHARE` of the time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
const SWEEP_SHARE: u32 = 20;

/// The names of the obstacles in [the obstacles](crate::relay::obstacles::Obstacles).
const OBSTACLE: &str = "retention";
const WINDOW: &str = "processed retention";

struct Pruner {
    shared: Arc<Shared>,
    settings: RetentionSettings,
    from: i64,
    sweep_at: Instant,
    processed_at: Instant,
    /// The number of removed rows that are not logged yet.
    removed: i64,
    removed_processed: i64,
    logged_at: Instant,
}

/// Prunes until `stop` becomes true.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let now = Instant::now();
    let settings = shared.options.relay.live.get().retention;
    let mut pruner = Pruner {
        shared,
        settings,
        from: 0,
        sweep_at: now + SWEEP_INTERVAL,
        processed_at: now,
        removed: 0,
        removed_processed: 0,
        logged_at: now,
    };
    let mut pause = Duration::from_secs(1);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(pause) => {}
        }
        // The settings may have been read again.
        pruner.settings = pruner.shared.options.relay.live.get().retention;
        pause = (*pruner.settings.after / 10).clamp(Duration::from_secs(1), Duration::from_secs(10));
        if !pruner.settings.prunes() || pruner.shared.worker_assignment.borrow().first != 0 {
            // Another relay prunes, or none does.
            pruner.shared.obstacles.unblock(Component::Retention, OBSTACLE);
            pruner.shared.obstacles.unblock(Component::Retention, WINDOW);
            continue;
        }
        // A step that is cut short is rolled back, so nothing is lost.
        let passed = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            passed = pruner.pass() => passed,
        };
        match passed {
            Ok(()) if pruner.shared.obstacles.unblock(Component::Retention, OBSTACLE) => tracing::info!(
                notice = %Notice::Resolved,
                code = %Code::RetentionFails,
                "retention works again"
            ),
            Ok(()) => {}
            Err(error) => pruner.failed(&error),
        }
        pruner.log();
    }
}

impl Pruner {
    /// Prunes the outbox and the inbox once. A connection is held only while there may be something to prune.
    async fn pass(&mut self) -> Result<(), sqlx::Error> {
        let options = &self.shared.options;
        let mut conn = options.connect(&options.application_name()).await?;
        let removal = match self.settings.outbox {
            Retention::Keep => None,
            Retention::Delete => Some(Removal::Delete),
            Retention::Archive => Some(Removal::Archive),
        };
        if let Some(removal) = removal {
            self.walk_outbox(&mut conn, removal).await?;
        }
        if let Some(after) = self.settings.processed_after
            && Instant::now() >= self.processed_at
        {
            if self.window_is_wide_enough(&mut conn, after).await? {
                self.walk_processed(&mut conn, *after).await?;
            }
            let interval = (*after / 24).clamp(Duration::from_secs(1), Duration::from_secs(3600));
            self.processed_at = Instant::now() + interval;
        }
        Ok(())
    }

    /// Returns true when no topic can deliver an event again that the inbox would have forgotten. Asked before each walk, because a topic's
    /// retention may have changed.
    async fn window_is_wide_enough(
        &mut self,
        conn: &mut PgConnection,
        window: GivenDuration,
    ) -> Result<bool, sqlx::Error> {
        let options = &self.shared.options;
        let dead_letter_horizon = self.settings.dead_letter_horizon;
        let question = Question {
            names: &options.names,
            template: &options.relay.topic,
            window,
            dead_letter_horizon,
            topics: &[],
        };
        let (reason, next_step) = match question.violations(conn, &options.brokers).await {
            Ok(violations) if violations.is_empty() => {
                if self.shared.obstacles.unblock(Component::Retention, WINDOW) {
                    tracing::info!(
                        notice = %Notice::Resolved,
                        code = %Code::ProcessedWindow,
                        consequence = "old rows of processed_events are pruned again",
                        "RELAY_PROCESSED_RETENTION is long enough"
                    );
                }
                return Ok(true);
            }
            Ok(violations) => {
                (violations.iter().map(WindowViolation::to_string).collect::<Vec<_>>().join("; "), dedup_window::FIX)
            }
            Err(Unknown::Database(error)) => return Err(error),
            // The broker watch logs the outage.
            Err(Unknown::Kafka(error)) => {
                tracing::debug!(%error, "RELAY_PROCESSED_RETENTION cannot be compared with the topics");
                return Ok(false);
            }
            Err(unknown) => (unknown.to_string(), unknown.next_step()),
        };
        if self.shared.obstacles.block_for(Component::Retention, WINDOW, &reason) {
            tracing::error!(
                code = %Code::ProcessedWindow,
                reason,
                consequence = "no row of processed_events is pruned",
                next_step,
                "RELAY_PROCESSED_RETENTION may let duplicates in"
            );
        }
        Ok(false)
    }

    async fn walk_outbox(&mut self, conn: &mut PgConnection, removal: Removal) -> Result<(), sqlx::Error> {
        let (began, sweeps) = (Instant::now(), Instant::now() >= self.sweep_at);
        if sweeps {
            self.from = 0;
        }
        // The next walk begins where this walk met the first event that is too young.
        let (mut at, mut met_young) = (self.from, false);
        loop {
            let started = Instant::now();
            let names = &self.shared.options.names;
            let step = within(retention::step(conn, names, removal, *self.settings.after, at, STEP)).await?;
            let Some(step) = step else { return Ok(()) };
            self.removed += step.removed;
            met_young |= step.young || step.walked < STEP;
            if step.walked < STEP || step.young && step.removed == 0 {
                break;
            }
            at = step.last;
            if !met_young {
                self.from = at;
            }
            self.pause(started.elapsed()).await;
            self.log();
        }
        if sweeps {
            self.sweep_at = Instant::now() + SWEEP_INTERVAL.max(began.elapsed() * SWEEP_SHARE);
        }
        Ok(())
    }

    async fn walk_processed(&mut self, conn: &mut PgConnection, after: Duration) -> Result<(), sqlx::Error> {
        let mut from = Some(0);
        while let Some(page) = from {
            let started = Instant::now();
            let names = &self.shared.options.names;
            let step = retention::processed_step(conn, names, Removal::Delete, after, page, PAGES, PAGE_ROWS);
            let Some(step) = within(step).await? else { return Ok(()) };
            self.removed_processed += step.removed;
            from = step.next;
            self.pause(started.elapsed()).await;
        }
        Ok(())
    }

    async fn pause(&self, took: Duration) {
        let units = if self.shared.full_claim.happened_within(BUSY) { PAUSE_BUSY } else { PAUSE_IDLE };
        tokio::time::sleep(took * units).await;
    }

    fn log(&mut self) {
        let nothing = self.removed == 0 && self.removed_processed == 0;
        if nothing || self.logged_at.elapsed() < self.shared.options.relay.live.get().status_interval {
            return;
        }
        tracing::info!(
            notice = %Notice::Pruned,
            events = self.removed,
            processed = self.removed_processed,
            up_to = self.from,
            "old events were pruned"
        );
        (self.removed, self.removed_processed, self.logged_at) = (0, 0, Instant::now());
    }

    /// Handles an error of a pass. A table that is locked or a server that is away is tried again. A fault that an operator has to fix is
    /// logged once.
    fn failed(&self, error: &sqlx::Error) {
        let fault = fault::classify_database(error);
        let reason = describe(error);
        if fault.class != Class::ActionRequired {
            tracing::debug!(reason, "pruning is tried again");
            return;
        }
        let next_step = match error.as_database_error().and_then(|error| error.code()).as_deref() {
            Some("42501") => "grant the relay's role the rights in `outbox-relay migrate --roles --retention`",
            _ => fault.next_step,
        };
        if self.shared.obstacles.block(Component::Retention, OBSTACLE, &reason) {
            tracing::warn!(
                code = %Code::RetentionFails,
                reason,
                consequence = "the table grows",
                next_step,
                "old events cannot be pruned"
            );
        }
    }
}
