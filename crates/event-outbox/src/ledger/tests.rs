//! Tests one history per kind of violation that must be found, and histories that are clean. `naive` checks random histories a second way,
//! `mutated` breaks clean ones in one place.

mod mutated;
mod naive;

use uuid::Uuid;

use super::*;
use crate::event::OutboxId;

const ORDER: EntityKey<'static> = EntityKey { entity_type: "order", entity_id: "17" };

fn event_id(id: i64) -> EventId {
    EventId(Uuid::from_u128(id as u128))
}

fn event(id: i64) -> Committed<'static> {
    Committed {
        id: OutboxId(id),
        event_id: event_id(id),
        entity: Some(ORDER),
        order: id,
        scheduled: false,
        fingerprint: Some(Fingerprint::from_key_value(Some(b"17"), Some(b"{}"))),
    }
}

fn record(id: i64, offset: i64) -> TopicRecord<'static> {
    TopicRecord {
        event_id: Some(event_id(id)),
        topic: "order-events",
        partition: 0,
        offset,
        fingerprint: Some(Fingerprint::from_key_value(Some(b"17"), Some(b"{}"))),
        expected_partition: None,
    }
}

/// Returns a ledger with events 1 to 3 of one order, committed and PUBLISHED.
fn three_events(rules: Rules) -> Ledger {
    let mut ledger = Ledger::new(rules);
    for id in 1..=3 {
        ledger.committed(event(id));
        ledger.status(event_id(id), RowStatus::Pending);
        ledger.status(event_id(id), RowStatus::Published);
    }
    ledger
}

/// Returns the ledger of [`three_events`] with their records in the given order.
fn delivered(ids: &[i64]) -> Ledger {
    let mut ledger = three_events(Rules::default());
    for (offset, id) in (0..).zip(ids) {
        ledger.observe(record(*id, offset));
    }
    ledger
}

/// Asserts that exactly these cases were found, and returns the report.
fn finds(ledger: Ledger, expected: &[(Finding, u64)]) -> Report {
    let report = ledger.finish();
    let found: Vec<_> = Finding::ALL
        .into_iter()
        .map(|finding| (finding, report.count(finding)))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(found, expected, "{report}");
    report
}

#[test]
fn a_history_without_fault_is_clean() {
    let report = finds(delivered(&[1, 2, 3]), &[]);
    assert!(report.is_clean());
    assert_eq!((report.committed, report.published, report.records), (3, 3, 3));
}

#[test]
fn an_empty_history_is_clean() {
    assert!(finds(Ledger::default(), &[]).is_clean());
}

#[test]
fn a_committed_event_that_is_not_on_the_topic_is_missing() {
    let report = finds(delivered(&[1, 3]), &[(Finding::Missing, 1)]);
    assert!(!report.is_clean());
    assert_eq!(report.examples[&Finding::Missing][0].id, Some(2));
}

#[test]
fn an_event_whose_status_nobody_looked_at_is_expected_on_the_topic() {
    let mut ledger = Ledger::default();
    ledger.committed(event(1));
    finds(ledger, &[(Finding::Missing, 1)]);
}

#[test]
fn an_event_that_rolled_back_is_a_phantom_on_the_topic_and_nothing_elsewhere() {
    let mut ledger = delivered(&[1, 2, 3]);
    ledger.rolled_back(event_id(4));
    ledger.rolled_back(event_id(5));
    ledger.observe(record(4, 3));
    let report = finds(ledger, &[(Finding::Phantoms, 1)]);
    assert!(!report.is_clean());
    assert_eq!(report.rolled_back, 2);
}

#[test]
fn a_record_that_nobody_committed_or_without_an_event_id_is_unknown() {
    let mut ledger = delivered(&[1, 2, 3, 9]);
    ledger.observe(TopicRecord { event_id: None, ..record(0, 4) });
    assert!(!finds(ledger, &[(Finding::Unknown, 2)]).is_clean());
}

#[test]
fn a_duplicate_is_counted_and_is_a_violation_only_beyond_the_bound() {
    assert!(finds(delivered(&[1, 2, 1, 2, 3]), &[(Finding::Duplicates, 2)]).is_clean());
    for (duplicates_allowed, clean) in [(2, true), (1, false)] {
        let mut ledger = three_events(Rules { duplicates_allowed: Some(duplicates_allowed), ..Rules::default() });
        for (offset, id) in (0..).zip([1, 2, 1, 2, 3]) {
            ledger.observe(record(id, offset));
        }
        assert_eq!(finds(ledger, &[(Finding::Duplicates, 2)]).is_clean(), clean);
    }
}

#[test]
fn a_record_read_twice_is_one_record() {
    let mut ledger = delivered(&[1, 2, 3]);
    ledger.observe(record(2, 1));
    assert_eq!(finds(ledger, &[]).records, 3);
}

#[test]
fn an_event_overtaken_by_a_later_one_is_inverted() {
    let report = finds(delivered(&[1, 3, 2]), &[(Finding::Inversions, 1)]);
    assert!(!report.is_clean());
    let example = &report.examples[&Finding::Inversions][0];
    assert_eq!((example.id, example.note.as_deref()), (Some(2), Some("after id 3")));
}

#[test]
fn only_first_records_count_for_order() {
    finds(delivered(&[1, 2, 3, 2, 3]), &[(Finding::Duplicates, 2)]);
    finds(delivered(&[1, 3, 2, 3]), &[(Finding::Duplicates, 1), (Finding::Inversions, 1)]);
}

#[test]
fn offsets_and_not_the_order_of_reading_tell_the_order() {
    let mut ledger = three_events(Rules::default());
    for id in [3, 1, 2] {
        ledger.observe(record(id, id));
    }
    finds(ledger, &[]);
}

#[test]
fn events_of_other_entities_may_overtake() {
    let mut ledger = delivered(&[1, 2]);
    ledger.committed(Committed { entity: Some(EntityKey { entity_id: "18", ..ORDER }), ..event(3) });
    ledger.committed(Committed { entity: Some(EntityKey { entity_type: "order1", entity_id: "7" }), ..event(4) });
    ledger.committed(Committed { entity: None, ..event(6) });
    ledger.committed(Committed { entity: None, ..event(5) });
    ledger.observe(TopicRecord { partition: 1, ..record(4, 0) });
    ledger.observe(TopicRecord { partition: 1, ..record(3, 1) });
    ledger.observe(TopicRecord { partition: 1, ..record(6, 2) });
    ledger.observe(TopicRecord { partition: 2, ..record(5, 0) });
    finds(ledger, &[]);
}

#[test]
fn the_order_of_commits_outweighs_that_of_ids_where_the_caller_knows_it() {
    let concurrent = |delivered: [i64; 2], orders: [i64; 2]| {
        let mut ledger = Ledger::default();
        for (id, order) in (1..).zip(orders) {
            ledger.committed(Committed { order, ..event(id) });
        }
        for (offset, id) in (0..).zip(delivered) {
            ledger.observe(record(id, offset));
        }
        ledger
    };
    finds(concurrent([2, 1], [20, 10]), &[]);
    finds(concurrent([1, 2], [20, 10]), &[(Finding::Inversions, 1)]);
    finds(concurrent([2, 1], [10, 10]), &[]);
}

#[test]
fn a_retried_row_may_come_late_but_nothing_else_may_because_of_it() {
    let mut ledger = delivered(&[1, 3, 2]);
    ledger.retried(event_id(2));
    assert!(finds(ledger, &[]).is_clean());
    let mut ledger = delivered(&[1, 3, 2]);
    ledger.retried(event_id(3));
    finds(ledger, &[(Finding::Inversions, 1)]);
}

#[test]
fn a_scheduled_row_has_no_order() {
    for scheduled in [2, 3] {
        let mut ledger = delivered(&[1, 3, 2]);
        ledger.committed(Committed { scheduled: true, ..event(scheduled) });
        finds(ledger, &[]);
    }
    let mut ledger = delivered(&[3, 2, 1]);
    ledger.committed(Committed { scheduled: true, ..event(2) });
    finds(ledger, &[(Finding::Inversions, 1)]);
}

#[test]
fn a_record_with_another_key_or_value_is_mismatched_even_if_it_is_a_duplicate() {
    for fingerprint in
        [Fingerprint::from_key_value(Some(b"17"), Some(b"{ }")), Fingerprint::from_key_value(Some(b"18"), Some(b"{}"))]
    {
        let mut ledger = delivered(&[1, 2, 3]);
        ledger.observe(TopicRecord { fingerprint: Some(fingerprint), ..record(3, 3) });
        assert!(!finds(ledger, &[(Finding::Duplicates, 1), (Finding::Mismatched, 1)]).is_clean());
    }
    let mut ledger = delivered(&[1, 2]);
    ledger.observe(TopicRecord { fingerprint: None, ..record(3, 2) });
    finds(ledger, &[]);
}

#[test]
fn fingerprints_tell_absent_from_empty_and_key_from_value() {
    let distinct = [
        Fingerprint::from_key_value(None, None),
        Fingerprint::from_key_value(Some(b""), None),
        Fingerprint::from_key_value(None, Some(b"")),
        Fingerprint::from_key_value(Some(b""), Some(b"")),
        Fingerprint::from_key_value(Some(b"ab"), Some(b"c")),
        Fingerprint::from_key_value(Some(b"a"), Some(b"bc")),
        Fingerprint::from_key_value(Some(b"abc"), None),
    ];
    for (index, one) in distinct.iter().enumerate() {
        assert!(!distinct[index + 1..].contains(one));
    }
    assert_eq!(Fingerprint::from_key_value(Some(b"ab"), Some(b"c")), distinct[4]);
}

#[test]
fn an_entity_on_two_partitions_of_a_topic_is_in_the_wrong_one_where_it_has_fewer_records() {
    let mut ledger = delivered(&[1, 2]);
    ledger.observe(TopicRecord { partition: 7, ..record(3, 0) });
    let report = finds(ledger, &[(Finding::WrongPartition, 1)]);
    assert!(!report.is_clean());
    let record = report.examples[&Finding::WrongPartition][0].record.as_ref().map(ToString::to_string);
    assert_eq!(record.as_deref(), Some("order-events[7]@0"));
}

#[test]
fn of_two_partitions_with_equally_many_records_the_lower_one_is_right() {
    let mut ledger = delivered(&[]);
    for (id, partition) in [(1, 5), (2, 2), (3, 5)] {
        ledger.observe(TopicRecord { partition, ..record(id, id) });
    }
    ledger.observe(TopicRecord { partition: 2, ..record(2, 9) });
    let report = finds(ledger, &[(Finding::Duplicates, 1), (Finding::WrongPartition, 2)]);
    let wrong = report.examples[&Finding::WrongPartition].iter().filter_map(|example| example.record.as_ref());
    assert_eq!(wrong.map(ToString::to_string).collect::<Vec<_>>(), ["order-events[5]@1", "order-events[5]@3"]);
}

#[test]
fn an_entity_on_two_topics_is_where_it_was_routed() {
    let mut ledger = delivered(&[1, 2]);
    ledger.observe(TopicRecord { partition: 7, topic: "audit", ..record(3, 0) });
    finds(ledger, &[]);
}

#[test]
fn the_callers_partition_outweighs_what_other_records_say() {
    let mut ledger = three_events(Rules::default());
    for id in 1..=3 {
        ledger.observe(TopicRecord { expected_partition: Some(1), ..record(id, id) });
    }
    finds(ledger, &[(Finding::WrongPartition, 3)]);
}

#[test]
fn a_terminal_row_that_became_pending_has_regressed() {
    for terminal in [RowStatus::Published, RowStatus::Dead] {
        let mut ledger = delivered(&[1, 2, 3]);
        for status in [terminal, RowStatus::Pending, RowStatus::Published] {
            ledger.committed(event(4));
            ledger.status(event_id(4), status);
        }
        ledger.observe(record(4, 3));
        assert!(!finds(ledger, &[(Finding::Regressed, 1)]).is_clean());
    }
}

#[test]
fn a_terminal_row_that_became_the_other_terminal_status_has_been_pending_in_between() {
    let mut ledger = delivered(&[1, 2, 3]);
    ledger.status(event_id(3), RowStatus::Dead);
    finds(ledger, &[(Finding::Regressed, 1)]);
}

#[test]
fn each_audit_entry_explains_one_return_to_pending() {
    for (returns, clean) in [(1, true), (2, false)] {
        let mut ledger = delivered(&[1, 2, 3]);
        ledger.retried(event_id(3));
        for _ in 0..returns {
            ledger.status(event_id(3), RowStatus::Pending);
            ledger.status(event_id(3), RowStatus::Published);
        }
        assert_eq!(ledger.finish().is_clean(), clean);
    }
}

#[test]
fn a_row_that_is_pending_at_the_end_is_unpublished_and_not_missing() {
    for (pending_allowed, clean) in [(false, false), (true, true)] {
        let mut ledger = Ledger::new(Rules { pending_allowed, ..Rules::default() });
        ledger.committed(event(1));
        ledger.status(event_id(1), RowStatus::Pending);
        assert_eq!(finds(ledger, &[(Finding::Unpublished, 1)]).is_clean(), clean);
    }
}

#[test]
fn a_dead_row_is_neither_missing_nor_unknown() {
    for on_topic in [false, true] {
        let mut ledger = delivered(&[1, 2, 3]);
        ledger.committed(event(4));
        ledger.status(event_id(4), RowStatus::Dead);
        if on_topic {
            ledger.observe(record(4, 3));
        }
        assert_eq!(finds(ledger, &[]).dead, 1);
    }
}

#[test]
fn a_commit_may_be_reported_after_its_record_and_outweighs_a_rollback() {
    let mut ledger = Ledger::default();
    ledger.observe(record(1, 0));
    ledger.rolled_back(event_id(1));
    ledger.committed(event(1));
    ledger.rolled_back(event_id(1));
    finds(ledger, &[]);
}

#[test]
fn a_report_keeps_twenty_examples_and_every_count() {
    let mut ledger = Ledger::default();
    (1..=30).for_each(|id| ledger.committed(event(id)));
    let report = finds(ledger, &[(Finding::Missing, 30)]);
    assert_eq!(report.examples[&Finding::Missing].len(), 20);
}

#[test]
fn json_has_the_documented_names() {
    let json = serde_json::to_string(&delivered(&[1, 3]).finish()).expect("a report is JSON");
    assert_eq!(
        json,
        concat!(
            r#"{"committed":3,"rolled_back":0,"records":2,"published":2,"dead":0,"missing":1,"phantoms":0,"unknown":0,"#,
            r#""duplicates":0,"inversions":0,"mismatched":0,"wrong_partition":0,"regressed":0,"unpublished":0,"#,
            r#""examples":{"missing":[{"event_id":"00000000-0000-0000-0000-000000000002","id":2,"entity":"order/17"}]}}"#
        )
    );
}

#[test]
fn a_report_for_people_has_a_line_per_kind_and_a_verdict() {
    let text = delivered(&[1, 2, 3]).finish().to_string();
    assert_eq!(text.lines().count(), 1 + Finding::ALL.len() + 1);
    assert!(
        text.starts_with("3 events committed, 0 rolled back, 0 dead; 3 on the topic in 3 records\nmissing "),
        "{text}"
    );
    assert!(text.ends_with("\nclean: nothing lost, nothing invented, every entity in order"), "{text}");
    let text = delivered(&[3, 2]).finish().to_string();
    let inverted = "after a later event of the entity: 00000000-0000-0000-0000-000000000002 id 2 order/17 order-events[0]@1 after id 3\n";
    assert!(text.contains(inverted), "{text}");
    assert!(text.ends_with("\nNOT CLEAN: 1 missing, 1 inversions"), "{text}");
}

#[test]
fn an_event_and_its_record_stay_light() {
    assert!(size_of::<Entry>() + size_of::<Sighting>() <= 144, "{} + {}", size_of::<Entry>(), size_of::<Sighting>());
}
