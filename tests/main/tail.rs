//! Tests `outbox-relay tail` and `explain`: the history of an event, and the reason why it waits.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::free_port;
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::{Connection, Executor};

use lab::kafka::RealKafka;
use lab::{Outbox, Relay, TestDatabase, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            an_event_is_followed_to_its_place_on_the_topic,
            only_what_is_asked_for_is_followed,
            an_event_without_a_legal_topic_has_no_topic_and_the_reason,
            a_published_event_is_explained_with_its_place,
            a_waiting_event_is_explained_with_the_reason_and_what_to_do,
            an_unknown_event_is_a_finding,
            what_no_event_has_is_noted_with_what_there_is;
        with_postgres:
            brokers_that_are_away_do_not_keep_an_event_from_being_explained,
            brokers_that_are_away_are_named_at_once_by_every_command_that_asks_them;
    }
}

struct Tail(Child);

impl Drop for Tail {
    fn drop(&mut self) {
        // The process may have ended; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `tail` and waits until it follows.
fn tail(database: &TestDatabase, outbox: &Outbox, kafka: &RealKafka, arguments: &[&str]) -> anyhow::Result<Tail> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args(["tail", "--json", "--for", "60s"])
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", database.url())
        .env("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())
        .env("RELAY_TOPIC", &outbox.topic)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut first = String::new();
    BufReader::new(child.stderr.take().context("stderr")?).read_line(&mut first)?;
    ensure!(first.contains("\"event_outbox\"") && first.contains(&kafka.bootstrap()), "{first}");
    Ok(Tail(child))
}

fn lines(tail: &mut Tail) -> anyhow::Result<Vec<Value>> {
    let stdout = BufReader::new(tail.0.stdout.take().context("stdout")?);
    let read = |line: std::io::Result<String>| {
        let line = line?;
        lab::schemas::check(&["tail"], &line)?;
        Ok(serde_json::from_str(&line)?)
    };
    let lines = stdout.lines().map(read).collect::<anyhow::Result<Vec<Value>>>()?;
    let status = tail.0.wait()?;
    ensure!(status.success(), "{status}");
    Ok(lines)
}

async fn an_event_is_followed_to_its_place_on_the_topic(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write("before", 1, 1).await?;
    let mut following = tail(&database, &outbox, &kafka, &["--events", "3"])?;
    outbox.write("e", 1, 3).await?;
    let _relay = outbox.relay(&kafka).start_ready("followed").await?;
    let lines = tokio::task::spawn_blocking(move || lines(&mut following)).await??;
    for what in ["inserted", "published", "seen"] {
        let of: Vec<_> = lines.iter().filter(|line| line["what"] == what).collect();
        ensure!(of.len() == 3, "{what}: {lines:?}");
        ensure!(of.iter().all(|line| line["entity_id"] == "e" && line["latency_ms"].is_f64()), "{lines:?}");
    }
    let records = kafka.read_topic(&outbox.topic).await?;
    for line in lines.iter().filter(|line| line["what"] == "seen") {
        let there = records.iter().any(|record| {
            Some(i64::from(record.partition)) == line["record"]["partition"].as_i64()
                && Some(record.offset) == line["record"]["offset"].as_i64()
                && record.header("event-id") == line["event_id"].as_str()
        });
        ensure!(there, "{line} in {records:?}");
    }
    Ok(())
}

async fn only_what_is_asked_for_is_followed(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut following =
        tail(&database, &outbox, &kafka, &["--entity", "wanted", "--type", "Counted", "--events", "1"])?;
    outbox.write("other", 1, 2).await?;
    outbox
        .execute("insert into event_outbox (entity_type, entity_id, event_type, payload) values ('order', 'wanted', 'Other', '{}')")
        .await?;
    outbox.write("wanted", 1, 1).await?;
    let _relay = outbox.relay(&kafka).start_ready("filtered").await?;
    let lines = tokio::task::spawn_blocking(move || lines(&mut following)).await??;
    ensure!(lines.len() == 3, "{lines:?}");
    ensure!(lines.iter().all(|line| line["entity_id"] == "wanted" && line["event_type"] == "Counted"), "{lines:?}");
    Ok(())
}

async fn an_event_without_a_legal_topic_has_no_topic_and_the_reason(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut following = tail(&database, &outbox, &kafka, &["--events", "1"])?;
    outbox
        .execute("insert into event_outbox (entity_type, entity_id, event_type, payload, topic) values ('order', 'e', 'X', '{}', 'all events')")
        .await?;
    let relay = outbox.relay(&kafka);
    let has_none = |event: &Value| {
        let error = event["topic_error"].as_str().unwrap_or_default();
        event["topic"].is_null() && error.starts_with("bad topic \"all events\"")
    };
    says(&relay, "e", &["it cannot be sent: bad topic", "column topic"]).await?;
    let _running = relay.start_ready("refusing").await?;
    let lines = tokio::task::spawn_blocking(move || lines(&mut following)).await??;
    let steps: Vec<_> = lines.iter().filter_map(|line| line["what"].as_str()).collect();
    ensure!(steps == ["inserted", "dead"] && lines.iter().all(has_none), "{lines:?}");
    let event = explained(&relay, "e").await?[0].clone();
    ensure!(has_none(&event) && event["record_unknown"].is_null(), "{event}");
    let text = relay.argument("e").output("explain").await?;
    ensure!(text.stdout.contains("  topic      none: bad topic"), "{text:?}");
    Ok(())
}

async fn explained(relay: &Relay, wanted: &str) -> anyhow::Result<Value> {
    let output = relay.clone().argument("--json").argument(wanted).output("explain").await?;
    ensure!(output.code == Some(0), "{output:?}");
    Ok(serde_json::from_str::<Value>(&output.stdout)?["events"].take())
}

/// Checks that the explanation of an entity's only event contains all of `parts`.
async fn says(relay: &Relay, entity: &str, parts: &[&str]) -> anyhow::Result<()> {
    let events = explained(relay, entity).await?;
    let event = events.as_array().and_then(|events| events.last()).context("no event")?;
    let text =
        format!("{} {}", event["why"].as_str().unwrap_or_default(), event["next_step"].as_str().unwrap_or_default());
    for part in parts {
        ensure!(text.contains(part), "no {part:?} in {event}");
    }
    Ok(())
}

async fn a_published_event_is_explained_with_its_place(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write_backlog(500, 20).await?;
    let relay = outbox.relay(&kafka);
    let _running = relay.start_ready("publishing").await?;
    outbox.until_settled().await;
    for record in kafka.read_topic(&outbox.topic).await?.iter().step_by(100) {
        let id = record.header("event-id").context("no event-id")?;
        let event = explained(&relay, id).await?[0].clone();
        ensure!(event["event_id"] == id && event["status"] == "PUBLISHED" && event["why"].is_null(), "{event}");
        ensure!(
            event["record"]["partition"] == record.partition && event["record"]["offset"] == record.offset,
            "{event}"
        );
    }
    let entity = explained(&relay, "e7").await?;
    let events = entity.as_array().context("an array")?;
    ensure!(events.len() == 20 && events.iter().all(|event| event["record"]["offset"].is_i64()), "{entity}");
    let text = relay.argument("--full").argument("e7").output("explain").await?;
    ensure!(text.stdout.contains("status     PUBLISHED") && text.stdout.contains("partition"), "{text:?}");
    Ok(())
}

async fn a_waiting_event_is_explained_with_the_reason_and_what_to_do(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, status, available_at, last_error) values \
             ('order', 'dead', 'X', '{}', 'DEAD', null, 'too large'), \
             ('order', 'held', 'X', '{}', 'PENDING', null, null), \
             ('order', 'scheduled', 'X', '{}', 'PENDING', now() + interval '1 day', null), \
             ('order', 'behind', 'X', '{}', 'PENDING', null, null), ('order', 'behind', 'Y', '{}', 'PENDING', null, null), \
             ('order', 'locked', 'X', '{}', 'PENDING', null, null), ('order', 'alone', 'X', '{}', 'PENDING', null, null); \
             update event_outbox set topic = 'x' where entity_id = 'held'; \
             insert into event_outbox_hold (lane, kind, topic, why, reason, from_id, events) \
             select lane, 'topic', 'x', 'topic', 'it does not exist', id, 1 from event_outbox where entity_id = 'held'",
        )
        .await?;
    let relay = outbox.relay(&kafka);
    says(&relay, "dead", &["too large", "dead retry"]).await?;
    says(&relay, "held", &["topic x", "WRITE"]).await?;
    says(&relay, "scheduled", &["scheduled", "available_at"]).await?;
    says(&relay, "behind", &["behind number", "explain 4"]).await?;
    says(&relay, "alone", &["relay", "outbox-relay run"]).await?;
    let mut conn = outbox.connect().await?;
    let mut open = conn.begin().await?;
    let pid: i64 = sqlx::query_scalar("select pg_backend_pid()::int8").fetch_one(&mut *open).await?;
    open.execute("select from event_outbox where entity_id = 'locked' for update").await?;
    says(&relay, "locked", &[&format!("pid {pid}"), &format!("pg_terminate_backend({pid})")]).await?;
    open.rollback().await?;
    // A relay that was killed just now: its session is gone. No session has this pid.
    let relay_row = |name: &str, pid: &str| {
        format!(
            "insert into event_outbox_relay (protocol, id, name, version, workers, seen_at, pid) \
             values (2, gen_random_uuid(), '{name}', '0', 2, now() + interval '1 hour', {pid})"
        )
    };
    outbox.execute(&relay_row("killed", "2147483647")).await?;
    says(&relay, "alone", &["no relay is alive", "its session has ended"]).await?;
    // A live relay owns the lanes, so that only the topic can be the cause.
    outbox.execute(&relay_row("x", "null")).await?;
    says(&relay, "alone", &["outbox-relay status"]).await?;
    says(&relay.with("RELAY_TOPIC", "never-made-for-explain"), "alone", &["never-made-for-explain", "does not exist"])
        .await
}

async fn an_unknown_event_is_a_finding(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let output = outbox.relay(&kafka).argument("no-such-entity").output("explain").await?;
    ensure!(output.code == Some(1) && output.stdout.is_empty() && output.stderr.contains("--full"), "{output:?}");
    ensure!(!output.stderr.contains("entities"), "an empty outbox has none: {output:?}");
    for entity in ["order-41", "order-42", "customer"] {
        outbox.write(entity, 1, 2).await?;
    }
    for wanted in [&["order-4"][..], &["--full", "order-4"]] {
        let relay = wanted.iter().fold(outbox.relay(&kafka), |relay, one| relay.argument(one));
        let output = relay.output("explain").await?;
        ensure!(output.code == Some(1) && output.stdout.is_empty(), "{output:?}");
        ensure!(output.stderr.contains("entities order-41, order-42, customer"), "{output:?}");
    }
    Ok(())
}

async fn what_no_event_has_is_noted_with_what_there_is(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    // Ends after the first look.
    let relay = outbox.relay(&kafka).argument("--events").argument("0");
    let unknown = ["--topic", "ordr", "--type", "Cunted", "--entity-type", "odrer", "--entity", "orde-7"];
    let unknown = unknown.iter().fold(relay.clone(), |relay, one| relay.argument(one));
    let output = unknown.output("tail").await?;
    ensure!(output.code == Some(0) && !output.stderr.contains("note:"), "nothing is known yet: {output:?}");
    outbox.write("order-7", 1, 1).await?;
    outbox.write("customer", 1, 1).await?;
    let output = unknown.output("tail").await?;
    for note in [
        &format!("has the topic ordr; they have {}", outbox.topic),
        "has the event type Cunted; they have Counted",
        "has the entity type odrer; they have order",
        "has the entity orde-7; they have order-7, customer",
    ] {
        ensure!(output.code == Some(0) && output.stderr.contains(note), "no {note:?} in {output:?}");
    }
    let known = ["--type", "Counted", "--entity", "order-7"].iter().fold(relay, |relay, one| relay.argument(one));
    let output = known.output("tail").await?;
    ensure!(output.code == Some(0) && !output.stderr.contains("note:"), "{output:?}");
    Ok(())
}

async fn brokers_that_are_away_do_not_keep_an_event_from_being_explained(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.write("e", 1, 1).await?;
    let relay = Relay::new(&database.url(), &format!("127.0.0.1:{}", free_port()?));
    let events = explained(&relay, "e").await?;
    ensure!(events[0]["record_unknown"].as_str().is_some_and(|why| !why.is_empty()), "{events}");
    Ok(())
}

async fn brokers_that_are_away_are_named_at_once_by_every_command_that_asks_them(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.write("waits", 1, 1).await?;
    let brokers = format!("127.0.0.1:{}", free_port()?);
    let relay = Relay::new(&database.url(), &brokers);
    let verified = relay.output("verify").await?;
    ensure!(verified.code == Some(70) && verified.stderr.contains("do not answer"), "{verified:?}");
    let tailed = relay.clone().argument("--for").argument("10ms");
    let tailed = tailed.output("tail").await?;
    ensure!(tailed.code == Some(0), "{tailed:?}");
    let tailed = relay.clone().argument("--for").argument("8s").output("tail").await?;
    for part in [&format!("the brokers at {brokers} do not answer"), "OR-3001", "following"] {
        ensure!(tailed.stderr.contains(part), "no {part} in {}", tailed.stderr);
    }
    let status = relay.output("status").await?;
    for part in [&format!("brokers    {brokers} do not answer"), "pending    1", "no broker of"] {
        ensure!(status.stdout.contains(part), "no {part} in {}", status.stdout);
    }
    let status = Relay::bare().with("DATABASE_URL", database.url()).output("status").await?;
    ensure!(status.stdout.contains("brokers    not asked: KAFKA_BOOTSTRAP_SERVERS is not set"), "{status:?}");
    Ok(())
}
