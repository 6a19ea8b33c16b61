//! What becomes of each claimed row: sent, dead, held, or left for the next claim. Everything that can be known to fail is found
//! out here, before its successors are sent.

use std::collections::{HashMap, HashSet};

use rdkafka::error::RDKafkaErrorCode;

use crate::config::OnPoison;
use crate::event::{OutboxId, StoredEvent};
use crate::fault::{self, Class};
use crate::relay::options::RelayOptions;
use crate::relay::pauses::Gate;
use crate::sink::producer::KafkaProducer;
use crate::store::claim::{ClaimedRow, Skipped};
use crate::store::holds::{BEHIND, Hold, entity_reason, topic_reason};

/// A row and where it would go.
enum Planned<'r> {
    Ready {
        event: StoredEvent<'r>,
        topic: usize,
    },
    Poison {
        id: OutboxId,
        entity_type: String,
        entity_id: Option<&'r str>,
        error: String,
    },
    /// A row before it could not be claimed: its turn comes after that one.
    Behind,
}

/// The rows of a claim in order, parsed and routed.
pub(crate) struct Plan<'r> {
    rows: Vec<Planned<'r>>,
    /// The topics of the batch.
    pub(crate) topics: Vec<String>,
}

/// Why events of a topic are not sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closed {
    /// It cannot be written: they are held. Those up to `released` had been held before and are let through.
    Held { why: String, released: i64 },
    /// There was no time to ask for it: the next turn asks.
    Unasked,
}

impl Closed {
    fn fate(&self, topic: &str, id: OutboxId) -> Option<Fate> {
        match self {
            Closed::Held { released, .. } if id.0 <= *released => None,
            Closed::Held { why, .. } => Some(Fate::Held { reason: topic_reason(topic, why), attempts: 0 }),
            Closed::Unasked => Some(Fate::Left),
        }
    }
}

/// What becomes of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Given to the producer, as this record of its batch.
    Sent { slot: usize, topic: usize },
    /// DEAD by its own fault.
    Dead { error: String },
    /// Held until its topic or its entity is released; `attempts` counts its own faults.
    Held { reason: String, attempts: i32 },
    /// Untouched: still pending.
    Left,
}

impl<'r> Plan<'r> {
    /// Parses and routes `rows`. Rows of an entity that has an unclaimed row before them are left out.
    pub(crate) fn new(
        rows: &'r [ClaimedRow],
        skipped: &[Skipped],
        options: &RelayOptions,
    ) -> Result<Self, sqlx::Error> {
        // The first row of each entity that could not be claimed.
        let mut blocked: HashMap<&str, OutboxId> = HashMap::new();
        for row in skipped {
            if let Some(entity) = &row.entity_id {
                blocked.entry(entity).or_insert(row.id);
            }
        }
        let mut plan = Self { rows: Vec::with_capacity(rows.len()), topics: Vec::new() };
        let mut scratch = String::new();
        for row in rows {
            let behind = match row.entity_id()? {
                Some(entity) if !blocked.is_empty() => blocked.get(entity).copied(),
                _ => None,
            };
            let planned = match behind {
                Some(first) if row.id()? > first => Planned::Behind,
                _ => plan.route(row, options, &mut scratch)?,
            };
            plan.rows.push(planned);
        }
        Ok(plan)
    }

    fn route(
        &mut self,
        row: &'r ClaimedRow,
        options: &RelayOptions,
        scratch: &mut String,
    ) -> Result<Planned<'r>, sqlx::Error> {
        let poison = |error: String| -> Result<Planned<'r>, sqlx::Error> {
            let (id, entity_type) = (row.id()?, row.entity_type()?.to_owned());
            Ok(Planned::Poison { id, entity_type, entity_id: row.entity_id()?, error })
        };
        let event = match row.event()? {
            Ok(event) => event,
            Err(bad) => return poison(bad.to_string()),
        };
        let topic = match options.topic.resolve(&event, scratch) {
            Ok(topic) => self.intern(topic),
            Err(bad) => return poison(bad.to_string()),
        };
        Ok(Planned::Ready { event, topic })
    }

    /// A batch has few topics, most often the same as the row before.
    fn intern(&mut self, topic: &str) -> usize {
        self.topics.iter().rposition(|known| known == topic).unwrap_or_else(|| {
            self.topics.push(topic.to_owned());
            self.topics.len() - 1
        })
    }

    /// Sends what can be sent, in order. `gate` is what is paused; `closed` are the topics that cannot be written, with the reason;
    /// `holds` grows by the entities that poison holds back.
    pub(crate) fn send(
        self,
        producer: &mut KafkaProducer,
        options: &RelayOptions,
        gate: &Gate,
        closed: &HashMap<String, Closed>,
        holds: &mut HashSet<Hold>,
    ) -> Sent {
        producer.begin(self.rows.len());
        let mut sent = Sent { fates: Vec::with_capacity(self.rows.len()), topics: self.topics, records: 0 };
        // Once the producer has refused a record for a reason of its own, nothing may follow it: it might be taken again.
        let mut broken = false;
        for (slot, row) in self.rows.iter().enumerate() {
            let fate = match row {
                Planned::Behind => Fate::Left,
                _ if broken => Fate::Left,
                Planned::Poison { id, entity_type, entity_id, error } => gate
                    .fate(None, entity_type, *entity_id, id.0)
                    .or_else(|| held(holds, entity_type, *entity_id))
                    .unwrap_or_else(|| poison(options.on_poison, holds, entity_type, *entity_id, error)),
                Planned::Ready { event, topic } => {
                    let name = &sent.topics[*topic];
                    let paused = gate.fate(Some(name), event.entity_type, event.entity_id, event.id.0);
                    let fate = paused.or_else(|| closed.get(name)?.fate(name, event.id));
                    match fate.or_else(|| held(holds, event.entity_type, event.entity_id)) {
                        Some(fate) => fate,
                        None => send_one(producer, slot, name, *topic, event, options, holds, &mut broken),
                    }
                }
            };
            match fate {
                Fate::Sent { .. } => sent.records += 1,
                // Nothing to wait for.
                _ => producer.skip(slot, RDKafkaErrorCode::NoError),
            }
            sent.fates.push(fate);
        }
        sent
    }
}

#[expect(clippy::too_many_arguments, reason = "one call, on the hot path; a struct would only rename them")]
fn send_one(
    producer: &mut KafkaProducer,
    slot: usize,
    name: &str,
    topic: usize,
    event: &StoredEvent<'_>,
    options: &RelayOptions,
    holds: &mut HashSet<Hold>,
    broken: &mut bool,
) -> Fate {
    match producer.send(slot, name, event, options.envelope, options.source.as_deref()) {
        Ok(()) => Fate::Sent { slot, topic },
        Err(code) if fault::of_kafka(code).class == Class::Row => {
            poison(options.on_poison, holds, event.entity_type, event.entity_id, &refused(code))
        }
        // The outcome of the slot tells.
        Err(_) => {
            *broken = true;
            Fate::Sent { slot, topic }
        }
    }
}

/// The sentence kept in `last_error` for a record that Kafka refused.
pub(crate) fn refused(code: RDKafkaErrorCode) -> String {
    format!("{code:?}: {}", fault::of_kafka(code).next_step)
}

/// What `on_poison` says of a row that cannot be sent.
pub(crate) fn poison(
    policy: OnPoison,
    holds: &mut HashSet<Hold>,
    entity_type: &str,
    entity_id: Option<&str>,
    error: &str,
) -> Fate {
    match policy {
        OnPoison::DeadLetter => Fate::Dead { error: error.to_owned() },
        OnPoison::HoldEntity => {
            if let Some(entity_id) = entity_id {
                holds.insert(Hold::Entity(entity_type.to_owned(), entity_id.to_owned()));
            }
            Fate::Held { reason: entity_reason(error), attempts: 1 }
        }
    }
}

fn held(holds: &HashSet<Hold>, entity_type: &str, entity_id: Option<&str>) -> Option<Fate> {
    if holds.is_empty() {
        return None;
    }
    let hold = Hold::Entity(entity_type.to_owned(), entity_id?.to_owned());
    holds.contains(&hold).then(|| Fate::Held { reason: BEHIND.to_owned(), attempts: 0 })
}

/// A batch that has been given to the producer.
pub(crate) struct Sent {
    /// One per claimed row, in order.
    pub(crate) fates: Vec<Fate>,
    pub(crate) topics: Vec<String>,
    /// How many went to the producer.
    pub(crate) records: usize,
}
