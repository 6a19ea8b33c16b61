//! Reports how a demo ended: the promises, whether each was kept, and the ledger of outboxes and topics. Does no I/O.

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
    /// The promises, in the order in which an event or an order meets them.
    pub promises: Vec<Promise>,
    /// The comparison of outboxes and topics.
    pub ledger: Report,
    /// The number of processes that were killed with SIGKILL.
    pub kills: u64,
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
    /// Returns true if every promise was kept.
    pub fn is_kept(&self) -> bool {
        self.promises.iter().all(|promise| promise.kept)
    }

    /// Returns the names of the promises that were broken.
    pub fn broken(&self) -> Vec<&'static str> {
        self.promises.iter().filter(|promise| !promise.kept).map(|promise| promise.name).collect()
    }

    /// Returns the number of a promise.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.promises.iter().find(|promise| promise.name == name).map(|promise| promise.count)
    }

    /// Returns JSON for programs: `kept`, the number of each promise by its name (spaces as `_`), `kills`, `elapsed_ms`, the `promises` in
    /// full and the `ledger` of outboxes and topics.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "kept": self.is_kept(),
            "kills": self.kills,
            "elapsed_ms": u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
            "ledger": self.ledger,
        });
        for promise in &self.promises {
            object[promise.name.replace(' ', "_")] = json!(promise.count);
        }
        object["promises"] = json!(self.promises);
        object
    }
}

impl Promise {
    /// Builds a promise that is kept if none of the faults occurred. The faults that did are added to the words.
    pub(super) fn new(name: &'static str, count: u64, words: impl Into<String>, faults: &[(u64, &str)]) -> Self {
        let mut words = words.into();
        let found: Vec<_> = faults.iter().filter(|(count, _)| *count > 0).collect();
        for (index, (count, fault)) in found.iter().enumerate() {
            let separator = if index == 0 { "; " } else { ", " };
            words += &format!("{separator}{} {fault}", HumanCount(*count));
        }
        Self { name, kept: found.is_empty(), count, words }
    }

    /// Adds words that are true only of a kept promise.
    pub(super) fn if_kept(self, words: &str) -> Self {
        if self.kept { Self { words: self.words + words, ..self } } else { self }
    }
}

/// Returns the number of cases of each kind of violation, with words for a promise.
pub(super) fn faults<const N: usize>(ledger: &Report, findings: [Finding; N]) -> [(u64, &'static str); N] {
    findings.map(|finding| {
        let words = match finding {
            Finding::Missing => "not on the topic",
            Finding::Phantoms => "on the topic that rolled back",
            Finding::Unknown => "on the topic that nobody has written",
            Finding::Duplicates => "on the topic more than once",
            Finding::Inversions => "events after a later one of their order",
            Finding::Mismatched => "with other bytes than the table's",
            Finding::WrongPartition => "records outside their order's partition",
            Finding::Regressed => "that went back to pending",
            Finding::Unpublished => "still pending",
        };
        (ledger.count(finding), words)
    })
}

impl fmt::Display for Reconciliation {
    /// Writes a line per promise, the verdict, and the ledger's examples if there are any violations.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.promises.iter().map(|Promise { name, kept, count, words }| {
            let mark = if *kept { "  ok" } else { "BROKEN" };
            [mark.to_owned(), (*name).to_owned(), HumanCount(*count).to_string(), words.clone()]
        });
        f.write_str(&table::plain(rows, &[2]))?;
        let (verdict, examples) = match self.is_kept() {
            true => ("Every promise was kept", String::new()),
            false => ("A PROMISE WAS BROKEN", format!(" Outboxes against topics:\n{}", self.ledger)),
        };
        let processes = if self.kills == 1 { "process" } else { "processes" };
        let (kills, seconds) = (self.kills, self.elapsed.as_secs_f64());
        writeln!(f, "\n{verdict}, with {kills} {processes} killed with SIGKILL, in {seconds:.1} seconds.{examples}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(faults: &[(u64, &str)]) -> Reconciliation {
        Reconciliation {
            promises: vec![Promise::new("applied once", 3600, "of 3,600", faults)],
            kills: 1,
            elapsed: Duration::from_millis(6_500),
            ..Reconciliation::default()
        }
    }

    #[test]
    fn a_promise_without_faults_is_kept() {
        let result = result(&[(0, "not applied")]);
        assert!(result.is_kept());
        let text = "  ok  applied once  3,600  of 3,600\n\n\
                    Every promise was kept, with 1 process killed with SIGKILL, in 6.5 seconds.\n";
        assert_eq!(result.to_string(), text);
    }

    #[test]
    fn a_promise_with_faults_is_broken_and_lists_them() {
        let result = result(&[(1200, "not applied"), (0, "applied again"), (1, "applied and never committed")]);
        assert_eq!(result.broken(), ["applied once"]);
        assert_eq!(result.promises[0].words, "of 3,600; 1,200 not applied, 1 applied and never committed");
        let text = result.to_string();
        assert!(text.starts_with("BROKEN") && text.contains("A PROMISE WAS BROKEN"), "{text}");
    }

    #[test]
    fn the_json_has_each_number_under_the_name_of_its_promise() {
        let json = result(&[]).to_json();
        assert_eq!(json["applied_once"], 3600);
        assert_eq!(json["kills"], 1);
        assert_eq!(json["kept"], true);
        assert_eq!(json["promises"].as_array().map(Vec::len), Some(1));
        assert_eq!(json["ledger"]["records"], 0);
    }
}
