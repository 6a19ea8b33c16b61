//! The end of a turn: what the reports mean for each row, and how it is written down.

use std::collections::{BTreeMap, HashMap};

use rdkafka::error::RDKafkaErrorCode;

use crate::event::OutboxId;
use crate::fault::{self, Class};
use crate::lane::LaneRange;
use crate::observe::code::Code;
use crate::relay::batch::{Fate, Sent, poison, refused};
use crate::relay::claiming::Claim;
use crate::relay::stint::Stint;
use crate::relay::turn::{Hands, TurnError, Waited, within};
use crate::sink::broker::BrokerDown;
use crate::sink::delivery::Outcome;
use crate::sink::producer::KafkaProducer;
use crate::store::claim::ClaimedRow;
use crate::store::holds::topic_reason;
use crate::store::settle::{Ctid, SettleError};

impl Hands<'_> {
    /// Turns refusals into fates, and tells what is missing.
    pub(super) fn judge(
        &mut self,
        stint: &mut Stint,
        claim: &Claim,
        sent: &mut Sent,
        outcomes: &[Outcome],
        waited: &Waited,
    ) -> Result<Option<TurnError>, sqlx::Error> {
        let mut unacknowledged = 0;
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut class = Class::Outage;
        let fatal = self.producer.as_ref().and_then(KafkaProducer::fatal);
        for (row, fate) in claim.rows.iter().zip(&mut sent.fates) {
            let Fate::Sent { slot, topic } = *fate else { continue };
            let code = match outcomes.get(slot) {
                Some(Outcome::Acked) => continue,
                // Records that fail with a broken producer say no more than that; the producer knows why.
                Some(Outcome::Failed(RDKafkaErrorCode::Fatal)) => Some(fatal.unwrap_or(RDKafkaErrorCode::Fatal)),
                Some(Outcome::Failed(code)) => Some(*code),
                _ => None,
            };
            unacknowledged += 1;
            *reasons.entry(code.map_or_else(|| "no answer".to_owned(), |code| format!("{code:?}"))).or_default() += 1;
            let Some(code) = code else { continue };
            match fault::of_kafka(code).class {
                Class::Destination => {
                    let topic = &sent.topics[topic];
                    self.refused_topic(stint, topic, code);
                    *fate = Fate::Held { reason: topic_reason(topic, &crate::sink::topics::closed(code)), attempts: 0 };
                    class = Class::Destination;
                }
                // Alone in its batch it is the culprit. In company it may be the size of the batch: fewer the next time.
                Class::Row if sent.records == 1 => {
                    let entity_type = row.entity_type()?;
                    let policy = self.shared.options.on_poison;
                    *fate = poison(policy, &mut stint.holds, entity_type, row.entity_id()?, &refused(code));
                    class = Class::Row;
                }
                Class::Row => {
                    *self.limit = (sent.records / 4).max(1);
                    class = Class::Row;
                }
                found @ (Class::Outage | Class::Operator) => {
                    if class == Class::Outage {
                        class = found;
                    }
                }
            }
        }
        if unacknowledged == 0 {
            return Ok(None);
        }
        let how = match waited {
            Waited::Settled => "",
            // The watch has told it.
            Waited::BrokerDown => return Ok(Some(BrokerDown.into())),
            Waited::TimedOut => "RELAY_PUBLISH_TIMEOUT passed; ",
        };
        let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let reason = format!("{how}{}", reasons.join(", "));
        Ok(Some(TurnError::Unacknowledged { unacknowledged, records: sent.records, reason, class }))
    }

    /// Writes the fates down and commits; returns how many rows changed. With `go_on` the next transaction is begun, too.
    pub(super) async fn settle(
        &mut self,
        stint: &mut Stint,
        lanes: LaneRange,
        claim: &Claim,
        sent: &Sent,
        outcomes: &[Outcome],
        go_on: bool,
    ) -> Result<usize, SettleError> {
        let mut published: Vec<Ctid> = Vec::with_capacity(sent.records);
        let mut held: HashMap<(&str, i32), Vec<Ctid>> = HashMap::new();
        let mut changed = 0;
        for (row, fate) in claim.rows.iter().zip(&sent.fates) {
            match fate {
                Fate::Sent { slot, .. } if outcomes.get(*slot) == Some(&Outcome::Acked) => published.push(row.ctid()?),
                Fate::Sent { .. } | Fate::Left => {}
                Fate::Dead { error } => {
                    let persistent = self.shared.options.prepared_statements;
                    within(self.shared.settle.mark_dead(self.conn, row.ctid()?, error, persistent)).await?;
                    tell_poison(row, error, "the event is DEAD, its successors go on")?;
                    changed += 1;
                }
                Fate::Held { reason, attempts } => {
                    held.entry((reason, *attempts)).or_default().push(row.ctid()?);
                    if *attempts > 0 {
                        tell_poison(row, reason, "the entity waits until the event is retried or discarded")?;
                    }
                }
            }
        }
        let dead = changed;
        changed += self.hold(stint, lanes, &held).await?;
        let next = (go_on && lanes == stint.range).then_some(lanes);
        let transaction = &self.shared.transaction;
        *self.begun = within(transaction.mark_and_commit(self.conn, &published, next)).await?.zip(next);
        self.shared.settled(published.len(), dead, &held);
        Ok(changed + published.len())
    }

    async fn hold(
        &mut self,
        stint: &mut Stint,
        lanes: LaneRange,
        held: &HashMap<(&str, i32), Vec<Ctid>>,
    ) -> Result<usize, SettleError> {
        let persistent = self.shared.options.prepared_statements;
        for ((reason, attempts), rows) in held {
            within(self.shared.settle.hold(self.conn, rows, reason, *attempts, persistent)).await?;
        }
        if !held.is_empty() {
            let grown = within(self.shared.settle.bump_generation(self.conn, lanes, persistent)).await?;
            stint.grow(grown);
        }
        Ok(held.values().map(Vec::len).sum())
    }
}

pub(super) fn first_left(claim: &Claim, sent: &Sent) -> Result<Option<OutboxId>, sqlx::Error> {
    let left = claim.rows.iter().zip(&sent.fates).find(|(_, fate)| **fate == Fate::Left);
    left.map(|(row, _)| row.id()).transpose()
}

fn tell_poison(row: &ClaimedRow, error: &str, consequence: &str) -> Result<(), sqlx::Error> {
    tracing::error!(
        code = %Code::EventRefused,
        event.id = %row.event_id()?,
        event.sequence = row.id()?.0,
        entity.r#type = row.entity_type()?,
        entity.id = row.entity_id()?,
        error,
        "an event cannot be sent: {consequence}"
    );
    Ok(())
}
