use super::*;
use event_outbox::ledger::Fingerprint;

fn event(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// Returns two orders with two events each, events 1 to 4 in turn. Event 9 is rolled back, and event 2 is on the topic twice.
fn clean() -> Observed {
    let order = |number: u128| format!("order-{}", number % 2);
    let payload = |number: u128| format!(r#"{{"number": {number}}}"#);
    let row = |number: u128| OutboxRow {
        id: number as i64,
        event_id: event(number),
        entity_type: "order".to_owned(),
        order_id: Some(order(number)),
        event_type: "OrderPlaced".to_owned(),
        event_version: 1,
        payload: Some(payload(number)),
        status: "PUBLISHED".to_owned(),
        topic: None,
        source: None,
        correlation_id: None,
        causation_id: None,
        scheduled: false,
        due: true,
    };
    let sighting = |(offset, number): (i64, u128)| Sighting {
        topic: "order-events".to_owned(),
        partition: (number % 2) as i32,
        offset,
        event_id: Some(event(number)),
        event_type: "OrderPlaced".to_owned(),
        version: 1,
        order_id: order(number),
        at: 0,
        fingerprint: Fingerprint::from_key_value(Some(order(number).as_bytes()), Some(payload(number).as_bytes())),
    };
    Observed {
        rows: (1..=4).map(row).collect(),
        applied: (1..=4).map(|number| AppliedRow { event_id: event(number), order_id: Some(order(number)) }).collect(),
        commit_log: CommitLog { committed: (1..=4).map(event).collect(), rolled_back: vec![event(9)] },
        sightings: [(0, 1), (0, 2), (1, 3), (1, 2), (2, 4)].map(sighting).into(),
        repeated: 1,
    }
}

fn broken(change: impl Fn(&mut Observed)) -> Vec<&'static str> {
    let mut observed = clean();
    change(&mut observed);
    observed.compare().broken()
}

#[test]
fn what_agrees_on_all_sides_keeps_every_promise() {
    let reconciliation = clean().compare();
    assert!(reconciliation.is_kept(), "{reconciliation}");
    let counts: Vec<_> = reconciliation.promises.iter().map(|promise| promise.count).collect();
    assert_eq!(counts, [4, 1, 4, 1, 4, 2]);
}

#[test]
fn what_is_missing_anywhere_is_reported() {
    assert_eq!(broken(|observed| observed.sightings.truncate(4)), ["published"]);
    assert_eq!(broken(|observed| observed.rows[3].status = "PENDING".to_owned()), ["published"]);
    assert_eq!(broken(|observed| observed.commit_log.committed.push(event(5))), ["committed"]);
    assert_eq!(broken(|observed| observed.applied.truncate(3)), ["applied once"]);
}

#[test]
fn what_should_not_be_there_is_reported() {
    let twice = |observed: &mut Observed| {
        let (event_id, order_id) = (observed.applied[1].event_id, observed.applied[1].order_id.clone());
        observed.applied.push(AppliedRow { event_id, order_id });
    };
    assert_eq!(broken(twice), ["applied once"]);
    let phantom = |observed: &mut Observed| {
        let mut sighting = observed.sightings[0].clone();
        (sighting.offset, sighting.event_id) = (7, Some(event(9)));
        observed.sightings.push(sighting);
        observed.applied.push(AppliedRow { event_id: event(9), order_id: None });
    };
    assert_eq!(broken(phantom), ["rolled back", "applied once"]);
    assert_eq!(broken(|observed| observed.repeated = 0), ["duplicates seen"]);
}

#[test]
fn one_changed_byte_is_reported() {
    assert_eq!(broken(|observed| observed.rows[0].payload = Some(r#"{"number":1}"#.to_owned())), ["published"]);
}

#[test]
fn a_history_out_of_order_is_reported_wherever_it_went_wrong() {
    assert_eq!(broken(|observed| observed.applied.swap(0, 2)), ["order kept"]);
    let on_the_topic = |observed: &mut Observed| {
        (observed.sightings[0].offset, observed.sightings[2].offset) = (1, 0);
    };
    assert_eq!(broken(on_the_topic), ["order kept"]);
}
