//! Tests rows and topics that cannot be written: which events stop, which go on, and the cost.

use std::sync::Arc;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;

use lab::kafka::{MINDS_RIGHTS, RealKafka, Record};
use lab::outbox::RowState;
use lab::{Outbox, PARTITIONS, SOON, TestDatabase, eventually, trials};

/// The `max.message.bytes` of the topics here. Good rows stay far below this limit, even many of them.
const TOPIC_LIMIT: &str = "20000";

/// The bad rows among good ones: the statement, and a part of the reason that the operator should read.
const POISON: [(&str, &str, &str); 6] = [
    ("headers", "payload, headers) values ('order', 'HERE', 'X', '{\"n\": 0}', '{\"number\": 1}')", "header"),
    (
        "partition",
        "payload, headers) values ('order', 'HERE', 'X', '{\"n\": 0}', '{\"outbox-partition\": \"4711\"}')",
        "has \"4711\", and the topic",
    ),
    ("topic-name", "payload, topic) values ('order', 'HERE', 'X', '{\"n\": 0}', 'no such topic!')", "bad topic"),
    (
        "topic-limit",
        "payload) values ('order', 'HERE', 'X', jsonb_build_object('n', 0, 's', (select string_agg(md5(i::text), '') \
         from generate_series(1, 2000) i)))",
        "MessageSizeTooLarge",
    ),
    (
        "producer-limit",
        "payload) values ('order', 'HERE', 'X', jsonb_build_object('n', 0, 's', repeat('x', 2000000)))",
        "MessageSizeTooLarge",
    ),
    (
        "bytes",
        "payload_bytes) values ('order', 'HERE', 'X', decode(repeat('00', 2000000), 'hex'))",
        "MessageSizeTooLarge",
    ),
];

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            poison_is_dead_after_one_attempt_and_its_successors_go_on,
            poison_holds_its_entity_and_no_other_where_that_is_the_policy,
            an_event_that_names_a_missing_partition_stops_no_topic_and_goes_out_once_there_is_one,
            a_batch_that_is_larger_than_its_topic_allows_is_no_poison,
            a_topic_that_does_not_exist_holds_its_own_events_until_it_is_created,
            events_held_by_one_relay_are_released_by_the_next_in_batches_and_in_order,
            a_topic_deleted_while_the_relay_runs_holds_its_own_events_until_it_is_back;
        with_postgres:
            a_topic_whose_right_is_missing_holds_its_own_events_until_it_is_granted;
    }
}

/// Writes for each kind of poison two good rows, the bad one and two good rows more, all of one entity. Writes as many good rows of another
/// entity.
async fn write_poison(outbox: &Outbox) -> anyhow::Result<()> {
    for (kind, poison, _) in POISON {
        for n in [1, 2] {
            outbox.write(kind, n, 1).await?;
            outbox.write("good", n, 1).await?;
        }
        let columns = poison.replace("HERE", kind);
        outbox.execute(&format!("insert into event_outbox (entity_type, entity_id, event_type, {columns}")).await?;
        for n in [3, 4] {
            outbox.write(kind, n, 1).await?;
            outbox.write("good", n, 1).await?;
        }
    }
    Ok(())
}

fn statuses(rows: &[RowState]) -> Vec<(&str, i32)> {
    rows.iter().map(|row| (row.status.as_str(), row.attempts)).collect()
}

async fn poison_is_dead_after_one_attempt_and_its_successors_go_on(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, PARTITIONS, &[("max.message.bytes", TOPIC_LIMIT)]).await?;
    write_poison(&outbox).await?;
    let relay = outbox.relay(&kafka).with("KAFKA_COMPRESSION_TYPE", "none").start("poison")?;
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    for (kind, _, reason) in POISON {
        let rows = outbox.row_states(kind).await?;
        let good = ("PUBLISHED", 0);
        ensure!(statuses(&rows) == [good, good, ("DEAD", 1), good, good], "{kind}: {rows:?}");
        let error = rows[2].last_error.as_deref().unwrap_or_default();
        ensure!(error.to_lowercase().contains(&reason.to_lowercase()), "{kind}: {error}");
        ensure!(numbers[kind] == [1, 2, 3, 4], "{kind}: {:?}", numbers[kind]);
    }
    ensure!(numbers["good"] == [1, 2, 3, 4].repeat(POISON.len()), "{:?}", numbers["good"]);
    for (kind, _, _) in POISON {
        relay.wait_for_line("event_refused", |line| line["entity.id"] == kind).await;
    }
    let logged = relay.lines("event_refused");
    ensure!(logged.len() == POISON.len(), "{logged:?}");
    ensure!(logged.iter().all(|line| line["event.status"] == "DEAD"), "{logged:?}");
    ensure!(logged.iter().all(|line| line["level"] == "ERROR" && line["event.id"].is_string()), "{logged:?}");
    Ok(())
}

async fn poison_holds_its_entity_and_no_other_where_that_is_the_policy(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, PARTITIONS, &[("max.message.bytes", TOPIC_LIMIT)]).await?;
    write_poison(&outbox).await?;
    let settings = outbox.relay(&kafka).with("RELAY_ON_POISON", "hold_entity").with("KAFKA_COMPRESSION_TYPE", "none");
    let first = settings.start("holds")?;
    outbox.until_settled_of("good").await;
    for (kind, _, _) in POISON {
        let logged = |line: &serde_json::Value| line["entity.id"] == kind && line["event.status"] == "PENDING";
        first.wait_for_line("event_refused", logged).await;
    }
    // Another relay reads from the rows which events are held.
    ensure!(first.stop().await? == Some(0));
    let _second = settings.start("learns")?;
    for (kind, _, _) in POISON {
        outbox.write(kind, 5, 1).await?;
    }
    outbox.write("good", 5, 1).await?;
    outbox.until_settled_of("good").await;
    let numbers = outbox.published_numbers(&kafka).await?;
    for (kind, _, _) in POISON {
        let rows = outbox.row_states(kind).await?;
        let (good, waits) = (("PUBLISHED", 0), ("PENDING", 0));
        ensure!(statuses(&rows) == [good, good, ("PENDING", 1), waits, waits, waits], "{kind}: {rows:?}");
        ensure!(numbers[kind] == [1, 2], "{kind}: {:?}", numbers[kind]);
    }
    Ok(())
}

/// Writes an event of the entity that names its partition.
async fn write_into(outbox: &Outbox, entity: &str, n: i64, partition: i32) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) values \
         ('order', '{entity}', 'X', '{{\"n\": {n}}}', '{{\"outbox-partition\": \"{partition}\"}}')"
    );
    outbox.execute(&sql).await.map(drop)
}

async fn an_event_that_names_a_missing_partition_stops_no_topic_and_goes_out_once_there_is_one(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, 3, &[]).await?;
    let settings = outbox.relay(&kafka);
    let relay = settings.start_ready("partitions").await?;
    let verify = async |arguments: &[&str]| -> anyhow::Result<serde_json::Value> {
        let verify = settings.clone().argument("--json");
        let output = arguments.iter().fold(verify, |relay, word| relay.argument(word)).output("verify").await?;
        serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
    };
    // One partition is certainly not the one of the key.
    for partition in 0..3 {
        write_into(&outbox, &format!("near-{partition}"), 1, partition).await?;
        write_into(&outbox, "moves", i64::from(partition), partition).await?;
    }
    write_into(&outbox, "far", 1, 3).await?;
    outbox.write("far", 2, 2).await?;
    outbox.until_settled().await;
    let rows = outbox.row_states("far").await?;
    ensure!(statuses(&rows) == [("DEAD", 1), ("PUBLISHED", 0), ("PUBLISHED", 0)], "{rows:?}");
    for arguments in [&[][..], &["--partitioner", "any"]] {
        let clean = verify(arguments).await?;
        ensure!(clean["clean"] == true && clean["dead"] == 1, "{clean}");
    }
    // A record that is not where its row says is found.
    let change = |from: i32, to: i32| {
        format!(
            "update event_outbox set headers = '{{\"outbox-partition\": \"{to}\"}}' \
             where entity_id = 'near-0' and headers ->> 'outbox-partition' = '{from}'"
        )
    };
    ensure!(outbox.execute(&change(0, 1)).await? == 1);
    let wrong = verify(&["--entity", "near-0"]).await?;
    ensure!(wrong["wrong_partition"] == 1 && wrong["clean"] == false, "{wrong}");
    ensure!(outbox.execute(&change(1, 0)).await? == 1);
    ensure!(relay.lines("topic_closed").is_empty(), "{:?}", relay.lines("topic_closed"));

    // The relay does not know of new partitions before an event names one.
    kafka.add_partitions(&outbox.topic, 6).await?;
    write_into(&outbox, "new", 1, 5).await?;
    outbox.until_settled().await;
    ensure!(statuses(&outbox.row_states("new").await?) == [("PUBLISHED", 0)]);
    let retry = settings.clone().argument("retry").argument("--all").argument("--yes").output("dead").await?;
    ensure!(retry.code == Some(0), "{retry:?}");
    outbox.until_settled().await;
    ensure!(outbox.number("select count(*) from event_outbox where status <> 'PUBLISHED'").await? == 0);
    for entity in ["far", "new"] {
        let clean = verify(&["--entity", entity, "--partitioner", "any"]).await?;
        ensure!(clean["clean"] == true && clean["dead"] == 0, "{clean}");
    }
    let records = kafka.read_topic(&outbox.topic).await?;
    let place = |entity: &str, n: i64| {
        let data = format!("\"n\": {n}");
        let is_it = |record: &&Record| {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
            record.key.as_deref() == Some(entity.as_bytes()) && value.contains(&data)
        };
        records.iter().find(is_it).map(|record| record.partition)
    };
    ensure!(place("far", 1) == Some(3) && place("new", 1) == Some(5), "{records:?}");
    ensure!((0..3).all(|partition| place("moves", partition) == Some(partition as i32)), "{records:?}");
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

/// The limit applies to record batches, and librdkafka makes one batch of all records that wait for a partition.
async fn a_batch_that_is_larger_than_its_topic_allows_is_no_poison(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    kafka.create_topic(&outbox.topic, PARTITIONS, &[("max.message.bytes", TOPIC_LIMIT)]).await?;
    outbox.write_backlog(5_000, 20).await?;
    let _relay = outbox.relay(&kafka).with("KAFKA_COMPRESSION_TYPE", "none").start("batches")?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    outbox.reconcile(&kafka, Rules::default()).await
}

async fn a_topic_that_does_not_exist_holds_its_own_events_until_it_is_created(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let missing = format!("{}-missing", outbox.topic);
    let relay = outbox.relay(&kafka).start("missing")?;
    for n in 1..=10 {
        write_to(&outbox, "away", n, &missing).await?;
        outbox.write("there", n, 1).await?;
        outbox.until_settled_of("there").await;
    }
    let rows = outbox.row_states("away").await?;
    ensure!(rows.iter().all(|row| row.status == "PENDING" && row.attempts == 0), "{rows:?}");
    let logged = |notice: &str| relay.lines(notice).iter().filter(|line| line["topic"] == missing.as_str()).count();
    ensure!(logged("topic_closed") == 1);

    kafka.create_topic(&missing, 1, &[]).await?;
    write_to(&outbox, "away", 11, &missing).await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    relay.wait_for_line("topic_reopened", |line| line["topic"] == missing.as_str()).await;
    ensure!(logged("topic_closed") == 1);
    let of_missing = outbox.seen_by(&missing);
    let numbers = of_missing.published_numbers(&kafka).await?;
    ensure!(numbers["away"] == (1..=11).collect::<Vec<_>>(), "{numbers:?}");
    Ok(())
}

/// The next relay finds nothing pending. It must read from the held rows that there is a topic to ask for.
async fn events_held_by_one_relay_are_released_by_the_next_in_batches_and_in_order(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let missing = format!("{}-missing", outbox.topic);
    let relay = outbox.relay(&kafka).start("first")?;
    for n in 1..=10 {
        write_to(&outbox, "away", n, &missing).await?;
    }
    let held = "select coalesce(sum(events), 0) from event_outbox_hold where why = 'topic'";
    eventually("ten events are held", SOON, || async {
        let held = outbox.number(held).await.map_err(|error| error.to_string())?;
        if held == 10 { Ok(()) } else { Err(format!("{held} are held")) }
    })
    .await;
    drop(relay);

    kafka.create_topic(&missing, 1, &[]).await?;
    let _relay = outbox.relay(&kafka).with("RELAY_BATCH_SIZE", 3).start("second")?;
    for n in 11..=15 {
        write_to(&outbox, "away", n, &missing).await?;
    }
    outbox.until_settled().await;
    outbox.all_published().await?;
    let numbers = outbox.seen_by(&missing).published_numbers(&kafka).await?;
    ensure!(numbers["away"] == (1..=15).collect::<Vec<_>>(), "{numbers:?}");
    Ok(())
}

async fn a_topic_deleted_while_the_relay_runs_holds_its_own_events_until_it_is_back(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let gone = format!("{}-gone", outbox.topic);
    kafka.create_topic(&gone, 1, &[]).await?;
    let relay = outbox.relay(&kafka).start("gone")?;
    write_to(&outbox, "away", 1, &gone).await?;
    outbox.until_settled().await;
    kafka.delete_topic(&gone).await?;
    for n in 2..=6 {
        write_to(&outbox, "away", n, &gone).await?;
        outbox.write("there", n, 1).await?;
    }
    outbox.until_settled_of("there").await;
    relay.wait_for_line("topic_closed", |line| line["topic"] == gone.as_str()).await;
    kafka.create_topic(&gone, 1, &[]).await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    let numbers = outbox.seen_by(&gone).published_numbers(&kafka).await?;
    ensure!(numbers["away"] == (2..=6).collect::<Vec<_>>(), "{numbers:?}");
    Ok(())
}

/// Tests a missing right: first the relay may not even see the topic, then the broker refuses its records.
async fn a_topic_whose_right_is_missing_holds_its_own_events_until_it_is_granted(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let kafka = RealKafka::start(MINDS_RIGHTS)?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let guarded = format!("{}-guarded", outbox.topic);
    kafka.create_topic(&guarded, 1, &[]).await?;
    kafka.set_rights(&guarded, "NONE").await?;
    let relay = outbox.relay(&kafka).start("rights")?;
    let held = async |from: i64| {
        for n in from..from + 5 {
            write_to(&outbox, "away", n, &guarded).await?;
            outbox.write("there", n, 1).await?;
        }
        outbox.until_settled_of("there").await;
        let rows = outbox.row_states("away").await?;
        ensure!(rows.iter().all(|row| row.status == "PENDING" && row.attempts == 0), "{rows:?}");
        Ok(())
    };
    held(1).await?;
    let logged = relay.wait_for_line("topic_closed", |line| line["topic"] == guarded.as_str()).await;
    ensure!(logged["reason"].as_str().unwrap_or_default().contains("WRITE"), "{logged}");

    kafka.set_rights(&guarded, "DESCRIBE").await?;
    held(6).await?;

    kafka.set_rights(&guarded, "ALL").await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    for topic in [&guarded, &outbox.topic] {
        let numbers = outbox.seen_by(topic).published_numbers(&kafka).await?;
        let entity = if topic == &guarded { "away" } else { "there" };
        ensure!(numbers[entity] == (1..=10).collect::<Vec<_>>(), "{numbers:?}");
    }
    Ok(())
}

async fn write_to(outbox: &Outbox, entity: &str, n: i64, topic: &str) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
         values ('order', '{entity}', 'Counted', '{{\"n\": {n}}}', '{topic}')"
    );
    outbox.execute(&sql).await.map(drop)
}
