//! Records incidents. A server that is away is logged once when it goes and once when it is back, with the duration and the number of
//! events that waited. Until then the status line shows the incident.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::config::DatabaseSettings;
use crate::fault::{self, Class, Fault, describe};
use crate::observe::health::{Cause, Reason};
use crate::store::connect::{self, Purpose};
use event_outbox::notice::Notice;

use crate::store::counts;
use event_outbox::Names;
use event_outbox::code::Code;

/// The longest time that the count of the waiting events may take.
const COUNT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that a relay needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    Postgres,
    Kafka,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Server::Postgres => "postgres",
            Server::Kafka => "kafka",
        })
    }
}

/// The part of a relay that meets the outage. An incident ends when every part that met it works again: a missing right may stop the
/// workers and leave the heartbeat alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Component {
    Start,
    Watch,
    Heartbeat,
    StallMonitor,
    Retention,
    /// What all workers know of the topics, whichever of them found it out.
    Topics,
    Worker(usize),
}

#[derive(Debug, Clone)]
struct Incident {
    since: Instant,
    reason: Reason,
    fault: Fault,
    /// The causes that were logged. Each cause is logged once, even if two of them alternate.
    logged: BTreeSet<Code>,
    components: BTreeSet<Component>,
    reminder: Reminder,
}

impl Incident {
    fn new(server: Server, now: Instant, reason: &str, fault: Fault) -> Self {
        let reason = reason_of(server, reason, fault);
        let (logged, components) = (BTreeSet::new(), BTreeSet::new());
        Self { since: now, reason, fault, logged, components, reminder: Reminder::new(now) }
    }
}

/// The first and the longest pause between two lines about a server that refuses the relay.
const FIRST_REMINDER: Duration = Duration::from_secs(60);
const LONGEST_REMINDER: Duration = Duration::from_secs(15 * 60);

/// Decides when a line comes again: after a minute, then after twice as long each time.
#[derive(Debug, Clone)]
struct Reminder {
    due: Instant,
    pause: Duration,
}

impl Reminder {
    fn new(now: Instant) -> Self {
        Self { due: now + FIRST_REMINDER, pause: FIRST_REMINDER }
    }

    /// Returns true once each time that the line is due.
    fn is_due(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        self.pause = (self.pause * 2).min(LONGEST_REMINDER);
        self.due = now + self.pause;
        true
    }
}

/// An incident that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    server: Server,
    lasted: Duration,
}

/// The open incidents of a relay.
pub(crate) struct Outages {
    open: Mutex<BTreeMap<Server, Incident>>,
    /// The servers that the relay could use at least once.
    worked: Mutex<BTreeSet<Server>>,
    ended: mpsc::UnboundedSender<Ended>,
    names: Names,
    database: DatabaseSettings,
}

impl Outages {
    /// Creates the set of incidents. Also returns the channel of ended incidents, for [`Outages::log_ends`].
    pub(crate) fn new(names: Names, database: DatabaseSettings) -> (Self, mpsc::UnboundedReceiver<Ended>) {
        let (ended, ends) = mpsc::unbounded_channel();
        (Self { open: Mutex::default(), worked: Mutex::default(), ended, names, database }, ends)
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<Server, Incident>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that `component` meets an outage. Logs a new incident, and an open one when its cause is new. A server that has refused the
    /// relay since its start is an error that somebody has to fix, so that line comes again from time to time.
    pub(crate) fn begin(&self, server: Server, component: Component, reason: &str, fault: Fault) {
        let is_refused = fault.class == Class::ActionRequired && !self.has_worked(server);
        let mut open = self.open();
        let now = Instant::now();
        let is_new = !open.contains_key(&server);
        let incident = open.entry(server).or_insert_with(|| Incident::new(server, now, reason, fault));
        incident.components.insert(component);
        // A slow database follows from most causes and explains none of them.
        if incident.fault.code != fault.code && fault.code != Code::DatabaseSlow {
            incident.fault = fault;
            incident.reason = reason_of(server, reason, fault);
        }
        let is_first = incident.fault.code == fault.code && incident.logged.insert(fault.code);
        let since_s = now.saturating_duration_since(incident.since).as_secs();
        if is_refused && (incident.reminder.is_due(now) || is_first) {
            log_refused(server, reason, fault, since_s);
        } else if is_new {
            log_started(server, reason, fault);
        } else if is_first {
            log_changed(server, reason, fault);
        }
    }

    /// Records that the relay can use `server`: from now on a refusal is an outage, which ends as it began.
    pub(crate) fn works(&self, server: Server) {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner).insert(server);
    }

    fn has_worked(&self, server: Server) -> bool {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner).contains(&server)
    }

    /// Begins an incident for an error of the database.
    pub(crate) fn database(&self, component: Component, error: &sqlx::Error) {
        self.begin(Server::Postgres, component, &describe(error), fault::classify_database(error));
    }

    /// Records that `component` works again. The incident ends with the last component. The task of [`Outages::log_ends`] logs the end, so
    /// nobody waits for the count of the events that waited.
    pub(crate) fn end(&self, server: Server, component: Component) {
        let mut open = self.open();
        let Some(incident) = open.get_mut(&server) else { return };
        if incident.components.remove(&component) && incident.components.is_empty() {
            let lasted = incident.since.elapsed();
            open.remove(&server);
            // Fails only when the relay is gone.
            let _ = self.ended.send(Ended { server, lasted });
        }
    }

    /// Logs each end of an incident with the number of events that waited. Never ends.
    pub(crate) async fn log_ends(self: Arc<Self>, mut ends: mpsc::UnboundedReceiver<Ended>) {
        while let Some(Ended { server, lasted }) = ends.recv().await {
            let waited = self.waiting_events().await;
            tracing::info!(
                notice = %Notice::OutageEnded,
                %server,
                lasted_ms = lasted.as_millis() as u64,
                events_waited = waited,
                "the outage has ended"
            );
        }
    }

    /// Returns the open incidents as texts for the status line.
    pub(crate) fn current(&self) -> Vec<String> {
        self.open()
            .iter()
            .map(|(server, incident)| {
                let state = if incident.fault.class == Class::ActionRequired { "refuses the relay" } else { "away" };
                format!("{server} {state} for {} s: {}", incident.since.elapsed().as_secs(), incident.reason.message)
            })
            .collect()
    }

    /// Returns the reason why `server` cannot be used, if there is one.
    pub(crate) fn reason(&self, server: Server) -> Option<Reason> {
        self.open().get(&server).map(|incident| incident.reason.clone())
    }

    /// Counts the pending events, up to [`counts::COUNT_LIMIT`]; `None` when the database does not answer. Uses its own connection, because
    /// an incident may end while no other connection is open.
    async fn waiting_events(&self) -> Option<i64> {
        let counted = async {
            let mut conn = connect::connect(&self.database, "outbox-relay outage", Purpose::Read).await?;
            counts::backlog(&mut conn, &self.names).await
        };
        let counted = tokio::time::timeout(COUNT_TIMEOUT, counted).await.ok()?;
        counted.ok().map(|backlog| backlog.pending)
    }
}

fn log_started(server: Server, reason: &str, fault: Fault) {
    let (code, next_step) = (fault.code, fault.next_step);
    tracing::warn!(
        code = %code,
        notice = %Notice::OutageStarted,
        %server,
        reason,
        consequence = "events wait, none is lost",
        next_step,
        "an outage has started"
    );
}

fn log_changed(server: Server, reason: &str, fault: Fault) {
    let (code, next_step) = (fault.code, fault.next_step);
    tracing::warn!(
        code = %code,
        notice = %Notice::OutageChanged,
        %server,
        reason,
        next_step,
        "the outage goes on for another reason"
    );
}

fn log_refused(server: Server, reason: &str, fault: Fault, since_s: u64) {
    let (code, next_step) = (fault.code, fault.next_step);
    tracing::error!(
        code = %code,
        notice = %Notice::ServerRefuses,
        %server,
        reason,
        since_s,
        consequence = "nothing is published until somebody fixes it; the relay keeps trying",
        next_step,
        "a server refuses the relay"
    );
}

fn reason_of(server: Server, reason: &str, fault: Fault) -> Reason {
    Reason::new(cause(server, fault.code), reason, fault.next_step).coded(fault.code)
}

/// Returns the cause that the probes show for an outage.
fn cause(server: Server, code: Code) -> Cause {
    match (server, code) {
        (Server::Postgres, Code::RightsMissing) => Cause::Right,
        (Server::Postgres, _) => Cause::Database,
        (Server::Kafka, _) => Cause::Brokers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_again_after_ever_longer_pauses() {
        let began = Instant::now();
        let mut reminder = Reminder::new(began);
        let minutes = (0..120).filter(|minute| reminder.is_due(began + Duration::from_secs(60 * minute)));
        assert_eq!(minutes.collect::<Vec<_>>(), [1, 3, 7, 15, 30, 45, 60, 75, 90, 105]);
    }
}
