//! Tests what a service may choose: retries by error and type, keys that are set aside, pauses and rates, the hook before a dead letter, and
//! the calls of handlers in tests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use event_outbox::consumer::testing::{Outcome, Test};
use event_outbox::consumer::{Action, Context, Failed, Kind, Reason, Rejected, Retry};
use event_outbox::event::NewEvent;
use libtest_mimic::Trial;
use serde_json::Value;

use super::{APPLIED_WITHIN, Counted, Field, Running, counted, insert, quick};
use lab::kafka::RealKafka;
use lab::{TestDatabase, eventually, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_key_that_fails_is_set_aside_and_the_others_of_its_partition_go_on,
            an_event_that_was_set_aside_is_given_up_after_its_attempts_and_its_key_goes_on_or_is_held,
            attempts_of_two_members_with_an_event_that_is_set_aside_are_counted_once,
            retries_are_chosen_by_error_and_by_type,
            a_paused_topic_waits_and_the_group_does_not_notice,
            events_begin_at_the_rate_that_is_set,
            the_hook_before_a_dead_letter_sees_the_event_and_decides,
            a_test_calls_a_handler_in_a_transaction_that_is_rolled_back;
    }
}

async fn a_key_that_fails_is_set_aside_and_the_others_of_its_partition_go_on(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let is_fixed = Arc::new(AtomicBool::new(false));
    let consumer = |is_fixed: &Arc<AtomicBool>| {
        let is_fixed = Arc::clone(is_fixed);
        let retry = Retry { set_aside: true, ..quick(u32::MAX) };
        field.consumer().retry(retry).on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
            let is_bad = ctx.event().key_text() == Some("a") && event.n % 10 == 2 && !is_fixed.load(Ordering::Relaxed);
            async move {
                insert(&mut ctx, event.n).await?;
                if is_bad { Err(Failed::transient("not yet")) } else { Ok(()) }
            }
        })
    };
    // Enough keys for every partition, each with events before and behind those of the key that fails.
    field.write((1..=20).flat_map(|n| (0..20).map(move |key| counted(&format!("e{key}"), n)))).await?;
    field.write((1..=20).map(|n| counted("a", n))).await?;
    field.write((21..=30).flat_map(|n| (0..20).map(move |key| counted(&format!("e{key}"), n)))).await?;
    field.publish().await?;
    let running = Running::start(consumer(&is_fixed));
    field.until_effects(20 * 30 + 1).await;
    running.until("the key is retried", |stats| stats.retrying_keys() == 1 && stats.parked() == 19).await;
    running.until("there were more attempts", |stats| stats.retried() > 5).await;
    let stats = running.stop().await?;
    ensure!(stats.held_keys() == 0 && stats.dead() == 0 && stats.repeated() == 0, "{stats:?}");
    // What is set aside outlives the member. The next one applies it, and later events of the key keep their place.
    field.write((21..=25).map(|n| counted("a", n))).await?;
    field.publish().await?;
    let running = Running::start(consumer(&is_fixed));
    running.until("the later events wait", |stats| stats.parked() == 24).await;
    is_fixed.store(true, Ordering::Relaxed);
    field.until_effects(20 * 30 + 25).await;
    running.until("no key waits any more", |stats| stats.retrying_keys() == 0 && stats.parked() == 0).await;
    running.stop().await?;
    let applied = field.applied().await?;
    ensure!(applied["a"] == (1..=25).collect::<Vec<_>>(), "{applied:?}");
    ensure!(applied.values().all(|applied| applied.is_sorted()));
    ensure!(field.dead_letters().await?.is_empty());
    Ok(())
}

async fn an_event_that_was_set_aside_is_given_up_after_its_attempts_and_its_key_goes_on_or_is_held(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let retry = |then| Retry { set_aside: true, then: Some(then), ..quick(4) };
    let failing = async |mut ctx: Context, event: Counted| {
        insert(&mut ctx, event.n).await?;
        if event.n == 2 { Err(Failed::transient("never")) } else { Ok(()) }
    };
    let consumer = field.consumer().retry(retry(Action::Skip)).retry_type("Held", retry(Action::HoldKey));
    let consumer = consumer.on("Counted", 1..=1, failing).on("Held", 1..=1, failing);
    field.write((1..=5).map(|n| counted("skipped", n))).await?;
    let held = |n| NewEvent::new("order", "held", "Held").json(&Counted { n }).expect("JSON");
    field.write((1..=5).map(held)).await?;
    field.publish().await?;
    let running = Running::start(consumer);
    field.until_effects(5).await;
    running.until("both are given up", |stats| stats.dead() == 2 && stats.held_keys() == 1).await;
    running.stop().await?;
    let letters = field.dead_letters().await?;
    ensure!(letters.len() == 2, "{letters:?}");
    for (_, letter) in &letters {
        ensure!((letter.reason, letter.attempts) == (Reason::Exhausted, 4), "{letter:?}");
        ensure!(letter.source_topic == field.outbox.topic, "{letter:?}");
    }
    let applied = field.applied().await?;
    ensure!(applied["skipped"] == [1, 3, 4, 5] && applied["held"] == [1], "{applied:?}");
    ensure!(field.outbox.number("select count(*) from processed_events_held where reason = 'held'").await? == 3);
    ensure!(field.outbox.number("select count(*) from processed_events_held where reason = 'exhausted'").await? == 1);
    Ok(())
}

async fn attempts_of_two_members_with_an_event_that_is_set_aside_are_counted_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let start = || {
        let attempts = Arc::clone(&attempts);
        let retry = Retry { set_aside: true, ..quick(20) };
        Running::start(field.consumer().retry(retry).on("Counted", 1..=1, move |ctx: Context, _: Counted| {
            attempts.lock().expect("the attempts").push(ctx.attempt());
            async { Err::<(), _>(Failed::transient("never")) }
        }))
    };
    let (first, second) = (start(), start());
    first.until("both are members", |stats| stats.assigned() > 0).await;
    second.until("both are members", |stats| stats.assigned() > 0).await;
    field.write([counted("a", 1)]).await?;
    field.publish().await?;
    eventually("the event is given up", APPLIED_WITHIN, || async {
        let dead = first.stats.dead() + second.stats.dead();
        if dead > 0 { Ok(()) } else { Err(dead) }
    })
    .await;
    let counted: u64 = [first.stop().await?, second.stop().await?].iter().map(|stats| stats.dead()).sum();
    let mut attempts = attempts.lock().expect("the attempts").clone();
    // Each member would make all of them. Few come twice, when a member looks between an attempt and its record.
    ensure!(attempts.len() < 30, "{attempts:?}");
    attempts.sort_unstable();
    attempts.dedup();
    ensure!(attempts == (1..=20).collect::<Vec<_>>(), "{attempts:?}");
    ensure!(counted <= 2, "{counted} dead letters");
    Ok(())
}

async fn retries_are_chosen_by_error_and_by_type(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let attempts = Arc::new(Mutex::new(BTreeMap::<String, u32>::new()));
    let mut consumer = field.consumer().retry(quick(2)).retry_type("ByType", quick(3)).retry_when(|event, failed| {
        let is_io = failed.error().downcast_ref::<std::io::Error>().is_some();
        let is_bounded = failed.kind() == Kind::Outage && event.event_type == "Outage";
        (is_io || is_bounded).then(|| quick(5))
    });
    for event_type in ["Default", "ByType", "ByError", "Permanent", "PermanentByError", "Outage"] {
        let attempts = Arc::clone(&attempts);
        consumer = consumer.on(event_type, 1..=1, move |ctx: Context, _: Value| {
            attempts.lock().expect("the attempts").insert(event_type.to_owned(), ctx.attempt());
            async move {
                Err::<(), _>(match event_type {
                    "ByError" => Failed::from(std::io::Error::other("busy")),
                    "PermanentByError" => Failed::permanent(std::io::Error::other("busy")),
                    "Permanent" => Failed::permanent("wrong"),
                    "Outage" => Failed::outage("away"),
                    _ => Failed::transient("not yet"),
                })
            }
        });
    }
    let types = ["Default", "ByType", "ByError", "Permanent", "PermanentByError", "Outage"];
    field.write(types.map(|event_type| NewEvent::new("order", event_type, event_type))).await?;
    field.publish().await?;
    let running = Running::start(consumer);
    running.until("all are given up", |stats| stats.dead() == 6).await;
    running.stop().await?;
    let attempts = attempts.lock().expect("the attempts").clone();
    let expected =
        [("Default", 2), ("ByType", 3), ("ByError", 5), ("Permanent", 1), ("PermanentByError", 5), ("Outage", 5)];
    ensure!(attempts == expected.map(|(name, count)| (name.to_owned(), count)).into(), "{attempts:?}");
    for (record, letter) in field.dead_letters().await? {
        let event_type = record.header("event-type").context("a type")?.to_owned();
        let reason = if event_type.starts_with("Permanent") { Reason::Permanent } else { Reason::Exhausted };
        ensure!(letter.reason == reason && letter.attempts == attempts[&event_type], "{event_type}: {letter:?}");
    }
    Ok(())
}

async fn a_paused_topic_waits_and_the_group_does_not_notice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let other = format!("{}-other", field.outbox.topic);
    field.kafka.create_topic(&other, 1, &[]).await?;
    let consumer = field.counting().topic(&other).queue(4).kafka("max.poll.interval.ms", "6000");
    let control = consumer.control();
    let running = Running::start(consumer);
    field.write((1..=10).map(|n| counted("a", n))).await?;
    field.publish().await?;
    field.until_effects(10).await;
    control.pause(&field.outbox.topic);
    running.until("the statistics say so", |stats| stats.is_paused()).await;
    field.write((11..=40).map(|n| counted("a", n))).await?;
    field.write((1..=30).map(|n| counted("b", n).topic(&other))).await?;
    field.publish().await?;
    field.until_effects(40).await;
    ensure!(field.applied().await?["a"].len() == 10, "a paused topic goes on");
    control.pause_all();
    field.write([counted("b", 31).topic(&other)]).await?;
    field.publish().await?;
    control.resume(&field.outbox.topic);
    ensure!(control.is_paused(&field.outbox.topic));
    control.resume_all();
    field.until_effects(71).await;
    let stats = running.stop().await?;
    ensure!(stats.revoked() == 0 && stats.repeated() == 0 && stats.applied() == 71, "{stats:?}");
    ensure!(field.applied().await?.values().all(|applied| applied.is_sorted()));
    Ok(())
}

async fn events_begin_at_the_rate_that_is_set(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let consumer = field.counting().concurrency(2);
    let control = consumer.control();
    control.rate(50.0);
    field.write((1..=40).map(|n| counted(&format!("e{}", n % 9), n))).await?;
    field.publish().await?;
    let began = Instant::now();
    let running = Running::start(consumer);
    field.until_effects(26).await;
    // A lower bound only: a busy machine takes longer.
    ensure!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    control.rate(None);
    field.until_effects(40).await;
    running.stop().await?;
    Ok(())
}

async fn the_hook_before_a_dead_letter_sees_the_event_and_decides(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let seen: Arc<Mutex<Vec<Rejected>>> = Arc::default();
    let sees = Arc::clone(&seen);
    let consumer = field
        .consumer()
        .on("Counted", 1..=1, async |mut ctx: Context, event: Counted| {
            insert(&mut ctx, event.n).await?;
            if event.n < 0 { Err(Failed::permanent("negative")) } else { Ok(()) }
        })
        .before_dead_letter(move |rejected| {
            sees.lock().expect("the rejected").push(rejected.clone());
            async move {
                let key = rejected.event.as_ref().and_then(|event| event.key_text());
                match key {
                    Some("held") => Action::HoldKey,
                    Some("panics") => panic!("a bug of the hook"),
                    _ => rejected.action,
                }
            }
        });
    for key in ["held", "panics", "skipped"] {
        field.write([counted(key, -1), counted(key, 1)]).await?;
    }
    field.publish().await?;
    let running = Running::start(consumer);
    running.until("three are given up, and one holds its key", |stats| stats.dead() == 3 && stats.parked() == 2).await;
    field.until_effects(2).await;
    running.stop().await?;
    let applied = field.applied().await?;
    ensure!(applied.keys().eq(["panics", "skipped"]), "{applied:?}");
    let seen = seen.lock().expect("the rejected").clone();
    ensure!(seen.len() == 3, "{seen:?}");
    for rejected in seen {
        ensure!(rejected.reason == Reason::Permanent && rejected.error == "negative", "{rejected:?}");
        ensure!(rejected.attempts == 1 && rejected.action == Action::Skip, "{rejected:?}");
        ensure!(rejected.topic == field.outbox.topic, "{rejected:?}");
    }
    Ok(())
}

async fn a_test_calls_a_handler_in_a_transaction_that_is_rolled_back(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let consumer = field.counting().on("Hidden", 1..=1, async |mut ctx: Context, _: Value| {
        let _ = sqlx::query("select 1 / 0").execute(ctx.tx()).await;
        Ok(())
    });
    let tested = Test::new(counted("a", 7)).database(field.pool.clone()).deliver_to(&consumer).await?;
    ensure!(tested.is_applied(), "{tested:?}");
    let mut tx = tested.tx.context("a transaction")?;
    let n: i64 = sqlx::query_scalar("select n from effects").fetch_one(&mut *tx).await?;
    ensure!(n == 7);
    drop(tx);
    ensure!(field.effects().await? == 0, "the effect of a test was committed");
    // Without a database the handler cannot have its transaction, and says so.
    let tested = Test::new(counted("a", 7)).deliver_to(&consumer).await?;
    let failed = tested.failed().context("a failure")?.to_string();
    ensure!(failed.contains("Test::database"), "{failed}");
    let hidden = Test::new(NewEvent::new("order", "a", "Hidden")).database(field.pool.clone());
    let tested = hidden.deliver_to(&consumer).await?;
    ensure!(
        matches!(tested.outcome, Outcome::Rejected { reason: Reason::Aborted, action: Action::Skip, .. }),
        "{tested:?}"
    );
    let unknown = Test::new(NewEvent::new("order", "a", "Unknown")).deliver_to(&consumer).await?;
    ensure!(matches!(unknown.outcome, Outcome::Ignored), "{unknown:?}");
    let invalid = counted("a", 1).json(&serde_json::json!({"n": "text"}))?;
    let tested = Test::new(invalid).deliver_to(&consumer).await?;
    ensure!(matches!(tested.outcome, Outcome::Rejected { reason: Reason::Invalid, .. }), "{tested:?}");
    Ok(())
}
