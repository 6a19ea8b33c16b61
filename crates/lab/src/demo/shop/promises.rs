//! Judges the numbers of the shop's demo: each promise, and whether it was kept. Does no I/O.

use indicatif::HumanCount;

use crate::demo::reconciliation::{Promise, faults};
use event_outbox::ledger::{Finding, Report};

/// The numbers that the promises stand for.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// The comparison of table and topic.
    pub(super) ledger: Report,
    /// The number of events that the shop committed and that are not in the table.
    pub(super) lost_commits: u64,
    /// The number of deliveries that the consumer recognised as repetitions.
    pub(super) duplicates_recognised: u64,
    /// The number of events that the consumer applied exactly once.
    pub(super) applied_once: u64,
    /// The number of events that the consumer applied more than once.
    pub(super) applied_again: u64,
    /// The number of events on the topic that the consumer did not apply.
    pub(super) not_applied: u64,
    /// The number of events that the consumer applied although they were never committed.
    pub(super) applied_phantoms: u64,
    /// The number of orders with a committed event.
    pub(super) orders: u64,
    /// The number of orders whose events were applied in the order of their commits.
    pub(super) orders_in_order: u64,
}

impl Counts {
    /// Returns every promise, in the order in which an event meets them.
    pub(super) fn promises(&self) -> Vec<Promise> {
        vec![
            self.committed(),
            self.rolled_back(),
            self.published(),
            self.duplicates_seen(),
            self.applied(),
            self.order_kept(),
        ]
    }

    fn committed(&self) -> Promise {
        let words = format!("events of {} orders, each in its order's transaction", HumanCount(self.orders));
        let faults = [(self.lost_commits, "that committed are not in the table")];
        Promise::new("committed", self.ledger.committed, words, &faults)
    }

    fn rolled_back(&self) -> Promise {
        let faults = faults(&self.ledger, [Finding::Phantoms, Finding::Unknown]);
        Promise::new("rolled back", self.ledger.rolled_back, "events", &faults).if_kept(", none of them published")
    }

    fn published(&self) -> Promise {
        let Report { committed, published, dead, .. } = self.ledger;
        let words = match dead {
            0 => format!("of {}", HumanCount(committed)),
            dead => format!("of {}, {} are dead letters", HumanCount(committed), HumanCount(dead)),
        };
        let findings = [Finding::Missing, Finding::Unpublished, Finding::Mismatched, Finding::Regressed];
        Promise::new("published", published, words, &faults(&self.ledger, findings))
            .if_kept(", each payload byte for byte")
    }

    fn duplicates_seen(&self) -> Promise {
        let seen = self.ledger.duplicates;
        // The consumer may recognise more: a delivery that the group repeats is no record.
        let faults = [(seen.saturating_sub(self.duplicates_recognised), "not recognised by event_once")];
        let words =
            if seen == 0 { "the relay that was killed had nothing in flight" } else { "sent again after the kill -9" };
        let promise = Promise::new("duplicates seen", seen, words, &faults);
        if seen == 0 { promise } else { promise.if_kept(", each recognised") }
    }

    fn applied(&self) -> Promise {
        let faults = [
            (self.applied_again, "applied more than once"),
            (self.not_applied, "not applied"),
            (self.applied_phantoms, "applied and never committed"),
        ];
        let words = format!("of {}", HumanCount(self.ledger.published));
        Promise::new("applied once", self.applied_once, words, &faults)
            .if_kept(", each by one transaction of the consumer")
    }

    fn order_kept(&self) -> Promise {
        let [inversions, partitions] = faults(&self.ledger, [Finding::Inversions, Finding::WrongPartition]);
        let faults = [inversions, partitions, (self.orders - self.orders_in_order, "applied in another order")];
        let words = format!("of {} orders have their history in order", HumanCount(self.orders));
        Promise::new("order kept", self.orders_in_order, words, &faults)
    }
}

#[cfg(test)]
mod tests;
