//! Reports the violations that the check found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::Rules;

/// The most examples that are kept of a kind.
const EXAMPLES: usize = 20;
/// The most examples in a line for people.
const SHOWN: usize = 3;

/// A kind of violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// An event that committed, is neither PENDING nor DEAD at the end, and is not on the topic.
    Missing,
    /// A record of an event that rolled back.
    Phantoms,
    /// A record without an event id, or with an id that nobody reported as committed or rolled back.
    Unknown,
    /// A record of an event that already has one. Always counted, but a violation only beyond [`Rules::duplicates_allowed`].
    Duplicates,
    /// An event whose first record in a partition comes after that of a later event of its entity.
    Inversions,
    /// A record whose key or value differs from the database.
    Mismatched,
    /// A record outside the partition of its key: the expected partition, or else the one with most records of the entity in the topic.
    WrongPartition,
    /// A row that left PUBLISHED or DEAD more often than its audit entries explain.
    Regressed,
    /// A row that is PENDING at the end.
    Unpublished,
}

impl Finding {
    /// Every kind, in the order of the report.
    pub const ALL: [Self; 9] = [
        Self::Missing,
        Self::Phantoms,
        Self::Unknown,
        Self::Duplicates,
        Self::Inversions,
        Self::Mismatched,
        Self::WrongPartition,
        Self::Regressed,
        Self::Unpublished,
    ];

    /// Returns the name and the meaning in the lines for people.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Missing => ("missing", "committed, not on the topic"),
            Self::Phantoms => ("phantoms", "on the topic, rolled back"),
            Self::Unknown => ("unknown", "on the topic, never committed"),
            Self::Duplicates => ("duplicates", "on the topic more than once"),
            Self::Inversions => ("inversions", "after a later event of the entity"),
            Self::Mismatched => ("mismatched", "key or value differ from the row"),
            Self::WrongPartition => ("wrong partition", "not where the key belongs"),
            Self::Regressed => ("regressed", "left PUBLISHED or DEAD without an audit entry"),
            Self::Unpublished => ("unpublished", "still PENDING"),
        }
    }
}

/// The place of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The topic.
    pub topic: String,
    /// The partition of the topic.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
}

impl fmt::Display for Place {
    /// Writes `<topic>[<partition>]@<offset>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

/// One case of a violation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Example {
    /// The event's id, unless the record has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<Uuid>,
    /// The row's `event_outbox.id`, if the event committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<i64>,
    /// The entity, as `<entity_type>/<entity_id>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// The place of the record. Unset if the case has no record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<Place>,
    /// An explanation, such as the correct partition or the id of the later event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The result of [`Ledger::finish`](super::Ledger::finish). As JSON: the numbers by name, and `examples` by the same names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The number of events that committed.
    pub committed: u64,
    /// The number of events that rolled back.
    pub rolled_back: u64,
    /// The number of records, each offset counted once.
    pub records: u64,
    /// The number of committed events that are on the topic.
    pub published: u64,
    /// The number of committed events that are DEAD at the end.
    pub dead: u64,
    /// The number of events with [`Finding::Missing`].
    pub missing: u64,
    /// The number of records with [`Finding::Phantoms`].
    pub phantoms: u64,
    /// The number of records with [`Finding::Unknown`].
    pub unknown: u64,
    /// The number of records with [`Finding::Duplicates`].
    pub duplicates: u64,
    /// The number of events with [`Finding::Inversions`].
    pub inversions: u64,
    /// The number of records with [`Finding::Mismatched`].
    pub mismatched: u64,
    /// The number of records with [`Finding::WrongPartition`].
    pub wrong_partition: u64,
    /// The number of events with [`Finding::Regressed`].
    pub regressed: u64,
    /// The number of events with [`Finding::Unpublished`].
    pub unpublished: u64,
    /// The first 20 cases of each kind.
    pub examples: BTreeMap<Finding, Vec<Example>>,
    /// The faults that the run was allowed to have.
    #[serde(skip)]
    pub rules: Rules,
}

impl Report {
    /// Returns the number of cases of a kind.
    pub fn count(&self, finding: Finding) -> u64 {
        match finding {
            Finding::Missing => self.missing,
            Finding::Phantoms => self.phantoms,
            Finding::Unknown => self.unknown,
            Finding::Duplicates => self.duplicates,
            Finding::Inversions => self.inversions,
            Finding::Mismatched => self.mismatched,
            Finding::WrongPartition => self.wrong_partition,
            Finding::Regressed => self.regressed,
            Finding::Unpublished => self.unpublished,
        }
    }

    /// Iterates over the kinds that break a promise under the rules of the run.
    pub fn violations(&self) -> impl Iterator<Item = Finding> {
        Finding::ALL.into_iter().filter(|finding| self.count(*finding) > self.allowed(*finding))
    }

    /// Returns true if no promise is broken.
    pub fn is_clean(&self) -> bool {
        self.violations().next().is_none()
    }

    fn allowed(&self, finding: Finding) -> u64 {
        match finding {
            Finding::Duplicates => self.rules.duplicates_allowed.unwrap_or(u64::MAX),
            Finding::Unpublished if self.rules.pending_allowed => u64::MAX,
            _ => 0,
        }
    }

    /// Counts a case. `example` is called only while fewer than 20 examples of the kind are kept.
    pub fn add(&mut self, finding: Finding, example: impl FnOnce() -> Example) {
        let count = match finding {
            Finding::Missing => &mut self.missing,
            Finding::Phantoms => &mut self.phantoms,
            Finding::Unknown => &mut self.unknown,
            Finding::Duplicates => &mut self.duplicates,
            Finding::Inversions => &mut self.inversions,
            Finding::Mismatched => &mut self.mismatched,
            Finding::WrongPartition => &mut self.wrong_partition,
            Finding::Regressed => &mut self.regressed,
            Finding::Unpublished => &mut self.unpublished,
        };
        *count += 1;
        let kept = self.examples.entry(finding).or_default();
        if kept.len() < EXAMPLES {
            kept.push(example());
        }
    }
}

impl fmt::Display for Report {
    /// Writes a line of totals, a line per kind with its first examples, and the verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { committed, rolled_back, records, published, dead, .. } = self;
        writeln!(
            f,
            "{committed} events committed, {rolled_back} rolled back, {dead} dead; {published} on the topic in {records} records"
        )?;
        for finding in Finding::ALL {
            let (name, meaning) = finding.words();
            write!(f, "{name:<16}{:>8}  {meaning}", self.count(finding))?;
            let examples = self.examples.get(&finding).map_or(&[][..], Vec::as_slice);
            for (index, example) in examples.iter().take(SHOWN).enumerate() {
                write!(f, "{}{example}", if index == 0 { ": " } else { "; " })?;
            }
            writeln!(f, "{}", if self.count(finding) > SHOWN as u64 { "; ..." } else { "" })?;
        }
        if self.is_clean() {
            return write!(f, "clean: nothing lost, nothing invented, every entity in order");
        }
        f.write_str("NOT CLEAN:")?;
        for (index, finding) in self.violations().enumerate() {
            write!(f, "{} {} {}", if index == 0 { "" } else { "," }, self.count(finding), finding.words().0)?;
        }
        Ok(())
    }
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.event_id.map(|event_id| event_id.to_string()),
            self.id.map(|id| format!("id {id}")),
            self.entity.clone(),
            self.record.as_ref().map(Place::to_string),
            self.note.clone(),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}
