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
//! - `watch`, `timeline`: read the topics and show the orders' progress
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
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::error::KafkaError;
use sqlx::Executor;
use tokio::sync::mpsc;

use super::output::DemoOutput;
use super::servers::{DemoSchemas, ServerChoice, Servers, ServersError};
use super::topic;
use customers::Customers;
use event_outbox::outbox::Outbox;
pub use processes::FlowProcess;
use processes::Processes;
pub use processes::SUBCOMMAND as SERVICE;
pub use reconciliation::OrderReconciliation;
pub use service::{Service, UnknownService};
pub use service::{ServiceLocation, serve};
use snapshot::{Databases, Snapshot};
use timeline::Timeline;
use watch::Watch;

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

/// The longest time without any change, in addition to the deadline of an order.
const PATIENCE: Duration = Duration::from_secs(15);

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The options of an order flow.
#[derive(Debug, Clone)]
pub struct OrderFlowOptions {
    /// The servers to run on.
    pub servers: ServerChoice,
    /// The process's environment.
    pub env: BTreeMap<String, String>,
    /// The binary that runs the services and relays.
    pub program: PathBuf,
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
    /// The deadline is longer than the session of the killed service ([`processes::SESSION`]), so its orders are late but not cancelled.
    pub fn short(servers: ServerChoice, env: BTreeMap<String, String>, program: PathBuf) -> Self {
        let kills = vec![FlowProcess::Handlers(Service::Payment)];
        Self { servers, env, program, orders: 24, deadline: Duration::from_secs(10), kills }
    }
}

/// The reason why there is no reconciliation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrderFlowError {
    /// The user interrupted the demo.
    #[error("the demo was interrupted; what it had started is stopped and removed")]
    Interrupted,
    /// The servers cannot be used.
    #[error(transparent)]
    Servers(#[from] ServersError),
    /// A process could not be started.
    #[error("a process of the flow cannot be started")]
    Process(#[source] io::Error),
    /// A process did not become ready.
    #[error("{process} did not become ready; its log ends with:\n{log}")]
    NotReady {
        /// The process.
        process: FlowProcess,
        /// The end of its log.
        log: String,
    },
    /// A process ended although nobody had killed it.
    #[error("{process} has ended by itself; its log ends with:\n{log}")]
    Ended {
        /// The process.
        process: FlowProcess,
        /// The end of its log.
        log: String,
    },
    /// An order could not be placed.
    #[error("an order cannot be placed")]
    Place(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The topics cannot be read.
    #[error("the topics of the flow cannot be read")]
    Watch(#[source] KafkaError),
    /// The services' tables cannot be created or read.
    #[error("the tables of the flow cannot be created or read")]
    Tables(#[from] sqlx::Error),
}

/// Runs the flow. `interrupts` gets a message per Ctrl-C. Needs a multi-threaded runtime, because stopping processes blocks.
///
/// # Errors
/// [`OrderFlowError`] if the flow could not be completed. Tables that do not agree are no error; they are in the reconciliation.
pub async fn run(
    options: OrderFlowOptions,
    mut interrupts: mpsc::Receiver<()>,
) -> Result<OrderReconciliation, OrderFlowError> {
    let output = DemoOutput::new();
    let opening = Servers::open(&options.servers, options.env.clone(), DEMO_SCHEMAS, output);
    let mut servers = tokio::select! {
        biased;
        Some(()) = interrupts.recv() => return Err(OrderFlowError::Interrupted),
        opened = opening => opened?,
    };
    let outcome = tokio::select! {
        biased;
        Some(()) = interrupts.recv() => Err(OrderFlowError::Interrupted),
        played = play(&mut servers, &options, output) => played,
    };
    if !servers.are_private() {
        output.say("removing what was made on your servers; the groups' sessions have to run out");
        let groups: Vec<&str> = servers.locations().iter().map(|location| location.names.schema_raw()).collect();
        if let Err(error) = topic::delete_groups(&servers.kafka_client(), &groups, processes::SESSION).await {
            output.say(format_args!("not all of the groups {} could be removed: {error}", groups.join(", ")));
        }
    }
    servers.clear_away(output).await;
    outcome
}

async fn play(
    servers: &mut Servers,
    options: &OrderFlowOptions,
    output: DemoOutput,
) -> Result<OrderReconciliation, OrderFlowError> {
    servers.prepare(output).await?;
    let mut play = Play::begin(servers, options, output).await?;
    play.act(options).await?;
    let mut reconciliation = play.settle(options).await?;
    reconciliation.kills = options.kills.len() as u64;
    reconciliation.elapsed = output.elapsed();
    Ok(reconciliation)
}

/// The running parts of the flow. Dropping them stops them.
struct Play {
    timeline: Timeline,
    processes: Processes,
    databases: Databases,
    customers: Customers,
    _watch: Watch,
}

impl Play {
    async fn begin(servers: &Servers, options: &OrderFlowOptions, output: DemoOutput) -> Result<Self, OrderFlowError> {
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
        let (watch, mut sightings) = Watch::start(&servers.kafka_client(), servers.topics())?;
        let timeline = Timeline::new(output);
        let shown = timeline.clone();
        // The task ends with the watch, which holds the sender.
        tokio::spawn(async move {
            while let Some(sighting) = sightings.recv().await {
                shown.see(&sighting);
            }
        });
        output.say(
            "starting four services and a relay for each of their outboxes; their consumer groups take three seconds",
        );
        let mut processes = Processes::start(servers, options).map_err(OrderFlowError::Process)?;
        processes.until_ready().await?;
        Ok(Self { timeline, processes, databases, customers, _watch: watch })
    }

    /// Places the orders, and kills processes in between.
    async fn act(&mut self, options: &OrderFlowOptions) -> Result<(), OrderFlowError> {
        self.timeline.say(format_args!("{} orders, by two releases of the checkout at the same time", options.orders));
        let mut away: Vec<(usize, FlowProcess)> = Vec::new();
        for placed in 1..=options.orders {
            self.customers.order(placed).await.map_err(OrderFlowError::Place)?;
            tokio::time::sleep(BETWEEN_ORDERS).await;
            self.processes.must_run()?;
            for (_, back) in away.extract_if(.., |(until, _)| *until <= placed) {
                self.timeline.say(format_args!("{back} starts again"));
                self.processes.start_again(back).map_err(OrderFlowError::Process)?;
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
            self.processes.start_again(back).map_err(OrderFlowError::Process)?;
        }
        Ok(())
    }

    /// Waits until the tables agree, stops everything, and compares again, because nothing may change after that.
    async fn settle(&mut self, options: &OrderFlowOptions) -> Result<OrderReconciliation, OrderFlowError> {
        self.timeline.say("all orders are placed; waiting until the tables agree");
        let (until, kept) = self.until_kept(None, options.deadline + PATIENCE).await?;
        if !kept.is_kept() {
            self.timeline.say("nothing moves any more: giving up");
        }
        self.processes.must_run()?;
        let last_words = self.processes.stop();
        let (_, reconciliation) = self.until_kept(Some(until), LOOK_EVERY * 20).await?;
        self.timeline.close();
        for (process, words) in last_words.iter().filter(|(process, _)| matches!(process, FlowProcess::Handlers(_))) {
            let counts = words.split_once("applied=").map_or("", |(_, counts)| counts);
            self.timeline.say(format_args!("{process} has stopped: since it started, applied={counts}"));
        }
        Ok(reconciliation)
    }

    /// Returns the reconciliation, and the time up to which events are due, once all promises are kept or nothing has changed for this
    /// long.
    async fn until_kept(
        &self,
        until: Option<DateTime<Utc>>,
        patience: Duration,
    ) -> Result<(DateTime<Utc>, OrderReconciliation), OrderFlowError> {
        let (mut last, mut since) = (String::new(), Instant::now());
        loop {
            let now = match until {
                Some(until) => until,
                None => self.databases.now().await?,
            };
            let snapshot = self.snapshot(now).await?;
            let reconciliation = OrderReconciliation::from_snapshot(&snapshot);
            if reconciliation.is_kept() || since.elapsed() > patience {
                return Ok((now, reconciliation));
            }
            let progress = reconciliation.to_json().to_string();
            if progress != last {
                (last, since) = (progress, Instant::now());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn snapshot(&self, until: DateTime<Utc>) -> Result<Snapshot, sqlx::Error> {
        let snapshot = self.databases.read(until).await?;
        let (seen, dead_letters) = (self.timeline.seen(), self.timeline.dead_letters());
        Ok(Snapshot { placed: self.customers.placed().to_vec(), seen, dead_letters, ..snapshot })
    }
}
