//! Compares the facts about the records of two topics, as a stream that is sorted by event id. Does no I/O except for the sorters' files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use super::fact::{At, Digest, FACT_BYTES, RecordFact, STEP_BYTES, Side, Step, UNMATCHED_BYTES, Unmatched};
use crate::inspect::sorter::Sorter;

/// The most examples of each kind of difference.
pub(crate) const MOST_EXAMPLES: usize = 10;

/// A kind of difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    OnlyLeft,
    OnlyRight,
    Order,
    Key,
    Partition,
    Headers,
    Value,
    Timestamp,
    /// Records of one topic that share an id, but differ in key or value. Headers do not count: a record that is sent again has other ones.
    ReusedId,
    WithoutId,
    /// A second record with the id of an earlier one. Only a difference if duplicates are violations.
    Repeated,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::OnlyLeft,
        Self::OnlyRight,
        Self::Order,
        Self::Key,
        Self::Partition,
        Self::Headers,
        Self::Value,
        Self::Timestamp,
        Self::ReusedId,
        Self::WithoutId,
        Self::Repeated,
    ];

    /// Returns the name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OnlyLeft => "only_left",
            Self::OnlyRight => "only_right",
            Self::Order => "order",
            Self::Key => "key",
            Self::Partition => "partition",
            Self::Headers => "headers",
            Self::Value => "value",
            Self::Timestamp => "timestamp",
            Self::ReusedId => "reused_id",
            Self::WithoutId => "without_id",
            Self::Repeated => "repeated",
        }
    }
}

/// The parts that are compared, and how strictly.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// The kinds that are no difference.
    pub(crate) ignored: Vec<Kind>,
    /// The longest span between the two timestamps in milliseconds; `None` does not compare them.
    pub(crate) timestamp_ms: Option<u64>,
    pub(crate) left_out: LeftOut,
}

/// The events of one topic that are no difference, by partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum LeftOut {
    #[default]
    Nothing,
    /// Those before the first event that both topics have. A topic that is followed must not end before the other one.
    Before,
    /// Those before the first, and after the last event that both topics have.
    BeforeAndAfter,
}

/// The place of an event that the other topic lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first event of its partition that both topics have.
    Before,
    Inside,
    /// After the last one.
    After,
}

/// An example of a difference: the places of the records to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Example {
    pub(crate) left: Option<At>,
    pub(crate) right: Option<At>,
    /// The record to look at besides: for [`Kind::Order`] the right record of the event before this one on the left, for repeated records the
    /// earlier one.
    pub(crate) before: Option<At>,
}

impl Example {
    pub(crate) fn of_one(side: Side, at: At) -> Self {
        let (left, right) = match side {
            Side::Left => (Some(at), None),
            Side::Right => (None, Some(at)),
        };
        Self { left, right, before: None }
    }
}

/// The counts of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SideCounts {
    /// The records that were read and take part.
    pub(crate) records: u64,
    /// The records whose id an earlier record of the topic has.
    pub(crate) repeated: u64,
    /// The events that the other topic lacks, before the first event that both have, by partition.
    pub(crate) before: u64,
    /// The same after the last event that both have.
    pub(crate) after: u64,
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// The events that both topics have.
    pub(crate) matched: u64,
    pub(crate) sides: [SideCounts; 2],
    pub(crate) found: BTreeMap<Kind, u64>,
    pub(crate) examples: BTreeMap<Kind, Vec<Example>>,
}

impl Counts {
    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.found.get(&kind).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, kind: Kind, count: u64, more: impl IntoIterator<Item = Example>) {
        *self.found.entry(kind).or_default() += count;
        let examples = self.examples.entry(kind).or_default();
        examples.extend(more.into_iter().take(MOST_EXAMPLES - examples.len()));
    }
}

/// The records of one event on one side: the first, and how many more.
#[derive(Debug, Clone, Copy)]
struct Seen {
    first: RecordFact,
    /// True if the only records are behind the end of the comparison.
    late: bool,
    records: u64,
}

/// A comparison that is given facts sorted by event id.
pub(crate) struct Comparison {
    rules: Rules,
    counts: Counts,
    id: Option<Digest>,
    seen: [Option<Seen>; 2],
    /// Repeated records of the event, which are only reported if the event takes part.
    repeats: BTreeMap<Kind, (u64, Vec<Example>)>,
    steps: Sorter<STEP_BYTES>,
    unmatched: Sorter<UNMATCHED_BYTES>,
    /// The first and last offset of a matched record, by side and partition.
    common: HashMap<(Side, i32), (i64, i64)>,
    /// The partitions with records that take part, by side.
    in_use: HashSet<(Side, i32)>,
    /// The earliest timestamp of a matched record, by side.
    began: [Option<i64>; 2],
}

impl Comparison {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            counts: Counts::default(),
            id: None,
            seen: [None; 2],
            repeats: BTreeMap::new(),
            steps: Sorter::default(),
            unmatched: Sorter::default(),
            common: HashMap::new(),
            in_use: HashSet::new(),
            began: [None; 2],
        }
    }

    /// Compares all facts.
    ///
    /// # Errors
    /// The errors of the sorters' files.
    pub(crate) fn run(mut self, facts: Sorter<FACT_BYTES>, mut progress: impl FnMut()) -> io::Result<Counts> {
        let mut facts = facts.sorted()?;
        while let Some(entry) = facts.next()? {
            let (id, fact) = RecordFact::decode(&entry);
            self.take(id, fact)?;
            progress();
        }
        self.end()
    }

    fn take(&mut self, id: Digest, fact: RecordFact) -> io::Result<()> {
        if self.id != Some(id) {
            self.close()?;
            self.id = Some(id);
        }
        let slot = &mut self.seen[fact.side as usize];
        let Some(seen) = slot else {
            *slot = Some(Seen { first: fact, late: fact.late, records: 1 });
            return Ok(());
        };
        seen.records += 1;
        seen.late &= fact.late;
        let first = seen.first;
        let example = Example { before: Some(first.at), ..Example::of_one(fact.side, fact.at) };
        // A record that an operator sent again has other headers.
        let is_same = (first.key, first.value) == (fact.key, fact.value);
        let (count, examples) = self.repeats.entry(if is_same { Kind::Repeated } else { Kind::ReusedId }).or_default();
        *count += 1;
        if examples.len() < MOST_EXAMPLES {
            examples.push(example);
        }
        Ok(())
    }

    /// Compares the records of the event that was taken last.
    fn close(&mut self) -> io::Result<()> {
        let [left, right] = std::mem::take(&mut self.seen);
        let repeats = std::mem::take(&mut self.repeats);
        // An event whose records are all behind the end does not take part.
        if [left, right].into_iter().flatten().all(|seen| seen.late) {
            return Ok(());
        }
        for seen in [left, right].into_iter().flatten() {
            let side = &mut self.counts.sides[seen.first.side as usize];
            side.records += seen.records;
            side.repeated += seen.records - 1;
            self.in_use.insert((seen.first.side, seen.first.at.partition));
        }
        for (kind, (count, examples)) in repeats {
            if !self.rules.ignored.contains(&kind) {
                self.counts.add(kind, count, examples);
            }
        }
        match (left, right) {
            (Some(left), Some(right)) => self.pair(left.first, right.first),
            (Some(one), None) | (None, Some(one)) => {
                let RecordFact { side, at, time, .. } = one.first;
                self.unmatched.push(Unmatched { side, at, time }.encode())
            }
            (None, None) => Ok(()),
        }
    }

    fn pair(&mut self, left: RecordFact, right: RecordFact) -> io::Result<()> {
        self.counts.matched += 1;
        for fact in [left, right] {
            let At { partition, offset } = fact.at;
            let (first, last) = self.common.entry((fact.side, partition)).or_insert((offset, offset));
            (*first, *last) = ((*first).min(offset), (*last).max(offset));
            let began = &mut self.began[fact.side as usize];
            *began = [*began, fact.time].into_iter().flatten().min();
        }
        let example = Example { left: Some(left.at), right: Some(right.at), before: None };
        let far_apart = |most: u64| match (left.time, right.time) {
            (Some(one), Some(other)) => one.abs_diff(other) > most,
            (one, other) => one != other,
        };
        let own_differ = left.writers_own.iter().zip(&right.writers_own).any(|(one, other)| {
            // A header that one side lacks belongs to the other side's writer.
            *one != 0 && *other != 0 && one != other
        });
        for (kind, differs) in [
            (Kind::Key, left.key != right.key),
            (Kind::Partition, left.at.partition != right.at.partition),
            (Kind::Headers, left.headers != right.headers || own_differ),
            (Kind::Value, left.value != right.value),
            (Kind::Timestamp, self.rules.timestamp_ms.is_some_and(far_apart)),
        ] {
            if differs {
                self.found(kind, example);
            }
        }
        match left.key {
            Some(key) => self.steps.push(Step { key, left: left.at, right: right.at }.encode()),
            None => Ok(()),
        }
    }

    fn found(&mut self, kind: Kind, example: Example) {
        if !self.rules.ignored.contains(&kind) {
            self.counts.add(kind, 1, [example]);
        }
    }

    fn end(mut self) -> io::Result<Counts> {
        self.close()?;
        self.order()?;
        self.one_sided()?;
        Ok(self.counts)
    }

    /// Finds events that follow another event of their key on the left, and come before it on the right.
    fn order(&mut self) -> io::Result<()> {
        let mut steps = std::mem::take(&mut self.steps).sorted()?;
        let mut previous: Option<Step> = None;
        while let Some(entry) = steps.next()? {
            let step = Step::decode(&entry);
            if let Some(before) = previous
                && before.key == step.key
                && before.left.partition == step.left.partition
                && before.right.partition == step.right.partition
                && before.right.offset > step.right.offset
            {
                let example = Example { left: Some(step.left), right: Some(step.right), before: Some(before.right) };
                self.found(Kind::Order, example);
            }
            previous = Some(step);
        }
        Ok(())
    }

    /// Counts the events that one topic lacks.
    fn one_sided(&mut self) -> io::Result<()> {
        let mut unmatched = std::mem::take(&mut self.unmatched).sorted()?;
        while let Some(entry) = unmatched.next()? {
            let one = Unmatched::decode(&entry);
            let place = self.place(&one);
            let counts = &mut self.counts.sides[one.side as usize];
            match place {
                Place::Before => counts.before += 1,
                Place::After => counts.after += 1,
                Place::Inside => {}
            }
            let is_left_out = match self.rules.left_out {
                LeftOut::Nothing => false,
                LeftOut::Before => place == Place::Before,
                LeftOut::BeforeAndAfter => place != Place::Inside,
            };
            if is_left_out {
                continue;
            }
            let kind = match one.side {
                Side::Left => Kind::OnlyLeft,
                Side::Right => Kind::OnlyRight,
            };
            self.found(kind, Example::of_one(one.side, one.at));
        }
        Ok(())
    }

    /// Returns the place of an event that the other topic lacks.
    fn place(&self, one: &Unmatched) -> Place {
        let partition = one.at.partition;
        if let Some((first, last)) = self.common.get(&(one.side, partition)) {
            return match one.at.offset {
                offset if offset < *first => Place::Before,
                offset if offset > *last => Place::After,
                _ => Place::Inside,
            };
        }
        // Both topics have records in this partition, and no event of it in common: one of them is wrong. Where partitions are not compared,
        // the partitions of the same number have nothing to do with each other.
        let compares_partitions = !self.rules.ignored.contains(&Kind::Partition);
        if compares_partitions && self.in_use.contains(&(one.side.other(), partition)) {
            return Place::Inside;
        }
        // A partition that the other topic has no record of has no beginning that both share. Where the other topic should have gone on, the
        // first common event of the other partitions shows when it had begun.
        let had_begun = one.time.zip(self.began[one.side as usize]).is_some_and(|(time, began)| time >= began);
        if self.rules.left_out == LeftOut::Before && had_begun { Place::After } else { Place::Before }
    }
}

#[cfg(test)]
mod tests;
