//! Keeps the held keys of a group in the consumer's database, so that a restart does not lose them.
//!
//! A key is held as long as the table has a row of it. An event of a held key goes to the dead letter topic and gets a row; it is then
//! *parked*. The event of the key's first row is the *head* of the key. If the head arrives from another place than where it was first
//! read, it has been redriven: the consumer applies it and deletes its row in the same transaction. So a redrive in order releases the key,
//! and events that arrive in between are parked behind. An operator gives a parked event up by deleting its row.

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::Names;
use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::delivery::Delivery;
use crate::event::EventId;

/// The SQL statements of one group.
#[derive(Debug, Clone)]
pub(super) struct Held {
    group: String,
    /// False if a pooler may give the next transaction another server, which does not know the statements of this one.
    persistent: bool,
    gate: String,
    park: String,
    delete: String,
    unmark: String,
    exists: String,
}

/// The decision whether an event may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing prevents the event from being applied.
    Open,
    /// The event is the head of its key and has been redriven. Applying it releases its part of the hold.
    Redriven,
    /// An earlier event of the key is parked.
    Held,
    /// This very record has been parked.
    Parked,
    /// The group has processed the event before. Its row, if an operator applied the event by hand, is deleted.
    Repeated,
}

impl Held {
    pub(super) fn new(group: &str, names: &Names, persistent: bool) -> Self {
        let (held, once, processed) = (names.held(), names.once(), names.processed());
        // The search path is the service's, so operators are qualified as well.
        let is = |column: &str, parameter: u8| format!("{column} operator(pg_catalog.=) ${parameter}");
        let read_here = [is("read_topic", 5), is("read_partition", 6), is("read_offset", 7)].join(" and ");
        let of_key = [is("consumer_group", 1), is("topic", 3), is("key", 4)].join(" and ");
        let of_event = [is("consumer_group", 1), is("event_id", 2)].join(" and ");
        Self {
            group: group.to_owned(),
            persistent,
            // One round trip for the mark, the head of the key, and whether this is the record that was parked.
            gate: format!(
                "select {once}($1, $2), \
                 (select event_id from {held} where {of_key} order by position limit 1), \
                 (select {read_here} from {held} where {of_event})"
            ),
            park: format!(
                "insert into {held} (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, reason) \
                 values ($1, $3, $4, $2, $5, $6, $7, $8) on conflict (consumer_group, event_id) do update set \
                 read_topic = excluded.read_topic, read_partition = excluded.read_partition, read_offset = excluded.read_offset"
            ),
            delete: format!("delete from {held} where {of_event}"),
            unmark: format!("delete from {processed} where {of_event}"),
            exists: format!("select pg_catalog.count(*) from {held} where {}", is("consumer_group", 1)),
        }
    }

    /// Counts the parked events of the group. Fails if the table does not exist.
    pub(super) async fn count(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let count = sqlx::query_scalar(AssertSqlSafe(self.exists.clone())).bind(&self.group);
        count.persistent(self.persistent).fetch_one(conn).await
    }

    /// Marks the event as processed and returns whether it may be applied. Unless the result is [`Gate::Open`] or [`Gate::Redriven`] the
    /// caller has to roll the transaction back. For [`Gate::Repeated`] it may also commit.
    pub(super) async fn gate(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        source_topic: &str,
        delivery: &Delivery,
    ) -> Result<Gate, sqlx::Error> {
        let row = self.about(&self.gate, event, source_topic, delivery).fetch_one(&mut *tx).await?;
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

    /// Binds `$1` to `$7` of [`Held::gate`] and [`Held::park`]: the group, the event, and where it was read.
    fn about<'q>(
        &'q self,
        statement: &str,
        event: EventId,
        source_topic: &'q str,
        delivery: &'q Delivery,
    ) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(statement.to_owned()))
            .bind(&self.group)
            .bind(event.0)
            .bind(source_topic)
            .bind(&delivery.key)
            .bind(&delivery.topic)
            .bind(delivery.partition)
            .bind(delivery.offset)
            .persistent(self.persistent)
    }

    /// Deletes the event's row.
    pub(super) async fn delete(&self, tx: &mut PgConnection, event: EventId) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(self.delete.clone());
        sqlx::query(sql).bind(&self.group).bind(event.0).persistent(self.persistent).execute(tx).await.map(drop)
    }

    /// Parks the event, unless it has been processed in the meantime. Sets the mark and deletes it again, so that this transaction and one
    /// that processes the event wait for each other.
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
        self.about(&self.park, event, source_topic, delivery).bind(reason.name()).execute(&mut *tx).await?;
        let unmark = sqlx::query(AssertSqlSafe(self.unmark.clone())).bind(&self.group).bind(event.0);
        unmark.persistent(self.persistent).execute(tx).await.map(drop)
    }
}
