//! Gathers and compares the records of a demo: the tables, the topic as an observer read it, and the shop's own log.

use std::collections::{HashMap, HashSet};

use chrono::Utc;
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use uuid::Uuid;

use super::clerks::{self, CommitLog};
use super::promises::Counts;
use crate::demo::outbox_row::{self, OutboxRow};
use crate::demo::reconciliation::Reconciliation;
use crate::demo::watch::Sighting;
use event_outbox::event::EventId;

/// An event that the consumer applied.
#[derive(Debug)]
struct AppliedRow {
    event_id: Uuid,
    order_id: Option<String>,
}

/// The records of all sides.
#[derive(Debug)]
pub(super) struct Observed {
    rows: Vec<OutboxRow>,
    applied: Vec<AppliedRow>,
    commit_log: CommitLog,
    sightings: Vec<Sighting>,
    /// The number of deliveries that the consumer recognised as repetitions.
    repeated: u64,
}

impl Observed {
    /// Reads the tables. An event that a visitor of `--serve` has inserted counts only once it is published, because it may be meant to
    /// wait.
    pub(super) async fn gather(
        pool: &PgPool,
        commit_log: CommitLog,
        sightings: Vec<Sighting>,
        repeated: u64,
    ) -> Result<Self, sqlx::Error> {
        let mut rows = OutboxRow::read_all(pool, Utc::now()).await?;
        rows.retain(|row| {
            let is_the_shops = row.source.as_deref() == Some(clerks::SOURCE);
            row.topic.is_none() && (is_the_shops || row.status == "PUBLISHED")
        });
        let applied = sqlx::query("select event_id, order_id from demo_applied order by position")
            .try_map(|row: PgRow| {
                Ok(AppliedRow { event_id: row.try_get("event_id")?, order_id: row.try_get("order_id")? })
            })
            .fetch_all(pool)
            .await?;
        Ok(Self { rows, applied, commit_log, sightings, repeated })
    }

    /// Compares the sides.
    pub(super) fn compare(&self) -> Reconciliation {
        let counts = self.counts();
        Reconciliation { promises: counts.promises(), ledger: counts.ledger, ..Reconciliation::default() }
    }

    fn counts(&self) -> Counts {
        let committed: HashSet<Uuid> = self.rows.iter().map(|row| row.event_id).collect();
        let mut times: HashMap<Uuid, u64> = HashMap::new();
        for row in &self.applied {
            *times.entry(row.event_id).or_default() += 1;
        }
        let applied = |times_applied: fn(u64) -> bool| {
            times.iter().filter(|(event, times)| committed.contains(*event) && times_applied(**times)).count() as u64
        };
        // The consumer has no handler for other types, which only a visitor inserts.
        let is_to_apply =
            |row: &&OutboxRow| row.status == "PUBLISHED" && clerks::EVENT_TYPES.contains(&row.event_type.as_str());
        let to_apply = self.rows.iter().filter(is_to_apply);
        let mut ledger = outbox_row::ledger(&self.rows, &self.sightings);
        self.commit_log.rolled_back.iter().for_each(|event| ledger.rolled_back(EventId(*event)));
        let (orders, orders_in_order) = self.orders();
        Counts {
            ledger: ledger.finish(),
            lost_commits: self.commit_log.committed.iter().filter(|event| !committed.contains(event)).count() as u64,
            duplicates_recognised: self.repeated,
            applied_once: applied(|times| times == 1),
            applied_again: applied(|times| times > 1),
            not_applied: to_apply.filter(|row| !times.contains_key(&row.event_id)).count() as u64,
            applied_phantoms: times.keys().filter(|event| !committed.contains(event)).count() as u64,
            orders,
            orders_in_order,
        }
    }

    /// Counts the orders, and those whose events were applied in the order of their commits. A missing event is not a fault of the order.
    fn orders(&self) -> (u64, u64) {
        let applied = histories(self.applied.iter().map(|row| (row.order_id.as_deref(), row.event_id)));
        let seen: HashSet<Uuid> = self.applied.iter().map(|row| row.event_id).collect();
        let committed = histories(self.rows.iter().map(|row| (row.order_id.as_deref(), row.event_id)));
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

#[cfg(test)]
mod tests;
