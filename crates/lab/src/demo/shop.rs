//! Runs the demo of one outbox: a shop writes orders, a relay publishes their events and is killed in between, a consumer applies them. At
//! the end the tables are compared with the topic and with what the shop knows.
//!
//! - `clerks`: the application, whose connections write in parallel
//! - `billing`: the consumer
//! - `settled`: waits for the last event
//! - `observed`, `promises`: gather the records of all sides, compare them, and judge the numbers
//!
//! The first interrupt ends a `--serve` in order, with its reconciliation. Any other interrupt aborts the demo. In all cases, and on every
//! error, everything that was started is stopped and everything that was created is removed. After a SIGKILL the shells that watch the
//! processes do this.

mod billing;
mod clerks;
mod observed;
mod promises;
mod settled;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::HumanCount;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::directory::TemporaryDirectory;
use super::output::DemoOutput;
use super::patience::PATIENCE;
use super::picture::{Counters, RelayState};
use super::program::Program;
use super::reconciliation::Reconciliation;
use super::servers::{DemoSchemas, PARTITIONS, Servers};
use super::shown_log::ShownLog;
use super::stage::{DemoError, DemoOptions, Interrupts, on_stage, unless_interrupted};
use super::watch::Watch;
use billing::Billing;
use clerks::{Shop, Workload};
use event_outbox::consumer::Stats;
use observed::Observed;

/// One outbox, with the topic to which its events go by default.
const DEMO_SCHEMAS: DemoSchemas =
    DemoSchemas { schemas: &["public"], topic: "order-events", topics: &["order-events"] };

/// The work of a demo: enough to see that it works, and finished in five seconds on a small machine.
const ACT: Workload = Workload { orders: 1_200, per_second: 800.0 };

/// The number of committed events at which the relay is killed, and the number at which the next one starts. Events wait in between.
const KILL_AT: u64 = 1_800;
const START_AGAIN_AT: u64 = 2_200;

/// The work during a `--serve`: enough to watch, little enough to read.
const SERVING: Workload = Workload { orders: u64::MAX, per_second: 6.0 };

/// The interval in which the numbers of the picture move.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// The interval in which a `--serve` checks that its relay runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs the demo. `interrupts` gets a message per Ctrl-C. With `serving`, which gets the addresses to connect to, the demo runs until an
/// interrupt. Needs a multi-threaded runtime, because stopping processes blocks.
///
/// # Errors
/// [`DemoError`] if the demo could not be completed. A broken promise is no error; it is in the reconciliation.
pub async fn run(
    options: DemoOptions,
    mut interrupts: Interrupts,
    serving: Option<impl FnOnce(&[(&'static str, String)])>,
) -> Result<Reconciliation, DemoError> {
    // The addresses of a `--serve` are printed between the lines, which a picture would overwrite.
    let output = &if serving.is_some() { DemoOutput::lines() } else { DemoOutput::picture() };
    on_stage(&options, DEMO_SCHEMAS, &mut interrupts, output, async |servers, interrupts| {
        let mut play = unless_interrupted(interrupts, Play::begin(servers, &options, output)).await?;
        unless_interrupted(interrupts, play.act()).await?;
        if let Some(report) = serving {
            report(&servers.addresses());
            play.serve(interrupts.recv()).await?;
        }
        unless_interrupted(interrupts, play.settle()).await
    })
    .await
}

/// The running parts of a demo. Dropping them stops them. The order of the fields is the order of dropping: the process before its
/// directory.
struct Play {
    output: DemoOutput,
    /// The task that moves the numbers of the picture.
    _counting: JoinSet<()>,
    relay: Program,
    relay_log: ShownLog,
    directory: TemporaryDirectory,
    watch: Watch,
    billing: Billing,
    shop: Shop,
    pool: PgPool,
}

impl Play {
    async fn begin(servers: &Servers, options: &DemoOptions, output: &DemoOutput) -> Result<Self, DemoError> {
        let location = &servers.locations()[0];
        let mut directory = TemporaryDirectory::create(None).map_err(DemoError::Process)?;
        let relay = Program::new(options, location, &toml::Table::new(), &directory, "relay", &["run"]);
        let mut relay = relay.map_err(DemoError::Process)?;
        let relay_log = ShownLog::start(relay.log_file(), output.clone()).map_err(DemoError::Process)?;
        relay.start(&mut directory).map_err(DemoError::Process)?;
        if let Some(pid) = relay.pid() {
            output.say(format_args!("`outbox-relay run` is process {pid}; its log:"));
            output.relay(RelayState::Up(pid));
        }
        // One more connection, to look at the outbox while all others are busy.
        let pool = servers.pool(location, clerks::CLERKS + PARTITIONS.unsigned_abs() + 1);
        let records = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&records);
        let count_record = move |_: &_| {
            seen.fetch_add(1, Ordering::Relaxed);
        };
        let watch = Watch::start(&servers.kafka_client(), servers.topics(), count_record).await?;
        let billing = Billing::start(&pool, &location.names, servers.kafka(), &servers.topics()[0]).await?;
        let shop = Shop::open(pool.clone()).await?;
        let mut counting = JoinSet::new();
        counting.spawn(count(output.clone(), shop.committed(), pool.clone(), records, billing.stats()));
        Ok(Self {
            output: output.clone(),
            _counting: counting,
            relay,
            relay_log,
            directory,
            watch,
            billing,
            shop,
            pool,
        })
    }

    /// Places the orders, and kills the relay in between.
    async fn act(&mut self) -> Result<(), DemoError> {
        self.output.say(format_args!(
            "the shop takes {} orders over {} connections; one transaction in ten rolls back",
            HumanCount(ACT.orders),
            clerks::CLERKS
        ));
        let (_stop, never) = watch::channel(false);
        let mut orders = Orders::take(&self.shop, ACT, never);
        orders.until_committed(KILL_AT).await?;
        self.must_run()?;
        self.output.say(format_args!("{} events are committed: kill -9 for the relay", HumanCount(KILL_AT)));
        self.relay.kill();
        self.output.relay(RelayState::Killed);
        self.relay_log.catch_up();
        orders.until_committed(START_AGAIN_AT).await?;
        let waiting = HumanCount(settled::pending(&self.pool).await?);
        self.output.say(format_args!("the shop went on, {waiting} events wait: the relay starts again"));
        self.relay.start(&mut self.directory).map_err(DemoError::Process)?;
        if let Some(pid) = self.relay.pid() {
            self.output.relay(RelayState::Up(pid));
        }
        orders.until_done().await
    }

    /// Places a few orders per second until `end`.
    async fn serve(&mut self, end: impl Future) -> Result<(), DemoError> {
        self.output.say("serving until Ctrl-C; a few orders per second go on");
        let (stop, stopped) = watch::channel(false);
        let mut orders = Orders::take(&self.shop, SERVING, stopped);
        tokio::select! {
            biased;
            _ = end => {}
            done = orders.until_done() => return done,
            failed = self.until_one_fails() => return failed,
        }
        stop.send_replace(true);
        orders.until_done().await
    }

    /// Waits until everything is published and applied, stops relay and consumer, and compares.
    async fn settle(&mut self) -> Result<Reconciliation, DemoError> {
        self.output.say("the shop has closed; waiting for the last events");
        if !settled::published(&self.pool, &mut self.relay).await? {
            self.output.say(format_args!("nothing was published for {PATIENCE:?}: giving up"));
        }
        self.relay.stop();
        self.output.relay(RelayState::Stopped);
        self.relay_log.catch_up();
        let sightings = self.watch.finish().await?;
        if !settled::applied(&self.billing, sightings.len() as u64).await {
            self.output.say(format_args!("nothing was applied for {PATIENCE:?}: giving up"));
        }
        self.billing.stop().await?;
        self.output.say("everything has come to rest; comparing the tables with the topic");
        let repeated = self.billing.repeated();
        tokio::time::sleep(COUNT_EVERY).await;
        self.output.close();
        let observed = Observed::gather(&self.pool, self.shop.commit_log(), sightings, repeated).await?;
        Ok(Reconciliation { kills: 1, elapsed: self.output.elapsed(), ..observed.compare() })
    }

    fn must_run(&mut self) -> Result<(), DemoError> {
        if self.relay.has_ended() {
            return Err(DemoError::Ended { process: "the relay".to_owned(), log: self.relay.last_words() });
        }
        Ok(())
    }

    async fn until_one_fails(&mut self) -> Result<(), DemoError> {
        loop {
            self.must_run()?;
            tokio::select! {
                ended = self.billing.ended() => return Ok(ended?),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}

/// Moves the numbers of the picture. Never ends.
async fn count(
    output: DemoOutput,
    committed: watch::Receiver<u64>,
    pool: PgPool,
    records: Arc<AtomicU64>,
    stats: Arc<Stats>,
) {
    loop {
        // A number that cannot be read now is read at the next look.
        if let Ok(waiting) = settled::pending(&pool).await {
            output.count(Counters {
                committed: *committed.borrow(),
                waiting,
                records: records.load(Ordering::Relaxed),
                applied: stats.applied(),
                repeated: stats.repeated(),
                expected: ACT.orders * clerks::EVENT_TYPES.len() as u64,
            });
        }
        tokio::time::sleep(COUNT_EVERY).await;
    }
}

/// The shop's running work. Dropping it stops the work.
struct Orders {
    working: JoinHandle<Result<(), sqlx::Error>>,
    committed: watch::Receiver<u64>,
}

impl Orders {
    fn take(shop: &Shop, load: Workload, stop: watch::Receiver<bool>) -> Self {
        let (committed, shop) = (shop.committed(), shop.clone());
        Self { working: tokio::spawn(async move { shop.work(load, stop).await }), committed }
    }

    /// Waits for this number of committed events. Returns early if the work has ended, with its error if it failed.
    async fn until_committed(&mut self, events: u64) -> Result<(), DemoError> {
        tokio::select! {
            biased;
            ended = &mut self.working => Self::ended(ended),
            // The shop keeps the sender as long as it works.
            _ = self.committed.wait_for(|committed| *committed >= events) => Ok(()),
        }
    }

    async fn until_done(&mut self) -> Result<(), DemoError> {
        Self::ended((&mut self.working).await)
    }

    fn ended(ended: Result<Result<(), sqlx::Error>, tokio::task::JoinError>) -> Result<(), DemoError> {
        Ok(ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.working.abort();
    }
}
