//! Reads the rows of a demo's outboxes, and compares them with the topics by the ledger.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
use uuid::Uuid;

use super::watch::Sighting;
use event_outbox::event::{EventId, OutboxId};
use event_outbox::ledger::{Committed, EntityKey, Fingerprint, Ledger, RowStatus, Rules, TopicRecord};

/// A row of an outbox.
#[derive(Debug, Clone)]
pub(super) struct OutboxRow {
    pub(super) id: i64,
    pub(super) event_id: Uuid,
    pub(super) entity_type: String,
    /// The record's key.
    pub(super) order_id: Option<String>,
    pub(super) event_type: String,
    pub(super) event_version: i32,
    /// The payload as Postgres prints it; `None` for tombstones and bytes.
    pub(super) payload: Option<String>,
    pub(super) status: String,
    /// The topic, if the row names one.
    pub(super) topic: Option<String>,
    pub(super) source: Option<String>,
    pub(super) correlation_id: Option<String>,
    pub(super) causation_id: Option<String>,
    /// True if the event had to wait for a time.
    pub(super) scheduled: bool,
    /// False if the event is to be published later.
    pub(super) due: bool,
}

impl OutboxRow {
    /// Reads all rows of an outbox in the order of their ids. Events that become due after `until` count as not due.
    pub(super) async fn read_all(pool: &PgPool, until: DateTime<Utc>) -> Result<Vec<Self>, sqlx::Error> {
        sqlx::query(include_str!("outbox_rows.sql")).bind(until).try_map(Self::read).fetch_all(pool).await
    }

    fn read(row: PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            event_id: row.try_get("event_id")?,
            entity_type: row.try_get("entity_type")?,
            order_id: row.try_get("order_id")?,
            event_type: row.try_get("event_type")?,
            event_version: row.try_get("event_version")?,
            payload: row.try_get("payload")?,
            status: row.try_get("status")?,
            topic: row.try_get("topic")?,
            source: row.try_get("source")?,
            correlation_id: row.try_get("correlation_id")?,
            causation_id: row.try_get("causation_id")?,
            scheduled: row.try_get("scheduled")?,
            due: row.try_get("due")?,
        })
    }

    fn committed(&self) -> Committed<'_> {
        let key = self.order_id.as_deref();
        // Tombstones and bytes, which only a visitor inserts, are not compared.
        let payload = self.payload.as_ref().map(|payload| payload.as_bytes());
        Committed {
            id: OutboxId(self.id),
            event_id: EventId(self.event_id),
            entity: key.map(|entity_id| EntityKey { entity_type: &self.entity_type, entity_id }),
            order: self.id,
            scheduled: self.scheduled,
            fingerprint: payload.map(|payload| Fingerprint::from_key_value(key.map(str::as_bytes), Some(payload))),
        }
    }

    fn row_status(&self) -> RowStatus {
        match self.status.as_str() {
            "PUBLISHED" => RowStatus::Published,
            "DEAD" => RowStatus::Dead,
            _ => RowStatus::Pending,
        }
    }
}

/// Fills a ledger with the rows of the outboxes and the records of the topics.
pub(super) fn ledger<'a>(
    rows: impl IntoIterator<Item = &'a OutboxRow>,
    sightings: impl IntoIterator<Item = &'a Sighting>,
) -> Ledger {
    let mut ledger = Ledger::new(Rules::default());
    for row in rows {
        ledger.committed(row.committed());
        ledger.status(EventId(row.event_id), row.row_status());
    }
    for sighting in sightings {
        ledger.observe(TopicRecord {
            event_id: sighting.event_id.map(EventId),
            topic: &sighting.topic,
            partition: sighting.partition,
            offset: sighting.offset,
            fingerprint: Some(sighting.fingerprint),
            expected_partition: None,
        });
    }
    ledger
}
