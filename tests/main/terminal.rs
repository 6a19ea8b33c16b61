//! Tests what people see on a terminal: texts from users command nothing, colours, widths, Ctrl-C, and signs of work.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use lab::kafka::RealKafka;
use lab::relay::Output;
use lab::terminal::OnTerminal;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

/// Control characters, a forged line, a title, a bell, and a mark that turns the direction of writing.
const HOSTILE: &str = "it's\u{1b}[2J\u{1b}]0;owned\u{7}\r\nFORGED line\u{202e}\u{9b}31m end";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            a_long_command_shows_that_it_works_and_ctrl_c_ends_it_with_130,
            completions_and_manual_pages_are_printed,
            the_settings_in_force_are_shown_with_their_sources_and_without_secrets;
        with_postgres:
            colours_are_for_terminals_and_lines_fit_from_60_to_200_columns,
            commands_to_paste_survive_a_shell;
        with_both:
            no_text_of_a_user_commands_a_terminal_or_forges_a_line,
            a_selection_that_matches_nothing_says_what_there_is;
    }
}

/// Fails if the text has a character that a terminal obeys, or a line of its own that a user wrote.
fn is_harmless(what: &str, text: &str) -> anyhow::Result<()> {
    let is_obeyed = |c: char| c != '\n' && (c.is_control() || ('\u{200b}'..='\u{206f}').contains(&c));
    ensure!(!text.contains(is_obeyed), "{what} prints {text:?}");
    ensure!(!text.lines().any(|line| line.trim_start().starts_with("FORGED")), "{what} prints {text}");
    Ok(())
}

async fn run(relay: &Relay, line: &[&str]) -> anyhow::Result<Output> {
    line[1..].iter().fold(relay.clone(), |relay, word| relay.argument(word)).output(line[0]).await
}

/// Writes events whose every text is hostile: one that waits, one that is held, one that is dead.
async fn write_hostile(outbox: &Outbox) -> anyhow::Result<()> {
    let hostile = HOSTILE.replace('\'', "''");
    outbox
        .execute(&format!(
            "insert into event_outbox (entity_type, entity_id, event_type, topic, payload, headers, status, last_error) values \
             ('{hostile}', '{hostile}', '{hostile}', null, to_jsonb('{hostile}'::text), jsonb_build_object('{hostile}', '{hostile}'), 'PENDING', null), \
             ('order', '{hostile}', '{hostile}', '{hostile}', to_jsonb('{hostile}'::text), jsonb_build_object('{hostile}', '{hostile}'), 'DEAD', '{hostile}')"
        ))
        .await?;
    outbox
        .execute(&format!(
            "insert into event_outbox_hold (lane, kind, entity_id, entity_type, why, reason, from_id, head_id, events) \
             select lane, 'entity', entity_id, entity_type, 'poison', '{hostile}', id, id, 1 from event_outbox where status = 'PENDING'; \
             insert into event_outbox_relay (protocol, id, name, version, workers, seen_at) \
             values (2, gen_random_uuid(), left('{hostile}', 60), '{hostile}', 2, now() - interval '5 minutes')"
        ))
        .await?;
    // Names have at most 63 bytes.
    let column: String = HOSTILE.replace('"', "\"\"").chars().take(30).collect();
    outbox.execute(&format!("create table public.hostile (id bigint primary key, \"{column}\" text)")).await?;
    Ok(())
}

/// Sends a dead letter whose key, value and headers are hostile.
fn produce_hostile(kafka: &RealKafka, topic: &str) -> anyhow::Result<()> {
    let producer: BaseProducer = kafka.client().create()?;
    let names = ["dlq-reason", "dlq-error", "dlq-group", "dlq-source-topic", "event-type", "no\u{1b}[2Jname"];
    let headers =
        names.iter().fold(OwnedHeaders::new(), |headers, key| headers.insert(Header { key, value: Some(HOSTILE) }));
    let record = BaseRecord::to(topic).key(HOSTILE).payload(HOSTILE).headers(headers);
    producer.send(record).map_err(|(error, _)| error)?;
    Ok(producer.flush(SOON)?)
}

async fn no_text_of_a_user_commands_a_terminal_or_forges_a_line(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    write_hostile(&outbox).await?;
    let dead_letters = format!("{}.billing.dlq", outbox.topic);
    kafka.create_topic(&dead_letters, 1, &[]).await?;
    produce_hostile(&kafka, &dead_letters)?;
    let relay = outbox.relay(&kafka);
    let quoted = ["--reason", HOSTILE, "--by", HOSTILE];
    for line in [
        &["status"][..],
        &["status", "--json"],
        &["check"],
        &["check", "--json"],
        &["explain", "1"],
        &["explain", "2", "--json"],
        &["explain", "--entity", HOSTILE],
        &["explain", "--entity", HOSTILE, "--full"],
        &["explain", HOSTILE],
        &["verify"],
        &["verify", "--entity", HOSTILE, "--json"],
        &["verify", "--topic", HOSTILE],
        &[
            "compare",
            "--left",
            &dead_letters,
            "--right",
            &outbox.topic,
            "--id-header",
            "event-type",
            "--payload",
            "--wait",
            "0s",
        ],
        &[
            "compare",
            "--left",
            &dead_letters,
            "--right",
            &outbox.topic,
            "--id-header",
            "event-type",
            "--json",
            "--wait",
            "0s",
        ],
        &["compare", "--left", &dead_letters, "--right", &outbox.topic, "--id-header", HOSTILE],
        &["compare", "--left", HOSTILE, "--right", &outbox.topic],
        &["dead", "list"],
        &["dead", "list", "--type", "Nope"],
        &["dead", "list", "--json"],
        &["dead", "show", "--payload"],
        &["dead", "show", "--payload", "--json"],
        &["dead", "show", "--id", "2"],
        &["dead", "show", "--id", "1"],
        &["dead", "retry", "--all", "--dry-run"],
        &[&["pause", "--entity", HOSTILE], &quoted[..]].concat(),
        &[&["pause", "--entity", HOSTILE, "--entity-type", HOSTILE], &quoted[..]].concat(),
        &["pause", "--list"],
        &["pause", "--list", "--json"],
        &["pause", "--topic", HOSTILE, "--reason", "x"],
        &["status"],
        &["explain", "1"],
        &["resume"],
        &["resume", "--entity", HOSTILE],
        &["dlq", "list", &dead_letters],
        &["dlq", "list", &dead_letters, "--json"],
        &["dlq", "list", &dead_letters, "--type", "Nope"],
        &["dlq", "show", &dead_letters, "--payload"],
        &["dlq", "show", &dead_letters, "--payload", "--json"],
        &["dlq", "redrive", &dead_letters, "--all", "--dry-run"],
        &["dlq", "redrive", &dead_letters, "--all", "--dry-run", "--to", &outbox.topic],
        &["replay", "--type", HOSTILE, "--dry-run"],
        &["capture", HOSTILE],
        &["capture", "hostile", "--key", HOSTILE],
        &["capture", "hostile", "--type", HOSTILE],
        &["capture", "hostile", "--dry-run"],
        &["capture", "hostile", "--backfill", "--where", HOSTILE],
        &["capture", "--list"],
        &["capture", "--list", "--json"],
        &["adopt", HOSTILE],
        &["adopt", "hostile", "--map", &format!("{HOSTILE}=topic")],
        &["adopt", "hostile"],
        &[HOSTILE],
        &["dead", HOSTILE],
        &["status", "--config", HOSTILE],
        &["status", "--set", HOSTILE],
    ] {
        let output = run(&relay, line).await?;
        ensure!(output.code != Some(101), "{line:?}: {output:?}");
        is_harmless(&format!("{line:?}"), &(output.stdout + &output.stderr))?;
    }
    let text = relay.with("RELAY_LOG_FORMAT", "text").with("RELAY_LOG_LEVEL", "debug");
    run(&text, &[&["pause", "--entity", HOSTILE], &quoted[..]].concat()).await?;
    let running = text.start("hostile")?;
    let logs = |part: &'static str| {
        let running = &running;
        eventually("the relay logs it", SOON * 2, move || async move {
            let log = running.log();
            log.iter().any(|line| line.contains(part)).then_some(()).ok_or(log)
        })
    };
    logs("notice=pause_started").await;
    run(&text, &["resume", "--every"]).await?;
    // The topic of the dead event is not legal, so it is refused again.
    run(&text, &["dead", "retry", "--all", "--yes"]).await?;
    logs("notice=event_refused").await;
    running.log().iter().try_for_each(|line| is_harmless("run", line))
}

async fn commands_to_paste_survive_a_shell(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    for entity in [HOSTILE, "plain", "two words", "--all", "$(reboot)", "a'b\"c\\d`e`"] {
        let entity = format!("--entity={entity}");
        let paused = run(&relay, &["pause", &entity, "--reason", "a trial"]).await?;
        let line = paused.stdout.lines().find_map(|line| line.trim().strip_prefix("next: outbox-relay "));
        let line = line.with_context(|| format!("{paused:?}"))?.to_owned();
        let script = format!("{} {line}", lab::relay::binary().display());
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(&script).env_clear().env("DATABASE_URL", database.url());
        let resumed = tokio::task::spawn_blocking(move || shell.output()).await??;
        ensure!(resumed.status.success(), "{script}: {resumed:?}");
        ensure!(outbox.number("select count(*) from event_outbox_pause").await? == 0, "{script} left the pause");
    }
    Ok(())
}

async fn colours_are_for_terminals_and_lines_fit_from_60_to_200_columns(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    write_hostile(&outbox).await?;
    outbox.write("waits", 1, 3).await?;
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    for columns in [60, 80, 120, 200] {
        for line in [&["status"][..], &["dead", "list"], &["dead", "show"]] {
            let on = line[1..].iter().fold(relay.clone().with("NO_COLOR", 1), |relay, word| relay.argument(word));
            let (status, shown) = OnTerminal::start(&on, line[0], columns)?.end().await?;
            ensure!(status.success() && !shown.contains('\u{1b}'), "{shown:?}");
            for line in shown.lines().filter(|line| !line.trim_start().starts_with("next:")) {
                // A word that is longer than the terminal is broken by the terminal.
                let is_one_word = !line.trim().contains(' ');
                ensure!(line.chars().count() <= usize::from(columns) || is_one_word, "{columns}: {line}");
            }
        }
    }
    let (_, coloured) = OnTerminal::start(&relay, "status", 100)?.end().await?;
    ensure!(coloured.contains("\u{1b}[1;31m1\u{1b}[0m"), "{coloured:?}");
    let piped = relay.output("status").await?.stdout;
    ensure!(!piped.contains('\u{1b}'), "{piped:?}");
    let forced = relay.clone().with("CLICOLOR_FORCE", 1).output("status").await?.stdout;
    ensure!(forced.contains("\u{1b}[1;31m1\u{1b}[0m"), "{forced:?}");
    let json = relay.with("CLICOLOR_FORCE", 1).argument("--json").output("status").await?.stdout;
    ensure!(!json.contains('\u{1b}'), "{json:?}");
    Ok(())
}

/// Runs commands against a server that takes connections and never answers.
async fn a_long_command_shows_that_it_works_and_ctrl_c_ends_it_with_130() -> anyhow::Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("postgres://relay@{}/app?sslmode=disable", silent.local_addr()?);
    let relay = Relay::new(&url, "127.0.0.1:1").with("RELAY_CONNECT_TIMEOUT", "60s");
    for line in [
        &["status"][..],
        &["check"],
        &["explain", "1"],
        &["tail"],
        &["migrate"],
        &["verify"],
        &["pause", "--list"],
        &["resume"],
        &["dead", "list"],
        &["replay", "--all"],
        &["prune", "--mode", "delete"],
    ] {
        let relay = line[1..].iter().fold(relay.clone(), |relay, word| relay.argument(word));
        let running = OnTerminal::start(&relay, line[0], 80)?;
        running.until_shown(&format!("outbox-relay {} works", line[0])).await;
        running.interrupt()?;
        let (status, shown) = running.end().await?;
        ensure!(status.code() == Some(130), "{line:?}: {status}, {shown:?}");
    }
    Ok(())
}

async fn completions_and_manual_pages_are_printed() -> anyhow::Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let output = Relay::bare().argument(shell).output("completions").await?;
        ensure!(output.code == Some(0) && output.stdout.contains("redrive"), "{shell}: {output:?}");
        ensure!(!output.stdout.contains("demo-broker"), "{shell} completes a hidden command");
    }
    let page = run(&Relay::bare(), &["man"]).await?.stdout;
    ensure!(page.starts_with(".ie") && page.contains("outbox\\-relay") && page.contains("Exit codes"), "{page}");
    let page = run(&Relay::bare(), &["man", "dead", "retry"]).await?.stdout;
    ensure!(page.contains("outbox\\-relay\\-dead\\-retry") && page.contains("\\-\\-dry\\-run"), "{page}");
    let unknown = run(&Relay::bare(), &["man", "fly"]).await?;
    ensure!(unknown.code == Some(2), "{unknown:?}");
    Ok(())
}

async fn the_settings_in_force_are_shown_with_their_sources_and_without_secrets() -> anyhow::Result<()> {
    let relay = Relay::new("postgres://relay:hunter2@127.0.0.1/app", "127.0.0.1:9092")
        .with("RELAY_BATCH_SIZE", 500)
        .with("KAFKA_SECURITY_PROTOCOL", "ssl")
        .with("KAFKA_SSL_KEY_PASSWORD", "hunter2");
    let shown = run(&relay, &["config", "show", "--set", "workers=2"]).await?;
    ensure!(shown.code == Some(0) && shown.stderr.is_empty(), "{shown:?}");
    for part in ["database_url", "(hidden)", "batch_size", "500", "(RELAY_BATCH_SIZE)", "(--set workers)"] {
        ensure!(shown.stdout.contains(part), "no {part:?} in {}", shown.stdout);
    }
    ensure!(!shown.stdout.contains("poll_interval"), "{}", shown.stdout);
    let json = run(&relay, &["config", "show", "--defaults", "--json"]).await?.stdout;
    ensure!(json.contains("poll_interval") && !json.contains("hunter2") && !shown.stdout.contains("hunter2"), "{json}");
    let wrong = run(&relay.with("RELAY_WORKERS", "many"), &["config", "show"]).await?;
    ensure!(
        wrong.code == Some(64) && wrong.stdout.contains("many") && wrong.stderr.contains("RELAY_WORKERS"),
        "{wrong:?}"
    );
    Ok(())
}

async fn a_selection_that_matches_nothing_says_what_there_is(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write("e1", 1, 3).await?;
    let relay = outbox.relay(&kafka);
    let running = relay.start_ready("selected").await?;
    outbox.until_settled().await;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, status, last_error) \
             values ('order', 'd', 'Broken', '{}', 'DEAD', 'too large')",
        )
        .await?;
    drop(running);
    for (line, parts) in [
        (&["dead", "list", "--type", "Nope"][..], &["no event matches", "Broken"][..]),
        (&["dead", "retry", "--type", "Nope", "--yes"], &["no event matches", "Broken"]),
        (&["replay", "--type", "Nope", "--yes"], &["no event matches", "Counted", outbox.topic.as_str()]),
        (&["pause", "--topic", "ordr-events", "--reason", "x"], &["no event", outbox.topic.as_str()]),
        (&["verify", "--entity", "nobody"], &["no row is of the entity nobody"]),
    ] {
        let output = run(&relay, line).await?;
        let text = output.stdout.clone() + &output.stderr;
        ensure!(output.code == Some(0), "{line:?}: {output:?}");
        for part in parts {
            ensure!(text.contains(part), "{line:?}: no {part:?} in {text}");
        }
    }
    kafka.create_topic(&format!("{}.billing.dlq", outbox.topic), 1, &[]).await?;
    let unknown = run(&relay, &["dlq", "list", &format!("{}.biling.dlq", outbox.topic)]).await?;
    ensure!(
        unknown.code == Some(1) && unknown.stderr.contains(&format!("{}.billing.dlq", outbox.topic)),
        "{unknown:?}"
    );
    // The only pause needs no name.
    let resumed = run(&relay, &["resume"]).await?;
    ensure!(resumed.code == Some(0) && resumed.stdout.contains("ordr-events"), "{resumed:?}");
    // What is printed is taken: the id, and the time.
    let explained = run(&relay, &["explain", "1"]).await?;
    ensure!(explained.code == Some(0) && explained.stdout.contains("number 1, "), "{explained:?}");
    let listed = run(&relay, &["dead", "list"]).await?.stdout;
    let created = listed.split("created ").nth(1).and_then(|rest| rest.split(' ').next()).context("no time")?;
    let since = run(&relay, &["dead", "list", "--since", created]).await?;
    ensure!(since.code == Some(0) && since.stdout.contains("1 event in"), "{created}: {since:?}");
    let until = run(&relay, &["dead", "list", "--until", created]).await?;
    ensure!(until.code == Some(0) && until.stdout.contains("no event matches"), "{created}: {until:?}");
    Ok(())
}
