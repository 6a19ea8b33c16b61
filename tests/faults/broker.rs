//! Tests faults of Kafka, of the network to Kafka, and of topics.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use lab::demo::free_port;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::fault::Fault;
use crate::proxied_relay::PUBLISH_TIMEOUT;
use crate::proxy::{Catch, Spot, port_of};
use crate::relays::{STRIKES, STRIKES_BY_DEFAULT, under};
use crate::stage::Stage;
use lab::kafka::RealKafka;
use lab::load::{Load, Plan};
use lab::seed::{random_of, size};
use lab::{Outbox, PARTITIONS, Relay, SOON, TestDatabase, eventually, trials};

/// The length of a broker's downtime, as the number of events that commit meanwhile.
const DOWN: &str = "OUTBOX_RELAY_TEST_DOWN_EVENTS";
const DOWN_BY_DEFAULT: u64 = 1_000;

/// The number of events in flight when the broker pauses, and the length of the pause. The pause is long enough to make a query of the
/// cluster fail, and shorter than a batch's wait for its acks.
const PAUSED_BACKLOG: i64 = 30_000;
const PAUSE: Duration = Duration::from_secs(14);

/// A tenth of one default batch.
const DUPLICATES_OF_PAUSES: u64 = 200;

const TOPIC_HELD: &str = "topic_closed";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            connections_to_kafka_that_are_reset,
            connections_to_kafka_into_a_black_hole,
            a_kafka_that_is_slow,
            records_that_were_appended_and_whose_acks_were_lost_are_not_appended_twice,
            a_topic_that_is_created_late_and_deleted_while_relays_run,
            a_topic_that_refuses_large_records,
            a_cluster_that_is_suspected_is_not_asked_for_all_its_topics;
        with_postgres:
            a_leader_that_has_lost_its_quorum,
            a_cluster_that_answers_at_its_bootstrap_address_only_is_down,
            a_broker_that_restarts,
            a_broker_that_is_killed_and_down_for_a_while,
            a_broker_that_is_frozen,
            a_broker_that_pauses_for_seconds_under_load_causes_few_duplicates,
            a_broker_that_pauses_for_less_than_the_publish_timeout_gets_no_record_twice,
            a_broker_that_refuses_the_password_and_then_the_topic;
    }
}

async fn connections_to_kafka_that_are_reset(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::CutKafka, "cut kafka", &database, &kafka).await
}

async fn connections_to_kafka_into_a_black_hole(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::StillKafka, "still kafka", &database, &kafka).await
}

async fn a_kafka_that_is_slow(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::SlowKafka, "slow kafka", &database, &kafka).await
}

/// The idempotent producer sends the records again, and the broker recognises them as duplicates.
async fn records_that_were_appended_and_whose_acks_were_lost_are_not_appended_twice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = Stage::open("lose ack", &Outbox::from_database(&database), &kafka, 2).await?;
    for lost in 1..=size(STRIKES, STRIKES_BY_DEFAULT) {
        stage.moment().await;
        let proxy = &stage.relays[0].kafka;
        proxy.set_trap(Spot::Produce, Catch::LoseAnswer);
        proxy.until_sprung(lost as usize).await;
        stage.until_moving().await?;
    }
    let report = stage.close(&kafka).await?;
    ensure!(report.duplicates == 0, "{report}");
    Ok(())
}

/// Runs two brokers and stops one of them. The remaining leader may not write alone (`min.insync.replicas`).
async fn a_leader_that_has_lost_its_quorum(database: TestDatabase) -> anyhow::Result<()> {
    let (kafka, mut follower) = tokio::task::spawn_blocking(|| {
        let kafka = RealKafka::start(&[])?;
        let follower = kafka.start_another(2)?;
        anyhow::Ok((kafka, follower))
    })
    .await??;
    let outbox = Outbox::from_database(&database);
    kafka.create_replicated_topic(&outbox.topic, PARTITIONS, 2, &[("min.insync.replicas", "2")]).await?;
    let mut stage = Stage::open_on_topic("quorum", &outbox, &kafka, 2, |relay| relay).await?;
    stage.moment().await;
    // Once for each time that the follower stops in the middle of an append, and once more because leaderships move.
    stage.may_repeat(8);
    follower.kill();
    for relay in &stage.relays {
        let process = relay.process()?;
        let logged = process.wait_for("OR-3106").await;
        ensure!(logged["next_step"].as_str().is_some_and(|step| step.contains("replicas back")), "{logged}");
    }
    // Records that were acknowledged before the follower stopped are marked when their batch ends. After that nothing is marked.
    let published = "select count(*) from event_outbox where status = 'PUBLISHED'";
    let last = Mutex::new(-1);
    let standing = eventually("no row is marked for longer than a batch may last", SOON, || async {
        let now = outbox.number(published).await.map_err(|error| error.to_string())?;
        let before = std::mem::replace(&mut *last.lock().expect("the count"), now);
        if now == before {
            return Ok(now);
        }
        tokio::time::sleep(PUBLISH_TIMEOUT * 3 / 2).await;
        Err(format!("{before}, then {now}"))
    })
    .await;
    for _ in 0..3 {
        stage.moment().await;
    }
    let marked = outbox.number(published).await? - standing;
    ensure!(marked == 0, "{marked} rows are PUBLISHED that no quorum has acknowledged");
    follower.start_again()?;
    stage.until_moving().await?;
    stage.close(&kafka).await.map(drop)
}

/// The topic of the load stays; some events of separate entities go to another topic.
async fn a_topic_that_is_created_late_and_deleted_while_relays_run(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let other = format!("{}-other", outbox.topic);
    outbox.create_topic(&kafka).await?;
    let load = Load::start(&outbox, Plan::rough(160, rand::Rng::random(&mut random_of("topics"))));
    let relay = outbox.relay(&kafka).with("RELAY_BATCH_SIZE", 100).start_ready("topics").await?;
    let held = |line: &Value| line["topic"] == other.as_str();
    for round in 0..2 {
        write_to(&outbox, &other, round * 20, 10).await?;
        if round == 0 {
            relay.wait_for_line(TOPIC_HELD, held).await;
        }
        load.until_committed(load.committed() + 200).await;
        write_to(&outbox, &other, round * 20 + 10, 10).await?;
        outbox.until_published(1).await;
        kafka.create_topic(&other, PARTITIONS, &[]).await?;
        outbox.until_settled_of("to-other").await;
        let numbers = outbox.seen_by(&other).published_numbers(&kafka).await?;
        let expected: Vec<i64> = (round * 20..round * 20 + 20).collect();
        ensure!(numbers["to-other"] == expected, "{numbers:?}");
        load.until_committed(load.committed() + 100).await;
        kafka.delete_topic(&other).await?;
    }
    let costly =
        outbox.number("select count(*) from event_outbox where entity_id = 'to-other' and attempts <> 0").await?;
    ensure!(costly == 0, "{costly} rows have paid for their topic");
    // The records on the other topic are gone, because the test deleted it. The rest is checked as always.
    let book = load.end(Rules { duplicates_allowed: Some(100), pending_allowed: false }).await?;
    outbox.until_settled().await;
    outbox.execute("delete from event_outbox where entity_id = 'to-other'").await?;
    book.reconcile(&outbox, &kafka).await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn write_to(outbox: &Outbox, topic: &str, from: i64, count: i64) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
         select 'order', 'to-other', 'Counted', jsonb_build_object('n', n), '{topic}' \
         from generate_series({from}, {} - 1) n order by n",
        from + count
    );
    outbox.execute(&sql).await.map(drop)
}

/// The topic has a limit that the relay cannot know. The broker rejects the batch, and the relay finds out which record was too large.
async fn a_topic_that_refuses_large_records(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let uncompressed = |relay: Relay| relay.with("KAFKA_COMPRESSION_TYPE", "none");
    let mut stage = Stage::open_with("too large", &outbox, &kafka, 1, uncompressed).await?;
    kafka.alter_topic(&outbox.topic, &[("max.message.bytes", "60000")]).await?;
    for n in 0..3 {
        stage.moment().await;
        // The relay looks for each large record in ever smaller claims, and sends the records beside it again.
        stage.may_repeat(5);
        let sql = format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload) \
             values ('order', 'large', 'Counted', '{{\"n\": 0}}'), \
             ('order', 'large', 'Poison', to_jsonb(repeat('x', {}))), ('order', 'large', 'Counted', '{{\"n\": 1}}')",
            70_000 + n
        );
        outbox.execute(&sql).await?;
        outbox.until_settled_of("large").await;
    }
    stage.close(&kafka).await.map(drop)
}

/// Starts a broker for this trial alone; the relays' proxies connect to it.
async fn own_broker(trial: &str, database: &TestDatabase) -> anyhow::Result<(RealKafka, Stage)> {
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let stage = Stage::open(trial, &Outbox::from_database(database), &kafka, 2).await?;
    Ok((kafka, stage))
}

/// Forwards connections to `port` of this machine until it is dropped.
async fn forwarder(from: u16, to: u16) -> anyhow::Result<tokio::task::JoinSet<()>> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", from)).await?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut inner, _)) = listener.accept().await {
            connections.spawn(async move {
                if let Ok(mut outer) = tokio::net::TcpStream::connect(("127.0.0.1", to)).await {
                    // A connection that is reset is part of the trial.
                    drop(tokio::io::copy_bidirectional(&mut inner, &mut outer).await);
                }
            });
        }
    });
    Ok(tasks)
}

/// The bootstrap address answers all the time. The address that the broker advertises goes away and returns.
async fn a_cluster_that_answers_at_its_bootstrap_address_only_is_down(database: TestDatabase) -> anyhow::Result<()> {
    let advertised = free_port()?;
    let listener = format!("PLAINTEXT://127.0.0.1:{advertised}");
    let start = move || RealKafka::start(&[("advertised.listeners", listener.as_str())]);
    let kafka = tokio::task::spawn_blocking(start).await??;
    let to = port_of(&kafka.bootstrap())?;
    let mut way = forwarder(advertised, to).await?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).start_ready("advertised").await?;
    outbox.write("a", 1, 1).await?;
    outbox.until_settled().await;
    way.shutdown().await;
    outbox.write("a", 2, 1).await?;
    let down = relay.wait_for_line("outage_started", |line| line["server"] == "kafka").await;
    ensure!(down["reason"].as_str().is_some_and(|reason| reason.contains(&advertised.to_string())), "{down}");
    let second = outbox.relay(&kafka).start("second")?;
    second.wait_for_line("outage_started", |line| line["server"] == "kafka").await;
    ensure!(second.stop().await? == Some(0));
    ensure!(relay.lines("outage_ended").is_empty());
    let way = forwarder(advertised, to).await?;
    outbox.until_settled().await;
    relay.wait_for("outage_ended").await;
    ensure!(relay.stop().await? == Some(0));
    drop(way);
    Ok(())
}

async fn a_broker_that_restarts(database: TestDatabase) -> anyhow::Result<()> {
    let (mut kafka, mut stage) = own_broker("broker restart", &database).await?;
    for _ in 0..2 {
        stage.moment().await;
        stage.may_repeat(4);
        kafka.stop();
        kafka.start_again()?;
        stage.until_moving().await?;
    }
    stage.close(&kafka).await.map(drop)
}

async fn a_broker_that_is_killed_and_down_for_a_while(database: TestDatabase) -> anyhow::Result<()> {
    let (mut kafka, mut stage) = own_broker("broker down", &database).await?;
    stage.moment().await;
    stage.may_repeat(4);
    kafka.kill();
    let kafka_away = |line: &Value| line["server"] == "kafka";
    for relay in &stage.relays {
        relay.process()?.wait_for_line("outage_started", kafka_away).await;
    }
    eventually("no session of a relay is in a transaction", SOON, || async {
        match stage.outbox.relay_sessions_in_transaction().await {
            Ok(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let until = stage.committed() + size(DOWN, DOWN_BY_DEFAULT) as i64;
    while stage.committed() < until {
        stage.moment().await;
        // G7: the relay holds no open transaction, however long the outage takes.
        let open = stage.outbox.relay_sessions_in_transaction().await?;
        ensure!(open == 0, "{open} sessions of relays are in a transaction while the broker is down");
    }
    kafka.start_again()?;
    stage.until_moving().await?;
    for relay in &stage.relays {
        let process = relay.process()?;
        process.wait_for_line("outage_ended", kafka_away).await;
        let logged = process.lines("outage_started");
        ensure!(logged.iter().filter(|line| kafka_away(line)).count() == 1, "{logged:?}");
    }
    stage.close(&kafka).await.map(drop)
}

async fn a_broker_that_is_frozen(database: TestDatabase) -> anyhow::Result<()> {
    let (mut kafka, mut stage) = own_broker("broker frozen", &database).await?;
    stage.moment().await;
    stage.may_repeat(8);
    kafka.signal(Signal::SIGSTOP)?;
    let kafka_away = |line: &Value| line["server"] == "kafka";
    for relay in &stage.relays {
        relay.process()?.wait_for_line("outage_started", kafka_away).await;
    }
    stage.moment().await;
    kafka.signal(Signal::SIGCONT)?;
    stage.until_moving().await?;
    stage.close(&kafka).await.map(drop)
}

/// Pauses the broker until the watch reports the cluster as down, but for less time than a batch waits for its acks. Records in flight are
/// acknowledged late.
async fn a_broker_that_pauses_for_less_than_the_publish_timeout_gets_no_record_twice(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let outbox = Outbox::from_database(&database);
    let patient = |relay: Relay| relay.with("RELAY_PUBLISH_TIMEOUT", "60s").with("RELAY_BATCH_SIZE", 1_000);
    let mut stage = Stage::open_with("broker pauses", &outbox, &kafka, 2, patient).await?;
    let kafka_away = |line: &Value| line["server"] == "kafka";
    for pause in 1..=3 {
        stage.moment().await;
        kafka.signal(Signal::SIGSTOP)?;
        for (notice, thaw) in [("outage_started", true), ("outage_ended", false)] {
            for relay in &stage.relays {
                let process = relay.process()?;
                eventually(notice, SOON, || async {
                    let logged = process.lines(notice).iter().filter(|line| kafka_away(line)).count();
                    if logged >= pause { Ok(()) } else { Err(logged) }
                })
                .await;
            }
            if thaw {
                kafka.signal(Signal::SIGCONT)?;
            }
        }
        stage.until_moving().await?;
    }
    let report = stage.close(&kafka).await?;
    ensure!(report.duplicates == 0, "{report}");
    Ok(())
}

/// Each lost connection raises a suspicion, and each suspicion causes one query of the cluster.
async fn a_cluster_that_is_suspected_is_not_asked_for_all_its_topics(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let listening =
        |relay: Relay| relay.with("KAFKA_DEBUG", "metadata").with("RELAY_LOG_LEVEL", "info,librdkafka=debug");
    let mut stage = Stage::open_with("suspicions", &outbox, &kafka, 1, listening).await?;
    let asked = |stage: &Stage, what: &str| {
        let log = stage.relays[0].process()?.log();
        anyhow::Ok(log.iter().filter(|line| line.contains(what)).count())
    };
    let (all, one) = ("Request metadata for all topics", "Request metadata for 1 topic(s): application requested");
    // The check at the start lists the brokers and the topics.
    let before = (asked(&stage, all)?, asked(&stage, one)?);
    for _ in 0..10 {
        stage.moment().await;
        stage.may_repeat(1);
        stage.relays[0].kafka.cut();
        stage.until_moving().await?;
    }
    let after = (asked(&stage, all)?, asked(&stage, one)?);
    ensure!(after.0 <= 2, "{} requests for all topics: {before:?} -> {after:?}", after.0);
    ensure!(after.1 > before.1, "the cluster was not asked at all: {before:?} -> {after:?}");
    stage.close(&kafka).await.map(drop)
}

/// Adds a second listener with passwords and permissions. First the password is wrong, then the permission is missing.
async fn a_broker_that_refuses_the_password_and_then_the_topic(database: TestDatabase) -> anyhow::Result<()> {
    let mut kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let guarded = guard(&mut kafka)?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let load = Load::start(&outbox, Plan::rough(160, rand::Rng::random(&mut random_of("auth"))));
    let settings = outbox
        .relay(&kafka)
        .with("KAFKA_BOOTSTRAP_SERVERS", format!("127.0.0.1:{guarded}"))
        .with("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext")
        .with("KAFKA_SASL_MECHANISM", "PLAIN")
        .with("KAFKA_SASL_USERNAME", "relay");
    let stranger = settings.clone().with("KAFKA_SASL_PASSWORD", "wrong").start("stranger")?;
    let kafka_away = |line: &Value| line["server"] == "kafka";
    let refused = stranger.wait_for_line("server_refuses", kafka_away).await;
    ensure!(refused["level"] == "ERROR" && refused["code"] == "OR-3002", "{refused}");
    ensure!(stranger.lines("ready").is_empty(), "a relay that cannot publish called itself ready");
    load.until_committed(200).await;
    ensure!(stranger.stop().await? == Some(0));

    let relay = settings.with("KAFKA_SASL_PASSWORD", "right").start_ready("no right").await?;
    let refused = relay.wait_for(TOPIC_HELD).await;
    ensure!(refused["topic"] == outbox.topic.as_str(), "{refused}");
    load.until_committed(load.committed() + 200).await;
    let wrong =
        "select count(*) from event_outbox where event_type <> 'Poison' and (status <> 'PENDING' or attempts <> 0)";
    ensure!(outbox.number(wrong).await? == 0, "rows were written, or have paid for a missing right");
    kafka.stop();
    replace(&kafka, "super.users=User:ANONYMOUS", "super.users=User:ANONYMOUS;User:relay")?;
    kafka.start_again()?;
    relay.wait_for("topic_reopened").await;
    let book = load.end(Rules { duplicates_allowed: Some(0), pending_allowed: false }).await?;
    outbox.until_settled().await;
    book.reconcile(&outbox, &kafka).await?;
    let paid =
        outbox.number("select count(*) from event_outbox where event_type <> 'Poison' and attempts <> 0").await?;
    ensure!(paid == 0, "{paid} rows have paid for a missing right");
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

/// Adds a listener that asks for a password, and an authorizer that grants nothing; returns the listener's port.
fn guard(kafka: &mut RealKafka) -> anyhow::Result<u16> {
    let port = free_port()?;
    kafka.stop();
    let open = format!("PLAINTEXT://{}", kafka.bootstrap());
    let both = format!("{open},GUARDED://127.0.0.1:{port}");
    replace(kafka, &open, &both)?;
    replace(kafka, "PLAINTEXT:PLAINTEXT", "PLAINTEXT:PLAINTEXT,GUARDED:SASL_PLAINTEXT")?;
    let guard = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
listener.name.guarded.sasl.enabled.mechanisms=PLAIN
listener.name.guarded.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_relay=\"right\";
";
    let properties = kafka.directory().join("server.properties");
    let text = fs::read_to_string(&properties).context("the broker's properties")?;
    fs::write(&properties, text + guard)?;
    kafka.start_again()?;
    Ok(port)
}

fn replace(kafka: &RealKafka, from: &str, to: &str) -> anyhow::Result<()> {
    let properties = kafka.directory().join("server.properties");
    let text = fs::read_to_string(&properties)?;
    ensure!(text.contains(from), "{from} is not in the broker's properties");
    Ok(fs::write(&properties, text.replace(from, to))?)
}

/// Backlogs are in flight when the broker pauses. No batch is dropped and sent again.
async fn a_broker_that_pauses_for_seconds_under_load_causes_few_duplicates(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let _relay = outbox.relay(&kafka).with("RELAY_PUBLISH_TIMEOUT", "30s").start_ready("pauses").await?;
    for _ in 0..2 {
        let published = outbox.number("select count(*) from event_outbox where status = 'PUBLISHED'").await?;
        outbox.write_backlog(PAUSED_BACKLOG, 500).await?;
        outbox.until_published(published + PAUSED_BACKLOG / 10).await;
        kafka.signal(Signal::SIGSTOP)?;
        tokio::time::sleep(PAUSE).await;
        kafka.signal(Signal::SIGCONT)?;
        outbox.until_settled().await;
    }
    outbox.all_published().await?;
    let rules = Rules { duplicates_allowed: Some(DUPLICATES_OF_PAUSES), pending_allowed: false };
    outbox.reconcile(&kafka, rules).await
}
