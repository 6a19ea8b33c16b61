//! Upgrades an outbox in use from a former release: relays of that release run under load while its schema is migrated, relays of this
//! release start beside them, the upgrade is taken back and done again. Nothing may be lost, overtaken or stand still.
//!
//! `just upgrade-test REV` builds the binary of a revision and runs these trials. A plain run leaves them out.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use lab::demo::PrivatePostgres;
use lab::kafka::RealKafka;
use lab::load::{Load, Plan};
use lab::{Outbox, Relay, RelayProcess, Skip, long, options_for_tests, trials};
use libtest_mimic::Trial;

/// The binary of the former release.
const OLD_BINARY: &str = "OUTBOX_RELAY_TEST_OLD_BINARY";

const ENTITIES: i64 = 320;

/// The number of events that are committed, and then published, between two steps.
const STEP: i64 = 400;

/// A clean stop sends nothing twice, and neither does a change of owners.
const ONCE: Rules = Rules { duplicates_allowed: Some(0), pending_allowed: false };

pub(crate) fn trials() -> Vec<Trial> {
    long(trials! {
        with_kafka:
            an_upgrade_from_a_former_release_under_load_is_taken_back_and_done_again,
            an_upgrade_from_a_former_release_that_publishes_exactly_once;
    })
}

async fn an_upgrade_from_a_former_release_under_load_is_taken_back_and_done_again(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    upgrade("upgrade", &kafka, "at_least_once").await
}

async fn an_upgrade_from_a_former_release_that_publishes_exactly_once(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    upgrade("upgrade-exactly-once", &kafka, "exactly_once").await
}

async fn upgrade(topic: &str, kafka: &RealKafka, delivery: &str) -> anyhow::Result<()> {
    let Some(old_binary) = std::env::var_os(OLD_BINARY).map(PathBuf::from) else {
        return Err(Skip(format!("{OLD_BINARY} is not set: run `just upgrade-test REV`")).into());
    };
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::found_on(&postgres, topic);
    outbox.create_topic(kafka).await?;
    let new = outbox.relay(kafka).with("RELAY_DELIVERY", delivery);
    let old = new.clone().of_binary(&old_binary);
    succeeds(&Relay::bare().with("DATABASE_URL", postgres.url("postgres")).of_binary(&old_binary), "migrate").await?;
    let from = version(&outbox).await?;

    let load = Load::start(&outbox, Plan::endless(ENTITIES));
    let old_relays = start(&old, "old").await?;
    moves(&outbox, &load).await?;
    // The load keeps transactions open for two seconds, and an attempt to get a lock takes half a second.
    let migration =
        Relay::bare().with("DATABASE_URL", postgres.url("postgres")).argument("--lock-timeout").argument("2m");
    let said = succeeds(&migration, "migrate").await?;
    let to = version(&outbox).await?;
    eprintln!("schema {from} -> {to}: {said}");
    moves(&outbox, &load).await.context("only old relays, on the new schema")?;

    let new_relays = start(&new, "new").await?;
    moves(&outbox, &load).await.context("old and new relays, on the new schema")?;
    // The upgrade is taken back: the relays of the former release were left running, and have all lanes again.
    stop(new_relays).await?;
    moves(&outbox, &load).await.context("old relays alone again")?;
    let mut new_relays = start(&new, "again").await?;
    stop(old_relays).await?;
    moves(&outbox, &load).await.context("new relays alone")?;
    restarted(&old, from, to).await?;
    moves(&outbox, &load).await.context("after a start of an old relay")?;

    load.reconcile(&outbox, kafka, ONCE).await?;
    let verified = succeeds(&new.clone().argument("--topic").argument(topic), "verify").await?;
    eprintln!("{verified}");
    for relay in &mut new_relays {
        ensure!(relay.is_running()?, "a relay of this release has ended");
    }
    stop(new_relays).await
}

/// Expects a relay of the former release that starts anew to be refused on a newer schema, with the next step.
async fn restarted(old: &Relay, from: i64, to: i64) -> anyhow::Result<()> {
    if from == to {
        let relay = old.start_ready("restarted").await?;
        return stop(vec![relay]).await;
    }
    let output = old.output("run").await?;
    let is_said = output.stderr.contains(&format!("schema version {to}"));
    ensure!(output.code == Some(1) && is_said, "{output:?}");
    Ok(())
}

async fn version(outbox: &Outbox) -> anyhow::Result<i64> {
    outbox.number("select max(version) from event_outbox_migration").await
}

async fn start(relay: &Relay, name: &str) -> anyhow::Result<Vec<RelayProcess>> {
    let mut relays = Vec::new();
    for index in 0..2 {
        relays.push(relay.start_ready(&format!("{name}-{index}")).await?);
    }
    Ok(relays)
}

async fn stop(relays: Vec<RelayProcess>) -> anyhow::Result<()> {
    for relay in relays {
        let code = relay.stop().await?;
        ensure!(code == Some(0), "a relay did not drain: {code:?}");
    }
    Ok(())
}

/// Waits until the load has gone on, and what it wrote by then is published: neither the writers nor the relays stand still.
async fn moves(outbox: &Outbox, load: &Load) -> anyhow::Result<()> {
    load.until_committed(load.committed() + STEP).await;
    // Events of transactions that are still open have lower ids, and are waited for as well.
    let highest = outbox.number("select coalesce(max(id), 0) from event_outbox").await?;
    let pending = format!("status = 'PENDING' and id <= {highest}");
    outbox.until_none("what was written is published", &pending).await;
    Ok(())
}

async fn succeeds(relay: &Relay, command: &str) -> anyhow::Result<String> {
    let output = relay.output(command).await?;
    ensure!(output.code == Some(0), "{command}: {output:?}");
    Ok(output.stdout)
}
