//! Tests the consumer runtime: each event has one effect, whatever happens on the way.

mod commits;
mod effects;
mod heads;
mod held;
mod keys;
mod log;
mod losses;
mod options;
mod programs;
mod recreated;
mod signals;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use event_outbox::consumer::{
    Action, Consumer, ConsumerError, Context, DeadLetter, Failed, Policy, Reason, Retry, Stats, UnknownType,
};
use event_outbox::event::NewEvent;
use event_outbox::outbox;
use event_outbox::schemas::Schemas;
use lab::demo::Signal;
use libtest_mimic::Trial;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use lab::kafka::{RealKafka, Record};
use lab::pgbouncer::PgBouncer;
use lab::{Outbox, PARTITIONS, SOON, TestDatabase, eventually, trials, until_nothing_is_left};

/// The argument that makes this binary a member of a group, to be killed.
const MEMBER: &str = "--be-a-member";

/// The time within which events must be applied. The handlers take milliseconds; a busy machine takes longer.
const APPLIED_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn trials() -> Vec<Trial> {
    log::keep();
    [
        runtime_trials(),
        commits::trials(),
        effects::trials(),
        heads::trials(),
        held::trials(),
        keys::trials(),
        losses::trials(),
        options::trials(),
        programs::trials(),
        recreated::trials(),
        signals::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn runtime_trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_member_killed_between_its_commits_and_its_offsets_repeats_no_effect,
            an_error_that_passes_is_tried_again_in_order_and_the_group_does_not_notice,
            an_outage_costs_no_attempt,
            every_reason_makes_a_dead_letter_that_names_all_of_it,
            a_consumer_that_stops_at_an_error_is_given_the_event_again,
            members_that_come_and_go_repeat_nothing_and_keep_the_order,
            members_of_the_eager_protocol_repeat_nothing_either,
            a_stop_waits_for_the_handler_and_commits_what_it_did,
            a_handler_that_outlasts_the_stop_is_rolled_back_and_its_event_comes_again,
            old_versions_are_upcast_for_the_one_handler,
            what_a_handler_emits_is_tied_to_its_event_and_its_transaction,
            a_dead_letter_that_cannot_be_sent_holds_its_partition_until_it_can,
            large_events_that_wait_for_a_slow_handler_do_not_fill_the_memory,
            a_consumer_works_behind_a_transaction_pooler;
        with_postgres:
            a_stop_while_the_brokers_are_silent_ends_and_no_effect_is_lost_or_repeated;
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Counted {
    n: i64,
}

/// A test's outbox and topic, and the database of its consumers.
#[derive(Clone)]
struct Field {
    outbox: Outbox,
    kafka: Arc<RealKafka>,
    pool: PgPool,
}

impl Field {
    async fn new(database: &TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<Self> {
        let outbox = Outbox::from_database(database);
        outbox.create_topic(&kafka).await?;
        kafka.create_topic(&dead_letters(&outbox.topic), 1, &[]).await?;
        // The table has no key, so it would show an event that was applied twice.
        outbox
            .execute("create table effects (position bigint generated always as identity, event_id uuid, entity text, n bigint)")
            .await?;
        Ok(Self { outbox, kafka, pool: database.pool(16) })
    }

    async fn write(&self, events: impl IntoIterator<Item = NewEvent>) -> anyhow::Result<()> {
        let mut connection = self.outbox.connect().await?;
        for event in events {
            outbox::Outbox::default().emit(&mut connection, &event).await?;
        }
        Ok(())
    }

    /// Publishes every written event to the topic.
    async fn publish(&self) -> anyhow::Result<()> {
        let relay = self.outbox.relay(&self.kafka).start("consumers")?;
        self.outbox.until_settled().await;
        ensure!(relay.stop().await? == Some(0));
        Ok(())
    }

    fn consumer(&self) -> Consumer {
        member(&self.kafka.bootstrap(), &self.outbox.topic, self.pool.clone())
    }

    /// Returns a consumer that counts.
    fn counting(&self) -> Consumer {
        self.consumer().on("Counted", 1..=1, count)
    }

    async fn effects(&self) -> anyhow::Result<i64> {
        self.outbox.number("select count(*) from effects").await
    }

    async fn until_effects(&self, expected: i64) {
        let left = || async { Ok(expected - self.effects().await?) };
        until_nothing_is_left(&format!("{expected} effects"), APPLIED_WITHIN, left).await;
    }

    /// Returns the values of `n` by entity, in the order in which they were applied.
    async fn applied(&self) -> anyhow::Result<BTreeMap<String, Vec<i64>>> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("select entity, n from effects order by position").fetch_all(&self.pool).await?;
        let mut applied: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for (entity, n) in rows {
            applied.entry(entity).or_default().push(n);
        }
        Ok(applied)
    }

    async fn dead_letters(&self) -> anyhow::Result<Vec<(Record, DeadLetter)>> {
        let records = self.kafka.read_topic(&dead_letters(&self.outbox.topic)).await?;
        records
            .into_iter()
            // The log of redrives is on the same topic.
            .filter(|record| record.header("outbox-relay-redrive").is_none())
            .map(|record| {
                let dead_letter =
                    DeadLetter::read(|name| record.header(name).map(str::as_bytes)).context("no dead letter")?;
                Ok((record, dead_letter))
            })
            .collect()
    }

    /// Produces records to the topic as another producer would.
    fn produce(&self, records: &[Record]) -> anyhow::Result<()> {
        self.produce_to(&self.outbox.topic, records)
    }

    fn produce_to(&self, topic: &str, records: &[Record]) -> anyhow::Result<()> {
        let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", self.kafka.bootstrap()).create()?;
        for record in records {
            let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: value.as_deref() })
            });
            let mut sent = BaseRecord::<[u8], [u8]>::to(topic).headers(headers).partition(record.partition);
            sent.key = record.key.as_deref();
            sent.payload = record.value.as_deref();
            producer.send(sent).map_err(|(error, _)| error)?;
        }
        Ok(producer.flush(SOON)?)
    }
}

fn dead_letters(topic: &str) -> String {
    DeadLetter::default_topic(topic, topic)
}

fn member(bootstrap: &str, topic: &str, pool: PgPool) -> Consumer {
    member_of(bootstrap, topic, pool).topic(topic)
}

/// Returns a member of the group that reads no topic yet.
fn member_of(bootstrap: &str, group: &str, pool: PgPool) -> Consumer {
    Consumer::new(group, pool)
        .kafka("bootstrap.servers", bootstrap)
        .kafka("session.timeout.ms", "6000")
        .kafka("heartbeat.interval.ms", "200")
        .kafka("fetch.wait.max.ms", "20")
        .retry(quick(3))
}

/// Returns a retry whose pauses take no time.
fn quick(attempts: u32) -> Retry {
    Retry {
        attempts,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        ..Retry::default()
    }
}

fn counted(entity: &str, n: i64) -> NewEvent {
    NewEvent::new("order", entity, "Counted").json(&Counted { n }).expect("JSON")
}

async fn count(mut ctx: Context, event: Counted) -> Result<(), Failed> {
    insert(&mut ctx, event.n).await
}

async fn insert(ctx: &mut Context, n: i64) -> Result<(), Failed> {
    let (id, entity) = (ctx.event().event_id.0, ctx.event().key_text().map(str::to_owned));
    sqlx::query("insert into effects (event_id, entity, n) values ($1, $2, $3)")
        .bind(id)
        .bind(entity)
        .bind(n)
        .persistent(false)
        .execute(ctx.tx())
        .await?;
    Ok(())
}

/// A consumer that runs in a task.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ConsumerError>>,
    stats: Arc<Stats>,
}

impl Running {
    fn start(consumer: Consumer) -> Self {
        let stats = consumer.stats();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(consumer.run(async move {
            let _ = stopped.await;
        }));
        Self { stop, task, stats }
    }

    async fn stop(self) -> anyhow::Result<Arc<Stats>> {
        let _ = self.stop.send(());
        self.task.await??;
        Ok(self.stats)
    }

    async fn until(&self, what: &str, reached: impl Fn(&Stats) -> bool) {
        eventually(what, APPLIED_WITHIN, || async { if reached(&self.stats) { Ok(()) } else { Err(&self.stats) } })
            .await;
    }
}

/// Runs this process as a member, if its argument says so. Must be called before anything else of the suite.
pub(crate) fn run_as_member() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip_while(|argument| argument != MEMBER).skip(1);
    let (url, bootstrap, topic) = (arguments.next()?, arguments.next()?, arguments.next()?);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let ended = runtime.block_on(async {
        let pool = PgPoolOptions::new().connect_lazy(&url).expect("a URL");
        // The commit interval is so long that the test kills the member before it commits offsets.
        let consumer =
            member(&bootstrap, &topic, pool).on("Counted", 1..=1, count).commit_interval(Duration::from_secs(3600));
        let mode = arguments.next();
        if mode.as_deref() == Some(keys::MODE) {
            return keys::member(&bootstrap, &topic, &url).run_until_signal().await;
        }
        if mode.is_some() {
            return consumer.run_until_signal().await;
        }
        consumer
            .run(async {
                // Ends with the test: at the end of the input.
                let line = || BufReader::new(std::io::stdin()).read_line(&mut String::new());
                let _ = tokio::task::spawn_blocking(line).await;
            })
            .await
    });
    Some(if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn a_member_killed_between_its_commits_and_its_offsets_repeats_no_effect(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write((1..=60).map(|n| counted(&format!("e{}", n % 7), n))).await?;
    field.publish().await?;
    let child = Command::new(std::env::current_exe()?)
        .arg(MEMBER)
        .args([database.url(), field.kafka.bootstrap(), field.outbox.topic.clone()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let child = Killed(child);
    field.until_effects(60).await;
    drop(child);
    field.write([counted("e0", 61)]).await?;
    field.publish().await?;
    let next = Running::start(field.counting());
    field.until_effects(61).await;
    next.until("all 60 events have come again", |stats| stats.repeated() == 60).await;
    let stats = next.stop().await?;
    ensure!(stats.applied() == 1, "{stats:?}");
    ensure!(field.effects().await? == 61);
    Ok(())
}

/// PgBouncer has its defaults: it refuses `extra_float_digits` and knows no prepared statements.
async fn a_consumer_works_behind_a_transaction_pooler(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let pooler = PgBouncer::start(&database, "transaction").await?;
    let options: PgConnectOptions = pooler.url().parse()?;
    let pool = PgPoolOptions::new().max_connections(8).connect_lazy_with(options.extra_float_digits(None));
    field.write((1..=60).map(|n| counted(&format!("e{}", n % 7), n))).await?;
    field.publish().await?;
    let pooled = Field { pool, ..field.clone() };
    let consumer = pooled.consumer().prepared_statements(false).on("Counted", 1..=1, count);
    let running = Running::start(consumer);
    running.until("60 events are applied", |stats| stats.applied() + stats.dead() >= 60).await;
    let stats = running.stop().await?;
    ensure!(field.effects().await? == 60);
    ensure!(stats.applied() == 60 && stats.repeated() == 0, "{stats:?}");
    pooler.stop();
    Ok(())
}

/// The handler fails for longer than a member may be silent in its group.
async fn an_error_that_passes_is_tried_again_in_order_and_the_group_does_not_notice(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write((1..=20).flat_map(|n| ["a", "b", "c"].map(|entity| counted(entity, n)))).await?;
    field.publish().await?;
    let silent = Duration::from_secs(6);
    let first_attempt: Arc<std::sync::OnceLock<Instant>> = Arc::default();
    let consumer = field
        .consumer()
        .kafka("max.poll.interval.ms", silent.as_millis().to_string())
        .queue(2)
        .retry(Retry {
            attempts: u32::MAX,
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_millis(200),
            ..Retry::default()
        })
        .on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
            let first_attempt = Arc::clone(&first_attempt);
            async move {
                let passed = first_attempt.get_or_init(Instant::now).elapsed() > silent + Duration::from_secs(1);
                insert(&mut ctx, event.n).await?;
                if event.n == 2 && ctx.event().key_text() == Some("a") && !passed {
                    return Err(Failed::transient("not yet"));
                }
                Ok(())
            }
        });
    let running = Running::start(consumer);
    field.until_effects(60).await;
    let stats = running.stop().await?;
    ensure!(stats.retried() > 0 && stats.dead() == 0 && stats.repeated() == 0, "{stats:?}");
    ensure!(stats.assigned() == PARTITIONS as u64 && stats.revoked() == 0, "the group has noticed: {stats:?}");
    let in_order: Vec<i64> = (1..=20).collect();
    ensure!(field.applied().await?.values().all(|applied| *applied == in_order));
    Ok(())
}

async fn an_outage_costs_no_attempt(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write([counted("a", 1)]).await?;
    field.publish().await?;
    let outages = Arc::new(AtomicU32::new(0));
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    let running = Running::start(
        field.consumer().retry(Retry { attempts: 1, first_pause: Duration::from_millis(1), ..Retry::default() }).on(
            "Counted",
            1..=1,
            move |mut ctx: Context, event: Counted| {
                let (outages, seen) = (Arc::clone(&outages), Arc::clone(&seen));
                async move {
                    seen.store(ctx.attempt(), Ordering::Relaxed);
                    if outages.fetch_add(1, Ordering::Relaxed) < 5 {
                        // The session of the transaction itself ends, as in a restart of the server.
                        sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(ctx.tx()).await?;
                    }
                    insert(&mut ctx, event.n).await
                }
            },
        ),
    );
    field.until_effects(1).await;
    let stats = running.stop().await?;
    ensure!(stats.retried() == 5 && stats.dead() == 0 && stats.applied() == 1, "{stats:?}");
    ensure!(attempts.load(Ordering::Relaxed) == 1);
    Ok(())
}

/// An error of an application.
#[derive(Debug, thiserror::Error)]
enum InvoiceError {
    #[error("the number is taken")]
    Taken(#[source] sqlx::Error),
}

/// Violates a unique index.
async fn insert_twice(ctx: &mut Context) -> Result<(), InvoiceError> {
    for _ in 0..2 {
        let insert = sqlx::query("insert into numbers (number) values (7)").execute(ctx.tx()).await;
        insert.map_err(InvoiceError::Taken)?;
    }
    Ok(())
}

async fn every_reason_makes_a_dead_letter_that_names_all_of_it(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.outbox.execute("create table numbers (number int primary key)").await?;
    let event = |event_type: &str| NewEvent::new("order", "a", event_type).json(&Counted { n: 0 }).expect("JSON");
    field
        .write([
            event("Permanent").header("correlation-id", "req-1"),
            event("Exhausted"),
            event("Counted").json(&json!({"n": "secret"}))?,
            event("Typed").json(&json!({"n": "secret"}))?,
            event("Unheard"),
            event("Counted").version(9),
            event("Panicked"),
            event("Refused"),
            event("Taken"),
            event("Untyped"),
            counted("a", 1),
        ])
        .await?;
    field.publish().await?;
    let schema = json!({"properties": {"n": {"type": "integer"}}});
    let nameless = Record {
        partition: 0,
        offset: 0,
        key: Some(b"a".to_vec()),
        value: Some(b"?".to_vec()),
        headers: vec![("odd".to_owned(), None)],
        timestamp: None,
    };
    field.produce(&[nameless])?;
    let running = Running::start(
        field
            .counting()
            .unknown_type(UnknownType::DeadLetter)
            .schemas(Schemas::default().with("Counted", 1, &schema)?)
            .on("Permanent", .., |mut ctx: Context, event: Counted| async move {
                insert(&mut ctx, event.n).await?;
                Err(Failed::permanent("never"))
            })
            .on("Exhausted", .., |_: Context, _: Counted| async { Err(std::io::Error::other("maybe later").into()) })
            .on("Typed", .., count)
            .on("Panicked", .., |_: Context, _: Counted| async { panic!("ouch") })
            .on_raw("Refused", .., |mut ctx| async move {
                sqlx::query("insert into effects (n) values ('x'::text::bigint)").execute(ctx.tx()).await?;
                Ok(())
            })
            .on_raw("Taken", .., |mut ctx| async move { Ok(insert_twice(&mut ctx).await?) })
            .on_raw("Untyped", .., |mut ctx| async move {
                let inserted = insert_twice(&mut ctx).await.context("the invoice");
                inserted.map_err(Failed::of)
            }),
    );
    running.until("eleven dead letters", |stats| stats.dead() == 11).await;
    field.until_effects(1).await;
    running.stop().await?;
    ensure!(field.effects().await? == 1, "an attempt that failed left something");

    let dead_letters = field.dead_letters().await?;
    let reported: BTreeMap<String, &(Record, DeadLetter)> = dead_letters
        .iter()
        .map(|dead_letter| {
            (
                dead_letter.0.header("event-type").unwrap_or("none").to_owned()
                    + dead_letter.0.header("event-version").unwrap_or_default(),
                dead_letter,
            )
        })
        .collect();
    let expected = [
        ("Permanent1", Reason::Permanent, 1, "never"),
        ("Exhausted1", Reason::Exhausted, 3, "maybe later"),
        ("Counted1", Reason::Invalid, 0, "/n"),
        ("Typed1", Reason::Invalid, 1, "is not of the type"),
        ("Unheard1", Reason::UnknownType, 0, "Unheard"),
        ("Counted9", Reason::UnsupportedVersion, 0, "version 9"),
        ("Panicked1", Reason::Panicked, 1, "ouch"),
        ("Refused1", Reason::Permanent, 1, "invalid input syntax"),
        ("Taken1", Reason::Permanent, 1, "the number is taken: "),
        ("Untyped1", Reason::Permanent, 1, "the invoice: the number is taken: "),
        ("none", Reason::Undecodable, 0, "no event-id"),
    ];
    let source = field.kafka.read_topic(&field.outbox.topic).await?;
    for (name, reason, attempts, error) in expected {
        let (record, dead_letter) = reported.get(name).context(name)?;
        ensure!((dead_letter.reason, dead_letter.attempts) == (reason, attempts), "{name}: {dead_letter:?}");
        ensure!(dead_letter.error.contains(error) && !dead_letter.error.contains("secret"), "{name}: {dead_letter:?}");
        ensure!(dead_letter.path.as_deref() == (name == "Counted1").then_some("/n"), "{name}: {dead_letter:?}");
        ensure!((&dead_letter.group, &dead_letter.source_topic) == (&field.outbox.topic, &field.outbox.topic));
        let at = |record: &&Record| {
            (record.partition, record.offset) == (dead_letter.source_partition, dead_letter.source_offset)
        };
        let original = source.iter().find(at).context("no such record")?;
        ensure!((&record.key, &record.value) == (&original.key, &original.value), "{name} is not its record");
        ensure!(record.headers.starts_with(&original.headers), "{name}: {:?}", record.headers);
        ensure!((chrono::Utc::now() - dead_letter.first_failed_at).num_seconds() < 120);
    }
    Ok(())
}

async fn a_consumer_that_stops_at_an_error_is_given_the_event_again(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write((1..=4).map(|n| counted("a", n))).await?;
    field.publish().await?;
    let handler = |mut ctx: Context, event: Counted| async move {
        insert(&mut ctx, event.n).await?;
        if event.n == 3 { Err(Failed::transient("bad")) } else { Ok(()) }
    };
    let consumer = field.consumer().on("Counted", 1..=1, handler).policy(Policy::always(Action::Stop));
    let error = consumer.run(std::future::pending()).await.err().context("the consumer did not stop")?;
    ensure!(matches!(&error, ConsumerError::Stopped { reason: Reason::Exhausted, offset: 2, .. }), "{error:?}");
    ensure!(field.applied().await?["a"] == [1, 2] && field.dead_letters().await?.is_empty());
    let running = Running::start(field.counting());
    field.until_effects(4).await;
    let stats = running.stop().await?;
    ensure!(stats.repeated() == 0, "{stats:?}");
    ensure!(field.applied().await?["a"] == [1, 2, 3, 4]);
    Ok(())
}

async fn members_that_come_and_go_repeat_nothing_and_keep_the_order(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    come_and_go(&database, kafka, "cooperative-sticky").await
}

async fn members_of_the_eager_protocol_repeat_nothing_either(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    come_and_go(&database, kafka, "range").await
}

async fn come_and_go(database: &TestDatabase, kafka: Arc<RealKafka>, strategy: &str) -> anyhow::Result<()> {
    // More events than three members can apply while the group is rebalanced three times on a busy machine.
    const EVENTS: i64 = 4_000;
    let field = Field::new(database, kafka).await?;
    field.outbox.write_backlog(EVENTS, 30).await?;
    field.publish().await?;
    let slow = || {
        let handler = |mut ctx: Context, event: Counted| async move {
            insert(&mut ctx, event.n).await?;
            // The handler takes some time, so that a rebalance happens during its work.
            sqlx::query("select pg_sleep(0.005)").execute(ctx.tx()).await?;
            Ok(())
        };
        // Fetches far ahead, and commits only in rebalances.
        field.consumer().kafka("partition.assignment.strategy", strategy).commit_interval(Duration::from_secs(3600)).on(
            "Counted",
            1..=1,
            handler,
        )
    };
    let first = Running::start(slow());
    first.until("the first is at work", |stats| stats.applied() > 50).await;
    let second = Running::start(slow());
    second.until("the second is at work", |stats| stats.applied() > 50).await;
    let third = Running::start(slow());
    third.until("the third is at work", |stats| stats.applied() > 20).await;
    let mut all = vec![first.stop().await?];
    third.until("the third goes on", |stats| stats.applied() > 60).await;
    all.push(third.stop().await?);
    field.until_effects(EVENTS).await;
    all.push(second.stop().await?);
    // The relay itself may send an event twice on a slow machine. The members must not add to that.
    let twice = field.kafka.read_topic(&field.outbox.topic).await?.len() as u64 - EVENTS as u64;
    let repeated: u64 = all.iter().map(|stats| stats.repeated()).sum();
    ensure!(repeated == twice, "{repeated} repeated, {twice} of them by the relay: {all:?}");
    ensure!(all.iter().any(|stats| stats.revoked() > 0), "no rebalance: {all:?}");
    ensure!(field.effects().await? == EVENTS);
    for (entity, applied) in field.applied().await? {
        ensure!(applied.is_sorted_by(|one, two| one < two), "{entity}: {applied:?}");
    }
    Ok(())
}

async fn a_stop_waits_for_the_handler_and_commits_what_it_did(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write((1..=3).map(|n| counted("a", n))).await?;
    field.publish().await?;
    let (at_work, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (arrived, wait) = (Arc::clone(&at_work), Arc::clone(&go_on));
    let running = Running::start(field.consumer().on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
        let (arrived, wait) = (Arc::clone(&arrived), Arc::clone(&wait));
        async move {
            insert(&mut ctx, event.n).await?;
            if event.n == 2 {
                arrived.notify_one();
                wait.notified().await;
            }
            Ok(())
        }
    }));
    at_work.notified().await;
    let stopping = tokio::spawn(running.stop());
    go_on.notify_one();
    let stats = stopping.await??;
    ensure!(stats.applied() >= 2, "{stats:?}");
    let running = Running::start(field.counting());
    field.until_effects(3).await;
    let stats = running.stop().await?;
    ensure!(stats.repeated() == 0, "what was done was not committed: {stats:?}");
    ensure!(field.applied().await?["a"] == [1, 2, 3]);
    Ok(())
}

async fn a_handler_that_outlasts_the_stop_is_rolled_back_and_its_event_comes_again(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write((1..=2).map(|n| counted("a", n))).await?;
    field.publish().await?;
    let at_work = Arc::new(Notify::new());
    let arrived = Arc::clone(&at_work);
    let handler = move |mut ctx: Context, event: Counted| {
        let arrived = Arc::clone(&arrived);
        async move {
            insert(&mut ctx, event.n).await?;
            if event.n == 2 {
                arrived.notify_one();
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    };
    let running = Running::start(field.consumer().drain(Duration::from_millis(100)).on("Counted", 1..=1, handler));
    at_work.notified().await;
    running.stop().await?;
    ensure!(field.applied().await?["a"] == [1]);
    let running = Running::start(field.counting());
    field.until_effects(2).await;
    running.stop().await?;
    ensure!(field.applied().await?["a"] == [1, 2]);
    Ok(())
}

async fn old_versions_are_upcast_for_the_one_handler(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct V1 {
        count: i64,
    }
    let field = Field::new(&database, kafka).await?;
    let old = |n| NewEvent::new("order", "a", "Counted").json(&json!({"count": n}));
    field.write([old(1)?, counted("a", 2).version(2), old(3)?]).await?;
    field.publish().await?;
    let running =
        Running::start(field.consumer().upcast("Counted", 1, |old: V1| Ok(Counted { n: old.count * 10 })).on(
            "Counted",
            2..=2,
            |mut ctx: Context, event: Counted| async move {
                let written = i64::from(ctx.event().event_version);
                if ctx.version() != 2 {
                    return Err(Failed::permanent("not upcast"));
                }
                insert(&mut ctx, event.n * 10 + written).await
            },
        ));
    field.until_effects(3).await;
    running.stop().await?;
    ensure!(field.applied().await?["a"] == [101, 22, 301], "{:?}", field.applied().await?);
    Ok(())
}

async fn what_a_handler_emits_is_tied_to_its_event_and_its_transaction(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    field
        .write([
            counted("first", 1).header("traceparent", trace),
            counted("later", 1).header("correlation-id", "req-1").header("causation-id", "an earlier one"),
            counted("failing", 1),
        ])
        .await?;
    field.publish().await?;
    let handler = |mut ctx: Context, event: Counted| async move {
        let entity = ctx.event().key_text().unwrap_or_default().to_owned();
        ctx.emit(NewEvent::new("payment", entity.as_str(), "Paid").json(&event)?).await?;
        if entity == "failing" { Err(Failed::permanent("no")) } else { insert(&mut ctx, event.n).await }
    };
    let running = Running::start(field.consumer().on("Counted", 1..=1, handler));
    field.until_effects(2).await;
    running.until("the third has failed", |stats| stats.dead() == 1).await;
    running.stop().await?;
    let sql = "select paid.entity_id, paid.headers->>'correlation-id', paid.headers->>'causation-id' = counted.event_id::text, \
               paid.headers->>'traceparent', paid.headers->>'correlation-id' = counted.event_id::text \
               from event_outbox paid join event_outbox counted on counted.entity_id = paid.entity_id and counted.event_type = 'Counted' \
               where paid.event_type = 'Paid' order by 1";
    let rows: Vec<(String, String, bool, Option<String>, bool)> = sqlx::query_as(sql).fetch_all(&field.pool).await?;
    let [first, later] = rows.as_slice() else { anyhow::bail!("{rows:?}") };
    ensure!(first.2 && first.3.as_deref() == Some(trace) && first.4, "{rows:?}");
    ensure!(later.1 == "req-1" && later.2 && later.3.is_none(), "{rows:?}");
    Ok(())
}

async fn a_dead_letter_that_cannot_be_sent_holds_its_partition_until_it_can(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let missing = format!("{}-missing", field.outbox.topic);
    field.write([counted("a", 1).version(7), counted("a", 2)]).await?;
    field.publish().await?;
    let consumer = || {
        let missing = missing.clone();
        field.counting().kafka("topic.metadata.propagation.max.ms", "500").dead_letter_topic(move |_| missing.clone())
    };
    let running = Running::start(consumer());
    running.until("it is given its partitions", |stats| stats.assigned() > 0).await;
    // The consumer notices the stop while it waits, and commits nothing.
    running.stop().await?;
    ensure!(field.effects().await? == 0);
    let running = Running::start(consumer());
    field.kafka.create_topic(&missing, 1, &[]).await?;
    field.until_effects(1).await;
    running.stop().await?;
    let sent = field.kafka.read_topic(&missing).await?;
    ensure!(sent.len() == 1 && sent[0].header("dlq-reason") == Some("unsupported-version"), "{sent:?}");
    Ok(())
}

/// Puts 240 MB on the topic. Without a bound in bytes, all of it would be in memory before the first event is applied.
async fn large_events_that_wait_for_a_slow_handler_do_not_fill_the_memory(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    const EVENTS: i64 = 480;
    const MEGABYTES: u64 = 150;
    let field = Field::new(&database, kafka).await?;
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload) \
         select 'order', 'e' || (n % 30), 'Counted', jsonb_build_object('n', n, 'x', (select string_agg(md5((n * 20000 + i)::text), '') \
         from generate_series(1, 15625) i)) from generate_series(1, {EVENTS}) n"
    );
    field.outbox.execute(&sql).await?;
    field.publish().await?;
    // The handlers wait for this transaction.
    let mut locking = field.outbox.connect().await?;
    let mut lock = sqlx::Connection::begin(&mut locking).await?;
    sqlx::query("lock table effects in exclusive mode").execute(&mut *lock).await?;
    let child = Command::new(std::env::current_exe()?)
        .arg(MEMBER)
        .args([database.url(), field.kafka.bootstrap(), field.outbox.topic.clone()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let child = Killed(child);
    let waiting = "select count(*) from pg_locks where not granted and relation = 'effects'::regclass";
    eventually("every partition has a handler that waits", APPLIED_WITHIN, || async {
        match field.outbox.number(waiting).await {
            Ok(waiting) if waiting == i64::from(PARTITIONS) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let steady = AtomicU32::new(0);
    let last = std::sync::atomic::AtomicU64::new(0);
    let most = eventually("no more is fetched", APPLIED_WITHIN, || async {
        let now = resident_megabytes(child.0.id());
        match now.as_ref().is_ok_and(|now| *now == last.swap(*now, Ordering::Relaxed)) {
            true => steady.fetch_add(1, Ordering::Relaxed),
            false => steady.swap(0, Ordering::Relaxed),
        };
        if steady.load(Ordering::Relaxed) > 30 { Ok(last.load(Ordering::Relaxed)) } else { Err(now) }
    })
    .await;
    ensure!(most < MEGABYTES, "{most} MB are resident while every handler waits");
    lock.commit().await?;
    field.until_effects(EVENTS).await;
    let most = resident_megabytes(child.0.id())?;
    ensure!(most < MEGABYTES, "{most} MB were resident at the most");
    Ok(())
}

/// Returns the peak of the process's memory.
fn resident_megabytes(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

async fn a_stop_while_the_brokers_are_silent_ends_and_no_effect_is_lost_or_repeated(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut field = Field::new(&database, Arc::new(RealKafka::start(&[])?)).await?;
    field.write((1..=20).map(|n| counted(&format!("e{n}"), n))).await?;
    field.publish().await?;
    let running = Running::start(field.counting().commit_interval(Duration::from_secs(3600)));
    field.until_effects(20).await;
    Arc::get_mut(&mut field.kafka).context("somebody else's")?.signal(Signal::SIGSTOP)?;
    let stats = tokio::time::timeout(SOON, running.stop()).await.context("the stop waits for the brokers")??;
    ensure!(stats.applied() == 20, "{stats:?}");

    Arc::get_mut(&mut field.kafka).context("somebody else's")?.signal(Signal::SIGCONT)?;
    // The commit may have reached the brokers or not; nothing depends on it.
    field.write([counted("e1", 21)]).await?;
    field.publish().await?;
    let running = Running::start(field.counting());
    field.until_effects(21).await;
    let stats = running.stop().await?;
    ensure!(stats.applied() == 1 && field.effects().await? == 21, "{stats:?}");
    Ok(())
}
