//! Marks an event as processed in the transaction of its effect, so that either both are committed or neither is.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::Names;
use crate::event::EventId;
use crate::transaction;

/// The record of the events that a consumer group has processed: one effect per event.
///
/// A second delivery of an event waits until the transaction that processes it has ended, and then sees whether it was committed.
///
/// ```no_run
/// use event_outbox::consumer::{Inbox, Once};
/// use event_outbox::event::EventId;
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
/// event_outbox::transaction::commit(tx).await?;
/// if once == Once::Repeated {
///     println!("{event} had been processed before");
/// }
/// // Commit the offset only now.
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Inbox {
    group: String,
    once: String,
    first_of: String,
}

/// The outcome of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once<T> {
    /// This was the first delivery. Holds the value that the effect returned.
    Applied(T),
    /// The group had processed the event before, and the effect did not run.
    Repeated,
}

impl<T> Once<T> {
    /// Returns true for the first delivery.
    pub fn is_applied(&self) -> bool {
        matches!(self, Once::Applied(_))
    }

    /// Returns the value of the effect, or `None` if this was not the first delivery.
    pub fn applied(self) -> Option<T> {
        match self {
            Once::Applied(value) => Some(value),
            Once::Repeated => None,
        }
    }
}

impl Inbox {
    /// Creates the inbox of a consumer group in `public.processed_events`.
    pub fn new(group: impl Into<String>) -> Self {
        Self::with_names(group, &Names::default())
    }

    /// Creates the inbox of a consumer group in the table that `names` gives.
    pub fn with_names(group: impl Into<String>, names: &Names) -> Self {
        Self {
            group: group.into(),
            once: format!("select {}($1, $2)", names.once()),
            // Sorted, because two batches that share events would otherwise deadlock.
            first_of: format!(
                "insert into {} (consumer_group, event_id) select $1, id from pg_catalog.unnest($2::pg_catalog.uuid[]) id order by id \
                 on conflict do nothing returning event_id",
                names.processed()
            ),
        }
    }

    /// Returns the consumer group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Marks the event as processed and returns true if this is the first time. Waits for a concurrent transaction that marks the same
    /// event.
    ///
    /// Call it inside a transaction: if the effect is rolled back, the mark has to be rolled back, too. End the transaction with
    /// [`transaction::commit`], which fails if the effect is not going to be kept.
    ///
    /// # Errors
    /// Any database error. The transaction can then only be rolled back.
    pub async fn first(&self, tx: &mut PgConnection, event: EventId) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(self.once.clone())).bind(&self.group).bind(event.0).fetch_one(tx).await
    }

    /// Runs the effect unless the group has processed the event. The caller commits, or rolls back after an error.
    ///
    /// # Errors
    /// The error of the effect, or a database error of the inbox. If the effect ignored an error of a statement, Postgres has aborted the
    /// transaction and keeps nothing of it; that is an error with SQLSTATE `25P02`. Run a statement that may fail in a savepoint.
    pub async fn once<T, E, F>(&self, tx: &mut PgConnection, event: EventId, effect: F) -> Result<Once<T>, E>
    where
        F: AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
        E: From<sqlx::Error>,
    {
        if !self.first(&mut *tx, event).await? {
            return Ok(Once::Repeated);
        }
        let value = effect(&mut *tx).await?;
        transaction::id(tx).await?;
        Ok(Once::Applied(value))
    }

    /// Marks many events as processed in one statement, and returns the new ones in the given order. An id that occurs twice is returned
    /// once. End the transaction with [`transaction::commit`].
    ///
    /// # Errors
    /// Any database error. The transaction can then only be rolled back.
    pub async fn first_of(&self, tx: &mut PgConnection, events: &[EventId]) -> Result<Vec<EventId>, sqlx::Error> {
        let ids: Vec<Uuid> = events.iter().map(|event| event.0).collect();
        let new: Vec<Uuid> =
            sqlx::query_scalar(AssertSqlSafe(self.first_of.clone())).bind(&self.group).bind(ids).fetch_all(tx).await?;
        let mut new: HashSet<Uuid> = new.into_iter().collect();
        Ok(events.iter().filter(|event| new.remove(&event.0)).copied().collect())
    }
}
