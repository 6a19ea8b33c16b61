//! Measures the pure functions that an event passes, one at a time: `just micro`, or `just micro envelope` for some of them.
//!
//! They show the cost of a change to these functions. `just bench` measures the whole relay against real servers.

use std::hint::black_box;

use chrono::DateTime;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use event_outbox::envelope::Envelope;
use event_outbox::event::{EventHeaders, EventId, OutboxId, Payload, StoredEvent};
use event_outbox::ledger::{Committed, EntityKey, Fingerprint, Ledger, RowStatus, Rules, TopicRecord};
use event_outbox::route::TopicTemplate;
use lab::payload;
use uuid::Uuid;

/// Four usual headers, as Postgres prints a `jsonb`.
const HEADERS: &str = r#"{"source": "/shop", "causation-id": "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "correlation-id": "7f2c-17", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

/// The bytes of a payload.
const PAYLOAD: usize = 500;

/// The events of a history for the ledger.
const HISTORY: u32 = 10_000;

fn event<'a>(payload: &'a str, headers: &'a str) -> StoredEvent<'a> {
    StoredEvent {
        id: OutboxId(12_345_678),
        event_id: EventId(Uuid::from_u128(0x0190_a1b2_c3d4_7e5f_8a9b_0c1d_2e3f_4a5b)),
        entity_type: "order",
        entity_id: Some("order-17"),
        event_type: "OrderPlaced",
        event_version: 3,
        payload: Payload::Json(payload.as_bytes()),
        headers: EventHeaders::parse(headers).expect("an object of strings"),
        topic: None,
        created_at: DateTime::from_timestamp_micros(1_763_716_020_000_120).expect("in range"),
    }
}

fn envelope(criterion: &mut Criterion) {
    let samples = payload::samples(payload::SAMPLES, PAYLOAD);
    let event = event(&samples[0], HEADERS);
    let mut values = criterion.benchmark_group("envelope/value");
    values.throughput(Throughput::Elements(1));
    let mut scratch = Vec::new();
    for envelope in Envelope::ALL {
        values.bench_function(BenchmarkId::from_parameter(envelope), |bencher| {
            bencher.iter(|| envelope.value(black_box(&event), Some("/relay"), &mut scratch).map(<[u8]>::len));
        });
    }
    values.finish();
    let mut headers = criterion.benchmark_group("envelope/headers");
    headers.throughput(Throughput::Elements(1));
    for envelope in Envelope::ALL {
        headers.bench_function(BenchmarkId::from_parameter(envelope), |bencher| {
            bencher.iter(|| {
                let mut bytes = 0;
                let mut emit = |name: &str, value: &[u8]| bytes += black_box(name).len() + black_box(value).len();
                envelope.headers(black_box(&event), Some("/relay"), &mut emit);
                bytes
            });
        });
    }
    headers.finish();
}

fn headers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("event/headers");
    for (name, headers) in [("none", "{}"), ("four", HEADERS)] {
        group.bench_function(name, |bencher| bencher.iter(|| EventHeaders::parse(black_box(headers)).is_ok()));
    }
    group.finish();
}

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    let mut scratch = String::new();
    for template in ["orders", "{entity_type}-events"] {
        let event = event("{}", "{}");
        let template: TopicTemplate = template.parse().expect("a template");
        group.bench_function(BenchmarkId::from_parameter(&template), |bencher| {
            bencher.iter(|| template.resolve(black_box(&event), &mut scratch).map(str::len));
        });
    }
    let own = StoredEvent { topic: Some("orders-of-shop-17"), ..event("{}", "{}") };
    let template: TopicTemplate = "{entity_type}-events".parse().expect("a template");
    group.bench_function("own topic", |bencher| {
        bencher.iter(|| template.resolve(black_box(&own), &mut scratch).map(str::len));
    });
    group.finish();
}

/// Records a clean history in the ledger: every event once, in order, of fifty-two entities.
fn history(ledger: &mut Ledger, names: &[String]) {
    for number in 0..HISTORY {
        let name = &names[number as usize % names.len()];
        let event_id = EventId(Uuid::from_u128(u128::from(number) << 64 | 0x5f));
        let entity = Some(EntityKey { entity_type: "order", entity_id: name });
        let (id, order) = (OutboxId(number.into()), number.into());
        ledger.committed(Committed { id, event_id, entity, order, scheduled: false, fingerprint: None });
        ledger.status(event_id, RowStatus::Published);
        ledger.observe(TopicRecord {
            event_id: Some(event_id),
            topic: "order-events",
            partition: (number % 4) as i32,
            offset: number.into(),
            fingerprint: None,
            expected_partition: None,
        });
    }
}

fn ledger(criterion: &mut Criterion) {
    // A multiple of the number of partitions, so that each entity stays on one partition.
    let names: Vec<String> = (0..52).map(|number| format!("order-{number}")).collect();
    let filled = || {
        let mut ledger = Ledger::new(Rules::default());
        history(&mut ledger, &names);
        ledger
    };
    assert!(filled().finish().is_clean(), "the history of the benchmark is not clean");
    let mut group = criterion.benchmark_group("ledger");
    group.throughput(Throughput::Elements(HISTORY.into())).sample_size(30);
    group.bench_function("record", |bencher| bencher.iter_with_large_drop(filled));
    group.bench_function("finish", |bencher| bencher.iter_batched(filled, Ledger::finish, BatchSize::LargeInput));
    group.finish();
    let samples = payload::samples(payload::SAMPLES, PAYLOAD);
    criterion.bench_function("ledger/fingerprint", |bencher| {
        bencher
            .iter(|| Fingerprint::from_key_value(Some(black_box(b"order-17")), Some(black_box(samples[0].as_bytes()))));
    });
}

criterion_group!(benches, envelope, headers, route, ledger);
criterion_main!(benches);
