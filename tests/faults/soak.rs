//! Applies all faults at random, again and again, against its own servers: `just soak --minutes 10`. The suite runs a short soak. The load
//! changes as well, from one transaction a minute to the most that the servers accept.

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use event_outbox::ledger::Report;
use lab::demo::PrivatePostgres;
use libtest_mimic::Trial;
use rand::Rng;
use rand::seq::IndexedRandom;

use crate::database::{durable, may_repeat_lost_marks};
use crate::fault::Fault;
use crate::stage::Stage;
use lab::kafka::RealKafka;
use lab::load::Pace;
use lab::seed::{seed, use_seed};
use lab::{Outbox, trials};

/// The number of relays, without those that join.
const RELAYS: usize = 3;

/// The highest number of relays: at this number no relay joins.
const MOST_RELAYS: usize = 5;

/// One in this many faults is a fault of a server.
const SERVER_FAULT_IN: u32 = 15;

/// The pace of the load changes before one in this many faults.
const PACE_CHANGES_IN: u32 = 3;

/// The share of SIGKILLs among the faults, because the published figure counts kills.
const KILL_SHARE: f64 = 0.5;

/// The length of a soak.
#[derive(Debug, Clone, Copy)]
enum Length {
    Faults(u32),
    Time(Duration),
}

/// A fault of the servers themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerFault {
    RestartPostgres,
    CrashPostgres,
    RestartKafka,
    KillKafka,
    /// Makes commits wait for a standby that does not exist.
    StallCommits,
}

const SERVER_FAULTS: [ServerFault; 5] = [
    ServerFault::RestartPostgres,
    ServerFault::CrashPostgres,
    ServerFault::RestartKafka,
    ServerFault::KillKafka,
    ServerFault::StallCommits,
];

struct Servers {
    postgres: PrivatePostgres,
    kafka: RealKafka,
}

/// The published figure.
struct Figure {
    seed: u64,
    lasted: Duration,
    faults: u32,
    server_faults: u32,
    kills: u32,
    paces: u32,
    report: Report,
}

pub(crate) fn trials() -> Vec<Trial> {
    trials! { alone: a_small_soak_of_all_faults_at_random; }
}

async fn a_small_soak_of_all_faults_at_random() -> anyhow::Result<()> {
    let figure = soak(Length::Faults(12)).await?;
    eprintln!("{figure}");
    Ok(())
}

/// Runs `soak --minutes N [--seed S]`; returns `None` when the arguments ask for something else.
pub(crate) fn run(arguments: &[String]) -> Option<ExitCode> {
    let [word, rest @ ..] = arguments else { return None };
    if word != "soak" || !rest.iter().any(|argument| argument == "--minutes") {
        return None;
    }
    let outcome = minutes(rest).and_then(|minutes| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(soak(Length::Time(Duration::from_secs_f64(minutes * 60.0))))
    });
    Some(match outcome {
        Ok(figure) => {
            println!("{figure}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    })
}

/// Returns the minutes, and sets the seed.
fn minutes(arguments: &[String]) -> anyhow::Result<f64> {
    let mut minutes = None;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--minutes" => minutes = Some(value.parse().context("--minutes needs a number")?),
            "--seed" => use_seed(value.parse().context("--seed needs a number")?),
            other => anyhow::bail!("unknown argument {other}; known: --minutes, --seed"),
        }
    }
    minutes.context("--minutes is missing")
}

async fn soak(length: Length) -> anyhow::Result<Figure> {
    let began = Instant::now();
    let kafka = tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??;
    let mut servers = Servers { postgres: durable().await?, kafka };
    let outbox = Outbox::on(&servers.postgres, "soak").await?;
    let mut stage = Stage::open("soak", &outbox, &servers.kafka, RELAYS).await?;
    let (mut faults, mut server_faults, mut kills, mut paces) = (0, 0, 0, 0);
    loop {
        match length {
            Length::Faults(count) if faults + server_faults >= count => break,
            Length::Time(time) if began.elapsed() >= time => break,
            _ => {}
        }
        if stage.random.random_ratio(1, PACE_CHANGES_IN) {
            let pace = *Pace::ALL.choose(&mut stage.random).context("no pace")?;
            show(began, &pace);
            stage.set_pace(pace);
            paces += 1;
        }
        stage.moment().await;
        if stage.random.random_ratio(1, SERVER_FAULT_IN) {
            let fault = *SERVER_FAULTS.choose(&mut stage.random).context("no fault")?;
            show(began, &fault);
            fault.strike(&mut stage, &mut servers).await?;
            server_faults += 1;
        } else {
            let fault = any_fault(&mut stage)?;
            show(began, &fault);
            fault.strike(&mut stage, &servers.kafka).await?;
            faults += 1;
            kills += u32::from(fault == Fault::Kill);
        }
    }
    for relay in &stage.relays {
        relay.postgres.heal(false);
        relay.kafka.heal(false);
    }
    let lasted = began.elapsed();
    let report = stage.close(&servers.kafka).await?;
    Ok(Figure { seed: seed(), lasted, faults, server_faults, kills, paces, report })
}

fn any_fault(stage: &mut Stage) -> anyhow::Result<Fault> {
    if stage.random.random_bool(KILL_SHARE) {
        return Ok(Fault::Kill);
    }
    let fault = *Fault::ALL.choose(&mut stage.random).context("no fault")?;
    Ok(match fault {
        Fault::Join if stage.relays.len() >= MOST_RELAYS => Fault::Leave,
        Fault::Leave if stage.relays.len() <= RELAYS => Fault::Join,
        fault => fault,
    })
}

fn show(began: Instant, fault: &dyn fmt::Debug) {
    eprintln!("{:7.1} s  {fault:?}", began.elapsed().as_secs_f64());
}

impl ServerFault {
    async fn strike(self, stage: &mut Stage, servers: &mut Servers) -> anyhow::Result<()> {
        let relays = stage.relays.len() as u64;
        match self {
            Self::RestartPostgres => {
                stage.may_repeat(relays);
                servers.postgres.restart().await?;
            }
            Self::CrashPostgres => {
                may_repeat_lost_marks(stage);
                servers.postgres.stop_hard().await;
                servers.postgres.start_again().await?;
                stage.discard_sightings();
            }
            Self::RestartKafka => {
                stage.may_repeat(2 * relays);
                servers.kafka.stop();
                servers.kafka.start_again()?;
            }
            Self::KillKafka => {
                stage.may_repeat(2 * relays);
                servers.kafka.kill();
                stage.moment().await;
                servers.kafka.start_again()?;
            }
            Self::StallCommits => {
                let stall = Duration::from_millis(stage.random.random_range(50..3_000));
                stage.outbox.execute("alter system set synchronous_standby_names = 'missing'").await?;
                stage.outbox.number("select pg_reload_conf()::int").await?;
                tokio::time::sleep(stall).await;
                stage.outbox.execute("alter system reset synchronous_standby_names").await?;
                stage.outbox.number("select pg_reload_conf()::int").await?;
            }
        }
        stage.until_moving().await
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { committed, published, dead, missing, inversions, duplicates, phantoms, regressed, .. } =
            &self.report;
        writeln!(f, "seed             {:>10}", self.seed)?;
        writeln!(f, "minutes          {:>10.1}", self.lasted.as_secs_f64() / 60.0)?;
        writeln!(f, "SIGKILLs         {:>10}", self.kills)?;
        writeln!(f, "other faults     {:>10}", self.faults - self.kills + self.server_faults)?;
        writeln!(f, "changes of pace  {:>10}", self.paces)?;
        writeln!(f, "committed        {committed:>10}")?;
        writeln!(f, "published        {published:>10}")?;
        writeln!(f, "dead (poison)    {dead:>10}")?;
        writeln!(f, "lost             {missing:>10}")?;
        writeln!(f, "inversions       {inversions:>10}")?;
        writeln!(f, "phantoms         {phantoms:>10}")?;
        writeln!(f, "regressed        {regressed:>10}")?;
        write!(f, "duplicates       {duplicates:>10}")
    }
}
