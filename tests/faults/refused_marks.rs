//! Tests marks that Postgres accepts but that change no row. The relay must stop, and must not publish the same events for ever.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use serde_json::Value;

use lab::kafka::RealKafka;
use lab::{Outbox, Relay, RelayProcess, SOON, TestDatabase, eventually, long, trials};

const EVENTS: i64 = 500;
const BATCH: usize = 100;
const WORKERS: usize = 2;

/// The most records that may appear: two batches of each worker.
const RECORDS_ALLOWED: usize = 2 * BATCH * WORKERS;

/// The time for which the topic is observed after the relay has reported the fault.
const OBSERVED: Duration = Duration::from_secs(10);

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = trials! {
        with_both:
            marks_that_a_trigger_suppresses_stop_the_claims,
            rows_that_a_policy_hides_from_updates_stop_the_claims;
    };
    all.extend(long(trials! {
        with_both:
            exactly_once_marks_that_a_trigger_suppresses_stop_the_claims,
            marks_that_a_rule_suppresses_stop_the_claims,
            marks_that_a_policy_refuses_stop_the_claims;
    }));
    all
}

async fn marks_that_a_trigger_suppresses_stop_the_claims(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    by_trigger(&database, &kafka, "at_least_once").await
}

async fn exactly_once_marks_that_a_trigger_suppresses_stop_the_claims(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    by_trigger(&database, &kafka, "exactly_once").await
}

async fn by_trigger(database: &TestDatabase, kafka: &RealKafka, delivery: &str) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(database);
    let relay = outbox.relay(kafka).with("RELAY_DELIVERY", delivery);
    let refuse = "create function keep_status() returns trigger language plpgsql as 'begin return null; end'; \
                  create trigger keep_status before update on event_outbox for each row \
                  when (new.status is distinct from old.status) execute function keep_status()";
    refused(&outbox, relay, kafka, refuse, "drop trigger keep_status on event_outbox").await
}

async fn marks_that_a_rule_suppresses_stop_the_claims(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let refuse = "create rule keep_status as on update to event_outbox \
                  where new.status is distinct from old.status do instead nothing";
    refused(&outbox, outbox.relay(&kafka), &kafka, refuse, "drop rule keep_status on event_outbox").await
}

async fn rows_that_a_policy_hides_from_updates_stop_the_claims(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let refuse = "create policy reads on event_outbox for select using (true); \
                  alter table event_outbox enable row level security";
    by_policy(&database, &kafka, refuse).await
}

async fn marks_that_a_policy_refuses_stop_the_claims(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let refuse = "create policy reads on event_outbox for select using (true); \
                  create policy marks on event_outbox for update using (true) with check (status = 'PENDING'); \
                  alter table event_outbox enable row level security";
    by_policy(&database, &kafka, refuse).await
}

/// Policies do not apply to a superuser or to the table's owner.
async fn by_policy(database: &TestDatabase, kafka: &RealKafka, refuse: &str) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(database);
    let user = ordinary_user(database, &outbox).await?;
    let relay = outbox.relay(kafka).with("DATABASE_URL", user);
    refused(&outbox, relay, kafka, refuse, "alter table event_outbox disable row level security").await
}

/// Returns the URL of a user with the relay's role.
pub(crate) async fn ordinary_user(database: &TestDatabase, outbox: &Outbox) -> anyhow::Result<String> {
    let prefix = database.name();
    let migrate = Relay::bare().with("DATABASE_URL", database.url());
    let made = migrate.argument("--roles").argument("--role-prefix").argument(prefix).output("migrate").await?;
    ensure!(made.code == Some(0), "{made:?}");
    let user = format!("{prefix}_ordinary");
    outbox.execute(&format!("create role {user} login password 'secret' in role {prefix}_relay")).await?;
    let url = database.url();
    let (_, server) = url.split_once('@').context("no user in the URL")?;
    Ok(format!("postgres://{user}:secret@{server}"))
}

async fn refused(outbox: &Outbox, relay: Relay, kafka: &RealKafka, refuse: &str, allow: &str) -> anyhow::Result<()> {
    outbox.create_topic(kafka).await?;
    let relay = relay.with("RELAY_BATCH_SIZE", BATCH).with("RELAY_WORKERS", WORKERS).start_ready("refused").await?;
    outbox.write_backlog(20, 20).await?;
    outbox.until_settled().await;
    outbox.execute(refuse).await?;
    outbox.write_backlog(EVENTS, 50).await?;
    until_error(&relay).await;
    tokio::time::sleep(OBSERVED).await;
    let records = kafka.read_topic(&outbox.topic).await?.len() - 20;
    let errors = errors(&relay).len();
    eprintln!("{}: {EVENTS} events are {records} records, {errors} errors were logged", outbox.topic);
    ensure!(records <= RECORDS_ALLOWED, "{EVENTS} events that cannot be marked have become {records} records");
    ensure!(errors <= 20, "{errors} errors were logged for one fault");

    outbox.execute(allow).await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    let rules = Rules { duplicates_allowed: Some(RECORDS_ALLOWED as u64), pending_allowed: false };
    outbox.reconcile(kafka, rules).await
}

async fn until_error(relay: &RelayProcess) {
    eventually("the relay logs an error", SOON, || async {
        if errors(relay).is_empty() { Err("no error was logged") } else { Ok(()) }
    })
    .await;
}

fn errors(relay: &RelayProcess) -> Vec<Value> {
    let lines = relay.log();
    let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|line| line["level"] == "ERROR").collect()
}
