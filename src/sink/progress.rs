//! Encodes the progress of a lane: its owner, and the batch it was committed with. The progress is stored as the metadata of a committed
//! offset, which is short text. So the encoding uses only a few bytes for each event.
//!
//! ```text
//! "2" base64url( before, after, digest: 8 bytes each, owner: length and text, epoch, count,
//!                ids: each as the difference to the one before, check: 4 bytes )
//! ```
//!
//! Numbers are varints (<https://protobuf.dev/programming-guides/encoding/#varints>), and differences are zigzag ones. The ids of a batch
//! are in the order in which they were claimed, which is not quite ascending if scheduled events are due.

use uuid::Uuid;

use event_outbox::hash::fnv1a;

/// The default limit of a broker (`offset.metadata.max.bytes`).
pub(crate) const METADATA_MAX_BYTES: usize = 4096;

const VERSION: char = '2';

/// The longest transactional id.
const OWNER_MAX_BYTES: usize = 100;

/// The largest size of before, after, digest, owner, epoch, count and check together.
const FRAME_BYTES: usize = 8 * 3 + 1 + OWNER_MAX_BYTES + 10 + 10 + 4;

/// The alphabet of base64url (RFC 4648, section 5).
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The progress of a lane in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The owner's transactional id. A worker can fence it even if the lane's row has lost it.
    pub(crate) owner: String,
    /// The owner's epoch of the lane.
    pub(crate) epoch: i64,
    /// The value of `sealed` in the lane's row before the batch is settled. It equals `after` right after the lane was taken.
    pub(crate) before: i64,
    pub(crate) after: i64,
    /// The [`digest`] of the batch.
    pub(crate) digest: u64,
    /// The ids of the batch; none right after the lane was taken.
    pub(crate) ids: Vec<i64>,
}

/// Returns a digest of a batch. It differs between events that were allocated the same ids after Postgres lost commits.
pub(crate) fn digest(rows: &[(i64, Uuid)]) -> u64 {
    let mut bytes = Vec::with_capacity(rows.len() * 24);
    for (id, event_id) in rows {
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(event_id.as_bytes());
    }
    fnv1a(&bytes)
}

impl Progress {
    /// Returns true if the progress belongs to this worker and this epoch, which the lane's row names as its owner.
    pub(crate) fn is_of(&self, transactional_id: &str, epoch: i64) -> bool {
        self.owner == transactional_id && self.epoch == epoch
    }

    pub(crate) fn encode(&self) -> String {
        let mut bytes = self.before.to_be_bytes().to_vec();
        bytes.extend(self.after.to_be_bytes());
        bytes.extend(self.digest.to_be_bytes());
        debug_assert!(self.owner.len() <= OWNER_MAX_BYTES, "{}", self.owner);
        push_varint(&mut bytes, self.owner.len() as u64);
        bytes.extend(self.owner.as_bytes());
        push_varint(&mut bytes, self.epoch as u64);
        push_varint(&mut bytes, self.ids.len() as u64);
        let mut last = 0;
        for id in &self.ids {
            push_varint(&mut bytes, zigzag(id.wrapping_sub(last)));
            last = *id;
        }
        let check = check(&bytes);
        bytes.extend(check);
        let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
        text.push(VERSION);
        for chunk in bytes.chunks(3) {
            let word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for place in 0..=chunk.len() {
                text.push(ALPHABET[(word >> (18 - 6 * place)) as usize & 63].into());
            }
        }
        text
    }

    /// Parses the text; `None` for anything that [`Progress::encode`] did not write.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        let bytes = from_base64(text.strip_prefix(VERSION)?)?;
        let (body, found) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if found != check(body) {
            return None;
        }
        let (before, rest) = body.split_first_chunk::<8>()?;
        let (after, rest) = rest.split_first_chunk::<8>()?;
        let (digest, mut rest) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(varint(&mut rest)?).ok()?;
        let owner;
        (owner, rest) = rest.split_at_checked(length)?;
        let owner = std::str::from_utf8(owner).ok()?.to_owned();
        let epoch = varint(&mut rest)? as i64;
        let count = varint(&mut rest)?;
        let (mut ids, mut last) = (Vec::new(), 0_i64);
        for _ in 0..count {
            last = last.wrapping_add(unzigzag(varint(&mut rest)?));
            ids.push(last);
        }
        let (before, after) = (i64::from_be_bytes(*before), i64::from_be_bytes(*after));
        let digest = u64::from_be_bytes(*digest);
        rest.is_empty().then_some(Self { owner, epoch, before, after, digest, ids })
    }
}

/// The space that is left in the metadata of one lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    left: usize,
    last: i64,
}

impl Room {
    /// Starts with all of `max_bytes` of text.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { left: (max_bytes.saturating_sub(1) / 4 * 3).saturating_sub(FRAME_BYTES), last: 0 }
    }

    /// Takes the space for `id`; false if it does not fit.
    pub(crate) fn take(&mut self, id: i64) -> bool {
        let needed = varint_len(zigzag(id.wrapping_sub(self.last)));
        let Some(left) = self.left.checked_sub(needed) else { return false };
        (self.left, self.last) = (left, id);
        true
    }
}

fn check(bytes: &[u8]) -> [u8; 4] {
    let hash = fnv1a(bytes);
    ((hash ^ hash >> 32) as u32).to_be_bytes()
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn varint_len(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

fn push_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut word = 0_u32;
        for letter in chunk {
            word = word << 6 | ALPHABET.iter().position(|known| known == letter)? as u32;
        }
        word <<= 6 * (4 - chunk.len());
        bytes.extend(&word.to_be_bytes()[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn progress_survives_its_text(owner in "[a-z.0-9]{0,100}", epoch in 0i64.., before: i64, after: i64, digest: u64, ids: Vec<i64>) {
            let progress = Progress { owner, epoch, before, after, digest, ids };
            prop_assert_eq!(Progress::decode(&progress.encode()), Some(progress));
        }

        #[test]
        fn what_room_was_taken_for_fits(max in 256usize..5000, first in 0i64.., steps: Vec<i16>) {
            let mut room = Room::new(max);
            let mut ids = Vec::new();
            let mut id = first;
            for step in std::iter::once(0).chain(steps) {
                id = id.wrapping_add(step.into());
                if !room.take(id) {
                    break;
                }
                ids.push(id);
            }
            let text = Progress { owner: "x".repeat(OWNER_MAX_BYTES), epoch: i64::MAX, before: -1, after: -1, digest: 7, ids }.encode();
            prop_assert!(text.len() <= max, "{} of {max} bytes", text.len());
        }

        #[test]
        fn a_changed_letter_is_seen(ids: Vec<u16>, at: prop::sample::Index, letter in 0usize..64) {
            let ids = ids.into_iter().map(i64::from).collect();
            let text = Progress { owner: "outbox-relay.7".to_owned(), epoch: 3, before: 1, after: 2, digest: 9, ids }.encode();
            let at = 1 + at.index(text.len() - 1);
            let mut changed = text.clone().into_bytes();
            changed[at] = ALPHABET[letter];
            let changed = String::from_utf8(changed).unwrap();
            // The last letter has unused bits.
            prop_assume!(changed != text && at + 1 < text.len());
            prop_assert_eq!(Progress::decode(&changed), None);
        }
    }

    #[test]
    fn a_batch_of_the_default_size_fits_though_it_is_all_of_one_lane() {
        let mut room = Room::new(METADATA_MAX_BYTES);
        let fitting = (1_i64 << 40..).step_by(16).take_while(|id| room.take(*id)).count();
        // RELAY_BATCH_SIZE is 2000 by default.
        assert!(fitting > 2000, "{fitting}");
    }

    #[test]
    fn other_events_under_the_same_ids_have_another_digest() {
        let batch = |last: u128| digest(&[(1, Uuid::from_u128(7)), (2, Uuid::from_u128(last))]);
        assert_eq!(batch(8), batch(8));
        assert_ne!(batch(8), batch(9));
        assert_ne!(digest(&[(1, Uuid::nil())]), digest(&[(2, Uuid::nil())]));
    }

    #[test]
    fn foreign_metadata_is_no_progress() {
        for text in ["", "1", "2", "2AAAA", "2AAAAAAAAAAAAAAAAAAAA", "{\"a\": 1}", "1\u{e9}\u{e9}\u{e9}\u{e9}"] {
            assert_eq!(Progress::decode(text), None, "{text}");
        }
    }
}
