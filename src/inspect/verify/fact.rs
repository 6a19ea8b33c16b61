//! Encodes the facts about rows and records in bytes that sort by event. Of one event, the row comes first, then audits, then records in
//! topic order.

use uuid::Uuid;

use event_outbox::event::EventId;
use event_outbox::ledger::{Fingerprint, RowStatus};

/// The length of an encoded [`Fact`] with its event.
pub(crate) const FACT_BYTES: usize = 85;
/// The length of an encoded [`Step`].
pub(crate) const STEP_BYTES: usize = 56;

/// A fact about an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fact {
    Row(RowFact),
    /// An operator's command set the row to PENDING again.
    Audit,
    Record(RecordFact),
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RowFact {
    pub(crate) id: i64,
    /// The topic that the row is routed to, as an index of the verified topics.
    pub(crate) topic: u16,
    pub(crate) status: RowStatus,
    pub(crate) scheduled: bool,
    /// True for a row older than `--since`. The row is known, but not compared.
    pub(crate) outside: bool,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// A digest of the entity's type and id.
    pub(crate) entity: Option<u128>,
    /// The murmur2 hash of the entity's id.
    pub(crate) key_hash: Option<u32>,
    /// The partition that the row's header `outbox-partition` names.
    pub(crate) partition: Option<i32>,
    /// The time of publication in microseconds since 1970.
    pub(crate) published_at: i64,
}

/// A record of a topic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RecordFact {
    pub(crate) topic: u16,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// The header `sequence`, which is the row's id in records of the relay.
    pub(crate) sequence: Option<i64>,
    /// The murmur2 hash of the record's key.
    pub(crate) key_hash: Option<u32>,
    /// The record's timestamp in microseconds since 1970.
    pub(crate) time: Option<i64>,
    /// The command that sent the record again, if a header names one.
    pub(crate) resent: Option<Resent>,
}

/// The command that sent a record again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resent {
    /// `outbox-relay replay`, marked by the header `replay-id`.
    Replayed,
    /// `outbox-relay dlq redrive`, marked by the header `redrive-id`.
    Redriven,
}

/// The first record of a keyed event in a partition. Steps sort by topic, entity, partition and offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub(crate) topic: u16,
    pub(crate) entity: u128,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) id: i64,
    pub(crate) event: EventId,
    pub(crate) scheduled: bool,
    pub(crate) audited: bool,
    /// True if the row names its partition.
    pub(crate) placed: bool,
}

const ROW: u8 = 0;
const AUDIT: u8 = 1;
const RECORD: u8 = 2;

const HAS_FINGERPRINT: u8 = 1;
const HAS_ENTITY: u8 = 2;
const HAS_KEY: u8 = 4;
const HAS_NUMBER: u8 = 8;
const HAS_TIME: u8 = 16;
const SCHEDULED: u8 = 32;
const OUTSIDE: u8 = 64;
const AUDITED: u8 = 128;
const PLACED: u8 = 1;
/// Stands for a row that names no partition.
const ANYWHERE: i32 = -1;

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

/// Reads fields one after the other.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.rest = rest;
                *field
            }
            None => [0; N],
        }
    }
}

fn pack<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut entry = [0; N];
    let mut at = 0;
    for field in fields {
        entry[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    debug_assert_eq!(at, N);
    entry
}

impl Fact {
    pub(crate) fn encode(&self, event: EventId) -> [u8; FACT_BYTES] {
        let place = |topic: u16, partition: i32, offset: i64| {
            let mut place = [0; 14];
            place[..2].copy_from_slice(&topic.to_be_bytes());
            place[2..6].copy_from_slice(&partition.to_be_bytes());
            place[6..].copy_from_slice(&offset.to_be_bytes());
            place
        };
        let fingerprint = |fingerprint: Option<Fingerprint>| fingerprint.map_or([0; 16], |print| print.0);
        let (kind, place, flags, status, print, number, entity, key, time) = match *self {
            Self::Audit => (AUDIT, place(0, 0, 0), 0, 0, [0; 16], 0, 0, 0, 0),
            Self::Row(row) => {
                let flags = flag(row.fingerprint.is_some(), HAS_FINGERPRINT)
                    | flag(row.entity.is_some(), HAS_ENTITY)
                    | flag(row.key_hash.is_some(), HAS_KEY)
                    | flag(row.scheduled, SCHEDULED)
                    | flag(row.outside, OUTSIDE);
                let status = match row.status {
                    RowStatus::Pending => 0,
                    RowStatus::Published => 1,
                    RowStatus::Dead => 2,
                };
                let place = place(row.topic, row.partition.unwrap_or(ANYWHERE), 0);
                let (entity, key) = (row.entity.unwrap_or(0), row.key_hash.unwrap_or(0));
                (ROW, place, flags, status, fingerprint(row.fingerprint), row.id, entity, key, row.published_at)
            }
            Self::Record(record) => {
                let flags = flag(record.fingerprint.is_some(), HAS_FINGERPRINT)
                    | flag(record.key_hash.is_some(), HAS_KEY)
                    | flag(record.sequence.is_some(), HAS_NUMBER)
                    | flag(record.time.is_some(), HAS_TIME);
                let place = place(record.topic, record.partition, record.offset);
                let (number, time) = (record.sequence.unwrap_or(0), record.time.unwrap_or(0));
                let key = record.key_hash.unwrap_or(0);
                let resent = match record.resent {
                    None => 0,
                    Some(Resent::Replayed) => 1,
                    Some(Resent::Redriven) => 2,
                };
                (RECORD, place, flags, resent, fingerprint(record.fingerprint), number, 0, key, time)
            }
        };
        pack(&[
            event.0.as_bytes(),
            &[kind],
            &place,
            &[flags, status],
            &print,
            &number.to_be_bytes(),
            &u128::to_be_bytes(entity),
            &u32::to_be_bytes(key),
            &i64::to_be_bytes(time),
        ])
    }

    pub(crate) fn decode(entry: &[u8; FACT_BYTES]) -> (EventId, Self) {
        let mut cursor = Cursor { rest: entry };
        let event = EventId(Uuid::from_bytes(cursor.take()));
        let [kind] = cursor.take();
        let topic = u16::from_be_bytes(cursor.take());
        let partition = i32::from_be_bytes(cursor.take());
        let offset = i64::from_be_bytes(cursor.take());
        let [flags, status] = cursor.take();
        let print = cursor.take();
        let number = i64::from_be_bytes(cursor.take());
        let entity = u128::from_be_bytes(cursor.take());
        let key = u32::from_be_bytes(cursor.take());
        let time = i64::from_be_bytes(cursor.take());
        let has = |bit: u8| flags & bit != 0;
        let fingerprint = has(HAS_FINGERPRINT).then_some(Fingerprint(print));
        let key_hash = has(HAS_KEY).then_some(key);
        let fact = match kind {
            ROW => Self::Row(RowFact {
                id: number,
                topic,
                status: match status {
                    0 => RowStatus::Pending,
                    1 => RowStatus::Published,
                    _ => RowStatus::Dead,
                },
                scheduled: has(SCHEDULED),
                outside: has(OUTSIDE),
                fingerprint,
                entity: has(HAS_ENTITY).then_some(entity),
                key_hash,
                partition: (partition != ANYWHERE).then_some(partition),
                published_at: time,
            }),
            AUDIT => Self::Audit,
            _ => Self::Record(RecordFact {
                topic,
                partition,
                offset,
                fingerprint,
                sequence: has(HAS_NUMBER).then_some(number),
                key_hash,
                time: has(HAS_TIME).then_some(time),
                resent: match status {
                    0 => None,
                    1 => Some(Resent::Replayed),
                    _ => Some(Resent::Redriven),
                },
            }),
        };
        (event, fact)
    }
}

impl Step {
    pub(crate) fn encode(&self) -> [u8; STEP_BYTES] {
        pack(&[
            &self.topic.to_be_bytes(),
            &self.entity.to_be_bytes(),
            &self.partition.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.id.to_be_bytes(),
            self.event.0.as_bytes(),
            &[flag(self.scheduled, SCHEDULED) | flag(self.audited, AUDITED) | flag(self.placed, PLACED), 0],
        ])
    }

    pub(crate) fn decode(entry: &[u8; STEP_BYTES]) -> Self {
        let mut cursor = Cursor { rest: entry };
        let topic = u16::from_be_bytes(cursor.take());
        let entity = u128::from_be_bytes(cursor.take());
        let partition = i32::from_be_bytes(cursor.take());
        let offset = i64::from_be_bytes(cursor.take());
        let id = i64::from_be_bytes(cursor.take());
        let event = EventId(Uuid::from_bytes(cursor.take()));
        let [flags, _] = cursor.take();
        let has = |bit: u8| flags & bit != 0;
        let (scheduled, audited, placed) = (has(SCHEDULED), has(AUDITED), has(PLACED));
        Self { topic, entity, partition, offset, id, event, scheduled, audited, placed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_and_steps_come_back_as_they_were() {
        let event = EventId(Uuid::from_u128(0xabcd));
        let fingerprint = Some(Fingerprint([7; 16]));
        let row = RowFact {
            id: 17,
            topic: 3,
            status: RowStatus::Dead,
            scheduled: true,
            outside: true,
            fingerprint,
            entity: Some(99),
            key_hash: Some(5),
            partition: Some(8),
            published_at: -4,
        };
        let anywhere = RowFact { partition: None, ..row };
        assert_eq!(Fact::decode(&Fact::Row(anywhere).encode(event)), (event, Fact::Row(anywhere)));
        let record = RecordFact {
            topic: 3,
            partition: 2,
            offset: 1 << 40,
            fingerprint,
            sequence: Some(17),
            key_hash: None,
            time: Some(12),
            resent: Some(Resent::Redriven),
        };
        let resent = Some(Resent::Replayed);
        let bare = RecordFact { fingerprint: None, sequence: None, time: None, key_hash: Some(0), resent, ..record };
        let mut encoded = Vec::new();
        for fact in [Fact::Row(row), Fact::Audit, Fact::Record(record), Fact::Record(RecordFact { topic: 4, ..bare })] {
            encoded.push(fact.encode(event));
            assert_eq!(Fact::decode(&fact.encode(event)), (event, fact));
        }
        assert!(encoded.is_sorted(), "rows come first, then audits, then records");
        let step = Step {
            topic: 1,
            entity: 9,
            partition: 4,
            offset: 77,
            id: 3,
            event,
            scheduled: false,
            audited: true,
            placed: true,
        };
        for step in [step, Step { placed: false, ..step }] {
            assert_eq!(Step::decode(&step.encode()), step);
        }
    }
}
