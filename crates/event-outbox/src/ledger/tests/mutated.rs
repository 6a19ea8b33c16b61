//! Breaks clean histories in one place and checks that the ledger finds this violation and no other.

use proptest::prelude::*;

use super::*;

/// A run: the entity of each event by id, the records in the order of the topic, and the statuses of the rows.
#[derive(Debug, Clone)]
struct History {
    entities: Vec<String>,
    records: Vec<Delivered>,
    rolled_back: Vec<i64>,
    statuses: Vec<(i64, RowStatus)>,
}

#[derive(Debug, Clone, Copy)]
struct Delivered {
    id: i64,
    partition: i32,
    value: &'static [u8],
}

const VALUE: &[u8] = b"{\"total\": 1}";

/// Generates clean histories with entities in random order. Each entity has at least three events, so that most of its records show its
/// partition.
fn clean_history() -> impl Strategy<Value = History> {
    (2..6_u8).prop_flat_map(|entities| {
        let turns = (0..entities).flat_map(|entity| [entity; 3]).collect::<Vec<_>>();
        (Just(turns), prop::collection::vec(0..entities, 0..20)).prop_flat_map(|(mut turns, more)| {
            turns.extend(more);
            Just(turns).prop_shuffle().prop_map(history_of)
        })
    })
}

fn history_of(turns: Vec<u8>) -> History {
    let ids = 0..turns.len() as i64;
    let delivered = |(id, entity): (i64, &u8)| Delivered { id, partition: i32::from(entity % 3), value: VALUE };
    History {
        entities: turns.iter().map(u8::to_string).collect(),
        records: ids.clone().zip(&turns).map(delivered).collect(),
        rolled_back: vec![1_000],
        statuses: ids.map(|id| (id, RowStatus::Published)).collect(),
    }
}

impl History {
    fn report(&self) -> Report {
        let mut ledger = Ledger::new(Rules { duplicates_allowed: Some(0), pending_allowed: false });
        for (id, entity_id) in (0..).zip(&self.entities) {
            let entity = Some(EntityKey { entity_type: "order", entity_id });
            let fingerprint = Some(Fingerprint::from_key_value(Some(entity_id.as_bytes()), Some(VALUE)));
            ledger.committed(Committed { entity, fingerprint, ..event(id) });
        }
        self.rolled_back.iter().for_each(|id| ledger.rolled_back(event_id(*id)));
        self.statuses.iter().for_each(|(id, status)| ledger.status(event_id(*id), *status));
        for (offset, delivered) in (0..).zip(&self.records) {
            let key = self.entities.get(delivered.id as usize).map_or(&b""[..], |entity| entity.as_bytes());
            let fingerprint = Some(Fingerprint::from_key_value(Some(key), Some(delivered.value)));
            ledger.observe(TopicRecord { partition: delivered.partition, fingerprint, ..record(delivered.id, offset) });
        }
        ledger.finish()
    }

    /// Returns the index of the next record of the entity, if there is one.
    fn next_of_entity(&self, at: usize) -> Option<usize> {
        let entity = |at: usize| &self.entities[self.records[at].id as usize];
        (at + 1..self.records.len()).find(|next| entity(*next) == entity(at))
    }
}

/// Asserts one case of this kind and none of any other.
fn only(history: &History, expected: Finding) -> Result<(), TestCaseError> {
    let report = history.report();
    for finding in Finding::ALL {
        prop_assert_eq!(report.count(finding), u64::from(finding == expected), "{:?} in {}", finding, report);
    }
    prop_assert_eq!(report.violations().collect::<Vec<_>>(), [expected]);
    Ok(())
}

proptest! {
    #[test]
    fn one_fault_in_a_clean_history_is_found_and_nothing_else(clean in clean_history(), place in any::<prop::sample::Index>()) {
        let at = place.index(clean.records.len());
        let id = clean.records[at].id;
        prop_assert!(clean.report().is_clean(), "{}", clean.report());

        let mut dropped = clean.clone();
        dropped.records.remove(at);
        only(&dropped, Finding::Missing)?;

        let mut repeated = clean.clone();
        repeated.records.push(clean.records[at]);
        only(&repeated, Finding::Duplicates)?;

        if let Some(next) = clean.next_of_entity(at) {
            let mut swapped = clean.clone();
            swapped.records.swap(at, next);
            only(&swapped, Finding::Inversions)?;
        }

        let mut altered = clean.clone();
        altered.records[at].value = b"{\"total\": 1.0}";
        only(&altered, Finding::Mismatched)?;

        let mut moved = clean.clone();
        moved.records[at].partition = 3;
        only(&moved, Finding::WrongPartition)?;

        let mut invented = clean.clone();
        invented.records.insert(at, Delivered { id: 2_000, ..clean.records[at] });
        only(&invented, Finding::Unknown)?;

        let mut haunted = clean.clone();
        haunted.records.insert(at, Delivered { id: 1_000, ..clean.records[at] });
        only(&haunted, Finding::Phantoms)?;

        let mut regressed = clean.clone();
        regressed.statuses.extend([(id, RowStatus::Pending), (id, RowStatus::Published)]);
        only(&regressed, Finding::Regressed)?;

        let mut left = clean.clone();
        left.statuses[at].1 = RowStatus::Pending;
        only(&left, Finding::Unpublished)?;
    }
}
