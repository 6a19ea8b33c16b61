//! Tests how a consumer ends, and what it does with handlers that take long.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use event_outbox::code::Code;
use event_outbox::consumer::{Consumer, ConsumerError, Context, DeadLetter, Failed};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::sync::Notify;
use tracing::Level;

use super::log::{self, Line};
use super::{APPLIED_WITHIN, Counted, Field, Killed, MEMBER, Running, counted, insert};
use lab::kafka::{RealKafka, Record};
use lab::{Missing, PARTITIONS, SOON, TestDatabase, eventually, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_consumer_that_is_told_to_end_leaves_its_group,
            a_slow_handler_on_a_partition_that_moves_does_not_stop_the_others,
            a_handler_that_takes_too_long_is_ended_and_tried_again,
            settings_that_cannot_work_are_refused_without_their_values,
            a_retry_topic_and_new_partitions_are_read_soon_after_they_exist,
            a_topic_that_does_not_exist_is_named_once_and_read_when_it_exists;
    }
}

/// Starts a member that ends on a signal. `is_first` makes it the first process of a namespace, as that of a container is.
fn member(field: &Field, database: &TestDatabase, is_first: bool) -> anyhow::Result<Child> {
    let program = std::env::current_exe()?;
    let command = || {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]);
        command
    };
    let mut command = if is_first {
        let may = command().arg("true").stderr(Stdio::null()).status();
        if !may.is_ok_and(|status| status.success()) {
            return Err(Missing("this user may not create a namespace of processes (unshare --pid)".to_owned()).into());
        }
        let mut command = command();
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    let child = command
        .arg(MEMBER)
        .args([database.url(), field.kafka.bootstrap(), field.outbox.topic.clone(), "until-signal".to_owned()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    Ok(child)
}

fn only_child(process: u32) -> anyhow::Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    Ok(children.trim().parse()?)
}

async fn a_consumer_that_is_told_to_end_leaves_its_group(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    for (round, signal, is_first) in
        [(1, Signal::SIGTERM, false), (2, Signal::SIGINT, false), (3, Signal::SIGTERM, true), (4, Signal::SIGINT, true)]
    {
        field.write((1..=20).map(|n| counted(&format!("e{n}"), n))).await?;
        field.publish().await?;
        let child = Mutex::new(Killed(member(&field, &database, is_first)?));
        field.until_effects(round * 20).await;
        let process = child.lock().expect("the child").0.id();
        let process = if is_first { only_child(process)? } else { process };
        kill(Pid::from_raw(process.try_into()?), signal)?;
        let ended = eventually("the process has ended", APPLIED_WITHIN, || async {
            match child.lock().expect("the child").0.try_wait() {
                Ok(Some(status)) => Ok(status),
                other => Err(other),
            }
        })
        .await;
        ensure!(ended.code() == Some(0), "{signal}: {ended}");
        // Kafka knows no member any more, so the next instance gets its partitions at once.
        let observer: BaseConsumer = field.kafka.client().create()?;
        let groups = observer.fetch_group_list(Some(&field.outbox.topic), SOON)?;
        ensure!(groups.groups().iter().all(|group| group.members().is_empty()), "{signal}: a member is left");
        // The offsets are committed, although the interval of this member is an hour.
        let next = Running::start(field.counting());
        field.write([counted("next", 21)]).await?;
        field.publish().await?;
        next.until("the next event is applied", |stats| stats.applied() == 1).await;
        ensure!(next.stop().await?.repeated() == 0);
        field.outbox.execute("delete from effects where n = 21").await?;
    }
    Ok(())
}

async fn a_slow_handler_on_a_partition_that_moves_does_not_stop_the_others(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let moves = format!("{}-moves", field.outbox.topic);
    field.kafka.create_topic(&moves, 1, &[]).await?;
    let id = uuid::Uuid::new_v4().to_string();
    let headers = [("event-id", id.as_str()), ("event-type", "Counted")];
    let slow = Record {
        partition: 0,
        offset: 0,
        key: Some(b"slow".to_vec()),
        value: Some(br#"{"n": 1}"#.to_vec()),
        headers: headers.map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec()))).to_vec(),
        timestamp: None,
    };
    field.produce_to(&moves, &[slow])?;
    let (at_work, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (arrived, wait) = (Arc::clone(&at_work), Arc::clone(&go_on));
    // A partition that is revoked would hold the polling thread for an hour.
    let consumer = field.consumer().topic(&moves).drain(Duration::from_secs(3600));
    let first = Running::start(consumer.on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
        let (arrived, wait) = (Arc::clone(&arrived), Arc::clone(&wait));
        async move {
            insert(&mut ctx, event.n).await?;
            if ctx.event().key_text() == Some("slow") {
                arrived.notify_one();
                wait.notified().await;
            }
            Ok::<(), Failed>(())
        }
    }));
    at_work.notified().await;
    // The second member reads that topic alone, so the group gives it that partition.
    let second = super::member_of(&field.kafka.bootstrap(), &field.outbox.topic, field.pool.clone());
    let second = Running::start(second.topic(&moves).on("Counted", 1..=1, super::count));
    first.until("the partition is revoked", |stats| stats.revoked() > 0).await;
    field.write((1..=20).map(|n| counted(&format!("e{n}"), n))).await?;
    field.publish().await?;
    field.until_effects(20).await;
    // The next owner waits for the handler: its event is not applied twice, and not by two members at once.
    second.until("the next owner is at the event", |stats| stats.assigned() > 0 && stats.in_flight() == 1).await;
    go_on.notify_one();
    field.until_effects(21).await;
    second.until("the event is repeated", |stats| stats.repeated() == 1).await;
    let (first, second) = (first.stop().await?, second.stop().await?);
    ensure!(first.applied() == 21 && second.applied() == 0 && second.repeated() == 1, "{first:?} {second:?}");
    Ok(())
}

async fn a_handler_that_takes_too_long_is_ended_and_tried_again(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write([counted("a", 1), counted("a", 2)]).await?;
    field.publish().await?;
    let calls = Arc::new(AtomicU32::new(0));
    let consumer = field.consumer().handler_timeout(Duration::from_millis(200)).slow_after(Duration::from_millis(50));
    let running = Running::start(consumer.on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        async move {
            insert(&mut ctx, event.n).await?;
            log::write_in_handler();
            if call == 0 {
                std::future::pending::<()>().await;
            }
            Ok::<(), Failed>(())
        }
    }));
    field.until_effects(2).await;
    let stats = running.stop().await?;
    let first = field.kafka.read_topic(&field.outbox.topic).await?;
    let id = first.first().and_then(|record| record.header("event-id")).context("no id")?.to_owned();
    let slow = log::with_code(&field.outbox.topic, Code::HandlerHangs);
    ensure!(slow.len() == 1 && slow[0].level == Level::WARN, "{slow:?}");
    ensure!((slow[0].get("key"), slow[0].get("event.id")) == ("a", id.as_str()), "{slow:?}");
    ensure!(!slow[0].get("running_s").is_empty(), "{slow:?}");
    let retried = log::with_code(&field.outbox.topic, Code::EventRetried);
    let resolved: Vec<bool> = retried.iter().map(Line::is_resolved).collect();
    ensure!(resolved == [false, true] && retried[1].get("event.id") == id, "{retried:?}");
    let of_handler: Vec<_> =
        log::about(&field.outbox.topic).into_iter().filter(|line| line.get("handler") == "true").collect();
    let spans: Vec<_> = of_handler.iter().map(|line| (line.span("event.id") == id, line.span("attempt"))).collect();
    ensure!(spans == [(true, "1"), (true, "2"), (false, "1")], "{of_handler:?}");
    ensure!(of_handler.iter().all(|line| line.span("event.type") == "Counted"), "{of_handler:?}");
    ensure!(stats.retried() == 1 && stats.applied() == 2 && stats.dead() == 0 && stats.in_flight() == 0, "{stats:?}");
    ensure!(field.applied().await?["a"] == [1, 2]);
    Ok(())
}

async fn settings_that_cannot_work_are_refused_without_their_values(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let refused = async |consumer: Consumer, part: &str| -> anyhow::Result<()> {
        let error = consumer.run(std::future::pending()).await.err().context("it runs")?;
        let text = format!("{error} {error:?}");
        ensure!(matches!(error, ConsumerError::Configuration(_)) && text.contains(part), "{text}");
        ensure!(!text.contains("pa55word"), "{text}");
        Ok(())
    };
    refused(field.counting().kafka("sasl.pasword", "pa55word"), "sasl.pasword").await?;
    refused(field.counting().kafka("session.timeout.ms", "pa55word"), "session.timeout.ms").await?;
    refused(field.counting().dead_letter_topic(|topic| format!("{topic}/dead")), "/dead").await?;
    Ok(())
}

async fn a_retry_topic_and_new_partitions_are_read_soon_after_they_exist(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let running = Running::start(field.counting());
    running.until("it is given its partitions", |stats| stats.assigned() == PARTITIONS as u64).await;
    let retry = DeadLetter::retry_topic(&field.outbox.topic, &field.outbox.topic);
    field.kafka.create_topic(&retry, 1, &[]).await?;
    running.until("the retry topic is read", |stats| stats.assigned() == PARTITIONS as u64 + 1).await;
    field.kafka.add_partitions(&field.outbox.topic, PARTITIONS + 1).await?;
    running.until("the new partition is read", |stats| stats.assigned() == PARTITIONS as u64 + 2).await;
    running.stop().await?;
    let recorded: Vec<(String, bool)> =
        sqlx::query_as("select topic, dead_letters from processed_events_source order by 1")
            .fetch_all(&field.pool)
            .await?;
    let dead_letters = super::dead_letters(&field.outbox.topic);
    ensure!(recorded == [(field.outbox.topic.clone(), false), (dead_letters, true)], "{recorded:?}");
    Ok(())
}

async fn a_topic_that_does_not_exist_is_named_once_and_read_when_it_exists(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let missing = format!("{}-missing", field.outbox.topic);
    let named = || log::with_code(&missing, Code::SourceMissing);
    let running = Running::start(field.counting().topic(&missing));
    eventually("the topic is named", APPLIED_WITHIN, || async {
        let lines = named();
        if lines.is_empty() { Err(()) } else { Ok(()) }
    })
    .await;
    // The topics that exist are read meanwhile.
    field.write([counted("a", 1)]).await?;
    field.publish().await?;
    field.until_effects(1).await;
    field.kafka.create_topic(&missing, 1, &[]).await?;
    field.write([counted("b", 2).topic(&missing)]).await?;
    field.publish().await?;
    field.until_effects(2).await;
    eventually("its end is logged", APPLIED_WITHIN, || async {
        let resolved: Vec<bool> = named().iter().map(Line::is_resolved).collect();
        if resolved == [false, true] { Ok(()) } else { Err(resolved) }
    })
    .await;
    running.stop().await?;
    Ok(())
}
