//! Sleeps while there is nothing to do, until a writer notifies.
//!
//! A poll adds its pause to the latency of a lone event, and a notification with each insert would slow down every commit. So writers notify
//! only while this relay sleeps. They know it by advisory locks, which a sleeping relay holds exclusively and a writer takes shared until its
//! transaction ends (`outbox_emit`, or the trigger of `migrate --wake-up-trigger`). A relay that has the locks therefore knows that no insert
//! is left uncommitted that would not notify: it looks once more, and sleeps.
//!
//! ```text
//! awake --nothing to do, and the locks are free--> asleep --notified | an event is due | work was found | the session ended--> awake
//! ```
//!
//! Nothing depends on a notification: workers look even in their sleep, every few seconds if all inserts notify (the trigger), and every
//! `RELAY_POLL_INTERVAL` if not. Of several relays one holds the locks; the others
//! look once a second, and hear the notifications as well. Any session can take the locks: then relays poll as they do without.
//!
//! A notification from another session proves each minute that the way works. Behind a pooler the relay does not listen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::sync::watch;

use crate::config::DatabaseSettings;
use crate::fault::describe;
use crate::relay::shared::Shared;
use crate::store::connect::{self, Notifications, Purpose};
use crate::store::session::within;
use crate::store::wake_up::Armed;
use event_outbox::backoff::Backoff;
use event_outbox::notice::Notice;

/// The name of the task's sessions.
const APPLICATION: &str = "outbox-relay-wake-up";

/// The time without work after which the relay tries to sleep, and the longest pause between two attempts that lead to nothing.
const IDLE_AFTER: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The longest sleep of a worker between two looks, while this relay or another one holds the locks.
const SLEEP: Duration = Duration::from_secs(10);
const LIGHT_SLEEP: Duration = Duration::from_secs(1);

/// The interval of proofs, and the longest time that a notification may take.
const PROOF_INTERVAL: Duration = Duration::from_secs(60);
const PROOF_WITHIN: Duration = Duration::from_secs(2);

/// Why a session was given up.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the session ended")]
    Session,
    /// The notifications of a shared session would reach its other clients.
    #[error("a pooler is in between")]
    Pooled,
    #[error("no notification arrives")]
    Unproved,
    #[error("a database error")]
    Database(#[from] sqlx::Error),
}

/// Runs the task until `stop` becomes true.
pub(crate) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let Some(database) = shared.options.wake_up.clone() else { return };
    let mut backoff = Backoff::new(Duration::from_millis(200), PROOF_INTERVAL);
    let mut is_reported = false;
    loop {
        let served = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            ended = serve(&shared, &database, &mut backoff, &mut is_reported) => ended,
        };
        shared.wake_up.set(None);
        let Err(ended) = served;
        if let Ended::Database(error) = &ended {
            shared.connection_failed(error);
        }
        let reason = match &ended {
            Ended::Database(error) => describe(error),
            ended => ended.to_string(),
        };
        tracing::debug!(reason, "the relay cannot be woken");
        let is_useless = matches!(ended, Ended::Unproved | Ended::Pooled);
        if is_useless && !std::mem::replace(&mut is_reported, true) {
            tracing::info!(
                notice = %Notice::WakeUpOff,
                reason,
                consequence = "the relay polls every RELAY_POLL_INTERVAL",
                next_step = "set RELAY_WAKE_UP_URL to a direct connection if DATABASE_URL leads to a pooler, or RELAY_WAKE_UP=off",
                "the relay cannot be woken"
            );
        }
        let pause = if is_useless { PROOF_INTERVAL } else { backoff.pause() };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// A session that listens.
struct Listener<'a> {
    shared: &'a Shared,
    database: &'a DatabaseSettings,
    conn: PgConnection,
    notifications: Notifications,
    proved_at: Instant,
    /// True if every insert notifies, and not only `outbox_emit`.
    has_trigger: bool,
}

/// Sleeps and wakes up until the session ends, or proves useless.
async fn serve(
    shared: &Shared,
    database: &DatabaseSettings,
    backoff: &mut Backoff,
    is_reported: &mut bool,
) -> Result<std::convert::Infallible, Ended> {
    if shared.has_few_connections() {
        // A worker or the heartbeat needs the connection.
        return Err(Ended::Session);
    }
    let (mut conn, notifications) = connect::connect_to_listen(database, APPLICATION).await?;
    if !notifications.are_of(within(shared.wake_up_sql.process(&mut conn)).await?) {
        return Err(Ended::Pooled);
    }
    within(shared.wake_up_sql.listen(&mut conn)).await?;
    let mut listener =
        Listener { shared, database, conn, notifications, proved_at: Instant::now(), has_trigger: false };
    listener.prove().await?;
    backoff.reset();
    if std::mem::take(is_reported) {
        tracing::info!(notice = %Notice::WakeUpOn, "the relay can be woken");
    }
    let mut up = shared.broker.state();
    let mut pause = IDLE_AFTER;
    loop {
        // Without brokers there is no work, whoever writes.
        up.wait_for(|up| *up).await.map_err(|_| Ended::Session)?;
        listener.until_idle(pause).await?;
        let worked_at = shared.wake_up.worked_at();
        if listener.sleep(&mut up).await? && shared.wake_up.worked_at() != worked_at {
            pause = IDLE_AFTER;
        } else {
            // Writers keep a transaction open, or what they write is of other lanes or waits.
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Listener<'_> {
    /// Waits until no worker has had work for this time.
    async fn until_idle(&mut self, pause: Duration) -> Result<(), Ended> {
        loop {
            let left = pause.saturating_sub(self.shared.wake_up.idle_for());
            if left.is_zero() {
                return Ok(());
            }
            tokio::select! {
                biased;
                // A notification of before is of no interest: the workers are awake.
                notified = self.notifications.next() => notified.ok_or(Ended::Session)?,
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Sleeps, if the locks can be had. Returns false if they cannot.
    async fn sleep(&mut self, up: &mut watch::Receiver<bool>) -> Result<bool, Ended> {
        let (sql, wake_up) = (&self.shared.wake_up_sql, &self.shared.wake_up);
        if self.proved_at.elapsed() >= PROOF_INTERVAL {
            self.prove().await?;
        }
        // Whatever was written before this is found when the workers look once more.
        self.notifications.clear();
        let armed = within(sql.arm(&mut self.conn)).await?;
        let longest = match armed {
            Armed::No => return Ok(false),
            // An application that inserts events itself does not notify.
            _ if !self.has_trigger => self.shared.options.relay.live.get().poll_interval,
            Armed::Here => SLEEP,
            Armed::Elsewhere => LIGHT_SLEEP,
        };
        let due = within(sql.next_due(&mut self.conn)).await?.unwrap_or(Duration::MAX);
        wake_up.set(Some(longest.min(due.max(self.shared.options.relay.live.get().poll_interval))));
        let rest = match armed {
            Armed::Elsewhere => LIGHT_SLEEP,
            _ => PROOF_INTERVAL.saturating_sub(self.proved_at.elapsed()),
        };
        let woken = tokio::select! {
            biased;
            notified = self.notifications.next() => notified.ok_or(Ended::Session),
            () = wake_up.found_work() => Ok(()),
            _ = up.wait_for(|up| !*up) => Ok(()),
            () = tokio::time::sleep(rest.min(due)) => Ok(()),
        };
        // Wakes the workers first: they have work, and the locks cost writers only time.
        wake_up.set(None);
        woken?;
        if armed == Armed::Here {
            within(sql.disarm(&mut self.conn)).await?;
        }
        Ok(true)
    }

    /// Proves that a notification of another session arrives.
    async fn prove(&mut self) -> Result<(), Ended> {
        let mut other = connect::connect(self.database, APPLICATION, Purpose::Write).await?;
        self.notifications.clear();
        within(self.shared.wake_up_sql.notify(&mut other)).await?;
        let proof = tokio::time::timeout(PROOF_WITHIN, self.notifications.next()).await;
        proof.map_err(|_| Ended::Unproved)?.ok_or(Ended::Session)?;
        self.proved_at = Instant::now();
        self.has_trigger = within(self.shared.wake_up_sql.has_trigger(&mut self.conn)).await?;
        Ok(())
    }
}
