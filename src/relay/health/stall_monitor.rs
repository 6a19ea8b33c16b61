//! Runs the stall monitor's task: checks at intervals whether events wait and none moves, and finds out why. Also keeps the answers of the
//! probes and the metrics of the whole outbox. It only reads, on its own connection, within limits.
//!
//! - [`stall`]: decides since when nothing has moved
//! - [`cause`]: finds out why nothing moves

mod cause;
mod stall;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sqlx::PgConnection;
use tokio::sync::watch;

use crate::inspect::check::{Finding, rights};
use crate::lane::LaneRange;
use crate::observe::health::{Cause, Readiness, Reason};
use crate::observe::metrics::Outbox;
use crate::relay::health::outage::{Component, Server};
use crate::relay::shared::Shared;
use crate::store::queue_head::{self, QueueHead};
use crate::store::session::within;
use crate::store::{counts, pauses};
use cause::{Observed, reason_from_rights};
use event_outbox::code::Code;
use event_outbox::notice::Notice;
use stall::{QueueState, Stall, StallChange};

/// The name of the task's sessions. It differs from the names of workers' sessions, which are searched by name for the locks they hold.
const APPLICATION: &str = "outbox-relay-stall-monitor";

/// The interval between checks of what is in memory: servers that go away and come back.
const TICK: Duration = Duration::from_secs(1);

/// The shortest interval between two looks at the database, unless `RELAY_STALL_AFTER` is short.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The shortest interval while the relay sleeps and no row waits.
const LOOK_INTERVAL_ASLEEP: Duration = Duration::from_secs(15);

/// Looks at the database may take 1/`LOOK_SHARE` of the time, unless a stall would then be found too late. Under a held snapshot a look
/// walks all rows that were published since.
const LOOK_SHARE: u32 = 50;

/// The interval between checks of rights, which change rarely.
const RIGHTS_INTERVAL: Duration = Duration::from_secs(60);

/// The interval while the relay sleeps. The check takes twenty queries.
const RIGHTS_INTERVAL_ASLEEP: Duration = Duration::from_secs(300);

/// The name of a stall in [the obstacles](crate::relay::obstacles::Obstacles).
const STALLED: &str = "stalled";

/// The name of policies that hide rows in [the obstacles](crate::relay::obstacles::Obstacles).
const HIDDEN: &str = "row level security";

struct StallMonitor {
    shared: Arc<Shared>,
    conn: Option<PgConnection>,
    stall: Stall,
    /// The head of the queue at the last look; `None` if the database could not be asked.
    head: Option<QueueHead>,
    lacking: Option<Reason>,
    /// True when row level security may hide rows.
    hides: bool,
    why: Option<Reason>,
    /// The start of the relay; `None` after the relay was ready for the first time.
    starting_since: Option<Instant>,
    look_at: Instant,
    /// While the relay sleeps, the database is not looked at before this time.
    rest_until: Instant,
    rights_checked: Option<Instant>,
    metrics_at: Instant,
}

/// Runs the task until `stop` becomes true.
pub(crate) async fn run(shared: Arc<Shared>, started: Instant, mut stop: watch::Receiver<bool>) {
    let (now, mut up) = (Instant::now(), shared.broker.state());
    let mut monitor = StallMonitor {
        conn: None,
        stall: Stall::new(shared.options.relay.stall_after, now),
        head: None,
        lacking: None,
        hides: false,
        why: None,
        starting_since: Some(started),
        look_at: now,
        rest_until: now,
        rights_checked: None,
        metrics_at: now,
        shared,
    };
    let tick = TICK.min(monitor.shared.options.relay.stall_after / 4);
    loop {
        let up_now = *up.borrow_and_update();
        tokio::select! {
            biased;
            // A look may take long and writes nothing, so it may be cut short.
            _ = stop.wait_for(|stop| *stop) => break,
            () = monitor.look(up_now) => {}
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            // Fails only when the broker watch is gone, and with it the relay.
            _ = up.changed() => {}
            () = tokio::time::sleep(tick) => {}
        }
    }
    let stopping = Reason::new(Cause::Stopping, "the relay drains and stops", "none: the relay was asked to stop");
    monitor.shared.options.telemetry.health.set(Readiness::Unready(stopping));
}

impl StallMonitor {
    async fn look(&mut self, up: bool) {
        let rests = Instant::now() < self.rest_until && self.sleeps();
        if Instant::now() >= self.look_at && !rests {
            let began = Instant::now();
            let mut rest = Duration::ZERO;
            let cost = match within(self.look_at_database(up)).await {
                // Waiting for a lock costs the database nothing.
                Ok(QueueState::Unreadable) => Duration::ZERO,
                Ok(seen) => {
                    if seen == QueueState::Empty {
                        rest = LOOK_INTERVAL_ASLEEP;
                    }
                    began.elapsed()
                }
                Err(error) => {
                    // The workers and the heartbeat log it.
                    tracing::debug!(error = %crate::fault::describe(&error), "the monitor cannot read the outbox");
                    self.conn = None;
                    self.shared.connection_failed(&error);
                    self.head = self.head_of_workers();
                    Duration::ZERO
                }
            };
            if self.shared.has_few_connections() {
                self.conn = None;
            }
            let stall_after = self.shared.options.relay.stall_after;
            let interval = LOOK_INTERVAL.min(stall_after / 4);
            self.look_at = Instant::now() + (cost * LOOK_SHARE).clamp(interval, stall_after);
            self.rest_until = Instant::now() + rest.min(stall_after / 4);
        }
        self.update_readiness(up);
    }

    /// Returns true while the relay sleeps until it is notified.
    fn sleeps(&self) -> bool {
        self.shared.wake_up.sleeps_for() > LOOK_INTERVAL
    }

    /// Returns the head seen before, or an empty one, if a worker has the last connection: then the outbox can be reached, although not
    /// from here.
    fn head_of_workers(&mut self) -> Option<QueueHead> {
        let works = self.shared.has_few_connections() && self.shared.own_lanes().is_some();
        works.then(|| self.head.take().unwrap_or_default())
    }

    async fn look_at_database(&mut self, up: bool) -> Result<QueueState, sqlx::Error> {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        let interval = if self.sleeps() { RIGHTS_INTERVAL_ASLEEP } else { RIGHTS_INTERVAL };
        if self.conn.is_none() {
            self.conn = Some(options.connect(APPLICATION).await?);
        }
        let Some(conn) = self.conn.as_mut() else { return Ok(QueueState::Unreadable) };
        let lacked = shared.outages.reason(Server::Postgres).is_some_and(|reason| reason.cause == Cause::Right);
        if lacked || self.lacking.is_some() || self.rights_checked.is_none_or(|at| at.elapsed() >= interval) {
            self.lacking =
                rights::missing_rights(conn, &options.names, options.relay.settle).await?.map(reason_from_rights);
            self.rights_checked = Some(Instant::now());
        }
        if self.lacking.is_none() {
            // Checked at each look, because an outbox whose rows are hidden looks like an empty one.
            let hidden = rights::hidden_rows(conn, &options.names, options.relay.settle).await?;
            self.lacking = hidden.clone().map(reason_from_rights);
            log_hidden(&shared, &mut self.hides, hidden.as_ref());
        }
        let lanes = shared.own_lanes();
        let seen = match lanes {
            None => Ok(QueueHead::default()),
            Some(lanes) => queue_head::queue_head(conn, &options.names, lanes).await,
        };
        let (seen, head) = match seen {
            Ok(head) => (head.lowest_id().map_or(QueueState::Empty, QueueState::Head), head),
            // 55P03 lock_not_available, 57014 query_canceled, 42501 insufficient_privilege: rows that cannot be read here cannot be claimed
            // by a worker either.
            Err(sqlx::Error::Database(error))
                if matches!(error.code().as_deref(), Some("55P03" | "57014" | "42501")) =>
            {
                (QueueState::Unreadable, QueueHead::default())
            }
            Err(error) => return Err(error),
        };
        let change = self.stall.observe(shared.published_total(), lanes, seen, Instant::now());
        if self.stall.is_stalled() {
            let observed = Observed { up, lacking: self.lacking.as_ref(), seen, head: &head };
            self.why = Some(observed.reason(&shared, conn).await);
        } else {
            self.why = None;
        }
        self.head = Some(head);
        self.log(change);
        if options.serves_metrics && Instant::now() >= self.metrics_at {
            self.update_outbox_metrics().await?;
        }
        Ok(seen)
    }

    /// Updates the answer of the probes and the metrics from memory.
    fn update_readiness(&mut self, up: bool) {
        let telemetry = &self.shared.options.telemetry;
        let away = |server| self.shared.outages.reason(server);
        let postgres = self.lacking.clone().or_else(|| away(Server::Postgres));
        let postgres = postgres.or_else(|| self.head.is_none().then(cause::not_looked));
        let kafka = away(Server::Kafka).or_else(|| (!up).then(cause::no_answer));
        telemetry.metrics.set_reachable(postgres.is_none(), kafka.is_none());
        for (server, reason) in [(Server::Postgres, &postgres), (Server::Kafka, &kafka)] {
            if reason.is_none() {
                self.shared.outages.works(server);
            }
        }
        if postgres.is_none() && kafka.is_none() {
            log_ready(&self.shared, self.starting_since.take());
        }
        telemetry.metrics.set_stalled(self.why.as_ref().map(|why| why.cause));
        let own = self.shared.own_lanes().map_or(0, LaneRange::len);
        telemetry.metrics.set_lanes(own, self.shared.lanes);
        let readiness = match (self.why.clone(), postgres.or(kafka)) {
            (Some(why), _) => Readiness::Stalled(why),
            (None, Some(reason)) => Readiness::Unready(reason),
            (None, None) => Readiness::Ready,
        };
        telemetry.metrics.set_ready(readiness == Readiness::Ready);
        telemetry.health.set(readiness);
    }

    /// Logs one line when a stall begins, and one when the events that waited have moved on. While the stall lasts, the status line shows
    /// it.
    fn log(&self, change: StallChange) {
        let after_s = self.shared.options.relay.stall_after.as_secs();
        match (change, &self.why) {
            (StallChange::Begun, Some(Reason { cause, message, next_step, code })) => tracing::warn!(
                code = %Code::Stalled,
                cause = cause.word(),
                caused_by = code.map(tracing::field::display),
                reason = message,
                next_step,
                stall_after_s = after_s,
                "events wait and none has moved"
            ),
            (StallChange::Ended(lasted), _) => {
                tracing::info!(
                    notice = %Notice::Resolved,
                    code = %Code::Stalled,
                    lasted_s = lasted.as_secs(),
                    "the events that waited move again"
                );
            }
            _ => {}
        }
        match &self.why {
            Some(why) => drop(self.shared.obstacles.block(Component::StallMonitor, STALLED, &why.message)),
            None => drop(self.shared.obstacles.unblock(Component::StallMonitor, STALLED)),
        }
    }

    /// Updates the metrics of the whole outbox. Counting costs more than looking, so it is done more rarely.
    async fn update_outbox_metrics(&mut self) -> Result<(), sqlx::Error> {
        let Some(conn) = self.conn.as_mut() else { return Ok(()) };
        let (began, names) = (Instant::now(), &self.shared.options.names);
        let backlog = counts::backlog(conn, names).await?;
        let active = pauses::active(conn, names).await?;
        let vacuum = queue_head::vacuum(conn, names).await?;
        let paused = |is: fn(&pauses::Scope) -> bool| active.iter().filter(|pause| is(&pause.scope)).count() as i64;
        let seen = Outbox {
            pending: backlog.pending,
            oldest: backlog.oldest.unwrap_or_default(),
            scheduled: backlog.scheduled,
            held: backlog.held,
            dead: backlog.dead,
            pauses: [
                paused(|scope| matches!(scope, pauses::Scope::All)),
                paused(|scope| matches!(scope, pauses::Scope::Topic { .. })),
                paused(|scope| matches!(scope, pauses::Scope::Entity { .. })),
            ],
            dead_tuples: vacuum.dead_tuples,
            live_tuples: vacuum.live_tuples,
            vacuum_held_back: vacuum.held_back,
        };
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.shared.options.telemetry.metrics.set_outbox(&seen, at);
        self.metrics_at = Instant::now() + began.elapsed() * LOOK_SHARE * 2;
        Ok(())
    }
}

/// Logs once that the relay can publish.
fn log_ready(shared: &Shared, starting_since: Option<Instant>) {
    let Some(started) = starting_since else { return };
    tracing::info!(
        notice = %Notice::Ready,
        lanes = shared.lanes,
        workers = shared.options.relay.workers,
        waited_ms = started.elapsed().as_millis() as u64,
        "relay is ready"
    );
}

/// Logs one line when policies begin to hide rows, and one when they no longer do. No other part of the relay gets an error in that case.
fn log_hidden(shared: &Shared, hides: &mut bool, hidden: Option<&Finding>) {
    match (hidden, std::mem::replace(hides, hidden.is_some())) {
        (Some(Finding { message, fix, .. }), false) => {
            shared.obstacles.block(Component::StallMonitor, HIDDEN, message);
            tracing::error!(
                code = %Code::RowSecurity,
                reason = message,
                consequence = "hidden events wait",
                next_step = fix,
                "row level security may hide events"
            );
        }
        (None, true) => {
            shared.obstacles.unblock(Component::StallMonitor, HIDDEN);
            tracing::info!(
                notice = %Notice::Resolved,
                code = %Code::RowSecurity,
                "row level security hides no events"
            );
        }
        _ => {}
    }
}
