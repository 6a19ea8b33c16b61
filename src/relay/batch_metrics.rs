//! Adds a batch to the metrics: once per batch, with one look at each record's outcome and at a few rows.

use chrono::Utc;

use crate::fault;
use crate::observe::metrics::Metrics;
use crate::relay::worker::outcome::{Poison, RowOutcome, Sent};
use crate::sink::delivery::Outcome;
use crate::store::claim::ClaimedRow;

/// Counts the records of a batch that Kafka refused by their own fault.
pub(super) fn refused(metrics: &Metrics, sent: &Sent) {
    for outcome in &sent.outcomes {
        if let RowOutcome::Dead(Poison { code, .. }) | RowOutcome::Refused(Poison { code, .. }) = outcome
            && fault::kafka_runbook_codes().any(|known| known == *code)
        {
            metrics.unacknowledged(*code, 1);
        }
    }
}

/// Counts the acknowledged records of a batch by topic, and records the age of their events.
pub(super) fn acknowledged(metrics: &Metrics, rows: &[ClaimedRow], sent: &Sent, outcomes: &[Outcome]) {
    let now = Utc::now();
    let mut by_topic = vec![0_u64; sent.topics.len()];
    let mut acked = Vec::with_capacity(sent.records);
    for (row, outcome) in sent.outcomes.iter().enumerate() {
        if let RowOutcome::Sent { slot, topic, .. } = outcome
            && outcomes.get(*slot) == Some(&Outcome::Acked)
        {
            by_topic[*topic] += 1;
            acked.push(row);
        }
    }
    for (topic, records) in sent.topics.iter().zip(by_topic).filter(|(_, records)| *records > 0) {
        metrics.acknowledged(topic, records);
    }
    // If this host's clock is behind the database's, the age of an event is negative and counts as zero.
    let age = |row: &ClaimedRow| row.created_at().ok().and_then(|at| (now - at).to_std().ok()).unwrap_or_default();
    metrics.acknowledged_after(acked.len(), |at| age(&rows[acked[at]]));
}
