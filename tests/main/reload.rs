//! Tests what a relay reads again while it runs: a rotation of its secrets, and SIGHUP.

use std::fs;
use std::sync::Arc;

use anyhow::ensure;
use lab::demo::Signal;
use lab::kafka::RealKafka;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};
use libtest_mimic::Trial;

use crate::check::{grant, with_user};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_hangup_reads_the_configuration_again_and_ends_nothing,
            a_password_that_is_rotated_in_its_file_needs_no_restart;
    }
}

async fn a_hangup_reads_the_configuration_again_and_ends_nothing(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("relay.toml");
    fs::write(&file, "log_level = 'info'\n")?;
    // librdkafka's lines are for those who ask for the level.
    let relay = outbox.relay(&kafka).with("KAFKA_DEBUG", "broker,metadata");
    let relay = relay.argument("--config").argument(&file.display().to_string());
    let running = relay.start_ready("reloads").await?;
    outbox.write("before", 1, 20).await?;
    outbox.until_settled().await;
    let is_debug = |line: &String| line.contains(r#""level":"DEBUG""#);
    ensure!(!running.log().iter().any(is_debug), "it is talkative already");

    fs::write(&file, "log_level = 'debug'\nretention = 'delete'\nretention_after = '1s'\nbatch_size = 5\n")?;
    running.signal(Signal::SIGHUP)?;
    let line = running.wait_for("reloaded").await;
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    ensure!(text("changed") == "retention and intervals, log level" && text("needs_restart") == "batch_size", "{line}");
    outbox.until_none("published events are kept", "status = 'PUBLISHED'").await;
    eventually("the log has the new level", SOON, || async {
        running.log().iter().any(is_debug).then_some(()).ok_or("it has not")
    })
    .await;

    fs::write(&file, "log_level = 'loud'\nretention = 'delete'\n")?;
    running.signal(Signal::SIGHUP)?;
    let refused = running.wait_for("OR-1009").await;
    ensure!(refused["reason"].as_str().is_some_and(|reason| reason.contains("log_level")), "{refused}");
    fs::write(&file, "log_level = 'info'\nretention = 'keep'\n")?;
    running.signal(Signal::SIGHUP)?;
    running.wait_for_end_of("OR-1009").await;
    outbox.write("after", 1, 20).await?;
    outbox.until_settled().await;
    ensure!(running.lines("lanes_assigned").is_empty() && running.lines("starting").len() == 1, "it started again");
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    Ok(())
}

async fn a_password_that_is_rotated_in_its_file_needs_no_restart(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let (user, _) = with_user(&database, &outbox, &kafka).await?;
    grant(&outbox, &user).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("database-url");
    let host = database.url().rsplit_once('@').map(|(_, host)| host.to_owned()).unwrap_or_default();
    fs::write(&file, format!("postgres://{user}:relay@{host}\n"))?;
    let relay = Relay::bare()
        .with("DATABASE_URL_FILE", file.display())
        .with("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())
        .with("RELAY_TOPIC", &outbox.topic);
    let running = relay.start_ready("rotates").await?;
    outbox.write("before", 1, 5).await?;
    outbox.until_settled().await;

    // Somebody rotates the password, and the server drops the sessions of the old one.
    outbox.execute(&format!("alter role {user} password 'rotated'")).await?;
    outbox.execute(&format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{user}'")).await?;
    running.wait_for("OR-2002").await;
    outbox.write("between", 1, 5).await?;
    // No signal: the file is read again by itself.
    fs::write(&file, format!("postgres://{user}:rotated@{host}\n"))?;
    let line = running.wait_for("reloaded").await;
    ensure!(line["changed"] == "database login", "{line}");
    outbox.until_settled().await;
    ensure!(running.log().iter().all(|line| !line.contains("rotated@")), "the password is in the log");
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    outbox.execute(&format!("drop owned by {user}")).await.map(drop)
}
