//! Encodes the facts about records in bytes that sort by event id, then side, partition and offset.

use event_outbox::ledger::Fingerprint;

/// The topic that a record is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    Left,
    Right,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// A digest of an event id, a key, a value or headers. A missing part differs from an empty one.
pub(crate) type Digest = [u8; 16];

/// Returns the digest of bytes that may be missing.
pub(crate) fn digest(bytes: Option<&[u8]>) -> Digest {
    Fingerprint::from_key_value(None, bytes).0
}

/// The partition and offset of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct At {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// The number of header names that only one kind of writer knows.
pub(crate) const WRITERS_OWN: usize = 5;

/// The parts of a record that are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RecordFact {
    pub(crate) side: Side,
    pub(crate) at: At,
    /// True for a record behind the end of the comparison. It only completes an event whose other record was seen.
    pub(crate) late: bool,
    /// The key; `None` for a record without a key, which has no order.
    pub(crate) key: Option<Digest>,
    pub(crate) value: Digest,
    /// The headers that both topics must have.
    pub(crate) headers: Digest,
    /// The headers that only one kind of writer knows; 0 for one that is missing.
    pub(crate) writers_own: [u32; WRITERS_OWN],
    /// Milliseconds since 1970.
    pub(crate) time: Option<i64>,
}

/// The length of an encoded [`RecordFact`] with its event id.
pub(crate) const FACT_BYTES: usize = 16 + 1 + 12 + 1 + 16 + 16 + 16 + 4 * WRITERS_OWN + 8;

const LATE: u8 = 1;
const HAS_KEY: u8 = 2;
const HAS_TIME: u8 = 4;

/// Stands for a missing time.
const NO_TIME: i64 = i64::MIN;

/// Reads fields one after the other.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *field
    }

    fn at(&mut self) -> At {
        At { partition: i32::from_be_bytes(self.take()), offset: i64::from_be_bytes(self.take()) }
    }
}

fn pack<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let (mut entry, mut from) = ([0; N], 0);
    for field in fields {
        entry[from..from + field.len()].copy_from_slice(field);
        from += field.len();
    }
    debug_assert_eq!(from, N);
    entry
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

impl RecordFact {
    pub(crate) fn encode(&self, id: Digest) -> [u8; FACT_BYTES] {
        let flags = flag(self.late, LATE) | flag(self.key.is_some(), HAS_KEY) | flag(self.time.is_some(), HAS_TIME);
        let mut own = [0; 4 * WRITERS_OWN];
        for (bytes, header) in own.chunks_exact_mut(4).zip(self.writers_own) {
            bytes.copy_from_slice(&header.to_be_bytes());
        }
        pack(&[
            &id,
            &[self.side as u8],
            &self.at.partition.to_be_bytes(),
            &self.at.offset.to_be_bytes(),
            &[flags],
            &self.key.unwrap_or_default(),
            &self.value,
            &self.headers,
            &own,
            &self.time.unwrap_or_default().to_be_bytes(),
        ])
    }

    pub(crate) fn decode(entry: &[u8; FACT_BYTES]) -> (Digest, Self) {
        let mut cursor = Cursor(entry);
        let id = cursor.take();
        let [side] = cursor.take();
        let at = cursor.at();
        let [flags] = cursor.take();
        let (key, value, headers) = (cursor.take(), cursor.take(), cursor.take());
        let writers_own = std::array::from_fn(|_| u32::from_be_bytes(cursor.take()));
        let time = i64::from_be_bytes(cursor.take());
        let fact = Self {
            side: if side == Side::Left as u8 { Side::Left } else { Side::Right },
            at,
            late: flags & LATE != 0,
            key: (flags & HAS_KEY != 0).then_some(key),
            value,
            headers,
            writers_own,
            time: (flags & HAS_TIME != 0).then_some(time),
        };
        (id, fact)
    }
}

/// The first records of an event that both topics have. Steps sort by key and by the left topic's order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub(crate) key: Digest,
    pub(crate) left: At,
    pub(crate) right: At,
}

pub(crate) const STEP_BYTES: usize = 16 + 12 + 12;

impl Step {
    pub(crate) fn encode(&self) -> [u8; STEP_BYTES] {
        pack(&[
            &self.key,
            &self.left.partition.to_be_bytes(),
            &self.left.offset.to_be_bytes(),
            &self.right.partition.to_be_bytes(),
            &self.right.offset.to_be_bytes(),
        ])
    }

    pub(crate) fn decode(entry: &[u8; STEP_BYTES]) -> Self {
        let mut cursor = Cursor(entry);
        Self { key: cursor.take(), left: cursor.at(), right: cursor.at() }
    }
}

/// The first record of an event that the other topic lacks. These sort by side, partition and offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Unmatched {
    pub(crate) side: Side,
    pub(crate) at: At,
    /// Milliseconds since 1970.
    pub(crate) time: Option<i64>,
}

pub(crate) const UNMATCHED_BYTES: usize = 1 + 12 + 8;

impl Unmatched {
    pub(crate) fn encode(&self) -> [u8; UNMATCHED_BYTES] {
        pack(&[
            &[self.side as u8],
            &self.at.partition.to_be_bytes(),
            &self.at.offset.to_be_bytes(),
            &self.time.unwrap_or(NO_TIME).to_be_bytes(),
        ])
    }

    pub(crate) fn decode(entry: &[u8; UNMATCHED_BYTES]) -> Self {
        let mut cursor = Cursor(entry);
        let [side] = cursor.take();
        let side = if side == Side::Left as u8 { Side::Left } else { Side::Right };
        let (at, time) = (cursor.at(), i64::from_be_bytes(cursor.take()));
        Self { side, at, time: (time != NO_TIME).then_some(time) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_steps_and_unmatched_records_come_back_as_they_were() {
        let at = At { partition: 3, offset: 1 << 40 };
        let full = RecordFact {
            side: Side::Right,
            at,
            late: true,
            key: Some([1; 16]),
            value: [2; 16],
            headers: [3; 16],
            writers_own: [0, 1, 2, 3, u32::MAX],
            time: Some(-5),
        };
        let bare = RecordFact { side: Side::Left, late: false, key: None, time: None, ..full };
        for fact in [full, bare] {
            assert_eq!(RecordFact::decode(&fact.encode([9; 16])), ([9; 16], fact));
        }
        assert!(bare.encode([9; 16]) < full.encode([9; 16]), "the left side comes first");
        let step = Step { key: [7; 16], left: at, right: At { partition: 0, offset: 2 } };
        assert_eq!(Step::decode(&step.encode()), step);
        for time in [Some(-5), None] {
            let unmatched = Unmatched { side: Side::Right, at, time };
            assert_eq!(Unmatched::decode(&unmatched.encode()), unmatched);
        }
    }
}
