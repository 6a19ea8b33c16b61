//! Prints the result of `verify` as text and as JSON.

use std::fmt;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::inspect::verify::compare::Tolerated;
use crate::observe::terminal::{Tone, paint};
use crate::text;
use event_outbox::ledger::{Finding, Report};

/// The kinds of findings on a live system, and their names in the JSON.
const KINDS: [(Finding, &str); 6] = [
    (Finding::Missing, "missing"),
    (Finding::Duplicates, "duplicates"),
    (Finding::Inversions, "inversions"),
    (Finding::Mismatched, "mismatched"),
    (Finding::Unknown, "unknown"),
    (Finding::WrongPartition, "wrong_partition"),
];

/// The result of a verification.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) topics: Vec<String>,
    pub(crate) report: Report,
    pub(crate) tolerated: Tolerated,
    /// The number of records of aborted or open transactions.
    pub(crate) uncommitted: u64,
    /// Remarks that a reader needs to interpret the numbers.
    pub(crate) notes: Vec<String>,
}

impl Verdict {
    /// Returns the kinds of findings that break a guarantee.
    pub(crate) fn violations(&self) -> Vec<&'static str> {
        let broken: Vec<_> = self.report.violations().collect();
        KINDS.iter().filter(|(finding, _)| broken.contains(finding)).map(|(_, name)| *name).collect()
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { topics, report, tolerated, uncommitted, notes } = self;
        let mut json = serializer.serialize_struct("Verdict", 22)?;
        json.serialize_field("clean", &report.is_clean())?;
        json.serialize_field("violations", &self.violations())?;
        let topics: Vec<_> = topics.iter().map(|topic| serde_json::json!({ "topic": topic })).collect();
        json.serialize_field("topics", &topics)?;
        json.serialize_field("committed", &report.committed)?;
        json.serialize_field("published", &report.published)?;
        json.serialize_field("pending", &report.unpublished)?;
        json.serialize_field("dead", &report.dead)?;
        json.serialize_field("records", &report.records)?;
        for (finding, name) in KINDS {
            json.serialize_field(name, &report.count(finding))?;
        }
        json.serialize_field("after_start", &tolerated.after_start)?;
        json.serialize_field("retired", &tolerated.retired)?;
        json.serialize_field("expired", &tolerated.expired)?;
        json.serialize_field("replayed", &tolerated.replayed)?;
        json.serialize_field("redriven", &tolerated.redriven)?;
        json.serialize_field("uncommitted_records", uncommitted)?;
        json.serialize_field("notes", notes)?;
        json.serialize_field("examples", &Examples(report))?;
        json.end()
    }
}

struct Examples<'a>(&'a Report);

impl Serialize for Examples<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let found = |finding| self.0.examples.get(finding).map_or(&[][..], Vec::as_slice);
        serializer.collect_map(KINDS.iter().map(|(finding, name)| (name, found(finding))))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topics, report, tolerated, uncommitted, notes } = self;
        match topics.as_slice() {
            [] => writeln!(f, "no row is routed to any topic")?,
            topics => writeln!(f, "topics           {}", text::sentence(&topics.join(", ")))?,
        }
        let Report { committed, published, unpublished, dead, records, .. } = report;
        writeln!(f, "committed        {committed:>10}  rows; {unpublished} of them pending, {dead} dead")?;
        writeln!(f, "published        {published:>10}  of them on the topic, in {records} records")?;
        for (finding, name) in KINDS {
            let count = report.count(finding);
            let is_broken = report.violations().any(|broken| broken == finding);
            let padded = format!("{count:>10}");
            let count = if is_broken { paint(Tone::Bad, padded).to_string() } else { padded };
            writeln!(f, "{:<16} {count}", name.replace('_', " "))?;
            for example in report.examples.get(&finding).into_iter().flatten() {
                writeln!(f, "    {}", text::sentence(&example.to_string()))?;
            }
        }
        for (count, noun, meaning) in [
            (tolerated.after_start, "record", "of events that were written after the start: left out"),
            (
                tolerated.retired,
                "record",
                "without a row: the retention of the table may have deleted it, so nothing is compared",
            ),
            (tolerated.replayed, "record", "of `replay`: no duplicates, and left out of the order"),
            (tolerated.redriven, "record", "of `dlq redrive`: no duplicates, and left out of the order"),
            (*uncommitted, "record", "of aborted or open transactions: consumers with read_committed do not see them"),
            (
                tolerated.expired,
                "event",
                "without a record: the retention or compaction of the topic may have removed it",
            ),
        ] {
            if count > 0 {
                writeln!(f, "note: {} {meaning}", text::counted(count, noun))?;
            }
        }
        for note in notes {
            writeln!(f, "note: {}", text::sentence(note))?;
        }
        match self.violations().as_slice() {
            [] => write!(f, "{}", paint(Tone::Good, "clean")),
            violations => {
                write!(f, "{}: {}", paint(Tone::Bad, "NOT CLEAN"), violations.join(", ").replace('_', " "))
            }
        }
    }
}
