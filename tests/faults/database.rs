//! Tests faults of Postgres and of the network to Postgres.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::ensure;
use lab::demo::{PostgresOptions, PrivatePostgres};
use libtest_mimic::Trial;
use sqlx::{Connection, Executor};

use crate::fault::Fault;
use crate::proxy::{Catch, Spot};
use crate::relays::under;
use crate::stage::Stage;
use lab::kafka::RealKafka;
use lab::{Outbox, Relay, SOON, Skip, TestDatabase, eventually, options_for_tests, trials};

/// The size of the disk for `pg_wal` in the trial of a full disk: a few segments of 16 MB.
const WAL_DISK: &str = "size=80m,mode=0700";

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            sessions_terminated_at_random_moments,
            connections_to_postgres_that_are_reset,
            connections_to_postgres_into_a_black_hole,
            a_postgres_that_is_slow,
            commits_that_were_made_and_whose_answers_were_lost,
            a_table_that_another_session_locks,
            a_row_that_another_session_locks_is_not_overtaken,
            a_deadlock_in_which_the_relay_is_the_victim,
            a_snapshot_held_all_the_while;
        with_kafka:
            a_postgres_that_restarts,
            a_postgres_that_crashes,
            a_disk_that_is_full_of_wal;
    }
}

async fn sessions_terminated_at_random_moments(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::EndSessions, "end sessions", &database, &kafka).await
}

async fn connections_to_postgres_that_are_reset(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::CutPostgres, "cut postgres", &database, &kafka).await
}

async fn connections_to_postgres_into_a_black_hole(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    under(Fault::StillPostgres, "still postgres", &database, &kafka).await
}

async fn a_postgres_that_is_slow(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::SlowPostgres, "slow postgres", &database, &kafka).await
}

async fn a_table_that_another_session_locks(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    under(Fault::LockTable, "lock table", &database, &kafka).await
}

async fn a_row_that_another_session_locks_is_not_overtaken(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    under(Fault::LockRow, "lock row", &database, &kafka).await
}

/// The relay cannot know whether the marks were committed. The rows' status answers that at the next claim.
async fn commits_that_were_made_and_whose_answers_were_lost(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut stage = Stage::open("lose commit", &Outbox::from_database(&database), &kafka, 2).await?;
    for lost in 1..=3 {
        stage.moment().await;
        let proxy = &stage.relays[0].postgres;
        proxy.set_trap(Spot::Mark, Catch::LoseAnswer);
        proxy.until_sprung(lost).await;
    }
    // The marks were committed, so nothing is sent again.
    let report = stage.close(&kafka).await?;
    ensure!(report.duplicates == 0, "{report}");
    Ok(())
}

/// Another session waits for a row that the relay has claimed, and blocks the relay's marks. Postgres cancels the session that waited last.
async fn a_deadlock_in_which_the_relay_is_the_victim(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let one_worker = |relay: Relay| relay.with("RELAY_WORKERS", 1).with("RELAY_PUBLISH_TIMEOUT", "60s");
    let mut stage = Stage::open_with("deadlock", &Outbox::from_database(&database), &kafka, 1, one_worker).await?;
    stage.may_repeat(2);
    let mut batches = 1;
    while !deadlocked(&mut stage).await? {
        ensure!(batches < 20, "each of 20 batches had changed the table before its marks");
        batches += 1;
    }
    stage.until_moving().await?;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    eventually("Postgres has counted the deadlock", SOON, || async {
        match stage.outbox.number(deadlocks).await {
            Ok(1..) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    stage.close(&kafka).await.map(drop)
}

/// Holds the marks of the relay's next batch, and brings about the deadlock. Returns false where the batch has already changed the table,
/// because it has a hostile row, which becomes dead before the marks: the rival would wait for the table and no row.
async fn deadlocked(stage: &mut Stage) -> anyhow::Result<bool> {
    stage.moment().await;
    let proxy = &stage.relays[0].postgres;
    let before = proxy.sprung();
    proxy.set_trap(Spot::Mark, Catch::HoldRequest);
    proxy.until_sprung(before + 1).await;
    let mut other = stage.outbox.connect().await?;
    let mut rival = other.begin().await?;
    // The rival has already made its own deadlock check when the deadlock arises, so Postgres cancels the relay.
    rival.execute("set local deadlock_timeout = '1ms'; set local lock_timeout = '1s'").await?;
    if rival.execute("lock table event_outbox in share row exclusive mode").await.is_err() {
        proxy.release();
        return Ok(false);
    }
    rival.execute("set local lock_timeout = 0").await?;
    let waits = rival.execute("select from event_outbox where status = 'PENDING' for update");
    let outbox = stage.outbox.clone();
    let (waited, ()) = tokio::join!(waits, async {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                       and wait_event_type = 'Lock' and query like 'select from event_outbox%'";
        eventually("the other session waits for the relay's rows", SOON, || async {
            match outbox.number(waiting).await {
                Ok(1..) => Ok(()),
                other => Err(other),
            }
        })
        .await;
        proxy.release();
    });
    waited?;
    rival.rollback().await?;
    Ok(true)
}

async fn a_snapshot_held_all_the_while(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut stage = Stage::open("held snapshot", &Outbox::from_database(&database), &kafka, 2).await?;
    let mut other = stage.outbox.connect().await?;
    let mut snapshot = other.begin().await?;
    snapshot.execute("set transaction isolation level repeatable read").await?;
    let before: i64 = sqlx::query_scalar("select count(*) from event_outbox").fetch_one(&mut *snapshot).await?;
    for _ in 0..4 {
        stage.moment().await;
        stage.until_moving().await?;
    }
    Fault::Kill.strike(&mut stage, &kafka).await?;
    stage.moment().await;
    let after: i64 = sqlx::query_scalar("select count(*) from event_outbox").fetch_one(&mut *snapshot).await?;
    ensure!(before == after, "the snapshot was not held");
    stage.close(&kafka).await?;
    Ok(snapshot.rollback().await?)
}

/// Starts a server that keeps what it has committed.
pub(crate) async fn durable() -> anyhow::Result<PrivatePostgres> {
    Ok(PrivatePostgres::start(PostgresOptions { durable: true, ..options_for_tests() }).await?)
}

async fn a_postgres_that_restarts(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut postgres = durable().await?;
    let mut stage = Stage::open("restart", &Outbox::on(&postgres, "restart").await?, &kafka, 2).await?;
    for _ in 0..2 {
        stage.moment().await;
        stage.may_repeat(2);
        postgres.restart().await?;
        stage.until_moving().await?;
    }
    stage.close(&kafka).await.map(drop)
}

async fn a_postgres_that_crashes(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut postgres = durable().await?;
    let mut stage = Stage::open("crash", &Outbox::on(&postgres, "crash").await?, &kafka, 2).await?;
    for _ in 0..2 {
        stage.moment().await;
        may_repeat_lost_marks(&mut stage);
        postgres.stop_hard().await;
        postgres.start_again().await?;
        stage.discard_sightings();
        stage.until_moving().await?;
    }
    stage.close(&kafka).await.map(drop)
}

/// Allows repeats for lost marks. `synchronous_commit = off` loses the commits of up to three `wal_writer_delay` (200 ms), several batches
/// of each worker.
pub(crate) fn may_repeat_lost_marks(stage: &mut Stage) {
    stage.may_repeat(20);
}

/// `pg_wal` is on a separate disk, which other data fills.
async fn a_disk_that_is_full_of_wal(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let disk = Disk::mount()?;
    let mut postgres = durable().await?;
    postgres.shut_down().await;
    disk.take(&postgres.directory().join("data").join("pg_wal"))?;
    postgres.start_again().await?;
    let mut stage = Stage::open("full disk", &Outbox::on(&postgres, "full-disk").await?, &kafka, 2).await?;
    stage.moment().await;
    may_repeat_lost_marks(&mut stage);
    disk.fill()?;
    let outbox = stage.outbox.clone();
    eventually("Postgres has no room for its WAL", SOON, || async {
        // The next segment does not fit, so the server shuts itself down.
        match outbox
            .execute("select pg_logical_emit_message(false, 'fill', repeat('x', 1000000)), pg_switch_wal()")
            .await
        {
            Ok(_) => Err("it still writes"),
            Err(_) => Ok(()),
        }
    })
    .await;
    for relay in &stage.relays {
        let postgres_away = |line: &serde_json::Value| line["server"] == "postgres";
        relay.process()?.wait_for_line("outage_started", postgres_away).await;
    }
    disk.free()?;
    postgres.start_again().await?;
    stage.discard_sightings();
    stage.until_moving().await?;
    stage.moment().await;
    stage.close(&kafka).await?;
    // The server must stop before its disk is unmounted.
    postgres.stop().await;
    Ok(())
}

/// A small separate disk; removed on drop.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", WAL_DISK, "outbox-relay-wal"])
            .arg(directory.path())
            .output();
        match status {
            Ok(output) if output.status.success() => Ok(Self(directory)),
            Ok(output) => Err(Skip(String::from_utf8_lossy(&output.stderr).trim().to_owned()).into()),
            Err(error) => Err(Skip(format!("mount: {error}")).into()),
        }
    }

    /// Moves a directory to this disk and leaves a link in its place.
    fn take(&self, directory: &Path) -> anyhow::Result<()> {
        let here = self.0.path().join("pg_wal");
        let copied = Command::new("cp").arg("-a").arg(directory).arg(&here).status()?;
        ensure!(copied.success(), "cp: {copied}");
        let owner = Command::new("chown").arg("--reference").arg(directory).arg(self.0.path()).status()?;
        ensure!(owner.success(), "chown: {owner}");
        fs::remove_dir_all(directory)?;
        Ok(std::os::unix::fs::symlink(&here, directory)?)
    }

    fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = fs::File::create(self.0.path().join("ballast"))?;
        // The copy ends when the disk is full.
        let ended = std::io::copy(&mut std::io::repeat(0), &mut ballast);
        ensure!(ended.is_err());
        Ok(())
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.0.path().join("ballast"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Unmounts lazily, because a server that a failed test has left behind may still use the disk.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
