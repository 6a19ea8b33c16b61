//! Tests the comparison against the ledger, which keeps everything in memory, on random histories, and the cases of live systems only.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use event_outbox::event::OutboxId;
use event_outbox::ledger::{Committed, EntityKey, Fingerprint, Ledger, Rules, TopicRecord};

const TOPIC: &str = "order-events";
const PARTITIONS: i32 = 3;
const BEGAN: i64 = 1_000_000;

#[derive(Debug, Clone)]
struct Row {
    entity: Option<u8>,
    status: RowStatus,
    scheduled: bool,
    audited: bool,
}

#[derive(Debug, Clone)]
struct Delivery {
    /// The index of the record's row. An index beyond the rows means a record without a row.
    event: usize,
    partition: i32,
    mismatched: bool,
}

fn row() -> impl Strategy<Value = Row> {
    let status =
        prop_oneof![1 => Just(RowStatus::Pending), 4 => Just(RowStatus::Published), 1 => Just(RowStatus::Dead)];
    (prop::option::weighted(0.9, 0..3_u8), status, prop::bool::weighted(0.1), prop::bool::weighted(0.1))
        .prop_map(|(entity, status, scheduled, audited)| Row { entity, status, scheduled, audited })
}

fn history() -> impl Strategy<Value = (Vec<Row>, Vec<Delivery>)> {
    prop::collection::vec(row(), 0..12).prop_flat_map(|rows| {
        let delivery = (0..rows.len() + 2, 0..PARTITIONS, prop::bool::weighted(0.1))
            .prop_map(|(event, partition, mismatched)| Delivery { event, partition, mismatched });
        (Just(rows), prop::collection::vec(delivery, 0..32))
    })
}

fn scope() -> Scope {
    Scope {
        upto: 1000,
        began: BEGAN,
        since: None,
        expect_pending: false,
        horizon: None,
        partitioner: Partitioner::Murmur2,
        topics: vec![TopicScope { name: TOPIC.to_owned(), partitions: PARTITIONS, ..TopicScope::default() }],
    }
}

fn event_id(index: usize) -> EventId {
    // The event ids are deterministic, but in another order than the row ids.
    EventId(Uuid::from_u128((index as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834)))
}

/// Returns a stand-in for murmur2 of the entity's id. Its partition is the entity's number.
fn key_hash(entity: Option<u8>) -> Option<u32> {
    entity.map(u32::from)
}

fn row_fact(index: usize, row: &Row) -> RowFact {
    RowFact {
        id: index as i64 + 1,
        topic: 0,
        status: row.status,
        scheduled: row.scheduled,
        outside: false,
        fingerprint: Some(Fingerprint([1; 16])),
        entity: row.entity.map(u128::from),
        key_hash: key_hash(row.entity),
        partition: None,
        published_at: 0,
    }
}

fn record_fact(partition: i32, offset: usize) -> RecordFact {
    RecordFact {
        topic: 0,
        partition,
        offset: offset as i64,
        fingerprint: Some(Fingerprint([1; 16])),
        sequence: None,
        key_hash: None,
        time: Some(5),
        resent: None,
    }
}

/// Runs both rounds of the comparison, as `verify` does.
fn compare(scope: &Scope, facts: Vec<(EventId, Fact)>) -> (Report, Tolerated) {
    let sorted = |facts: Vec<(EventId, Fact)>| {
        let mut sorter = Sorter::<FACT_BYTES>::default();
        facts.iter().for_each(|(event, fact)| sorter.push(fact.encode(*event)).expect("a temporary file"));
        sorter.sorted().expect("a temporary file")
    };
    let rules = Rules { pending_allowed: true, ..Rules::default() };
    let mut comparison = Comparison::new(scope, Report { rules, ..Report::default() });
    let mut first = sorted(facts);
    while let Some(entry) = first.next().expect("a temporary file") {
        let (event, fact) = Fact::decode(&entry);
        comparison.take(event, fact).expect("a temporary file");
    }
    let unmatched = comparison.second_round().expect("a temporary file");
    let mut second = unmatched.facts.sorted().expect("a temporary file");
    while let Some(entry) = second.next().expect("a temporary file") {
        let (event, fact) = Fact::decode(&entry);
        comparison.take(event, fact).expect("a temporary file");
    }
    let (mut report, tolerated, steps) = comparison.end();
    order(scope, steps, &mut report).expect("a temporary file");
    (report, tolerated)
}

fn published(entity: u8) -> Row {
    Row { entity: Some(entity), status: RowStatus::Published, scheduled: false, audited: false }
}

proptest! {
    #[test]
    fn the_stream_finds_what_the_ledger_finds((rows, deliveries) in history()) {
        let rules = Rules { pending_allowed: true, ..Rules::default() };
        let mut ledger = Ledger::new(rules);
        let mut facts = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let event = event_id(index);
            let entity_id = row.entity.map(|entity| entity.to_string());
            ledger.committed(Committed {
                id: OutboxId(index as i64 + 1),
                event_id: event,
                entity: entity_id.as_deref().map(|entity_id| EntityKey { entity_type: "order", entity_id }),
                order: index as i64 + 1,
                scheduled: row.scheduled,
                fingerprint: Some(Fingerprint([1; 16])),
            });
            ledger.status(event, row.status);
            facts.push((event, Fact::Row(row_fact(index, row))));
            if row.audited {
                ledger.retried(event);
                facts.push((event, Fact::Audit));
            }
        }
        for (offset, delivery) in deliveries.iter().enumerate() {
            let entity = rows.get(delivery.event).and_then(|row| row.entity);
            let fingerprint = Some(Fingerprint([if delivery.mismatched { 2 } else { 1 }; 16]));
            ledger.observe(TopicRecord {
                event_id: Some(event_id(delivery.event)),
                topic: TOPIC,
                partition: delivery.partition,
                offset: offset as i64,
                fingerprint,
                expected_partition: key_hash(entity).map(|hash| partition(hash, PARTITIONS)),
            });
            let record = RecordFact { fingerprint, key_hash: key_hash(entity), ..record_fact(delivery.partition, offset) };
            facts.push((event_id(delivery.event), Fact::Record(record)));
        }
        // The result must not depend on the order in which the two sides are read.
        facts.reverse();
        let (found, _) = compare(&scope(), facts);
        let expected = ledger.finish();
        // Keyless rows on one partition differ only in wrong_partition, for which the ledger has no rule either.
        for finding in Finding::ALL {
            prop_assert_eq!(found.count(finding), expected.count(finding), "{:?} in {}\n{}", finding, found, expected);
        }
        prop_assert_eq!((found.committed, found.published, found.records), (expected.committed, expected.published, expected.records));
    }
}

#[test]
fn a_record_whose_row_retention_may_have_deleted_is_not_unknown() {
    let horizon = Horizon { lowest_id: 50, oldest: 700 };
    let scope = Scope { horizon: Some(horizon), ..scope() };
    let unmatched = |sequence, time| (event_id(sequence as usize), record(sequence, time));
    fn record(sequence: i64, time: i64) -> Fact {
        Fact::Record(RecordFact { sequence: Some(sequence), time: Some(time), ..record_fact(0, sequence as usize) })
    }
    let facts = vec![unmatched(49, 900), unmatched(60, 699), unmatched(61, 700), unmatched(1001, 900)];
    let (report, tolerated) = compare(&scope, facts.clone());
    assert_eq!((tolerated.retired, report.unknown, tolerated.after_start), (2, 1, 1), "{report}");
    let (report, tolerated) = compare(&Scope { horizon: None, ..scope }, facts);
    assert_eq!((tolerated.retired, report.unknown), (0, 3), "{report}");
}

#[test]
fn an_event_whose_partition_lost_its_beginning_is_missing_only_if_it_was_published_later() {
    let mut scope = scope();
    scope.topics[0].truncated.insert(1, 500);
    let row = |index, entity, published_at| {
        (event_id(index), Fact::Row(RowFact { published_at, ..row_fact(index, &published(entity)) }))
    };
    let facts = vec![row(0, 1, 500), row(1, 1, 501), row(2, 2, 100)];
    let (report, tolerated) = compare(&scope, facts.clone());
    assert_eq!((tolerated.expired, report.missing), (1, 2), "{report}");
    scope.topics[0].compacted = true;
    let (report, tolerated) = compare(&scope, facts);
    assert_eq!((tolerated.expired, report.missing), (3, 0), "{report}");
}

#[test]
fn rows_of_a_system_that_marks_none_are_expected_if_the_user_says_so() {
    let pending = Row { status: RowStatus::Pending, ..published(0) };
    let facts = vec![(event_id(0), Fact::Row(row_fact(0, &pending)))];
    assert_eq!(compare(&scope(), facts.clone()).0.missing, 0);
    assert_eq!(compare(&Scope { expect_pending: true, ..scope() }, facts).0.missing, 1);
}

#[test]
fn without_a_known_hash_an_entity_has_one_partition_all_the_same() {
    let scope = Scope { partitioner: Partitioner::Any, ..scope() };
    let mut facts = Vec::new();
    for (index, partition) in [2, 2, 0].into_iter().enumerate() {
        facts.push((event_id(index), Fact::Row(row_fact(index, &published(1)))));
        facts.push((event_id(index), Fact::Record(record_fact(partition, index))));
    }
    let (report, _) = compare(&scope, facts);
    assert_eq!((report.wrong_partition, report.inversions), (1, 0), "{report}");
}

#[test]
fn a_record_on_a_topic_its_row_is_not_routed_to_is_reported_with_the_right_one() {
    let mut scope = scope();
    scope.topics.push(TopicScope { name: "other".to_owned(), partitions: 1, ..TopicScope::default() });
    let record = RecordFact { topic: 1, ..record_fact(0, 0) };
    let facts = vec![(event_id(0), Fact::Row(row_fact(0, &published(0)))), (event_id(0), Fact::Record(record))];
    let (report, _) = compare(&scope, facts);
    assert_eq!((report.unknown, report.missing), (1, 1), "{report}");
    assert!(report.to_string().contains("routed to order-events"), "{report}");
}
