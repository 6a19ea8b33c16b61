//! Runs the status line's task: counts pending events at intervals and logs the counts. Counting may take long, so nothing waits for it,
//! and the connection is open only while it runs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::fault::describe;
use crate::inspect::check::expiring::{self, Expiring};
use crate::relay::shared::Shared;
use crate::store::backlog;
use crate::store::counts::{self, Backlog};
use crate::store::session::within;
use event_outbox::notice::Notice;

/// The name of the task's sessions. It differs from the names of workers' sessions, which are searched by name for the locks they hold.
const APPLICATION: &str = "outbox-relay-status";

/// The age from which an event that waits is compared with its topic's retention, and the interval of looks.
const OLD: Duration = Duration::from_secs(600);
const LOOK_INTERVAL: Duration = Duration::from_secs(600);

/// Runs the task until `stop` becomes true.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let (mut logged_at, mut logged_published) = (Instant::now(), 0);
    let mut expiring = ExpiringEvents::default();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(shared.options.relay.live.get().status_interval) => {}
        }
        let counted = tokio::select! {
            biased;
            // The count only reads, so it may be cut short.
            _ = stop.wait_for(|stop| *stop) => return,
            counted = count(&shared) => counted,
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = expiring.look(&shared, counted.as_ref().map(|(backlog, _)| *backlog)) => {}
        }
        let total = shared.published_total();
        log(&shared, total - logged_published, logged_at.elapsed(), counted);
        (logged_at, logged_published) = (Instant::now(), total);
    }
}

/// Counts the backlog, and says for what events are held if the relay itself knows no obstacle. Returns `None` when the database cannot be
/// asked or takes too long. The workers and the heartbeat report outages.
async fn count(shared: &Shared) -> Option<(Backlog, Option<String>)> {
    let options = &shared.options;
    let counted = async {
        let mut conn = options.connect(APPLICATION).await?;
        let backlog = within(counts::backlog(&mut conn, &options.names)).await?;
        if backlog.held == 0 || shared.blocked(None).is_some() {
            return Ok::<_, sqlx::Error>((backlog, None));
        }
        let groups = within(backlog::held(&mut conn, &options.names)).await?;
        let first = groups.first().map(|group| format!("{} are held: {}", group.count(), group.held));
        Ok((backlog, first))
    };
    counted.await.inspect_err(|error| tracing::debug!(error = describe(error), "the backlog cannot be counted")).ok()
}

/// Reports events that are older than their topic keeps, once per topic.
#[derive(Default)]
struct ExpiringEvents {
    looked_at: Option<Instant>,
    reported: HashSet<String>,
}

impl ExpiringEvents {
    /// Looks if an event waits for long and the last look was not recent.
    async fn look(&mut self, shared: &Shared, backlog: Option<Backlog>) {
        let is_old = backlog.and_then(|backlog| backlog.oldest).is_some_and(|oldest| oldest >= OLD);
        if !is_old || self.looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return;
        }
        self.looked_at = Some(Instant::now());
        let options = &shared.options;
        let found = async {
            let mut conn = options.connect(APPLICATION).await?;
            expiring::find(&mut conn, &options.names, &options.relay, &options.brokers, OLD).await
        };
        match found.await {
            Ok(found) => {
                self.reported.retain(|topic| found.iter().any(|expiring| expiring.topic == *topic));
                found.iter().filter(|found| self.reported.insert(found.topic.clone())).for_each(Expiring::log);
            }
            Err(error) => tracing::debug!(%error, "the topics' retention is not known"),
        }
    }
}

fn log(shared: &Shared, published: u64, elapsed: Duration, counted: Option<(Backlog, Option<String>)>) {
    let (backlog, held) = counted.unzip();
    let unready = || {
        let reason = shared.options.telemetry.health.ready().reason?;
        Some(format!("{}: {}", reason.cause.word(), reason.message))
    };
    let blocked = shared.blocked(None).or_else(unready).or(held.flatten()).unwrap_or_else(|| "nothing".to_owned());
    let rate = published as f64 / elapsed.as_secs_f64();
    let rate_per_s = (rate * 10.0).round() / 10.0;
    let (lanes, conflicts) = (shared.assigned_lanes(), shared.conflicts());
    let line = Line { published, rate_per_s, backlog, lanes, blocked, conflicts };
    line.log();
    // What blocks everything is said beside the line, as the relay's state.
    let is_ready = shared.options.telemetry.health.ready().is_fine();
    shared.options.telemetry.set_status_line(line.text(is_ready));
}

struct Line {
    published: u64,
    rate_per_s: f64,
    backlog: Option<Backlog>,
    lanes: String,
    blocked: String,
    conflicts: Option<String>,
}

impl Line {
    /// Returns what an operator looks for first, as one line of text.
    fn text(&self, shows_what_blocks: bool) -> String {
        let Self { published, rate_per_s, backlog, lanes, blocked, .. } = self;
        let counts = match backlog {
            Some(Backlog { pending, oldest, held, dead, .. }) => {
                let oldest = oldest.unwrap_or_default().as_secs();
                format!("{pending} pending, oldest {oldest} s, {held} held, {dead} dead")
            }
            None => "the database cannot be asked".to_owned(),
        };
        let blocked = if shows_what_blocks { format!("; blocked by {blocked}") } else { String::new() };
        format!("{published} published, {rate_per_s} per s; {counts}; lanes {lanes}{blocked}")
    }

    /// Logs numbers as numbers. Counts stop at [`counts::COUNT_LIMIT`]. Values that are not known are left out.
    fn log(&self) {
        let Self { published, rate_per_s, backlog, lanes, blocked, conflicts } = self;
        let oldest = backlog.map(|backlog| backlog.oldest.unwrap_or_default());
        tracing::info!(
            notice = %Notice::Status,
            published,
            rate_per_s,
            pending = backlog.map(|backlog| backlog.pending),
            oldest_s = oldest.map(|oldest| oldest.as_secs()),
            scheduled = backlog.map(|backlog| backlog.scheduled),
            held = backlog.map(|backlog| backlog.held),
            dead = backlog.map(|backlog| backlog.dead),
            lanes,
            blocked,
            conflicts,
            "status of relay and outbox"
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::observe::written::Written;

    fn logged(backlog: Option<Backlog>) -> Value {
        let (written, lanes) = (Written::default(), "0-7".to_owned());
        let line =
            Line { published: 12, rate_per_s: 1.5, backlog, lanes, blocked: "nothing".to_owned(), conflicts: None };
        let writer = written.clone();
        let lines = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone());
        tracing::subscriber::with_default(lines.finish(), || line.log());
        serde_json::from_str(&written.text()).expect("one line of JSON")
    }

    #[test]
    fn every_number_of_the_status_line_is_a_number() {
        let oldest = Some(Duration::from_secs(61));
        let line = logged(Some(Backlog { pending: counts::COUNT_LIMIT, oldest, scheduled: 2, held: 3, dead: 4 }));
        for (field, expected) in [
            ("published", 12),
            ("pending", counts::COUNT_LIMIT),
            ("oldest_s", 61),
            ("scheduled", 2),
            ("held", 3),
            ("dead", 4),
        ] {
            assert_eq!(line[field].as_i64(), Some(expected), "{field}: {line}");
        }
        assert_eq!(line["rate_per_s"].as_f64(), Some(1.5), "{line}");
        assert_eq!(line["notice"], "status", "{line}");
    }

    #[test]
    fn the_text_for_people_has_what_they_look_for_first() {
        let (oldest, lanes) = (Some(Duration::from_secs(61)), "0-7".to_owned());
        let backlog = Some(Backlog { pending: 5, oldest, scheduled: 2, held: 3, dead: 4 });
        let mut line =
            Line { published: 12, rate_per_s: 1.5, backlog, lanes, blocked: "nothing".to_owned(), conflicts: None };
        let text = "12 published, 1.5 per s; 5 pending, oldest 61 s, 3 held, 4 dead; lanes 0-7; blocked by nothing";
        assert_eq!(line.text(true), text);
        assert_eq!(line.text(false), text.trim_end_matches("; blocked by nothing"));
        line.backlog = None;
        assert!(line.text(true).contains("the database cannot be asked"), "{}", line.text(true));
    }

    #[test]
    fn what_the_database_did_not_tell_is_left_out() {
        let line = logged(None);
        for field in ["pending", "oldest_s", "scheduled", "held", "dead"] {
            assert!(line.get(field).is_none(), "{field}: {line}");
        }
        assert_eq!(line["published"].as_i64(), Some(12), "{line}");
        assert_eq!(logged(Some(Backlog::default()))["oldest_s"].as_i64(), Some(0), "an outbox in which nothing waits");
    }
}
