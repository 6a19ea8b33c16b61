//! Tests rows that cannot be sent, or are too large or too strange to be read. Each goes DEAD with a reason, and nothing waits for it.

use std::sync::Arc;

use anyhow::ensure;
use event_outbox::schema::MigrateOptions;
use libtest_mimic::Trial;

use lab::kafka::RealKafka;
use lab::process::peak_memory;
use lab::seed::size;
use lab::{Outbox, RelayProcess, SOON, TestDatabase, eventually, trials};

/// Rows with a payload of 6 MB.
const LARGE: &str = "OUTBOX_RELAY_TEST_LARGE_ROWS";
const LARGE_BY_DEFAULT: u64 = 200;

/// Rows with an entity id of 20 MB.
const LONG_KEYS: &str = "OUTBOX_RELAY_TEST_LONG_KEYS";
const LONG_KEYS_BY_DEFAULT: u64 = 20;

/// The highest memory that a relay may need, and the most bytes that it may log.
const MEMORY_ALLOWED: u64 = 300_000_000;
const LOG_ALLOWED: usize = 1_000_000;

/// Text of 20 MB, of which Postgres stores 230 kB.
const LONG: &str = "repeat('x', 20000000)";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            large_payloads_do_not_hold_up_small_events,
            a_payload_whose_text_is_larger_than_postgres_can_print_goes_dead,
            long_entity_ids_go_dead,
            long_values_in_other_columns_go_dead,
            events_that_would_mislead_others_go_dead,
            a_key_that_is_not_utf8_in_a_database_without_encoding_goes_dead;
    }
}

async fn large_payloads_do_not_hold_up_small_events(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let large = format!(
        "select 'order', 'large' || n, 'Bad', jsonb_build_object('s', repeat('x', 6000000)), null, '{{}}' \
         from generate_series(1, {}) n",
        size(LARGE, LARGE_BY_DEFAULT)
    );
    go_dead(&Outbox::from_database(&database), &kafka, &[&large]).await
}

/// Each number has 130,001 digits as text and a few bytes on disk.
async fn a_payload_whose_text_is_larger_than_postgres_can_print_goes_dead(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let huge = "select 'order', 'huge', 'Bad', ('[' || repeat('1e130000,', 8300) || '0]')::jsonb, null, '{}'";
    go_dead(&Outbox::from_database(&database), &kafka, &[huge]).await
}

async fn long_entity_ids_go_dead(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let long = format!(
        "select 'order', n || {LONG}, 'Bad', '{{}}'::jsonb, null, '{{}}' from generate_series(1, {}) n",
        size(LONG_KEYS, LONG_KEYS_BY_DEFAULT)
    );
    go_dead(&Outbox::from_database(&database), &kafka, &[&long]).await
}

async fn long_values_in_other_columns_go_dead(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let rows = [
        format!("select {LONG}, 'type' || n, 'Bad', '{{}}'::jsonb, null, '{{}}' from generate_series(1, 3) n"),
        format!("select 'order', 'topic' || n, 'Bad', '{{}}'::jsonb, {LONG}, '{{}}' from generate_series(1, 3) n"),
        format!(
            "select 'order', 'event' || n, 'Bad' || {LONG}, '{{}}'::jsonb, null, '{{}}' from generate_series(1, 3) n"
        ),
        format!(
            "select 'order', 'header' || n, 'Bad', '{{}}'::jsonb, null, jsonb_build_object('long', {LONG}) \
             from generate_series(1, 3) n"
        ),
        "select 'order', 'headers' || n, 'Bad', '{}'::jsonb, null, \
         (select jsonb_object_agg('header-' || i, 'x') from generate_series(1, 100000) i) from generate_series(1, 3) n"
            .to_owned(),
    ];
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    go_dead(&Outbox::from_database(&database), &kafka, &rows).await
}

/// Brings the headers of records that were sent again, names topics of Kafka and of consumers, and nests headers deeply.
async fn events_that_would_mislead_others_go_dead(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let rows = [
        "select 'order', 'header-' || name, 'Bad', '{}'::jsonb, null, jsonb_build_object(name, 'x') from unnest(array[\
           'replay-id', 'redrive-id', 'event-time', 'dlq-reason', 'dlq-anything', 'outbox-relay-redrive']) name",
        "select 'order', 'topic-' || topic, 'Bad', '{}'::jsonb, topic, '{}'::jsonb from unnest(array[\
           '__consumer_offsets', '__transaction_state', 'order-events.billing.dlq']) topic",
        "select '__order', 'type', 'Bad', '{}'::jsonb, '__order-events', '{}'::jsonb",
        "select 'order', 'deep', 'Bad', '{}'::jsonb, null, \
           jsonb_build_object('deep', (repeat('[', 3000) || repeat(']', 3000))::jsonb)",
    ];
    go_dead(&outbox, &kafka, &rows).await?;
    let relay = outbox.relay(&kafka);
    let listed = relay.clone().argument("list").output("dead").await?;
    ensure!(listed.code == Some(0) && listed.stdout.contains("is reserved"), "{listed:?}");
    let ids = "select event_id::text from event_outbox where status = 'DEAD'";
    let ids: Vec<String> = sqlx::query_scalar(ids).fetch_all(&mut outbox.connect().await?).await?;
    for id in ids {
        let shown = relay.clone().argument("show").argument("--id").argument(&id).output("dead").await?;
        ensure!(shown.code == Some(0), "{shown:?}");
    }
    Ok(())
}

async fn a_key_that_is_not_utf8_in_a_database_without_encoding_goes_dead(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let name = format!("{}_ascii", database.name());
    let clause = "encoding 'SQL_ASCII' locale 'C' template template0";
    let outbox = Outbox::in_new_database(&database, &name, clause, &MigrateOptions::default()).await?;
    go_dead(&outbox, &kafka, &["select 'order', E'\\xff\\xfe', 'Bad', '{}'::jsonb, null, '{}'"]).await
}

/// Writes good events, then the bad ones, then good ones. `rows` select entity_type, entity_id, event_type, payload, topic, headers.
async fn go_dead(outbox: &Outbox, kafka: &RealKafka, rows: &[&str]) -> anyhow::Result<()> {
    outbox.create_topic(kafka).await?;
    outbox.write_backlog(50, 50).await?;
    for rows in rows {
        let columns = "entity_type, entity_id, event_type, payload, topic, headers";
        outbox.execute(&format!("insert into event_outbox ({columns}) {rows}")).await?;
    }
    outbox.write_backlog(100, 50).await?;
    let last = outbox.number("select max(id) from event_outbox").await?;
    let relay = outbox.relay(kafka).start_ready("hostile").await?;
    let watched = observe(outbox, &relay).await;
    let (memory, log) = (peak_memory(relay.pid())?, log_bytes(&relay));
    eprintln!("{}: {} bad rows, {memory} bytes of memory, {log} bytes of log", outbox.topic, last - 150);
    watched?;
    let wrong = wrong_outcomes(outbox).await?;
    ensure!(wrong.is_empty(), "neither PUBLISHED nor DEAD with a short reason: {wrong:?}");
    ensure!(memory < MEMORY_ALLOWED, "the relay has needed {memory} bytes of memory");
    ensure!(log < LOG_ALLOWED, "the relay has logged {log} bytes");
    // The relay still works.
    outbox.write("after", 1, 5).await?;
    outbox.until_settled_of("after").await;
    ensure!(outbox.published_numbers(kafka).await?["after"] == [1, 2, 3, 4, 5]);
    Ok(())
}

/// Lists the kinds of rows in the wrong state, with an example of each.
async fn wrong_outcomes(outbox: &Outbox) -> anyhow::Result<Vec<String>> {
    let sql = "select count(*) || ' of ' || left(entity_id, 6) || ': ' || status || ' ' || \
               coalesce(left(min(last_error), 100), '') from event_outbox where case when event_type like 'Bad%' \
               then status <> 'DEAD' or coalesce(last_error, '') = '' or length(last_error) > 10000 \
               else status <> 'PUBLISHED' end group by left(entity_id, 6), status";
    Ok(sqlx::query_scalar(sql).fetch_all(&mut outbox.connect().await?).await?)
}

/// Waits for the good events, and then for all.
async fn observe(outbox: &Outbox, relay: &RelayProcess) -> anyhow::Result<()> {
    for (what, which) in [("good events", "event_type = 'Counted' and"), ("events", "")] {
        let pending = format!("select count(*) from event_outbox where {which} status = 'PENDING'");
        until_none_is(what, outbox, relay, &pending).await?;
    }
    Ok(())
}

async fn until_none_is(what: &str, outbox: &Outbox, relay: &RelayProcess, pending: &str) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + SOON;
    eventually(what, SOON * 10, || async {
        match outbox.number(pending).await {
            Ok(0) => Ok(Ok(())),
            // Returns an error and does not panic, so that the relay's memory and log are reported as well.
            other if tokio::time::Instant::now() > deadline || log_bytes(relay) > 100 * LOG_ALLOWED => {
                Ok(Err(anyhow::anyhow!("{what} are still pending: {other:?}")))
            }
            other => Err(other),
        }
    })
    .await
}

fn log_bytes(relay: &RelayProcess) -> usize {
    relay.log().iter().map(String::len).sum()
}
