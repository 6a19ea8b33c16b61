//! Keys that are held, in the consumer's database, so that a restart does not forget them.
//!
//! A key is held as long as a row of it is there. An event of a held key goes to the dead letter topic and gets a row (it is
//! *parked*). The event of a key's first row is its *head*: when it comes again, from another place than where it was read, it has
//! been redriven and is applied; its row goes in the same transaction. So a redrive in order frees the key, and events that come
//! in between are parked behind. To give a parked event up, an operator deletes its row.

use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::Names;
use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::delivery::Delivery;
use crate::event::EventId;

/// The statements of one group.
#[derive(Debug, Clone)]
pub(super) struct Held {
    group: String,
    gate: String,
    park: String,
    delete: String,
    unmark: String,
    exists: String,
}

/// Whether an event may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing is in its way.
    Open,
    /// It is its key's head, and has been redriven: applying it frees the key of it.
    Redriven,
    /// An earlier event of its key is parked.
    Held,
    /// This very record has been parked.
    Parked,
    /// The group has processed it before. A row that it still has, because an operator applied it by hand, is gone.
    Repeated,
}

impl Held {
    pub(super) fn new(group: &str, names: &Names) -> Self {
        let (held, once, processed) = (names.held(), names.once(), names.processed());
        let read_here = "read_topic = $5 and read_partition = $6 and read_offset = $7";
        Self {
            group: group.to_owned(),
            // One round trip: the mark, the key's head, and whether this record is the one that was parked.
            gate: format!(
                "select {once}($1, $2), \
                 (select event_id from {held} where consumer_group = $1 and topic = $3 and key = $4 order by position limit 1), \
                 (select {read_here} from {held} where consumer_group = $1 and event_id = $2)"
            ),
            park: format!(
                "insert into {held} (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, reason) \
                 values ($1, $3, $4, $2, $5, $6, $7, $8) on conflict (consumer_group, event_id) do update set \
                 read_topic = excluded.read_topic, read_partition = excluded.read_partition, read_offset = excluded.read_offset"
            ),
            delete: format!("delete from {held} where consumer_group = $1 and event_id = $2"),
            unmark: format!("delete from {processed} where consumer_group = $1 and event_id = $2"),
            exists: format!("select count(*) from {held} where consumer_group = $1"),
        }
    }

    /// How many events of the group are parked; fails where there is no such table.
    pub(super) async fn count(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(self.exists.clone())).bind(&self.group).fetch_one(conn).await
    }

    /// Marks the event as processed and says whether it may be applied. For anything but [`Gate::Open`] and [`Gate::Redriven`] the
    /// transaction has to be rolled back, except that for [`Gate::Repeated`] it may be committed.
    pub(super) async fn gate(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        source_topic: &str,
        delivery: &Delivery,
    ) -> Result<Gate, sqlx::Error> {
        let row = sqlx::query(AssertSqlSafe(self.gate.clone()))
            .bind(&self.group)
            .bind(event.0)
            .bind(source_topic)
            .bind(&delivery.key)
            .bind(&delivery.topic)
            .bind(delivery.partition)
            .bind(delivery.offset)
            .fetch_one(&mut *tx)
            .await?;
        let (first, head): (bool, Option<Uuid>) = (row.try_get(0)?, row.try_get(1)?);
        let parked_here: Option<bool> = row.try_get(2)?;
        if !first {
            if parked_here.is_some() {
                self.delete(tx, event).await?;
            }
            return Ok(Gate::Repeated);
        }
        Ok(match (parked_here, head) {
            (Some(true), _) => Gate::Parked,
            (Some(false), Some(head)) if head == event.0 => Gate::Redriven,
            (_, Some(_)) => Gate::Held,
            (_, None) => Gate::Open,
        })
    }

    /// Deletes the event's row.
    pub(super) async fn delete(&self, tx: &mut PgConnection, event: EventId) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(self.delete.clone());
        sqlx::query(sql).bind(&self.group).bind(event.0).execute(tx).await.map(drop)
    }

    /// Parks the event, unless it has been processed in the meantime. The mark is set and taken back, so that this and a
    /// transaction that processes the event wait for each other.
    pub(super) async fn park(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        source_topic: &str,
        delivery: &Delivery,
        reason: Reason,
    ) -> Result<(), sqlx::Error> {
        if self.gate(&mut *tx, event, source_topic, delivery).await? == Gate::Repeated {
            return Ok(());
        }
        sqlx::query(AssertSqlSafe(self.park.clone()))
            .bind(&self.group)
            .bind(event.0)
            .bind(source_topic)
            .bind(&delivery.key)
            .bind(&delivery.topic)
            .bind(delivery.partition)
            .bind(delivery.offset)
            .bind(reason.name())
            .execute(&mut *tx)
            .await?;
        sqlx::query(AssertSqlSafe(self.unmark.clone())).bind(&self.group).bind(event.0).execute(tx).await.map(drop)
    }
}
