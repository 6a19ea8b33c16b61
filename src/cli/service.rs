//! Keeps the service manager informed about a relay: that it has started, what it does, that it is alive, that it stops.
//!
//! - Started: the first look at the database has ended. A missing outbox or a wrong setting ends the process before, so the start fails. A
//!   server that is away is waited for by a relay that counts as started: the manager would otherwise end it again and again.
//! - Alive: this task runs, so the runtime does, and no worker has been in one round of its loop for longer than a round can take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::observe::Telemetry;
use crate::observe::health::Cause;
use crate::observe::service_manager::{ServiceManager, State};
use event_outbox::code::Code;

/// The longest interval between two looks at what there is to report. A look reads memory only.
const TICK: Duration = Duration::from_secs(1);

/// The number of messages in the time after which the manager ends a silent service.
const MESSAGES_PER_WATCHDOG: u32 = 4;

/// The time after which a relay whose first look at the database has not ended counts as started: its database does not answer.
const STARTED_AFTER: Duration = Duration::from_secs(15);

/// The time that the end of the process takes after the drain.
const AFTER_DRAIN: Duration = Duration::from_secs(10);

/// The service manager, if one has started this process.
#[derive(Debug, Default)]
pub(super) struct Service {
    manager: Option<ServiceManager>,
    is_started: AtomicBool,
    is_silent: AtomicBool,
}

impl Service {
    /// Connects to the service manager.
    pub(super) fn connect() -> Arc<Self> {
        let service = Self::default();
        match ServiceManager::from_environment() {
            Ok(manager) => Arc::new(Self { manager, ..service }),
            Err(error) => {
                service.warn(&error);
                Arc::new(service)
            }
        }
    }

    /// Reports until `end` is dropped.
    pub(super) async fn run(self: Arc<Self>, relay: Reported, mut end: oneshot::Receiver<()>) {
        let Some(manager) = &self.manager else { return };
        let tick = manager.watchdog().map_or(TICK, |watchdog| TICK.min(watchdog / MESSAGES_PER_WATCHDOG));
        let mut stop = relay.stop.clone();
        let mut reporter = Reporter::new(relay, manager.watchdog().is_some());
        loop {
            let states = reporter.states();
            self.send(&states).await;
            self.is_started.store(reporter.is_started, Ordering::Relaxed);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop), if !reporter.is_stopping => {}
                _ = &mut end => break,
                () = tokio::time::sleep(tick) => {}
            }
        }
        // The drain may have taken no time.
        self.send(&reporter.states()).await;
    }

    /// Reports that the settings are read again. Before the start is reported, nothing is.
    pub(super) async fn reloading(&self) {
        if self.is_started.load(Ordering::Relaxed) {
            self.send(&[State::Reloading]).await;
        }
    }

    /// Reports that the settings have been read again, whether or not they are used.
    pub(super) async fn reloaded(&self) {
        if self.is_started.load(Ordering::Relaxed) {
            self.send(&[State::Ready]).await;
        }
    }

    async fn send(&self, states: &[State]) {
        let Some(manager) = self.manager.as_ref().filter(|_| !states.is_empty()) else { return };
        match manager.notify(states).await {
            Ok(()) => self.is_silent.store(false, Ordering::Relaxed),
            Err(error) => self.warn(&error),
        }
    }

    /// Logs once that the service manager cannot be reached, until it can be again.
    fn warn(&self, error: &std::io::Error) {
        if !self.is_silent.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                code = %Code::ServiceManagerAway,
                reason = %error,
                consequence = "the service manager may end a relay that it believes not started or dead",
                next_step = "unset NOTIFY_SOCKET if the relay does not run as a service of its own",
                "the service manager cannot be reached"
            );
        }
    }
}

/// The relay that is reported.
pub(super) struct Reported {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) stop: watch::Receiver<bool>,
    /// The longest drain.
    pub(super) drain: Duration,
}

/// What has been reported.
struct Reporter {
    relay: Reported,
    is_watched: bool,
    began: Instant,
    is_started: bool,
    is_stopping: bool,
    shown: String,
}

impl Reporter {
    fn new(relay: Reported, is_watched: bool) -> Self {
        let (began, shown) = (Instant::now(), String::new());
        Self { relay, is_watched, began, is_started: false, is_stopping: false, shown }
    }

    /// Returns what there is to report now.
    fn states(&mut self) -> Vec<State> {
        let mut states = Vec::new();
        if !self.is_started && self.has_looked() {
            self.is_started = true;
            states.push(State::Ready);
        }
        if *self.relay.stop.borrow() && !self.is_stopping {
            self.is_stopping = true;
            states.push(State::Stopping(self.relay.drain + AFTER_DRAIN));
        }
        let live = self.relay.telemetry.health.live();
        if self.is_watched && live.is_fine() {
            states.push(State::Alive);
        }
        let status = self.status();
        if self.shown != status {
            self.shown.clone_from(&status);
            states.push(State::Status(status));
        }
        states
    }

    fn has_looked(&self) -> bool {
        let is_starting =
            self.relay.telemetry.health.ready().reason.is_some_and(|reason| reason.cause == Cause::Starting);
        !is_starting || self.began.elapsed() >= STARTED_AFTER
    }

    /// Returns the state of the relay, and the status line once there is one.
    fn status(&self) -> String {
        let live = self.relay.telemetry.health.live();
        let answer = if live.is_fine() { self.relay.telemetry.health.ready() } else { live };
        let state = match answer.reason {
            Some(reason) => format!("{}: {}", answer.state, reason.message),
            None => answer.state.to_owned(),
        };
        match self.relay.telemetry.status_line() {
            Some(line) => format!("{state}; {line}"),
            None => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::health::{Readiness, Reason};

    fn reporter(stop: &watch::Sender<bool>) -> (Reporter, Arc<Telemetry>) {
        let telemetry = Telemetry::new();
        let relay =
            Reported { telemetry: Arc::clone(&telemetry), stop: stop.subscribe(), drain: Duration::from_secs(40) };
        (Reporter::new(relay, true), telemetry)
    }

    fn status(states: &[State]) -> Option<&str> {
        states.iter().find_map(|state| match state {
            State::Status(status) => Some(status.as_str()),
            _ => None,
        })
    }

    #[test]
    fn a_relay_counts_as_started_once_it_knows_how_its_database_is() {
        let (mut reporter, telemetry) = reporter(&watch::Sender::new(false));
        let states = reporter.states();
        assert!(
            !states.contains(&State::Ready) && status(&states) == Some("unready: the relay is starting"),
            "{states:?}"
        );
        let away = Reason::new(Cause::Database, "the database does not answer", "start it");
        telemetry.health.set(Readiness::Unready(away));
        let states = reporter.states();
        assert!(
            states.contains(&State::Ready) && status(&states) == Some("unready: the database does not answer"),
            "{states:?}"
        );
        telemetry.health.set(Readiness::Ready);
        telemetry.set_status_line("3 published".to_owned());
        let states = reporter.states();
        assert!(!states.contains(&State::Ready) && status(&states) == Some("ready; 3 published"), "{states:?}");
        assert_eq!(reporter.states(), [State::Alive], "nothing has changed");
    }

    #[test]
    fn a_worker_that_hangs_keeps_the_relay_from_being_alive() {
        let (mut reporter, telemetry) = reporter(&watch::Sender::new(false));
        let moves = telemetry.health.pulse("worker 0".to_owned(), Duration::from_secs(60));
        // A round of no length is over its limit as soon as the clock has moved.
        let hangs = telemetry.health.pulse("worker 1".to_owned(), Duration::ZERO);
        while telemetry.health.live().is_fine() {
            std::thread::yield_now();
        }
        let states = reporter.states();
        assert!(!states.contains(&State::Alive), "{states:?}");
        assert!(
            status(&states).is_some_and(|status| status.starts_with("stuck: worker 1 has not moved")),
            "{states:?}"
        );
        hangs.rest();
        assert!(reporter.states().contains(&State::Alive), "it waits, which it may");
        drop(moves);
    }

    #[test]
    fn a_stop_is_reported_once_with_the_time_that_it_takes() {
        let stop = watch::Sender::new(false);
        let (mut reporter, _) = reporter(&stop);
        reporter.states();
        stop.send_replace(true);
        assert_eq!(reporter.states(), [State::Stopping(Duration::from_secs(50)), State::Alive]);
        assert_eq!(reporter.states(), [State::Alive], "it is alive while it drains");
    }
}
