//! Checks that stock, payments and mails agree with the orders, and the topics with the outboxes. Does no I/O.

use std::collections::{BTreeMap, HashMap, HashSet};

use indicatif::HumanCount;

use super::order::Basket;
use super::snapshot::{Payment, Snapshot, Stock};
use crate::demo::outbox_row::{self, OutboxRow};
use crate::demo::reconciliation::{Promise, Reconciliation, faults};
use event_outbox::ledger::{Finding, Report};

/// Compares the tables and topics of a snapshot.
pub(super) fn reconcile(snapshot: &Snapshot) -> Reconciliation {
    let ledger = ledger(snapshot);
    let promises = vec![
        ended(snapshot),
        stock(snapshot),
        payments(snapshot),
        mails(snapshot),
        published(snapshot, &ledger),
        order_kept(snapshot, &ledger),
        correlated(snapshot),
        versions(snapshot),
    ];
    Reconciliation { promises, ledger, ..Reconciliation::default() }
}

/// Builds a promise from numbers of cases.
fn promise(name: &'static str, count: usize, words: String, faults: &[(usize, &str)]) -> Promise {
    let faults: Vec<(u64, &str)> = faults.iter().map(|(count, words)| (*count as u64, *words)).collect();
    Promise::new(name, count as u64, words, &faults)
}

impl Snapshot {
    fn placed_in(&self, state: &str) -> impl Iterator<Item = &Basket> {
        let state = state.to_owned();
        self.placed.iter().filter(move |basket| self.orders.get(&basket.order_id) == Some(&state))
    }

    fn ended(&self) -> impl Iterator<Item = &Basket> {
        self.placed_in("confirmed").chain(self.placed_in("cancelled"))
    }
}

fn ended(snapshot: &Snapshot) -> Promise {
    let (confirmed, cancelled) = (snapshot.placed_in("confirmed").count(), snapshot.placed_in("cancelled").count());
    let open = snapshot.placed_in("open").count();
    let lost = snapshot.placed.iter().filter(|basket| !snapshot.orders.contains_key(&basket.order_id)).count();
    let unknown = (snapshot.orders.len() + lost).saturating_sub(snapshot.placed.len());
    let words = format!("of {}: {confirmed} confirmed, {cancelled} cancelled", snapshot.placed.len());
    let faults = [(open, "still open"), (lost, "lost"), (unknown, "that nobody has placed")];
    promise("orders ended", confirmed + cancelled, words, &faults)
}

/// Checks that the goods missing from the stock are set aside, and that exactly the goods of confirmed orders are set aside.
fn stock(snapshot: &Snapshot) -> Promise {
    let mut wanted: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for basket in snapshot.placed_in("confirmed") {
        for line in &basket.lines {
            *wanted.entry((&basket.order_id, &line.sku)).or_default() += line.quantity;
        }
    }
    let mut set_aside: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for (order_id, sku, quantity) in &snapshot.reservations {
        *set_aside.entry((order_id, sku)).or_default() += quantity;
    }
    let missing = wanted.iter().filter(|(line, quantity)| set_aside.get(*line) != Some(quantity)).count();
    let kept_back = set_aside.keys().filter(|line| !wanted.contains_key(*line)).count();
    let gone = |stock: &&Stock| {
        let aside: i64 = set_aside.iter().filter(|((_, sku), _)| *sku == stock.sku).map(|(_, quantity)| quantity).sum();
        stock.delivered - stock.on_shelf != aside
    };
    let units: i64 = set_aside.values().sum();
    let words = format!("units left the shelves, for {} lines of confirmed orders", wanted.len());
    let faults = [
        (missing, "lines of confirmed orders not set aside as ordered"),
        (kept_back, "lines set aside for nobody"),
        (snapshot.stock.iter().filter(gone).count(), "articles with another number on the shelf"),
    ];
    promise("stock agrees", usize::try_from(units).unwrap_or(0), words, &faults)
}

/// Checks that money was taken only for confirmed orders, once, and in the right amount.
fn payments(snapshot: &Snapshot) -> Promise {
    let taken: HashMap<&str, &Payment> = snapshot
        .payments
        .iter()
        .filter(|payment| payment.state == "taken")
        .map(|payment| (payment.order_id.as_str(), payment))
        .collect();
    let is_paid = |basket: &&Basket| {
        taken.get(basket.order_id.as_str()).is_some_and(|payment| {
            payment.cents == basket.total_cents && payment.customer.as_ref() == Some(&basket.customer)
        })
    };
    let confirmed: HashSet<&str> = snapshot.placed_in("confirmed").map(|basket| basket.order_id.as_str()).collect();
    let unpaid = snapshot.placed_in("confirmed").filter(|basket| !is_paid(basket)).count();
    let kept = taken.keys().filter(|order| !confirmed.contains(*order)).count();
    let waiting = snapshot.payments.iter().filter(|payment| payment.state == "waiting").count();
    let differs = |(customer, deposited, cents): &&(String, i64, i64)| {
        let spent: i64 = taken
            .values()
            .filter(|payment| payment.customer.as_ref() == Some(customer))
            .map(|payment| payment.cents)
            .sum();
        deposited - cents != spent
    };
    let refunded = snapshot.payments.iter().filter(|payment| payment.state == "refunded").count();
    let cents: i64 = taken.values().map(|payment| payment.cents).sum();
    let words = format!("taken, {}.{:02} in all; {refunded} refunded", cents / 100, cents % 100);
    let faults = [
        (unpaid, "confirmed orders not paid as they cost"),
        (kept, "taken for orders that are not confirmed"),
        (waiting, "still waiting"),
        (snapshot.accounts.iter().filter(differs).count(), "accounts with another sum"),
    ];
    promise("payments agree", taken.len(), words, &faults)
}

/// Checks that each order has one mail, to its customer, with the order's outcome.
fn mails(snapshot: &Snapshot) -> Promise {
    let of = |basket: &Basket| snapshot.mails.iter().filter(|(order, ..)| *order == basket.order_id).count();
    let fits = |basket: &&Basket| {
        let state = snapshot.orders.get(&basket.order_id);
        snapshot.mails.iter().any(|(order, recipient, subject)| {
            *order == basket.order_id
                && *recipient == basket.customer
                && state.is_some_and(|state| subject.contains(state.as_str()))
        })
    };
    let placed: HashSet<&str> = snapshot.placed.iter().map(|basket| basket.order_id.as_str()).collect();
    let faults = [
        (snapshot.ended().filter(|basket| !fits(basket)).count(), "customers not told how their order ended"),
        (snapshot.placed.iter().filter(|basket| of(basket) > 1).count(), "customers told more than once"),
        (snapshot.mails.iter().filter(|(order, ..)| !placed.contains(order.as_str())).count(), "about no order"),
    ];
    promise("mails agree", snapshot.mails.len(), "sent, one per order".to_owned(), &faults)
}

fn order_of(event: &OutboxRow) -> &str {
    event.order_id.as_deref().unwrap_or_default()
}

/// Compares the outboxes with the topics. An event that is not due counts only if it is on a topic, where it would be too early.
fn ledger(snapshot: &Snapshot) -> Report {
    let seen: HashSet<_> = snapshot.sightings.iter().filter_map(|sighting| sighting.event_id).collect();
    let rows = snapshot.events.iter().filter(|event| event.due || seen.contains(&event.event_id));
    outbox_row::ledger(rows, &snapshot.sightings).finish()
}

/// Checks that the outboxes and the topics have the same events, byte for byte.
fn published(snapshot: &Snapshot, ledger: &Report) -> Promise {
    let mut words = "events of four outboxes".to_owned();
    // Every order has a deadline, an event that is scheduled. Those of the last orders may still wait when everything else has ended.
    let scheduled = snapshot.events.iter().filter(|event| !event.due).count();
    if scheduled > 0 {
        words += &format!(", {scheduled} more are deadlines that are not due yet");
    }
    if ledger.duplicates > 0 {
        words += &format!(", {} were sent again after a kill", HumanCount(ledger.duplicates));
    }
    let findings = [
        Finding::Missing,
        Finding::Unpublished,
        Finding::Phantoms,
        Finding::Unknown,
        Finding::Mismatched,
        Finding::Regressed,
    ];
    let dead = [(ledger.dead, "rows that are DEAD"), (snapshot.dead_letters, "dead letters")];
    let faults: Vec<_> = faults(ledger, findings).into_iter().chain(dead).collect();
    Promise::new("published", ledger.published, words, &faults).if_kept(", byte for byte as Postgres prints them")
}

/// Checks that the events of each order were published in the order of their commits.
fn order_kept(snapshot: &Snapshot, ledger: &Report) -> Promise {
    let words = "orders with the events of each service in order";
    let faults = faults(ledger, [Finding::Inversions, Finding::WrongPartition]);
    Promise::new("order kept", snapshot.placed.len() as u64, words, &faults)
}

/// Checks that every event can be traced back to the request that placed its order.
fn correlated(snapshot: &Snapshot) -> Promise {
    let requests: HashMap<&str, &str> =
        snapshot.placed.iter().map(|basket| (basket.order_id.as_str(), basket.request_id.as_str())).collect();
    let of_order: HashMap<String, &str> =
        snapshot.events.iter().map(|event| (event.event_id.to_string(), order_of(event))).collect();
    let astray = |event: &&OutboxRow| {
        event.correlation_id.is_none() || requests.get(order_of(event)).copied() != event.correlation_id.as_deref()
    };
    let uncaused = |event: &&OutboxRow| {
        let first = matches!(event.event_type.as_str(), "OrderPlaced" | "OrderOverdue");
        let cause = event.causation_id.as_ref().and_then(|cause| of_order.get(cause));
        !first && cause.copied() != Some(order_of(event))
    };
    let faults = [
        (snapshot.events.iter().filter(astray).count(), "without the correlation id of their order's request"),
        (snapshot.events.iter().filter(uncaused).count(), "whose cause is no event of their order"),
    ];
    let words = "events, each traced back to its order's request".to_owned();
    promise("correlated", snapshot.events.len(), words, &faults)
}

/// Checks that both versions of `OrderPlaced` were written and handled.
fn versions(snapshot: &Snapshot) -> Promise {
    let placed = |version| {
        let of_version = move |event: &&OutboxRow| event.event_type == "OrderPlaced" && event.event_version == version;
        snapshot.events.iter().filter(of_version)
    };
    let answered: HashSet<&str> = snapshot
        .events
        .iter()
        .filter(|event| matches!(event.event_type.as_str(), "StockReserved" | "StockRefused"))
        .map(order_of)
        .collect();
    let unread = |version| placed(version).filter(|event| !answered.contains(order_of(event))).count();
    let (one, two) = (placed(1).count(), placed(2).count());
    let absent = usize::from(one == 0) + usize::from(two == 0);
    let faults = [
        (absent, "versions that nobody wrote"),
        (unread(1), "of version 1 without an answer"),
        (unread(2), "of version 2 without an answer"),
    ];
    promise("versions", one + two, format!("orders placed: {one} by version 1, {two} by version 2"), &faults)
}

#[cfg(test)]
mod tests;
