//! Tests a row that another session has locked: only the row's entity may wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection, Executor};

use lab::kafka::RealKafka;
use lab::process::cpu_time;
use lab::seed::size;
use lab::{Outbox, Relay, RelayProcess, SOON, TestDatabase, eventually, long, trials, until_nothing_is_left};

use crate::proxied_relay::ProxiedRelay;
use crate::proxy::{Catch, Spot};

/// The number of other entities' events behind the locked row. An earlier version of the claim published 100,000 of them, but not 200,000.
const BEHIND: &str = "OUTBOX_RELAY_TEST_BEHIND_A_LOCK";
const BEHIND_BY_DEFAULT: u64 = 200_000;
const FEW_BEHIND: u64 = 20_000;

/// The time of observation while nothing but the locked entity waits, and the CPU time that the relay may use in it: a fifth of a core.
const OBSERVED: Duration = Duration::from_secs(5);
const CPU_ALLOWED: Duration = Duration::from_secs(1);

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = trials! {
        with_both:
            a_row_under_an_open_foreign_key_insert_keeps_only_its_own_entity_waiting,
            a_lane_that_becomes_free_while_records_are_in_doubt_makes_no_duplicate,
            lanes_that_are_given_away_while_records_are_in_doubt_make_no_duplicate,
            a_relay_that_stops_while_records_are_in_doubt_makes_no_duplicate;
    };
    all.extend(long(trials! {
        with_both:
            a_locked_row_keeps_only_its_own_entity_waiting;
    }));
    all
}

async fn a_locked_row_keeps_only_its_own_entity_waiting(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let behind = size(BEHIND, BEHIND_BY_DEFAULT);
    only_its_entity_waits(&database, &kafka, behind, "select from event_outbox order by id limit 1 for update").await
}

async fn a_row_under_an_open_foreign_key_insert_keeps_only_its_own_entity_waiting(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    Outbox::from_database(&database)
        .execute("create table delivery_note (event bigint references event_outbox (id))")
        .await?;
    only_its_entity_waits(&database, &kafka, FEW_BEHIND, "insert into delivery_note select min(id) from event_outbox")
        .await
}

/// A slow broker is no fault, so it must not cost duplicates. A worker sets the records aside, and gets the rest of its lanes meanwhile.
async fn a_lane_that_becomes_free_while_records_are_in_doubt_makes_no_duplicate(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut other = outbox.connect().await?;
    let mut transaction = other.begin().await?;
    transaction.execute("select from event_outbox_lane where lane = 0 for update").await?;
    let one_worker = |relay: Relay| relay.with("RELAY_WORKERS", 1).with("RELAY_PUBLISH_TIMEOUT", "120s");
    let mut relay = ProxiedRelay::start("in-doubt", &outbox, &kafka, one_worker).await?;
    relay.until_ready().await?;
    relay.kafka.set_trap(Spot::Produce, Catch::HoldAnswer);
    outbox.write_backlog(500, 100).await?;
    relay.kafka.until_sprung(1).await;
    eventually("records are set aside", SOON, || async {
        match outbox.number("select count(*) from event_outbox_hold").await {
            Ok(1..) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    transaction.rollback().await?;
    let in_lane = "status = 'PENDING' and lane = 0";
    outbox.until_none("the relay publishes the events of the lane that was locked", in_lane).await;
    relay.kafka.release();
    outbox.until_settled().await;
    relay.stop().await?;
    outbox.reconcile(&kafka, Rules { duplicates_allowed: Some(0), pending_allowed: false }).await
}

/// The lanes stay locked while acknowledgements may come. This relay has to give the heir some of them, because a third one joins.
async fn lanes_that_are_given_away_while_records_are_in_doubt_make_no_duplicate(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let (heir, mut relay) = heir_and_relay_in_doubt(&outbox, &kafka).await?;
    let began = Instant::now();
    // A row in the registry is a relay. It is the oldest, so it gets the first lanes, and the shares of the others move up.
    outbox
        .execute(
            "insert into event_outbox_relay (id, name, version, workers, protocol, lanes, settings, started_at) \
             values (gen_random_uuid(), 'third', '', 1, 2, '{}', '{}', '2000-01-01')",
        )
        .await?;
    relay.process()?.wait_for_line("lanes_assigned", |line| line["relays"] == 3).await;
    heir.wait_for_line("lanes_assigned", |line| line["relays"] == 3).await;
    let is_quick = gives_the_heir_time(&outbox, "{5-9}", began).await;
    relay.kafka.release();
    outbox.execute("delete from event_outbox_relay where name = 'third'").await?;
    outbox.until_settled().await;
    relay.stop().await?;
    heir.stop().await?;
    let duplicates_allowed = is_quick.then_some(0);
    outbox.reconcile(&kafka, Rules { duplicates_allowed, pending_allowed: false }).await
}

/// The same for a relay that stops: it waits for its acknowledgements before another one may send.
async fn a_relay_that_stops_while_records_are_in_doubt_makes_no_duplicate(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let (heir, relay) = heir_and_relay_in_doubt(&outbox, &kafka).await?;
    let began = Instant::now();
    relay.signal(Signal::SIGTERM)?;
    let is_quick = gives_the_heir_time(&outbox, "{0-15}", began).await;
    relay.kafka.release();
    relay.exit().await?;
    outbox.until_settled().await;
    heir.stop().await?;
    let duplicates_allowed = is_quick.then_some(0);
    outbox.reconcile(&kafka, Rules { duplicates_allowed, pending_allowed: false }).await
}

/// The time for which a relay keeps lanes with records in doubt, with a margin. A machine that is slower proves nothing here.
const KEPT: Duration = Duration::from_secs(2);

/// Starts two relays with a half of the lanes each. The second one has sent records that the broker has written and not acknowledged, and has
/// set them aside.
async fn heir_and_relay_in_doubt(outbox: &Outbox, kafka: &RealKafka) -> anyhow::Result<(RelayProcess, ProxiedRelay)> {
    outbox.create_topic(kafka).await?;
    let one_worker = |relay: Relay| relay.with("RELAY_WORKERS", 1).with("RELAY_PUBLISH_TIMEOUT", "120s");
    let heir = one_worker(outbox.relay(kafka)).with("RELAY_HEARTBEAT_INTERVAL", "1s").start_ready("heir").await?;
    let relay = ProxiedRelay::start("in-doubt", outbox, kafka, one_worker).await?;
    relay.until_ready().await?;
    let halves = "select 2 - count(*) from event_outbox_relay where lanes in ('{0-7}', '{8-15}')";
    until_nothing_is_left("both have a half of the lanes", SOON, || outbox.number(halves)).await;
    relay.kafka.set_trap(Spot::Produce, Catch::HoldAnswer);
    outbox.write_backlog(500, 100).await?;
    relay.kafka.until_sprung(1).await;
    let held = "select count(*) from event_outbox_hold";
    eventually("records are set aside", SOON, || async {
        match outbox.number(held).await {
            Ok(1..) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    Ok((heir, relay))
}

/// Gives the heir the time to take lanes which it must not get yet. Returns true if all of it was quick enough to prove something.
async fn gives_the_heir_time(outbox: &Outbox, lanes: &str, began: Instant) -> bool {
    let owns = format!("select count(*) from event_outbox_relay where name = 'heir' and lanes = '{lanes}'");
    let deadline = began + KEPT;
    while Instant::now() < deadline && !matches!(outbox.number(&owns).await, Ok(1)) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let is_quick = began.elapsed() < KEPT + Duration::from_millis(200);
    if !is_quick {
        eprintln!("the machine is too slow: {:?}", began.elapsed());
    }
    is_quick
}

async fn only_its_entity_waits(
    database: &TestDatabase,
    kafka: &RealKafka,
    behind: u64,
    lock: &str,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(database);
    outbox.create_topic(kafka).await?;
    outbox.write("locked", 1, 3).await?;
    outbox.write_backlog(behind as i64, 500).await?;
    outbox.write("locked", 4, 2).await?;
    let mut other = outbox.connect().await?;
    let mut transaction = other.begin().await?;
    transaction.execute(AssertSqlSafe(lock.to_owned())).await?;

    let relay = outbox.relay(kafka).start_ready("locks").await?;
    until_only_the_locked_entity_waits(&outbox, relay.pid()).await;
    let waiting = outbox.row_states("locked").await?;
    ensure!(waiting.iter().all(|row| row.status == "PENDING" && row.attempts == 0), "{waiting:?}");
    let before = cpu_time(relay.pid())?;
    tokio::time::sleep(OBSERVED).await;
    let used = cpu_time(relay.pid())? - before;
    eprintln!("{used:?} of CPU in {OBSERVED:?} while one row is locked");
    ensure!(used < CPU_ALLOWED, "{used:?} of CPU in {OBSERVED:?} while nothing but a locked entity waits");
    outbox.write("other", 1, 5).await?;
    outbox.until_settled_of("other").await;

    transaction.rollback().await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    let numbers = outbox.published_numbers(kafka).await?;
    ensure!(numbers["locked"] == [1, 2, 3, 4, 5], "{:?}", numbers["locked"]);
    outbox.reconcile(kafka, Rules { duplicates_allowed: Some(0), pending_allowed: false }).await
}

async fn until_only_the_locked_entity_waits(outbox: &Outbox, relay: u32) {
    let others = "select count(*) from event_outbox where status = 'PENDING' and entity_id <> 'locked'";
    eventually("only the locked entity waits; the others that do, and the relay's CPU time", SOON * 4, || async {
        match outbox.number(others).await {
            Ok(0) => Ok(()),
            other => Err((other, cpu_time(relay))),
        }
    })
    .await;
}
