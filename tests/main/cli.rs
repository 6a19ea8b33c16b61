//! Tests the binary as an operator sees it: exit codes, mistakes, logs, and no secrets in any output.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::free_port;
use libtest_mimic::Trial;
use serde_json::Value;

use lab::kafka::RealKafka;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

const USAGE: Option<i32> = Some(2);
const BAD_CONFIGURATION: Option<i32> = Some(64);

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            every_mistake_of_a_configuration_is_reported_at_once_and_exits_64,
            a_bad_tls_file_is_reported_before_anything_starts,
            a_wrong_usage_exits_2_and_help_exits_0,
            no_secret_is_ever_printed;
        with_both:
            logs_are_json_for_machines_and_text_where_that_is_asked_for,
            the_start_line_says_what_runs_against_what,
            no_command_minds_a_reader_that_goes_away,
            a_relay_whose_log_nobody_reads_publishes,
            the_status_line_says_what_is_done_and_what_waits;
    }
}

/// Runs each command twice: read, and with closed pipes. It ends alike.
async fn no_command_minds_a_reader_that_goes_away(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka);
    let running = relay.start_ready("read").await?;
    outbox.write("e1", 1, 3).await?;
    outbox.until_settled().await;
    for line in [
        "status",
        "status --json",
        "check",
        "check --json",
        "verify",
        "verify --json",
        "explain e1",
        "dead list",
        "dead list --json",
        "dead show",
        "pause",
        "resume --all",
        "migrate",
        "migrate --print",
        "migrate --roles --print",
        "prune --published-after 1d --dry-run",
        "replay --all --dry-run",
        "--help",
        "run --help",
        "--version",
        "no-such-command",
    ] {
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let relay = words.fold(relay.clone(), |relay, word| relay.argument(word));
        let (read, unread) = (relay.output(command).await?, relay.code_unread(command).await?);
        ensure!(unread == read.code && unread != Some(101), "{line}: {unread:?}, read: {read:?}");
    }
    drop(running);
    Ok(())
}

async fn a_relay_whose_log_nobody_reads_publishes(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let mut relay = outbox.relay(&kafka).with("RELAY_STATUS_INTERVAL", "1s").start_unread()?;
    outbox.write_backlog(150, 10).await?;
    outbox.until_settled().await;
    ensure!(relay.is_running()?, "the relay has ended");
    outbox.all_published().await
}

async fn every_mistake_of_a_configuration_is_reported_at_once_and_exits_64() -> anyhow::Result<()> {
    let output = Relay::new("postgres://relay@localhost:port/app", "localhost")
        .with("RELAY_BATCH_SIZE", 0)
        .with("RELAY_BATCHSIZE", 5)
        .with("RELAY_ENVELOPE", "debezum")
        .with("KAFKA_ACKS", 1)
        .with("KAFKA_LINGR_MS", 1)
        .argument("--set")
        .argument("workers=many")
        .output("run")
        .await?;
    ensure!(output.code == BAD_CONFIGURATION && output.stdout.is_empty(), "{output:?}");
    for line in [
        "error: 8 mistakes",
        "DATABASE_URL: ",
        "KAFKA_BOOTSTRAP_SERVERS: given \"localhost\"",
        "RELAY_BATCH_SIZE: given \"0\"",
        "1 to 100000",
        "RELAY_BATCHSIZE: ",
        "RELAY_BATCH_SIZE?",
        "debezium?",
        "KAFKA_ACKS: given \"1\"",
        "KAFKA_LINGR_MS: ",
        "KAFKA_LINGER_MS?",
        "--set workers: given \"many\"",
        "hint: ",
        "code: OR-1001",
    ] {
        ensure!(output.stderr.contains(line), "no {line:?} in\n{}", output.stderr);
    }
    Ok(())
}

async fn a_bad_tls_file_is_reported_before_anything_starts() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let garbage = directory.path().join("ca.pem");
    fs::write(&garbage, "no certificate")?;
    let missing = directory.path().join("missing.pem");
    let url = format!("postgres://relay@localhost/app?sslmode=verify-full&sslrootcert={}", missing.display());
    let output = Relay::new(&url, "localhost:9092")
        .with("KAFKA_SECURITY_PROTOCOL", "ssl")
        .with("KAFKA_SSL_CA_LOCATION", garbage.display())
        .output("run")
        .await?;
    ensure!(output.code == BAD_CONFIGURATION, "{output:?}");
    for part in ["KAFKA_SSL_CA_LOCATION", "DATABASE_URL", "2 mistakes"] {
        ensure!(output.stderr.contains(part), "no {part:?} in\n{}", output.stderr);
    }
    Ok(())
}

async fn a_wrong_usage_exits_2_and_help_exits_0() -> anyhow::Result<()> {
    for arguments in [&[][..], &["fly"], &["run", "--fast"], &["run", "--set", "workers"], &["migrate", "--lanes", "0"]]
    {
        let relay = arguments.iter().fold(Relay::bare(), |relay, argument| relay.argument(argument));
        let output = relay.output("").await?;
        ensure!(
            output.code == USAGE && !output.stderr.is_empty() && output.stdout.is_empty(),
            "{arguments:?}: {output:?}"
        );
    }
    for argument in ["--help", "--version"] {
        let output = Relay::bare().argument(argument).output("").await?;
        ensure!(output.code == Some(0) && output.stdout.contains("outbox-relay"), "{argument}: {output:?}");
    }
    Ok(())
}

/// Sets every secret to a value that the test can search for, with the most detailed logs. The servers do not exist; one configuration
/// works and another does not.
async fn no_secret_is_ever_printed() -> anyhow::Result<()> {
    const SECRET: &str = "hunter2";
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("password");
    fs::write(&file, SECRET)?;
    let url = format!("postgres://relay:{SECRET}@127.0.0.1:{}/app", free_port()?);
    let brokers = format!("127.0.0.1:{}", free_port()?);
    let sasl = Relay::new(&url, &brokers)
        .with("RELAY_LOG_LEVEL", "trace")
        .with("RELAY_ADMIN_ADDRESS", "127.0.0.1:0")
        .with("RELAY_ADMIN_TOKEN", SECRET.repeat(3))
        .with("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext")
        .with("KAFKA_SASL_MECHANISM", "PLAIN")
        .with("KAFKA_SASL_USERNAME", "relay")
        .with("KAFKA_SASL_PASSWORD_FILE", file.display());
    let relay = sasl.start("secretive")?;
    relay.wait_for("outage_started").await;
    let mut printed = relay.log();
    drop(relay);

    let every_secret = Relay::new(&url, &brokers)
        .with("RELAY_ADMIN_TOKEN", format!("{SECRET} with a space"))
        .with("KAFKA_SASL_PASSWORD", SECRET)
        .with("KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", SECRET)
        .with("KAFKA_SSL_KEY_PASSWORD", SECRET)
        .with("KAFKA_SSL_KEYSTORE_PASSWORD", SECRET)
        .with("KAFKA_SSL_KEY_PEM", SECRET)
        .with("KAFKA_SSL_CERTIFICATE_PEM", SECRET)
        .with("KAFKA_SSL_CA_PEM", SECRET)
        .with("KAFKA_SECURITY_PROTOCOL", "sasl_ssl");
    let misplaced = Relay::new(&format!("postgres://relay:{SECRET}@host:port/app"), &url)
        .with("RELAY_TABLE", &url)
        .with("RELAY_ENVELOPE", &url)
        .argument("--set")
        .argument(&url);
    for (relay, command) in
        [(&every_secret, "run"), (&misplaced, "run"), (&every_secret, "migrate"), (&misplaced, "migrate")]
    {
        let output = relay.output(command).await?;
        ensure!(output.code != Some(0), "{output:?}");
        printed.extend([output.stdout, output.stderr]);
    }
    for text in printed {
        ensure!(!text.contains(SECRET), "{text}");
    }
    Ok(())
}

async fn logs_are_json_for_machines_and_text_where_that_is_asked_for(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka).start_ready("json").await?;
    for line in relay.log() {
        let line: BTreeMap<String, Value> = serde_json::from_str(&line).context(line)?;
        for field in ["timestamp", "level", "message"] {
            ensure!(line[field].is_string(), "{line:?}");
        }
    }
    let relay = outbox.relay(&kafka).with("RELAY_LOG_FORMAT", "text").start("text")?;
    let ready = eventually("the relay is ready", SOON, || async {
        let log = relay.log();
        log.iter().find(|line| line.contains("notice=ready ")).cloned().ok_or(log)
    })
    .await;
    ensure!(ready.contains("INFO") && !ready.starts_with('{') && !ready.contains('\u{1b}'), "{ready}");
    Ok(())
}

async fn the_start_line_says_what_runs_against_what(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = outbox.relay(&kafka).with("RELAY_WORKERS", 2).start_ready("starter").await?;
    let start = relay.wait_for("starting").await;
    let text = |field: &str| start[field].as_str().unwrap_or_default().to_owned();
    ensure!(text("version") == env!("CARGO_PKG_VERSION") && text("name") == "starter", "{start}");
    ensure!(text("database").ends_with(&format!("/{}", database.name())) && text("brokers") == kafka.bootstrap());
    ensure!(text("settings").contains("workers=2") && !text("settings").contains("batch_size"), "{start}");
    ensure!(text("outbox") == r#""public"."event_outbox""#, "{start}");
    let ready = relay.wait_for("ready").await;
    ensure!(ready["lanes"] == 16 && ready["workers"] == 2, "{ready}");
    Ok(())
}

async fn the_status_line_says_what_is_done_and_what_waits(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write("e", 1, 10).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers, topic, available_at) values \
             ('order', 'dead', 'X', '{}', '{\"a\": 1}', null, null), \
             ('order', 'held', 'X', '{}', '{}', 'never-created-for-status', null), \
             ('order', 'scheduled', 'X', '{}', '{}', null, now() + interval '1 day')",
        )
        .await?;
    let relay = outbox.relay(&kafka).with("RELAY_STATUS_INTERVAL", "1s").start("status")?;
    let status = relay
        .wait_for_line("status", |line| {
            line["dead"] == 1 && line["held"] == 1 && line["scheduled"] == 1 && line["pending"] == 0
        })
        .await;
    ensure!(status["oldest_s"].is_u64() && status["rate_per_s"].is_f64(), "{status}");
    ensure!(status["lanes"] == "0-15", "{status}");
    let blocked = status["blocked"].as_str().unwrap_or_default();
    ensure!(blocked.contains("never-created-for-status") && blocked.contains("does not exist"), "{status}");
    let published: u64 = relay.lines("status").iter().filter_map(|line| line["published"].as_u64()).sum();
    ensure!(published == 10, "{published} published in {:?}", relay.lines("status"));
    Ok(())
}
