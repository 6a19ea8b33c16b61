//! Tests that a relay that no longer owns its lanes does no harm with the events that it still holds.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::ensure;
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::proxied_relay::ProxiedRelay;
use crate::proxy::{Catch, Spot};
use crate::stage::Stage;
use lab::kafka::RealKafka;
use lab::{Outbox, Relay, TestDatabase, trials};

/// The code of marks that change no row.
const NOT_OWNED: &str = "OR-5001";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_relay_frozen_before_its_records_went_out_and_woken_after_others_took_its_lanes,
            a_relay_frozen_before_it_read_its_acks_and_woken_after_others_took_its_lanes,
            marks_that_change_no_row_are_an_error_that_names_the_lanes,
            a_relay_whose_session_ends_while_acks_arrive_marks_nothing_and_all_of_it_is_sent_again_in_order;
    }
}

async fn a_relay_frozen_before_its_records_went_out_and_woken_after_others_took_its_lanes(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    frozen("frozen with records", Catch::HoldRequest, &database, &kafka).await
}

async fn a_relay_frozen_before_it_read_its_acks_and_woken_after_others_took_its_lanes(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    frozen("frozen with acks", Catch::HoldAnswer, &database, &kafka).await
}

/// Freezes a relay that holds a batch, until Postgres has ended its session and another relay has published the batch. Then wakes the
/// relay, with the network restored.
async fn frozen(trial: &str, catch: Catch, database: &TestDatabase, kafka: &RealKafka) -> anyhow::Result<()> {
    // Uses the shortest timeouts: Postgres waits for `publish_timeout` and 15 s more.
    let quick = |relay: Relay| relay.with("RELAY_PUBLISH_TIMEOUT", "1s").with("RELAY_SHUTDOWN_TIMEOUT", "30s");
    let outbox = Outbox::from_database(database);
    let mut stage = Stage::open_with(trial, &outbox, kafka, 2, quick).await?;
    stage.moment().await;
    stage.may_repeat(2);
    let frozen = &stage.relays[0];
    frozen.kafka.set_trap(Spot::Produce, catch);
    frozen.kafka.until_sprung(1).await;
    frozen.signal(Signal::SIGSTOP)?;
    frozen.kafka.release();
    // The other relay publishes everything committed by now, including the events that the frozen relay holds.
    let last = outbox.number("select max(id) from event_outbox").await?;
    outbox
        .until_none("no row from before the freeze is pending", &format!("status = 'PENDING' and id <= {last}"))
        .await;
    stage.moment().await;
    let before = marks(&outbox, last).await?;
    stage.relays[0].signal(Signal::SIGCONT)?;
    stage.relays[0].process()?.wait_for("outage_ended").await;
    stage.moment().await;
    stage.until_moving().await?;
    let after = marks(&outbox, last).await?;
    ensure!(before == after, "rows were marked again by a relay that no longer owned them");
    stage.close(kafka).await.map(drop)
}

/// Returns the time of each row's mark and the transaction that made it.
async fn marks(outbox: &Outbox, last: i64) -> anyhow::Result<HashMap<i64, String>> {
    let sql = "select id, xmin::text || ' ' || coalesce(published_at::text, status) from event_outbox where id <= $1";
    let rows: Vec<(i64, String)> = sqlx::query_as(sql).bind(last).fetch_all(&mut outbox.connect().await?).await?;
    Ok(rows.into_iter().collect())
}

/// Nobody else can change a locked row, so only a session with more rights than the relay can make its marks miss. This trial creates a
/// trigger while the acks are in flight; the trigger swallows the update.
async fn marks_that_change_no_row_are_an_error_that_names_the_lanes(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let mut stage = Stage::open("swallowed marks", &outbox, &kafka, 1).await?;
    stage.moment().await;
    let proxy = &stage.relays[0].kafka;
    proxy.set_trap(Spot::Produce, Catch::HoldAnswer);
    proxy.until_sprung(1).await;
    outbox
        .execute(
            "create function swallow() returns trigger language plpgsql as 'begin return null; end'; \
             create trigger swallow before update on event_outbox for each row execute function swallow()",
        )
        .await?;
    proxy.release();
    let line = stage.relays[0].process()?.wait_for(NOT_OWNED).await;
    ensure!(line["level"] == "ERROR" && line["next_step"].is_string(), "{line}");
    ensure!(line["lanes"].as_str().is_some_and(|lanes| !lanes.is_empty()), "{line}");
    ensure!(line["error"].as_str().is_some_and(|error| !error.is_empty()), "{line}");
    let marked = "select count(*) from event_outbox where status <> 'PENDING'";
    let before = outbox.number(marked).await?;
    stage.moment().await;
    ensure!(outbox.number(marked).await? == before, "a mark was made that the trigger swallows");
    outbox.execute("drop trigger swallow on event_outbox").await?;
    // Until then, each try has sent the batches of both workers.
    let tries = stage.relays[0].process()?.lines(NOT_OWNED).len() as u64;
    stage.may_repeat(tries + 2);
    stage.until_moving().await?;
    stage.close(&kafka).await.map(drop)
}

/// Writes ten events of one entity, which are marked, and then thirty events whose acks arrive after the session has ended.
async fn a_relay_whose_session_ends_while_acks_arrive_marks_nothing_and_all_of_it_is_sent_again_in_order(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let victim =
        ProxiedRelay::start("victim", &outbox, &kafka, |relay| relay.with("RELAY_PUBLISH_TIMEOUT", "60s")).await?;
    victim.until_ready().await?;
    write_at_once(&outbox, 0, 10).await?;
    outbox.until_settled().await;

    victim.kafka.set_trap(Spot::Produce, Catch::HoldAnswer);
    write_at_once(&outbox, 10, 30).await?;
    victim.kafka.until_sprung(1).await;
    let heir = ProxiedRelay::start("heir", &outbox, &kafka, |relay| relay).await?;
    heir.until_ready().await?;
    let ended = outbox
        .number(&format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity \
             where datname = current_database() and application_name = '{}'",
            victim.sessions()
        ))
        .await?;
    ensure!(ended > 0, "there was no session to end");
    // The acks arrive while the other relay has the lanes, or may take them.
    victim.kafka.release();
    outbox.until_settled().await;

    let mut sent = Vec::new();
    for record in kafka.read_topic(&outbox.topic).await? {
        let payload = lab::outbox::data(record.value.as_deref().unwrap_or_default()).to_owned();
        sent.push(serde_json::from_slice::<serde_json::Value>(&payload)?["n"].as_i64());
    }
    let expected: Vec<_> = (0..40).chain(10..40).map(Some).collect();
    ensure!(sent == expected, "{sent:?}");
    outbox.all_published().await?;
    outbox.reconcile(&kafka, Rules { duplicates_allowed: Some(30), pending_allowed: false }).await
}

async fn write_at_once(outbox: &Outbox, from: i64, count: i64) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_type, payload) \
         select 'order', 'one', 'Counted', jsonb_build_object('n', n) from generate_series({from}, {}) n order by n",
        from + count - 1
    );
    outbox.execute(&sql).await.map(drop)
}
