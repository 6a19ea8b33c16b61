//! Records what the application did in a run, and lets the ledger compare it with the table and the topic.

use anyhow::{Context, ensure};
use event_outbox::event::{EventId, OutboxId};
use event_outbox::ledger::{Committed, EntityKey, Fingerprint, Ledger, Report, RowStatus, Rules, TopicRecord};
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::kafka::RealKafka;
use super::murmur2::java_partition;
use super::outbox::{Outbox, PARTITIONS, data};

/// The facts that the application knows, in the order in which it learned them.
#[derive(Debug, Default)]
pub struct Book {
    rules: Rules,
    committed: Vec<Uuid>,
    rolled_back: Vec<Uuid>,
    sightings: Vec<(Uuid, RowStatus)>,
}

impl Book {
    /// Creates an empty book that is judged by `rules`.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Records that the transaction of these events committed.
    pub fn committed(&mut self, events: Vec<Uuid>) {
        self.committed.extend(events);
    }

    /// Records that the transaction of these events rolled back.
    pub fn rolled_back(&mut self, events: Vec<Uuid>) {
        self.rolled_back.extend(events);
    }

    /// Records the statuses of rows during the run, in the order in which they were seen. No row may leave PUBLISHED or DEAD.
    pub fn sighted(&mut self, sightings: Vec<(Uuid, RowStatus)>) {
        self.sightings.extend(sightings);
    }

    /// Fails unless the table, the topic and the application agree.
    pub async fn reconcile(self, outbox: &Outbox, kafka: &RealKafka) -> anyhow::Result<()> {
        let report = self.compare(outbox, kafka).await?;
        ensure!(report.is_clean(), "{report}");
        Ok(())
    }

    /// Returns the ledger's report.
    pub async fn compare(self, outbox: &Outbox, kafka: &RealKafka) -> anyhow::Result<Report> {
        let mut ledger = Ledger::new(self.rules);
        for event in &self.rolled_back {
            ledger.rolled_back(EventId(*event));
        }
        for (event, status) in &self.sightings {
            ledger.status(EventId(*event), *status);
        }
        let rows = rows(outbox, &mut ledger).await?;
        // The ledger learns committed events only from the table. So check here that the table has them all.
        let lost = self.committed.iter().filter(|event| !rows.contains(event)).count();
        ensure!(lost == 0, "{lost} committed events are not in the table");
        let retried = "select event_id from event_outbox_audit_row where action = 'retried'";
        let retried: Vec<Uuid> = sqlx::query_scalar(retried).fetch_all(&mut outbox.connect().await?).await?;
        retried.into_iter().for_each(|event| ledger.retried(EventId(event)));
        for record in kafka.read_topic(&outbox.topic).await? {
            ledger.observe(TopicRecord {
                event_id: record.header("event-id").and_then(|id| id.parse().ok()).map(EventId),
                topic: &outbox.topic,
                partition: record.partition,
                offset: record.offset,
                fingerprint: Some(Fingerprint::from_key_value(
                    record.key.as_deref(),
                    record.value.as_deref().map(data),
                )),
                expected_partition: record.key.as_deref().map(|key| java_partition(key, PARTITIONS)),
            });
        }
        Ok(ledger.finish())
    }
}

/// Adds every row to the ledger, with its payload as Postgres prints it. Returns the event ids.
async fn rows(outbox: &Outbox, ledger: &mut Ledger) -> anyhow::Result<std::collections::HashSet<Uuid>> {
    let mut connection = outbox.connect().await?;
    let sql = format!(
        "select id, event_id, entity_type, entity_id, status, available_at is not null, \
         coalesce(convert_to(payload::text, 'UTF8'), payload_bytes) from {}",
        outbox.events()
    );
    let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut connection);
    let mut events = std::collections::HashSet::new();
    while let Some(row) = rows.try_next().await? {
        let (id, event_id): (i64, Uuid) = (row.try_get(0)?, row.try_get(1)?);
        let (entity_type, entity_id): (&str, Option<&str>) = (row.try_get(2)?, row.try_get(3)?);
        let value: Option<&[u8]> = row.try_get(6)?;
        ledger.committed(Committed {
            id: OutboxId(id),
            event_id: EventId(event_id),
            entity: entity_id.map(|entity_id| EntityKey { entity_type, entity_id }),
            order: id,
            scheduled: row.try_get(5)?,
            fingerprint: Some(Fingerprint::from_key_value(entity_id.map(str::as_bytes), value)),
        });
        ledger.status(EventId(event_id), status(row.try_get(4)?)?);
        events.insert(event_id);
    }
    Ok(events)
}

/// Parses the column `status` of a row.
pub fn status(text: &str) -> anyhow::Result<RowStatus> {
    match text {
        "PENDING" => Ok(RowStatus::Pending),
        "PUBLISHED" => Ok(RowStatus::Published),
        "DEAD" => Ok(RowStatus::Dead),
        other => None.with_context(|| format!("status {other}")),
    }
}

impl Outbox {
    /// Compares the table with the topic and fails unless no promise is broken.
    pub async fn reconcile(&self, kafka: &RealKafka, rules: Rules) -> anyhow::Result<()> {
        Book::new(rules).reconcile(self, kafka).await
    }
}
