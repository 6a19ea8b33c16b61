//! Runs orders through four services that know each other only by their events: order, inventory, payment, mail. Each has its own schema,
//! outbox, inbox and consumer group, and no service coordinates the others. docs/explanation/sagas.md explains the flow.
//!
//! ```text
//! customer ─> order ──OrderPlaced──> inventory ──StockReserved──> payment ──PaymentTaken──> order ──OrderConfirmed──> mail
//!               │                        │ StockRefused              │ PaymentRefused
//!               └─OrderOverdue, when due─┴────────────> order <──────┘
//!                                                         └──OrderCancelled──> inventory: StockReleased
//!                                                                              payment: PaymentRefunded, where it was taken
//!                                                                              mail
//! ```
//!
//! - [`order`], [`inventory`], [`payment`], [`mail`]: the services, as an example to copy
//! - `service`: their common parts, and the process that runs one of them
//! - `processes`: services and relays, killed and started again
//! - `customers`: places the orders
//! - `timeline`: shows the orders' progress
//! - `snapshot`, `reconciliation`: read the final state and check that it agrees

mod context;
mod customers;
mod inventory;
mod mail;
mod order;
mod payment;
mod processes;
mod reconciliation;
mod service;
mod snapshot;
mod timeline;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Executor;

use super::output::DemoOutput;
use super::patience::{PATIENCE, Patience};
use super::reconciliation::Reconciliation;
use super::servers::{DemoSchemas, Servers};
use super::stage::{DemoError, DemoOptions, Interrupts, on_stage, unless_interrupted};
use super::watch::Watch;
use customers::Customers;
use event_outbox::outbox::Outbox;
pub use processes::FlowProcess;
use processes::Processes;
pub use processes::SUBCOMMAND as SERVICE;
use reconciliation::reconcile;
pub use service::{Service, UnknownService};
pub use service::{ServiceLocation, serve};
use snapshot::{Databases, Snapshot};
use timeline::Timeline;

/// The schemas in the order of [`Service::ALL`], and the topics of their events.
const DEMO_SCHEMAS: DemoSchemas = DemoSchemas {
    schemas: &["order", "inventory", "payment", "mail"],
    topic: "{entity_type}-events",
    topics: &["order-events", "stock-events", "payment-events", "mail-events", "dead-letter-events"],
};

/// The entity type in the name of the topic of dead letters.
const DEAD_LETTERS: &str = "dead-letter";

/// The pause between two orders: slow enough to be watched.
const BETWEEN_ORDERS: Duration = Duration::from_millis(120);

/// The number of orders that are placed while a killed process is down.
const AWAY_FOR: usize = 5;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The options of an order flow.
#[derive(Debug, Clone)]
pub struct OrderFlowOptions {
    /// The options of every demo.
    pub demo: DemoOptions,
    /// The number of orders to place.
    pub orders: usize,
    /// The time after which an unfinished order is cancelled.
    pub deadline: Duration,
    /// The processes to kill, spread over all orders. Each is started again some orders later.
    pub kills: Vec<FlowProcess>,
}

impl OrderFlowOptions {
    /// Returns options for a short flow, finished in half a minute: two dozen orders, with the payment service killed among them.
    ///
    /// The deadline is longer than the session of the killed service, so its orders are late but not cancelled.
    pub fn short(demo: DemoOptions) -> Self {
        let kills = vec![FlowProcess::Handlers(Service::Payment)];
        Self { demo, orders: 24, deadline: Duration::from_secs(10), kills }
    }
}

/// Runs the flow. `interrupts` gets a message per Ctrl-C. Needs a multi-threaded runtime, because stopping processes blocks.
///
/// # Errors
/// [`DemoError`] if the flow could not be completed. Tables that do not agree are no error; they are in the reconciliation.
pub async fn run(options: OrderFlowOptions, mut interrupts: Interrupts) -> Result<Reconciliation, DemoError> {
    let output = &DemoOutput::lines();
    on_stage(&options.demo, DEMO_SCHEMAS, &mut interrupts, output, async |servers, interrupts| {
        unless_interrupted(interrupts, play(servers, &options, output)).await
    })
    .await
}

async fn play(servers: &Servers, options: &OrderFlowOptions, output: &DemoOutput) -> Result<Reconciliation, DemoError> {
    let mut play = Play::begin(servers, options, output).await?;
    play.act(options).await?;
    let reconciliation = play.settle(options).await?;
    Ok(Reconciliation { kills: options.kills.len() as u64, elapsed: output.elapsed(), ..reconciliation })
}

/// The running parts of the flow. Dropping them stops them.
struct Play {
    timeline: Timeline,
    processes: Processes,
    databases: Databases,
    customers: Customers,
    watch: Watch,
    dead_letters: String,
}

impl Play {
    async fn begin(servers: &Servers, options: &OrderFlowOptions, output: &DemoOutput) -> Result<Self, DemoError> {
        let pools = Service::ALL
            .into_iter()
            .zip(servers.locations())
            .map(|(service, location)| (service, servers.pool(location, 2)));
        let databases = Databases(pools.collect());
        for service in Service::ALL {
            databases.pool(service).execute(service.tables()).await?;
        }
        let outbox = Outbox::new(&servers.locations()[0].names);
        let customers = Customers::open(&databases, outbox, options.deadline).await?;
        let dead_letters = servers.topics().last().cloned().unwrap_or_default();
        let timeline = Timeline::new(output.clone());
        let (shown, not_shown) = (timeline.clone(), dead_letters.clone());
        let kafka = servers.kafka_client();
        let watch = Watch::start(&kafka, servers.topics(), move |sighting| {
            if sighting.topic != not_shown {
                shown.see(sighting);
            }
        });
        let watch = watch.await?;
        output.say(
            "starting four services and a relay for each of their outboxes; their consumer groups take three seconds",
        );
        let mut processes = Processes::start(servers, options).map_err(DemoError::Process)?;
        processes.until_ready().await?;
        Ok(Self { timeline, processes, databases, customers, watch, dead_letters })
    }

    /// Places the orders, and kills processes in between.
    async fn act(&mut self, options: &OrderFlowOptions) -> Result<(), DemoError> {
        self.timeline.say(format_args!("{} orders, by two releases of the checkout at the same time", options.orders));
        let mut away: Vec<(usize, FlowProcess)> = Vec::new();
        for placed in 1..=options.orders {
            self.customers.order(placed).await.map_err(DemoError::Place)?;
            tokio::time::sleep(BETWEEN_ORDERS).await;
            self.processes.must_run()?;
            for (_, back) in away.extract_if(.., |(until, _)| *until <= placed) {
                self.timeline.say(format_args!("{back} starts again"));
                self.processes.start_again(back).map_err(DemoError::Process)?;
            }
            // The kills are spread over all orders, none at the start or the end.
            let due = |index: usize| (index + 1) * options.orders / (options.kills.len() + 1);
            for (index, process) in options.kills.iter().enumerate().filter(|(index, _)| due(*index) == placed) {
                let Some(pid) = self.processes.kill(*process) else { continue };
                let number = index + 1;
                self.timeline.say(format_args!("kill -9 for {process} (process {pid}, kill {number})"));
                away.push((placed + AWAY_FOR, *process));
            }
        }
        for (_, back) in away {
            self.timeline.say(format_args!("{back} starts again"));
            self.processes.start_again(back).map_err(DemoError::Process)?;
        }
        Ok(())
    }

    /// Waits until the tables agree, stops everything, and compares again, because nothing may change after that.
    async fn settle(&mut self, options: &OrderFlowOptions) -> Result<Reconciliation, DemoError> {
        self.timeline.say("all orders are placed; waiting until the tables agree");
        let until = self.until_kept(options.deadline + PATIENCE).await?;
        self.processes.must_run()?;
        let last_words = self.processes.stop();
        self.watch.finish().await?;
        let reconciliation = reconcile(&self.snapshot(until).await?);
        self.timeline.close();
        for (process, words) in last_words.iter().filter(|(process, _)| matches!(process, FlowProcess::Handlers(_))) {
            let counts = words.split_once("applied=").map_or("", |(_, counts)| counts);
            self.timeline.say(format_args!("{process} has stopped: since it started, applied={counts}"));
        }
        Ok(reconciliation)
    }

    /// Waits until all promises are kept, or nothing has changed for this long. Returns the time up to which events were due then.
    async fn until_kept(&self, patience: Duration) -> Result<DateTime<Utc>, DemoError> {
        let mut patience = Patience::new(patience);
        loop {
            let now = self.databases.now().await?;
            let reconciliation = reconcile(&self.snapshot(now).await?);
            if reconciliation.is_kept() {
                return Ok(now);
            }
            if patience.is_over(reconciliation.promises) {
                self.timeline.say("nothing moves any more: giving up");
                return Ok(now);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn snapshot(&self, until: DateTime<Utc>) -> Result<Snapshot, sqlx::Error> {
        let snapshot = self.databases.read(until).await?;
        let (dead, sightings): (Vec<_>, Vec<_>) =
            self.watch.sightings().into_iter().partition(|sighting| sighting.topic == self.dead_letters);
        let dead_letters = dead.len() as u64;
        Ok(Snapshot { placed: self.customers.placed().to_vec(), sightings, dead_letters, ..snapshot })
    }
}
