//! Tests relays that sleep until a writer wakes them. They would poll once a minute, so that events which no one announces come too late.

use std::sync::Arc;

use anyhow::ensure;
use event_outbox::Names;
use lab::demo::PrivatePostgres;
use lab::kafka::RealKafka;
use lab::pgbouncer::PgBouncer;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, options_for_tests, trials};
use libtest_mimic::Trial;
use sqlx::{Connection, Executor};

/// The events of a trial, one after the other. Polls once a minute would take longer than any wait of a trial.
pub(crate) const EVENTS: i64 = 12;

/// Sessions that hold the locks of a sleeping relay.
const ASLEEP: &str = "select count(distinct pid) from pg_locks join pg_database d on d.oid = database \
    where locktype = 'advisory' and mode = 'ExclusiveLock' and objsubid = 2 and datname = current_database() and granted";

const LISTENERS: &str =
    "from pg_stat_activity where application_name = 'outbox-relay-wake-up' and datname = current_database()";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            events_of_outbox_emit_wake_a_relay,
            inserts_wake_a_relay_through_the_trigger,
            several_relays_are_woken,
            a_relay_whose_listener_is_ended_goes_on,
            locks_of_a_stranger_cost_no_event,
            a_transaction_that_stays_open_costs_no_event,
            a_scheduled_event_wakes_a_relay_when_it_is_due,
            a_relay_behind_a_pooler_polls_unless_it_has_a_direct_connection,
            a_relay_that_is_told_not_to_listen_does_not;
        with_kafka:
            a_transaction_with_events_can_be_prepared_while_a_relay_sleeps;
    }
}

/// Polls once a minute.
pub(crate) fn sleepy(outbox: &Outbox, kafka: &RealKafka) -> Relay {
    outbox.relay(kafka).with("RELAY_POLL_INTERVAL", "1m")
}

/// Waits until `relays` sessions hold the locks.
pub(crate) async fn until_asleep(outbox: &Outbox) {
    eventually("a relay sleeps", SOON, || async {
        match outbox.number(ASLEEP).await {
            Ok(1) => Ok(()),
            other => Err(other.map_err(|error| error.to_string())),
        }
    })
    .await;
}

/// Emits events one by one, each after the one before is published and the relay sleeps again.
async fn lone_events(outbox: &Outbox, entity: &str) -> anyhow::Result<()> {
    let mut conn = outbox.connect().await?;
    for n in 1..=EVENTS {
        until_asleep(outbox).await;
        lab::outbox::emit(&mut conn, entity, n).await?;
        outbox.until_settled_of(entity).await;
    }
    conn.close().await?;
    Ok(())
}

async fn events_of_outbox_emit_wake_a_relay(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = sleepy(&outbox, &kafka).start_ready("sleepy").await?;
    lone_events(&outbox, "a").await?;
    ensure!(outbox.published_numbers(&kafka).await?["a"] == (1..=EVENTS).collect::<Vec<_>>());
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn inserts_wake_a_relay_through_the_trigger(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let migrate = |flag| outbox.relay(&kafka).argument(flag);
    ensure!(migrate("--wake-up-trigger").output("migrate").await?.code == Some(0));
    let relay = sleepy(&outbox, &kafka).start_ready("sleepy").await?;
    for n in 1..=EVENTS {
        until_asleep(&outbox).await;
        outbox.write("a", n, 1).await?;
        outbox.until_settled_of("a").await;
    }
    ensure!(migrate("--no-wake-up-trigger").output("migrate").await?.code == Some(0));
    ensure!(outbox.number("select count(*) from pg_trigger where tgname = 'event_outbox_wake_up'").await? == 0);
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn several_relays_are_woken(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let first = sleepy(&outbox, &kafka).start_ready("first").await?;
    let second = sleepy(&outbox, &kafka).start_ready("second").await?;
    for entity in ["a", "b", "c", "d"] {
        lone_events(&outbox, entity).await?;
    }
    // The other one takes the lanes, and the locks.
    first.kill()?;
    lone_events(&outbox, "e").await?;
    ensure!(second.stop().await? == Some(0));
    Ok(())
}

async fn a_relay_whose_listener_is_ended_goes_on(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).start_ready("sleepy").await?;
    let mut conn = outbox.connect().await?;
    for n in 1..=EVENTS {
        until_asleep(&outbox).await;
        outbox.number(&format!("select count(pg_terminate_backend(pid)) {LISTENERS}")).await?;
        lab::outbox::emit(&mut conn, "a", n).await?;
        outbox.until_settled_of("a").await;
    }
    ensure!(relay.lines("outage_started").is_empty() && relay.stop().await? == Some(0));
    Ok(())
}

/// The keys of the locks are in pg_locks, so any session can take them.
async fn locks_of_a_stranger_cost_no_event(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).start_ready("sleepy").await?;
    until_asleep(&outbox).await;
    let class = Names::default().wake_up_class();
    for mode in ["", "_shared"] {
        let mut stranger = outbox.connect().await?;
        let take = format!("select pg_advisory_lock{mode}({class}, key) from generate_series(0, 7) key");
        let taken = tokio::spawn(async move {
            sqlx::query(sqlx::AssertSqlSafe(take)).execute(&mut stranger).await.map(|_| stranger)
        });
        // The relay gives the locks back when it wakes.
        outbox.write("wakes", 1, 1).await?;
        lab::outbox::emit(&mut outbox.connect().await?, "wakes", 2).await?;
        let stranger = taken.await??;
        for n in 1..=EVENTS {
            lab::outbox::emit(&mut outbox.connect().await?, "a", n).await?;
            outbox.until_settled_of("a").await;
        }
        stranger.close().await?;
        until_asleep(&outbox).await;
    }
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn a_transaction_that_stays_open_costs_no_event(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).start_ready("sleepy").await?;
    let mut open = outbox.connect().await?;
    let mut transaction = open.begin().await?;
    lab::outbox::emit(&mut transaction, "open", 1).await?;
    for n in 1..=EVENTS {
        lab::outbox::emit(&mut outbox.connect().await?, "a", n).await?;
        outbox.until_settled_of("a").await;
    }
    transaction.commit().await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn a_scheduled_event_wakes_a_relay_when_it_is_due(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = sleepy(&outbox, &kafka).start_ready("sleepy").await?;
    until_asleep(&outbox).await;
    let emit = "select outbox_emit('order', 'later', 'Due', '{}', available_at => now() + interval '2 seconds')";
    outbox.execute(emit).await?;
    outbox.until_settled().await;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn a_relay_behind_a_pooler_polls_unless_it_has_a_direct_connection(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let pooler = PgBouncer::start(&database, "transaction").await?;
    let pooled = Relay::new(pooler.url(), &kafka.bootstrap()).with("RELAY_TOPIC", &outbox.topic);
    let pooled = pooled.with("RELAY_PREPARED_STATEMENTS", false);
    let relay = pooled.start_ready("pooled").await?;
    let line = relay.wait_for("wake_up_off").await;
    ensure!(
        line["level"] == "INFO" && line["next_step"].as_str().is_some_and(|step| step.contains("RELAY_WAKE_UP_URL")),
        "{line}"
    );
    let mut conn = outbox.connect().await?;
    for n in 1..=EVENTS {
        lab::outbox::emit(&mut conn, "a", n).await?;
        outbox.until_settled_of("a").await;
    }
    ensure!(relay.lines("wake_up_off").len() == 1 && relay.stop().await? == Some(0));
    let direct = pooled.with("RELAY_WAKE_UP_URL", database.url()).with("RELAY_POLL_INTERVAL", "1m");
    let relay = direct.start_ready("direct").await?;
    lone_events(&outbox, "b").await?;
    ensure!(relay.lines("wake_up_off").is_empty() && relay.stop().await? == Some(0));
    pooler.stop();
    Ok(())
}

/// Postgres refuses to prepare a transaction that has notified.
async fn a_transaction_with_events_can_be_prepared_while_a_relay_sleeps(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut options = options_for_tests();
    options.settings.push(("max_prepared_transactions".to_owned(), "5".to_owned()));
    let postgres = PrivatePostgres::start(options).await?;
    let outbox = Outbox::on(&postgres, "prepared").await?;
    outbox.create_topic(&kafka).await?;
    let set = outbox.relay(&kafka).argument("--wake-up-trigger").output("migrate").await?;
    ensure!(set.code == Some(0), "{set:?}");
    let relay = outbox.relay(&kafka).start_ready("sleepy").await?;
    until_asleep(&outbox).await;
    let mut conn = outbox.connect().await?;
    conn.execute("begin").await?;
    lab::outbox::emit(&mut conn, "a", 1).await?;
    conn.execute("prepare transaction 'both'").await?;
    conn.execute("commit prepared 'both'").await?;
    outbox.until_settled_of("a").await;
    ensure!(relay.stop().await? == Some(0));
    postgres.stop().await;
    Ok(())
}

async fn a_relay_that_is_told_not_to_listen_does_not(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).with("RELAY_WAKE_UP", "off").start_ready("polls").await?;
    let mut conn = outbox.connect().await?;
    for n in 1..=EVENTS {
        lab::outbox::emit(&mut conn, "a", n).await?;
        outbox.until_settled_of("a").await;
        ensure!(outbox.number(&format!("select count(*) {LISTENERS}")).await? == 0);
    }
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}
