//! Whether stock, payments and mails agree with the orders, and the topics with the outboxes. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::books::{Books, Event, Payment, Stock};
use super::order::Basket;
use crate::demo::balance::{Promise, listed};
use crate::demo::output::grouped;

/// How an order flow ended. As JSON: [`OrderBalance::to_json`].
#[derive(Debug, Clone, Default)]
pub struct OrderBalance {
    /// One per question, in the order in which an order meets them.
    pub promises: Vec<Promise>,
    /// Processes that were killed with SIGKILL.
    pub kills: u64,
    /// From the start to the end.
    pub elapsed: Duration,
}

impl OrderBalance {
    /// Compares.
    pub(super) fn of(books: &Books) -> Self {
        let promises = vec![
            ended(books),
            stock(books),
            payments(books),
            mails(books),
            published(books),
            correlated(books),
            versions(books),
        ];
        Self { promises, ..Self::default() }
    }

    /// True if every promise was kept.
    pub fn is_kept(&self) -> bool {
        self.promises.iter().all(|promise| promise.kept)
    }

    /// The number that goes with a promise.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.promises.iter().find(|promise| promise.name == name).map(|promise| promise.count)
    }

    /// For programs: `kept`, the number of each promise by its name (spaces as `_`), `kills`, `elapsed_ms` and the `promises`.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "kept": self.is_kept(),
            "kills": self.kills,
            "elapsed_ms": u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
        });
        for promise in &self.promises {
            object[promise.name.replace(' ', "_")] = json!(promise.count);
        }
        object["promises"] = json!(self.promises);
        object
    }
}

impl fmt::Display for OrderBalance {
    /// A line per promise, and the verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for promise in &self.promises {
            writeln!(f, "{promise}")?;
        }
        let verdict = if self.is_kept() { "Everything agrees" } else { "THE BOOKS DO NOT AGREE" };
        let processes = if self.kills == 1 { "process" } else { "processes" };
        let seconds = self.elapsed.as_secs_f64();
        writeln!(f, "\n{verdict}, with {} {processes} killed with SIGKILL, in {seconds:.1} seconds.", self.kills)
    }
}

/// A promise that is kept when none of the faults occurred.
fn promise(name: &'static str, count: usize, words: String, faults: &[(usize, &str)]) -> Promise {
    let counts: Vec<(u64, &str)> = faults.iter().map(|(count, words)| (*count as u64, *words)).collect();
    let faults = listed(&counts);
    let words = match &faults {
        Some(faults) => format!("{words}; {faults}"),
        None => words,
    };
    Promise { name, kept: faults.is_none(), count: count as u64, words }
}

impl Books {
    fn placed_in(&self, state: &str) -> impl Iterator<Item = &Basket> {
        let state = state.to_owned();
        self.placed.iter().filter(move |basket| self.orders.get(&basket.order_id) == Some(&state))
    }

    fn ended(&self) -> impl Iterator<Item = &Basket> {
        self.placed_in("confirmed").chain(self.placed_in("cancelled"))
    }
}

fn ended(books: &Books) -> Promise {
    let (confirmed, cancelled) = (books.placed_in("confirmed").count(), books.placed_in("cancelled").count());
    let open = books.placed_in("open").count();
    let lost = books.placed.iter().filter(|basket| !books.orders.contains_key(&basket.order_id)).count();
    let unknown = (books.orders.len() + lost).saturating_sub(books.placed.len());
    let words = format!("of {}: {confirmed} confirmed, {cancelled} cancelled", books.placed.len());
    let faults = [(open, "still open"), (lost, "lost"), (unknown, "that nobody has placed")];
    promise("orders ended", confirmed + cancelled, words, &faults)
}

/// What left the shelf is set aside, and set aside is what confirmed orders asked for: no more, no less.
fn stock(books: &Books) -> Promise {
    let mut wanted: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for basket in books.placed_in("confirmed") {
        for line in &basket.lines {
            *wanted.entry((&basket.order_id, &line.sku)).or_default() += line.quantity;
        }
    }
    let mut set_aside: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for (order_id, sku, quantity) in &books.reservations {
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
        (books.stock.iter().filter(gone).count(), "articles with another number on the shelf"),
    ];
    promise("stock agrees", usize::try_from(units).unwrap_or(0), words, &faults)
}

/// Money was taken for confirmed orders alone, once, and as much as they cost.
fn payments(books: &Books) -> Promise {
    let taken: HashMap<&str, &Payment> = books
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
    let confirmed: HashSet<&str> = books.placed_in("confirmed").map(|basket| basket.order_id.as_str()).collect();
    let unpaid = books.placed_in("confirmed").filter(|basket| !is_paid(basket)).count();
    let kept = taken.keys().filter(|order| !confirmed.contains(*order)).count();
    let waiting = books.payments.iter().filter(|payment| payment.state == "waiting").count();
    let differs = |(customer, deposited, cents): &&(String, i64, i64)| {
        let spent: i64 = taken
            .values()
            .filter(|payment| payment.customer.as_ref() == Some(customer))
            .map(|payment| payment.cents)
            .sum();
        deposited - cents != spent
    };
    let refunded = books.payments.iter().filter(|payment| payment.state == "refunded").count();
    let cents: i64 = taken.values().map(|payment| payment.cents).sum();
    let words = format!("taken, {}.{:02} in all; {refunded} refunded", cents / 100, cents % 100);
    let faults = [
        (unpaid, "confirmed orders not paid as they cost"),
        (kept, "taken for orders that are not confirmed"),
        (waiting, "still waiting"),
        (books.accounts.iter().filter(differs).count(), "accounts with another sum"),
    ];
    promise("payments agree", taken.len(), words, &faults)
}

/// One mail per order, to its customer, that says how it ended.
fn mails(books: &Books) -> Promise {
    let of = |basket: &Basket| books.mails.iter().filter(|(order, ..)| *order == basket.order_id).count();
    let fits = |basket: &&Basket| {
        let state = books.orders.get(&basket.order_id);
        books.mails.iter().any(|(order, recipient, subject)| {
            *order == basket.order_id
                && *recipient == basket.customer
                && state.is_some_and(|state| subject.contains(state.as_str()))
        })
    };
    let placed: HashSet<&str> = books.placed.iter().map(|basket| basket.order_id.as_str()).collect();
    let faults = [
        (books.ended().filter(|basket| !fits(basket)).count(), "customers not told how their order ended"),
        (books.placed.iter().filter(|basket| of(basket) > 1).count(), "customers told more than once"),
        (books.mails.iter().filter(|(order, ..)| !placed.contains(order.as_str())).count(), "about no order"),
    ];
    promise("mails agree", books.mails.len(), "sent, one per order".to_owned(), &faults)
}

/// What is in the outboxes is on the topics, and the other way round.
fn published(books: &Books) -> Promise {
    let known: HashSet<_> = books.events.iter().map(|event| event.event_id).collect();
    let again: u64 = books.seen.values().map(|times| times - 1).sum();
    let due = || books.events.iter().filter(|event| event.due);
    let words = match again {
        0 => "events of four outboxes".to_owned(),
        again => format!("events of four outboxes, {} of them sent again after a kill", grouped(again)),
    };
    let missing = |event: &&Event| !books.seen.contains_key(&event.event_id);
    let faults = [
        (due().filter(|event| event.status != "PUBLISHED").count(), "not published"),
        (due().filter(missing).count(), "not on the topics"),
        (books.seen.keys().filter(|event| !known.contains(*event)).count(), "that nobody has written"),
        (usize::try_from(books.dead_letters).unwrap_or(usize::MAX), "dead letters"),
    ];
    promise("published", books.seen.len(), words, &faults)
}

/// Every event can be traced back to the request that placed its order.
fn correlated(books: &Books) -> Promise {
    let requests: HashMap<&str, &str> =
        books.placed.iter().map(|basket| (basket.order_id.as_str(), basket.request_id.as_str())).collect();
    let of_order: HashMap<String, &str> =
        books.events.iter().map(|event| (event.event_id.to_string(), event.order_id.as_str())).collect();
    let astray = |event: &&Event| {
        event.correlation_id.is_none()
            || requests.get(event.order_id.as_str()).copied() != event.correlation_id.as_deref()
    };
    let uncaused = |event: &&Event| {
        let first = matches!(event.event_type.as_str(), "OrderPlaced" | "OrderOverdue");
        let cause = event.causation_id.as_ref().and_then(|cause| of_order.get(cause));
        !first && cause.copied() != Some(event.order_id.as_str())
    };
    let faults = [
        (books.events.iter().filter(astray).count(), "without the correlation id of their order's request"),
        (books.events.iter().filter(uncaused).count(), "whose cause is no event of their order"),
    ];
    let words = "events, each traced back to its order's request".to_owned();
    promise("correlated", books.events.len(), words, &faults)
}

/// Both versions of `OrderPlaced` were written, and each was understood.
fn versions(books: &Books) -> Promise {
    let placed = |version| {
        let of_version = move |event: &&Event| event.event_type == "OrderPlaced" && event.event_version == version;
        books.events.iter().filter(of_version)
    };
    let answered: HashSet<&str> = books
        .events
        .iter()
        .filter(|event| matches!(event.event_type.as_str(), "StockReserved" | "StockRefused"))
        .map(|event| event.order_id.as_str())
        .collect();
    let unread = |version| placed(version).filter(|event| !answered.contains(event.order_id.as_str())).count();
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
