//! Runs the command line. `histories --minutes N [--seed S]` plays rounds of all regimes side by side, each on its own server, until the
//! time is over. `histories --show NUMBER --regime quiet --seed S` prints the script of a history.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::bed::server;
use crate::round::{Played, Round};
use crate::script::{History, Regime};
use lab::kafka::RealKafka;
use lab::seed::{seed, use_seed};

/// The regimes that run side by side. A quiet server waits most of the time, so several of them run.
const SIDE_BY_SIDE: [&[Regime]; 4] = [
    &[Regime::Quiet],
    &[Regime::Quiet],
    &[Regime::Quiet],
    &[Regime::Busy, Regime::Narrow, Regime::Stalled, Regime::Killed],
];

/// The distance between the first history numbers of two regimes that run side by side.
const NUMBERS: u64 = 1_000_000;

/// The time in which histories of a round begin.
const ROUND: Duration = Duration::from_secs(40);

#[derive(Debug, Default)]
struct Options {
    minutes: Option<f64>,
    regime: Option<Regime>,
    show: Option<u64>,
}

/// Returns `None` when the arguments ask for something else.
pub(crate) fn run(arguments: &[String]) -> Option<ExitCode> {
    let [word, rest @ ..] = arguments else { return None };
    if word != "histories" || !rest.iter().any(|argument| argument == "--minutes" || argument == "--show") {
        return None;
    }
    let outcome = Options::parse(rest).and_then(|options| match (options.show, options.regime) {
        (Some(number), Some(regime)) => {
            println!("{}", History::draw(seed(), regime, number));
            Ok(true)
        }
        (Some(_), None) => anyhow::bail!("--show needs --regime"),
        (None, _) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(rounds(&options))
        }
    });
    Some(match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    })
}

impl Options {
    fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
            match argument.as_str() {
                "--minutes" => options.minutes = Some(value.parse().context("--minutes needs a number")?),
                "--seed" => use_seed(value.parse().context("--seed needs a number")?),
                "--show" => options.show = Some(value.parse().context("--show needs the number of a history")?),
                "--regime" => {
                    let regime = Regime::ALL.into_iter().find(|regime| regime.name() == value);
                    options.regime = Some(regime.context("--regime needs quiet, busy, narrow, stalled or killed")?);
                }
                other => anyhow::bail!("unknown argument {other}; known: --minutes, --seed, --regime, --show"),
            }
        }
        Ok(options)
    }
}

/// Plays rounds until the time is over; returns true if every round was clean.
async fn rounds(options: &Options) -> anyhow::Result<bool> {
    let lasts = Duration::from_secs_f64(options.minutes.context("--minutes is missing")? * 60.0);
    let (until, kafka) = (Instant::now() + lasts, tokio::task::spawn_blocking(|| RealKafka::start(&[])).await??);
    let kafka = Arc::new(kafka);
    let mut tasks = tokio::task::JoinSet::new();
    for (index, regimes) in (0..).zip(SIDE_BY_SIDE) {
        let regimes: Vec<Regime> =
            regimes.iter().copied().filter(|regime| options.regime.is_none_or(|only| only == *regime)).collect();
        if !regimes.is_empty() {
            tasks.spawn(rounds_of(regimes, index * NUMBERS, until, Arc::clone(&kafka)));
        }
    }
    let mut all = Vec::new();
    while let Some(played) = tasks.join_next().await {
        all.extend(played??);
    }
    println!("{}", sum(&all));
    Ok(all.iter().all(|played| played.verdict.is_clean()))
}

/// Plays rounds on one server, one after the other.
async fn rounds_of(
    regimes: Vec<Regime>,
    mut first: u64,
    until: Instant,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<Vec<Played>> {
    let postgres = server().await?;
    let mut all = Vec::new();
    for regime in regimes.iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        let lasts = ROUND.min(until - Instant::now());
        let played = Round { regime: *regime, first, lasts }.play(&postgres, &kafka).await?;
        println!("{played}");
        if let Err(error) = played.ensure_clean() {
            eprintln!("{error:?}");
        }
        first = played.histories.end;
        all.push(played);
    }
    postgres.stop().await;
    Ok(all)
}

fn sum(all: &[Played]) -> String {
    let total = |number: fn(&Played) -> u64| all.iter().map(number).sum::<u64>();
    format!(
        "seed {}: {} histories, {} committed, {} rolled back, {} inverted, {} missing, {} unpublished, {} phantoms, {} above 1 s, {} late",
        seed(),
        total(|played| played.histories.end - played.histories.start),
        total(|played| played.verdict.report.committed),
        total(|played| played.verdict.report.rolled_back),
        total(|played| played.verdict.report.inversions),
        total(|played| played.verdict.report.missing),
        total(|played| played.verdict.report.unpublished),
        total(|played| played.verdict.report.phantoms),
        total(|played| played.verdict.delays.above_one_second),
        total(|played| played.verdict.delays.late.len() as u64),
    )
}
