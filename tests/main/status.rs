//! Tests `outbox-relay status` and the view `event_outbox_health`: waiting events, blocked events, and next steps.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::{Connection, Executor, Row};

use lab::kafka::RealKafka;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            status_needs_no_relay_and_says_that_there_is_none,
            a_session_that_has_locked_an_event_is_named_with_what_ends_it,
            a_session_that_has_locked_the_table_is_named_although_nothing_can_be_read,
            pauses_are_shown_with_their_reason,
            the_health_view_is_for_a_monitor_without_rights_on_the_tables,
            the_health_view_walks_the_backlog_and_not_the_table;
        with_both:
            lanes_are_shown_as_one_worker_or_all_of_a_relay_own_them,
            relays_are_shown_with_their_lanes_and_what_they_do,
            held_and_dead_events_are_shown_with_the_next_step,
            watching_goes_on_and_shows_the_rate;
    }
}

fn relay_of(database: &TestDatabase) -> Relay {
    Relay::bare().with("DATABASE_URL", database.url())
}

async fn status(relay: &Relay) -> anyhow::Result<Value> {
    let output = relay.clone().argument("--json").output("status").await?;
    ensure!(output.code == Some(0), "{output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

/// Returns true when one next step contains all of `parts`, in its problem or in its action.
fn shows(status: &Value, parts: &[&str]) -> bool {
    let steps = status["next"].as_array().cloned().unwrap_or_default();
    steps.iter().any(|step| {
        let text =
            format!("{} {}", step["what"].as_str().unwrap_or_default(), step["next_step"].as_str().unwrap_or_default());
        parts.iter().all(|part| text.contains(part))
    })
}

async fn status_needs_no_relay_and_says_that_there_is_none(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.write("one", 1, 3).await?;
    outbox.write("two", 1, 2).await?;
    let relay = relay_of(&database);
    let seen = status(&relay).await?;
    ensure!(seen["backlog"]["pending"] == 5 && seen["backlog"]["oldest_pending_s"].is_f64(), "{seen}");
    ensure!(seen["topics"][0]["topic"] == "order-events" && seen["topics"][0]["pending"] == 5, "{seen}");
    let by_lane: i64 =
        seen["lanes"].as_array().context("lanes")?.iter().filter_map(|lane| lane["pending"].as_i64()).sum();
    ensure!(by_lane == 5 && seen["relays"] == Value::Array(Vec::new()), "{seen}");
    ensure!(shows(&seen, &["relay", "outbox-relay run"]), "{seen}");

    outbox
        .execute("insert into event_outbox_relay (protocol, id, name, version, workers, seen_at) values (2, gen_random_uuid(), 'gone', '0', 2, now() - interval '9 minutes')")
        .await?;
    let seen = status(&relay).await?;
    ensure!(shows(&seen, &["relay", "\"gone\"", "9 min"]), "{seen}");
    let text = relay.output("status").await?;
    for part in ["pending    5", "order-events", "9 min", "to do"] {
        ensure!(text.stdout.contains(part), "no {part:?} in\n{}", text.stdout);
    }
    Ok(())
}

async fn a_session_that_has_locked_an_event_is_named_with_what_ends_it(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.write("one", 1, 3).await?;
    let mut conn = outbox.connect().await?;
    conn.execute("set application_name = 'a forgotten psql'").await?;
    let mut open = conn.begin().await?;
    let pid: i64 = sqlx::query_scalar("select pg_backend_pid()::int8").fetch_one(&mut *open).await?;
    open.execute("select from event_outbox where id = 2 for update").await?;
    let terminate = format!("pg_terminate_backend({pid})");
    let seen = status(&relay_of(&database)).await?;
    ensure!(
        shows(&seen, &["the lock on pending event number 2", "a forgotten psql", "user postgres", &terminate]),
        "{seen}"
    );
    open.rollback().await?;
    let seen = status(&relay_of(&database)).await?;
    ensure!(!shows(&seen, &["a forgotten psql"]), "{seen}");
    Ok(())
}

async fn a_session_that_has_locked_the_table_is_named_although_nothing_can_be_read(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut conn = outbox.connect().await?;
    let mut open = conn.begin().await?;
    open.execute("lock table event_outbox in access exclusive mode").await?;
    let pid: i64 = sqlx::query_scalar("select pg_backend_pid()::int8").fetch_one(&mut *open).await?;
    let seen = status(&relay_of(&database)).await?;
    ensure!(seen["unreadable"].is_string() && seen["backlog"].is_null(), "{seen}");
    ensure!(shows(&seen, &["AccessExclusiveLock", &format!("pg_terminate_backend({pid})")]), "{seen}");
    open.rollback().await?;
    Ok(())
}

async fn pauses_are_shown_with_their_reason(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    // Creates the table as the migration of the pauses does, with the columns that are read here.
    outbox
        .execute(
            "create table if not exists event_outbox_pause (id bigint generated always as identity, scope text, topic text, \
             entity_type text, entity_id text, reason text, paused_by text, since timestamptz default now(), expires_at timestamptz)",
        )
        .await?;
    outbox
        .execute(
            "insert into event_outbox_pause (scope, topic, reason, paused_by, expires_at) values \
             ('topic', 'order-events', 'the consumer is being repaired', 'ann', null), \
             ('topic', 'old-events', 'long over', 'ann', now() - interval '1 hour')",
        )
        .await?;
    let seen = status(&relay_of(&database)).await?;
    ensure!(shows(&seen, &["order-events", "the consumer is being repaired", "outbox-relay resume"]), "{seen}");
    ensure!(!shows(&seen, &["long over"]), "{seen}");
    let listed = relay_of(&database).argument("--list").argument("--json").output("pause").await?;
    let listed: Value = serde_json::from_str(&listed.stdout)?;
    for member in ["scope", "topic", "reason", "paused_by", "since", "expires_at"] {
        ensure!(seen["pauses"][0][member] == listed["pauses"][0][member], "{member}: {seen} and {listed}");
    }
    ensure!(seen["pauses"].as_array().map(Vec::len) == Some(1), "{seen}");
    Ok(())
}

async fn the_health_view_is_for_a_monitor_without_rights_on_the_tables(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.write("one", 1, 4).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, status, available_at, last_error) values \
             ('order', 'd', 'X', 'DEAD', null, 'refused'), ('order', 's', 'X', 'PENDING', now() + interval '1 day', null); \
             insert into event_outbox_hold (lane, kind, topic, why, reason, from_id, events) \
             values (0, 'topic', 'x', 'topic', 'y', 1, 1)",
        )
        .await?;
    let user = format!("monitor_of_{}", database.name());
    outbox.execute(&format!("create role {user}")).await?;
    outbox.execute(&format!("grant select on event_outbox_health to {user}")).await?;
    let mut conn = outbox.connect().await?;
    conn.execute(sqlx::AssertSqlSafe(format!("set role {user}"))).await?;
    let refused = conn.execute("select from event_outbox").await;
    ensure!(refused.is_err(), "the monitor reads the table");
    let row =
        conn.fetch_one("select pending, scheduled, held, dead, relays_alive, lanes from event_outbox_health").await?;
    let counts: Vec<i64> = (0..6).map(|column| row.try_get(column)).collect::<Result<_, _>>()?;
    ensure!(counts == [4, 1, 1, 1, 0, 16], "{counts:?}");
    outbox.execute(&format!("drop owned by {user}")).await?;
    outbox.execute(&format!("drop role {user}")).await?;
    Ok(())
}

async fn the_health_view_walks_the_backlog_and_not_the_table(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.execute("alter table event_outbox set (autovacuum_enabled = off)").await?;
    let plan_of = "explain select * from event_outbox_health";
    let fill = |status: &str, rows: i64| {
        format!(
            "do $$ begin for i in 1..{rows} / 100 loop \
             insert into event_outbox (entity_type, entity_id, event_type, payload, status) \
             select 'order', (n % 500)::text, 'X', '{{}}', '{status}' from generate_series(1, 100) n; commit; end loop; end $$"
        )
    };
    // Creates statistics that count every row as pending, while nearly all are published.
    outbox.execute(&fill("PENDING", 1_000)).await?;
    outbox.execute("analyze event_outbox").await?;
    outbox.execute(&fill("PUBLISHED", 200_000)).await?;
    for state in ["stale statistics", "fresh statistics"] {
        let rows = outbox.connect().await?.fetch_all(plan_of).await?;
        let plan: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let scans =
            plan.iter().any(|line| line.contains("Seq Scan on event_outbox") && !line.contains("event_outbox_"));
        // Uses the key only above the scanned ids, and the late rows' index for late rows.
        let by_key = plan.iter().zip(&plan[1..]).filter(|(line, _)| line.contains("using event_outbox_pkey on"));
        let walks = by_key.clone().any(|(_, condition)| !condition.contains("Index Cond: (id > "));
        let late = plan
            .iter()
            .filter(|line| line.contains(" event_outbox_late ") || line.contains("on event_outbox_late"))
            .count();
        ensure!(!scans && !walks && by_key.count() == 2 && late == 4, "{state}:\n{}", plan.join("\n"));
        outbox.execute("analyze event_outbox").await?;
    }
    Ok(())
}

/// Returns ranges of lanes as people write them.
fn ranges(lanes: &Value) -> Vec<String> {
    let range = |range: &Value| match (&range["first"], &range["last"]) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    lanes.as_array().into_iter().flatten().map(range).collect()
}

/// Waits until status shows these ranges of lanes for each relay, in the order of their start.
async fn until_owned(relay: &Relay, owned: &[&[&str]]) -> Value {
    eventually("the lanes are owned as they are shown", SOON, || async {
        let seen = status(relay).await.map_err(|error| format!("{error:#}"))?;
        let lanes: Vec<_> =
            seen["relays"].as_array().into_iter().flatten().map(|relay| ranges(&relay["lanes"])).collect();
        if lanes == owned { Ok(seen) } else { Err(seen.to_string()) }
    })
    .await
}

async fn lanes_are_shown_as_one_worker_or_all_of_a_relay_own_them(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_WORKERS", 3).with("RELAY_HEARTBEAT_INTERVAL", "1s");
    let one = settings.start_ready("one").await?;
    let relay = relay_of(&database);
    // With little to do one worker has the lanes of all.
    let seen = until_owned(&relay, &[&["0-15"]]).await;
    ensure!(seen["lanes"][0]["owner"] == "one" && seen["lanes"][15]["owner"] == "one", "{seen}");
    let text = relay.output("status").await?.stdout;
    ensure!(text.contains("3 workers, lanes 0-15, up"), "{text}");
    outbox.write_backlog(10_000, 100).await?;
    until_owned(&relay, &[&["0-4", "5-9", "10-15"]]).await;
    ensure!(one.stop().await? == Some(0));
    Ok(())
}

async fn relays_are_shown_with_their_lanes_and_what_they_do(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let _one = outbox.relay(&kafka).with("RELAY_WORKERS", 4).start_ready("one").await?;
    let _two = outbox.relay(&kafka).start_ready("two").await?;
    let relay = relay_of(&database);
    let seen = until_owned(&relay, &[&["0-7"], &["8-15"]]).await;
    ensure!(seen["relays"][0]["version"] == env!("CARGO_PKG_VERSION") && seen["relays"][0]["alive"] == true, "{seen}");
    ensure!(seen["lanes"][0]["owner"] == "one" && seen["lanes"][15]["owner"] == "two", "{seen}");
    ensure!(!shows(&seen, &["no relay"]), "{seen}");
    outbox.write_backlog(20_000, 100).await?;
    until_owned(&relay, &[&["0-3", "4-7"], &["8-11", "12-15"]]).await;
    Ok(())
}

async fn held_and_dead_events_are_shown_with_the_next_step(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers, topic) values \
             ('order', 'dead', 'X', '{}', '{\"a\": 1}', null), ('order', 'held', 'X', '{}', '{}', 'never-made-for-status')",
        )
        .await?;
    let _relay = outbox.relay(&kafka).start_ready("holding").await?;
    let relay = relay_of(&database);
    eventually("the held and the dead event are shown", SOON, || async {
        let seen = status(&relay).await.map_err(|error| format!("{error:#}"))?;
        let held = shows(&seen, &["1 events are held", "never-made-for-status", "create the topic"])
            && seen["held"][0]["kind"] == "topic";
        if held && shows(&seen, &["1 event DEAD", "dead list"]) { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
    Ok(())
}

async fn watching_goes_on_and_shows_the_rate(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    use std::io::{BufRead, BufReader};
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write_backlog(20_000, 100).await?;
    let mut watching = std::process::Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .args(["status", "--json", "--watch", "200ms"])
        .env_clear()
        .env("DATABASE_URL", database.url())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let lines = BufReader::new(watching.stdout.take().context("stdout")?).lines();
    let _relay = outbox.relay(&kafka).start_ready("draining").await?;
    let mut settled = 0.0;
    for line in lines {
        let seen: Value = serde_json::from_str(&line?)?;
        let (rate, over) = (seen["flow"]["settled_per_s"].as_f64(), seen["flow"]["over_s"].as_f64());
        settled += rate.unwrap_or_default() * over.unwrap_or_default();
        if seen["backlog"]["pending"] == 0 {
            break;
        }
    }
    watching.kill()?;
    watching.wait()?;
    // Compares with the events settled between the two counts; the counts themselves take time as well.
    ensure!(settled > 0.0 && settled < 20_001.0, "{settled} events were shown as settled of 20000");
    Ok(())
}
