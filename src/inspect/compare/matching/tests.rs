//! Tests the comparison with random histories: two topics are written from one list, faults are injected into the right one, and the
//! comparison finds these and no others.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::inspect::compare::fact::digest;

const PARTITIONS: i32 = 4;

/// A record as the list has it, before it has an offset.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Written {
    id: u16,
    key: u8,
    partition: i32,
    value: u16,
    headers: u16,
    own: [u32; WRITERS_OWN_HEADERS],
    time: i64,
}

const WRITERS_OWN_HEADERS: usize = crate::inspect::compare::fact::WRITERS_OWN;

/// A fault at a position of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Missing,
    Extra,
    Duplicate,
    /// Exchanges the event with the next one of its key.
    Swapped,
    Value,
    Headers,
    OwnHeader,
    Key,
    Partition,
    Time,
    Reused,
}

const FAULTS: [Fault; 11] = [
    Fault::Missing,
    Fault::Extra,
    Fault::Duplicate,
    Fault::Swapped,
    Fault::Value,
    Fault::Headers,
    Fault::OwnHeader,
    Fault::Key,
    Fault::Partition,
    Fault::Time,
    Fault::Reused,
];

fn written(id: u16, key: u8) -> Written {
    let partition = i32::from(key) % PARTITIONS;
    Written { id, key, partition, value: id, headers: 0, own: [0; WRITERS_OWN_HEADERS], time: i64::from(id) * 10 }
}

/// Returns the list of events: one key in eight is missing, so that there are records without order.
fn list(keys: &[u8]) -> Vec<Written> {
    keys.iter().enumerate().map(|(id, key)| written(id as u16, *key)).collect()
}

/// Injects faults into a copy of the list, at most one per event and none next to another of the same key. Returns the copy, and how many
/// differences of each kind there are.
fn injected(list: &[Written], faults: &[(usize, Fault)]) -> (Vec<Written>, BTreeMap<Kind, u64>) {
    let mut right: Vec<Vec<Written>> = list.iter().map(|record| vec![*record]).collect();
    let (mut expected, mut touched) = (BTreeMap::new(), BTreeSet::new());
    for (at, fault) in faults {
        let at = at % list.len();
        let key = list[at].key;
        let next = (at + 1..list.len()).find(|next| list[*next].key == key);
        let previous = (0..at).rev().find(|previous| list[*previous].key == key);
        let near =
            [Some(at), next, previous, next.and_then(|next| (next + 1..list.len()).find(|n| list[*n].key == key))];
        if near.into_iter().flatten().any(|near| touched.contains(&near)) {
            continue;
        }
        let slot = &mut right[at];
        let kind = match fault {
            Fault::Missing => {
                slot.clear();
                Kind::OnlyLeft
            }
            Fault::Extra => {
                slot.push(written(10_000 + at as u16, key));
                Kind::OnlyRight
            }
            Fault::Duplicate => {
                slot.push(list[at]);
                Kind::Repeated
            }
            Fault::Reused => {
                slot.push(Written { value: 60_000, ..list[at] });
                Kind::ReusedId
            }
            Fault::Value => {
                slot[0].value = 60_000;
                Kind::Value
            }
            Fault::Headers => {
                slot[0].headers = 1;
                Kind::Headers
            }
            Fault::OwnHeader => {
                slot[0].own[2] = 7;
                Kind::Headers
            }
            Fault::Key => {
                slot[0].key = key + 100;
                Kind::Key
            }
            Fault::Partition => {
                slot[0].partition = (slot[0].partition + 1) % PARTITIONS;
                Kind::Partition
            }
            Fault::Time => {
                slot[0].time += 1_001;
                Kind::Timestamp
            }
            Fault::Swapped => {
                let Some(next) = next.filter(|_| key != 0) else { continue };
                right.swap(at, next);
                touched.insert(next);
                Kind::Order
            }
        };
        touched.insert(at);
        *expected.entry(kind).or_default() += 1;
    }
    (right.into_iter().flatten().collect(), expected)
}

/// Gives the records offsets, and encodes them.
fn facts(side: Side, records: &[Written], late_from: usize) -> Vec<[u8; FACT_BYTES]> {
    let mut offsets = BTreeMap::new();
    let fact = |(index, record): (usize, &Written)| {
        let offset = offsets.entry(record.partition).or_insert(0_i64);
        *offset += 3;
        let number = |number: u16| digest(Some(&number.to_be_bytes()));
        let fact = RecordFact {
            side,
            at: At { partition: record.partition, offset: *offset },
            late: index >= late_from,
            key: (record.key > 0).then(|| number(record.key.into())),
            value: number(record.value),
            headers: number(record.headers),
            writers_own: record.own,
            time: Some(record.time),
        };
        fact.encode(number(record.id))
    };
    records.iter().enumerate().map(fact).collect()
}

fn compared(rules: Rules, sides: [Vec<[u8; FACT_BYTES]>; 2]) -> Counts {
    let mut sorter = Sorter::default();
    sides.iter().flatten().for_each(|entry| sorter.push(*entry).expect("a temporary file"));
    Comparison::new(rules).run(sorter, || {}).expect("a temporary file")
}

fn rules() -> Rules {
    Rules { ignored: Vec::new(), timestamp_ms: Some(1_000), left_out: LeftOut::Nothing }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_injected_differences_are_found_and_no_others(
        keys in prop::collection::vec(0..8_u8, 1..60),
        faults in prop::collection::vec((0..60_usize, prop::sample::select(FAULTS.to_vec())), 0..8),
    ) {
        let mut left = list(&keys);
        left.iter_mut().for_each(|record| record.own[2] = 5);
        let (right, expected) = injected(&left, &faults);
        let counts = compared(rules(), [facts(Side::Left, &left, usize::MAX), facts(Side::Right, &right, usize::MAX)]);
        prop_assert_eq!(&counts.found, &expected);
        let missing = expected.get(&Kind::OnlyLeft).copied().unwrap_or(0);
        prop_assert_eq!(counts.matched, left.len() as u64 - missing);
        for (kind, count) in &expected {
            prop_assert_eq!(counts.examples[kind].len() as u64, (*count).min(MOST_EXAMPLES as u64));
        }
        // The other way round, the same is found with the sides exchanged.
        let back = compared(rules(), [facts(Side::Left, &right, usize::MAX), facts(Side::Right, &left, usize::MAX)]);
        let exchanged = |kind: Kind| match kind {
            Kind::OnlyLeft => Kind::OnlyRight,
            Kind::OnlyRight => Kind::OnlyLeft,
            other => other,
        };

        let expected: BTreeMap<_, _> = expected.into_iter().map(|(kind, count)| (exchanged(kind), count)).collect();
        prop_assert_eq!(back.found, expected);
    }

    #[test]
    fn records_behind_the_end_complete_events_and_open_none(
        keys in prop::collection::vec(0..8_u8, 2..60),
        ends in (0..60_usize, 0..60_usize),
    ) {
        let records = list(&keys);
        let (left, right) = (ends.0.min(records.len()), ends.1.min(records.len()));
        let counts = compared(rules(), [facts(Side::Left, &records, left), facts(Side::Right, &records, right)]);
        prop_assert_eq!(&counts.found, &BTreeMap::new());
        prop_assert_eq!(counts.matched, left.max(right) as u64);
    }

    #[test]
    fn only_what_both_topics_cover_is_compared_with_overlap(
        keys in prop::collection::vec(0..8_u8, 1..60),
        cut in (0..60_usize, 0..60_usize),
        hole in 0..60_usize,
    ) {
        let records = list(&keys);
        let (from, until) = (cut.0.min(cut.1).min(records.len()), cut.0.max(cut.1).min(records.len()));
        let mut right = records[from..until].to_vec();
        let removed = (hole < right.len()).then(|| right.remove(hole));
        // The hole is inside if the right topic has a record before and one after it in its partition.
        let is_inside = removed.is_some_and(|removed| {
            let same = |record: &&Written| record.partition == removed.partition;
            right.iter().filter(same).any(|record| record.id < removed.id)
                && right.iter().filter(same).any(|record| record.id > removed.id)
        });
        let overlap = Rules { left_out: LeftOut::BeforeAndAfter, ..rules() };
        let sides = || [facts(Side::Left, &records, usize::MAX), facts(Side::Right, &right, usize::MAX)];
        let counts = compared(overlap, sides());
        prop_assert_eq!(counts.count(Kind::OnlyLeft), u64::from(is_inside));
        prop_assert_eq!(counts.count(Kind::OnlyRight), 0);
        let whole = compared(rules(), sides());
        prop_assert_eq!(whole.count(Kind::OnlyLeft), (records.len() - right.len()) as u64);
        let [left, _] = counts.sides;
        prop_assert_eq!(left.before + left.after + u64::from(is_inside), whole.count(Kind::OnlyLeft));
    }
}

#[test]
fn a_part_that_is_ignored_is_no_difference() {
    let left = list(&[1, 1, 2]);
    let mut right = left.clone();
    right[0] = Written { key: 9, value: 9, headers: 9, partition: 3, ..right[0] };
    right.push(right[2]);
    let all = [Kind::Key, Kind::Value, Kind::Headers, Kind::Partition, Kind::Repeated];
    let sides = || [facts(Side::Left, &left, usize::MAX), facts(Side::Right, &right, usize::MAX)];
    let found = compared(rules(), sides()).found;
    assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), all.into());
    let counts = compared(Rules { ignored: all.to_vec(), ..rules() }, sides());
    assert!(counts.found.is_empty() && counts.sides[1].repeated == 1, "{counts:?}");
}

#[test]
fn a_header_of_one_writer_is_no_difference_where_the_other_lacks_it() {
    let left = list(&[1]);
    let mut right = left.clone();
    right[0].own = [1, 2, 3, 4, 5];
    let counts = compared(rules(), [facts(Side::Left, &left, usize::MAX), facts(Side::Right, &right, usize::MAX)]);
    assert!(counts.found.is_empty(), "{counts:?}");
}

/// Returns the events that only the left topic has, for each rule.
fn only_left(left: &[Written], right: &[Written]) -> [u64; 3] {
    [LeftOut::Nothing, LeftOut::Before, LeftOut::BeforeAndAfter].map(|left_out| {
        let sides = [facts(Side::Left, left, usize::MAX), facts(Side::Right, right, usize::MAX)];
        let counts = compared(Rules { left_out, ..rules() }, sides);
        assert_eq!(counts.count(Kind::OnlyRight), 0);
        counts.count(Kind::OnlyLeft)
    })
}

#[test]
fn a_topic_that_is_followed_must_not_end_before_the_other_one() {
    // The right topic begins with the third event of the key, and ends with the fifth.
    let left = list(&[1; 8]);
    assert_eq!(only_left(&left, &left[2..5]), [5, 3, 0]);
}

#[test]
fn a_partition_that_the_other_topic_never_had_is_a_difference_once_that_topic_had_begun() {
    // Key 2 is in another partition: one event of it comes before the right topic begins with key 1, and two come later.
    let left = list(&[2, 1, 2, 1, 2]);
    let right: Vec<_> = left.iter().copied().filter(|record| record.key == 1).collect();
    assert_eq!(only_left(&left, &right), [3, 2, 0]);
    // Key 1 began first. What came before it is no difference.
    let left = list(&[2, 2, 1, 1]);
    assert_eq!(only_left(&left, &left[2..]), [2, 0, 0]);
}

#[test]
fn a_partition_in_which_the_topics_have_nothing_in_common_is_a_difference() {
    let left = list(&[1, 2, 2]);
    let mut right = left.clone();
    right[1..].iter_mut().for_each(|record| record.id += 100);
    let sides = || [facts(Side::Left, &left, usize::MAX), facts(Side::Right, &right, usize::MAX)];
    for left_out in [LeftOut::Before, LeftOut::BeforeAndAfter] {
        let found = compared(Rules { left_out, ..rules() }, sides()).found;
        assert_eq!(found, [(Kind::OnlyLeft, 2), (Kind::OnlyRight, 2)].into());
        // Where partitions are not compared, those of one number are not the same.
        let ignored = vec![Kind::Partition];
        let found = compared(Rules { left_out, ignored, ..rules() }, sides()).found;
        assert_eq!(found.is_empty(), left_out == LeftOut::BeforeAndAfter, "{found:?}");
    }
}
