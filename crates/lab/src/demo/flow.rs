//! Runs a demo: starts servers, relay, consumer and shop, kills the relay, waits for the last event and compares.
//!
//! The first interrupt ends a `--serve` in order, with its reconciliation. Any other interrupt aborts the demo. In all cases, and on every
//! error, everything that was started is stopped and everything that was created is removed. After a SIGKILL the shells that watch the
//! processes do this.

mod settled;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use indicatif::HumanCount;
use sqlx::PgPool;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::consumer::{self, Consumer, ConsumerError};
use super::observed::Observed;
use super::output::DemoOutput;
use super::reconciliation::Reconciliation;
use super::relay_process::RelayProcess;
use super::servers::{DemoSchemas, ServerChoice, Servers, ServersError};
use super::shop::{self, Shop, Workload};

/// One outbox, with the topic to which events of `order` go by default.
const DEMO_SCHEMAS: DemoSchemas =
    DemoSchemas { schemas: &["public"], topic: "order-events", topics: &["order-events"] };

/// The work of a demo: enough to see that it works, and finished in five seconds on a small machine.
const ACT: Workload = Workload { orders: 1_200, per_second: 800.0 };

/// The number of committed events at which the relay is killed, and the number at which the next one starts. Events wait in between.
const KILL_AT: u64 = 1_800;
const START_AGAIN_AT: u64 = 2_200;

/// The work during a `--serve`: enough to watch, little enough to read.
const SERVING: Workload = Workload { orders: u64::MAX, per_second: 6.0 };

/// The interval in which a `--serve` checks that its relay and its consumer run.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The options of a demo.
#[derive(Debug)]
pub struct DemoOptions {
    /// The servers to run on.
    pub servers: ServerChoice,
    /// The process's environment.
    pub env: BTreeMap<String, String>,
    /// True to keep running until interrupted.
    pub serve: bool,
}

/// The reason why there is no reconciliation.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The user interrupted the demo.
    #[error("the demo was interrupted; what it had started is stopped and removed")]
    Interrupted,
    /// The servers cannot be used.
    #[error(transparent)]
    Servers(#[from] ServersError),
    /// The relay could not be started.
    #[error("the relay's process cannot be started")]
    Relay(#[source] io::Error),
    /// The relay ended by itself.
    #[error("the relay ended by itself; its log is above")]
    RelayEnded,
    /// The shop's database reported an error.
    #[error("the shop cannot write its orders")]
    Shop(#[source] sqlx::Error),
    /// The consumer failed.
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
    /// The tables cannot be read at the end.
    #[error("the outbox cannot be read")]
    Tables(#[source] sqlx::Error),
}

/// Runs a demo. `interrupts` gets a message per Ctrl-C. `serving` is called with the addresses to connect to once a `--serve` is up. Needs
/// a multi-threaded runtime, because stopping processes blocks.
///
/// # Errors
/// [`DemoError`] if the demo could not be completed. A broken promise is no error; it is in the reconciliation.
pub async fn run(
    options: DemoOptions,
    mut interrupts: mpsc::Receiver<()>,
    serving: impl FnOnce(&[(&'static str, String)]),
) -> Result<Reconciliation, DemoError> {
    let output = DemoOutput::new();
    let opening = Servers::open(&options.servers, options.env, DEMO_SCHEMAS, output);
    let mut servers = unless_interrupted(&mut interrupts, async { Ok(opening.await?) }).await?;
    let outcome = play(&mut servers, options.serve.then_some(serving), &mut interrupts, output).await;
    servers.clear_away(output).await;
    outcome
}

async fn play(
    servers: &mut Servers,
    serving: Option<impl FnOnce(&[(&'static str, String)])>,
    interrupts: &mut mpsc::Receiver<()>,
    output: DemoOutput,
) -> Result<Reconciliation, DemoError> {
    let preparing = servers.prepare(output);
    unless_interrupted(interrupts, async { Ok(preparing.await?) }).await?;
    let mut play = unless_interrupted(interrupts, Play::begin(servers, output)).await?;
    unless_interrupted(interrupts, play.act()).await?;
    if let Some(report) = serving {
        report(&servers.addresses());
        play.serve(interrupts.recv()).await?;
    }
    unless_interrupted(interrupts, play.settle()).await
}

async fn unless_interrupted<T>(
    interrupts: &mut mpsc::Receiver<()>,
    work: impl Future<Output = Result<T, DemoError>>,
) -> Result<T, DemoError> {
    tokio::select! {
        biased;
        Some(()) = interrupts.recv() => Err(DemoError::Interrupted),
        done = work => done,
    }
}

/// The running parts of a demo. Dropping them stops them.
struct Play<'a> {
    topic: &'a str,
    output: DemoOutput,
    relay: RelayProcess,
    relay_kills: u32,
    consumer: Consumer,
    shop: Shop,
    pool: PgPool,
}

impl<'a> Play<'a> {
    async fn begin(servers: &'a Servers, output: DemoOutput) -> Result<Self, DemoError> {
        let (location, topic) = servers.first();
        let relay = RelayProcess::start(&location.setup, output).map_err(DemoError::Relay)?;
        if let Some(pid) = relay.pid() {
            output.say(format_args!("`outbox-relay run` is process {pid}; its log:"));
        }
        // One more connection, to look at the outbox while all others are busy.
        let pool = servers.pool(location, shop::CLERKS + consumer::APPLIERS as u32 + 1);
        let consumer = Consumer::start(&servers.kafka_client(), topic, &pool).await?;
        let shop = Shop::open(pool.clone()).await.map_err(DemoError::Shop)?;
        Ok(Self { topic, output, relay, relay_kills: 0, consumer, shop, pool })
    }

    /// Places the orders, and kills the relay in between.
    async fn act(&mut self) -> Result<(), DemoError> {
        self.output.say(format_args!(
            "the shop takes {} orders over {} connections; one transaction in ten rolls back",
            HumanCount(ACT.orders),
            shop::CLERKS
        ));
        let (_stop, never) = watch::channel(false);
        let mut orders = Orders::take(&self.shop, ACT, never);
        orders.until_committed(KILL_AT).await?;
        self.must_run()?;
        self.output.say(format_args!("{} events are committed: kill -9 for the relay", HumanCount(KILL_AT)));
        self.relay.kill();
        self.relay_kills += 1;
        orders.until_committed(START_AGAIN_AT).await?;
        let waiting = settled::pending(&self.pool).await.map_err(DemoError::Tables)?;
        self.output.say(format_args!("the shop went on, {} events wait: the relay starts again", HumanCount(waiting)));
        self.relay.start_again().map_err(DemoError::Relay)?;
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
            failed = self.until_one_fails() => return Err(failed),
        }
        stop.send_replace(true);
        orders.until_done().await
    }

    /// Waits until everything is published and applied, stops relay and consumer, and compares.
    async fn settle(&mut self) -> Result<Reconciliation, DemoError> {
        self.output.say("the shop has closed; waiting for the last events");
        if !settled::published(&self.pool, &mut self.relay).await.map_err(DemoError::Tables)? {
            self.output.say(format_args!("nothing was published for {:?}: giving up", settled::PATIENCE));
        }
        self.relay.stop();
        let handled = self.consumer.handled();
        let consumed = match settled::while_growing(&handled, self.consumer.finish()).await {
            Some(consumed) => consumed?,
            None => {
                self.output.say(format_args!("nothing was applied for {:?}: giving up", settled::PATIENCE));
                consumer::Consumed::default()
            }
        };
        self.output.say("everything has come to rest; comparing the tables with the topic\n");
        let observed =
            Observed::gather(&self.pool, self.shop.commit_log(), consumed).await.map_err(DemoError::Tables)?;
        let reconciliation = observed.compare(self.topic);
        Ok(Reconciliation { relay_kills: self.relay_kills, elapsed: self.output.elapsed(), ..reconciliation })
    }

    fn must_run(&mut self) -> Result<(), DemoError> {
        if self.relay.is_running() { Ok(()) } else { Err(DemoError::RelayEnded) }
    }

    async fn until_one_fails(&mut self) -> DemoError {
        loop {
            if let Err(ended) = self.must_run() {
                return ended;
            }
            if self.consumer.has_ended()
                && let Err(error) = self.consumer.finish().await
            {
                return error.into();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
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
        ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map_err(DemoError::Shop)
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.working.abort();
    }
}
