//! Gathers and compares the three records of a demo: the tables, the topic as the consumer read it, and the shop's own log.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::consumer::Consumed;
use super::reconciliation::Reconciliation;
use super::shop::{self, CommitLog};
use event_outbox::event::{EventId, OutboxId};
use event_outbox::ledger::{Committed, EntityKey, Fingerprint, Ledger, RowStatus, Rules, TopicRecord};

/// A row of the outbox that belongs on the demo's topic.
#[derive(Debug)]
struct OutboxRow {
    id: i64,
    event_id: Uuid,
    entity_id: Option<String>,
    /// The payload as Postgres prints it.
    payload: Option<String>,
    status: String,
}

/// An event that the consumer applied.
#[derive(Debug)]
struct AppliedRow {
    event_id: Uuid,
    order_id: Option<String>,
}

impl OutboxRow {
    fn read(row: PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            event_id: row.try_get("event_id")?,
            entity_id: row.try_get("entity_id")?,
            payload: row.try_get("payload")?,
            status: row.try_get("status")?,
        })
    }
}

impl AppliedRow {
    fn read(row: PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { event_id: row.try_get("event_id")?, order_id: row.try_get("order_id")? })
    }
}

/// The records of all three sides.
#[derive(Debug)]
pub(super) struct Observed {
    rows: Vec<OutboxRow>,
    applied: Vec<AppliedRow>,
    commit_log: CommitLog,
    consumed: Consumed,
}

impl Observed {
    /// Reads the tables. An event that a visitor of `--serve` has inserted counts only once it is published, because it may be meant to
    /// wait.
    pub(super) async fn gather(pool: &PgPool, commit_log: CommitLog, consumed: Consumed) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query(
            "select id, event_id, entity_id, payload::text as payload, status from event_outbox \
             where entity_type = 'order' and topic is null and (headers ->> 'source' = $1 or status = 'PUBLISHED') order by id",
        )
        .bind(shop::SOURCE)
        .try_map(OutboxRow::read)
        .fetch_all(pool)
        .await?;
        let applied = sqlx::query("select event_id, order_id from demo_applied order by position")
            .try_map(AppliedRow::read)
            .fetch_all(pool)
            .await?;
        Ok(Self { rows, applied, commit_log, consumed })
    }

    /// Compares the three sides.
    pub(super) fn compare(&self, topic: &str) -> Reconciliation {
        let committed: HashSet<Uuid> = self.rows.iter().map(|row| row.event_id).collect();
        let mut times: HashMap<Uuid, u64> = HashMap::new();
        for row in &self.applied {
            *times.entry(row.event_id).or_default() += 1;
        }
        let applied = |times_applied: fn(u64) -> bool| {
            times.iter().filter(|(event, times)| committed.contains(*event) && times_applied(**times)).count() as u64
        };
        let published = self.rows.iter().filter(|row| row.status == "PUBLISHED");
        let (orders, orders_in_order) = self.orders();
        Reconciliation {
            ledger: self.ledger(topic).finish(),
            lost_commits: self.commit_log.committed.iter().filter(|event| !committed.contains(event)).count() as u64,
            duplicates_recognised: self.consumed.duplicates,
            applied_once: applied(|times| times == 1),
            applied_again: applied(|times| times > 1),
            not_applied: published.filter(|row| !times.contains_key(&row.event_id)).count() as u64,
            applied_phantoms: times.keys().filter(|event| !committed.contains(event)).count() as u64,
            orders,
            orders_in_order,
            ..Reconciliation::default()
        }
    }

    /// Fills a ledger with table and topic.
    fn ledger(&self, topic: &str) -> Ledger {
        let mut ledger = Ledger::new(Rules::default());
        for row in &self.rows {
            let key = row.entity_id.as_deref();
            ledger.committed(Committed {
                id: OutboxId(row.id),
                event_id: EventId(row.event_id),
                entity: key.map(|entity_id| EntityKey { entity_type: "order", entity_id }),
                order: row.id,
                scheduled: false,
                fingerprint: fingerprint(row),
            });
            ledger.status(EventId(row.event_id), status(&row.status));
        }
        for event in &self.commit_log.rolled_back {
            ledger.rolled_back(EventId(*event));
        }
        for sighting in &self.consumed.sightings {
            ledger.observe(TopicRecord {
                event_id: sighting.event_id.map(EventId),
                topic,
                partition: sighting.partition,
                offset: sighting.offset,
                fingerprint: Some(sighting.fingerprint),
                expected_partition: None,
            });
        }
        ledger
    }

    /// Counts the orders, and those whose events were applied in the order of their commits. A missing event is not a fault of the order.
    fn orders(&self) -> (u64, u64) {
        let applied = histories(self.applied.iter().map(|row| (row.order_id.as_deref(), row.event_id)));
        let seen: HashSet<Uuid> = self.applied.iter().map(|row| row.event_id).collect();
        let committed = histories(self.rows.iter().map(|row| (row.entity_id.as_deref(), row.event_id)));
        let in_order = committed.iter().filter(|(order, history)| {
            let expected = history.iter().filter(|event| seen.contains(*event));
            expected.eq(applied.get(*order).into_iter().flatten())
        });
        (committed.len() as u64, in_order.count() as u64)
    }
}

/// Returns the first occurrence of each event by order. Events without an order are left out.
fn histories<'a>(events: impl Iterator<Item = (Option<&'a str>, Uuid)>) -> HashMap<&'a str, Vec<Uuid>> {
    let mut histories: HashMap<&str, Vec<Uuid>> = HashMap::new();
    let mut seen = HashSet::new();
    for (order, event) in events {
        if let Some(order) = order
            && seen.insert(event)
        {
            histories.entry(order).or_default().push(event);
        }
    }
    histories
}

/// Returns the digest of key and payload. `None`, which is not compared, for tombstones and bytes: only a visitor inserts these.
fn fingerprint(row: &OutboxRow) -> Option<Fingerprint> {
    let payload = row.payload.as_deref()?;
    Some(Fingerprint::from_key_value(row.entity_id.as_deref().map(str::as_bytes), Some(payload.as_bytes())))
}

fn status(text: &str) -> RowStatus {
    match text {
        "PUBLISHED" => RowStatus::Published,
        "DEAD" => RowStatus::Dead,
        _ => RowStatus::Pending,
    }
}

#[cfg(test)]
mod tests;
