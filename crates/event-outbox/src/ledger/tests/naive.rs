//! Compares the ledger with a naive checker that follows the definitions of the findings: each record is compared with each other.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Outcome {
    Unheard,
    RolledBack,
    Committed { entity: Option<u8>, order: i64, scheduled: bool, bytes: Option<u8> },
}

#[derive(Debug, Clone)]
struct Event {
    outcome: Outcome,
    statuses: Vec<RowStatus>,
    audits: usize,
}

#[derive(Debug, Clone)]
struct Delivery {
    event: Option<usize>,
    topic: u8,
    partition: i32,
    offset: i64,
    bytes: Option<u8>,
    expected: Option<i32>,
}

fn event() -> impl Strategy<Value = Event> {
    let committed =
        (prop::option::weighted(0.9, 0..3_u8), 0..12_i64, prop::bool::weighted(0.1), prop::option::of(0..2_u8))
            .prop_map(|(entity, order, scheduled, bytes)| Outcome::Committed { entity, order, scheduled, bytes });
    let outcome = prop_oneof![1 => Just(Outcome::Unheard), 1 => Just(Outcome::RolledBack), 8 => committed];
    let status = prop_oneof![Just(RowStatus::Pending), Just(RowStatus::Published), Just(RowStatus::Dead)];
    (outcome, prop::collection::vec(status, 0..4), 0..3_usize).prop_map(|(outcome, statuses, audits)| Event {
        outcome,
        statuses,
        audits,
    })
}

/// Generates deliveries with the offsets that a broker would assign.
fn deliveries(events: usize) -> impl Strategy<Value = Vec<Delivery>> {
    let event = prop::option::weighted(0.95, 0..events);
    let delivery = (event, 0..2_u8, 0..3_i32, prop::option::of(0..2_u8), prop::option::weighted(0.2, 0..3_i32));
    prop::collection::vec(delivery, 0..32).prop_map(|deliveries| {
        let mut offsets = HashMap::new();
        let delivery = |(event, topic, partition, bytes, expected)| {
            let next: &mut i64 = offsets.entry((topic, partition)).or_default();
            *next += 1;
            Delivery { event, topic, partition, offset: *next, bytes, expected }
        };
        deliveries.into_iter().map(delivery).collect()
    })
}

/// Counts every finding with nested loops.
fn naive(events: &[Event], deliveries: &[Delivery]) -> [u64; 9] {
    let [mut missing, mut phantoms, mut unknown, mut duplicates, mut inversions] = [0; 5];
    let [mut mismatched, mut wrong_partition, mut regressed, mut unpublished] = [0; 4];
    let entity_of = |delivery: &Delivery| match events[delivery.event?].outcome {
        Outcome::Committed { entity, .. } => entity,
        _ => None,
    };
    let stream = |delivery: &Delivery| (delivery.topic, delivery.partition);
    for (at, delivery) in deliveries.iter().enumerate() {
        let Some(event) = delivery.event else {
            unknown += 1;
            continue;
        };
        let (entity, order, scheduled, bytes) = match events[event].outcome {
            Outcome::Unheard => {
                unknown += 1;
                continue;
            }
            Outcome::RolledBack => {
                phantoms += 1;
                continue;
            }
            Outcome::Committed { entity, order, scheduled, bytes } => (entity, order, scheduled, bytes),
        };
        mismatched += u64::from(bytes.is_some() && delivery.bytes.is_some() && bytes != delivery.bytes);
        duplicates += u64::from(deliveries[..at].iter().any(|before| before.event == Some(event)));

        let before: Vec<_> = deliveries[..at].iter().filter(|before| stream(before) == stream(delivery)).collect();
        let first = before.iter().all(|before| before.event != Some(event));
        let overtaken = before.iter().any(|before| match before.event.map(|event| &events[event].outcome) {
            Some(Outcome::Committed { entity: of, order: above, scheduled: false, .. }) => {
                *of == entity && *above > order
            }
            _ => false,
        });
        inversions += u64::from(first && overtaken && entity.is_some() && !scheduled && events[event].audits == 0);

        let home = || {
            let votes = |partition| {
                let votes = deliveries.iter().filter(|other| {
                    other.topic == delivery.topic && other.expected.is_none() && other.partition == partition
                });
                votes.filter(|other| entity_of(other) == entity).count()
            };
            entity.map(|_| {
                if votes(0) >= votes(1).max(votes(2)) {
                    0
                } else if votes(1) >= votes(2) {
                    1
                } else {
                    2
                }
            })
        };
        wrong_partition += u64::from(delivery.expected.or_else(home).is_some_and(|right| right != delivery.partition));
    }
    for (index, event) in events.iter().enumerate() {
        if !matches!(event.outcome, Outcome::Committed { .. }) {
            continue;
        }
        let on_topic = deliveries.iter().any(|delivery| delivery.event == Some(index));
        match event.statuses.last() {
            Some(RowStatus::Pending) => unpublished += 1,
            Some(RowStatus::Dead) => {}
            Some(RowStatus::Published) | None => missing += u64::from(!on_topic),
        }
        let returns =
            event.statuses.windows(2).filter(|pair| pair[0] != RowStatus::Pending && pair[0] != pair[1]).count();
        regressed += u64::from(returns > event.audits);
    }
    [missing, phantoms, unknown, duplicates, inversions, mismatched, wrong_partition, regressed, unpublished]
}

fn report(ledger: &mut Ledger, index: usize, event: &Event) {
    let id = event_id(index as i64);
    match event.outcome {
        Outcome::Unheard => {}
        Outcome::RolledBack => ledger.rolled_back(id),
        Outcome::Committed { entity, order, scheduled, bytes } => {
            let entity_id = entity.map(|entity| entity.to_string());
            let entity = entity_id.as_deref().map(|entity_id| EntityKey { entity_type: "order", entity_id });
            let fingerprint = bytes.map(|byte| Fingerprint([byte; 16]));
            ledger.committed(Committed {
                id: OutboxId(index as i64),
                event_id: id,
                entity,
                order,
                scheduled,
                fingerprint,
            });
        }
    }
    event.statuses.iter().for_each(|status| ledger.status(id, *status));
    (0..event.audits).for_each(|_| ledger.retried(id));
}

fn show(ledger: &mut Ledger, delivery: &Delivery) {
    ledger.observe(TopicRecord {
        event_id: delivery.event.map(|event| event_id(event as i64)),
        topic: ["order-events", "audit"][usize::from(delivery.topic)],
        partition: delivery.partition,
        offset: delivery.offset,
        fingerprint: delivery.bytes.map(|byte| Fingerprint([byte; 16])),
        expected_partition: delivery.expected,
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_ledger_agrees_with_a_naive_checker_whatever_it_hears_first(
        (events, deliveries) in prop::collection::vec(event(), 1..14)
            .prop_flat_map(|events| { let deliveries = deliveries(events.len()); (Just(events), deliveries) }),
        order in any::<prop::sample::Index>(),
        topic_first in any::<bool>(),
        read_twice in any::<bool>(),
    ) {
        let mut ledger = Ledger::default();
        let mut reading = deliveries.clone();
        if !reading.is_empty() {
            let start = order.index(reading.len());
            reading.rotate_left(start);
        }
        if read_twice {
            reading.extend_from_slice(&deliveries);
        }
        if topic_first {
            reading.iter().for_each(|delivery| show(&mut ledger, delivery));
        }
        events.iter().enumerate().for_each(|(index, event)| report(&mut ledger, index, event));
        if !topic_first {
            reading.iter().for_each(|delivery| show(&mut ledger, delivery));
        }

        let report = ledger.finish();
        prop_assert_eq!(Finding::ALL.map(|finding| report.count(finding)), naive(&events, &deliveries), "{}", report);
        prop_assert_eq!(report.records, deliveries.len() as u64);
    }
}
