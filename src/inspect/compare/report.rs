//! Prints the result of `compare` as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use super::example::Shown;
use super::matching::{Counts, Kind, LeftOut, SideCounts};
use super::reading::OWN_HEADERS;
use super::{Plan, Side};
use crate::observe::terminal::{Tone, paint};
use crate::text;

/// The difference of two topics that have no event in common.
const NOTHING_IN_COMMON: &str = "nothing_in_common";

/// The result of a comparison.
#[derive(Debug)]
pub(crate) struct Report {
    topics: [String; 2],
    partitions: [usize; 2],
    ignored: Vec<Kind>,
    compares_timestamps: bool,
    counts: Counts,
    examples: BTreeMap<Kind, Vec<Shown>>,
    /// Remarks that a reader needs to interpret the numbers.
    notes: Vec<String>,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        partitions: [usize; 2],
        counts: Counts,
        examples: BTreeMap<Kind, Vec<Shown>>,
    ) -> Self {
        let topics = [plan.left.topic.clone(), plan.right.topic.clone()];
        let (ignored, compares_timestamps) = (plan.rules.ignored.clone(), plan.rules.timestamp_ms.is_some());
        let notes = Vec::new();
        let mut report = Self { topics, partitions, ignored, compares_timestamps, counts, examples, notes };
        report.notes = report.remarks(plan.rules.left_out);
        report
    }

    fn remarks(&self, left_out: LeftOut) -> Vec<String> {
        let mut notes = Vec::new();
        let [left, right] = self.partitions;
        if left != right && !self.ignored.contains(&Kind::Partition) {
            notes.push(format!(
                "the topics have {left} and {right} partitions, so equal keys are in different partitions; \
                 --ignore partition leaves that out"
            ));
        }
        for (side, topic) in [(Side::Left, &self.topics[0]), (Side::Right, &self.topics[1])] {
            let SideCounts { repeated, before, after, .. } = self.counts.sides[side as usize];
            if before + after > 0 {
                let fate = match left_out {
                    LeftOut::Nothing => "they are counted; --overlap leaves them out",
                    LeftOut::Before => {
                        "the ones before are left out, the ones after are counted, because the topics were followed"
                    }
                    LeftOut::BeforeAndAfter => "they are left out",
                };
                notes.push(format!(
                    "{} of {topic} before the first and {after} after the last event that both topics have, by partition: {fate}",
                    text::counted(before, "event")
                ));
            }
            if repeated > 0 && self.ignored.contains(&Kind::Repeated) {
                notes.push(format!(
                    "{} of {topic} with a repeated id; --exactly-once makes that a difference",
                    text::counted(repeated, "record")
                ));
            }
        }
        if !self.ignored.contains(&Kind::Headers) {
            notes.push(format!(
                "headers that only one kind of writer sets are compared only where both records have them: {}",
                OWN_HEADERS.join(", ")
            ));
        }
        notes
    }

    /// Returns the names of the differences.
    pub(crate) fn differences(&self) -> Vec<&'static str> {
        let found = Kind::ALL.iter().filter(|kind| self.counts.count(**kind) > 0).map(|kind| kind.name());
        let found: Vec<_> = found.collect();
        // Two topics of which nothing was compared must not pass.
        if found.is_empty() && self.counts.matched == 0 { vec![NOTHING_IN_COMMON] } else { found }
    }

    fn is_compared(&self, kind: Kind) -> bool {
        !self.ignored.contains(&kind) && (kind != Kind::Timestamp || self.compares_timestamps)
    }

    fn side(&self, side: Side) -> serde_json::Value {
        let SideCounts { records, repeated, before, after } = self.counts.sides[side as usize];
        serde_json::json!({
            "topic": self.topics[side as usize], "partitions": self.partitions[side as usize], "records": records,
            "repeated": repeated, "before_overlap": before, "after_overlap": after,
        })
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Report", 18)?;
        json.serialize_field("equal", &self.differences().is_empty())?;
        json.serialize_field("differences", &self.differences())?;
        json.serialize_field("left", &self.side(Side::Left))?;
        json.serialize_field("right", &self.side(Side::Right))?;
        json.serialize_field("matched", &self.counts.matched)?;
        for kind in Kind::ALL {
            // A part that is not compared has no count.
            json.serialize_field(kind.name(), &self.is_compared(kind).then(|| self.counts.count(kind)))?;
        }
        json.serialize_field("notes", &self.notes)?;
        json.serialize_field("examples", &Examples(&self.examples))?;
        json.end()
    }
}

struct Examples<'a>(&'a BTreeMap<Kind, Vec<Shown>>);

impl Serialize for Examples<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Kind::ALL.len()))?;
        for kind in Kind::ALL {
            map.serialize_entry(kind.name(), self.0.get(&kind).map_or(&[][..], Vec::as_slice))?;
        }
        map.end()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for side in [Side::Left, Side::Right] {
            let SideCounts { records, .. } = self.counts.sides[side as usize];
            let (topic, partitions) = (&self.topics[side as usize], self.partitions[side as usize]);
            writeln!(
                f,
                "{:<16} {records:>10}  records of {}, {}",
                side.name(),
                text::name(topic),
                text::counted(partitions, "partition")
            )?;
        }
        writeln!(f, "{:<16} {:>10}  events are on both", "matched", self.counts.matched)?;
        for kind in Kind::ALL {
            let name = kind.name().replace('_', " ");
            if !self.is_compared(kind) {
                writeln!(f, "{name:<16} {:>10}", "-")?;
                continue;
            }
            let count = self.counts.count(kind);
            let padded = format!("{count:>10}");
            let padded = if count > 0 { paint(Tone::Bad, padded).to_string() } else { padded };
            writeln!(f, "{name:<16} {padded}")?;
            for shown in self.examples.get(&kind).into_iter().flatten() {
                writeln!(f, "    {}", text::sentence(&line(shown)))?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {}", text::sentence(note))?;
        }
        match self.differences().as_slice() {
            [] => write!(f, "{}", paint(Tone::Good, "equal")),
            found => write!(f, "{}: {}", paint(Tone::Bad, "DIFFERENT"), found.join(", ").replace('_', " ")),
        }
    }
}

fn line(shown: &Shown) -> String {
    let Shown { id, key, left, right, difference } = shown;
    let id = id.as_deref().map_or_else(|| "no id".to_owned(), |id| text::name(id).at_most(80).to_string());
    let key = key
        .as_deref()
        .map_or_else(|| "null".to_owned(), |key| format!("{:?}", text::name(key).at_most(80).to_string()));
    let places = [("left", left), ("right", right)].into_iter().filter_map(|(side, place)| {
        place.as_ref().map(|place| format!("{side} partition {} offset {}", place.partition, place.offset))
    });
    let places: Vec<_> = places.collect();
    format!("{id}, key {key}, {}: {difference}", places.join(", "))
}
