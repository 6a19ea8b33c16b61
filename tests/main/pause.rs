//! Tests pauses: paused events wait, and others go on. Nothing is overtaken when a pause begins or ends, and a pause outlives a relay.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use serde_json::Value;

use lab::kafka::RealKafka;
use lab::load::{Load, Plan};
use lab::relay::Output;
use lab::{Outbox, PARTITIONS, Relay, SOON, TestDatabase, eventually, trials};

const BEGINS: &str = "pause_started";
const ENDS: &str = "pause_ended";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            a_pause_names_what_it_pauses_and_every_change_is_in_the_audit_table,
            a_pause_of_nothing_or_of_too_much_is_a_wrong_usage;
        with_both:
            while_everything_is_paused_nothing_is_published_and_no_transaction_is_begun,
            events_of_a_paused_topic_wait_and_all_others_go_on,
            events_of_a_paused_entity_wait_and_all_others_go_on,
            a_pause_outlives_the_relay_and_ends_when_it_expires,
            a_paused_event_is_held_once_and_no_claim_walks_it,
            nothing_is_overtaken_while_pauses_begin_and_end_under_load_with_two_relays;
    }
}

/// Runs a command on the outbox with these arguments.
async fn command(database: &TestDatabase, command: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output(command).await
}

async fn fine(database: &TestDatabase, name: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = command(database, name, arguments).await?;
    // A pause says on stderr if no event is of what it names.
    let is_noted = output.stderr.starts_with("note: no event ") || output.stderr.starts_with("warning: no event ");
    ensure!(output.code == Some(0) && (output.stderr.is_empty() || is_noted), "{name} {arguments:?}: {output:?}");
    Ok(output.stdout)
}

async fn pause(database: &TestDatabase, what: &[&str]) -> anyhow::Result<()> {
    fine(database, "pause", &[what, &["--reason", "a trial"]].concat()).await.map(drop)
}

async fn resume(database: &TestDatabase, what: &[&str]) -> anyhow::Result<()> {
    fine(database, "resume", what).await.map(drop)
}

async fn a_pause_names_what_it_pauses_and_every_change_is_in_the_audit_table(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let entity = ["--entity", "it's \\ 7", "--entity-type", "order"];
    pause(&database, &["--topic", "orders", "--for", "2h", "--by", "ann"]).await?;
    pause(&database, &entity).await?;
    pause(&database, &["--all"]).await?;
    // A second pause of the same target gives the one pause a new end.
    pause(&database, &["--topic", "orders", "--for", "3h"]).await?;
    let listed: Value = serde_json::from_str(&fine(&database, "pause", &["--list", "--json"]).await?)?;
    let listed = listed["pauses"].as_array().context("no list")?;
    ensure!(listed.len() == 3, "{listed:?}");
    let topic = listed.iter().find(|pause| pause["scope"] == "topic").context("no topic")?;
    ensure!(topic["topic"] == "orders" && topic["reason"] == "a trial" && topic["expires_at"].is_string(), "{topic}");
    ensure!(listed.iter().any(|pause| pause["entity_id"] == "it's \\ 7" && pause["entity_type"] == "order"));

    // The pause is resumed by the same name.
    let output = command(&database, "resume", &["--entity", "it's \\ 7"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("it's \\ 7"), "{output:?}");
    resume(&database, &entity).await?;
    resume(&database, &["--every", "--reason", "done", "--by", "bob"]).await?;
    let listed: Value = serde_json::from_str(&fine(&database, "pause", &["--list", "--json"]).await?)?;
    let text = fine(&database, "pause", &["--list"]).await?;
    ensure!(listed["pauses"] == Value::Array(Vec::new()) && text.lines().count() == 1, "{listed} {text}");

    let audits = outbox.number("select count(*) from event_outbox_audit where actor = session_user").await?;
    ensure!(audits == 7, "{audits} entries");
    let ann = "select count(*) from event_outbox_audit where command = 'pause' and acted_by = 'ann' \
               and filter ->> 'topic' = 'orders' and filter ->> 'for_s' = '7200' and reason = 'a trial'";
    ensure!(outbox.number(ann).await? == 1);
    let bob =
        "select count(*) from event_outbox_audit where command = 'resume' and acted_by = 'bob' and reason = 'done'";
    ensure!(outbox.number(bob).await? == 2);
    Ok(())
}

async fn a_pause_of_nothing_or_of_too_much_is_a_wrong_usage(database: TestDatabase) -> anyhow::Result<()> {
    for (name, arguments) in [
        ("pause", &["--reason", "x"][..]),
        ("pause", &["--all"]),
        ("pause", &["--all", "--topic", "t", "--reason", "x"]),
        ("pause", &["--topic", "no topic!", "--reason", "x"]),
        ("pause", &["--entity-type", "order", "--reason", "x"]),
        ("pause", &["--all", "--reason", "x", "--for", "30"]),
        ("pause", &["--all", "--reason", "x", "--for", "0s"]),
        ("resume", &["--every", "--all"]),
    ] {
        let output = command(&database, name, arguments).await?;
        ensure!(output.code == Some(2) && !output.stderr.is_empty(), "{name} {arguments:?}: {output:?}");
    }
    Ok(())
}

async fn while_everything_is_paused_nothing_is_published_and_no_transaction_is_begun(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).start("paused")?;
    outbox.write("a", 1, 3).await?;
    outbox.until_settled().await;
    pause(&database, &["--all"]).await?;
    outbox.write("a", 4, 3).await?;
    let logged = relay.wait_for(BEGINS).await;
    ensure!(logged["paused"] == "everything" && logged["reason"] == "a trial", "{logged}");
    // The workers have polled a few times by now.
    let looks = "select sum(calls) from (select xact_commit as calls from pg_stat_database where datname = current_database()) d";
    let before = outbox.number(looks).await?;
    eventually("the relay looks", SOON, || async {
        match outbox.number(looks).await {
            Ok(now) if now > before + 20 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let rows = outbox.row_states("a").await?;
    let untouched = |row: &&lab::outbox::RowState| row.status == "PENDING" && row.last_error.is_none();
    ensure!(rows.iter().filter(untouched).count() == 3, "{rows:?}");
    let locks = "select count(*) from (select xmax::text::int8 as locker from event_outbox_lane) lanes \
                 join pg_locks l on l.locktype = 'transactionid' and l.transactionid::text::int8 = locker";
    let owned = outbox.number(locks).await?;
    ensure!(owned == 0, "{owned} lanes are owned");
    resume(&database, &["--all"]).await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    relay.wait_for(ENDS).await;
    ensure!(outbox.published_numbers(&kafka).await?["a"] == (1..=6).collect::<Vec<_>>());
    ensure!(relay.lines(BEGINS).len() == 1 && relay.lines(ENDS).len() == 1);
    Ok(())
}

async fn events_of_a_paused_topic_wait_and_all_others_go_on(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let other = format!("{}-other", outbox.topic);
    kafka.create_topic(&other, PARTITIONS, &[]).await?;
    let _relay = outbox.relay(&kafka).with("RELAY_BATCH_SIZE", 3).start("topic")?;
    outbox.write("a", 1, 1).await?;
    outbox.until_settled().await;
    pause(&database, &["--topic", &outbox.topic]).await?;
    for n in 2..=12 {
        outbox.write("a", n, 1).await?;
        to(&outbox, "b", n, &other).await?;
    }
    outbox.until_settled_of("b").await;
    let rows = outbox.row_states("a").await?;
    ensure!(rows[1..].iter().all(|row| row.status == "PENDING" && row.attempts == 0), "{rows:?}");
    ensure!(outbox.published_numbers(&kafka).await?["a"] == [1]);
    resume(&database, &["--topic", &outbox.topic]).await?;
    outbox.write("a", 13, 3).await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["a"] == (1..=15).collect::<Vec<_>>(), "{numbers:?}");
    Ok(())
}

async fn events_of_a_paused_entity_wait_and_all_others_go_on(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).with("RELAY_BATCH_SIZE", 3).start("entity")?;
    pause(&database, &["--entity", "a"]).await?;
    // Poison of a paused entity waits as well, and costs no attempt.
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
             values ('order', 'a', 'Bad', '{\"n\": 0}', '{\"number\": 1}')",
        )
        .await?;
    for n in 1..=10 {
        outbox.write("a", n, 1).await?;
        outbox.write("b", n, 1).await?;
    }
    outbox.until_settled_of("b").await;
    let rows = outbox.row_states("a").await?;
    ensure!(rows.iter().all(|row| row.status == "PENDING" && row.attempts == 0), "{rows:?}");
    // Pauses a second time, only for the entity's type. The first pause ends, and the events still wait.
    pause(&database, &["--entity", "a", "--entity-type", "order"]).await?;
    resume(&database, &["--entity", "a"]).await?;
    relay.wait_for_line(ENDS, |line| line["paused"] == "entity a").await;
    outbox.write("b", 11, 1).await?;
    outbox.until_settled_of("b").await;
    ensure!(!outbox.published_numbers(&kafka).await?.contains_key("a"));
    resume(&database, &["--every"]).await?;
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["a"] == (1..=10).collect::<Vec<_>>(), "{numbers:?}");
    let dead = outbox.number("select count(*) from event_outbox where status = 'DEAD' and attempts = 1").await?;
    ensure!(dead == 1, "{dead} are dead");
    Ok(())
}

async fn a_pause_outlives_the_relay_and_ends_when_it_expires(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let first = outbox.relay(&kafka).start("first")?;
    pause(&database, &["--topic", &outbox.topic, "--for", "1h"]).await?;
    outbox.write("a", 1, 5).await?;
    let held = "select coalesce(sum(events), 0) from event_outbox_hold where why = 'paused' and kind = 'topic'";
    until(&outbox, "five are held", held, 5).await;
    ensure!(first.stop().await? == Some(0));
    let second = outbox.relay(&kafka).start("second")?;
    second.wait_for(BEGINS).await;
    outbox.write("a", 6, 1).await?;
    until(&outbox, "six are held", held, 6).await;
    // The pause expires while the relay runs. Nobody resumes it; the relay notices only by the clock.
    let nearer = "update event_outbox_pause set expires_at = clock_timestamp() + interval '2 seconds'; \
                  update event_outbox_control set value = value + 1 where name = 'pauses'";
    outbox.execute(nearer).await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    second.wait_for(ENDS).await;
    let early =
        outbox.number("select count(*) from event_outbox, event_outbox_pause where published_at < expires_at").await?;
    ensure!(early == 0, "{early} went out before the pause expired");
    ensure!(outbox.published_numbers(&kafka).await?["a"] == (1..=6).collect::<Vec<_>>());
    Ok(())
}

/// A held row is not changed again until it is released, so its ctid stays the same.
async fn a_paused_event_is_held_once_and_no_claim_walks_it(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let other = format!("{}-other", outbox.topic);
    kafka.create_topic(&other, PARTITIONS, &[]).await?;
    pause(&database, &["--topic", &outbox.topic]).await?;
    outbox.write_backlog(5_000, 50).await?;
    let _relay = outbox.relay(&kafka).start("held")?;
    let held = "select coalesce(sum(events), 0) from event_outbox_hold";
    until(&outbox, "all are held", held, 5_000).await;
    let ctids = "select sum(hashtext(id::text || ctid::text)::bigint) from event_outbox where topic is null";
    let before = outbox.number(ctids).await?;
    for n in 1..=20 {
        to(&outbox, "b", n, &other).await?;
        outbox.until_settled_of("b").await;
    }
    ensure!(outbox.number(ctids).await? == before, "held rows were touched again");
    resume(&database, &["--every"]).await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    // The other events are on their own topic, and would be missing here.
    outbox.execute("delete from event_outbox where topic is not null").await?;
    outbox.reconcile(&kafka, Rules::default()).await
}

async fn nothing_is_overtaken_while_pauses_begin_and_end_under_load_with_two_relays(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_BATCH_SIZE", 50);
    let relays = [settings.start("one")?, settings.start("two")?];
    let load = Load::start(&outbox, Plan::new(8_000, 64));
    let topic = outbox.topic.clone();
    let mut step = 0;
    for what in
        [&["--topic", topic.as_str()][..], &["--entity", "s0"], &["--all"], &["--entity", "s1"], &["--topic", &topic]]
    {
        step += 1_000;
        load.until_committed(step).await;
        pause(&database, what).await?;
        // After the command has returned, no event of its target goes out.
        let whose = if what[0] == "--entity" { format!("entity_id = '{}'", what[1]) } else { "true".to_owned() };
        let published = format!("select count(*) from event_outbox where status = 'PUBLISHED' and {whose}");
        let before = outbox.number(&published).await?;
        load.until_committed(step + 300).await;
        let after = outbox.number(&published).await?;
        ensure!(after == before, "{} went out while {what:?} was paused", after - before);
        resume(&database, what).await?;
    }
    // A pause that ends by itself, and a relay that stops while the pause is in force.
    pause(&database, &["--topic", &topic, "--for", "1s"]).await?;
    let [one, two] = relays;
    one.kill()?;
    load.reconcile(&outbox, &kafka, Rules::default()).await?;
    ensure!(two.stop().await? == Some(0));
    let entries = outbox.number("select count(*) from event_outbox_audit").await?;
    ensure!(entries == 11, "{entries} entries");
    Ok(())
}

async fn until(outbox: &Outbox, what: &str, sql: &str, count: i64) {
    eventually(what, SOON.max(Duration::from_secs(60)), || async {
        match outbox.number(sql).await {
            Ok(found) if found == count => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

async fn to(outbox: &Outbox, entity: &str, n: i64, topic: &str) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
         values ('order', '{entity}', 'Counted', '{{\"n\": {n}}}', '{topic}')"
    );
    outbox.execute(&sql).await.map(drop)
}
