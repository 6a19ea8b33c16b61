//! Tests a Postgres that goes back in time: a failover to a standby without the last commits, a crash that loses them, a restore, an
//! upgrade.
//!
//! Later rows allocate the ids of rows that were published and lost. Every row that is in the table at the end must be on the topic, in
//! order. Records of lost rows are on the topic too, and belong to no row.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use lab::demo::{PostgresOptions, PrivatePostgres};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;

use lab::book::Book;
use lab::failover::FailoverPair;
use lab::kafka::RealKafka;
use lab::load::{Load, Plan};
use lab::rough::POISON;
use lab::seed::{random_of, size};
use lab::{Missing, Outbox, Relay, long, options_for_tests, trials};

/// The number of times that a trial loses the last commits.
const LOSSES: &str = "OUTBOX_RELAY_TEST_LOSSES";
const LOSSES_BY_DEFAULT: u64 = 2;

/// The numbers of events that stay, that are lost, and that come after. A server allocates up to 32 ids fewer than it has logged, so more
/// events are lost than come after.
const BEFORE: i64 = 60;
const LOST: i64 = 200;
const AFTER: i64 = 60;

/// The number of entities. With one entity, the rows that allocate lost ids are in the same lane as the lost rows.
const ENTITIES: i64 = 20;
const FEW_AND_MANY: [i64; 2] = [1, ENTITIES];

const AT_LEAST_ONCE: &str = "at_least_once";
const EXACTLY_ONCE: &str = "exactly_once";

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = trials! {
        with_kafka:
            events_after_a_failover_that_lost_the_last_commits_are_published,
            events_after_a_failover_that_lost_the_last_commits_are_published_exactly_once,
            failovers_under_load_lose_no_row_exactly_once,
            events_after_a_crash_that_lost_the_last_commits_are_published,
            a_dump_restored_into_another_cluster_is_published_exactly_once,
            a_dump_older_than_the_last_events_is_published_exactly_once,
            an_outbox_moved_by_pg_upgrade_is_published_exactly_once,
            a_copy_with_a_relay_of_its_own_does_not_stop_the_original;
    };
    all.extend(long(trials! {
        with_kafka:
            failovers_under_load_lose_no_row,
            a_dump_restored_into_another_cluster_is_published,
            a_dump_older_than_the_last_events_is_published,
            an_outbox_moved_by_pg_upgrade_is_published;
    }));
    all
}

fn relay(outbox: &Outbox, kafka: &RealKafka, delivery: &str) -> Relay {
    outbox.relay(kafka).with("RELAY_DELIVERY", delivery)
}

/// Fails unless every row is on the topic in order, or was refused as poison. Counts the records of lost rows, but asserts nothing about
/// them. Returns the duplicates.
pub(crate) async fn every_row_is_published_in_order(outbox: &Outbox, kafka: &RealKafka) -> anyhow::Result<u64> {
    outbox.until_settled().await;
    let report = Book::new(Rules { duplicates_allowed: None, pending_allowed: false }).compare(outbox, kafka).await?;
    eprintln!(
        "{}: {} rows, {} missing, {} inverted, {} duplicates, {} records of lost rows",
        outbox.topic, report.committed, report.missing, report.inversions, report.duplicates, report.unknown
    );
    let broken = report.missing + report.inversions + report.mismatched + report.unpublished;
    ensure!(broken == 0, "{report}");
    let dead = format!("select count(*) from event_outbox where status = 'DEAD' and event_type <> '{POISON}'");
    ensure!(outbox.number(&dead).await? == 0, "good events are DEAD");
    Ok(report.duplicates)
}

/// Writes new events. Fails unless they allocate ids of lost events, because these trials test exactly that.
async fn write_over_lost_ids(outbox: &Outbox, last_lost: i64, entities: i64) -> anyhow::Result<()> {
    outbox.write_backlog(AFTER, entities).await?;
    let allocated_again =
        outbox.number(&format!("select count(*) from event_outbox where id > {}", last_lost - LOST)).await?
            - outbox.number(&format!("select count(*) from event_outbox where id > {last_lost}")).await?;
    ensure!(allocated_again > 0, "no id was allocated again");
    Ok(())
}

async fn last_id(outbox: &Outbox) -> anyhow::Result<i64> {
    outbox.number("select max(id) from event_outbox").await
}

async fn events_after_a_failover_that_lost_the_last_commits_are_published(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    after_failovers("failover", AT_LEAST_ONCE, &kafka).await
}

async fn events_after_a_failover_that_lost_the_last_commits_are_published_exactly_once(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    after_failovers("failover-exactly-once", EXACTLY_ONCE, &kafka).await
}

async fn after_failovers(topic: &str, delivery: &str, kafka: &RealKafka) -> anyhow::Result<()> {
    let mut pair = FailoverPair::start().await?;
    let outbox = pair.outbox(topic).await?;
    outbox.create_topic(kafka).await?;
    let _relay = relay(&outbox, kafka, delivery).start_ready(topic).await?;
    for entities in FEW_AND_MANY.into_iter().cycle().take(size(LOSSES, LOSSES_BY_DEFAULT) as usize) {
        outbox.write_backlog(BEFORE, entities).await?;
        outbox.until_settled().await;
        pair.cut_replication_when_caught_up().await?;
        outbox.write_backlog(LOST, entities).await?;
        outbox.until_settled().await;
        let last_lost = last_id(&outbox).await?;
        pair.promote().await?;
        // The application is back before the relay and continues after it.
        write_over_lost_ids(&pair.promoted_outbox(topic), last_lost, entities).await?;
        pair.move_address().await?;
        outbox.write_backlog(AFTER, entities).await?;
        let duplicates = every_row_is_published_in_order(&outbox, kafka).await?;
        // The standby has the marks of all rows that it has.
        ensure!(duplicates == 0, "{duplicates} duplicates");
    }
    Ok(())
}

async fn failovers_under_load_lose_no_row(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under_load("failover-load", AT_LEAST_ONCE, &kafka).await
}

async fn failovers_under_load_lose_no_row_exactly_once(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under_load("failover-load-exactly-once", EXACTLY_ONCE, &kafka).await
}

/// Runs writers and two relays while the address moves. Work in flight is lost or repeated.
async fn under_load(topic: &str, delivery: &str, kafka: &RealKafka) -> anyhow::Result<()> {
    let mut pair = FailoverPair::start().await?;
    let outbox = pair.outbox(topic).await?;
    outbox.create_topic(kafka).await?;
    let settings = relay(&outbox, kafka, delivery).with("RELAY_BATCH_SIZE", 100);
    let _relays = [settings.start_ready("relay-1").await?, settings.start_ready("relay-2").await?];
    let load = Load::start(&outbox, Plan::rough(320, random_of(topic).random()));
    for _ in 0..size(LOSSES, LOSSES_BY_DEFAULT) {
        load.until_committed(load.committed() + 500).await;
        pair.cut_replication_when_caught_up().await?;
        load.until_committed(load.committed() + 500).await;
        pair.promote().await?;
        pair.move_address().await?;
    }
    load.until_committed(load.committed() + 500).await;
    // The load counts commits that the failovers lost, so the table decides which rows exist.
    drop(load.end(Rules::default()).await?);
    every_row_is_published_in_order(&outbox, kafka).await.map(drop)
}

/// Makes all commits asynchronous and freezes the process that writes the WAL. An immediate stop then loses the unwritten WAL.
///
/// Tests at-least-once only: exactly-once makes its marks durable, and thereby every commit before them.
async fn events_after_a_crash_that_lost_the_last_commits_are_published(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let topic = "lost-tail";
    let mut options = options_for_tests();
    options.settings.push(("synchronous_commit".to_owned(), "off".to_owned()));
    options.settings.push(("wal_buffers".to_owned(), "16MB".to_owned()));
    options.settings.push(("autovacuum".to_owned(), "off".to_owned()));
    let mut postgres = PrivatePostgres::start(PostgresOptions { durable: true, ..options }).await?;
    let outbox = Outbox::on(&postgres, topic).await?;
    outbox.create_topic(&kafka).await?;
    let _relay = relay(&outbox, &kafka, AT_LEAST_ONCE).start_ready(topic).await?;
    for entities in FEW_AND_MANY.into_iter().cycle().take(size(LOSSES, LOSSES_BY_DEFAULT) as usize) {
        outbox.write_backlog(BEFORE, entities).await?;
        outbox.until_settled().await;
        // A synchronous commit writes all WAL before it.
        outbox
            .execute(
                "set synchronous_commit = on; create table if not exists flush (n int); insert into flush values (1)",
            )
            .await?;
        let writer = "select pid from pg_stat_activity where backend_type = 'walwriter'";
        let writer = Pid::from_raw(i32::try_from(outbox.number(writer).await?)?);
        kill(writer, Signal::SIGSTOP)?;
        outbox.write_backlog(LOST, entities).await?;
        outbox.until_settled().await;
        let last_lost = last_id(&outbox).await?;
        postgres.stop_hard().await;
        postgres.start_again().await?;
        ensure!(last_id(&outbox).await? < last_lost, "the last commits were not lost");
        write_over_lost_ids(&outbox, last_lost, entities).await?;
        every_row_is_published_in_order(&outbox, &kafka).await?;
    }
    Ok(())
}

async fn a_dump_restored_into_another_cluster_is_published(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    after_a_restore("restore", AT_LEAST_ONCE, &kafka).await
}

async fn a_dump_restored_into_another_cluster_is_published_exactly_once(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    after_a_restore("restore-exactly-once", EXACTLY_ONCE, &kafka).await
}

/// Dumps an outbox with published and pending rows while no relay runs.
async fn after_a_restore(topic: &str, delivery: &str, kafka: &RealKafka) -> anyhow::Result<()> {
    let old = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::on(&old, topic).await?;
    outbox.create_topic(kafka).await?;
    publish_some_and_leave_some(&outbox, kafka, delivery).await?;
    let dump = dump(&old).await?;
    let new = restore(&old, &dump).await?;
    goes_on(&Outbox::found_on(&new, topic), kafka, delivery, 0).await
}

async fn a_dump_older_than_the_last_events_is_published(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    after_an_old_restore("old-restore", AT_LEAST_ONCE, &kafka).await
}

async fn a_dump_older_than_the_last_events_is_published_exactly_once(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    after_an_old_restore("old-restore-exactly-once", EXACTLY_ONCE, &kafka).await
}

/// Dumps an outbox under a relay, which then publishes more and is lost with its server. The application is back before the relay.
async fn after_an_old_restore(topic: &str, delivery: &str, kafka: &RealKafka) -> anyhow::Result<()> {
    let old = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::on(&old, topic).await?;
    outbox.create_topic(kafka).await?;
    let lost = relay(&outbox, kafka, delivery).start_ready("lost").await?;
    outbox.write_backlog(BEFORE, 1).await?;
    outbox.until_settled().await;
    let dump = dump(&old).await?;
    outbox.write_backlog(LOST, 1).await?;
    outbox.until_settled().await;
    let last_lost = last_id(&outbox).await?;
    lost.kill()?;
    let new = restore(&old, &dump).await?;
    let restored = Outbox::found_on(&new, topic);
    write_over_lost_ids(&restored, last_lost, 1).await?;
    goes_on(&restored, kafka, delivery, 0).await
}

/// Restores a dump beside its original, as for a staging system, and points its relay at the same cluster.
async fn a_copy_with_a_relay_of_its_own_does_not_stop_the_original(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let original = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::on(&original, "original").await?;
    outbox.create_topic(&kafka).await?;
    let relay_of_original = relay(&outbox, &kafka, EXACTLY_ONCE).start_ready("original").await?;
    outbox.write_backlog(BEFORE, ENTITIES).await?;
    outbox.until_settled().await;
    let dump = dump(&original).await?;
    let twin = restore(&original, &dump).await?;
    let copy = Outbox::found_on(&twin, "copy");
    copy.create_topic(&kafka).await?;
    let checked = relay(&copy, &kafka, EXACTLY_ONCE).argument("--json").output("check").await?.stdout;
    ensure!(checked.contains("lanes-reset"), "{checked}");
    let relay_of_copy = relay(&copy, &kafka, EXACTLY_ONCE).start_ready("copy").await?;
    relay_of_copy.wait_for("OR-5005").await;
    for outbox in [&copy, &outbox, &copy, &outbox] {
        outbox.write_backlog(AFTER, ENTITIES).await?;
        outbox.until_settled().await;
    }
    // The copy's rows name the original's worker as their owner, so each lane is fenced once.
    let lanes = relay_of_original.lines("OR-5003").len();
    ensure!(lanes <= 3 && relay_of_copy.lines("OR-5003").is_empty(), "the relays fence each other: {lanes}");
    ensure!(every_row_is_published_in_order(&outbox, &kafka).await? == 0);
    ensure!(relay_of_original.stop().await? == Some(0) && relay_of_copy.stop().await? == Some(0));
    Ok(())
}

async fn dump(postgres: &PrivatePostgres) -> anyhow::Result<PathBuf> {
    needs(postgres, &["pg_dump", "pg_restore"])?;
    let file = postgres.directory().join("dump");
    run(postgres, "pg_dump", &["-Fc", "-f", path(&file)?, "postgres"]).await?;
    Ok(file)
}

async fn restore(postgres: &PrivatePostgres, dump: &Path) -> anyhow::Result<PrivatePostgres> {
    let new = postgres.empty_twin().await?;
    run(&new, "pg_restore", &["--exit-on-error", "-d", "postgres", path(dump)?]).await?;
    Ok(new)
}

async fn an_outbox_moved_by_pg_upgrade_is_published(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    after_an_upgrade("upgrade", AT_LEAST_ONCE, &kafka).await
}

async fn an_outbox_moved_by_pg_upgrade_is_published_exactly_once(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    after_an_upgrade("upgrade-exactly-once", EXACTLY_ONCE, &kafka).await
}

/// Upgrades to the same major version. The new cluster has another system identifier, as after any upgrade.
async fn after_an_upgrade(topic: &str, delivery: &str, kafka: &RealKafka) -> anyhow::Result<()> {
    let mut old = PrivatePostgres::start(options_for_tests()).await?;
    needs(&old, &["pg_upgrade", "pg_dump", "pg_restore", "pg_resetwal"])?;
    let outbox = Outbox::on(&old, topic).await?;
    outbox.create_topic(kafka).await?;
    publish_some_and_leave_some(&outbox, kafka, delivery).await?;
    let mut new = old.empty_twin().await?;
    old.shut_down().await;
    new.shut_down().await;
    let (programs, from, to) = (path(old.programs())?, old.data_directory(), new.data_directory());
    let ports = [old.port().to_string(), new.port().to_string()];
    let arguments =
        ["-b", programs, "-B", programs, "-d", path(&from)?, "-D", path(&to)?, "-p", &ports[0], "-P", &ports[1]];
    run(&new, "pg_upgrade", &arguments).await?;
    new.start_again().await?;
    goes_on(&Outbox::found_on(&new, topic), kafka, delivery, 0).await
}

async fn publish_some_and_leave_some(outbox: &Outbox, kafka: &RealKafka, delivery: &str) -> anyhow::Result<()> {
    let relay = relay(outbox, kafka, delivery).start_ready("before").await?;
    outbox.write_backlog(BEFORE, ENTITIES).await?;
    outbox.until_settled().await;
    ensure!(relay.stop().await? == Some(0));
    outbox.write_backlog(BEFORE, ENTITIES).await
}

/// Starts a relay, and checks that it publishes the pending events and then new events.
async fn goes_on(outbox: &Outbox, kafka: &RealKafka, delivery: &str, duplicates_allowed: u64) -> anyhow::Result<()> {
    let relay = relay(outbox, kafka, delivery).start_ready("after").await?;
    outbox.write_backlog(AFTER, ENTITIES).await?;
    every_row_is_published_in_order(outbox, kafka).await?;
    outbox.write_backlog(AFTER, ENTITIES).await?;
    let duplicates = every_row_is_published_in_order(outbox, kafka).await?;
    ensure!(duplicates <= duplicates_allowed, "{duplicates} duplicates");
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

fn needs(postgres: &PrivatePostgres, programs: &[&str]) -> anyhow::Result<()> {
    match programs.iter().find(|program| !postgres.has_program(program)) {
        Some(program) => Err(Missing(format!("these Postgres binaries have no {program}")).into()),
        None => Ok(()),
    }
}

async fn run(postgres: &PrivatePostgres, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = postgres.client_program(program, arguments).await.context(program.to_owned())?;
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program}: {}\n{said}\n{error}", output.status);
    Ok(())
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
