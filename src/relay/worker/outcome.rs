//! Decides about each claimed row. Every failure that can be known in advance is found here, before the row's successors are sent.
//!
//! Rows are looked at in the order of their ids, including the rows that another session has locked. An event behind a hold is stepped
//! over, and the hold's walk finds it again.

use std::collections::{HashMap, HashSet};

use chrono::Utc;
use rdkafka::error::RDKafkaErrorCode;

use crate::config::{OnPoison, Timestamp};
use crate::fault::{self, Class, Fault};
use crate::lane::hold::{Candidate, Hold, HoldKind, HoldValue};
use crate::relay::options::RelayOptions;
use crate::relay::worker::claim::{Batch, Extent};
use crate::relay::worker::lane_assignment::LaneAssignment;
use crate::relay::worker::pauses::PausedBy;
use crate::sink::admission;
use crate::sink::producer::{Avoided, KafkaProducer, Placement};
use crate::store::claim::{ClaimedRow, Skipped};
use event_outbox::code::Code;
use event_outbox::event::StoredEvent;

/// The most locked events of a lane. A lane with more claims nothing behind them until some are free, so the memory for them is bounded.
const MOST_LOCKED: usize = 1_000;

/// The outcome of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RowOutcome {
    /// Given to the producer as record `slot` of its batch.
    Sent { slot: usize, topic: usize, placement: Option<Placement> },
    /// Becomes DEAD by its own fault.
    Dead(Poison),
    /// Refused by its own fault. The row holds its entity until an operator decides.
    Refused(Poison),
    /// Covered by a hold.
    Held,
    /// Left out of this batch. The row is still pending, and the progress stays in front of it.
    Left,
}

/// Why an event cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Poison {
    /// The text that is stored in the row. If Kafka refused the record, it ends with the runbook code.
    pub(crate) error: String,
    pub(crate) code: Code,
    pub(crate) next_step: &'static str,
}

impl Poison {
    /// The fault of a row that is not a valid event.
    fn of_row(error: String, code: Code) -> Self {
        Self { error, code, next_step: "fix the event's cause, then `outbox-relay dead retry` or `dead discard`" }
    }

    /// The fault of a record that Kafka refuses.
    pub(super) fn of_record(code: RDKafkaErrorCode) -> Self {
        let Fault { code: runbook, next_step, .. } = fault::classify_kafka(code);
        Self { error: format!("{code:?}: {next_step} ({runbook})"), code: runbook, next_step }
    }
}

/// A row with its topic, or with the reason why it cannot be sent.
enum Routed<'r> {
    Ready { event: StoredEvent<'r>, topic: usize },
    Poison(Poison),
}

/// The rows of a batch, parsed and routed.
pub(crate) struct Plan<'r> {
    rows: Vec<Routed<'r>>,
    /// The topics of the batch.
    pub(crate) topics: Vec<String>,
    /// The highest partition that a row names, by topic.
    named: HashMap<usize, i32>,
}

/// A batch that has been given to the producer.
pub(crate) struct Sent {
    /// The outcomes: one per claimed row, in order.
    pub(crate) outcomes: Vec<RowOutcome>,
    pub(crate) topics: Vec<String>,
    /// The number of records that were given to the producer.
    pub(crate) records: usize,
    /// The cut: nothing behind this id belongs to the batch any more. `Some(None)` means that only scheduled rows belong to it.
    pub(crate) cut: Option<Option<i64>>,
}

impl<'r> Plan<'r> {
    pub(crate) fn new(rows: &'r [ClaimedRow], options: &RelayOptions) -> Result<Self, sqlx::Error> {
        let mut plan = Self { rows: Vec::with_capacity(rows.len()), topics: Vec::new(), named: HashMap::new() };
        let mut scratch = String::new();
        for row in rows {
            let routed = plan.route(row, options, &mut scratch)?;
            plan.rows.push(routed);
        }
        Ok(plan)
    }

    fn route(
        &mut self,
        row: &'r ClaimedRow,
        options: &RelayOptions,
        scratch: &mut String,
    ) -> Result<Routed<'r>, sqlx::Error> {
        let event = match row.event()? {
            Ok(event) => event,
            Err(fault) => return Ok(Routed::Poison(Poison::of_row(fault.to_string(), fault.code()))),
        };
        Ok(match options.relay.topic.resolve(&event, scratch) {
            Ok(topic) => match admission::refusal(&event, topic, &options.relay) {
                Some(refusal) => Routed::Poison(Poison::of_row(refusal, Code::EventRefused)),
                None => {
                    let topic = self.intern(topic);
                    if let Ok(Some(partition)) = event.partition() {
                        let highest = self.named.entry(topic).or_insert(partition);
                        *highest = partition.max(*highest);
                    }
                    Routed::Ready { event, topic }
                }
            },
            Err(bad) => Routed::Poison(Poison::of_row(bad.to_string(), Code::EventRefused)),
        })
    }

    /// Returns the topics with a row that names a partition, and the highest of these partitions.
    pub(super) fn named(&self) -> impl Iterator<Item = (&String, i32)> {
        self.named.iter().filter_map(|(topic, partition)| Some((self.topics.get(*topic)?, *partition)))
    }

    /// Returns the index of a topic. A batch has few topics, and most often a row has the topic of the row before.
    fn intern(&mut self, topic: &str) -> usize {
        self.topics.iter().rposition(|known| known == topic).unwrap_or_else(|| {
            self.topics.push(topic.to_owned());
            self.topics.len() - 1
        })
    }
}

/// Decides about the rows of one batch.
pub(super) struct Decider<'a> {
    pub(super) assignment: &'a mut LaneAssignment,
    pub(super) producer: &'a mut KafkaProducer,
    pub(super) options: &'a RelayOptions,
    /// The topics that cannot be written, and why.
    pub(super) closed: &'a HashMap<String, String>,
    /// The number of partitions of topics in which a row names a partition that does not exist. The producer would refuse the record, and the
    /// whole topic would wait.
    pub(super) too_few: &'a HashMap<String, i32>,
    /// The entities with an event that becomes DEAD in this batch. Their later events are sent only after that is committed. Otherwise the
    /// session might end before the commit, somebody might correct the event, and it would then follow its successors.
    pub(super) dead: HashSet<String>,
    /// The partitions that have not acknowledged records of earlier batches.
    pub(super) avoided: Avoided,
}

impl Decider<'_> {
    /// Sends the rows that can be sent, in order. Returns the outcome of each row.
    pub(super) fn decide(&mut self, batch: &Batch, plan: Plan<'_>) -> Result<Sent, sqlx::Error> {
        self.producer.begin(plan.rows.len(), std::mem::take(&mut self.avoided));
        let mut sent =
            Sent { outcomes: Vec::with_capacity(plan.rows.len()), topics: plan.topics, records: 0, cut: None };
        let mut skipped = batch.skipped.iter().peekable();
        // Once the producer has refused a record for a reason of its own, no record may follow: the producer might accept a later one.
        let mut is_broken = false;
        let mut last = None;
        for (slot, (row, routed)) in batch.rows.iter().zip(&plan.rows).enumerate() {
            let id = row.id()?.0;
            if slot >= batch.due {
                while let Some(before) = skipped.next_if(|skipped| skipped.id < id) {
                    if sent.cut.is_none() && !self.hold_locked(before, &batch.extent) {
                        sent.cut = Some(last);
                    }
                    last = Some(before.id);
                }
            }
            if slot >= batch.due && sent.cut.is_none() && self.is_behind_a_dead_event(row, routed)? {
                sent.cut = Some(last);
            }
            let outcome = match routed {
                _ if is_broken || sent.cut.is_some() => RowOutcome::Left,
                routed => self.decide_one(batch, slot, row, routed, &sent.topics, &mut is_broken)?,
            };
            match outcome {
                RowOutcome::Sent { .. } => sent.records += 1,
                // This slot has no report to wait for.
                _ => self.producer.skip(slot, RDKafkaErrorCode::NoError),
            }
            sent.outcomes.push(outcome);
            if slot >= batch.due {
                last = Some(id);
            }
        }
        for behind in skipped {
            if sent.cut.is_none() && !self.hold_locked(behind, &batch.extent) {
                sent.cut = Some(last);
            }
            last = Some(behind.id);
        }
        Ok(sent)
    }

    fn is_behind_a_dead_event(&self, row: &ClaimedRow, routed: &Routed<'_>) -> Result<bool, sqlx::Error> {
        if self.dead.is_empty() || matches!(routed, Routed::Poison(_)) {
            return Ok(false);
        }
        Ok(row.entity_id()?.is_some_and(|entity| self.dead.contains(entity)))
    }

    fn decide_one(
        &mut self,
        batch: &Batch,
        slot: usize,
        row: &ClaimedRow,
        routed: &Routed<'_>,
        topics: &[String],
        is_broken: &mut bool,
    ) -> Result<RowOutcome, sqlx::Error> {
        let topic = match routed {
            Routed::Ready { topic, .. } => topics.get(*topic).map(String::as_str),
            Routed::Poison(_) => None,
        };
        let (id, lane) = (row.id()?.0, row.lane()?);
        let candidate = Candidate { id, lane, entity_type: row.entity_type()?, entity_id: row.entity_id()?, topic };
        if let Some(index) = self.holding(candidate, &batch.extent) {
            // A scheduled row that is held loses its schedule. A later claim finds it in the order of ids and steps over it there.
            if slot >= batch.due {
                self.step_over(index, candidate, &batch.extent);
            }
            return Ok(RowOutcome::Held);
        }
        Ok(match routed {
            Routed::Poison(poison) => self.refuse(candidate, poison.clone()),
            Routed::Ready { event, topic } if let Some(reason) = self.no_partition(event, &topics[*topic]) => {
                self.refuse(candidate, Poison::of_row(reason, Code::EventRefused))
            }
            Routed::Ready { event, topic } => match self.send(slot, &topics[*topic], event, self.timestamp(row)?) {
                Ok(placement) => RowOutcome::Sent { slot, topic: *topic, placement },
                Err(code) if fault::classify_kafka(code).class == Class::Row => {
                    self.refuse(candidate, Poison::of_record(code))
                }
                // The slot's delivery report shows the failure.
                Err(_) => {
                    *is_broken = true;
                    RowOutcome::Sent { slot, topic: *topic, placement: None }
                }
            },
        })
    }

    /// Returns why the event cannot go to the partition that it names; `None` if it can, or names none.
    fn no_partition(&self, event: &StoredEvent<'_>, topic: &str) -> Option<String> {
        let partitions = *self.too_few.get(topic)?;
        let named = event.partition().ok().flatten().filter(|named| *named >= partitions)?;
        Some(admission::no_such_partition(named, topic, partitions))
    }

    fn send(
        &mut self,
        slot: usize,
        topic: &str,
        event: &StoredEvent<'_>,
        timestamp: i64,
    ) -> Result<Option<Placement>, RDKafkaErrorCode> {
        let (envelope, source) = (self.options.relay.envelope, self.options.relay.source.as_deref());
        self.producer.send(slot, topic, event, timestamp, envelope, source)
    }

    /// Returns the timestamp of a record, in milliseconds since 1970.
    fn timestamp(&self, row: &ClaimedRow) -> Result<i64, sqlx::Error> {
        let time = match self.options.relay.timestamp {
            Timestamp::Event => row.due_at()?,
            Timestamp::Publish => Utc::now(),
        };
        Ok(time.timestamp_millis())
    }

    /// Returns the hold that covers the event: an existing one, or one that begins here.
    fn holding(&mut self, event: Candidate<'_>, extent: &Extent) -> Option<u32> {
        let is_walk = matches!(extent, Extent::Walk { .. });
        let there = self.assignment.holds.blocking(event);
        // A walk publishes the events that releasing holds have kept.
        let keeps = |index: &u32| !is_walk || self.assignment.holds.peek(*index).is_some_and(|held| !held.is_releasing);
        if let Some(index) = there.filter(keeps) {
            return Some(index);
        }
        if let Some((by, reason)) = self.assignment.pauses.blocking(event.topic, event.entity_type, event.entity_id) {
            let value = match by {
                PausedBy::Topic(topic) => HoldValue::Topic(topic),
                PausedBy::Entity(entity_type, entity_id) => HoldValue::Entity { entity_type, entity_id },
            };
            let reason = reason.to_owned();
            return Some(self.hold(event.lane, value, HoldKind::Paused, reason, event.id, None));
        }
        if let Some((topic, why)) = event.topic.and_then(|topic| self.closed.get_key_value(topic)) {
            let value = HoldValue::Topic(topic.clone());
            return Some(self.hold(event.lane, value, HoldKind::Topic, why.clone(), event.id, None));
        }
        if is_walk && let Some(released) = there.and_then(|index| self.assignment.holds.get_mut(index)) {
            released.hold.events = (released.hold.events - 1).max(0);
        }
        None
    }

    fn step_over(&mut self, index: u32, event: Candidate<'_>, extent: &Extent) {
        let is_walk = matches!(extent, Extent::Walk { .. });
        let owned = self.assignment.owned.as_ref();
        let counted = owned.and_then(|owned| owned.counted_through.get(&event.lane).copied()).unwrap_or(i64::MIN);
        self.assignment.holds.step_over(index, event.id, !is_walk && event.id > counted);
    }

    fn hold(
        &mut self,
        lane: i16,
        value: HoldValue,
        kind: HoldKind,
        reason: String,
        from_id: i64,
        head_id: Option<i64>,
    ) -> u32 {
        let hold = Hold { value, kind, reason, from_id, head_id, events: 0, released: false };
        self.assignment.holds.begin(lane, hold)
    }

    /// Holds the entity of an event that another session has locked. Returns false when the lane has too many locked events.
    fn hold_locked(&mut self, row: &Skipped, extent: &Extent) -> bool {
        let event =
            Candidate { id: row.id, lane: row.lane, entity_type: "", entity_id: row.entity_id.as_deref(), topic: None };
        let value = match &row.entity_id {
            Some(entity_id) => HoldValue::Entity { entity_type: None, entity_id: entity_id.clone() },
            None => HoldValue::Row(row.id),
        };
        let there = self.assignment.holds.find(row.lane, &value);
        let is_kept = there.and_then(|index| self.assignment.holds.peek(index)).is_some_and(|held| !held.is_releasing);
        if let Some(index) = there.filter(|_| is_kept) {
            self.step_over(index, event, extent);
            return true;
        }
        if self.assignment.holds.locked_of(row.lane) >= MOST_LOCKED {
            return false;
        }
        let reason = "another session has the first event locked".to_owned();
        let index = self.hold(row.lane, value, HoldKind::Locked, reason, row.id, Some(row.id));
        self.step_over(index, event, extent);
        true
    }

    /// Applies `on_poison` to an event that cannot be sent.
    pub(super) fn refuse(&mut self, event: Candidate<'_>, poison: Poison) -> RowOutcome {
        match self.options.relay.on_poison {
            OnPoison::DeadLetter => {
                self.dead.extend(event.entity_id.map(str::to_owned));
                RowOutcome::Dead(poison)
            }
            OnPoison::HoldEntity => {
                let value = match event.entity_id {
                    Some(entity_id) => HoldValue::Entity {
                        entity_type: Some(event.entity_type.to_owned()),
                        entity_id: entity_id.to_owned(),
                    },
                    None => HoldValue::Row(event.id),
                };
                let index =
                    self.hold(event.lane, value, HoldKind::Poison, poison.error.clone(), event.id, Some(event.id));
                self.assignment.holds.step_over(index, event.id, true);
                RowOutcome::Refused(poison)
            }
        }
    }
}
