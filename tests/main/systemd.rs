//! Tests what a relay reports to systemd, and that the units name settings and files that exist.

use std::sync::Arc;

use anyhow::ensure;
use lab::demo::{Signal, free_port};
use lab::kafka::RealKafka;
use lab::service_manager::ServiceManager;
use lab::{Outbox, Relay, TestDatabase, trials};
use libtest_mimic::Trial;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            the_unit_starts_although_its_database_is_away,
            a_socket_that_nobody_listens_on_is_reported_and_ends_nothing;
        with_postgres:
            the_start_of_the_unit_fails_without_an_outbox;
        with_both:
            systemd_hears_of_the_start_the_status_a_reload_and_the_stop,
            a_relay_whose_worker_hangs_shows_no_sign_of_life;
    }
}

/// Returns an outbox with a topic, and a relay that a service manager is to start.
async fn service(database: &TestDatabase, kafka: &RealKafka) -> anyhow::Result<(Outbox, ServiceManager, Relay)> {
    let outbox = Outbox::from_database(database);
    outbox.create_topic(kafka).await?;
    let systemd = ServiceManager::listen()?;
    let relay = systemd.start(outbox.relay(kafka));
    Ok((outbox, systemd, relay))
}

async fn systemd_hears_of_the_start_the_status_a_reload_and_the_stop(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let (outbox, systemd, relay) = service(&database, &kafka).await?;
    let relay = relay.with("RELAY_STATUS_INTERVAL", "1s").with("RELAY_SHUTDOWN_TIMEOUT", "20s");
    let running = relay.start("relay")?;
    systemd.wait_for_line("READY=1").await;
    systemd.wait_for_status("ready").await;
    outbox.write("first", 1, 20).await?;
    systemd.wait_for_status("ready; 20 published").await;
    systemd.wait_for_signs_of_life(3).await;
    ensure!(!systemd.messages().concat().iter().any(|line| line == "RELOADING=1"), "nobody asked for it");

    running.signal(Signal::SIGHUP)?;
    let reloading = systemd.wait_for_line("RELOADING=1").await;
    let clock = |line: &String| line.strip_prefix("MONOTONIC_USEC=").is_some_and(|time| time.parse::<u64>().is_ok());
    ensure!(systemd.messages()[reloading].iter().any(clock), "systemd compares reloads by their time");
    let is_ready_again = |lines: &[String]| lines.iter().any(|line| line == "READY=1");
    lab::eventually("the reload ends", lab::SOON, || async {
        is_ready_again(&systemd.messages()[reloading..].concat()).then_some(()).ok_or("it lasts")
    })
    .await;
    running.wait_for("reloaded").await;

    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    systemd.wait_for_line("STOPPING=1").await;
    // The drain's longest time, and what the end of the process takes.
    systemd.wait_for_line("EXTEND_TIMEOUT_USEC=30000000").await;
    Ok(())
}

/// systemd would end a unit that does not start, and would start it again and again for as long as the database is away.
async fn the_unit_starts_although_its_database_is_away() -> anyhow::Result<()> {
    let url = format!("postgres://relay@127.0.0.1:{}/app", free_port()?);
    let systemd = ServiceManager::abstract_socket()?;
    let relay = Relay::new(&url, &format!("127.0.0.1:{}", free_port()?));
    let running = systemd.start(relay).start("waits")?;
    systemd.wait_for_line("READY=1").await;
    systemd.wait_for_status("unready: ").await;
    systemd.wait_for_signs_of_life(3).await;
    ensure!(running.stop().await? == Some(0), "a relay that waits for its database can be stopped");
    systemd.wait_for_line("STOPPING=1").await;
    Ok(())
}

async fn the_start_of_the_unit_fails_without_an_outbox(database: TestDatabase) -> anyhow::Result<()> {
    let systemd = ServiceManager::listen()?;
    let relay = Relay::new(&database.url(), &format!("127.0.0.1:{}", free_port()?)).with("RELAY_SCHEMA", "nowhere");
    let output = systemd.start(relay).output("run").await?;
    ensure!(output.code == Some(1) && output.stderr.contains("OR-2101"), "{output:?}");
    // A database that was too slow to be asked is an outage, which is waited for by a relay that has started.
    let heard = systemd.messages();
    let early = heard.iter().find(|message| message.iter().any(|line| line == "READY=1"));
    let is_outage = |message: &Vec<String>| message.iter().any(|line| line.starts_with("STATUS=unready: "));
    ensure!(early.is_none_or(is_outage), "{heard:?}");
    Ok(())
}

/// Nobody reads the relay's log, and events that go DEAD are logged by the worker, which waits for ever in the middle of a round. Either that
/// round is found to take too long, or the worker's thread keeps the whole runtime waiting.
async fn a_relay_whose_worker_hangs_shows_no_sign_of_life(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let (outbox, systemd, relay) = service(&database, &kafka).await?;
    // Short limits, so that a round that takes longer than any is found soon.
    let relay = relay.with("RELAY_PUBLISH_TIMEOUT", "1s").with("RELAY_CONNECT_TIMEOUT", "1s");
    let mut running = relay.start_with_a_log_that_fills()?;
    systemd.wait_for_status("ready").await;
    systemd.wait_for_signs_of_life(1).await;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
             select 'order', 'refused', 'X', '{}', 'no topic/' || n from generate_series(1, 50) n",
        )
        .await?;
    systemd.until_given_up().await;

    // With a reader the relay goes on, and shows it.
    running.read()?;
    systemd.wait_for_signs_of_life(3).await;
    Ok(())
}

async fn a_socket_that_nobody_listens_on_is_reported_and_ends_nothing() -> anyhow::Result<()> {
    let url = format!("postgres://relay@127.0.0.1:{}/app", free_port()?);
    let relay = Relay::new(&url, &format!("127.0.0.1:{}", free_port()?)).with("NOTIFY_SOCKET", "/nowhere/notify");
    let running = relay.start("unheard")?;
    let line = running.wait_for("OR-1010").await;
    ensure!(line["level"] == "WARN" && line["next_step"].is_string(), "{line}");
    running.wait_for("OR-2001").await;
    ensure!(running.lines("OR-1010").len() == 1, "it is reported once");
    ensure!(running.stop().await? == Some(0), "the relay did not stop");
    Ok(())
}
