//! Tests retention: old settled rows are removed, by hand or in the background, and nothing else.

mod sources;

use std::sync::Arc;

use anyhow::ensure;
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::{Connection, Executor};

use lab::kafka::RealKafka;
use lab::load::{Load, Plan};
use lab::relay::Output;
use lab::{Outbox, PARTITIONS, Relay, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    [own_trials(), sources::trials()].into_iter().flatten().collect()
}

fn own_trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            only_events_published_long_ago_are_pruned,
            an_archived_event_is_moved_as_it_is,
            columns_of_the_applications_own_survive_the_archive,
            rows_of_the_consumers_table_are_pruned_by_their_age,
            a_locked_event_is_skipped_and_nobody_waits_for_a_prune,
            a_prune_without_anything_to_prune_or_without_a_yes_changes_nothing;
        with_both:
            relays_prune_in_the_background_under_load_and_the_ledger_is_clean,
            a_relay_that_may_not_prune_says_so_once_and_goes_on,
            a_window_that_lets_duplicates_in_is_refused_with_the_numbers_until_it_is_wide_enough,
            a_relay_prunes_nothing_that_a_topic_still_holds;
    }
}

async fn prune(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<Output> {
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("prune").await
}

/// Returns the number of pruned events and of pruned rows of the consumers' table.
async fn pruned(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<(i64, i64)> {
    let output = prune(database, &[arguments, &["--json"]].concat()).await?;
    ensure!(output.code == Some(0) && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    let json: Value = serde_json::from_str(&output.stdout)?;
    Ok((json["events"].as_i64().unwrap_or(-1), json["processed"].as_i64().unwrap_or(-1)))
}

/// Writes 10,000 events one minute apart up to now, the oldest first. Of ten events seven are PUBLISHED, and one each DEAD, PENDING and
/// held.
async fn write_history(outbox: &Outbox) -> anyhow::Result<()> {
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, created_at, status, published_at, available_at, \
               last_error, attempts) \
             select 'order', 'e' || n % 100, 'Counted', jsonb_build_object('n', n), at, \
               case when n % 10 < 7 then 'PUBLISHED' when n % 10 = 7 then 'DEAD' else 'PENDING' end, \
               case when n % 10 < 7 then at end, case when n % 10 = 8 then timestamptz 'infinity' end, \
               case when n % 10 in (7, 8) then 'held entity: why' end, (n % 10 = 7)::int \
             from (select n, now() - (10001 - n) * interval '1 minute' as at from generate_series(1, 10000) n) s",
        )
        .await
        .map(drop)
}

async fn only_events_published_long_ago_are_pruned(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_history(&outbox).await?;
    let old = "from event_outbox where status = 'PUBLISHED' and published_at < now() - interval '2 days'";
    let (expected, all) = (outbox.number(&format!("select count(*) {old}")).await?, 10_000);
    ensure!((4900..5000).contains(&expected), "{expected}");
    let arguments = ["--mode", "delete", "--after", "2d"];
    let dry = pruned(&database, &[&arguments[..], &["--dry-run"]].concat()).await?;
    ensure!(dry == (expected, 0), "{dry:?} instead of {expected}");
    ensure!(outbox.number("select count(*) from event_outbox").await? == all, "a dry run removed events");

    let done = pruned(&database, &[&arguments[..], &["--yes", "--reason", "space", "--by", "ann"]].concat()).await?;
    ensure!(done == (expected, 0), "{done:?} instead of {expected}");
    ensure!(outbox.number(&format!("select count(*) {old}")).await? == 0);
    ensure!(outbox.number("select count(*) from event_outbox").await? == all - expected);
    ensure!(outbox.number("select count(*) from event_outbox where status <> 'PUBLISHED'").await? == 3_000);
    let audit = format!(
        "select count(*) from event_outbox_audit where command = 'prune' and affected = {expected} and acted_by = 'ann' \
         and filter ->> 'mode' = 'delete'"
    );
    ensure!(outbox.number(&audit).await? == 1);
    let highest = outbox.number("select value from event_outbox_control where name = 'pruned'").await?;
    let first = outbox.number("select min(id) from event_outbox where status = 'PUBLISHED'").await?;
    ensure!(highest < first && first - highest <= 4, "pruned up to {highest}, the first kept is {first}");
    Ok(())
}

async fn an_archived_event_is_moved_as_it_is(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_history(&outbox).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, event_type, payload_bytes, headers, topic, status, created_at, published_at) \
             values ('x', 'Bytes', '\\x00ff', '{\"a\": \"b\"}', 't', 'PUBLISHED', '2020-01-01', '2020-01-01')",
        )
        .await?;
    outbox.execute("create table before as select * from event_outbox").await?;
    let (events, _) = pruned(&database, &["--mode", "archive", "--after", "1d", "--yes"]).await?;
    let archived = "select count(*) from event_outbox_archive a join before b using (id) \
                    where to_jsonb(a) - 'archived_at' - 'other_columns' = to_jsonb(b)";
    ensure!(events > 5_000 && outbox.number(archived).await? == events, "{events}");
    ensure!(outbox.number("select count(*) from event_outbox_archive").await? == events);
    ensure!(outbox.number("select count(*) from event_outbox join event_outbox_archive using (id)").await? == 0);
    // Restored by hand and archived once more: the archive already has the row.
    let columns = "id, entity_type, event_type, payload, status, created_at, published_at";
    outbox
        .execute(&format!(
            "insert into event_outbox ({columns}) overriding system value select {columns} from event_outbox_archive where id = 1"
        ))
        .await?;
    let (again, _) = pruned(&database, &["--mode", "archive", "--after", "1d", "--yes"]).await?;
    ensure!(again == 1, "{again}");
    Ok(())
}

async fn columns_of_the_applications_own_survive_the_archive(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_history(&outbox).await?;
    // The archive has a column for one of them.
    outbox
        .execute(
            "alter table event_outbox add column tenant text, add column \"Odd \"\"name\" bytea, add column archived_at int; \
             alter table event_outbox_archive add column tenant text; \
             update event_outbox set tenant = 't' || id, \"Odd \"\"name\" = '\\x01', archived_at = id where status = 'PUBLISHED'",
        )
        .await?;
    let (events, _) = pruned(&database, &["--mode", "archive", "--after", "1d", "--yes"]).await?;
    let survived = "select count(*) from event_outbox_archive where tenant = 't' || id and archived_at > now() - interval '1 hour' \
                    and other_columns = jsonb_build_object('Odd \"name', '\\x01', 'archived_at', id)";
    ensure!(events > 5_000 && outbox.number(survived).await? == events, "{events}");
    Ok(())
}

async fn rows_of_the_consumers_table_are_pruned_by_their_age(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox
        .execute(
            "insert into processed_events (consumer_group, event_id, processed_at) \
             select 'g', gen_random_uuid(), now() - n * interval '1 minute' from generate_series(1, 50000) n",
        )
        .await?;
    // The outbox itself is kept.
    write_history(&outbox).await?;
    // Without brokers the window cannot be compared with the topic, so duplicates might get in.
    let arguments = ["--processed-after", "10d"];
    let refused = prune(&database, &["--processed-after", "10d", "--yes"]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("KAFKA_BOOTSTRAP_SERVERS"), "{refused:?}");
    let unexplained = prune(&database, &["--processed-after", "10d", "--yes", "--force"]).await?;
    ensure!(unexplained.code == Some(2) && unexplained.stderr.contains("--reason"), "{unexplained:?}");
    let old =
        outbox.number("select count(*) from processed_events where processed_at < now() - interval '10 days'").await?;
    let dry = pruned(&database, &[&arguments[..], &["--dry-run"]].concat()).await?;
    ensure!(dry == (0, old), "{dry:?} instead of {old}");
    let forced = ["--yes", "--force", "--reason", "no topic is that old"];
    ensure!(pruned(&database, &[&arguments[..], &forced].concat()).await? == (0, old));
    ensure!(outbox.number("select count(*) from processed_events").await? == 50_000 - old);
    let audited =
        "select count(*) from event_outbox_audit where filter ->> 'force' = 'true' and reason = 'no topic is that old'";
    ensure!(outbox.number(audited).await? == 1);
    ensure!(outbox.number("select count(*) from event_outbox").await? == 10_000);
    Ok(())
}

async fn a_locked_event_is_skipped_and_nobody_waits_for_a_prune(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_history(&outbox).await?;
    let mut other = outbox.connect().await?;
    let mut lock = other.begin().await?;
    lock.execute("select from event_outbox where id in (1, 2) for update").await?;
    let arguments = ["--mode", "delete", "--after", "1d", "--yes"];
    pruned(&database, &arguments).await?;
    ensure!(outbox.number("select count(*) from event_outbox where id in (1, 2)").await? == 2);
    lock.rollback().await?;
    ensure!(pruned(&database, &arguments).await? == (2, 0));
    Ok(())
}

async fn a_prune_without_anything_to_prune_or_without_a_yes_changes_nothing(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_history(&outbox).await?;
    for (arguments, says) in [
        (&["--yes"][..], "RELAY_RETENTION"),
        (&["--mode", "delete"], "--yes"),
        (&["--mode", "burn", "--yes"], "burn"),
        (&["--mode", "delete", "--after", "7", "--yes"], "--after"),
    ] {
        let output = prune(&database, arguments).await?;
        ensure!(output.code == Some(2) && output.stderr.contains(says), "{arguments:?}: {output:?}");
    }
    ensure!(outbox.number("select count(*) from event_outbox").await? == 10_000);
    Ok(())
}

async fn relays_prune_in_the_background_under_load_and_the_ledger_is_clean(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    // The inbox remembers for longer than the topic keeps the applied events.
    kafka.create_topic(&outbox.topic, PARTITIONS, &[("retention.ms", "1200000")]).await?;
    outbox
        .execute("insert into processed_events values ('g', gen_random_uuid(), now() - interval '1 hour'), ('g', gen_random_uuid(), now())")
        .await?;
    records(&outbox, "g").await?;
    let settings = outbox
        .relay(&kafka)
        .with("RELAY_RETENTION", "archive")
        .with("RELAY_RETENTION_AFTER", "1s")
        .with("RELAY_PROCESSED_RETENTION", "30m")
        .with("RELAY_STATUS_INTERVAL", "1s");
    let (one, _two) = (settings.start("one")?, settings.start("two")?);
    let load = Load::start(&outbox, Plan::new(6_000, 64));
    let archived = "select count(*) from event_outbox_archive";
    let until = async |count: i64| {
        eventually(&format!("{count} events are archived"), SOON * 4, || async {
            match outbox.number(archived).await {
                Ok(found) if found >= count => Ok(()),
                other => Err(other),
            }
        })
        .await;
    };
    until(1_000).await;
    // The pruning relay is killed; the other one goes on.
    one.kill()?;
    load.until_committed(6_000 / 16 * 16).await;
    outbox.until_settled().await;
    // The last events must reach that age as well.
    eventually("all are old", SOON, || async {
        match outbox.number("select count(*) from event_outbox where published_at > now() - interval '1 second'").await
        {
            Ok(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let all = outbox.number("select count(*) + (select count(*) from event_outbox_archive) from event_outbox").await?;
    // A late commit below the walk's position waits for the next sweep, which runs once an hour. How many there are depends on how long the
    // writers' transactions stay open. The test prunes those rows by hand.
    until(all / 2).await;
    let (rest, _) = pruned(&database, &["--mode", "archive", "--after", "1s", "--yes"]).await?;
    eprintln!("{rest} of {all} events were left for the sweep");
    until(all).await;
    ensure!(outbox.number("select count(*) from processed_events").await? == 1);
    // Moves the rows back into the table, so that the ledger finds every commit.
    drop(_two);
    let columns: String = sqlx::query_scalar(
        "select string_agg(attname, ', ' order by attnum) from pg_attribute \
         where attrelid = 'event_outbox'::regclass and attnum > 0 and attname <> 'lane'",
    )
    .fetch_one(&mut outbox.connect().await?)
    .await?;
    outbox
        .execute(&format!(
            "insert into event_outbox ({columns}) overriding system value select {columns} from event_outbox_archive"
        ))
        .await?;
    load.reconcile(&outbox, &kafka, Rules::default()).await
}

async fn a_relay_that_may_not_prune_says_so_once_and_goes_on(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    const FAILS: &str = "OR-6001";
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.execute("alter table event_outbox_archive rename to hidden").await?;
    let relay =
        outbox.relay(&kafka).with("RELAY_RETENTION", "archive").with("RELAY_RETENTION_AFTER", "1s").start("refused")?;
    outbox.write("a", 1, 3).await?;
    let logged = relay.wait_for(FAILS).await;
    ensure!(logged["next_step"].as_str().is_some_and(|step| step.contains("migrate")), "{logged}");
    outbox.write("a", 4, 3).await?;
    outbox.until_settled().await;
    outbox.execute("alter table hidden rename to event_outbox_archive").await?;
    relay.wait_for_end_of(FAILS).await;
    ensure!(relay.lines(FAILS).len() == 1);
    ensure!(outbox.published_numbers(&kafka).await?["a"] == (1..=6).collect::<Vec<_>>());
    Ok(())
}

/// Creates a topic with this retention, a topic of dead letters, and a row that is an hour old.
async fn remember(outbox: &Outbox, kafka: &RealKafka, retention_ms: &str) -> anyhow::Result<String> {
    kafka.create_topic(&outbox.topic, PARTITIONS, &[("retention.ms", retention_ms)]).await?;
    let dead_letters = format!("{}.billing.dlq", outbox.topic);
    kafka.create_topic(&dead_letters, 1, &[("retention.ms", "60000")]).await?;
    outbox
        .execute("insert into processed_events values ('billing', gen_random_uuid(), now() - interval '1 hour')")
        .await?;
    records(outbox, "billing").await?;
    Ok(dead_letters)
}

/// Records that the group reads the outbox's topic.
async fn records(outbox: &Outbox, group: &str) -> anyhow::Result<()> {
    let sql =
        format!("insert into processed_events_source (consumer_group, topic) values ('{group}', '{}')", outbox.topic);
    outbox.execute(&sql).await.map(drop)
}

async fn a_window_that_lets_duplicates_in_is_refused_with_the_numbers_until_it_is_wide_enough(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let dead_letters = remember(&outbox, &kafka, "7200000").await?;
    let topic = outbox.topic.clone();
    let relay = outbox.relay(&kafka).with("RELAY_PROCESSED_RETENTION", "30m");
    let prune = async |relay: &Relay| relay.clone().argument("--yes").output("prune").await;
    let check = async |relay: &Relay| -> anyhow::Result<Vec<Value>> {
        let output = relay.clone().argument("--json").output("check").await?;
        let report: Value = serde_json::from_str(&output.stdout)?;
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        Ok(findings.into_iter().filter(|finding| finding["id"] == "processed-window").collect())
    };
    let refused = |output: &Output, parts: &[&str]| -> anyhow::Result<()> {
        ensure!(output.code == Some(1), "{output:?}");
        for part in parts {
            ensure!(output.stderr.contains(part), "no {part:?} in {output:?}");
        }
        Ok(())
    };
    // Excludes the topic of dead letters, whose name begins with the same text.
    let of_topic = format!("{topic} ");
    refused(&prune(&relay).await?, &[&of_topic, "retention.ms", "2h", "30m"])?;
    let found = check(&relay).await?;
    ensure!(found.len() == 1 && found[0]["severity"] == "error", "{found:?}");
    ensure!(found[0]["message"].as_str().is_some_and(|message| message.contains("2h")), "{found:?}");
    kafka.alter_topic(&topic, &[("retention.ms", "-1")]).await?;
    eventually("it keeps events for ever", SOON, || async {
        let output = prune(&relay).await.map_err(|error| error.to_string())?;
        refused(&output, &[&of_topic, "retention.ms", "30m"]).map_err(|error| error.to_string())?;
        if output.stderr.contains("2h") { Err(output.stderr) } else { Ok(()) }
    })
    .await;
    kafka.alter_topic(&topic, &[("retention.ms", "60000"), ("cleanup.policy", "compact")]).await?;
    eventually("it keeps the last event of each key", SOON, || async {
        let findings = check(&relay).await.map_err(|error| error.to_string())?;
        if findings.len() == 1 { Ok(()) } else { Err(format!("{findings:?}")) }
    })
    .await;
    // The window is long enough for now.
    kafka.alter_topic(&topic, &[("retention.ms", "1800000")]).await?;
    kafka.alter_topic(&dead_letters, &[("retention.ms", "1800001")]).await?;
    eventually("only the dead letters are kept too long", SOON, || async {
        let output = prune(&relay).await.map_err(|error| error.to_string())?;
        let refusal = refused(&output, &[&dead_letters, "retention.ms", "30m 1ms"]);
        refusal.map_err(|error| error.to_string())?;
        if output.stderr.contains(&of_topic) { Err(output.stderr) } else { Ok(()) }
    })
    .await;
    ensure!(check(&relay).await?.len() == 1);
    kafka.alter_topic(&dead_letters, &[("retention.ms", "60000")]).await?;
    let horizon = relay.clone().with("RELAY_DEAD_LETTER_HORIZON", "2d");
    eventually("only the horizon is too far", SOON, || async {
        let output = prune(&horizon).await.map_err(|error| error.to_string())?;
        refused(&output, &["RELAY_DEAD_LETTER_HORIZON", "2d"]).map_err(|error| error.to_string())?;
        let is_of_a_topic = output.stderr.contains(&of_topic) || output.stderr.contains(&dead_letters);
        if is_of_a_topic { Err(output.stderr) } else { Ok(()) }
    })
    .await;
    ensure!(outbox.number("select count(*) from processed_events").await? == 1, "something was pruned");
    ensure!(check(&relay).await?.is_empty());
    let done = prune(&relay).await?;
    ensure!(done.code == Some(0), "{done:?}");
    ensure!(outbox.number("select count(*) from processed_events").await? == 0);
    Ok(())
}

async fn a_relay_prunes_nothing_that_a_topic_still_holds(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    const REFUSED: &str = "OR-3112";
    let outbox = Outbox::from_database(&database);
    remember(&outbox, &kafka, "7200000").await?;
    let settings = outbox.relay(&kafka).with("RELAY_PROCESSED_RETENTION", "10s");
    let relay = settings.start("narrow")?;
    // The check at the start finds the same.
    let is_of_retention = |line: &Value| line["finding"].is_null();
    let logged = relay.wait_for_line(REFUSED, is_of_retention).await;
    let reason = logged["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains(&outbox.topic) && reason.contains("2h") && reason.contains("10s"), "{logged}");
    ensure!(
        logged["level"] == "ERROR"
            && logged["next_step"].as_str().is_some_and(|step| step.contains("RELAY_PROCESSED_RETENTION")),
        "{logged}"
    );
    // The topic's events are published nevertheless.
    outbox.write("a", 1, 3).await?;
    outbox.until_settled().await;
    ensure!(outbox.number("select count(*) from processed_events").await? == 1);
    kafka.alter_topic(&outbox.topic, &[("retention.ms", "5000")]).await?;
    kafka.alter_topic(&format!("{}.billing.dlq", outbox.topic), &[("retention.ms", "5000")]).await?;
    eventually("the row is pruned", SOON * 2, || async {
        match outbox.number("select count(*) from processed_events").await {
            Ok(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    ensure!(relay.lines(REFUSED).iter().filter(|line| is_of_retention(line)).count() == 1);
    Ok(())
}
