//! Tests the work on many events at once: keys of a partition side by side, batches, and both while members are killed.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use event_outbox::code::Code;
use event_outbox::consumer::{BatchContext, BatchEvent, Consumer, Context, Failed, Retry};
use event_outbox::event::NewEvent;
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::watch;
use uuid::Uuid;

use super::log::{self, Line};
use super::{Counted, Field, Killed, MEMBER, Running, insert, quick};
use lab::kafka::{RealKafka, Record};
use lab::{TestDatabase, trials};

/// The argument that makes this binary a member with workers, batches and retries.
pub(super) const MODE: &str = "keys";

/// The type of the events that the member applies in batches.
const BATCHES: &str = "Batched";

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            keys_of_one_partition_are_worked_on_side_by_side_and_each_stays_in_order,
            an_offset_is_not_committed_before_all_events_before_it_are_finished,
            a_batch_is_applied_in_one_transaction_and_a_bad_event_stops_no_other,
            an_outage_costs_a_batch_no_attempt_and_its_end_is_logged,
            a_batch_with_a_key_that_is_set_aside_keeps_its_order,
            members_that_are_killed_at_any_time_repeat_no_effect_and_keep_the_order_of_keys;
    }
}

pub(super) fn record(key: &str, event_type: &str, n: i64) -> Record {
    let id = Uuid::new_v4().to_string();
    let headers = [("event-id", id.as_str()), ("event-type", event_type)];
    Record {
        partition: 0,
        offset: 0,
        key: Some(key.as_bytes().to_vec()),
        value: Some(format!(r#"{{"n": {n}}}"#).into_bytes()),
        headers: headers.map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec()))).to_vec(),
        timestamp: None,
    }
}

/// Inserts the effects of a batch in its order, with one statement.
async fn insert_all(ctx: &mut BatchContext, events: &[BatchEvent<Counted>]) -> Result<(), Failed> {
    let ids: Vec<Uuid> = events.iter().map(|one| one.event.event_id.0).collect();
    let keys: Vec<&str> = events.iter().map(|one| one.event.key_text().unwrap_or_default()).collect();
    let numbers: Vec<i64> = events.iter().map(|one| one.payload.n).collect();
    sqlx::query(
        "insert into effects (event_id, entity, n) select id, entity, n \
         from unnest($1::uuid[], $2::text[], $3::int8[]) with ordinality given (id, entity, n, place) order by place",
    )
    .bind(ids)
    .bind(keys)
    .bind(numbers)
    .execute(ctx.tx())
    .await?;
    Ok(())
}

async fn keys_of_one_partition_are_worked_on_side_by_side_and_each_stays_in_order(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let records: Vec<_> =
        (1..=5).flat_map(|n| (0..40).map(move |key| record(&format!("e{key}"), "Counted", n))).collect();
    field.produce(&records)?;
    let (arrived, _) = watch::channel(0);
    let arrived = Arc::new(arrived);
    // Four handlers are at work at once, or none of them ends.
    let meet = Arc::clone(&arrived);
    let consumer = field.consumer().concurrency(8).on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
        let meet = Arc::clone(&meet);
        async move {
            meet.send_modify(|arrived| *arrived += 1);
            meet.subscribe().wait_for(|arrived| *arrived >= 4).await.map_err(Failed::from)?;
            insert(&mut ctx, event.n).await
        }
    });
    let running = Running::start(consumer);
    field.until_effects(200).await;
    let stats = running.stop().await?;
    ensure!(stats.applied() == 200 && stats.repeated() == 0, "{stats:?}");
    ensure!(field.applied().await?.values().all(|applied| *applied == [1, 2, 3, 4, 5]));
    Ok(())
}

async fn an_offset_is_not_committed_before_all_events_before_it_are_finished(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let records: Vec<_> = (1..=60).map(|n| record(&format!("e{}", n % 30), "Counted", n)).collect();
    field.produce(&records)?;
    // The third event hangs, and so does its lane. The others go on.
    let consumer = field.consumer().concurrency(16).drain(Duration::from_millis(1));
    let consumer = consumer.on("Counted", 1..=1, async |mut ctx: Context, event: Counted| {
        if event.n == 3 {
            std::future::pending::<()>().await;
        }
        insert(&mut ctx, event.n).await
    });
    let running = Running::start(consumer);
    // Of 30 keys a few share the lane of the third event.
    field.until_effects(30).await;
    running.stop().await?;
    let before = field.effects().await?;
    let running = Running::start(field.counting());
    // Only the two events before the one that hung were committed.
    running.until("all others have come again", |stats| stats.applied() + stats.repeated() == 58).await;
    let stats = running.stop().await?;
    ensure!(field.effects().await? == 60);
    ensure!(
        stats.repeated() == before.unsigned_abs() - 2 && stats.applied() == 60 - before.unsigned_abs(),
        "{stats:?}"
    );
    Ok(())
}

async fn a_batch_is_applied_in_one_transaction_and_a_bad_event_stops_no_other(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.outbox.execute("alter table effects add check (n <> 77)").await?;
    let mut records: Vec<_> = (1..=200).map(|n| record(&format!("e{}", n % 7), "Counted", n)).collect();
    // A record that comes twice, as the relay sends it after a crash.
    records.push(records[9].clone());
    let last = record("e0", "Counted", 201);
    records.push(Record { value: Some(b"no JSON".to_vec()), ..record("e1", "Counted", 0) });
    records.push(last);
    field.produce(&records)?;
    let (largest, transactions) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(BTreeMap::new())));
    let (largest_seen, seen) = (Arc::clone(&largest), Arc::clone(&transactions));
    let consumer =
        field.consumer().on_batch("Counted", 1..=1, move |mut ctx: BatchContext, events: Vec<BatchEvent<Counted>>| {
            let (largest, seen) = (Arc::clone(&largest_seen), Arc::clone(&seen));
            async move {
                largest.fetch_max(events.len(), Ordering::Relaxed);
                insert_all(&mut ctx, &events).await?;
                let id: i64 = sqlx::query_scalar("select txid_current()").fetch_one(ctx.tx()).await?;
                seen.lock().expect("the transactions").insert(id, events.len());
                Ok(())
            }
        });
    let running = Running::start(consumer.batch(64));
    field.until_effects(200).await;
    running.until("the bad events are dead letters", |stats| stats.dead() == 2).await;
    let stats = running.stop().await?;
    ensure!(stats.applied() == 200 && stats.repeated() == 1 && stats.halved() > 0, "{stats:?}");
    let largest = largest.load(Ordering::Relaxed);
    ensure!((2..=64).contains(&largest), "{largest}");
    let reasons: Vec<_> = field.dead_letters().await?.into_iter().map(|(_, letter)| letter.reason.name()).collect();
    ensure!(reasons == ["permanent", "invalid"], "{reasons:?}");
    for (key, applied) in field.applied().await? {
        ensure!(applied.is_sorted() && !applied.contains(&77), "{key}: {applied:?}");
    }
    Ok(())
}

async fn an_outage_costs_a_batch_no_attempt_and_its_end_is_logged(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.produce(&(1..=50).map(|n| record("a", "Counted", n)).collect::<Vec<_>>())?;
    let calls = Arc::new(AtomicUsize::new(0));
    // The first event comes alone, if the member gets it before the others.
    let away = Arc::clone(&calls);
    let consumer =
        field.consumer().on_batch("Counted", 1..=1, move |mut ctx: BatchContext, events: Vec<BatchEvent<Counted>>| {
            let is_away = events.len() > 1 && away.fetch_add(1, Ordering::Relaxed) < 6;
            async move {
                insert_all(&mut ctx, &events).await?;
                if is_away { Err(Failed::outage("the web service is away")) } else { Ok(()) }
            }
        });
    let running = Running::start(consumer);
    field.until_effects(50).await;
    let stats = running.stop().await?;
    ensure!(stats.applied() == 50 && stats.halved() == 0 && stats.dead() == 0, "{stats:?}");
    ensure!(stats.retried() >= 6 * 2 && calls.load(Ordering::Relaxed) > 6, "{stats:?}");
    ensure!(field.applied().await?["a"] == (1..=50).collect::<Vec<_>>());
    let lines = log::with_code(&field.outbox.topic, Code::EventRetried);
    let resolved: Vec<bool> = lines.iter().map(Line::is_resolved).collect();
    ensure!(resolved == [false, true] && lines[0].get("event.id") == lines[1].get("event.id"), "{lines:?}");
    Ok(())
}

async fn a_batch_with_a_key_that_is_set_aside_keeps_its_order(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let (fixed, is_fixed) = watch::channel(false);
    let retry = Retry { set_aside: true, ..quick(u32::MAX) };
    let consumer = field.consumer().concurrency(2).batch(50).retry(retry);
    let consumer =
        consumer.on_batch("Counted", 1..=1, move |mut ctx: BatchContext, events: Vec<BatchEvent<Counted>>| {
            let is_fixed = *is_fixed.borrow();
            async move {
                let bad = events.iter().any(|one| one.event.key_text() == Some("e3") && one.payload.n == 3);
                if bad && !is_fixed {
                    return Err(Failed::transient("not yet"));
                }
                insert_all(&mut ctx, &events).await
            }
        });
    let records: Vec<_> = (0..100).map(|n| record(&format!("e{}", n % 10), "Counted", n)).collect();
    field.produce(&records)?;
    let running = Running::start(consumer);
    field.until_effects(90).await;
    running.until("the rest of the key waits", |stats| stats.parked() == 10 && stats.retrying_keys() == 1).await;
    fixed.send(true)?;
    field.until_effects(100).await;
    // More of the key follows while it drains, and after it.
    field.produce(&(100..200).map(|n| record(&format!("e{}", n % 10), "Counted", n)).collect::<Vec<_>>())?;
    field.until_effects(200).await;
    let stats = running.stop().await?;
    ensure!(stats.applied() == 200 && stats.dead() == 0 && stats.held_keys() == 0, "{stats:?}");
    ensure!(field.outbox.number("select count(*) from processed_events_held").await? == 0);
    ensure!(field.applied().await?.values().all(|applied| applied.is_sorted()));
    Ok(())
}

/// A member whose handlers fail now and then, by the number of the event and of the attempt.
pub(super) fn member(bootstrap: &str, topic: &str, url: &str) -> Consumer {
    let pool = PgPoolOptions::new().max_connections(20).connect_lazy(url).expect("a URL");
    let retry = Retry { set_aside: true, ..quick(u32::MAX) };
    super::member(bootstrap, topic, pool)
        .concurrency(3)
        .batch(20)
        .commit_interval(Duration::from_millis(20))
        .retry(retry)
        .on("Counted", 1..=1, async |mut ctx: Context, event: Counted| {
            let attempt = ctx.attempt();
            insert(&mut ctx, event.n).await?;
            if event.n % 13 == 0 && attempt < 3 { Err(Failed::transient("not yet")) } else { Ok(()) }
        })
        .on_batch(BATCHES, 1..=1, async |mut ctx: BatchContext, events: Vec<BatchEvent<Counted>>| {
            insert_all(&mut ctx, &events).await?;
            // Fails for the whole batch; alone, the event passes.
            let bad = events.len() > 1 && events.iter().any(|one| one.payload.n % 17 == 0);
            if bad { Err(Failed::transient("not together")) } else { Ok(()) }
        })
}

/// A random history: events of both kinds on many keys while two members are killed again and again.
async fn members_that_are_killed_at_any_time_repeat_no_effect_and_keep_the_order_of_keys(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().random());
    println!("SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let field = Field::new(&database, kafka).await?;
    let start = || {
        Command::new(std::env::current_exe()?)
            .arg(MEMBER)
            .args([database.url(), field.kafka.bootstrap(), field.outbox.topic.clone(), MODE.to_owned()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map(Killed)
    };
    let mut members = [start()?, start()?];
    let mut written = 0;
    for _ in 0..5 {
        let events: Vec<_> = (0..200)
            .map(|_| {
                written += 1;
                let event_type = if rng.random_bool(0.5) { BATCHES } else { "Counted" };
                let event = NewEvent::new("order", format!("e{}", rng.random_range(0..25)), event_type);
                event.json(&Counted { n: written }).expect("JSON")
            })
            .collect();
        field.write(events).await?;
        field.publish().await?;
        // Kills a member while there is still work, at a place that depends on its progress alone.
        let reached = field.effects().await? + rng.random_range(1..60);
        field.until_effects(reached.min(written)).await;
        let one = rng.random_range(0..2);
        members[one] = start()?;
    }
    field.until_effects(written).await;
    drop(members);
    ensure!(field.effects().await? == written, "an effect was repeated");
    ensure!(field.outbox.number("select count(distinct event_id) from effects").await? == written);
    ensure!(field.outbox.number("select count(*) from processed_events_held").await? == 0);
    ensure!(field.dead_letters().await?.is_empty());
    for (key, applied) in field.applied().await? {
        ensure!(applied.is_sorted(), "{key} is out of order: {applied:?}");
    }
    Ok(())
}
