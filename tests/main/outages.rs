//! Tests servers that are down at the start, or go away and come back. A test that stops a server uses a private one.

use std::sync::Arc;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use lab::demo::{PostgresOptions, PrivatePostgres, Signal};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::guarantees::ONCE;
use lab::kafka::RealKafka;
use lab::load::{Load, Plan};
use lab::{Outbox, RelayProcess, SOON, TestDatabase, eventually, options_for_tests, trials};

const STARTED: &str = "outage_started";
const ENDED: &str = "outage_ended";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            a_broker_that_is_down_at_the_start_is_waited_for,
            a_broker_that_goes_away_under_load_costs_nothing_and_pins_no_transaction,
            a_broker_that_does_not_answer_is_an_outage_and_keeps_every_order;
        with_kafka:
            a_database_that_is_down_at_the_start_is_waited_for,
            a_relay_that_migrates_waits_for_a_database_that_is_down,
            a_database_restarted_under_load_loses_nothing_and_keeps_every_order;
        with_both:
            a_password_that_is_wrong_at_the_first_start_is_an_error,
            a_held_entity_is_named_as_what_blocks,
            sessions_terminated_under_load_lose_nothing_and_keep_every_order,
            a_database_that_takes_claims_and_refuses_marks_is_not_asked_by_publishing_again;
    }
}

/// Returns the log lines about one server's incidents.
fn logged(relay: &RelayProcess, notice: &str, server: &str) -> Vec<Value> {
    relay.lines(notice).into_iter().filter(|line| line["server"] == server).collect()
}

/// Expects one line at the start of the incident and one at its end, with the facts that an operator needs.
async fn logged_once(relay: &RelayProcess, server: &str) -> anyhow::Result<()> {
    relay.wait_for_line(ENDED, |line| line["server"] == server).await;
    let (started, ended) = (logged(relay, STARTED, server), logged(relay, ENDED, server));
    ensure!(started.len() == 1 && ended.len() == 1, "{started:?} {ended:?}");
    ensure!(started[0]["level"] == "WARN" && started[0]["next_step"].is_string(), "{started:?}");
    ensure!(ended[0]["level"] == "INFO" && ended[0]["lasted_ms"].is_u64(), "{ended:?}");
    ensure!(ended[0]["events_waited"].is_u64(), "{ended:?}");
    Ok(())
}

async fn a_broker_that_is_down_at_the_start_is_waited_for(database: TestDatabase) -> anyhow::Result<()> {
    let mut kafka = RealKafka::start(&[])?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    kafka.stop();
    outbox.write("early", 1, 10).await?;
    let relay = outbox.relay(&kafka).start("early")?;
    relay.wait_for(STARTED).await;
    outbox.write("early", 11, 10).await?;
    kafka.start_again()?;
    outbox.until_settled().await;
    logged_once(&relay, "kafka").await?;
    // Its first batch may be published before the check of its readiness, which runs beside the workers.
    relay.wait_for("ready").await;
    ensure!(relay.lines("ready").len() == 1, "ready once, when the brokers have answered");
    let events_waited = logged(&relay, ENDED, "kafka")[0]["events_waited"].clone();
    ensure!(events_waited == 20, "{events_waited}");
    outbox.all_published().await?;
    outbox.reconcile(&kafka, ONCE).await
}

async fn a_broker_that_goes_away_under_load_costs_nothing_and_pins_no_transaction(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut kafka = RealKafka::start(&[])?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    // A batch in flight waits this long for its acks, and its transaction waits with it.
    let relay = outbox.relay(&kafka).with("RELAY_PUBLISH_TIMEOUT", "5s").start_ready("kafka-away").await?;
    let load = Load::start(&outbox, Plan::new(4_000, 100));
    load.until_committed(500).await;
    kafka.kill();
    relay.wait_for(STARTED).await;
    eventually("no session of the relay is in a transaction", SOON, || async {
        match outbox.relay_sessions_in_transaction().await {
            Ok(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // The transactions stay closed while the application goes on.
    for n in 0..300 {
        outbox.write("meanwhile", n, 1).await?;
        let open = outbox.relay_sessions_in_transaction().await?;
        ensure!(open == 0, "{open} sessions of the relay are in a transaction while the broker is down");
    }
    kafka.start_again()?;
    load.reconcile(&outbox, &kafka, Rules::default()).await?;
    logged_once(&relay, "kafka").await
}

/// A frozen broker keeps its connections, so only the missing answers show the outage.
async fn a_broker_that_does_not_answer_is_an_outage_and_keeps_every_order(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut kafka = RealKafka::start(&[])?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).with("RELAY_PUBLISH_TIMEOUT", "1s").start_ready("kafka-frozen").await?;
    let load = Load::start(&outbox, Plan::new(4_000, 100));
    load.until_committed(500).await;
    kafka.signal(Signal::SIGSTOP)?;
    relay.wait_for(STARTED).await;
    load.until_committed(2_000).await;
    kafka.signal(Signal::SIGCONT)?;
    load.reconcile(&outbox, &kafka, Rules::default()).await?;
    relay.wait_for(ENDED).await;
    Ok(())
}

async fn a_database_that_is_down_at_the_start_is_waited_for(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut postgres = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::on(&postgres, "database-down-at-start").await?;
    outbox.create_topic(&kafka).await?;
    outbox.write("early", 1, 10).await?;
    postgres.shut_down().await;
    let mut relay = outbox.relay(&kafka).start("early")?;
    relay.wait_for(STARTED).await;
    ensure!(relay.is_running()?);
    postgres.start_again().await?;
    outbox.until_settled().await;
    logged_once(&relay, "postgres").await?;
    outbox.all_published().await?;
    outbox.reconcile(&kafka, ONCE).await
}

async fn a_relay_that_migrates_waits_for_a_database_that_is_down(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut postgres = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::found_on(&postgres, "database-down-at-migration");
    outbox.create_topic(&kafka).await?;
    postgres.shut_down().await;
    let mut relay = outbox.relay(&kafka).argument("--migrate").start("migrates")?;
    relay.wait_for(STARTED).await;
    ensure!(relay.is_running()?);
    postgres.start_again().await?;
    relay.wait_for("migrated").await;
    outbox.write("early", 1, 10).await?;
    outbox.until_settled().await;
    logged_once(&relay, "postgres").await?;
    ensure!(relay.stop().await? == Some(0));
    outbox.all_published().await
}

async fn a_database_restarted_under_load_loses_nothing_and_keeps_every_order(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    // The server must keep its commits.
    let options = PostgresOptions { durable: true, ..options_for_tests() };
    let mut postgres = PrivatePostgres::start(options).await?;
    let outbox = Outbox::on(&postgres, "database-restarted").await?;
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).start_ready("postgres-away").await?;
    let load = Load::start(&outbox, Plan::new(4_000, 100));
    load.until_committed(1_000).await;
    postgres.restart().await?;
    relay.wait_for_line(ENDED, |line| line["server"] == "postgres").await;
    load.until_committed(2_000).await;
    // The second stop is without a checkpoint. Commits are kept, but the marks of the last moment may be lost.
    postgres.stop_hard().await;
    postgres.start_again().await?;
    load.reconcile(&outbox, &kafka, Rules::default()).await
}

async fn sessions_terminated_under_load_lose_nothing_and_keep_every_order(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka);
    let relays = [settings.start_ready("one").await?, settings.start_ready("two").await?];
    let load = Load::start(&outbox, Plan::new(4_000, 100));
    let mut terminated = 0;
    for round in 1..=7 {
        load.until_committed(round * 500).await;
        terminated += outbox
            .number(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                 where datname = current_database() and application_name like 'outbox-relay %'",
            )
            .await?;
    }
    ensure!(terminated > 0, "there was nothing to terminate");
    load.reconcile(&outbox, &kafka, Rules::default()).await?;
    for relay in relays {
        ensure!(relay.stop().await? == Some(0));
    }
    Ok(())
}

/// Postgres rejects the marks, as with a full disk or a forgotten trigger.
async fn a_database_that_takes_claims_and_refuses_marks_is_not_asked_by_publishing_again(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    const EVENTS: i64 = 200;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    // A sequence is not rolled back, so it counts the tries.
    outbox.execute("create sequence tries").await?;
    outbox
        .execute(
            "create function refuse() returns trigger language plpgsql as $$ begin \
             perform nextval('public.tries'); \
             raise exception 'could not extend file: wrote only 4096 of 8192 bytes' using errcode = 'disk_full'; \
             end $$",
        )
        .await?;
    outbox.execute("create trigger refuse before update on event_outbox execute function refuse()").await?;
    outbox.write_backlog(EVENTS, 50).await?;
    let relay = outbox.relay(&kafka).start("refused")?;
    relay.wait_for_line(STARTED, |line| line["code"] == "OR-2006").await;
    eventually("the marks are tried again and again", SOON, || async {
        match outbox.number("select last_value from tries").await {
            Ok(tries) if tries >= 9 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    // A session tries the marks before it publishes its first batch.
    let records = kafka.read_topic(&outbox.topic).await?.len();
    ensure!(records == 0, "{records} records");
    outbox.execute("drop trigger refuse on event_outbox").await?;
    outbox.until_settled().await;
    relay.wait_for_line(ENDED, |line| line["server"] == "postgres").await;
    outbox.reconcile(&kafka, ONCE).await
}

async fn a_password_that_is_wrong_at_the_first_start_is_an_error(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let url = database.url();
    let (_, host) = url.rsplit_once('@').context("a user")?;
    let relay = lab::Relay::new(&format!("postgres://postgres:wrong@{host}"), &kafka.bootstrap()).start("stranger")?;
    let refused = relay.wait_for("server_refuses").await;
    ensure!(refused["level"] == "ERROR" && refused["code"] == "OR-2002", "{refused}");
    ensure!(refused["next_step"].as_str().is_some_and(|step| step.contains("password")), "{refused}");
    ensure!(relay.lines("ready").is_empty() && relay.lines(STARTED).is_empty(), "{:?}", relay.log());
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn a_held_entity_is_named_as_what_blocks(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_ON_POISON", "hold_entity").with("RELAY_STATUS_INTERVAL", "1s");
    let relay = settings.start_ready("held").await?;
    relay.wait_for_line("status", |line| line["blocked"] == "nothing").await;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
             values ('order', 'bad', 'X', '{}', '{\"number\": 1}'), ('order', 'bad', 'X', '{}', '{}')",
        )
        .await?;
    let held = |line: &Value| line["blocked"].as_str().is_some_and(|blocked| blocked.contains("are held: "));
    relay.wait_for_line("status", held).await;
    Ok(())
}
