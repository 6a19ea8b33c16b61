//! Tests snapshots that agree, and every way in which they may not: one effect lost, or one too many.

use uuid::Uuid;

use super::*;
use crate::demo::order_flow::order::Line;
use crate::demo::watch::Sighting;
use event_outbox::ledger::Fingerprint;

/// Returns a snapshot with one order that succeeded, and one that was cancelled after its money was taken.
fn fine() -> Snapshot {
    let basket = |n: usize, customer: &str| Basket {
        order_id: format!("o-{n}"),
        request_id: format!("req-{n}"),
        customer: customer.to_owned(),
        lines: vec![Line { sku: "tea".to_owned(), quantity: 2 }],
        total_cents: 900,
    };
    let payment = |order: &str, customer: &str, state: &str| Payment {
        order_id: order.to_owned(),
        customer: Some(customer.to_owned()),
        cents: 900,
        state: state.to_owned(),
    };
    let mut snapshot = Snapshot {
        placed: vec![basket(1, "ana"), basket(2, "ben")],
        orders: [("o-1", "confirmed"), ("o-2", "cancelled")].map(|(id, state)| (id.into(), state.into())).into(),
        stock: vec![Stock { sku: "tea".to_owned(), delivered: 10, on_shelf: 8 }],
        reservations: vec![("o-1".to_owned(), "tea".to_owned(), 2)],
        payments: vec![payment("o-1", "ana", "taken"), payment("o-2", "ben", "refunded")],
        accounts: vec![("ana".to_owned(), 5_000, 4_100), ("ben".to_owned(), 5_000, 5_000)],
        mails: [
            ("o-1", "ana", "your order is confirmed"),
            ("o-2", "ben", "your order is cancelled: no answer in time"),
        ]
        .map(|(order, recipient, subject)| (order.into(), recipient.into(), subject.into()))
        .into(),
        ..Snapshot::default()
    };
    for (order, version) in [(1, 1), (2, 2)] {
        let placed = event(order, "OrderPlaced", version, None);
        let reserved = event(order, "StockReserved", 1, Some(placed.event_id));
        // The second event was sent again.
        for (offset, event) in [&placed, &reserved, &reserved].into_iter().enumerate() {
            snapshot.sightings.push(sighting(event, order, offset));
        }
        snapshot.events.extend([placed, reserved]);
        // The deadline is days away.
        let overdue = event(order, "OrderOverdue", 1, None);
        let overdue = OutboxRow { due: false, scheduled: true, status: "PENDING".to_owned(), ..overdue };
        snapshot.events.push(overdue);
    }
    snapshot
}

fn event(order: usize, event_type: &str, version: i32, cause: Option<Uuid>) -> OutboxRow {
    OutboxRow {
        id: if event_type == "OrderPlaced" { 1 } else { 2 },
        event_id: Uuid::new_v4(),
        entity_type: "order".to_owned(),
        order_id: Some(format!("o-{order}")),
        event_type: event_type.to_owned(),
        event_version: version,
        payload: Some("{}".to_owned()),
        status: "PUBLISHED".to_owned(),
        topic: None,
        source: None,
        correlation_id: Some(format!("req-{order}")),
        causation_id: cause.map(|cause| cause.to_string()),
        scheduled: false,
        due: true,
    }
}

/// Returns the record of an event, on the partition of its order.
fn sighting(event: &OutboxRow, order: usize, offset: usize) -> Sighting {
    let key = format!("o-{order}");
    Sighting {
        topic: "order-events".to_owned(),
        partition: i32::try_from(order).expect("a small number"),
        offset: i64::try_from(offset).expect("a small number"),
        event_id: Some(event.event_id),
        event_type: event.event_type.clone(),
        version: event.event_version,
        fingerprint: Fingerprint::from_key_value(Some(key.as_bytes()), Some(b"{}")),
        order_id: key,
        at: 0,
    }
}

/// Returns the promises that the change breaks.
fn broken(change: impl FnOnce(&mut Snapshot)) -> Vec<&'static str> {
    let mut snapshot = fine();
    change(&mut snapshot);
    reconcile(&snapshot).broken()
}

#[test]
fn a_snapshot_that_agrees_keeps_every_promise() {
    let reconciliation = reconcile(&fine());
    assert!(reconciliation.is_kept(), "{reconciliation}");
    assert_eq!(reconciliation.count("orders ended"), Some(2));
    assert_eq!(reconciliation.count("stock agrees"), Some(2));
    assert_eq!(reconciliation.count("payments agree"), Some(1));
}

#[test]
fn an_order_that_is_lost_or_open_or_invented_is_found() {
    assert!(broken(|snapshot| drop(snapshot.orders.remove("o-1"))).contains(&"orders ended"));
    assert!(broken(|snapshot| drop(snapshot.orders.insert("o-2".into(), "open".into()))).contains(&"orders ended"));
    assert_eq!(broken(|snapshot| drop(snapshot.orders.insert("o-9".into(), "cancelled".into()))), ["orders ended"]);
}

#[test]
fn stock_that_was_not_put_back_or_left_twice_is_found() {
    assert_eq!(broken(|snapshot| snapshot.stock[0].on_shelf = 6), ["stock agrees"]);
    assert_eq!(broken(|snapshot| snapshot.reservations[0].2 = 4), ["stock agrees"]);
    assert_eq!(broken(|snapshot| snapshot.reservations.clear()), ["stock agrees"]);
    let of_nobody = |snapshot: &mut Snapshot| {
        snapshot.reservations.push(("o-2".to_owned(), "tea".to_owned(), 2));
        snapshot.stock[0].on_shelf = 6;
    };
    assert_eq!(broken(of_nobody), ["stock agrees"]);
}

#[test]
fn money_that_was_not_taken_or_not_given_back_or_taken_twice_is_found() {
    assert_eq!(broken(|snapshot| snapshot.payments[0].state = "refused".to_owned()), ["payments agree"]);
    assert_eq!(broken(|snapshot| snapshot.payments[0].cents = 1), ["payments agree"]);
    assert_eq!(broken(|snapshot| snapshot.payments[1].state = "taken".to_owned()), ["payments agree"]);
    assert_eq!(broken(|snapshot| snapshot.payments[1].state = "waiting".to_owned()), ["payments agree"]);
    assert_eq!(broken(|snapshot| snapshot.accounts[0].2 = 3_200), ["payments agree"]);
    assert_eq!(broken(|snapshot| snapshot.accounts[1].2 = 4_100), ["payments agree"]);
}

#[test]
fn a_mail_that_is_lost_or_sent_twice_or_wrong_is_found() {
    assert_eq!(broken(|snapshot| drop(snapshot.mails.pop())), ["mails agree"]);
    assert_eq!(broken(|snapshot| snapshot.mails.extend_from_within(..1)), ["mails agree"]);
    assert_eq!(broken(|snapshot| snapshot.mails[0].2 = "your order is cancelled".to_owned()), ["mails agree"]);
    assert_eq!(broken(|snapshot| snapshot.mails[0].1 = "ben".to_owned()), ["mails agree"]);
}

#[test]
fn an_event_that_is_lost_or_invented_or_dead_is_found() {
    assert_eq!(broken(|snapshot| snapshot.events[0].status = "PENDING".to_owned()), ["published"]);
    assert_eq!(broken(|snapshot| drop(snapshot.sightings.remove(0))), ["published"]);
    assert_eq!(broken(|snapshot| snapshot.sightings[0].event_id = Some(Uuid::new_v4())), ["published"]);
    assert_eq!(broken(|snapshot| snapshot.sightings[0].fingerprint = Fingerprint([0; 16])), ["published"]);
    assert_eq!(broken(|snapshot| snapshot.events[0].status = "DEAD".to_owned()), ["published"]);
    assert_eq!(broken(|snapshot| snapshot.dead_letters = 1), ["published"]);
}

#[test]
fn an_event_that_is_published_before_it_is_due_is_found() {
    let early = |snapshot: &mut Snapshot| {
        let overdue = sighting(&snapshot.events[2], 1, 7);
        snapshot.sightings.push(overdue);
    };
    assert_eq!(broken(early), ["published"]);
}

#[test]
fn an_event_after_a_later_one_of_its_order_is_found() {
    assert_eq!(broken(|snapshot| snapshot.sightings[0].offset = 9), ["order kept"]);
    assert_eq!(broken(|snapshot| snapshot.sightings[0].partition = 9), ["order kept"]);
}

#[test]
fn an_event_that_cannot_be_traced_back_is_found() {
    assert_eq!(broken(|snapshot| snapshot.events[1].correlation_id = None), ["correlated"]);
    assert_eq!(broken(|snapshot| snapshot.events[1].correlation_id = Some("req-2".to_owned())), ["correlated"]);
    assert_eq!(broken(|snapshot| snapshot.events[1].causation_id = None), ["correlated"]);
}

#[test]
fn a_version_that_nobody_wrote_or_nobody_understood_is_found() {
    assert_eq!(broken(|snapshot| snapshot.events[0].event_version = 2), ["versions"]);
    assert_eq!(broken(|snapshot| snapshot.events[1].event_type = "StockReleased".to_owned()), ["versions"]);
}
