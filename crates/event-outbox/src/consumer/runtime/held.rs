//! Keeps the held keys of a group in the consumer's database, so that a restart does not lose them.
//!
//! A key is held as long as the table has a row of it. The event of the key's first row is the *head* of the key. It is in one of these
//! states:
//!
//! - The head has failed: its reason is that of a dead letter, and its record is on the dead letter topic. Later events of the key get rows
//!   behind it, with their records; they are *parked*. Somebody has to redrive the head or to discard it.
//! - The head is parked, with reason `held`: nothing is wrong with it, and the events before it have ended. A member of the group applies it
//!   from its row and deletes the row in the same transaction; then the next one.
//!
//! If a failed head arrives from another place than where it was first read, it has been redriven: the consumer applies it and deletes its
//! row in the same transaction. If it fails again, its row stays. New events of the key are parked behind all others until no row is left,
//! so a key keeps its order while it is freed.

use sqlx::postgres::{PgArguments, PgRow, Postgres};
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
    last: String,
    park: String,
    delete: String,
    unmark: String,
    heads: String,
    count: String,
}

/// The decision whether an event may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing prevents the event from being applied.
    Open,
    /// The event is the head of its key, and is redriven or applied from its row. Applying it releases its part of the hold.
    Redriven,
    /// An earlier event of the key has a row.
    Held,
    /// This very record has been parked.
    Parked,
    /// The group has processed the event before. Its row, if an operator applied the event by hand, is deleted.
    Repeated,
}

/// The head of a held key.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) event: EventId,
    pub(super) age_seconds: f64,
    /// The record of a parked head, which may be applied now. `None` for a head that has failed.
    pub(super) ready: Option<Delivery>,
}

impl Held {
    pub(super) fn new(group: &str, names: &Names, persistent: bool) -> Self {
        let (held, once, processed) = (names.held(), names.once(), names.processed());
        // The search path is the service's, so operators are qualified as well.
        let is = |column: &str, parameter: u8| format!("{column} operator(pg_catalog.=) ${parameter}");
        let read_here = [is("read_topic", 5), is("read_partition", 6), is("read_offset", 7)].join(" and ");
        // The index has the hash of the key, because a key may be too long for an index.
        let of_key = |topic: u8, key: u8| {
            let key = format!("pg_catalog.sha256(key) operator(pg_catalog.=) pg_catalog.sha256(${key})");
            [is("consumer_group", 1), is("topic", topic), key].join(" and ")
        };
        let of_event = [is("consumer_group", 1), is("event_id", 2)].join(" and ");
        Self {
            group: group.to_owned(),
            persistent,
            // One round trip for the mark, the head of the key, and whether this is the record that was parked.
            gate: format!(
                "select {once}($1, $2), \
                 pg_catalog.pg_current_xact_id()::pg_catalog.text, \
                 (select event_id from {held} where {} order by position limit 1), \
                 (select {read_here} from {held} where {of_event})",
                of_key(3, 4)
            ),
            last: format!(
                "select event_id from {held} where {} order by position desc limit 1 for update",
                of_key(2, 3)
            ),
            park: format!(
                "insert into {held} (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, \
                 reason, error, value, header_names, header_values, written_at) \
                 values ($1, $3, $4, $2, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
                 on conflict (consumer_group, event_id) do update set read_topic = excluded.read_topic, \
                 read_partition = excluded.read_partition, read_offset = excluded.read_offset, reason = excluded.reason, \
                 error = excluded.error, value = excluded.value, header_names = excluded.header_names, \
                 header_values = excluded.header_values, written_at = excluded.written_at"
            ),
            delete: format!(
                "with gone as (delete from {held} where {of_event} returning topic, key) \
                 select exists (select from {held} h, gone g where h.consumer_group operator(pg_catalog.=) $1 \
                 and h.topic operator(pg_catalog.=) g.topic \
                 and pg_catalog.sha256(h.key) operator(pg_catalog.=) pg_catalog.sha256(g.key) \
                 and h.event_id operator(pg_catalog.<>) $2) from gone"
            ),
            unmark: format!("delete from {processed} where {of_event}"),
            heads: heads(&held),
            count: format!("select pg_catalog.count(*) from {held} where {}", is("consumer_group", 1)),
        }
    }

    /// Counts the events of the group that have a row. Fails if the table does not exist or is older than this code.
    pub(super) async fn count(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let count = sqlx::query_scalar(AssertSqlSafe(self.count.clone())).bind(&self.group);
        count.persistent(self.persistent).fetch_one(conn).await
    }

    /// Reads the heads of all held keys.
    pub(super) async fn heads(&self, conn: &mut PgConnection) -> Result<Vec<Head>, sqlx::Error> {
        let heads = sqlx::query(AssertSqlSafe(self.heads.clone())).bind(&self.group);
        let rows = heads.persistent(self.persistent).fetch_all(conn).await?;
        rows.iter().map(head).collect()
    }

    /// Marks the event as processed and returns whether it may be applied, and the id of the transaction. Unless the result is
    /// [`Gate::Open`] or [`Gate::Redriven`] the caller has to roll the transaction back. For [`Gate::Repeated`] it may also commit.
    pub(super) async fn gate(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        source_topic: &str,
        delivery: &Delivery,
    ) -> Result<(Gate, String), sqlx::Error> {
        let row = self.about(&self.gate, event, source_topic, delivery).fetch_one(&mut *tx).await?;
        let (first, transaction): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
        let (head, parked_here): (Option<Uuid>, Option<bool>) = (row.try_get(2)?, row.try_get(3)?);
        if !first {
            if parked_here.is_some() {
                self.delete(tx, event).await?;
            }
            return Ok((Gate::Repeated, transaction));
        }
        let is_head = head == Some(event.0);
        let gate = match parked_here {
            Some(_) if delivery.parked && is_head => Gate::Redriven,
            // The row was applied, discarded or redriven since it was read.
            _ if delivery.parked => Gate::Parked,
            Some(true) => Gate::Parked,
            Some(false) if is_head => Gate::Redriven,
            _ if head.is_some() => Gate::Held,
            _ => Gate::Open,
        };
        Ok((gate, transaction))
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

    /// Deletes the event's row. Returns true if this frees its key.
    pub(super) async fn delete(&self, tx: &mut PgConnection, event: EventId) -> Result<bool, sqlx::Error> {
        let sql = AssertSqlSafe(self.delete.clone());
        let others = sqlx::query_scalar(sql).bind(&self.group).bind(event.0).persistent(self.persistent);
        Ok(others.fetch_optional(tx).await? == Some(false))
    }

    /// Parks an event behind the others of its key. Returns false if the key was freed in the meantime, so that the event has to be tried
    /// again; the caller then rolls back.
    pub(super) async fn park_behind(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        source_topic: &str,
        delivery: &Delivery,
    ) -> Result<bool, sqlx::Error> {
        // Locks the last row of the key. Whoever deletes it waits for this transaction and then finds the new row; if it was deleted first,
        // nobody would come back for the new row.
        let last = sqlx::query(AssertSqlSafe(self.last.clone()))
            .bind(&self.group)
            .bind(source_topic)
            .bind(&delivery.key)
            .persistent(self.persistent);
        if last.fetch_optional(&mut *tx).await?.is_none() {
            return Ok(false);
        }
        self.park(tx, event, source_topic, delivery, Reason::Held, None).await.map(|()| true)
    }

    /// Gives the event a row, unless it has been processed in the meantime. Sets the mark and deletes it again, so that this transaction and
    /// one that processes the event wait for each other.
    pub(super) async fn park(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        source_topic: &str,
        delivery: &Delivery,
        reason: Reason,
        error: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        if let (Gate::Repeated, _) = self.gate(&mut *tx, event, source_topic, delivery).await? {
            return Ok(());
        }
        let (names, values): (Vec<_>, Vec<_>) = delivery.headers.iter().map(|(name, value)| (name, value)).unzip();
        let park = self.about(&self.park, event, source_topic, delivery).bind(reason.name()).bind(error);
        let park = park.bind(&delivery.value).bind(names).bind(values).bind(delivery.timestamp);
        park.execute(&mut *tx).await?;
        let unmark = sqlx::query(AssertSqlSafe(self.unmark.clone())).bind(&self.group).bind(event.0);
        unmark.persistent(self.persistent).execute(tx).await.map(drop)
    }
}

/// Returns the query for the first row of each key. It goes from key to key by the index, so it does not read the rows behind the heads.
fn heads(held: &str) -> String {
    let columns = "topic, key, event_id, read_topic, read_partition, read_offset, reason, value, header_names, header_values, \
                   written_at, held_at";
    let first = |beyond: &str| {
        format!(
            "select {columns} from {held} where consumer_group operator(pg_catalog.=) $1{beyond} \
             order by topic, pg_catalog.sha256(key), position limit 1"
        )
    };
    let beyond =
        " and (topic, pg_catalog.sha256(key)) operator(pg_catalog.>) (heads.topic, pg_catalog.sha256(heads.key))";
    format!(
        "with recursive heads as (({}) union all select next.* from heads, lateral ({}) next) \
         select event_id, read_topic, read_partition, read_offset, key, value, header_names, header_values, written_at, \
         extract(epoch from pg_catalog.now() operator(pg_catalog.-) held_at)::pg_catalog.float8, \
         reason operator(pg_catalog.=) 'held' and header_names is not null from heads",
        first(""),
        first(beyond)
    )
}

fn head(row: &PgRow) -> Result<Head, sqlx::Error> {
    let mut head = Head { event: EventId(row.try_get(0)?), age_seconds: row.try_get(9)?, ready: None };
    if row.try_get(10)? {
        let (names, values): (Vec<String>, Vec<Option<Vec<u8>>>) = (row.try_get(6)?, row.try_get(7)?);
        head.ready = Some(Delivery {
            topic: row.try_get(1)?,
            partition: row.try_get(2)?,
            offset: row.try_get(3)?,
            key: row.try_get(4)?,
            value: row.try_get(5)?,
            headers: names.into_iter().zip(values).collect(),
            timestamp: row.try_get(8)?,
            parked: true,
        });
    }
    Ok(head)
}
