//! Tests the demo as its user sees it: its output, its exit code, and the files that it leaves behind.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::demo::{BinariesFrom, PostgresError, ServerBinaries, ServerUser};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use lab::kafka::RealKafka;
use lab::{SOON, TestDatabase, eventually, trials};

/// The time that a demo may take. Alone on a machine a demo takes ten seconds, but here it shares the machine with other tests.
const WHOLE: Duration = Duration::from_secs(120);

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            the_demo_keeps_every_promise_whatever_the_users_shell_has_set,
            an_interrupted_demo_exits_130_and_leaves_nothing,
            a_killed_demo_leaves_no_process_and_no_file,
            a_served_demo_takes_a_visitors_events_and_ends_with_its_reconciliation,
            on_a_terminal_the_demo_is_a_picture_with_the_kill_in_red,
            the_order_flow_agrees_with_a_service_killed_halfway,
            an_interrupted_order_flow_exits_130_and_leaves_nothing,
            one_server_without_the_other_is_refused_and_the_other_is_named;
        with_both:
            servers_of_the_environment_are_used_only_after_a_yes,
            the_demo_runs_on_servers_of_ones_own_and_leaves_nothing_there;
    }
}

async fn the_demo_keeps_every_promise_whatever_the_users_shell_has_set() -> anyhow::Result<()> {
    let mut stage = Stage::with_postgres().await?;
    for (name, value) in
        [("RELAY_BATCH_SIZE", "none"), ("RELAY_SCHEMA", "elsewhere"), ("RELAY_NOT_KNOWN", "1"), ("KAFKA_ACKS", "0")]
    {
        stage.demo.env(name, value);
    }
    let mut demo = stage.start(&["--json"])?;
    let reconciliation = demo.line().await?;
    demo.kept(&reconciliation)?;
    ensure!(reconciliation["duplicates_seen"] == reconciliation["ledger"]["duplicates"], "{reconciliation}");
    demo.exits_with(0).await?;
    demo.nothing_is_left()
}

async fn an_interrupted_demo_exits_130_and_leaves_nothing() -> anyhow::Result<()> {
    let mut demo = Stage::with_postgres().await?.start(&[])?;
    let relay = demo.process_of_relay().await?;
    demo.signal(Signal::SIGINT)?;
    demo.exits_with(130).await?;
    ensure!(demo.says("error: ").is_some(), "it does not say that it was interrupted");
    ensure!(!lives(relay), "the relay lives");
    demo.nothing_is_left()
}

async fn a_killed_demo_leaves_no_process_and_no_file() -> anyhow::Result<()> {
    let demo = Stage::with_postgres().await?.start(&[])?;
    let relay = demo.process_of_relay().await?;
    let brokers = demo.says("mock cluster) runs on ").context("no brokers")?;
    let broker = brokers.split(',').next().context("no broker")?;
    ensure!(lives(relay) && TcpStream::connect(broker).is_ok(), "relay and broker do not run");
    demo.signal(Signal::SIGKILL)?;
    eventually("everything the killed demo had started is gone", SOON, || async {
        demo.nothing_is_left()?;
        ensure!(!lives(relay), "the relay lives");
        ensure!(TcpStream::connect(broker).is_err(), "the broker lives");
        anyhow::Ok(())
    })
    .await;
    Ok(())
}

async fn a_served_demo_takes_a_visitors_events_and_ends_with_its_reconciliation() -> anyhow::Result<()> {
    let mut demo = Stage::with_postgres().await?.start(&["--serve", "--json"])?;
    let addresses = demo.line().await?;
    let mut visitor = PgConnection::connect(addresses["database_url"].as_str().context("no URL")?).await?;
    let insert = "insert into event_outbox (entity_type, entity_id, event_type, payload) \
                  values ('order', 'visitor', 'OrderPlaced', '{\"by\": \"hand\"}')";
    visitor.execute(insert).await?;
    let published = "select status from event_outbox where entity_id = 'visitor'";
    let visitor = tokio::sync::Mutex::new(visitor);
    eventually("the visitor's event is published", SOON, || async {
        let status: String = sqlx::query_scalar(published).fetch_one(&mut *visitor.lock().await).await?;
        ensure!(status == "PUBLISHED", "{status}");
        anyhow::Ok(())
    })
    .await;
    topics(addresses["kafka_bootstrap_servers"].as_str().context("no brokers")?).await?;
    demo.signal(Signal::SIGINT)?;
    let reconciliation = demo.line().await?;
    demo.kept(&reconciliation)?;
    ensure!(reconciliation["committed"].as_u64() > Some(3600), "the visitor's event is not in {reconciliation}");
    demo.exits_with(0).await?;
    demo.nothing_is_left()
}

async fn the_order_flow_agrees_with_a_service_killed_halfway() -> anyhow::Result<()> {
    let mut demo = Stage::with_postgres().await?.start(&["order-flow", "--json"])?;
    let reconciliation = demo.line().await?;
    ensure!(
        reconciliation["kept"] == true
            && reconciliation["kills"] == 1
            && reconciliation["orders_ended"] == 24
            && reconciliation["mails_agree"] == 24,
        "{reconciliation:#}\n{}",
        demo.stderr()
    );
    // The line of an order that was paid after the kill.
    ensure!(demo.says("o-024 v2 | placed").is_some_and(|line| line.contains("CONFIRMED")), "{}", demo.stderr());
    demo.exits_with(0).await?;
    demo.nothing_is_left()
}

async fn an_interrupted_order_flow_exits_130_and_leaves_nothing() -> anyhow::Result<()> {
    let mut demo = Stage::with_postgres().await?.start(&["order-flow"])?;
    demo.until_says("kill -9 for the service `payment`").await?;
    demo.signal(Signal::SIGINT)?;
    demo.exits_with(130).await?;
    demo.nothing_is_left()
}

async fn one_server_without_the_other_is_refused_and_the_other_is_named() -> anyhow::Result<()> {
    for (given, value, missing) in [
        ("DATABASE_URL", "postgres://localhost/app", "KAFKA_BOOTSTRAP_SERVERS"),
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", "DATABASE_URL"),
    ] {
        let mut stage = Stage::new()?;
        stage.demo.env(given, value);
        let mut demo = stage.start(&[])?;
        demo.exits_with(64).await?;
        ensure!(demo.says("hint: ").is_some_and(|hint| hint.contains(missing)), "{}", demo.stderr());
    }
    Ok(())
}

async fn servers_of_the_environment_are_used_only_after_a_yes(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    for arguments in [&["demo"][..], &["demo", "order-flow"], &["bench", "idle"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        command.args(arguments).stdin(Stdio::null());
        command.env("DATABASE_URL", database.url()).env("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap());
        let output = command.output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2) && stderr.contains("--yes"), "{arguments:?}: {stderr}");
        ensure!(stderr.contains(database.name()) && stderr.contains(&kafka.bootstrap()), "{stderr}");
    }
    let schemas = "select count(*) from pg_namespace where nspname like 'outbox_%'";
    let schemas: i64 = sqlx::query_scalar(schemas).fetch_one(&mut database.connect().await?).await?;
    ensure!(schemas == 0, "something was created");
    Ok(())
}

/// util-linux' `script` gives the demo a terminal, and copies what the demo writes there.
async fn on_a_terminal_the_demo_is_a_picture_with_the_kill_in_red() -> anyhow::Result<()> {
    let mut stage = Stage::with_postgres().await?;
    let binary = env!("CARGO_BIN_EXE_outbox-relay");
    let mut script = Command::new("script");
    script.args(["-qec", &format!("stty cols 80 rows 24; {binary} demo"), "/dev/null"]).stdin(Stdio::null());
    script.env("TMPDIR", stage.temporary.path()).env("TERM", "xterm").env_remove("NO_COLOR").kill_on_drop(true);
    for name in ["DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"] {
        script.env_remove(name);
    }
    script.stdout(Stdio::piped()).stderr(Stdio::piped());
    stage.demo = script;
    let output = match tokio::time::timeout(WHOLE, stage.demo.output()).await? {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(lab::Missing("script (util-linux) is not installed".to_owned()).into());
        }
        output => output?,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(0), "{text}");
    for part in [
        "\u{1b}[1;31mKILLED (kill -9)",
        "committed",
        "waiting",
        "order-events",
        "the consumer",
        "3,600 of 3,600 events applied",
    ] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    ensure!(text.trim_end().ends_with("seconds."), "the ledger comes last: {text}");
    let path = text.rsplit_once("log: ").and_then(|(_, rest)| rest.split_whitespace().next()).context("a log")?;
    let log = fs::read_to_string(path)?;
    ensure!(log.contains("relay | ") && log.contains("kill -9 for the relay"), "{log}");
    Ok(())
}

async fn the_demo_runs_on_servers_of_ones_own_and_leaves_nothing_there(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.demo.env("DATABASE_URL", database.url()).env("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap());
    let mut demo = stage.start(&["--json", "--yes"])?;
    let topic = demo.until_says("the topic ").await?;
    ensure!(topic.starts_with("outbox-demo-"), "it has created the topic {topic}");
    let reconciliation = demo.line().await?;
    demo.kept(&reconciliation)?;
    demo.exits_with(0).await?;
    demo.nothing_is_left()?;
    let schemas = "select count(*) from pg_namespace where nspname like 'outbox_demo_%'";
    let schemas: i64 = sqlx::query_scalar(schemas).fetch_one(&mut database.connect().await?).await?;
    ensure!(schemas == 0, "the schema is still there");
    eventually("topic and group are gone", SOON, || async {
        let all = topics(&kafka.bootstrap()).await?;
        ensure!(!all.iter().any(|name| name.starts_with("outbox-demo-")), "{all:?}");
        let groups = groups(&kafka.bootstrap()).await?;
        ensure!(!groups.iter().any(|name| name.starts_with("outbox_demo_") && name.ends_with("_public")), "{groups:?}");
        anyhow::Ok(())
    })
    .await;
    Ok(())
}

/// A demo that is about to be started, with its own temporary directory.
struct Stage {
    demo: Command,
    temporary: TempDir,
    log: TempDir,
}

impl Stage {
    fn new() -> anyhow::Result<Self> {
        let (temporary, log) = (tempfile::tempdir()?, tempfile::tempdir()?);
        // If the test runs as root, Postgres runs as another user, who must be able to enter the directory.
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))?;
        let mut demo = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["RELAY_", "KAFKA_", "DATABASE_URL"].iter().any(|prefix| text.starts_with(prefix)) {
                demo.env_remove(&name);
            }
        }
        demo.arg("demo").env("TMPDIR", temporary.path()).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        Ok(Self { demo, temporary, log })
    }

    /// Skips the test where no Postgres can run.
    async fn with_postgres() -> anyhow::Result<Self> {
        let stage = Self::new()?;
        let user = ServerUser::in_place_of_root();
        ServerBinaries::find(&BinariesFrom::Anywhere, user.as_ref(), stage.log.path())
            .await
            .map_err(PostgresError::from)?;
        Ok(stage)
    }

    fn start(mut self, arguments: &[&str]) -> anyhow::Result<Demo> {
        let log = self.log.path().join("stderr");
        let mut process = self.demo.args(arguments).stderr(fs::File::create(&log)?).spawn()?;
        let lines = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        Ok(Demo { process, lines, log, temporary: self.temporary, _log: self.log })
    }
}

/// A running demo.
struct Demo {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
    temporary: TempDir,
    _log: TempDir,
}

impl Demo {
    /// Returns the next line of stdout, as JSON that its schema describes.
    async fn line(&mut self) -> anyhow::Result<Value> {
        let line = tokio::time::timeout(WHOLE, self.lines.next_line()).await.with_context(|| self.stderr())??;
        let line = line.with_context(|| self.stderr())?;
        lab::schemas::check(&["demo"], &line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn kept(&self, reconciliation: &Value) -> anyhow::Result<()> {
        let promises = reconciliation["promises"].as_array().context("no promises")?;
        let names: Vec<_> = promises.iter().filter_map(|promise| promise["name"].as_str()).collect();
        ensure!(names == ["committed", "rolled back", "published", "duplicates seen", "applied once", "order kept"]);
        let count = |name: &str| reconciliation[name].as_u64().unwrap_or(0);
        ensure!(
            reconciliation["kept"] == true
                && promises.iter().all(|promise| promise["kept"] == true)
                && count("committed") >= 3600
                && count("rolled_back") > 0
                && count("published") == count("committed")
                && count("applied_once") == count("committed")
                && count("order_kept") >= 1200
                && count("kills") == 1,
            "{reconciliation:#}\n{}",
            self.stderr()
        );
        Ok(())
    }

    async fn exits_with(&mut self, code: i32) -> anyhow::Result<()> {
        let status = tokio::time::timeout(WHOLE, self.process.wait()).await.with_context(|| self.stderr())??;
        ensure!(status.code() == Some(code), "{status}\n{}", self.stderr());
        Ok(())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.process.id().context("the demo has ended")?)?), signal)?)
    }

    async fn process_of_relay(&self) -> anyhow::Result<u32> {
        let rest = self.until_says("`outbox-relay run` is process ").await?;
        Ok(rest.split(';').next().context("no number")?.parse()?)
    }

    async fn until_says(&self, words: &str) -> anyhow::Result<String> {
        Ok(eventually(words, WHOLE, || async { self.says(words).ok_or_else(|| self.stderr()) }).await)
    }

    /// Returns the rest of the stderr line that contains these words, once the line is complete.
    fn says(&self, words: &str) -> Option<String> {
        let text = self.stderr();
        let (_, rest) = text.split_once(words)?;
        Some(rest.split_once('\n')?.0.to_owned())
    }

    fn stderr(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn nothing_is_left(&self) -> anyhow::Result<()> {
        let left: Vec<_> = fs::read_dir(self.temporary.path())?.collect::<Result<_, _>>()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    }
}

async fn topics(brokers: &str) -> anyhow::Result<Vec<String>> {
    let consumer: BaseConsumer = rdkafka::ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    tokio::task::block_in_place(|| {
        let metadata = consumer.fetch_metadata(None, SOON)?;
        Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
    })
}

async fn groups(brokers: &str) -> anyhow::Result<Vec<String>> {
    let consumer: BaseConsumer = rdkafka::ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    tokio::task::block_in_place(|| {
        let groups = consumer.fetch_group_list(None, SOON)?;
        Ok(groups.groups().iter().map(|group| group.name().to_owned()).collect())
    })
}

/// Returns false for a zombie as well, because in a container nobody may reap it.
fn lives(process: u32) -> bool {
    let output = std::process::Command::new("ps").args(["-o", "stat=", "-p", &process.to_string()]).output();
    output.is_ok_and(|output| !output.stdout.trim_ascii().is_empty() && !output.stdout.trim_ascii().starts_with(b"Z"))
}
