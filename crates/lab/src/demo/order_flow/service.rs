//! Names the four services, and runs a process that is one of them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rdkafka::ClientConfig;
use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::context::ServiceContext;
use super::{inventory, mail, order, payment};
use event_outbox::Names;
use event_outbox::consumer::{Consumer, ConsumerError};
use event_outbox::names::quote;
use event_outbox::notice::Notice;

/// The most handlers of one service that run at the same time. The service's partitions share them.
const CONNECTIONS: u32 = 6;

/// A service of the flow, with its own schema, outbox, inbox and consumer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Accepts orders and ends them.
    Order,
    /// Sets goods aside.
    Inventory,
    /// Takes the money.
    Payment,
    /// Sends mails to customers.
    Mail,
}

/// The error for a name that no service has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no service {0:?}")]
pub struct UnknownService(String);

impl Service {
    /// All services, in the order in which an order meets them.
    pub const ALL: [Self; 4] = [Self::Order, Self::Inventory, Self::Payment, Self::Mail];

    /// Returns the name of the service and of its schema.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Inventory => "inventory",
            Self::Payment => "payment",
            Self::Mail => "mail",
        }
    }

    /// Returns the SQL of the service's own tables, besides outbox and inbox.
    pub(super) const fn tables(self) -> &'static str {
        match self {
            Self::Order => order::TABLES,
            Self::Inventory => inventory::TABLES,
            Self::Payment => payment::TABLES,
            Self::Mail => mail::TABLES,
        }
    }

    fn consumer(self, context: &ServiceContext) -> Consumer {
        match self {
            Self::Order => order::consumer(context),
            Self::Inventory => inventory::consumer(context),
            Self::Payment => payment::consumer(context),
            Self::Mail => mail::consumer(context),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Service {
    type Err = UnknownService;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|service| service.name() == name).ok_or_else(|| UnknownService(name.to_owned()))
    }
}

/// The tables, the topics and the brokers of a service. Its relay is configured with the same.
pub struct ServiceLocation {
    /// The names of the tables.
    pub names: Names,
    /// The database.
    pub database: PgConnectOptions,
    /// A consumer's settings, among them `bootstrap.servers`.
    pub kafka: ClientConfig,
    /// The relay's topic template.
    pub topics: String,
}

/// Runs one service until `stop` is ready.
///
/// # Errors
/// The error of the consumer.
pub async fn serve(
    service: Service,
    location: ServiceLocation,
    session_timeout: Duration,
    stop: impl Future<Output = ()>,
) -> Result<(), ConsumerError> {
    let ServiceLocation { names, database, kafka, topics } = location;
    let options = database.options([("search_path", quote(names.schema_raw()))]);
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(options.application_name("service"));
    let context = ServiceContext { pool, names, kafka, topics, session_timeout };
    let consumer = service.consumer(&context);
    let stats = consumer.stats();
    let ended = consumer.run(stop).await;
    tracing::info!(
        notice = %Notice::Stopped,
        service = service.name(),
        applied = stats.applied(),
        repeated = stats.repeated(),
        "the service has stopped"
    );
    ended
}
