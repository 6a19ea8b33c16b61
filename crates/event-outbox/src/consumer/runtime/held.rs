//! Keeps the held keys of a group in the consumer's database, so that a restart does not lose them.
//!
//! A key is held as long as the table has a row of it. The event of the key's first row is the *head* of the key. It is in one of these
//! states:
//!
//! - The head has failed: its reason is that of a dead letter, and its record is on the dead letter topic. Later events of the key get rows
//!   behind it, with their records; they are *parked*. Somebody has to redrive the head or to discard it.
//! - The head is parked, with reason `held`: nothing is wrong with it, and the events before it have ended. A member of the group applies it
//!   from its row and deletes the row in the same transaction; then the next one.
//! - The head is to be tried again, with reason `retrying`: an attempt has failed, and the next one is due at a certain time. A member makes
//!   it then, from the row. After the last attempt the event is a failed head, or a dead letter without a row.
//!
//! If a failed head arrives from another place than where it was first read, it has been redriven: the consumer applies it and deletes its
//! row in the same transaction. If it fails again, its row stays. New events of the key are parked behind all others until no row is left,
//! so a key keeps its order while it is freed.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::Names;
use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::delivery::{Delivery, Parked};
use crate::event::EventId;

/// The reason of a row whose event is tried again by itself.
pub(super) const RETRYING: &str = "retrying";

/// The longest pause until the next attempt. An interval of Postgres has its limits.
const LONGEST_PAUSE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The state of a held event in its row.
#[derive(Debug, Clone, Default)]
pub(super) struct HeldRow {
    pub(super) reason: &'static str,
    pub(super) error: Option<String>,
    /// The attempts that have failed.
    pub(super) attempts: u32,
    /// The time until the next attempt, if there is one.
    pub(super) due_in: Option<Duration>,
    pub(super) first_failed_at: Option<DateTime<Utc>>,
}

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
    is_held: String,
    unmark: String,
    heads: String,
    count: String,
    attempts: String,
    claim: String,
    mark_all: String,
    held_among: String,
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

/// The heads of all held keys.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// The number of heads that are tried again by themselves.
    pub(super) retrying: usize,
    /// The number of all others.
    pub(super) held: usize,
    /// The age of the oldest of these others.
    pub(super) oldest_seconds: f64,
    /// The time until the next head is tried again; `None` if no head waits for a time.
    pub(super) due_in: Option<Duration>,
    /// The records of heads that may be applied now, as many as were asked for.
    pub(super) ready: Vec<Delivery>,
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
                 reason, error, value, header_names, header_values, written_at, attempts, due_at, first_failed_at) \
                 values ($1, $3, $4, $2, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
                 pg_catalog.clock_timestamp() operator(pg_catalog.+) pg_catalog.make_interval(secs => $15), $16) \
                 on conflict (consumer_group, event_id) do update set read_topic = excluded.read_topic, \
                 read_partition = excluded.read_partition, read_offset = excluded.read_offset, reason = excluded.reason, \
                 error = excluded.error, value = excluded.value, header_names = excluded.header_names, \
                 header_values = excluded.header_values, written_at = excluded.written_at, attempts = excluded.attempts, \
                 due_at = excluded.due_at, first_failed_at = excluded.first_failed_at"
            ),
            delete: format!("delete from {held} where {of_event} returning topic, key"),
            is_held: format!("select exists (select from {held} where {})", of_key(2, 3)),
            unmark: format!("delete from {processed} where {of_event}"),
            heads: heads(&held),
            // Counts all rows, because `attempts` is never null. A table without this column is refused.
            count: format!("select pg_catalog.count(attempts) from {held} where {}", is("consumer_group", 1)),
            attempts: format!("select attempts from {held} where {of_event}"),
            // The lock is freed with the transaction. It is tried before the mark, at which one would wait.
            claim: format!(
                "select attempts from {held} where {of_event} and pg_catalog.pg_try_advisory_xact_lock(\
                 pg_catalog.hashtextextended(pg_catalog.concat($1, ' ', $2::pg_catalog.text), 0))"
            ),
            // Sorted, because two batches that share events would otherwise deadlock.
            mark_all: format!(
                "with new as (insert into {processed} (consumer_group, event_id) \
                 select $1, id from pg_catalog.unnest($2::pg_catalog.uuid[]) id order by id on conflict do nothing returning event_id) \
                 select pg_catalog.pg_current_xact_id()::pg_catalog.text, array(select event_id from new)"
            ),
            // While the group has no row, the index is read once.
            held_among: format!(
                "select given.id from unnest($3::pg_catalog.uuid[], $4::pg_catalog.bytea[]) given (id, key) \
                 where exists (select from {held} where {}) and (exists (select from {held} h where {} and h.event_id operator(pg_catalog.=) given.id) \
                 or exists (select from {held} h where {} and {} \
                 and pg_catalog.sha256(h.key) operator(pg_catalog.=) pg_catalog.sha256(given.key)))",
                is("consumer_group", 1),
                is("h.consumer_group", 1),
                is("h.consumer_group", 1),
                is("h.topic", 2)
            ),
        }
    }

    /// Counts the events of the group that have a row. Fails if the table does not exist or is older than this code.
    pub(super) async fn count(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let count = sqlx::query_scalar(AssertSqlSafe(self.count.clone())).bind(&self.group);
        count.persistent(self.persistent).fetch_one(conn).await
    }

    /// Counts the heads of all held keys, and reads the records of those that may be applied now, at most `most`. These are chosen at random,
    /// so that no head is left out for ever. Heads whose record was read from a topic of `paused` do not take the place of others.
    pub(super) async fn heads(
        &self,
        conn: &mut PgConnection,
        most: usize,
        paused: &[String],
    ) -> Result<Heads, sqlx::Error> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let heads = sqlx::query(AssertSqlSafe(self.heads.clone())).bind(&self.group).bind(most).bind(paused);
        let rows = heads.persistent(self.persistent).fetch_all(conn).await?;
        let Some(first) = rows.first() else { return Ok(Heads::default()) };
        let count =
            |column: usize| Ok::<_, sqlx::Error>(usize::try_from(first.try_get::<i64, _>(column)?).unwrap_or(0));
        let due_in: Option<f64> = first.try_get(3)?;
        let ready = rows.iter().filter_map(|row| ready(row).transpose()).collect::<Result<_, _>>()?;
        Ok(Heads {
            retrying: count(0)?,
            held: count(1)?,
            oldest_seconds: first.try_get(2)?,
            due_in: due_in.and_then(|due_in| Duration::try_from_secs_f64(due_in.max(0.0)).ok()),
            ready,
        })
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
        let is_unchanged = is_head && self.is_unchanged(&mut *tx, event, delivery).await?;
        let gate = match parked_here {
            Some(_) if is_unchanged => Gate::Redriven,
            // The row was applied, discarded, redriven or tried since it was read.
            _ if delivery.parked.is_some() => Gate::Parked,
            Some(true) => Gate::Parked,
            Some(false) if is_head => Gate::Redriven,
            _ if head.is_some() => Gate::Held,
            _ => Gate::Open,
        };
        Ok((gate, transaction))
    }

    /// Returns true if the record was read from the event's row, and the row has had no attempt since then. Reads in a statement of its own:
    /// the mark may have waited for a member that made an attempt, and the statement that waited does not see its change.
    async fn is_unchanged(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        delivery: &Delivery,
    ) -> Result<bool, sqlx::Error> {
        match &delivery.parked {
            Some(parked) => self.has_attempts(&self.attempts, tx, event, parked).await,
            None => Ok(false),
        }
    }

    /// Returns true if this member alone may try the parked event until the end of the transaction. Members look at the same time when an
    /// event is due; without this each of them would make an attempt.
    pub(super) async fn claim(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        parked: &Parked,
    ) -> Result<bool, sqlx::Error> {
        self.has_attempts(&self.claim, tx, event, parked).await
    }

    async fn has_attempts(
        &self,
        statement: &str,
        tx: &mut PgConnection,
        event: EventId,
        parked: &Parked,
    ) -> Result<bool, sqlx::Error> {
        let attempts = sqlx::query_scalar(AssertSqlSafe(statement.to_owned())).bind(&self.group).bind(event.0);
        let attempts: Option<i32> = attempts.persistent(self.persistent).fetch_optional(tx).await?;
        Ok(attempts.is_some_and(|attempts| attempts.unsigned_abs() == parked.attempts))
    }

    /// Marks the events as processed. Returns those that were not marked before, and the id of the transaction.
    pub(super) async fn mark_all(
        &self,
        tx: &mut PgConnection,
        events: &[EventId],
    ) -> Result<(HashSet<EventId>, String), sqlx::Error> {
        let ids: Vec<Uuid> = events.iter().map(|event| event.0).collect();
        let mark = sqlx::query(AssertSqlSafe(self.mark_all.clone())).bind(&self.group).bind(ids);
        let row = mark.persistent(self.persistent).fetch_one(tx).await?;
        let new: Vec<Uuid> = row.try_get(1)?;
        Ok((new.into_iter().map(EventId).collect(), row.try_get(0)?))
    }

    /// Returns the events that have a row, or whose key has one.
    pub(super) async fn held_among(
        &self,
        tx: &mut PgConnection,
        source_topic: &str,
        events: &[EventId],
        keys: &[Option<&[u8]>],
    ) -> Result<Vec<EventId>, sqlx::Error> {
        let ids: Vec<Uuid> = events.iter().map(|event| event.0).collect();
        let held = sqlx::query_scalar(AssertSqlSafe(self.held_among.clone()));
        let held = held.bind(&self.group).bind(source_topic).bind(ids).bind(keys.to_vec()).persistent(self.persistent);
        let held: Vec<Uuid> = held.fetch_all(tx).await?;
        Ok(held.into_iter().map(EventId).collect())
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
        let delete = sqlx::query_as(AssertSqlSafe(self.delete.clone())).bind(&self.group).bind(event.0);
        let deleted: Option<(String, Vec<u8>)> = delete.persistent(self.persistent).fetch_optional(&mut *tx).await?;
        let Some((topic, key)) = deleted else { return Ok(false) };
        // In a statement of its own: the delete may have waited for a member that parked an event behind the row, and does not see it.
        let is_held = sqlx::query_scalar(AssertSqlSafe(self.is_held.clone())).bind(&self.group).bind(topic).bind(key);
        let is_held: bool = is_held.persistent(self.persistent).fetch_one(tx).await?;
        Ok(!is_held)
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
        let row = HeldRow { reason: Reason::Held.name(), ..HeldRow::default() };
        self.park(tx, event, source_topic, delivery, &row).await.map(|()| true)
    }

    /// Gives the event a row, unless it has been processed in the meantime, or its row has changed since it was read. Sets the mark and
    /// deletes it again, so that this transaction and one that processes the event wait for each other.
    pub(super) async fn park(
        &self,
        tx: &mut PgConnection,
        event: EventId,
        source_topic: &str,
        delivery: &Delivery,
        row: &HeldRow,
    ) -> Result<(), sqlx::Error> {
        let (gate, _) = self.gate(&mut *tx, event, source_topic, delivery).await?;
        if gate == Gate::Repeated {
            return Ok(());
        }
        if delivery.parked.is_none() || gate == Gate::Redriven {
            let (names, values): (Vec<_>, Vec<_>) = delivery.headers.iter().map(|(name, value)| (name, value)).unzip();
            let park = self.about(&self.park, event, source_topic, delivery).bind(row.reason).bind(&row.error);
            let park = park.bind(&delivery.value).bind(names).bind(values).bind(delivery.timestamp);
            let park = park.bind(i32::try_from(row.attempts).unwrap_or(i32::MAX));
            let park =
                park.bind(row.due_in.map(|due_in| due_in.min(LONGEST_PAUSE).as_secs_f64())).bind(row.first_failed_at);
            park.execute(&mut *tx).await?;
        }
        let unmark = sqlx::query(AssertSqlSafe(self.unmark.clone())).bind(&self.group).bind(event.0);
        unmark.persistent(self.persistent).execute(tx).await.map(drop)
    }
}

/// Returns the query for the first row of each key. It goes from key to key by the index, so it does not read the rows behind the heads.
/// It reads the records of the heads that are asked for, and of no others: there may be many heads, with large records.
fn heads(held: &str) -> String {
    let columns = format!(
        "topic, key, event_id, read_topic, held_at, due_at, reason operator(pg_catalog.=) '{RETRYING}' as is_retrying, \
         reason operator(pg_catalog.=) 'held' as is_parked, header_names is not null as has_record"
    );
    let first = |beyond: &str| {
        format!(
            "select {columns} from {held} where consumer_group operator(pg_catalog.=) $1{beyond} \
             order by topic, pg_catalog.sha256(key), position limit 1"
        )
    };
    let beyond =
        " and (topic, pg_catalog.sha256(key)) operator(pg_catalog.>) (heads.topic, pg_catalog.sha256(heads.key))";
    let seconds = |of: &str| format!("extract(epoch from {of})::pg_catalog.float8");
    format!(
        "with recursive heads as (({}) union all select next.* from heads, lateral ({}) next) \
         select counted.*, ready.* from (select pg_catalog.count(*) filter (where is_retrying), pg_catalog.count(*) filter (where not is_retrying), \
         {}, {} from heads) counted \
         left join lateral (select h.read_topic, h.read_partition, h.read_offset, h.key, h.value, h.header_names, h.header_values, \
         h.written_at, h.attempts, h.first_failed_at \
         from (select event_id from heads where has_record and (is_parked \
         or is_retrying and due_at operator(pg_catalog.<=) pg_catalog.clock_timestamp()) \
         and not (read_topic operator(pg_catalog.=) any ($3::pg_catalog.text[])) order by pg_catalog.random() limit $2) one \
         join {held} h on h.consumer_group operator(pg_catalog.=) $1 and h.event_id operator(pg_catalog.=) one.event_id) ready on true",
        first(""),
        first(beyond),
        seconds(
            "coalesce(pg_catalog.max(pg_catalog.now() operator(pg_catalog.-) held_at) filter (where not is_retrying), \
             '0'::pg_catalog.interval)"
        ),
        seconds(
            "pg_catalog.min(due_at) filter (where is_retrying and due_at operator(pg_catalog.>) pg_catalog.clock_timestamp()) \
             operator(pg_catalog.-) pg_catalog.clock_timestamp()"
        ),
    )
}

/// Returns the record of a row; `None` if the row has only the counts.
fn ready(row: &PgRow) -> Result<Option<Delivery>, sqlx::Error> {
    let Some(topic) = row.try_get::<Option<String>, _>(4)? else { return Ok(None) };
    let (names, values): (Vec<String>, Vec<Option<Vec<u8>>>) = (row.try_get(9)?, row.try_get(10)?);
    let parked = Parked { attempts: row.try_get::<i32, _>(12)?.unsigned_abs(), first_failed_at: row.try_get(13)? };
    Ok(Some(Delivery {
        topic,
        partition: row.try_get(5)?,
        offset: row.try_get(6)?,
        key: row.try_get(7)?,
        value: row.try_get(8)?,
        headers: names.into_iter().zip(values).collect(),
        timestamp: row.try_get(11)?,
        parked: Some(parked),
    }))
}
