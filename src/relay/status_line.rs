//! The status line's task: counts what waits and logs it, now and then. Its counts may take long, so nothing waits for them, and the
//! connection is open only while they run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use event_outbox::notice::Notice;
use crate::relay::outage::describe;
use crate::relay::shared::Shared;
use crate::relay::worker::context::within;
use crate::store::session;
use crate::store::stats::{self, Backlog, COUNT_LIMIT};

/// How its sessions call themselves. Not like a worker's, whose locks are looked for by that name.
const APPLICATION: &str = "outbox-relay-status";

/// Runs until `stop` becomes true.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let (mut logged_at, mut logged_published) = (Instant::now(), 0);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(shared.options.status_interval) => {}
        }
        let backlog = tokio::select! {
            biased;
            // It only reads: it may be cut short.
            _ = stop.wait_for(|stop| *stop) => return,
            backlog = count(&shared) => backlog,
        };
        let total = shared.published_total();
        log(&shared, total - logged_published, logged_at.elapsed(), backlog);
        (logged_at, logged_published) = (Instant::now(), total);
    }
}

/// `None` when the database cannot be asked, or takes too long. The workers and the heartbeat report outages.
async fn count(shared: &Shared) -> Option<Backlog> {
    let options = &shared.options;
    let counted = async {
        let mut conn = session::connect(&options.database, APPLICATION, options.connect_timeout).await?;
        within(stats::backlog(&mut conn, &options.names)).await
    };
    counted.await.inspect_err(|error| tracing::debug!(error = describe(error), "the backlog cannot be counted")).ok()
}

fn log(shared: &Shared, published: u64, elapsed: Duration, backlog: Option<Backlog>) {
    let rate = published as f64 / elapsed.as_secs_f64();
    let blocked = shared.blocked(None).unwrap_or_else(|| "nothing".to_owned());
    let count = |count: Option<i64>| match count {
        None => "unknown".to_owned(),
        Some(count) if count >= COUNT_LIMIT => format!("{COUNT_LIMIT}+"),
        Some(count) => count.to_string(),
    };
    tracing::info!(
        notice = %Notice::Status,
        published,
        rate_per_s = format!("{rate:.1}"),
        pending = count(backlog.map(|backlog| backlog.pending)),
        oldest_s = backlog.and_then(|backlog| backlog.oldest).map_or(0, |oldest| oldest.as_secs()),
        scheduled = count(backlog.map(|backlog| backlog.scheduled)),
        held = count(backlog.map(|backlog| backlog.held)),
        dead = count(backlog.map(|backlog| backlog.dead)),
        lanes = shared.owned_lanes(),
        blocked,
        "status of relay and outbox"
    );
}
