//! Tests the probes: their answer for each cause that keeps events from going out, who may ask, and that a request costs nothing.

use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::free_port;
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::Executor;
use sqlx::postgres::PgConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use lab::admin::{Admin, with_admin};
use lab::kafka::RealKafka;
use lab::{Outbox, Relay, RelayProcess, SOON, TestDatabase, eventually, trials};

/// The codes of a stall and of row level security that hides events.
const STALLED: &str = "OR-5002";
const HIDDEN: &str = "OR-2204";
const TOKEN: &str = "hunter2hunter2hunter2";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            an_address_beyond_this_host_without_a_token_is_refused,
            a_relay_that_waits_for_its_database_is_alive_and_not_ready;
        with_postgres:
            a_relay_whose_brokers_go_away_is_stalled_and_says_so_once;
        with_both:
            a_relay_that_works_is_ready_and_its_address_ends_with_it,
            a_relay_that_is_paused_is_stalled_and_says_so_once,
            an_entity_that_is_held_is_a_stall_until_it_is_decided,
            a_missing_topic_is_a_stall_until_it_is_created,
            a_session_that_has_locked_an_event_is_named_by_the_probe,
            a_session_that_has_locked_the_table_is_named_by_the_probe,
            a_missing_right_is_named_with_its_grant,
            policies_that_hide_events_are_named_with_their_fix,
            a_reason_does_not_grow_while_a_stall_lasts,
            events_that_others_pass_by_are_logged_once,
            callers_without_the_token_learn_nothing,
            an_admin_address_that_is_taken_is_reported_at_the_start,
            callers_that_hold_connections_keep_no_probe_out,
            a_caller_that_guesses_is_shut_out,
            a_container_asks_by_the_command;
    }
}

/// Starts a relay, waits until it has published an event, and returns it with its address.
async fn started(outbox: &Outbox, kafka: &RealKafka, name: &str) -> anyhow::Result<(RelayProcess, Admin)> {
    outbox.create_topic(kafka).await?;
    let relay = with_admin(outbox.relay(kafka)).start_ready(name).await?;
    outbox.write("first", 1, 1).await?;
    outbox.until_settled().await;
    let admin = Admin::from_relay(&relay).await?;
    admin.until_ready_says(200, |body| body["state"] == "ready").await;
    Ok((relay, admin))
}

/// Fails unless the relay is stalled for that cause and has logged it in one line that contains all of `parts`.
async fn stalled(relay: &RelayProcess, admin: &Admin, cause: &str, parts: &[&str]) -> anyhow::Result<()> {
    let body = admin.until_ready_says(503, |body| body["state"] == "stalled" && body["cause"] == cause).await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let said = format!("{} {}", text(&body["message"]), text(&body["next_step"]));
    for part in parts {
        ensure!(said.contains(part), "no {part:?} in {body}");
    }
    // On a slow machine the first event may have taken so long that it was a stall as well.
    let logged = eventually("the stall is logged", SOON, || async {
        relay.lines(STALLED).into_iter().find(|line| line["cause"] == cause).ok_or("not yet")
    })
    .await;
    ensure!(logged["level"] == "WARN", "{logged}");
    for part in parts {
        ensure!(
            format!("{} {}", text(&logged["reason"]), text(&logged["next_step"])).contains(part),
            "{part:?}: {logged}"
        );
    }
    ensure!(admin.get("/livez").await?.status == 200, "a stall is nothing that a restart fixes");
    Ok(())
}

/// Fails unless the relay is ready again and has logged the stall and its end once each.
async fn over(relay: &RelayProcess, admin: &Admin) -> anyhow::Result<()> {
    admin.until_ready_says(200, |body| body["state"] == "ready").await;
    eventually("the end of each stall is logged", SOON, || async {
        let (begun, ended) = (relay.lines(STALLED).len(), relay.ends_of(STALLED).len());
        if begun == ended { Ok(()) } else { Err((begun, ended)) }
    })
    .await;
    let (begun, ended) = (relay.lines(STALLED), relay.ends_of(STALLED));
    let last = begun.last().context("no stall")?;
    let alike = begun.iter().filter(|line| line["cause"] == last["cause"]).count();
    ensure!(alike == 1, "{begun:?} {ended:?}");
    ensure!(ended[0]["level"] == "INFO" && ended[0]["lasted_s"].is_u64(), "{ended:?}");
    Ok(())
}

async fn command(database: &TestDatabase, arguments: &[&str]) -> anyhow::Result<()> {
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    let (name, rest) = arguments.split_first().context("a command")?;
    let output = rest.iter().fold(relay, |relay, argument| relay.argument(argument)).output(name).await?;
    ensure!(output.code == Some(0), "{output:?}");
    Ok(())
}

async fn an_address_beyond_this_host_without_a_token_is_refused() -> anyhow::Result<()> {
    let relay =
        Relay::new("postgres://relay@localhost/app", "localhost:9092").with("RELAY_ADMIN_ADDRESS", "0.0.0.0:9187");
    let output = relay.output("run").await?;
    ensure!(output.code == Some(64) && output.stderr.contains("RELAY_ADMIN_TOKEN"), "{output:?}");
    Ok(())
}

/// The relay answers from memory while it has no connection to ask.
async fn a_relay_that_waits_for_its_database_is_alive_and_not_ready() -> anyhow::Result<()> {
    let url = format!("postgres://relay@127.0.0.1:{}/app", free_port()?);
    let relay = with_admin(Relay::new(&url, &format!("127.0.0.1:{}", free_port()?))).start("waits")?;
    let admin = Admin::from_relay(&relay).await?;
    let body = admin.until_ready_says(503, |body| body["cause"] == "database").await;
    ensure!(body["state"] == "unready" && body["next_step"].is_string(), "{body}");
    let live = admin.get("/livez").await?;
    ensure!(live.status == 200 && live.json()?["state"] == "live", "{live:?}");
    ensure!(admin.get("/metrics").await?.body.contains("outbox_relay_reachable{server=\"postgres\"} 0"));
    Ok(())
}

async fn a_relay_that_works_is_ready_and_its_address_ends_with_it(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let (relay, admin) = started(&outbox, &kafka, "works").await?;
    let missing = admin.get("/").await?;
    ensure!(missing.status == 404 && missing.body.contains("/readyz"), "{missing:?}");
    ensure!(admin.request("POST", "/readyz").await?.status == 405);
    // An open connection of a caller must not keep the relay from stopping.
    let idle = tokio::net::TcpStream::connect(admin.address()).await?;
    ensure!(relay.stop().await? == Some(0));
    drop(idle);
    ensure!(admin.get("/livez").await.is_err(), "somebody answers for a relay that has ended");
    Ok(())
}

async fn a_relay_that_is_paused_is_stalled_and_says_so_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let (relay, admin) = started(&outbox, &kafka, "paused").await?;
    command(&database, &["pause", "--all", "--reason", "the cluster moves", "--by", "ann"]).await?;
    outbox.write("a", 1, 3).await?;
    stalled(&relay, &admin, "paused", &["the cluster moves", "ann", "outbox-relay resume"]).await?;
    command(&database, &["resume", "--all"]).await?;
    over(&relay, &admin).await?;
    ensure!(outbox.number("select count(*) from event_outbox where status = 'PENDING'").await? == 0);
    Ok(())
}

async fn an_entity_that_is_held_is_a_stall_until_it_is_decided(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let settings = with_admin(outbox.relay(&kafka)).with("RELAY_ON_POISON", "hold_entity");
    let relay = settings.start_ready("held").await?;
    let admin = Admin::from_relay(&relay).await?;
    let poison = "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
                  values ('order', 'bad', 'X', '{}', '{\"number\": 1}')";
    outbox.execute(poison).await?;
    outbox.write("bad", 1, 2).await?;
    stalled(&relay, &admin, "held", &["held", "dead retry"]).await?;
    command(&database, &["dead", "discard", "--all", "--yes", "--reason", "a trial"]).await?;
    over(&relay, &admin).await
}

async fn a_missing_topic_is_a_stall_until_it_is_created(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = with_admin(outbox.relay(&kafka)).start_ready("topic").await?;
    let admin = Admin::from_relay(&relay).await?;
    outbox.write("a", 1, 3).await?;
    stalled(&relay, &admin, "topic", &[&outbox.topic, "does not exist", "create the topic"]).await?;
    outbox.create_topic(&kafka).await?;
    over(&relay, &admin).await
}

/// Opens a transaction, as a forgotten psql does; returns its pid.
async fn forgotten(conn: &mut PgConnection, sql: &'static str) -> anyhow::Result<i64> {
    conn.execute("set application_name = 'a forgotten psql'; begin").await?;
    conn.execute(sql).await?;
    Ok(sqlx::query_scalar("select pg_backend_pid()::int8").fetch_one(conn).await?)
}

async fn a_session_that_has_locked_an_event_is_named_by_the_probe(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let (relay, admin) = started(&outbox, &kafka, "row").await?;
    command(&database, &["pause", "--all", "--reason", "to lock it first"]).await?;
    outbox.write("a", 1, 3).await?;
    let mut conn = outbox.connect().await?;
    let pid = forgotten(&mut conn, "select from event_outbox where status = 'PENDING' order by id limit 1 for update")
        .await?;
    command(&database, &["resume", "--all"]).await?;
    let terminate = format!("pg_terminate_backend({pid})");
    let pid = format!("pid {pid}");
    stalled(&relay, &admin, "lock", &[&pid, "user postgres", "a forgotten psql", &terminate]).await?;
    conn.execute("rollback").await?;
    over(&relay, &admin).await
}

async fn a_session_that_has_locked_the_table_is_named_by_the_probe(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let (relay, admin) = started(&outbox, &kafka, "table").await?;
    let mut conn = outbox.connect().await?;
    let pid = forgotten(&mut conn, "lock table event_outbox in access exclusive mode").await?;
    stalled(&relay, &admin, "lock", &[&format!("pid {pid}"), "user postgres", "AccessExclusiveLock"]).await?;
    conn.execute("rollback").await?;
    over(&relay, &admin).await
}

async fn a_missing_right_is_named_with_its_grant(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let user = format!("relay_of_{}", database.name());
    outbox.execute(&format!("create role {user} login password 'secret'")).await?;
    outbox
        .execute(&format!(
            "grant usage on schema public to {user}; \
             grant select on all tables in schema public to {user}; \
             grant insert, update, delete on event_outbox_relay to {user}; grant update on event_outbox_lane to {user}; \
             grant insert, update, delete on event_outbox_hold to {user}; \
             grant update (status, published_at, due, last_error) on event_outbox to {user}"
        ))
        .await?;
    let (_, place) = database.url().rsplit_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).context("a URL")?;
    let relay = with_admin(outbox.relay(&kafka)).with("DATABASE_URL", format!("postgres://{user}:secret@{place}"));
    outbox.write("a", 1, 3).await?;
    let relay = relay.start("right")?;
    let admin = Admin::from_relay(&relay).await?;
    let body = admin.until_ready_says(503, |body| body["cause"] == "right").await;
    let grant = body["next_step"].as_str().unwrap_or_default().to_owned();
    ensure!(grant == format!("grant update (attempts) on \"public\".\"event_outbox\" to {user};"), "{body}");
    // Publishing these events did not need the missing right.
    outbox.until_settled().await;

    outbox.execute(&format!("revoke update (status) on event_outbox from {user}; {grant}")).await?;
    outbox.write("a", 4, 3).await?;
    stalled(&relay, &admin, "right", &["UPDATE (status)", &user, "grant update (status)"]).await?;
    outbox.execute(&format!("grant update (status) on event_outbox to {user}")).await?;
    over(&relay, &admin).await?;
    drop(relay);
    outbox.execute(&format!("drop owned by {user}")).await?;
    outbox.execute(&format!("drop role {user}")).await.map(drop)
}

async fn a_relay_whose_brokers_go_away_is_stalled_and_says_so_once(database: TestDatabase) -> anyhow::Result<()> {
    let mut kafka = RealKafka::start(&[])?;
    let outbox = Outbox::from_database(&database);
    let (relay, admin) = started(&outbox, &kafka, "brokers").await?;
    kafka.kill();
    admin.until_ready_says(503, |body| body["state"] == "unready" && body["cause"] == "brokers").await;
    outbox.write("a", 1, 3).await?;
    stalled(&relay, &admin, "brokers", &["KAFKA_BOOTSTRAP_SERVERS"]).await?;
    kafka.start_again()?;
    over(&relay, &admin).await
}

async fn events_that_others_pass_by_are_logged_once(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let (relay, admin) = started(&outbox, &kafka, "passed").await?;
    command(&database, &["pause", "--entity", "a", "--reason", "a trial"]).await?;
    outbox.write("a", 1, 1).await?;
    for n in 1..=2 {
        stalled(&relay, &admin, "paused", &["a trial"]).await?;
        outbox.write("b", n, 1).await?;
        outbox.until_settled_of("b").await;
        admin.until_ready_says(200, |_| true).await;
    }
    command(&database, &["resume", "--every"]).await?;
    over(&relay, &admin).await
}

async fn callers_without_the_token_learn_nothing(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay =
        with_admin(outbox.relay(&kafka)).with("RELAY_ADMIN_ADDRESS", "0.0.0.0:0").with("RELAY_ADMIN_TOKEN", TOKEN);
    let relay = relay.start_ready("guarded").await?;
    let address = relay.wait_for("admin_listening").await["address"].as_str().unwrap_or_default().to_owned();
    ensure!(address.starts_with("0.0.0.0:"), "{address}");
    let admin = Admin::from_relay(&relay).await?;
    let wrong = [
        TOKEN.to_owned(),
        format!("Basic {TOKEN}"),
        "Bearer ".to_owned(),
        format!("Bearer {TOKEN}x"),
        format!("Bearer x{}", &TOKEN[1..]),
    ];
    for path in ["/livez", "/readyz", "/metrics", "/"] {
        for caller in wrong.iter().map(|token| admin.showing(token)).chain([admin.clone()]) {
            let refused = caller.get(path).await?;
            ensure!(refused.status == 401 && refused.head.contains("www-authenticate: bearer"), "{path}: {refused:?}");
            let lines: Vec<_> = refused.body.lines().collect();
            ensure!(
                lines.len() == 1 && lines[0].contains("RELAY_ADMIN_TOKEN") && !lines[0].contains('/'),
                "{refused:?}"
            );
        }
    }
    let admin = admin.showing(&format!("Bearer {TOKEN}"));
    ensure!(admin.get("/livez").await?.status == 200 && admin.get("/metrics").await?.status == 200);
    ensure!(relay.log().iter().all(|line| !line.contains("hunter2")), "the token is in the log");
    Ok(())
}

async fn an_admin_address_that_is_taken_is_reported_at_the_start(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let first = with_admin(outbox.relay(&kafka)).start_ready("first").await?;
    let address = Admin::from_relay(&first).await?.address();
    let output = outbox.relay(&kafka).with("RELAY_ADMIN_ADDRESS", address).output("run").await?;
    let last: Value = serde_json::from_str(output.stderr.lines().last().unwrap_or_default())?;
    ensure!(output.code == Some(1) && last["level"] == "ERROR" && last["notice"] == "failed", "{output:?}");
    let says = |field: &str, part: &str| last[field].as_str().is_some_and(|text| text.contains(part));
    ensure!(says("error", &address.to_string()) && says("next_step", "RELAY_ADMIN_ADDRESS"), "{last}");
    Ok(())
}

async fn a_container_asks_by_the_command(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = with_admin(outbox.relay(&kafka)).with("RELAY_ADMIN_TOKEN", TOKEN);
    let running = relay.start_ready("asked").await?;
    let address = Admin::from_relay(&running).await?.address();
    let asked = relay.clone().with("RELAY_ADMIN_ADDRESS", address);
    let output = eventually("the relay is ready", SOON, || async {
        match asked.output("health").await {
            Ok(output) if output.code == Some(0) => Ok(output),
            other => Err(other),
        }
    })
    .await;
    ensure!(output.stdout.starts_with("{\"state\":\"ready\""), "{output:?}");
    let live = asked.clone().argument("--live").output("health").await?;
    ensure!(live.code == Some(0) && live.stdout.contains("\"live\""), "{live:?}");

    let other = asked.clone().with("RELAY_ADMIN_TOKEN", "another-token-than-its").output("health").await?;
    ensure!(other.code == Some(1) && other.stderr.contains("RELAY_ADMIN_TOKEN"), "{other:?}");
    drop(running);
    let gone = asked.output("health").await?;
    ensure!(gone.code == Some(1) && gone.stderr.contains(&address.to_string()), "{gone:?}");
    let unset = Relay::bare().with("DATABASE_URL", database.url()).output("health").await?;
    ensure!(unset.code == Some(2) && unset.stderr.contains("RELAY_ADMIN_ADDRESS"), "{unset:?}");
    Ok(())
}

/// Row level security that is switched on while the relay runs hides rows without any error.
async fn policies_that_hide_events_are_named_with_their_fix(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let (user, settings) = crate::check::with_user(&database, &outbox, &kafka).await?;
    crate::check::grant(&outbox, &user).await?;
    let relay = with_admin(settings.with("RELAY_STALL_AFTER", "4s")).start_ready("hidden").await?;
    let admin = Admin::from_relay(&relay).await?;
    outbox.write("before", 1, 1).await?;
    outbox.until_settled().await;
    admin.until_ready_says(200, |body| body["state"] == "ready").await;
    outbox.execute("alter table event_outbox enable row level security").await?;
    outbox.write("hidden", 1, 20).await?;
    let body = admin.until_ready_says(503, |body| body["cause"] == "right").await;
    let fix = body["next_step"].as_str().unwrap_or_default().to_owned();
    ensure!(fix.starts_with("create policy"), "{body}");
    let logged = relay.wait_for_line(HIDDEN, |line| line["finding"].is_null()).await;
    ensure!(logged["level"] == "ERROR" && logged["next_step"] == fix.as_str(), "{logged}");
    // The policy of the hint fixes the stall, with row level security still on.
    outbox.execute(&fix).await?;
    admin.until_ready_says(200, |body| body["state"] == "ready").await;
    relay.wait_for_end_of(HIDDEN).await;
    outbox.until_settled().await;
    outbox.all_published().await?;
    ensure!(relay.stop().await? == Some(0));
    outbox.execute(&format!("drop owned by {user}")).await.map(drop)
}

/// The marks change no row: events wait, and the relay knows no reason why.
async fn a_reason_does_not_grow_while_a_stall_lasts(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.execute("create function keep() returns trigger language plpgsql as $$ begin return null; end $$").await?;
    outbox.execute("create trigger keep before update on event_outbox for each row execute function keep()").await?;
    outbox.write("waits", 1, 5).await?;
    let settings = outbox.relay(&kafka).with("RELAY_STALL_AFTER", "1s").with("RELAY_STATUS_INTERVAL", "1s");
    let relay = with_admin(settings).start_ready("stalled").await?;
    let admin = Admin::from_relay(&relay).await?;
    admin.until_ready_says(503, |body| body["state"] == "stalled").await;
    let count = relay.lines("status").len() + 12;
    let lines = eventually("the status is logged a few times", SOON * 2, || async {
        let lines = relay.lines("status");
        if lines.len() >= count { Ok(lines) } else { Err(lines.len()) }
    })
    .await;
    for line in &lines {
        let blocked = line["blocked"].as_str().unwrap_or_default();
        ensure!(blocked.len() < 2_000 && blocked.matches("stalled").count() <= 1, "{} bytes: {blocked}", blocked.len());
    }
    let body = admin.get("/readyz").await?.body;
    ensure!(body.len() < 2_000, "{} bytes: {body}", body.len());
    Ok(())
}

async fn callers_that_hold_connections_keep_no_probe_out(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = with_admin(outbox.relay(&kafka)).with("RELAY_ADMIN_TOKEN", TOKEN);
    let running = relay.start_ready("besieged").await?;
    let address = Admin::from_relay(&running).await?.address();
    let asked = relay.with("RELAY_ADMIN_ADDRESS", address).argument("--live");
    let mut held = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(address).await?;
        // Every second one has begun a request that it does not end.
        if number % 2 == 0 {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: relay\r\n").await?;
        }
        held.push(stream);
    }
    let live = asked.output("health").await?;
    ensure!(live.code == Some(0), "{live:?}");
    // The oldest connections made room, and the others end when their time for a head is over.
    for mut stream in held {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    for (request, status) in [
        ("GET /livez HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", "413"),
        ("GET /livez HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n", "413"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
    ] {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.get(9..12).is_none_or(|found| found == status), "{request:?}: {answer}");
    }
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    Ok(())
}

async fn a_caller_that_guesses_is_shut_out(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = with_admin(outbox.relay(&kafka)).with("RELAY_ADMIN_TOKEN", TOKEN).start_ready("guessed").await?;
    let admin = Admin::from_relay(&relay).await?;
    let guess = admin.showing("Bearer another-token-than-its");
    eventually("the caller is shut out", SOON, || async {
        match guess.get("/livez").await {
            Ok(answer) if answer.status == 429 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let right = admin.showing(&format!("Bearer {TOKEN}")).get("/livez").await?;
    ensure!(right.status == 429 && right.head.contains("retry-after"), "{right:?}");
    let line = relay.wait_for("OR-1008").await;
    ensure!(line["caller"] == "127.0.0.1" && !line.to_string().contains("another-token"), "{line}");
    Ok(())
}
