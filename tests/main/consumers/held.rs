//! Tests held keys: what waits behind a failed event, how it is freed, and that the order of the key is kept meanwhile.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use event_outbox::code::Code;
use event_outbox::consumer::{Action, Context, DeadLetter, Failed, Reason, UnknownType};
use event_outbox::event::NewEvent;
use event_outbox::notice::Notice;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::log::{self, Line};
use super::{APPLIED_WITHIN, Counted, Field, Running, counted, insert};
use lab::kafka::{RealKafka, Record};
use lab::relay::Output;
use lab::{TestDatabase, eventually, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_held_key_drains_in_order_while_events_of_it_keep_coming,
            an_event_that_is_parked_while_its_head_goes_is_not_left_behind,
            a_head_that_fails_again_stays_one_dead_letter_and_its_successors_write_none,
            a_parked_event_that_fails_becomes_the_head_of_its_key,
            a_discarded_head_lets_its_key_go_on_and_is_never_applied,
            a_key_that_is_longer_than_an_index_entry_is_held_and_freed,
            a_type_that_a_member_does_not_know_yet_is_held_and_applied_later;
    }
}

/// The numbers of the events that fail at present.
type Bad = Arc<Mutex<HashSet<i64>>>;

struct Held {
    field: Field,
    bad: Bad,
}

impl Held {
    async fn new(database: &TestDatabase, kafka: Arc<RealKafka>, bad: &[i64]) -> anyhow::Result<Self> {
        let field = Field::new(database, kafka).await?;
        field.kafka.create_topic(&retry(&field), 1, &[]).await?;
        Ok(Self { field, bad: Arc::new(Mutex::new(bad.iter().copied().collect())) })
    }

    /// Starts a consumer that holds the key of a bad event.
    fn start(&self) -> Running {
        let bad = Arc::clone(&self.bad);
        Running::start(self.field.consumer().on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
            let is_bad = bad.lock().expect("the bad ones").contains(&event.n);
            async move {
                insert(&mut ctx, event.n).await?;
                if is_bad { Err(Failed::permanent("bad").then(Action::HoldKey)) } else { Ok(()) }
            }
        }))
    }

    fn fix(&self, n: i64) {
        self.bad.lock().expect("the bad ones").remove(&n);
    }

    async fn write(&self, numbers: impl IntoIterator<Item = i64>) -> anyhow::Result<()> {
        self.field.write(numbers.into_iter().map(|n| counted("a", n))).await?;
        self.field.publish().await
    }

    async fn parked(&self) -> anyhow::Result<i64> {
        self.field.outbox.number("select count(*) from processed_events_held").await
    }

    async fn until_parked(&self, expected: i64) {
        eventually(&format!("{expected} events have a row"), APPLIED_WITHIN, || async {
            match self.parked().await {
                Ok(parked) if parked == expected => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    async fn applied(&self) -> anyhow::Result<Vec<i64>> {
        Ok(self.field.applied().await?.remove("a").unwrap_or_default())
    }

    /// Runs `dlq` on the dead letters, with the consumers' database.
    async fn dlq(&self, command: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        let relay = self.field.outbox.relay(&self.field.kafka).argument(command);
        let relay = relay.argument(&super::dead_letters(&self.field.outbox.topic));
        arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("dlq").await
    }

    async fn json(&self, command: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.dlq(command, &[arguments, &["--json"]].concat()).await?;
        ensure!(output.code == Some(0), "{output:?}");
        Ok(serde_json::from_str(&output.stdout)?)
    }

    async fn redrive(&self) -> anyhow::Result<Value> {
        self.json("redrive", &["--all", "--yes"]).await
    }
}

fn retry(field: &Field) -> String {
    DeadLetter::retry_topic(&field.outbox.topic, &field.outbox.topic)
}

async fn a_held_key_drains_in_order_while_events_of_it_keep_coming(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let held = Held::new(&database, kafka, &[2]).await?;
    held.field.write((101..=104).map(|n| counted("b", n))).await?;
    held.write(1..=40).await?;
    let running = held.start();
    held.until_parked(39).await;
    held.field.until_effects(5).await;
    running.stop().await?;
    // A restart finds the key held, and the one dead letter is that of the head.
    let running = held.start();
    held.write(41..=50).await?;
    held.until_parked(49).await;
    let letters = held.field.dead_letters().await?;
    ensure!(letters.len() == 1 && letters[0].1.reason == Reason::Permanent, "{letters:?}");
    let listed = held.json("list", &[]).await?;
    let key = &listed["held_keys"][0];
    ensure!(listed["held_keys"].as_array().is_some_and(|keys| keys.len() == 1), "{listed}");
    ensure!(
        (&key["key"], &key["length"], &key["reason"], &key["error"])
            == (&json!("a"), &json!(49), &json!("permanent"), &json!("bad")),
        "{listed}"
    );
    ensure!(key["head"].as_str() == letters[0].0.header("event-id"), "{listed}");
    running.until("the gauges show the key", |stats| stats.held_keys() == 1 && stats.parked() == 49).await;

    let status = held.field.outbox.relay(&held.field.kafka).argument("--json").output("status").await?;
    let status: Value = serde_json::from_str(&status.stdout)?;
    ensure!(
        (&status["consumers"][0]["keys"], &status["consumers"][0]["events"]) == (&json!(1), &json!(49)),
        "{status}"
    );
    ensure!(status["next"].to_string().contains("dlq list"), "{status}");

    held.fix(2);
    ensure!(held.redrive().await?["redriven"] == 1);
    // Events of the key are written for as long as it drains.
    let mut n = 50;
    while held.parked().await? > 0 {
        n += 1;
        held.write([n]).await?;
    }
    n += 1;
    held.write([n]).await?;
    held.field.until_effects(4 + n).await;
    let stats = running.stop().await?;
    ensure!(stats.dead() == 0, "{stats:?}");
    let lines: Vec<bool> =
        log::with_code(&held.field.outbox.topic, Code::KeyHeld).iter().map(Line::is_resolved).collect();
    ensure!(lines == [false, true], "not one line at the start and one at the end: {lines:?}");
    let applied = held.applied().await?;
    ensure!(applied == (1..=n).collect::<Vec<_>>(), "{applied:?}");
    Ok(())
}

async fn an_event_that_is_parked_while_its_head_goes_is_not_left_behind(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let held = Held::new(&database, kafka, &[2]).await?;
    held.write(1..=2).await?;
    let running = held.start();
    held.until_parked(1).await;
    held.fix(2);
    // Parks an event as another member does: behind the last row of the key, which is locked until the commit.
    let mut parker = held.field.pool.begin().await?;
    let rows = "select event_id from processed_events_held for update";
    let head: uuid::Uuid = sqlx::query_scalar(rows).fetch_one(&mut *parker).await?;
    let parked = uuid::Uuid::new_v4();
    let park = "insert into processed_events_held (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, \
                reason, value, header_names, header_values, written_at) \
                select consumer_group, topic, key, $1, read_topic, read_partition, read_offset + 1, 'held', \
                convert_to(replace(replace(convert_from(value, 'utf8'), $2, $3), '\"n\": 2', '\"n\": 3'), 'utf8'), header_names, \
                array_replace(header_values, convert_to($2, 'utf8'), convert_to($3, 'utf8')), written_at from processed_events_held";
    let park = sqlx::query(park).bind(parked).bind(head.to_string()).bind(parked.to_string());
    park.execute(&mut *parker).await?;
    held.redrive().await?;
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' \
                 and query like 'delete from %held%'";
    eventually("the head waits for the parker", APPLIED_WITHIN, || async {
        match held.field.outbox.number(waits).await {
            Ok(1) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    parker.commit().await?;
    held.until_parked(0).await;
    running.stop().await?;
    ensure!(held.applied().await? == [1, 2, 3], "{:?}", held.applied().await?);
    // The key was free when the last event was gone, not before.
    let lines = log::with_code(&held.field.outbox.topic, Code::KeyHeld);
    let freed: Vec<&str> = lines.iter().filter(|line| line.is_resolved()).map(|line| line.get("event.id")).collect();
    ensure!(freed == [parked.to_string()], "{lines:?}");
    Ok(())
}

async fn a_head_that_fails_again_stays_one_dead_letter_and_its_successors_write_none(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let held = Held::new(&database, kafka, &[2]).await?;
    held.write(1..=20).await?;
    let running = held.start();
    held.until_parked(19).await;
    let published = held.field.kafka.read_topic(&held.field.outbox.topic).await?.len();
    for round in 1..=3 {
        let redriven = held.redrive().await?;
        ensure!(redriven["redriven"] == 1, "{redriven}");
        running.until("the head has failed again", |stats| stats.dead() == 1 + round).await;
        let listed = held.json("list", &[]).await?;
        ensure!((&listed["waiting"], &listed["redriven"]) == (&json!(1), &json!(round)), "{listed}");
        ensure!(listed["held_keys"][0]["length"] == 19, "{listed}");
    }
    running.stop().await?;
    ensure!(held.applied().await? == [1]);
    let letters = held.field.dead_letters().await?;
    let attempts: Vec<u32> = letters.iter().map(|(_, letter)| letter.attempts).collect();
    ensure!(attempts == [1, 2, 3, 4], "attempts do not go on: {letters:?}");
    ensure!(letters.iter().all(|(_, letter)| letter.source_topic == held.field.outbox.topic), "{letters:?}");
    ensure!(
        held.field.kafka.read_topic(&held.field.outbox.topic).await?.len() == published,
        "the source topic has grown"
    );
    ensure!(held.field.kafka.read_topic(&retry(&held.field)).await?.len() == 3);
    Ok(())
}

async fn a_parked_event_that_fails_becomes_the_head_of_its_key(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let held = Held::new(&database, kafka, &[2, 4]).await?;
    held.write(1..=6).await?;
    let running = held.start();
    held.until_parked(5).await;
    held.fix(2);
    held.redrive().await?;
    held.until_parked(3).await;
    running.until("the fourth has failed", |stats| stats.dead() == 2).await;
    let letters = held.field.dead_letters().await?;
    let source = held.field.kafka.read_topic(&held.field.outbox.topic).await?;
    let (record, letter) = letters.last().context("no letter")?;
    let original = source.iter().find(|record| record.offset == letter.source_offset).context("no such record")?;
    ensure!(letter.source_offset == 3 && record.value == original.value && record.key == original.key, "{letters:?}");
    ensure!(record.headers.starts_with(&original.headers), "{record:?}");
    let heads =
        "select count(*) from processed_events_held where reason = 'permanent' and error = 'bad' and read_offset = 3";
    eventually("the fourth is the head", APPLIED_WITHIN, || async {
        match held.field.outbox.number(heads).await {
            Ok(1) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    held.fix(4);
    held.redrive().await?;
    held.until_parked(0).await;
    running.stop().await?;
    ensure!(held.applied().await? == [1, 2, 3, 4, 5, 6], "{:?}", held.applied().await?);
    Ok(())
}

async fn a_discarded_head_lets_its_key_go_on_and_is_never_applied(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let held = Held::new(&database, kafka, &[2]).await?;
    held.write(1..=5).await?;
    let running = held.start();
    held.until_parked(4).await;
    let unexplained = held.dlq("discard", &["--all", "--yes"]).await?;
    ensure!(unexplained.code == Some(2) && unexplained.stderr.contains("--reason"), "{unexplained:?}");
    let dry = held.json("discard", &["--all", "--reason", "x", "--dry-run"]).await?;
    ensure!(dry["matching"] == 1 && held.parked().await? == 4, "{dry}");
    let done = held.json("discard", &["--all", "--reason", "the order is void", "--by", "ann", "--yes"]).await?;
    ensure!((&done["discarded"], &done["heads"]) == (&json!(1), &json!(1)), "{done}");
    held.until_parked(0).await;
    held.field.until_effects(4).await;
    held.write([6]).await?;
    held.field.until_effects(5).await;
    // Fixed, and delivered once more: it stays given up.
    held.fix(2);
    let again = held.json("redrive", &["--all", "--again", "--yes"]).await?;
    ensure!(again["redriven"] == 1, "{again}");
    running.until("it is skipped", |stats| stats.repeated() == 1).await;
    running.stop().await?;
    ensure!(held.applied().await? == [1, 3, 4, 5, 6], "{:?}", held.applied().await?);
    let listed = held.json("list", &[]).await?;
    ensure!((&listed["waiting"], &listed["discarded"]) == (&json!(0), &json!(1)), "{listed}");
    let audited = "select count(*) from event_outbox_audit where command = 'dlq discard' and reason = 'the order is void' \
                   and acted_by = 'ann' and affected = 1";
    ensure!(held.field.outbox.number(audited).await? == 1);
    Ok(())
}

async fn a_key_that_is_longer_than_an_index_entry_is_held_and_freed(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let held = Held::new(&database, kafka, &[1]).await?;
    // Noise, because Postgres compresses what it puts into an index.
    let key: String = (1..190_u64).map(|n| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    ensure!(key.len() > 3_000);
    let records: Vec<Record> = (1..=3)
        .map(|n| Record {
            partition: 0,
            offset: 0,
            key: Some(key.clone().into_bytes()),
            value: Some(format!("{{\"n\": {n}}}").into_bytes()),
            headers: [("event-id", uuid::Uuid::new_v4().to_string()), ("event-type", "Counted".to_owned())]
                .map(|(name, value)| (name.to_owned(), Some(value.into_bytes())))
                .to_vec(),
            timestamp: None,
        })
        .collect();
    held.field.produce(&records)?;
    let running = held.start();
    held.until_parked(3).await;
    held.fix(1);
    held.redrive().await?;
    held.until_parked(0).await;
    running.stop().await?;
    ensure!(held.field.applied().await?[&key] == [1, 2, 3]);
    Ok(())
}

async fn a_type_that_a_member_does_not_know_yet_is_held_and_applied_later(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let held = Held::new(&database, kafka, &[]).await?;
    let renamed = NewEvent::new("order", "a", "Renamed").json(&Counted { n: 2 })?;
    held.field.write([counted("a", 1), renamed, counted("a", 3)]).await?;
    held.field.publish().await?;
    let old = Running::start(held.field.counting().unknown_type(UnknownType::Hold));
    held.until_parked(2).await;
    old.stop().await?;
    // The member of the next version knows the type; one that ignores unknown types would have dropped it.
    let new = Running::start(held.field.counting().unknown_type(UnknownType::Hold).on("Renamed", .., super::count));
    let redriven = held.json("redrive", &["--failure", "unknown-type", "--yes"]).await?;
    ensure!(redriven["redriven"] == 1, "{redriven}");
    held.until_parked(0).await;
    new.stop().await?;
    ensure!(held.applied().await? == [1, 2, 3], "{:?}", held.applied().await?);
    let ignoring = Running::start(held.field.counting());
    let unknown = || NewEvent::new("order", "a", "Unheard").json(&Counted { n: 4 });
    held.field.write([unknown()?, unknown()?, counted("a", 5)]).await?;
    held.field.publish().await?;
    held.field.until_effects(4).await;
    let stats = ignoring.stop().await?;
    ensure!(stats.ignored_types() == [("Unheard".to_owned(), 2)].into(), "{stats:?}");
    let ignored = Notice::TypeIgnored.to_string();
    let named: Vec<_> =
        log::about(&held.field.outbox.topic).into_iter().filter(|line| line.get("notice") == ignored).collect();
    ensure!(named.len() == 1 && named[0].get("event.type") == "Unheard", "{named:?}");
    Ok(())
}
