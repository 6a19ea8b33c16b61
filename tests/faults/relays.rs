//! Tests relays that are killed, stopped or frozen, and relays that join and leave.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use sqlx::{Connection, Executor};

use crate::fault::Fault;
use crate::proxy::{Catch, Spot};
use crate::stage::Stage;
use lab::kafka::RealKafka;
use lab::seed::size;
use lab::{Outbox, SOON, TestDatabase, eventually, trials};

/// The number of times that a fault strikes in a trial.
pub(crate) const STRIKES: &str = "OUTBOX_RELAY_TEST_STRIKES";
pub(crate) const STRIKES_BY_DEFAULT: u64 = 3;

/// The number of times that a relay is killed at one place.
const KILLS_AT_A_PLACE: usize = 2;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            relays_killed_at_random_moments,
            relays_killed_before_their_records_reach_the_broker,
            relays_killed_while_their_records_are_not_acknowledged,
            relays_killed_after_the_acks_and_before_the_marks,
            relays_killed_after_the_marks_and_before_the_commit,
            relays_killed_after_the_commit_and_before_its_answer,
            relays_stopped_under_load_send_nothing_twice,
            relays_frozen_for_a_moment,
            relays_that_join_and_leave_send_nothing_twice;
    }
}

/// Runs a trial with the same fault again and again, at moments that the seed decides.
pub(crate) async fn under(fault: Fault, trial: &str, database: &TestDatabase, kafka: &RealKafka) -> anyhow::Result<()> {
    let mut stage = Stage::open(trial, &Outbox::from_database(database), kafka, 2).await?;
    for _ in 0..size(STRIKES, STRIKES_BY_DEFAULT) {
        stage.moment().await;
        fault.strike(&mut stage, kafka).await?;
        stage.until_moving().await?;
    }
    stage.moment().await;
    stage.close(kafka).await.map(drop)
}

async fn relays_killed_at_random_moments(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::Kill, "kill", &database, &kafka).await
}

async fn relays_stopped_under_load_send_nothing_twice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    under(Fault::Stop, "stop", &database, &kafka).await
}

async fn relays_frozen_for_a_moment(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::Freeze, "freeze", &database, &kafka).await
}

async fn killed_at(
    spot: Spot,
    catch: Catch,
    trial: &str,
    database: &TestDatabase,
    kafka: &RealKafka,
) -> anyhow::Result<()> {
    let mut stage = Stage::open_to_settle(trial, &Outbox::from_database(database), kafka, 2, |relay| relay).await?;
    stage.kill_at(spot, catch, KILLS_AT_A_PLACE).await?;
    stage.close(kafka).await.map(drop)
}

async fn relays_killed_before_their_records_reach_the_broker(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_at(Spot::Produce, Catch::HoldRequest, "kill before publish", &database, &kafka).await
}

async fn relays_killed_while_their_records_are_not_acknowledged(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_at(Spot::Produce, Catch::HoldAnswer, "kill during publish", &database, &kafka).await
}

async fn relays_killed_after_the_acks_and_before_the_marks(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_at(Spot::Mark, Catch::HoldRequest, "kill before mark", &database, &kafka).await
}

async fn relays_killed_after_the_marks_and_before_the_commit(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    // Marks and commit are one request. A trigger that runs at the commit and waits separates the two.
    let outbox = Outbox::from_database(&database);
    let mut stage = Stage::open("kill before commit", &outbox, &kafka, 2).await?;
    outbox
        .execute(
            "create function wait_at_commit() returns trigger language plpgsql as \
             'begin perform pg_advisory_xact_lock_shared(4711); return null; end'; \
             create constraint trigger wait_at_commit after update on event_outbox deferrable initially deferred \
             for each row when (new.status = 'PUBLISHED') execute function wait_at_commit()",
        )
        .await?;
    for _ in 0..KILLS_AT_A_PLACE {
        stage.moment().await;
        // Both relays wait there and may give up once (`lock_timeout`) before one of them dies.
        stage.may_repeat(4);
        let mut gate = outbox.connect().await?;
        gate.execute("select pg_advisory_lock(4711)").await?;
        let waiting = "pg_stat_activity where datname = current_database() and query ~ '^(with changed|execute)' \
                       and wait_event_type = 'Lock' and wait_event = 'advisory'";
        let of_the_victim = format!("select count(*) from {waiting} and application_name like '%-0'");
        eventually("the victim has marked and not committed", SOON, || async {
            match outbox.number(&of_the_victim).await {
                Ok(1..) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        stage.relays[0].kill()?;
        // A waiting backend does not notice that its client is gone, so it would commit its marks.
        outbox.number(&format!("select count(pg_terminate_backend(pid)) from {waiting}")).await?;
        gate.close().await?;
        stage.until_moving().await?;
        let victim = &mut stage.relays[0];
        victim.revive()?;
        victim.until_ready().await?;
    }
    stage.moment().await;
    stage.close(&kafka).await.map(drop)
}

async fn relays_killed_after_the_commit_and_before_its_answer(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    killed_at(Spot::Mark, Catch::HoldAnswer, "kill after commit", &database, &kafka).await
}

async fn relays_that_join_and_leave_send_nothing_twice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = Stage::open("join and leave", &Outbox::from_database(&database), &kafka, 1).await?;
    for change in [Fault::Join, Fault::Join, Fault::Leave, Fault::Join, Fault::Leave, Fault::Leave] {
        stage.moment().await;
        change.strike(&mut stage, &kafka).await?;
        let relays = stage.relays.len();
        for relay in &stage.relays {
            let process = relay.process()?;
            let shared = |line: &serde_json::Value| line["relays"] == relays;
            process.wait_for_line("lanes_assigned", shared).await;
        }
    }
    let report = stage.close(&kafka).await?;
    ensure!(report.duplicates == 0, "{report}");
    Ok(())
}
