//! Registers tests with libtest-mimic and runs them.
//!
//! A test is an async function in a [`trials!`] list. It runs on its own multi-threaded runtime. A function in no list is dead code: a
//! compiler warning, and an error in CI.
//!
//! A test whose server this machine cannot have (no Java, no network) is reported as ignored with the reason, and counted at the end. With
//! `OUTBOX_RELAY_REQUIRE_REAL=1` it fails.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::demo::PostgresError;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rand::Rng;
use tokio::runtime::{Builder, Runtime};

use super::database::TestDatabase;
use super::kafka::{RealKafka, Unavailable};
use super::relay;
use super::seed::{random_of, size};
use super::shared::{self, NoPostgres};

/// The number of tests that run at a time. They keep two servers and a relay each busy, so more of them only slow each other down.
const THREADS: usize = 3;

/// The reason, other than a missing server, why a test cannot run on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

static SKIPPED_FOR_KAFKA: AtomicUsize = AtomicUsize::new(0);
static SKIPPED_FOR_POSTGRES: AtomicUsize = AtomicUsize::new(0);
static SKIPPED_FOR_PROGRAMS: AtomicUsize = AtomicUsize::new(0);

/// What each test took, for a suite that gets too slow.
static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// The number of the slowest tests that a run names.
const SLOWEST: usize = 10;

/// The name of a program or a runtime that the test needs and this machine lacks.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Missing(pub String);

/// Lists the trials of a module by the servers that they need: `trials! { alone: a, b; with_postgres: c; with_kafka: d; with_both: e }`.
#[macro_export]
macro_rules! trials {
    ($($needs:ident: $($test:ident),+ $(,)?);+ $(;)?) => {
        vec![$($($crate::$needs(concat!(module_path!(), "::", stringify!($test)), $test)),+),+]
    };
}

/// Registers a test that needs no server or starts its own. The test is skipped if it returns an [`Unavailable`].
pub fn alone<F>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = anyhow::Result<()>>,
{
    trial(name, |runtime| runtime.block_on(test()))
}

/// Registers a test with a database of its own.
pub fn with_postgres<F>(name: &str, test: impl FnOnce(TestDatabase) -> F + Send + 'static) -> Trial
where
    F: Future<Output = anyhow::Result<()>>,
{
    trial(name, |runtime| in_database(runtime, test))
}

/// Registers a test with the shared Kafka. Its topics must have their own names.
pub fn with_kafka<F>(name: &str, test: impl FnOnce(Arc<RealKafka>) -> F + Send + 'static) -> Trial
where
    F: Future<Output = anyhow::Result<()>>,
{
    trial(name, |runtime| {
        let kafka = shared::kafka()?;
        runtime.block_on(test(kafka))
    })
}

/// Registers a test with a database of its own and the shared Kafka.
pub fn with_both<F>(name: &str, test: impl FnOnce(TestDatabase, Arc<RealKafka>) -> F + Send + 'static) -> Trial
where
    F: Future<Output = anyhow::Result<()>>,
{
    trial(name, |runtime| {
        let kafka = shared::kafka()?;
        in_database(runtime, |database| test(database, kafka))
    })
}

/// Excludes the trials from a plain run. `-- --include-ignored <trial>` runs them.
pub fn long(trials: Vec<Trial>) -> Vec<Trial> {
    trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect()
}

/// The environment variable that makes CI run a part of a suite: one trial of so many.
const SHARE: &str = "OUTBOX_RELAY_TEST_SHARE";

/// Keeps one of [`SHARE`] trials, which the seed draws, and excludes the others from a plain run. Keeps all where the variable is not set.
pub fn share(trials: Vec<Trial>) -> Vec<Trial> {
    share_of(&[""], trials)
}

/// Does what [`share`] does, with the trials whose names contain one of these texts.
///
/// # Panics
/// Panics if a text is in the name of no trial.
pub fn share_of(texts: &[&str], trials: Vec<Trial>) -> Vec<Trial> {
    for text in texts {
        assert!(trials.iter().any(|trial| trial.name().contains(text)), "there is no trial {text}");
    }
    let share = size(SHARE, 1).max(1);
    if share == 1 {
        return trials;
    }
    let is_named = |name: &str| texts.iter().any(|text| name.contains(text));
    let named = trials.iter().filter(|trial| is_named(trial.name())).count();
    eprintln!("{SHARE}={share}: the seed draws one of {share} of {named} trials");
    let is_drawn =
        |name: &str| random_of(&format!("share of {name}")).random_ratio(1, u32::try_from(share).unwrap_or(1));
    let is_kept = |name: &str| !is_named(name) || is_drawn(name);
    trials.into_iter().map(|trial| if is_kept(trial.name()) { trial } else { trial.with_ignored_flag(true) }).collect()
}

/// The trials to run, separated by spaces: those whose name contains one of these texts. The arguments of the suite take a single text.
const TRIALS: &str = "OUTBOX_RELAY_TEST_TRIALS";

/// Returns the trials to run.
///
/// # Panics
/// Panics if a text is in the name of no trial: a renamed trial must not leave a run unnoticed.
fn chosen(trials: Vec<Trial>) -> Vec<Trial> {
    let Ok(texts) = std::env::var(TRIALS) else { return trials };
    let texts: Vec<_> = texts.split_whitespace().collect();
    for text in &texts {
        assert!(trials.iter().any(|trial| trial.name().contains(text)), "{TRIALS}: there is no trial {text}");
    }
    trials.into_iter().filter(|trial| texts.iter().any(|text| trial.name().contains(text))).collect()
}

/// Runs the trials, stops the shared servers and prints the skipped tests.
pub fn run(mut arguments: Arguments, trials: Vec<Trial>) -> ExitCode {
    arguments.test_threads.get_or_insert(THREADS);
    let conclusion = libtest_mimic::run(&arguments, chosen(trials));
    shared::stop();
    name_the_slowest();
    for (server, skipped) in
        [("Postgres", &SKIPPED_FOR_POSTGRES), ("Kafka", &SKIPPED_FOR_KAFKA), ("program", &SKIPPED_FOR_PROGRAMS)]
    {
        match skipped.load(Ordering::Relaxed) {
            0 => {}
            skipped => eprintln!("skipped for want of a real {server}: {skipped}"),
        }
    }
    conclusion.exit_code()
}

fn name_the_slowest() {
    let mut times = TIMES.lock().expect("the times");
    times.sort_unstable_by(|one, two| two.cmp(one));
    let slowest: Vec<_> =
        times.iter().take(SLOWEST).map(|(took, name)| format!("{name} {} s", took.as_secs())).collect();
    eprintln!("slowest: {}", slowest.join(", "));
}

fn trial(name: &str, body: impl FnOnce(&Runtime) -> anyhow::Result<()> + Send + 'static) -> Trial {
    // Drop the binary's own name, which carries no information.
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    let shown = name.to_owned();
    Trial::ignorable_test(name, move || {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&runtime)));
        TIMES.lock().expect("the times").push((began.elapsed(), shown));
        let warnings = relay::end_of_test(!matches!(outcome, Ok(Ok(()))));
        // Tasks that a test has left running must not block the suite.
        runtime.shutdown_background();
        match outcome {
            Ok(Ok(())) => Ok(Completion::Completed),
            Ok(Err(error)) => skip_or_fail(&error, &warnings),
            Err(panic) => Err(format!("test panicked: {}{warnings}", message(panic.as_ref())).into()),
        }
    })
}

/// Runs a test in its database. The panic of a test is caught first, so the database is dropped in any case.
fn in_database<F>(runtime: &Runtime, test: impl FnOnce(TestDatabase) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let server = shared::postgres()?;
    let database = runtime.block_on(TestDatabase::create(server))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(test(database.clone()))));
    let dropped = runtime.block_on(database.drop());
    outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
    dropped
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

fn skip_or_fail(error: &anyhow::Error, warnings: &str) -> Result<Completion, Failed> {
    if let Some(Skip(why)) = error.downcast_ref() {
        return Ok(Completion::ignored_with(why.clone()));
    }
    let Some((server, counter)) = missing_server(error) else {
        // At once and without the log, for those who read the output of a run that goes on.
        eprintln!("{error:#}");
        return Err(format!("{error:#}{warnings}").into());
    };
    if std::env::var_os("OUTBOX_RELAY_REQUIRE_REAL").is_some_and(|value| value == "1") {
        return Err(format!("needs {server}: {error:#}").into());
    }
    counter.fetch_add(1, Ordering::Relaxed);
    Ok(Completion::ignored_with(format!("needs {server}: {error:#}")))
}

fn missing_server(error: &anyhow::Error) -> Option<(&'static str, &'static AtomicUsize)> {
    if error.is::<Unavailable>() {
        return Some(("Kafka", &SKIPPED_FOR_KAFKA));
    }
    if error.is::<Missing>() {
        return Some(("a program", &SKIPPED_FOR_PROGRAMS));
    }
    let no_binaries = matches!(error.downcast_ref(), Some(PostgresError::Binaries(_)));
    (no_binaries || error.is::<NoPostgres>()).then_some(("Postgres", &SKIPPED_FOR_POSTGRES))
}
