//! Tests relays that publish in transactions. Whatever happens to the relays, a `read_committed` consumer sees every event once and in
//! order. No trial allows a duplicate.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;

use crate::fault::Fault;
use crate::proxy::{Catch, Spot};
use crate::relays::{STRIKES, STRIKES_BY_DEFAULT};
use crate::stage::Stage;
use lab::kafka::RealKafka;
use lab::seed::size;
use lab::{Outbox, Relay, TestDatabase, trials};

/// The number of times that a relay is killed at one place.
const KILLS_AT_A_PLACE: &str = "OUTBOX_RELAY_TEST_KILLS";
const KILLS_AT_A_PLACE_BY_DEFAULT: u64 = 2;

/// The codes of a fenced producer and of a lost progress.
const FENCED: &str = "OR-5003";
const LOST: &str = "OR-5004";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            no_duplicate_of_relays_killed_at_random_moments,
            no_duplicate_of_relays_killed_before_their_records_reach_the_broker,
            no_duplicate_of_relays_killed_while_their_records_are_not_acknowledged,
            no_duplicate_of_relays_killed_before_the_progress_is_in_the_transaction,
            no_duplicate_of_relays_killed_before_the_transaction_is_committed,
            no_duplicate_of_relays_killed_after_the_transaction_is_committed,
            no_duplicate_of_relays_killed_before_the_marks,
            no_duplicate_of_relays_killed_after_the_marks,
            no_duplicate_of_commits_of_kafka_whose_answers_are_lost,
            no_duplicate_of_a_commit_of_kafka_that_arrives_during_the_next_transaction,
            no_duplicate_of_sessions_that_end_after_the_transaction_is_committed,
            a_relay_frozen_in_a_transaction_and_woken_after_others_took_its_lanes_is_fenced_and_goes_back_to_work,
            no_duplicate_while_lanes_move_between_four_relays,
            no_duplicate_of_faults_of_every_kind,
            no_duplicate_of_a_change_between_at_least_once_and_exactly_once,
            progress_that_is_lost_is_logged_and_made_up_for_from_the_topic;
        with_postgres:
            no_duplicate_of_a_broker_that_restarts,
            no_duplicate_of_a_broker_that_is_killed;
    }
}

/// Sets exactly-once delivery. Traps recognise the statements by their text. A batch takes four round trips instead of one, on a busy
/// machine.
fn in_transactions(relay: Relay) -> Relay {
    let relay = relay.with("RELAY_DELIVERY", "exactly_once").with("RELAY_PREPARED_STATEMENTS", false);
    relay.with("RELAY_PUBLISH_TIMEOUT", "5s")
}

async fn open(trial: &str, database: &TestDatabase, kafka: &RealKafka, relays: usize) -> anyhow::Result<Stage> {
    let stage = Stage::open_to_settle(trial, &Outbox::from_database(database), kafka, relays, in_transactions).await?;
    Ok(stage.where_nothing_repeats())
}

async fn killed_at(
    spot: Spot,
    catch: Catch,
    trial: &str,
    database: &TestDatabase,
    kafka: &RealKafka,
) -> anyhow::Result<()> {
    let mut stage = open(trial, database, kafka, 2).await?;
    stage.kill_at(spot, catch, size(KILLS_AT_A_PLACE, KILLS_AT_A_PLACE_BY_DEFAULT) as usize).await?;
    stage.close(kafka).await.map(drop)
}

macro_rules! killed_at {
    ($($trial:ident: $spot:ident, $catch:ident;)+) => {
        $(async fn $trial(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
            killed_at(Spot::$spot, Catch::$catch, stringify!($trial), &database, &kafka).await
        })+
    };
}

killed_at! {
    no_duplicate_of_relays_killed_before_their_records_reach_the_broker: Produce, HoldRequest;
    no_duplicate_of_relays_killed_while_their_records_are_not_acknowledged: Produce, HoldAnswer;
    no_duplicate_of_relays_killed_before_the_progress_is_in_the_transaction: Offsets, HoldRequest;
    no_duplicate_of_relays_killed_before_the_transaction_is_committed: EndTransaction, HoldRequest;
    no_duplicate_of_relays_killed_after_the_transaction_is_committed: EndTransaction, HoldAnswer;
    no_duplicate_of_relays_killed_before_the_marks: Mark, HoldRequest;
    no_duplicate_of_relays_killed_after_the_marks: Mark, HoldAnswer;
}

/// `OUTBOX_RELAY_TEST_STRIKES=100` makes this the run of a hundred kills.
async fn no_duplicate_of_relays_killed_at_random_moments(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = open("kill in transactions", &database, &kafka, 3).await?;
    strikes(&mut stage, &kafka, &[Fault::Kill], size(STRIKES, STRIKES_BY_DEFAULT)).await?;
    stage.close(&kafka).await.map(drop)
}

async fn strikes(stage: &mut Stage, kafka: &RealKafka, faults: &[Fault], times: u64) -> anyhow::Result<()> {
    for fault in faults.iter().cycle().take(times as usize) {
        stage.moment().await;
        fault.strike(stage, kafka).await?;
        stage.until_moving().await?;
    }
    stage.moment().await;
    Ok(())
}

/// The connection breaks during a commit. The client commits again and begins the next transaction. Then the first request arrives, and
/// the relay is killed (KAFKA-17754).
async fn no_duplicate_of_a_commit_of_kafka_that_arrives_during_the_next_transaction(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = open("late commits", &database, &kafka, 2).await?;
    for _ in 0..size(KILLS_AT_A_PLACE, KILLS_AT_A_PLACE_BY_DEFAULT) {
        stage.until_moving().await?;
        let victim = &stage.relays[0];
        let before = victim.kafka.sprung();
        victim.kafka.set_trap(Spot::EndTransaction, Catch::DelayRequest);
        victim.kafka.until_sprung(before + 1).await;
        victim.kafka.set_trap(Spot::Produce, Catch::HoldAnswer);
        victim.kafka.until_sprung(before + 2).await;
        victim.kafka.deliver_delayed().await?;
        stage.relays[0].kill()?;
        stage.relays[0].kafka.heal(true);
        stage.relays[0].revive()?;
        stage.until_moving().await?;
    }
    stage.close(&kafka).await.map(drop)
}

async fn no_duplicate_of_commits_of_kafka_whose_answers_are_lost(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = open("lost answers of commits", &database, &kafka, 2).await?;
    for lost in 1..=size(STRIKES, STRIKES_BY_DEFAULT) as usize {
        stage.moment().await;
        let proxy = &stage.relays[0].kafka;
        proxy.set_trap(Spot::EndTransaction, Catch::LoseAnswer);
        proxy.until_sprung(lost).await;
        stage.until_moving().await?;
    }
    stage.close(&kafka).await.map(drop)
}

/// Ends the sessions of a relay whose batch is on the topic but not marked.
async fn no_duplicate_of_sessions_that_end_after_the_transaction_is_committed(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = open("sessions end", &database, &kafka, 2).await?;
    for ended in 1..=size(STRIKES, STRIKES_BY_DEFAULT) as usize {
        stage.moment().await;
        let victim = &stage.relays[0];
        victim.kafka.set_trap(Spot::EndTransaction, Catch::HoldAnswer);
        victim.kafka.until_sprung(ended).await;
        end_sessions(&stage, 0).await?;
        stage.relays[0].kafka.release();
        stage.until_moving().await?;
    }
    stage.close(&kafka).await.map(drop)
}

async fn end_sessions(stage: &Stage, relay: usize) -> anyhow::Result<()> {
    let ended = stage
        .outbox
        .number(&format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where datname = current_database() and application_name = '{}'",
            stage.relays[relay].sessions()
        ))
        .await?;
    ensure!(ended > 0, "there was no session to end");
    Ok(())
}

/// Freezes a relay while its records are in an open transaction. Its session ends, and other relays roll the transaction back.
async fn a_relay_frozen_in_a_transaction_and_woken_after_others_took_its_lanes_is_fenced_and_goes_back_to_work(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    // The batch must not time out before the relay hears that its producer is fenced.
    let patient = |relay: Relay| in_transactions(relay).with("RELAY_PUBLISH_TIMEOUT", "10m");
    let outbox = Outbox::from_database(&database);
    let stage = Stage::open_with("frozen in a transaction", &outbox, &kafka, 2, patient).await?;
    let mut stage = stage.where_nothing_repeats();
    stage.moment().await;
    let frozen = &stage.relays[0];
    frozen.kafka.set_trap(Spot::Produce, Catch::HoldAnswer);
    frozen.kafka.until_sprung(1).await;
    frozen.signal(Signal::SIGSTOP)?;
    frozen.kafka.release();
    end_sessions(&stage, 0).await?;
    // Includes the events that the frozen relay holds.
    let last = outbox.number("select max(id) from event_outbox").await?;
    outbox
        .until_none("no row from before the freeze is pending", &format!("status = 'PENDING' and id <= {last}"))
        .await;
    stage.relays[0].signal(Signal::SIGCONT)?;
    let line = stage.relays[0].process()?.wait_for(FENCED).await;
    ensure!(line["level"] == "WARN", "{line}");
    let began = stage.relays[0].process()?.log().len();
    stage.moment().await;
    stage.until_moving().await?;
    stage.relays[1].stop().await?;
    stage.until_moving().await.context("the fenced relay, alone, goes on")?;
    let logged = stage.relays[0].process()?.lines(FENCED).len();
    ensure!(logged <= 2, "logged {logged} times by two workers; {began} lines before");
    stage.relays[1].revive()?;
    stage.relays[1].until_ready().await?;
    stage.close(&kafka).await.map(drop)
}

async fn no_duplicate_while_lanes_move_between_four_relays(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = open("moving lanes", &database, &kafka, 4).await?;
    let faults = [Fault::Kill, Fault::Leave, Fault::Join, Fault::Stop, Fault::Freeze];
    strikes(&mut stage, &kafka, &faults, size(STRIKES, faults.len() as u64)).await?;
    stage.close(&kafka).await.map(drop)
}

async fn no_duplicate_of_faults_of_every_kind(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut stage = open("every kind", &database, &kafka, 3).await?;
    strikes(&mut stage, &kafka, &Fault::ALL, size(STRIKES, Fault::ALL.len() as u64)).await?;
    stage.close(&kafka).await.map(drop)
}

/// Runs relays of both delivery modes side by side; each stops in good order.
async fn no_duplicate_of_a_change_between_at_least_once_and_exactly_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let at_least_once = |relay: Relay| relay.with("RELAY_DELIVERY", "at_least_once");
    let stage = Stage::open_with("change", &Outbox::from_database(&database), &kafka, 2, at_least_once).await?;
    let mut stage = stage.where_nothing_repeats();
    for tune in [in_transactions, at_least_once, in_transactions] {
        stage.newcomers_are(tune);
        for _ in 0..2 {
            stage.moment().await;
            stage.join(&kafka).await?;
            stage.relays.last().context("a newcomer")?.until_ready().await?;
            stage.moment().await;
            stage.relays[0].stop().await?;
            stage.relays.remove(0);
            stage.until_moving().await?;
        }
    }
    stage.close(&kafka).await.map(drop)
}

/// Kills a relay between the two commits and then deletes the consumer group, which alone knew the published events.
async fn progress_that_is_lost_is_logged_and_made_up_for_from_the_topic(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = open("lost progress", &database, &kafka, 1).await?;
    stage.moment().await;
    let victim = &mut stage.relays[0];
    victim.postgres.set_trap(Spot::Mark, Catch::HoldRequest);
    victim.postgres.until_sprung(1).await;
    victim.kill()?;
    let identity = "select (value # system_identifier) & ((1::bigint << 60) - 1) from event_outbox_control, pg_control_system() \
                    where name = 'identity'";
    let identity = stage.outbox.number(identity).await?;
    let group = format!("outbox-relay.{identity:015x}");
    let admin: AdminClient<DefaultClientContext> = kafka.client().create()?;
    for deleted in admin.delete_groups(&[&group], &AdminOptions::new()).await? {
        deleted.map_err(|(group, code)| anyhow::anyhow!("cannot delete the group {group}: {code}"))?;
    }
    let victim = &mut stage.relays[0];
    victim.revive()?;
    let line = victim.process()?.wait_for(LOST).await;
    ensure!(line["level"] == "WARN" && line["next_step"].is_string(), "{line}");
    ensure!(line["topics_read_to_the_end"] == true, "{line}");
    // Lanes with published but unmarked events may be taken over later, after the dead relay has been silent for long enough.
    let found = |line: &serde_json::Value| line["found_on_topics"].as_i64().is_some_and(|found| found > 0);
    stage.relays[0].process()?.wait_for_line(LOST, found).await;
    stage.moment().await;
    stage.close(&kafka).await.map(drop)
}

async fn no_duplicate_of_a_broker_that_restarts(database: TestDatabase) -> anyhow::Result<()> {
    broker_goes(&database, |kafka| kafka.stop()).await
}

async fn no_duplicate_of_a_broker_that_is_killed(database: TestDatabase) -> anyhow::Result<()> {
    broker_goes(&database, |kafka| kafka.kill()).await
}

/// Takes the broker away in the middle of a transaction: its records are on the topic, its end is not.
async fn broker_goes(database: &TestDatabase, goes: fn(&mut RealKafka)) -> anyhow::Result<()> {
    let mut kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let mut stage = open("a broker goes", database, &kafka, 2).await?;
    for time in 1..=2 {
        stage.moment().await;
        let proxy = &stage.relays[0].kafka;
        proxy.set_trap(Spot::EndTransaction, Catch::HoldRequest);
        proxy.until_sprung(time).await;
        kafka = tokio::task::spawn_blocking(move || {
            goes(&mut kafka);
            kafka.start_again().map(|()| kafka)
        })
        .await??;
        stage.relays[0].kafka.heal(true);
        stage.until_moving().await?;
    }
    stage.moment().await;
    stage.close(&kafka).await.map(drop)
}
