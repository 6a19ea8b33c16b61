//! Compares events and records in a few linear passes over the records in topic order and one pass over the events.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::Ledger;
use super::record::{Entry, Facts, RowStatus, Sighting, TransactionOutcome};
use super::report::{Example, Finding, Place, Report};

pub(super) fn check(mut ledger: Ledger) -> Report {
    // The sort is stable. The records are usually in runs already, because each partition is read from its beginning.
    ledger.sightings.sort_by_key(|sighting| (sighting.topic, sighting.partition, sighting.offset));
    // A consumer that reconnects may read a record twice, which is no duplicate. Only a record equal in all fields is dropped. So a
    // caller's mistake about offsets shows up and does not hide a record.
    ledger.sightings.dedup();
    let mut check = Check { report: Report { rules: ledger.rules, ..Report::default() }, ledger: &ledger };
    let on_topic = check.records();
    check.order();
    check.partitions();
    check.rows(&on_topic);
    check.report
}

struct Check<'a> {
    ledger: &'a Ledger,
    report: Report,
}

impl<'a> Check<'a> {
    /// Checks each record alone: its event, whether it is the first one, and its bytes. Returns for each entry whether it is on a topic.
    fn records(&mut self) -> Vec<bool> {
        let mut on_topic = vec![false; self.ledger.entries.len()];
        for sighting in &self.ledger.sightings {
            self.report.records += 1;
            let Some((position, entry)) = self.entry(sighting) else {
                self.found(Finding::Unknown, None, Some(sighting), Some("no event id".to_owned()));
                continue;
            };
            let facts = match &entry.outcome {
                TransactionOutcome::Unheard => {
                    self.found(Finding::Unknown, Some(entry), Some(sighting), None);
                    continue;
                }
                TransactionOutcome::RolledBack => {
                    self.found(Finding::Phantoms, Some(entry), Some(sighting), None);
                    continue;
                }
                TransactionOutcome::Committed(facts) => facts,
            };
            if std::mem::replace(&mut on_topic[position], true) {
                self.found(Finding::Duplicates, Some(entry), Some(sighting), None);
            } else {
                self.report.published += 1;
            }
            if let (Some(expected), Some(found)) = (facts.fingerprint, sighting.fingerprint)
                && expected != found
            {
                self.found(Finding::Mismatched, Some(entry), Some(sighting), None);
            }
        }
        on_topic
    }

    /// Compares the first record of each event in a partition with the highest earlier one of its entity.
    fn order(&mut self) {
        let mut last_stream = vec![0_u32; self.ledger.entries.len()];
        let mut highest: Vec<Option<(u32, &Facts)>> = vec![None; self.ledger.entities.len()];
        for (stream, records) in (1..).zip(self.ledger.sightings.chunk_by(same_partition)) {
            for sighting in records {
                let Some((position, entry)) = self.entry(sighting) else { continue };
                let Some((facts, entity)) = entry.facts().and_then(|facts| Some((facts, facts.entity?))) else {
                    continue;
                };
                let repeated = std::mem::replace(&mut last_stream[position], stream) == stream;
                if repeated || facts.scheduled {
                    continue;
                }
                let highest = &mut highest[entity as usize];
                match highest {
                    Some((of, above)) if *of == stream && above.order > facts.order => {
                        // A retried row still counts as the highest for later records. Only its own lateness is excused.
                        if entry.audits == 0 {
                            let note = format!("after id {}", above.id);
                            self.found(Finding::Inversions, Some(entry), Some(sighting), Some(note));
                        }
                    }
                    _ => *highest = Some((stream, facts)),
                }
            }
        }
    }

    fn partitions(&mut self) {
        let homes = self.homes_of_split_entities();
        for sighting in &self.ledger.sightings {
            let Some((_, entry)) = self.entry(sighting) else { continue };
            let Some(facts) = entry.facts() else { continue };
            let home = || homes.get(&(facts.entity?, sighting.topic)).copied();
            if let Some(expected) = sighting.expected_partition.or_else(home)
                && expected != sighting.partition
            {
                let note = format!("belongs to partition {expected}");
                self.found(Finding::WrongPartition, Some(entry), Some(sighting), Some(note));
            }
        }
    }

    /// Returns the home partition of each entity that has records on several partitions of a topic. The home has most of the records; of
    /// equals the lowest number wins. Records with a known expected partition do not count.
    fn homes_of_split_entities(&self) -> HashMap<(u32, u32), i32> {
        let keyed = || {
            let unjudged = self.ledger.sightings.iter().filter(|sighting| sighting.expected_partition.is_none());
            unjudged.filter_map(|sighting| Some((self.entry(sighting)?.1.facts()?.entity?, sighting)))
        };
        // Records come topic by topic, so one remembered partition per entity is enough to notice a second one.
        let mut first: Vec<Option<(u32, i32)>> = vec![None; self.ledger.entities.len()];
        let mut split = HashSet::new();
        for (entity, sighting) in keyed() {
            match &mut first[entity as usize] {
                Some((topic, partition)) if *topic == sighting.topic => {
                    if *partition != sighting.partition {
                        split.insert((entity, sighting.topic));
                    }
                }
                unset => *unset = Some((sighting.topic, sighting.partition)),
            }
        }
        let mut votes: HashMap<(u32, u32), HashMap<i32, u64>> = HashMap::new();
        for (entity, sighting) in keyed().filter(|(entity, sighting)| split.contains(&(*entity, sighting.topic))) {
            *votes.entry((entity, sighting.topic)).or_default().entry(sighting.partition).or_default() += 1;
        }
        let most =
            |votes: HashMap<i32, u64>| votes.into_iter().max_by_key(|(partition, count)| (*count, Reverse(*partition)));
        votes.into_iter().filter_map(|(key, votes)| Some((key, most(votes)?.0))).collect()
    }

    /// Checks each event alone: whether its status and the topic agree.
    fn rows(&mut self, on_topic: &[bool]) {
        for (entry, on_topic) in self.ledger.entries.iter().zip(on_topic) {
            match entry.outcome {
                TransactionOutcome::Unheard => continue,
                TransactionOutcome::RolledBack => {
                    self.report.rolled_back += 1;
                    continue;
                }
                TransactionOutcome::Committed(_) => self.report.committed += 1,
            }
            match entry.status {
                Some(RowStatus::Dead) => self.report.dead += 1,
                Some(RowStatus::Pending) => self.found(Finding::Unpublished, Some(entry), None, None),
                Some(RowStatus::Published) | None if !on_topic => self.found(Finding::Missing, Some(entry), None, None),
                Some(RowStatus::Published) | None => {}
            }
            if entry.left_terminal > entry.audits {
                self.found(Finding::Regressed, Some(entry), None, None);
            }
        }
    }

    fn entry(&self, sighting: &Sighting) -> Option<(usize, &'a Entry)> {
        let position = sighting.event? as usize;
        Some((position, &self.ledger.entries[position]))
    }

    fn found(&mut self, finding: Finding, entry: Option<&Entry>, sighting: Option<&Sighting>, note: Option<String>) {
        let ledger = self.ledger;
        self.report.add(finding, || {
            let facts = entry.and_then(Entry::facts);
            Example {
                event_id: entry.map(|entry| entry.event_id.0),
                id: facts.map(|facts| facts.id.0),
                entity: facts.and_then(|facts| facts.entity).map(|entity| ledger.entities.describe(entity)),
                record: sighting.map(|sighting| Place {
                    topic: ledger.topics.text(sighting.topic).to_owned(),
                    partition: sighting.partition,
                    offset: sighting.offset,
                }),
                note,
            }
        });
    }
}

fn same_partition(one: &Sighting, other: &Sighting) -> bool {
    (one.topic, one.partition) == (other.topic, other.partition)
}
