//! Plays a few histories of each regime, drawn from the run's seed. `just histories --minutes N` plays thousands.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use event_outbox::ledger::Finding;
use libtest_mimic::Trial;
use uuid::Uuid;

use crate::bed::server;
use crate::round::Round;
use crate::script::{History, Regime};
use crate::truth::{Outcome, Standstill, Truth, Written};
use lab::kafka::{RealKafka, Record};
use lab::murmur2::java_partition;
use lab::{PARTITIONS, trials};

/// The time in which histories of a trial begin.
const LASTS: Duration = Duration::from_secs(15);

/// The number of quiet servers side by side; each waits most of the time.
const QUIET_SERVERS: u64 = 3;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_kafka:
            histories_on_quiet_servers,
            histories_on_a_busy_server,
            histories_in_claims_of_a_few_rows,
            histories_on_a_server_whose_commits_stall,
            histories_with_two_relays_that_are_killed;
        alone:
            a_seed_draws_the_same_histories_again,
            a_history_that_goes_wrong_is_found_out;
    }
}

async fn histories_on_quiet_servers(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let mut servers = tokio::task::JoinSet::new();
    for server in 0..QUIET_SERVERS {
        let kafka = Arc::clone(&kafka);
        servers.spawn(async move { play(Regime::Quiet, server * 1_000, &kafka).await });
    }
    let played: Vec<anyhow::Result<()>> = servers.join_all().await;
    played.into_iter().collect()
}

async fn histories_on_a_busy_server(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    play(Regime::Busy, 0, &kafka).await
}

async fn histories_in_claims_of_a_few_rows(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    play(Regime::Narrow, 0, &kafka).await
}

async fn histories_on_a_server_whose_commits_stall(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    play(Regime::Stalled, 0, &kafka).await
}

async fn histories_with_two_relays_that_are_killed(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    play(Regime::Killed, 0, &kafka).await
}

async fn play(regime: Regime, first: u64, kafka: &RealKafka) -> anyhow::Result<()> {
    let postgres = server().await?;
    let played = Round { regime, first, lasts: LASTS }.play(&postgres, kafka).await?;
    eprintln!("{played}");
    postgres.stop().await;
    played.ensure_clean()
}

async fn a_seed_draws_the_same_histories_again() -> anyhow::Result<()> {
    for regime in Regime::ALL {
        let draw = |seed| (0..50).map(|number| History::draw(seed, regime, number)).collect::<Vec<_>>();
        ensure!(draw(7) == draw(7) && draw(7) != draw(8), "{regime:?}");
    }
    Ok(())
}

/// Checks the checker: it must find each fault once, and must find nothing in the same events in good order.
async fn a_history_that_goes_wrong_is_found_out() -> anyhow::Result<()> {
    let event = |n: u128, entity: &str| Written {
        event: Uuid::from_u128(n),
        entity: entity.to_owned(),
        n: n as i64,
        poison: false,
    };
    let truth = Truth::default();
    truth.ended((1..=3).map(|n| event(n, "a")).collect(), Outcome::Committed(1_000));
    truth.ended(vec![event(4, "b")], Outcome::RolledBack);
    truth.ended(vec![event(5, "deleted")], Outcome::Committed(1_000));
    truth.removed(&[Uuid::from_u128(5)]);
    let compare = |events: &[(u128, i64)], standstills: &[Standstill]| {
        let records: Vec<Record> = (0..).zip(events).map(|(offset, (event, at))| record(*event, offset, *at)).collect();
        truth.compare(&[], &records, Some(standstills))
    };
    ensure!(compare(&[(1, 1_001), (2, 1_002), (3, 1_900)], &[]).is_clean());
    ensure!(compare(&[(1, 1_001), (2, 1_002), (1, 1_003), (3, 1_004), (5, 1_005)], &[]).is_clean());
    let found = |events: &[(u128, i64)], finding: Finding| compare(events, &[]).report.count(finding) == 1;
    ensure!(found(&[(2, 1_001), (1, 1_002), (3, 1_003)], Finding::Inversions), "an inversion");
    ensure!(found(&[(1, 1_001), (3, 1_003)], Finding::Missing), "a missing event");
    ensure!(found(&[(1, 1_001), (2, 1_002), (3, 1_003), (4, 1_004)], Finding::Phantoms), "a rolled back event");
    let late = [(1, 1_001), (2, 1_002), (3, 4_500)];
    ensure!(compare(&late, &[]).delays.late.len() == 1, "a late event");
    // The standstills overlap in one second, which must count once.
    let stood = [Standstill { from: 900, to: 2_000 }, Standstill { from: 1_500, to: 2_000 }];
    ensure!(compare(&late, &stood).is_clean(), "a late event of a server that stood still");
    Ok(())
}

/// Returns a record of entity `a`, or of `b` for event 4.
fn record(event: u128, offset: i64, timestamp: i64) -> Record {
    let key = if event == 4 { "b" } else { "a" };
    Record {
        partition: java_partition(key.as_bytes(), PARTITIONS),
        offset,
        key: Some(key.as_bytes().to_vec()),
        value: None,
        headers: vec![("event-id".to_owned(), Some(Uuid::from_u128(event).to_string().into_bytes()))],
        timestamp: Some(timestamp),
    }
}
