//! Reports how a demo ended: its numbers, the promises that they stand for, and whether each was kept. Does no I/O.

use std::fmt;
use std::time::Duration;

use indicatif::HumanCount;
use serde::Serialize;
use serde_json::{Value, json};

use crate::table;
use event_outbox::ledger::{Finding, Report};

/// The result of a demo. As JSON: [`Reconciliation::to_json`].
#[derive(Debug, Clone, Default)]
pub struct Reconciliation {
    /// The comparison of table and topic.
    pub ledger: Report,
    /// The number of events that the shop committed and that are not in the table.
    pub lost_commits: u64,
    /// The number of deliveries that `event_once` recognised as repetitions.
    pub duplicates_recognised: u64,
    /// The number of events that the consumer applied exactly once.
    pub applied_once: u64,
    /// The number of events that the consumer applied more than once.
    pub applied_again: u64,
    /// The number of events on the topic that the consumer did not apply.
    pub not_applied: u64,
    /// The number of events that the consumer applied although they were never committed.
    pub applied_phantoms: u64,
    /// The number of orders with a committed event.
    pub orders: u64,
    /// The number of orders whose events were applied in the order of their commits.
    pub orders_in_order: u64,
    /// The number of times that a relay was killed with SIGKILL.
    pub relay_kills: u32,
    /// The time from the start to the comparison.
    pub elapsed: Duration,
}

/// A line of the reconciliation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promise {
    /// The subject of the promise.
    pub name: &'static str,
    /// True if the promise was kept.
    pub kept: bool,
    /// The number of cases.
    pub count: u64,
    /// The meaning of the number.
    pub words: String,
}

impl Reconciliation {
    /// Returns every promise, in the order in which an event meets them.
    pub fn promises(&self) -> [Promise; 6] {
        [
            self.committed(),
            self.rolled_back(),
            self.published(),
            self.duplicates_seen(),
            self.applied(),
            self.order_kept(),
        ]
    }

    /// Returns true if every promise was kept.
    pub fn is_kept(&self) -> bool {
        self.promises().iter().all(|promise| promise.kept)
    }

    /// Returns JSON for programs: `kept`, the number of each promise by its name (spaces as `_`), `orders`, `relay_kills`, `elapsed_ms`,
    /// the `promises` in full and the `ledger` of table and topic.
    pub fn to_json(&self) -> Value {
        let promises = self.promises();
        let mut object = json!({
            "kept": self.is_kept(),
            "orders": self.orders,
            "relay_kills": self.relay_kills,
            "elapsed_ms": u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
            "ledger": self.ledger,
        });
        for promise in &promises {
            object[promise.name.replace(' ', "_")] = json!(promise.count);
        }
        object["promises"] = json!(promises);
        object
    }

    fn committed(&self) -> Promise {
        let words = match self.lost_commits {
            0 => format!("events of {} orders, each in its order's own transaction", HumanCount(self.orders)),
            lost => format!("events; {} that committed are not in the table", HumanCount(lost)),
        };
        Promise { name: "committed", kept: self.lost_commits == 0, count: self.ledger.committed, words }
    }

    fn rolled_back(&self) -> Promise {
        let published = self.ledger.phantoms + self.ledger.unknown;
        let words = match published {
            0 => "events, none of them published".to_owned(),
            published => format!("events; {} records on the topic that nobody committed", HumanCount(published)),
        };
        Promise { name: "rolled back", kept: published == 0, count: self.ledger.rolled_back, words }
    }

    fn published(&self) -> Promise {
        let Report { committed, published, dead, .. } = self.ledger;
        let faults = self.faults(&[
            (Finding::Missing, "missing"),
            (Finding::Unpublished, "still pending"),
            (Finding::Mismatched, "with other bytes than the table's"),
            (Finding::Regressed, "that went back to pending"),
        ]);
        let words = match (&faults, dead) {
            (Some(faults), _) => format!("of {}; {faults}", HumanCount(committed)),
            (None, 0) => format!("of {}, every payload byte for byte as Postgres prints it", HumanCount(committed)),
            (None, dead) => format!("of {}, {} are dead letters", HumanCount(committed), HumanCount(dead)),
        };
        Promise { name: "published", kept: faults.is_none(), count: published, words }
    }

    fn duplicates_seen(&self) -> Promise {
        let (seen, recognised) = (self.ledger.duplicates, self.duplicates_recognised);
        let words = if seen != recognised {
            format!("on the topic; event_once recognised {}", HumanCount(recognised))
        } else if seen == 0 {
            "the relay that was killed had nothing in flight".to_owned()
        } else {
            "sent again after the kill -9, each recognised by event_once".to_owned()
        };
        Promise { name: "duplicates seen", kept: seen == recognised, count: seen, words }
    }

    fn applied(&self) -> Promise {
        let faults = [
            (self.applied_again, "applied more than once"),
            (self.not_applied, "not applied"),
            (self.applied_phantoms, "applied and never committed"),
        ];
        let words = listed(&faults).map_or_else(
            || format!("of {}, each by one transaction of the consumer", HumanCount(self.ledger.published)),
            |faults| format!("of {}; {faults}", HumanCount(self.ledger.published)),
        );
        let kept = faults.iter().all(|(count, _)| *count == 0);
        Promise { name: "applied once", kept, count: self.applied_once, words }
    }

    fn order_kept(&self) -> Promise {
        let faults = self.faults(&[
            (Finding::Inversions, "events after a later one of their order"),
            (Finding::WrongPartition, "records outside their order's partition"),
        ]);
        let words = match &faults {
            Some(faults) => format!("of {} orders; {faults}", HumanCount(self.orders)),
            None => format!("of {} orders have their history in order", HumanCount(self.orders)),
        };
        let kept = faults.is_none() && self.orders_in_order == self.orders;
        Promise { name: "order kept", kept, count: self.orders_in_order, words }
    }

    fn faults(&self, kinds: &[(Finding, &str)]) -> Option<String> {
        let counts: Vec<_> = kinds.iter().map(|(finding, words)| (self.ledger.count(*finding), *words)).collect();
        listed(&counts)
    }
}

/// Lists the counts that are not 0, such as `2 missing, 1 still pending`; `None` if all are 0.
pub(super) fn listed(counts: &[(u64, &str)]) -> Option<String> {
    let some: Vec<_> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, words)| format!("{} {words}", HumanCount(*count)))
        .collect();
    (!some.is_empty()).then(|| some.join(", "))
}

/// Lists promises, a line each.
pub(super) fn list(promises: &[Promise]) -> String {
    let rows = promises.iter().map(|Promise { name, kept, count, words }| {
        let mark = if *kept { "  ok" } else { "BROKEN" };
        [mark.to_owned(), (*name).to_owned(), HumanCount(*count).to_string(), words.clone()]
    });
    table::plain(rows, &[2])
}

impl fmt::Display for Reconciliation {
    /// Writes a line per promise, the verdict, and the ledger's examples if there are any violations.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.promises()))?;
        let kills = match self.relay_kills {
            0 => String::new(),
            1 => ", with the relay killed once with SIGKILL".to_owned(),
            kills => format!(", with the relay killed {kills} times with SIGKILL"),
        };
        if self.is_kept() {
            return writeln!(f, "\nEvery promise was kept{kills}, in {:.1} seconds.", self.elapsed.as_secs_f64());
        }
        writeln!(f, "\nA PROMISE WAS BROKEN{kills}. Table against topic:\n{}", self.ledger)
    }
}

#[cfg(test)]
mod tests;
