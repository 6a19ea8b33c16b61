//! One effect per event: the event is marked as processed in the transaction of its effect, so that both are there or neither.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::Names;
use crate::event::EventId;

/// What a consumer group has processed.
///
/// A second delivery of an event waits until the transaction that processes it has ended, and then sees whether it was committed.
///
/// ```no_run
/// use outbox_relay::consumer::{Inbox, Once};
/// use outbox_relay::event::EventId;
///
/// # async fn apply(pool: &sqlx::PgPool, event: EventId, cents: i64) -> Result<(), sqlx::Error> {
/// let inbox = Inbox::new("billing");
/// let mut tx = pool.begin().await?;
/// let once = inbox
///     .once(&mut tx, event, async |tx| {
///         sqlx::query("update balance set cents = cents + $1").bind(cents).execute(tx).await?;
///         Ok::<_, sqlx::Error>(())
///     })
///     .await?;
/// tx.commit().await?;
/// if once == Once::Repeated {
///     println!("{event} had been processed before");
/// }
/// // Only now the offset.
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Inbox {
    group: String,
    once: String,
    first_of: String,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once<T> {
    /// It was the first one: what the effect returned.
    Applied(T),
    /// The group has processed the event before; nothing was done.
    Repeated,
}

impl<T> Once<T> {
    /// True for the first delivery.
    pub fn is_applied(&self) -> bool {
        matches!(self, Once::Applied(_))
    }

    /// What the effect returned, if it was the first delivery.
    pub fn applied(self) -> Option<T> {
        match self {
            Once::Applied(value) => Some(value),
            Once::Repeated => None,
        }
    }
}

impl Inbox {
    /// The inbox of a consumer group, `processed_events` in `public`.
    pub fn new(group: impl Into<String>) -> Self {
        Self::with_names(group, &Names::default())
    }

    /// The inbox of a consumer group under other names.
    pub fn with_names(group: impl Into<String>, names: &Names) -> Self {
        Self {
            group: group.into(),
            once: format!("select {}($1, $2)", names.once()),
            // Sorted: two batches that share events would else wait for each other.
            first_of: format!(
                "insert into {} (consumer_group, event_id) select $1, id from unnest($2::uuid[]) id order by id \
                 on conflict do nothing returning event_id",
                names.processed()
            ),
        }
    }

    /// The consumer group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Marks the event as processed; true the first time. Waits for another transaction that has just done the same.
    ///
    /// Only within a transaction this means anything: the mark has to go when the effect is rolled back.
    ///
    /// # Errors
    /// Any database error; the transaction can only be rolled back then.
    pub async fn first(&self, tx: &mut PgConnection, event: EventId) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(self.once.clone())).bind(&self.group).bind(event.0).fetch_one(tx).await
    }

    /// Runs the effect unless the group has processed the event. The caller commits, or rolls back where this fails.
    ///
    /// # Errors
    /// The effect's, or a database error of the inbox.
    pub async fn once<T, E, F>(&self, tx: &mut PgConnection, event: EventId, effect: F) -> Result<Once<T>, E>
    where
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
        E: From<sqlx::Error>,
    {
        if !self.first(&mut *tx, event).await? {
            return Ok(Once::Repeated);
        }
        effect(tx).await.map(Once::Applied)
    }

    /// Marks many events as processed in one statement, and returns those that are new, in the order given. An id that is given
    /// twice is new once.
    ///
    /// # Errors
    /// Any database error; the transaction can only be rolled back then.
    pub async fn first_of(&self, tx: &mut PgConnection, events: &[EventId]) -> Result<Vec<EventId>, sqlx::Error> {
        let ids: Vec<Uuid> = events.iter().map(|event| event.0).collect();
        let new: Vec<Uuid> =
            sqlx::query_scalar(AssertSqlSafe(self.first_of.clone())).bind(&self.group).bind(ids).fetch_all(tx).await?;
        let mut new: HashSet<Uuid> = new.into_iter().collect();
        Ok(events.iter().filter(|event| new.remove(&event.0)).copied().collect())
    }
}
