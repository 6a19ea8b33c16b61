//! Plays a round: many histories of one regime on one server, one topic and the same relays, then the verdict.

use std::fmt;
use std::future::pending;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::demo::PrivatePostgres;
use rand::Rng;
use rand::rngs::StdRng;
use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::bed::Bed;
use crate::script::{Action, History, Regime, Step, Turns, Write};
use crate::truth::{Standstill, Truth, Verdict, now};
use crate::{meddler, player};
use lab::kafka::RealKafka;
use lab::seed::{random_of, seed};
use lab::{Outbox, Relay, SOON, eventually};

/// The number of histories side by side, except on a quiet server.
const AT_A_TIME: usize = 8;

/// The number of rows of a claim in the narrow regime.
const NARROW: u32 = 10;

/// The number of scripts to show when a round fails.
const SHOWN: usize = 2;

/// One round.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    pub(crate) regime: Regime,
    /// The number of the first history.
    pub(crate) first: u64,
    /// The time in which histories begin.
    pub(crate) lasts: Duration,
}

/// The result of a round.
#[derive(Debug, Clone)]
pub(crate) struct Played {
    pub(crate) regime: Regime,
    /// True if relays deleted what they had published.
    pub(crate) deletes: bool,
    pub(crate) histories: Range<u64>,
    /// The number of commit stalls or kills.
    pub(crate) disturbances: u64,
    pub(crate) verdict: Verdict,
}

impl Round {
    /// Plays the round in a database of its own.
    pub(crate) async fn play(&self, postgres: &PrivatePostgres, kafka: &RealKafka) -> anyhow::Result<Played> {
        let name = format!("{}-{}", self.regime.name(), self.first);
        let relays = if self.regime == Regime::Killed { 2 } else { 1 };
        let tune = |relay: Relay| match self.regime {
            Regime::Narrow => relay.with("RELAY_BATCH_SIZE", NARROW),
            _ => relay,
        };
        let deletes = self.deletes();
        let mut bed = Bed::open_with(postgres, kafka, &name, relays, deletes, tune).await?;
        let (outbox, truth) = (bed.outbox.clone(), Arc::clone(&bed.truth));
        let (mut disturbances, mut standstills) = (0, Vec::new());
        let last = tokio::select! {
            last = self.histories(&outbox, &truth) => last?,
            failed = self.disturb(&mut bed, &mut disturbances, &mut standstills) => {
                return failed.map(|()| unreachable!("disturbances go on"));
            }
        };
        if self.regime == Regime::Stalled {
            resume_commits(&mut outbox.connect().await?).await?;
        }
        // A relay that was killed may keep its lanes for a moment, and with small claims the delay depends on the machine's speed. Only the
        // other regimes have a bound.
        let bounded = !matches!(self.regime, Regime::Killed | Regime::Narrow);
        let standstills = bounded.then_some(standstills);
        let verdict = bed.close(kafka, standstills).await?;
        Ok(Played { regime: self.regime, deletes, histories: self.first..last, disturbances, verdict })
    }

    /// Returns true for a half of all rounds, in which relays delete what they have published.
    fn deletes(&self) -> bool {
        random_of(&format!("{} {} settles", self.regime.name(), self.first)).random_bool(0.5)
    }

    /// Plays histories until the time is over; returns the number after the last one.
    async fn histories(&self, outbox: &Outbox, truth: &Arc<Truth>) -> anyhow::Result<u64> {
        let at_a_time = if self.regime == Regime::Quiet { 1 } else { AT_A_TIME };
        let (began, mut next, mut playing) = (Instant::now(), self.first, JoinSet::new());
        loop {
            while playing.len() < at_a_time && began.elapsed() < self.lasts {
                let history = History::draw(seed(), self.regime, next);
                next += 1;
                playing.spawn(play(history, outbox.clone(), Arc::clone(truth)));
            }
            match playing.join_next().await {
                Some(played) => played??,
                None => return Ok(next),
            }
        }
    }

    /// Stalls commits or kills relays until the future is dropped.
    async fn disturb(&self, bed: &mut Bed, count: &mut u64, standstills: &mut Vec<Standstill>) -> anyhow::Result<()> {
        let mut random = random_of(&format!("{} {}", self.regime.name(), self.first));
        match self.regime {
            Regime::Quiet | Regime::Busy | Regime::Narrow => pending().await,
            Regime::Stalled => stall_commits(bed, &mut random, count, standstills).await,
            Regime::Killed => loop {
                sleep(Duration::from_millis(random.random_range(300..3_000))).await;
                bed.replace_relay(random.random_range(0..2))?;
                *count += 1;
            },
        }
    }
}

/// Requires a missing standby for a while, again and again.
async fn stall_commits(
    bed: &Bed,
    random: &mut StdRng,
    count: &mut u64,
    standstills: &mut Vec<Standstill>,
) -> anyhow::Result<()> {
    let mut connection = bed.outbox.connect().await?;
    loop {
        sleep(Duration::from_millis(random.random_range(200..2_000))).await;
        let from = now();
        connection.execute("alter system set synchronous_standby_names = 'missing'").await?;
        connection.execute("select pg_reload_conf()").await?;
        sleep(Duration::from_millis(random.random_range(50..1_500))).await;
        resume_commits(&mut connection).await?;
        standstills.push(Standstill { from, to: now() });
        *count += 1;
    }
}

async fn resume_commits(connection: &mut PgConnection) -> anyhow::Result<()> {
    connection.execute("alter system reset synchronous_standby_names").await?;
    connection.execute("select pg_reload_conf()").await?;
    Ok(())
}

/// Plays one history to its end.
async fn play(history: History, outbox: Outbox, truth: Arc<Truth>) -> anyhow::Result<()> {
    let meddles = history.meddling.iter().any(|meddling| meddling.action != Action::Revive);
    if meddles {
        truth.touched(history.prefix());
    }
    create_entities(&history, &outbox).await?;
    let history = Arc::new(history);
    let mut sessions = JoinSet::new();
    for session in 0..history.sessions.len() {
        let (history, outbox, truth) = (Arc::clone(&history), outbox.clone(), Arc::clone(&truth));
        sessions.spawn(async move {
            let played = player::play(&history, session, &outbox, &truth).await;
            played.with_context(|| format!("session {session} of\n{history}"))
        });
    }
    if meddles {
        meddler::play(&history, &outbox, &truth).await?;
    }
    while let Some(session) = sessions.join_next().await {
        session??;
    }
    if has_poison(&history) {
        until_dead(&history, &outbox).await;
        meddler::revive(&history, &outbox).await?;
    }
    Ok(())
}

/// Creates the rows that writers lock before they write to an entity.
async fn create_entities(history: &History, outbox: &Outbox) -> anyhow::Result<()> {
    let locked = |turns: &Turns| matches!(turns, Turns::RowLock | Turns::CounterUpdate);
    let entities = 0..history.entities.len();
    let names: Vec<String> =
        entities.filter(|index| locked(&history.entities[*index])).map(|index| history.entity(index)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let mut connection = outbox.connect().await?;
    connection.execute("set synchronous_commit = 'local'").await?;
    let sql = "insert into history_entity (entity) select unnest($1::text[])";
    sqlx::query(sql).bind(names).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

fn has_poison(history: &History) -> bool {
    let transactions = history.sessions.iter().flat_map(|session| &session.transactions);
    transactions
        .flat_map(|transaction| &transaction.steps)
        .any(|step| matches!(step, Step::Write { how: Write::Poison, .. }))
}

async fn until_dead(history: &History, outbox: &Outbox) {
    let sql = format!(
        "select count(*) from event_outbox where status = 'PENDING' and event_type = 'Poison' \
         and starts_with(entity_id, '{}')",
        history.prefix()
    );
    eventually("the events that cannot be sent are DEAD", SOON * 2, || async {
        match outbox.number(&sql).await {
            Ok(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

impl Played {
    /// Fails unless the verdict is clean; the error shows scripts of histories that went wrong.
    pub(crate) fn ensure_clean(&self) -> anyhow::Result<()> {
        self.verdict.ensure_clean().with_context(|| self.scripts())
    }

    fn scripts(&self) -> String {
        let numbers = self.verdict.entities().into_iter().filter_map(|entity| {
            let (number, _) = entity.strip_prefix('h')?.split_once('-')?;
            number.parse().ok()
        });
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.dedup();
        let scripts = numbers.iter().take(SHOWN).map(|number| History::draw(seed(), self.regime, *number).to_string());
        format!("seed {}; histories {numbers:?} went wrong\n{}", seed(), scripts.collect::<String>())
    }
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { report, delays } = &self.verdict;
        write!(
            f,
            "{:<8} {} {:>6} histories from {:<9} {:>4} disturbances {:>7} committed {:>6} rolled back {:>4} inverted {:>3} missing \
             {:>3} unpublished {:>3} phantoms {:>6} duplicates; {:>7} delays, {:>4} above 1 s, {:>4} late, worst {:>6} ms",
            self.regime.name(),
            if self.deletes { "delete" } else { "mark  " },
            self.histories.end - self.histories.start,
            self.histories.start,
            self.disturbances,
            report.committed,
            report.rolled_back,
            report.inversions,
            report.missing,
            report.unpublished,
            report.phantoms,
            report.duplicates,
            delays.checked,
            delays.above_one_second,
            delays.late.len(),
            delays.worst.as_millis(),
        )
    }
}
