//! Sets records aside that are not acknowledged, so that other events need not wait for a partition that takes no records.
//!
//! The records stay with the producer that sent them, which goes on trying. Holds cover their events: claims step over the events of the
//! partition, and everything else is published by a new producer. Once the records are acknowledged, their events are marked and the holds
//! are released. If that takes longer than `RELAY_PUBLISH_TIMEOUT`, the producer is dropped, and the events are sent again in order.
//!
//! Only the memory of the worker says that records are set aside. A worker that finds the holds without this memory releases them and sends
//! the events again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use crate::fault::{self, Class, Fault};
use crate::lane::hold::{Hold, HoldKind, HoldValue};
use crate::relay::health::outage::Component;
use crate::relay::shared::Shared;
use crate::relay::worker::claim::Batch;
use crate::relay::worker::context::{CycleError, WorkerContext};
use crate::relay::worker::in_doubt::{Awaited, Destination, InDoubt, Record, partition_obstacle};
use crate::relay::worker::lane_assignment::LaneAssignment;
use crate::relay::worker::outcome::{RowOutcome, Sent};
use crate::relay::worker::settle::lanes_of;
use crate::sink::broker::Leader;
use crate::sink::delivery::{Deliveries, Outcome};
use crate::sink::producer::Placement;
use crate::store::claim::ClaimedRow;
use crate::store::session::{self, within};
use crate::store::settle::{Ctid, PendingRow};
use event_outbox::notice::Notice;

/// The time without an acknowledgement after which the open records of a batch are set aside.
pub(crate) const SET_ASIDE_AFTER: Duration = Duration::from_secs(1);

/// The interval of looks whether the cluster works.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The most batches of a worker with records set aside. Each one keeps a producer. A further batch waits for its acknowledgements.
const MOST_SET_ASIDE: usize = 4;

/// The time after which a partition that takes no records is reported. A worker keeps its lanes for as long: a slow cluster acknowledges
/// what is in doubt, and the next owner of the lanes would send it again.
const REPORTED_AFTER: Duration = Duration::from_secs(3);

/// Returns how long records that were set aside are waited for before their lanes are given away.
pub(crate) fn patience(publish_timeout: Duration) -> Duration {
    REPORTED_AFTER.min(publish_timeout / 2)
}

impl WorkerContext<'_> {
    /// Waits until no record has been acknowledged for a while, although the cluster works. Never ends if no records can be set aside.
    pub(super) async fn until_quiet(&self, assignment: &LaneAssignment, deliveries: &Deliveries) {
        let options = &self.shared.options;
        let is_short = options.relay.publish_timeout < 2 * SET_ASIDE_AFTER;
        if is_short || assignment.in_doubt.len() >= MOST_SET_ASIDE {
            return std::future::pending().await;
        }
        loop {
            let left = SET_ASIDE_AFTER.saturating_sub(deliveries.quiet_for());
            if !left.is_zero() {
                tokio::time::sleep(left).await;
                continue;
            }
            // A cluster that does not work at all is waited for: nothing else could be published, and it may acknowledge all of the batch.
            if deliveries.has_acked() || self.shared.broker.answered_within(deliveries.quiet_for()) {
                return;
            }
            self.shared.broker.suspicions().raise("records are not acknowledged");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Sets the open records of a batch aside. Their events count as held in this batch. Does nothing if a record failed: the whole producer
    /// has to be dropped then.
    pub(super) fn set_aside(
        &mut self,
        assignment: &mut LaneAssignment,
        batch: &Batch,
        sent: &mut Sent,
        reports: &[Outcome],
    ) -> Result<(), sqlx::Error> {
        let Some(open) = open_records(assignment, batch, sent, reports)? else { return Ok(()) };
        let Some(producer) = self.producer.take() else { return Ok(()) };
        let values = hold_open(assignment, &open, producer.deliveries().retried_error());
        for OpenRecord { at, record, .. } in &open {
            // A scheduled event is counted by the claim that finds it in the order of ids.
            if let Some(index) = assignment.holds.find(record.lane, &record.value) {
                assignment.holds.step_over(index, record.id, *at >= batch.due);
            }
            sent.outcomes[*at] = RowOutcome::Held;
            sent.records -= 1;
        }
        let destinations = destinations(&open);
        tracing::debug!(worker = self.worker, records = open.len(), ?destinations, "records are set aside");
        assignment.in_doubt.push(InDoubt {
            awaited: Some(Awaited::Acks(Box::new(producer))),
            records: open.into_iter().map(|open| open.record).collect(),
            values,
            destinations,
            sent_at: Instant::now(),
            is_reported: false,
            is_over: Arc::default(),
        });
        self.count_in_doubt(assignment);
        Ok(())
    }

    /// Marks the events of records that were set aside and are acknowledged by now, and commits. Returns false if there is nothing to settle.
    pub(super) async fn settle_in_doubt(&mut self, assignment: &mut LaneAssignment) -> Result<bool, CycleError> {
        let longest = self.shared.options.relay.publish_timeout;
        let Some(at) = assignment.in_doubt.iter().position(|records| records.is_due(longest)) else { return Ok(false) };
        self.mark_in_doubt(assignment, at).await?;
        Ok(true)
    }

    /// Marks the acknowledged ones of the records that were set aside: of those that are due, or of `all`.
    pub(crate) async fn settle_all_in_doubt(
        &mut self,
        assignment: &mut LaneAssignment,
        all: bool,
    ) -> Result<(), CycleError> {
        let longest = self.shared.options.relay.publish_timeout;
        let is_due = |records: &InDoubt| all || records.is_due(longest);
        while assignment.in_doubt.iter().any(is_due) && self.own(assignment).await? {
            // Another worker may have had the lanes: then nothing is known any more.
            match assignment.in_doubt.iter().position(is_due) {
                Some(at) => self.mark_in_doubt(assignment, at).await?,
                None => within(session::rollback(self.conn)).await?,
            }
        }
        Ok(())
    }

    async fn mark_in_doubt(&mut self, assignment: &mut LaneAssignment, at: usize) -> Result<(), CycleError> {
        let lanes = lanes_of(assignment);
        let Some(progress) = assignment.owned.as_ref().map(|owned| owned.progress.clone()) else {
            return Err(sqlx::Error::PoolClosed.into());
        };
        let outcomes = assignment.in_doubt[at].outcomes();
        let is_acked = |record: &&Record| outcomes.get(record.slot) == Some(&Outcome::Acked);
        let records = &assignment.in_doubt[at].records;
        let acked: Vec<i64> = records.iter().filter(is_acked).map(|record| record.id).collect();
        let is_complete = assignment.in_doubt[at].is_settled() && acked.len() == records.len();
        for Record { lane, value, .. } in records.iter().filter(is_acked) {
            let hold = assignment.holds.find(*lane, value);
            if let Some(held) = hold.and_then(|index| assignment.holds.get_mut(index)) {
                held.hold.events = (held.hold.events - 1).max(0);
            }
        }
        let persistent = self.shared.options.database.prepared_statements;
        // An operator may have decided about an event meanwhile. Such an event is no longer pending.
        let pending = within(self.shared.settle.pending(self.conn, &acked, lanes, persistent)).await?;
        let sent: HashMap<i64, &Record> = records.iter().map(|record| (record.id, record)).collect();
        let is_sent = |row: &&PendingRow| sent.get(&row.id).is_some_and(|record| record.is(row));
        let ctids: Vec<Ctid> = pending.iter().filter(is_sent).map(|row| row.ctid).collect();
        let stored = self.store(assignment, progress, &ctids, &[], None, false).await;
        stored.map_err(|error| self.not_marked(error, lanes))?;
        self.shared.settled(ctids.len(), 0);
        let mut settled = assignment.in_doubt.remove(at);
        settled.is_over.store(true, Ordering::Relaxed);
        self.count_in_doubt(assignment);
        self.end_of_doubt(assignment, &settled, &outcomes, is_complete);
        // A producer that has its connections is better than a new one.
        if is_complete
            && let Some(warm) = settled.take_producer().filter(|producer| !producer.is_outdated())
            && let Some(unused) = self.producer.replace(warm)
        {
            unused.retire();
        }
        Ok(())
    }

    /// Counts and logs the outcomes of records that were set aside.
    fn end_of_doubt(
        &self,
        assignment: &mut LaneAssignment,
        settled: &InDoubt,
        outcomes: &[Outcome],
        is_complete: bool,
    ) {
        let metrics = &self.shared.options.telemetry.metrics;
        let retried = settled.error();
        let mut by_topic: HashMap<&str, u64> = HashMap::new();
        for record in &settled.records {
            let code = match outcomes.get(record.slot) {
                Some(Outcome::Acked) => {
                    *by_topic.entry(&record.topic).or_default() += 1;
                    continue;
                }
                Some(Outcome::Failed(code)) => Some(*code),
                _ => None,
            };
            metrics.unacknowledged(code.or(retried).map_or(fault::NO_ANSWER, fault::classify_kafka).code, 1);
            if let Some(code) = code.filter(|code| fault::classify_kafka(*code).class == Class::Destination) {
                self.topic_refused(&record.topic, code);
            }
        }
        by_topic.into_iter().for_each(|(topic, records)| metrics.acknowledged(topic, records));
        for destination in &settled.destinations {
            if is_complete {
                self.log_open(assignment, destination);
            } else if assignment.unwritable.remove(destination) {
                // The events are sent again, and reported again if they are not acknowledged.
                self.shared.obstacles.unblock(self.component(), &partition_obstacle(destination));
            }
        }
    }

    /// Logs the end of a partition's incident.
    fn log_open(&self, assignment: &mut LaneAssignment, destination: &Destination) {
        if assignment.unwritable.remove(destination)
            && self.shared.obstacles.unblock(self.component(), &partition_obstacle(destination))
        {
            let (topic, partition) = destination;
            tracing::info!(notice = %Notice::PartitionReopened, topic, partition, "the partition takes records again");
        }
    }

    /// Logs the end of the incidents of partitions that have acknowledged a record of this batch.
    pub(super) fn log_open_partitions(&self, assignment: &mut LaneAssignment, sent: &Sent, reports: &[Outcome]) {
        if assignment.unwritable.is_empty() {
            return;
        }
        let mut acked = HashSet::new();
        for outcome in &sent.outcomes {
            if let RowOutcome::Sent { slot, topic, placement } = outcome
                && reports.get(*slot) == Some(&Outcome::Acked)
            {
                acked.insert((*topic, placement.map(|placement| placement.partition)));
            }
        }
        for (topic, partition) in acked {
            self.log_open(assignment, &(sent.topics[topic].clone(), partition));
        }
    }

    /// Forgets what is known of the lanes. The records that were set aside are dropped with their producers.
    pub(super) fn invalidate(&self, assignment: &mut LaneAssignment) {
        assignment.invalidate();
        self.count_in_doubt(assignment);
    }

    pub(super) fn count_in_doubt(&self, assignment: &LaneAssignment) {
        let records = assignment.in_doubt.iter().map(|in_doubt| in_doubt.records.len()).sum();
        self.shared.options.telemetry.metrics.set_in_doubt(self.worker, records);
    }

    /// Reports the partitions that have not acknowledged records for a while.
    pub(super) fn report_in_doubt(&self, assignment: &mut LaneAssignment) {
        let after = REPORTED_AFTER.min(self.shared.options.relay.publish_timeout / 2);
        let is_due = |records: &&mut InDoubt| !records.is_reported && records.sent_at.elapsed() >= after;
        for records in assignment.in_doubt.iter_mut().filter(is_due) {
            records.is_reported = true;
            assignment.unwritable.extend(records.destinations.iter().cloned());
            let code = records.error();
            let (destinations, is_over) = (records.destinations.clone(), Arc::clone(&records.is_over));
            // Asking for the leaders takes a request, and the events of other partitions must not wait for it.
            tokio::spawn(report(Arc::clone(self.shared), self.component(), destinations, code, is_over));
        }
    }
}

/// A record of a batch that is not acknowledged, and the row's position in the batch.
pub(crate) struct OpenRecord {
    at: usize,
    record: Record,
    placement: Option<Placement>,
}

impl OpenRecord {
    pub(crate) fn value(&self) -> &HoldValue {
        &self.record.value
    }
}

/// Returns the records of a batch that are not acknowledged; `None` if a record has failed.
pub(crate) fn open_records(
    assignment: &LaneAssignment,
    batch: &Batch,
    sent: &Sent,
    reports: &[Outcome],
) -> Result<Option<Vec<OpenRecord>>, sqlx::Error> {
    let mut open = Vec::new();
    for (at, (row, outcome)) in batch.rows.iter().zip(&sent.outcomes).enumerate() {
        let RowOutcome::Sent { slot, topic, placement } = *outcome else { continue };
        match reports.get(slot) {
            Some(Outcome::Acked) => continue,
            Some(Outcome::Failed(_)) => return Ok(None),
            _ => {}
        }
        let record = record_of(row, at < batch.due, slot, &sent.topics[topic], placement)?;
        open.push(OpenRecord { at, record, placement });
    }
    let earlier = assignment.in_doubt.iter().flat_map(InDoubt::partitions);
    let here = destinations(&open).into_iter().filter_map(|(topic, partition)| Some((topic, partition?)));
    let unanswered: HashSet<(String, i32)> = earlier.chain(here).collect();
    for OpenRecord { record, placement, .. } in &mut open {
        let of_topic = unanswered.iter().filter(|(topic, _)| *topic == record.topic).count();
        let is_everywhere = placement.is_none_or(|placement| of_topic >= placement.of as usize);
        if matches!(record.value, HoldValue::Row(_)) && is_everywhere {
            // Without a partition to go to, every event without a key would be sent into doubt as well.
            record.value = HoldValue::Topic(record.topic.clone());
        }
    }
    Ok(Some(open))
}

pub(crate) fn destinations(open: &[OpenRecord]) -> HashSet<Destination> {
    let partition = |open: &OpenRecord| open.placement.map(|placement| placement.partition);
    open.iter().map(|open| (open.record.topic.clone(), partition(open))).collect()
}

/// Begins holds that cover the events of open records and all later events of the same partitions. Returns the holds' values by lane.
/// `error` is the last error of a broker.
pub(crate) fn hold_open(
    assignment: &mut LaneAssignment,
    open: &[OpenRecord],
    error: Option<RDKafkaErrorCode>,
) -> HashMap<i16, HashSet<HoldValue>> {
    let fault = error.map_or(fault::NO_ANSWER, fault::classify_kafka);
    let reason = format!("the brokers have not acknowledged its records yet ({})", fault.code);
    let lanes = lanes_of(assignment);
    let from_id = open.iter().map(|open| open.record.id).min().unwrap_or_default();
    let mut values: HashMap<i16, HashSet<HoldValue>> = HashMap::new();
    for OpenRecord { record, .. } in open {
        let head_id = matches!(record.value, HoldValue::Row(_)).then_some(record.id);
        let value = &record.value;
        let hold = |from_id| Hold {
            value: value.clone(),
            kind: HoldKind::Topic,
            reason: reason.clone(),
            from_id,
            head_id,
            events: 0,
            released: false,
        };
        let of_lanes = values.entry(record.lane).or_default();
        if of_lanes.insert(value.clone()) && head_id.is_none() {
            // The partition is the same for all lanes: the events of the others must not be sent there either.
            for lane in (lanes.first..=lanes.last).filter(|lane| *lane != record.lane) {
                if values.entry(lane).or_default().insert(value.clone()) {
                    assignment.holds.begin(lane, hold(from_id));
                }
            }
        }
        assignment.holds.begin(record.lane, hold(record.id));
    }
    values
}

fn record_of(
    row: &ClaimedRow,
    is_scheduled: bool,
    slot: usize,
    topic: &str,
    placement: Option<Placement>,
) -> Result<Record, sqlx::Error> {
    let (id, topic) = (row.id()?.0, topic.to_owned());
    let value = match (row.entity_id()?, placement) {
        (None, _) => HoldValue::Row(id),
        (Some(_), Some(Placement { partition, of })) => HoldValue::Partition { topic: topic.clone(), partition, of },
        // Only librdkafka knows the partition.
        (Some(_), None) => HoldValue::Topic(topic.clone()),
    };
    // The batch takes a scheduled event's schedule away.
    let ctid = if is_scheduled { None } else { Some(row.ctid()?) };
    Ok(Record { id, event_id: row.event_id()?.0, ctid, lane: row.lane()?, slot, value, topic })
}

/// Logs the partitions that take no records, with their leader and the cause.
async fn report(
    shared: Arc<Shared>,
    by: Component,
    destinations: HashSet<Destination>,
    code: Option<RDKafkaErrorCode>,
    is_over: Arc<AtomicBool>,
) {
    let mut leaders: HashMap<&str, Vec<Leader>> = HashMap::new();
    let mut is_silent = false;
    for (topic, _) in &destinations {
        if !leaders.contains_key(topic.as_str()) {
            let found = shared.broker.leaders(topic).await;
            is_silent |= found.is_err();
            leaders.insert(topic, found.unwrap_or_default());
        }
    }
    // The watch reports a cluster that does not answer at all.
    if is_silent || is_over.load(Ordering::Relaxed) {
        return;
    }
    let mut destinations: Vec<_> = destinations.iter().collect();
    destinations.sort();
    for destination @ (topic, partition) in destinations {
        let of = leaders.get(topic.as_str()).into_iter().flatten();
        let leader = of.into_iter().find(|leader| Some(leader.partition) == *partition);
        let (reason, fault) = cause(leader, code);
        let is_new = shared.obstacles.block_by(by, &partition_obstacle(destination), &reason, fault);
        if is_over.load(Ordering::Relaxed) {
            shared.obstacles.unblock(by, &partition_obstacle(destination));
            return;
        }
        let code = fault.code;
        if is_new {
            shared.options.telemetry.metrics.failed(Class::Destination, 1);
            tracing::warn!(
                code = %code,
                notice = %Notice::PartitionClosed,
                topic,
                partition,
                leader = leader.and_then(|leader| leader.broker.as_ref()).map(|(id, _)| id),
                reason,
                consequence = "its events are held, and all others go on",
                next_step = fault.next_step,
                "a partition takes no records"
            );
        }
    }
}

/// Returns why a partition takes no records.
fn cause(leader: Option<&Leader>, code: Option<RDKafkaErrorCode>) -> (String, Fault) {
    let at = match leader.map(|leader| &leader.broker) {
        Some(Some((id, address))) => format!(", broker {id} at {address},"),
        _ => String::new(),
    };
    match (leader, code) {
        (Some(Leader { broker: None, .. }), _) => {
            ("the partition has no leader".to_owned(), fault::classify_kafka(RDKafkaErrorCode::LeaderNotAvailable))
        }
        (_, Some(code)) => (format!("its leader{at} answers {code:?}"), fault::classify_kafka(code)),
        _ => (format!("its leader{at} does not acknowledge records"), fault::NO_ANSWER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_outbox::code::Code;

    #[test]
    fn the_cause_names_the_leader() {
        let led = Leader { partition: 2, broker: Some((3, "kafka-3:9092".to_owned())) };
        let leaderless = Leader { partition: 2, broker: None };
        let (reason, fault) = cause(Some(&led), Some(RDKafkaErrorCode::NotEnoughReplicas));
        assert_eq!(
            (reason.as_str(), fault.code),
            ("its leader, broker 3 at kafka-3:9092, answers NotEnoughReplicas", Code::TopicMinIsr)
        );
        let (reason, fault) = cause(Some(&led), None);
        assert!(reason.contains("broker 3") && fault.code == Code::RecordsUnacknowledged, "{reason}");
        let (reason, fault) = cause(Some(&leaderless), None);
        assert_eq!((reason.as_str(), fault.code), ("the partition has no leader", Code::TopicLeaderless));
    }
}
