//! Tests which server a relay and the commands connect to: lists of hosts, a standby and its promotion, a dead address, a socket, libpq's
//! files and variables.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;

use lab::demo::PrivatePostgres;
use lab::failover::FailoverPair;
use lab::kafka::RealKafka;
use lab::{Outbox, Relay, RelayProcess, SOON, TestDatabase, eventually, options_for_tests, trials};

/// The code of a database that cannot be written.
const READ_ONLY: &str = "OR-2005";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_kafka:
            a_relay_with_both_servers_in_its_url_follows_the_primary,
            a_relay_on_a_standby_says_so_and_begins_with_the_promotion,
            relays_publish_nothing_while_their_sessions_are_read_only_and_do_not_fence_each_other,
            a_socket_a_service_and_a_password_file_lead_to_the_database;
        with_both:
            a_first_address_that_never_answers_delays_nobody;
    }
}

/// Expects one entity's events 1 to `last` on the topic, in order.
async fn is_published(outbox: &Outbox, kafka: &RealKafka, last: i64) -> anyhow::Result<()> {
    outbox.until_settled().await;
    let published = outbox.published_numbers(kafka).await?;
    let all: Vec<_> = (1..=last).collect();
    ensure!(published.get("e") == Some(&all), "{published:?}");
    Ok(())
}

async fn a_relay_with_both_servers_in_its_url_follows_the_primary(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut pair = FailoverPair::start().await?;
    let outbox = pair.outbox_on_primary("host-list").await?;
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("DATABASE_URL", pair.url_of_both());
    let relay = settings.start_ready("follows").await?;
    outbox.write("e", 1, 50).await?;
    is_published(&outbox, &kafka, 50).await?;
    pair.cut_replication_when_caught_up().await?;
    pair.promote().await?;
    let promoted = pair.promoted_outbox("host-list");
    promoted.write("e", 51, 50).await?;
    is_published(&promoted, &kafka, 100).await?;
    relay.wait_for("outage_ended").await;
    for command in ["status", "verify", "migrate"] {
        let output = settings.output(command).await?;
        ensure!(output.code == Some(0), "{command}: {output:?}");
    }
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn a_relay_on_a_standby_says_so_and_begins_with_the_promotion(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut pair = FailoverPair::start().await?;
    let outbox = pair.outbox_on_primary("on-standby").await?;
    outbox.create_topic(&kafka).await?;
    outbox.write("e", 1, 20).await?;
    let settings = outbox.relay(&kafka).with("DATABASE_URL", pair.url_of_standby());
    let relay = settings.start("standby")?;
    let line = relay.wait_for(READ_ONLY).await;
    ensure!(line["reason"].as_str().is_some_and(|reason| reason.contains("is a standby")), "{line}");
    ensure!(line["next_step"].as_str().is_some_and(|step| step.contains("DATABASE_URL")), "{line}");

    pair.cut_replication_when_caught_up().await?;
    let check = settings.output("check").await?;
    ensure!(check.code == Some(1) && check.stdout.contains(READ_ONLY), "{check:?}");
    // A standby does not know which relays there are, because their table is unlogged.
    for (command, arguments) in [("migrate", &[][..]), ("resume", &["--all"]), ("status", &[])] {
        let writes = arguments.iter().fold(settings.clone(), |relay, argument| relay.argument(argument));
        let output = writes.output(command).await?;
        ensure!(output.code != Some(0) && output.stderr.contains(READ_ONLY), "{command}: {output:?}");
    }
    ensure!(kafka.read_topic("on-standby").await?.is_empty(), "events of a standby are published");

    pair.promote().await?;
    is_published(&pair.promoted_outbox("on-standby"), &kafka, 20).await?;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

/// Waits for the next status lines, which a relay writes each second here.
async fn until_two_more_status_lines(relay: &RelayProcess) {
    let before = relay.lines("status").len();
    eventually("two more status lines", SOON, || async {
        if relay.lines("status").len() >= before + 2 { Ok(()) } else { Err("not yet") }
    })
    .await;
}

async fn relays_publish_nothing_while_their_sessions_are_read_only_and_do_not_fence_each_other(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::on(&postgres, "read-only-sessions").await?;
    outbox.create_topic(&kafka).await?;
    let settings = outbox.relay(&kafka).with("RELAY_DELIVERY", "exactly_once").with("RELAY_STATUS_INTERVAL", "1s");
    let relays = [settings.start_ready("one").await?, settings.start_ready("two").await?];
    outbox.write("e", 1, 20).await?;
    is_published(&outbox, &kafka, 20).await?;

    outbox.execute("alter system set default_transaction_read_only = on").await?;
    outbox.execute("select pg_reload_conf()").await?;
    for relay in &relays {
        relay.wait_for(READ_ONLY).await;
    }
    // Relays that have just shared the lanes may have fenced each other once before.
    let fenced = || relays.iter().map(|relay| relay.lines("OR-5003").len()).sum::<usize>();
    let before = fenced();
    let mut connection = outbox.connect().await?;
    sqlx::Executor::execute(&mut connection, "set default_transaction_read_only = off").await?;
    for n in 21..=40 {
        lab::outbox::insert(&mut connection, "e", n).await?;
    }
    for relay in &relays {
        until_two_more_status_lines(relay).await;
    }
    let records = outbox.published_numbers(&kafka).await?;
    ensure!(records.get("e").is_some_and(|numbers| numbers.len() == 20), "published half: {records:?}");
    ensure!(fenced() == before, "the relays fence each other");

    sqlx::Executor::execute(&mut connection, "alter system reset default_transaction_read_only").await?;
    sqlx::Executor::execute(&mut connection, "select pg_reload_conf()").await?;
    is_published(&outbox, &kafka, 40).await?;
    for relay in relays {
        ensure!(relay.stop().await? == Some(0));
    }
    Ok(())
}

/// The first server of the list accepts connections and never says a word.
async fn a_first_address_that_never_answers_delays_nobody(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let dead = format!("@127.0.0.1:{},127.0.0.1:", silent.local_addr()?.port());
    // With its time-out of ten minutes, the first address alone would outlast every wait of this test.
    let url = format!("{}&connect_timeout=600", database.url().replace("@127.0.0.1:", &dead));
    let settings = outbox.relay(&kafka).with("DATABASE_URL", url);
    for command in ["migrate", "check", "status"] {
        let output = settings.output(command).await?;
        ensure!(output.code == Some(0), "{command}: {output:?}");
    }
    let relay = settings.start_ready("patient").await?;
    outbox.write("e", 1, 20).await?;
    is_published(&outbox, &kafka, 20).await?;
    ensure!(settings.output("verify").await?.code == Some(0));
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn a_socket_a_service_and_a_password_file_lead_to_the_database(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    // The path of a socket may have 107 bytes, so the socket is not in the server's own directory.
    let home = tempfile::Builder::new().prefix("s").tempdir_in("/tmp")?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777))?;
    let directory = home.path().to_str().context("a path")?.to_owned();
    let mut options = options_for_tests();
    options.settings.push(("unix_socket_directories".to_owned(), directory.clone()));
    let postgres = PrivatePostgres::start(options).await?;
    let outbox = Outbox::on(&postgres, "socket").await?;
    outbox.create_topic(&kafka).await?;
    let (url, port) = (postgres.url("postgres"), postgres.port());
    let password = url.split(['@', ':']).nth(2).context("a password")?;
    let passfile = home.path().join(".pgpass");
    fs::write(&passfile, format!("127.0.0.1:*:*:postgres:wrong\nlocalhost:{port}:postgres:postgres:{password}\n"))?;
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600))?;
    let services = home.path().join("services");
    fs::write(&services, format!("[shop]\nhost={directory}\nport={port}\ndbname=postgres\nuser=postgres\n"))?;

    let relay = |url: &str| Relay::new(url, &kafka.bootstrap()).with("RELAY_TOPIC", "socket");
    let encoded = directory.replace('/', "%2F");
    for settings in [
        relay(&format!("postgres://postgres@/postgres?host={directory}&port={port}")).with("HOME", &directory),
        relay(&format!("postgres://postgres@{encoded}:{port}/postgres?passfile={directory}/.pgpass")),
        relay("postgres://?service=shop").with("HOME", &directory).with("PGSERVICEFILE", services.display()),
        relay("postgres://")
            .with("PGHOST", &directory)
            .with("PGPORT", port)
            .with("PGUSER", "postgres")
            .with("PGDATABASE", "postgres")
            .with("PGPASSFILE", passfile.display()),
    ] {
        let output = settings.output("status").await?;
        ensure!(output.code == Some(0), "{output:?}");
    }
    let wrong =
        relay(&format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable")).with("HOME", &directory);
    let output = wrong.output("status").await?;
    ensure!(
        output.code == Some(1) && output.stderr.contains("OR-2002"),
        "the entry of the address was not used: {output:?}"
    );

    let running = relay("postgres://?service=shop")
        .with("HOME", &directory)
        .with("PGSERVICEFILE", services.display())
        .start_ready("socket")
        .await?;
    outbox.write("e", 1, 20).await?;
    is_published(&outbox, &kafka, 20).await?;
    ensure!(running.stop().await? == Some(0));
    postgres.stop().await;
    Ok(())
}
