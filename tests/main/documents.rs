//! Runs the commands of the README and of the tutorial as they stand, with users of least rights.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::PrivatePostgres;
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use lab::kafka::{RealKafka, install_tools};
use lab::{Missing, Outbox, Relay, TestDatabase, options_for_tests, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            the_commands_of_the_tutorial_write_events_that_arrive;
        alone:
            the_commands_of_the_readme_work_as_they_stand;
    }
}

pub(crate) fn document(path: &str) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(root().join(path))?)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the code blocks of a language in the part of the document below `heading`.
pub(crate) fn blocks<'t>(text: &'t str, heading: &str, language: &str) -> anyhow::Result<Vec<&'t str>> {
    let (_, part) = text.split_once(&format!("\n## {heading}\n")).with_context(|| format!("no {heading:?}"))?;
    let part = part.split("\n## ").next().unwrap_or_default();
    let fence = format!("```{language}\n");
    let starts = part.split(&fence).skip(1);
    Ok(starts.map(|block| block.split("```").next().unwrap_or_default()).collect())
}

/// Runs commands with the binary and Kafka's tools on the PATH, from the root of the repository.
fn run(script: &str, environment: &[(&str, &str)], tools: &Path) -> anyhow::Result<Output> {
    Ok(shell(&["sh"], script, tools)?.current_dir(root()).envs(environment.iter().copied()).output()?)
}

/// Returns a shell for commands, with the binary and the programs in `tools` on the PATH. `words` starts it.
pub(crate) fn shell(words: &[&str], script: &str, tools: &Path) -> anyhow::Result<Command> {
    let binary = lab::relay::binary().parent().context("a folder")?;
    let path = std::env::var("PATH")?;
    let (program, arguments) = words.split_first().context("a shell")?;
    let mut command = Command::new(program);
    command.args(arguments).args(["-e", "-c", script]).stdin(Stdio::null());
    command.env("PATH", format!("{}:{}:{path}", tools.display(), binary.display())).env("PSQLRC", "/dev/null");
    Ok(command)
}

pub(crate) fn worked(output: &Output) -> anyhow::Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    Ok(stdout)
}

pub(crate) fn needs_psql() -> anyhow::Result<()> {
    let found = Command::new("psql").arg("--version").stdout(Stdio::null()).status();
    found.map(drop).map_err(|_| Missing("psql is not installed".to_owned()).into())
}

/// The README's first block has the reader's own addresses, so it is replaced; everything after it runs unchanged.
async fn the_commands_of_the_readme_work_as_they_stand() -> anyhow::Result<()> {
    needs_psql()?;
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let tools = tempfile::tempdir()?;
    install_tools(tools.path())?;
    let readme = document("README.md")?;
    let blocks = blocks(&readme, "Beside an existing database", "sh")?;
    let [_install, addresses, commands] = blocks.as_slice() else { anyhow::bail!("three blocks, not {blocks:?}") };
    let owner = postgres.url("postgres");
    let (_, place) = owner.rsplit_once('@').context("a user")?;
    let (relay_url, bootstrap) = (format!("postgres://relay:change-me@{place}"), kafka.bootstrap());
    let environment = [("OWNER_URL", &*owner), ("DATABASE_URL", &*relay_url), ("KAFKA_BOOTSTRAP_SERVERS", &*bootstrap)];
    for (name, _) in environment {
        ensure!(addresses.contains(&format!("export {name}=")), "{addresses}");
    }
    ensure!(addresses.contains("relay:change-me@"), "the password of the relay's user is another one: {addresses}");

    // The application and its tables are there before.
    let mut conn = postgres.connect("postgres").await?;
    let orders = document("docs/examples/sql/orders.sql")?;
    conn.execute(sqlx::raw_sql(AssertSqlSafe(format!(
        "create role app login password 'app'; {orders}; grant select, insert, update on orders to app"
    ))))
    .await?;
    let (before, last) = commands.trim_end().rsplit_once('\n').context("lines")?;
    ensure!(last == "outbox-relay run", "{last}");
    let stdout = worked(&run(before, &environment, tools.path())?)?;
    for part in [
        "version 0 ->",
        "event_outbox_lane",
        "\"event_outbox_relay\"",
        "the topic order-events takes events",
        "0 errors, 0 warnings",
    ] {
        ensure!(stdout.contains(part), "no {part:?} in {stdout}");
    }
    let relay = Relay::new(&relay_url, &bootstrap).start_ready("readme").await?;
    let insert = self::blocks(&readme, "Write an event", "sql")?;
    let mut app = PgConnection::connect(&format!("postgres://app:app@{place}")).await?;
    app.execute(sqlx::raw_sql(AssertSqlSafe(insert.concat()))).await?;
    Outbox::found_on(&postgres, "order-events").until_published(1).await;
    let records = kafka.read_topic("order-events").await?;
    ensure!(records.len() == 1 && records[0].header("correlation-id") == Some("req-81f2"), "{records:?}");
    let lines = relay.log().iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>();
    let loud: Vec<_> = lines.iter().filter(|line| line["level"] != "INFO").collect();
    ensure!(loud.is_empty(), "a relay with the README's rights complains: {loud:?}");
    ensure!(relay.stop().await? == Some(0));
    postgres.stop().await;
    Ok(())
}

async fn the_commands_of_the_tutorial_write_events_that_arrive(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    needs_psql()?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let _relay = outbox.relay(&kafka).start_ready("tutorial").await?;
    let text = document("docs/tutorial/first-event.md")?;
    // Docker starts the servers; what a reader types besides is psql.
    let commands: Vec<_> = text.lines().filter(|line| line.starts_with("psql ")).collect();
    ensure!(commands.len() == 2, "{commands:?}");
    let url = database.url();
    worked(&run(&commands.join("\n"), &[("DATABASE_URL", &url)], root())?)?;
    outbox.until_published(2).await;
    let types = "select count(*) from event_outbox where event_type in ('OrderPlaced', 'OrderDiscounted')";
    ensure!(outbox.number(types).await? == 2);
    Ok(())
}
