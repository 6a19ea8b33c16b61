//! Tests events that need a decision: they are found by cause, retried in order, or discarded, and the audit records every action.

use std::sync::Arc;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use serde_json::Value;

use lab::kafka::RealKafka;
use lab::load::{Load, Plan};
use lab::relay::Output;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

const HELD: &str = "event_refused";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            dead_events_are_listed_by_cause_whatever_differs_from_event_to_event,
            every_filter_finds_its_events_and_no_others,
            a_payload_is_shown_only_when_it_is_asked_for,
            nothing_is_changed_without_a_filter_or_a_yes_or_in_a_dry_run;
        with_both:
            dead_events_of_an_entity_are_retried_in_order_while_the_relay_is_far_ahead,
            a_held_entity_goes_on_in_order_when_its_event_is_retried,
            a_held_entity_goes_on_when_its_event_is_discarded_which_can_be_undone,
            only_the_audit_table_excuses_an_event_that_was_retried_after_its_successors,
            events_are_retried_under_load_with_two_relays_and_the_ledger_is_clean;
    }
}

async fn command(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<Output> {
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    arguments.iter().fold(relay, |relay, argument| relay.argument(argument)).output("dead").await
}

async fn json(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = command(database, &[arguments, &["--json"]].concat()).await?;
    ensure!(output.code == Some(0) && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

/// Writes DEAD rows, oldest first: `(entity type, entity, event type, topic, error, age in hours)`.
async fn write_dead(outbox: &Outbox) -> anyhow::Result<()> {
    let rows = [
        ("order", "a", "Placed", "null", "Refused: record 17 of 200 for \"ann\"", 50),
        ("order", "b", "Placed", "null", "Refused: record 3 of 9 for \"bob, junior\"", 40),
        ("order", "b", "Paid", "'other'", "Refused: record 0 of 1 for \"\"", 30),
        ("customer", "b", "Placed", "null", "bad header in 6fa459ea-ee8a-3ca4-894e-db77e160355e", 20),
        ("customer", "c", "Moved", "null", "bad header in 00000000-0000-0000-0000-000000000000", 10),
    ];
    for (kind, entity, event, topic, error, age) in rows {
        outbox
            .execute(&format!(
                "insert into event_outbox (entity_type, entity_id, event_type, topic, payload, status, attempts, last_error, \
                 created_at) values ('{kind}', '{entity}', '{event}', {topic}, '{{\"secret\": 12345678901234567890}}', 'DEAD', 1, \
                 '{error}', now() - interval '{age} hours')"
            ))
            .await?;
    }
    outbox.write("fine", 1, 3).await
}

async fn dead_events_are_listed_by_cause_whatever_differs_from_event_to_event(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let output = command(&database, &["list"]).await?;
    ensure!(output.code == Some(0) && output.stdout.starts_with("no event needs a decision"), "{output:?}");
    write_dead(&outbox).await?;
    let listed = json(&database, &["list"]).await?;
    ensure!(listed["events"] == 5, "{listed}");
    let causes = listed["causes"].as_array().context("no causes")?;
    let counts: Vec<_> = causes.iter().map(|cause| (cause["events"].as_i64(), cause["entities"].as_i64())).collect();
    ensure!(counts == [(Some(3), Some(2)), (Some(2), Some(2))], "{listed}");
    ensure!(causes[0]["state"] == "dead" && causes[0]["error"] == "Refused: record 17 of 200 for \"ann\"", "{listed}");
    let text = command(&database, &["list"]).await?.stdout;
    for part in ["3 dead of 2 entities", "2 dead of 2 entities", "5 events in", "Moved Placed"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    Ok(())
}

async fn every_filter_finds_its_events_and_no_others(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_dead(&outbox).await?;
    let listed = json(&database, &["list"]).await?;
    let fingerprint = listed["causes"][1]["fingerprint"].as_str().context("no fingerprint")?.to_owned();
    let event =
        json(&database, &["show", "--id", "5"]).await?["events"][0]["event_id"].as_str().context("none")?.to_owned();
    for (arguments, ids) in [
        (&["--type", "Placed"][..], &[1, 2, 4][..]),
        (&["--entity", "b"], &[2, 3, 4]),
        (&["--entity", "b", "--entity-type", "customer"], &[4]),
        (&["--topic", "order-events"], &[1, 2]),
        (&["--topic", "other"], &[3]),
        (&["--cause", &fingerprint], &[4, 5]),
        (&["--until", "25h"], &[1, 2, 3]),
        (&["--since", "25h"], &[4, 5]),
        (&["--until", "15h", "--since", "45h"], &[2, 3, 4]),
        (&["--id", "1", "--id", &event], &[1, 5]),
        (&["--entity", "it's \\ nobody"], &[]),
    ] {
        let shown = json(&database, &[&["show"], arguments].concat()).await?;
        let found: Vec<_> = shown["events"].as_array().context("none")?.iter().map(|event| &event["id"]).collect();
        ensure!(
            found == ids.iter().map(|id| Value::from(*id)).collect::<Vec<_>>().iter().collect::<Vec<_>>(),
            "{arguments:?}: {shown}"
        );
    }
    let output = command(&database, &["show", "--id", "6"]).await?;
    ensure!(
        output.code == Some(1) && output.stderr.contains("event 6 ") && output.stderr.contains("PENDING"),
        "{output:?}"
    );
    let output = command(&database, &["show", "--id", "99"]).await?;
    ensure!(output.code == Some(1) && output.stderr.contains("event 99 "), "{output:?}");
    Ok(())
}

async fn a_payload_is_shown_only_when_it_is_asked_for(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_dead(&outbox).await?;
    for arguments in
        [&["show"][..], &["show", "--json"], &["list"], &["list", "--json"], &["retry", "--all", "--dry-run"]]
    {
        let output = command(&database, arguments).await?;
        ensure!(output.code == Some(0) && !output.stdout.contains("secret"), "{arguments:?}: {output:?}");
    }
    let output = command(&database, &["show", "--payload", "--limit", "1"]).await?;
    ensure!(output.stdout.contains("{\"secret\": 12345678901234567890}"), "{output:?}");
    // The payload is printed as Postgres prints it, so that no number is changed.
    let output = command(&database, &["show", "--payload", "--json"]).await?;
    ensure!(output.stdout.contains("12345678901234567890"), "{output:?}");
    Ok(())
}

async fn nothing_is_changed_without_a_filter_or_a_yes_or_in_a_dry_run(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_dead(&outbox).await?;
    let rows = "select sum(hashtext(o::text)::bigint) from event_outbox o";
    let before = outbox.number(rows).await?;
    for (arguments, code, says) in [
        (&["retry"][..], 2, "needs a filter"),
        (&["retry", "--yes"], 2, "needs a filter"),
        (&["retry", "--all"], 2, "There is no terminal to ask on"),
        (&["retry", "--all", "--yes", "--dry-run"], 2, "cannot be used with"),
        (&["discard", "--all", "--yes"], 2, "--reason"),
        (&["retry", "--id", "6", "--yes"], 1, "event 6 is PENDING"),
    ] {
        let output = command(&database, arguments).await?;
        ensure!(output.code == Some(code) && output.stderr.contains(says), "{arguments:?}: {output:?}");
    }
    let dry = json(&database, &["discard", "--entity", "b", "--reason", "x", "--dry-run"]).await?;
    ensure!(dry["dry_run"] == true && dry["matching"] == 3 && dry["changed"].is_null(), "{dry}");
    ensure!(outbox.number(rows).await? == before, "rows were changed");
    ensure!(outbox.number("select count(*) from event_outbox_audit").await? == 0);
    Ok(())
}

/// Writes an event whose headers make it poison; [`fix`] repairs it.
async fn write_poison(outbox: &Outbox, entity: &str, n: i64) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
         values ('order', '{entity}', 'Counted', '{{\"n\": {n}}}', '{{\"number\": 1}}')"
    );
    outbox.execute(&sql).await.map(drop)
}

async fn fix(outbox: &Outbox) -> anyhow::Result<()> {
    outbox.execute("update event_outbox set headers = '{}' where headers <> '{}'").await.map(drop)
}

async fn dead_events_of_an_entity_are_retried_in_order_while_the_relay_is_far_ahead(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let _relay = outbox.relay(&kafka).with("RELAY_BATCH_SIZE", 2).start("retry")?;
    for n in 1..=9 {
        if n % 3 == 0 { outbox.write("a", n, 1).await? } else { write_poison(&outbox, "a", n).await? }
    }
    outbox.write("others", 1, 200).await?;
    outbox.until_settled().await;
    ensure!(outbox.published_numbers(&kafka).await?["a"] == [3, 6, 9]);
    fix(&outbox).await?;
    let changed =
        json(&database, &["retry", "--entity", "a", "--yes", "--by", "ann", "--reason", "headers fixed"]).await?;
    ensure!(changed["changed"]["events"] == 6 && changed["changed"]["released"] == 0, "{changed}");
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["a"] == [3, 6, 9, 1, 2, 4, 5, 7, 8], "{numbers:?}");
    outbox.reconcile(&kafka, Rules::default()).await?;
    let audit = "select count(*) from event_outbox_audit a join event_outbox_audit_row r on r.audit_id = a.id \
                 where command = 'dead retry' and acted_by = 'ann' and reason = 'headers fixed' and affected = 6 \
                 and filter = '{\"entity\": \"a\"}' and action = 'retried' and error like '%header%'";
    ensure!(outbox.number(audit).await? == 6);
    // A second retry finds nothing.
    let again = json(&database, &["retry", "--entity", "a", "--yes"]).await?;
    ensure!(again["matching"] == 0 && again["changed"].is_null(), "{again}");
    Ok(())
}

/// Writes for each of two entities two good events, poison, and three more events that wait behind the poison.
async fn hold(outbox: &Outbox, kafka: &RealKafka) -> anyhow::Result<lab::RelayProcess> {
    outbox.create_topic(kafka).await?;
    let settings = outbox.relay(kafka).with("RELAY_ON_POISON", "hold_entity").with("RELAY_BATCH_SIZE", 3);
    let relay = settings.start("holds")?;
    for entity in ["a", "b"] {
        outbox.write(entity, 1, 2).await?;
        write_poison(outbox, entity, 3).await?;
        outbox.write(entity, 4, 3).await?;
        relay.wait_for_line(HELD, |line| line["entity.id"] == entity).await;
    }
    until_held(outbox, 8).await;
    Ok(relay)
}

async fn until_held(outbox: &Outbox, rows: i64) {
    let held = "select coalesce(sum(events), 0) from event_outbox_hold where why = 'poison'";
    eventually(&format!("{rows} rows are held"), SOON, || async {
        match outbox.number(held).await {
            Ok(found) if found == rows => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

async fn a_held_entity_goes_on_in_order_when_its_event_is_retried(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let _relay = hold(&outbox, &kafka).await?;
    let listed = json(&database, &["list"]).await?;
    let cause = &listed["causes"][0];
    ensure!(listed["causes"].as_array().is_some_and(|causes| causes.len() == 1), "{listed}");
    ensure!(cause["state"] == "held" && cause["events"] == 2 && cause["waiting_behind"] == 6, "{listed}");
    let waiter = outbox.number("select max(id) from event_outbox where entity_id = 'a'").await?.to_string();
    let output = command(&database, &["retry", "--id", &waiter, "--yes"]).await?;
    ensure!(
        output.code == Some(1) && output.stderr.contains("PENDING") && output.stderr.contains("outbox-relay explain"),
        "{output:?}"
    );
    fix(&outbox).await?;
    let changed = json(&database, &["retry", "--entity", "a", "--yes"]).await?;
    ensure!(changed["changed"]["events"] == 1 && changed["changed"]["released"] == 3, "{changed}");
    outbox.until_settled_of("a").await;
    outbox.write("a", 7, 1).await?;
    outbox.until_settled_of("a").await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["a"] == (1..=7).collect::<Vec<_>>() && numbers["b"] == [1, 2], "{numbers:?}");
    // No event was DEAD, so the audit has no action except releases.
    ensure!(outbox.number("select count(*) from event_outbox_audit_row where action <> 'released'").await? == 0);
    until_held(&outbox, 4).await;
    Ok(())
}

async fn a_held_entity_goes_on_when_its_event_is_discarded_which_can_be_undone(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = hold(&outbox, &kafka).await?;
    let changed = json(&database, &["discard", "--entity", "a", "--yes", "--reason", "a test order"]).await?;
    ensure!(changed["changed"]["events"] == 1 && changed["changed"]["released"] == 3, "{changed}");
    outbox.until_settled_of("a").await;
    let rows = outbox.row_states("a").await?;
    let error = rows[2].last_error.as_deref().unwrap_or_default();
    ensure!(rows[2].status == "DEAD" && error.starts_with("discarded: ") && !error.contains("held"), "{rows:?}");
    ensure!(outbox.published_numbers(&kafka).await?["a"] == [1, 2, 4, 5, 6]);
    ensure!(json(&database, &["list", "--entity", "a"]).await?["events"] == 0);
    let decided = json(&database, &["list", "--discarded"]).await?;
    let open = json(&database, &["list"]).await?;
    let fingerprint = |listed: &Value| listed["causes"][0]["fingerprint"].clone();
    ensure!(decided["events"] == 1 && fingerprint(&decided) == fingerprint(&open), "{decided} {open}");
    // The status line counts the events that need a decision.
    relay.signal(lab::demo::Signal::SIGTERM)?;
    let changed = json(&database, &["discard", "--entity", "b", "--yes", "--reason", "another"]).await?;
    ensure!(changed["changed"]["events"] == 1, "{changed}");
    let relay = outbox.relay(&kafka).with("RELAY_STATUS_INTERVAL", "1s").start("counts")?;
    outbox.until_settled().await;
    relay.wait_for_line("status", |line| line["dead"] == 0 && line["held"] == 0).await;

    fix(&outbox).await?;
    let changed = json(&database, &["retry", "--discarded", "--entity", "a", "--yes"]).await?;
    ensure!(changed["changed"]["events"] == 1, "{changed}");
    outbox.until_settled().await;
    ensure!(outbox.published_numbers(&kafka).await?["a"] == [1, 2, 4, 5, 6, 3]);
    outbox.reconcile(&kafka, Rules::default()).await
}

async fn only_the_audit_table_excuses_an_event_that_was_retried_after_its_successors(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let _relay = outbox.relay(&kafka).start("excused")?;
    write_poison(&outbox, "a", 1).await?;
    outbox.write("a", 2, 1).await?;
    outbox.until_settled().await;
    fix(&outbox).await?;
    json(&database, &["retry", "--all", "--yes"]).await?;
    outbox.until_settled().await;
    outbox.reconcile(&kafka, Rules::default()).await?;
    outbox.execute("delete from event_outbox_audit_row").await?;
    let found = outbox.reconcile(&kafka, Rules::default()).await;
    ensure!(found.is_err_and(|error| error.to_string().contains("inversions")), "the ledger did not notice");
    Ok(())
}

async fn events_are_retried_under_load_with_two_relays_and_the_ledger_is_clean(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_BATCH_SIZE", 50).with("RELAY_ON_POISON", "hold_entity");
    let _relays = [settings.start("one")?, settings.start("two")?];
    let load = Load::start(&outbox, Plan::new(6_000, 64));
    for round in 1..=4 {
        load.until_committed(round * 1_000).await;
        // The entities are among those that the load writes: their successors keep coming while the event is held and retried.
        for entity in 0..2 {
            outbox
                .execute(&format!(
                    "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
                     values ('order', 's{entity}', 'Counted', '{{\"n\": 0}}', '{{\"number\": 1}}')"
                ))
                .await?;
        }
        eventually("two entities are held", SOON, || async {
            let listed = json(&database, &["list"]).await.map_err(|error| error.to_string())?;
            if listed["events"] == 2 { Ok(()) } else { Err(listed.to_string()) }
        })
        .await;
        fix(&outbox).await?;
        if round == 3 {
            json(&database, &["discard", "--all", "--yes", "--reason", "the third round"]).await?;
        } else {
            json(&database, &["retry", "--all", "--yes"]).await?;
        }
    }
    load.reconcile_all_but_dead(&outbox, &kafka, Rules::default()).await?;
    let dead = outbox.number("select count(*) from event_outbox where status = 'DEAD'").await?;
    ensure!(dead == 2, "{dead} are dead");
    Ok(())
}
