//! Provides the servers of a demo: private ones that end with it, or the user's own. On the user's servers the demo creates its own schemas
//! and topics, and removes them at the end.

mod outbox_location;
mod server_choice;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rdkafka::ClientConfig;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::task::block_in_place;

use super::consumer::SHORTEST_SESSION;
use super::mock_broker::{MockBroker, MockBrokerError};
use super::output::DemoOutput;
use super::postgres::{PostgresError, PostgresOptions, PrivatePostgres};
use super::topic::{self, TopicError};
use event_outbox::names::quote;
use event_outbox::schema::{self, MigrateOptions, SchemaError};
pub(super) use outbox_location::{DemoSchemas, OutboxLocation};
use server_choice::{BROKERS, DATABASE};
pub use server_choice::{HalfGiven, OwnServers, ServerChoice, names_own_servers};

/// The partitions of each topic.
pub(super) const PARTITIONS: i32 = 6;

/// The longest time to connect to the private Postgres.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The name of the demo's sessions in `pg_stat_activity`.
const SESSION: &str = "outbox-relay demo";

/// The reason why the servers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    /// The private Postgres does not run.
    #[error("the demo's private Postgres does not run")]
    Postgres(#[source] Box<PostgresError>),
    /// The mock of Kafka does not run.
    #[error("the demo's stand-in for Kafka does not run")]
    MockBroker(#[from] MockBrokerError),
    /// The user's database cannot be reached.
    #[error("cannot connect to {target}")]
    Connect {
        /// The database, without user and password.
        target: String,
        /// The error of the database.
        #[source]
        source: sqlx::Error,
    },
    /// The outbox cannot be created in the database.
    #[error("the demo's outbox cannot be created")]
    Schema(#[from] SchemaError),
    /// The topic cannot be created on the user's brokers.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

/// The servers of a demo, ready to use once [`Servers::prepare`] has returned.
#[derive(Debug)]
pub(super) struct Servers {
    reach: OwnServers,
    /// The outboxes, one per schema of the demo, in the same order.
    locations: Vec<OutboxLocation>,
    topics: Vec<String>,
    private: Option<Private>,
    /// The number of schemas and of topics to remove from the user's servers, counted from the first. They may exist already.
    schemas_to_remove: usize,
    topics_to_remove: usize,
}

/// The private servers. Dropping them stops them.
#[derive(Debug)]
struct Private {
    postgres: PrivatePostgres,
    _broker: MockBroker,
    url: String,
}

impl Servers {
    /// Starts private servers, or takes the connection settings of the user's own. Changes nothing on the user's servers.
    pub(super) async fn open(
        choice: &ServerChoice,
        env: BTreeMap<String, String>,
        demo_schemas: DemoSchemas,
        output: &DemoOutput,
    ) -> Result<Self, ServersError> {
        match choice {
            ServerChoice::Private => Self::private(env, demo_schemas, output).await,
            ServerChoice::Own(servers) => Ok(Self::own((**servers).clone(), env, demo_schemas)),
        }
    }

    async fn private(
        env: BTreeMap<String, String>,
        demo_schemas: DemoSchemas,
        output: &DemoOutput,
    ) -> Result<Self, ServersError> {
        output.say("starting a private Postgres (downloads one if this machine has none)");
        // No data outlives the demo, so none has to survive a crash of the machine.
        let options = PostgresOptions { durable: false, ..PostgresOptions::default() };
        let postgres =
            PrivatePostgres::start(options).await.map_err(|error| ServersError::Postgres(Box::new(error)))?;
        output.say(format_args!("Postgres {} runs on 127.0.0.1:{}", postgres.major(), postgres.port()));
        let broker = block_in_place(|| MockBroker::start(demo_schemas.topics, PARTITIONS))?;
        output.say(format_args!(
            "a stand-in for Kafka (librdkafka's mock cluster) runs on {}",
            broker.bootstrap_servers()
        ));

        let url = postgres.url("postgres");
        let brokers = broker.bootstrap_servers().to_owned();
        let given =
            [("database_url", url.as_str()), ("kafka_bootstrap_servers", &brokers), ("topic", demo_schemas.topic)];
        let mut kafka = ClientConfig::new();
        kafka.set("bootstrap.servers", &brokers);
        let database = url.parse().map_err(|source| ServersError::Connect { target: "postgres".to_owned(), source })?;
        let reach = OwnServers { database, connect_timeout: CONNECT_TIMEOUT, target: "postgres".to_owned(), kafka };
        let hidden: Vec<String> = env.into_keys().filter(|name| is_setting(name)).collect();
        let location = |schema: &&str| OutboxLocation::new(schema, "", &given, hidden.clone());
        let locations = demo_schemas.schemas.iter().map(location).collect();
        let topics = demo_schemas.topics.iter().map(|topic| (*topic).to_owned()).collect();
        let private = Some(Private { postgres, _broker: broker, url });
        Ok(Self { reach, locations, topics, private, schemas_to_remove: 0, topics_to_remove: 0 })
    }

    /// Uses the user's settings for Postgres and Kafka, but not those for a relay.
    fn own(reach: OwnServers, env: BTreeMap<String, String>, demo_schemas: DemoSchemas) -> Self {
        let random: u32 = rand::rng().random();
        let (schema_prefix, topic_prefix) =
            (format!("outbox_demo_{random:08x}_"), format!("outbox-demo-{random:08x}-"));
        let topic = format!("{topic_prefix}{}", demo_schemas.topic);
        let given = [("topic", topic.as_str())];
        let hidden: Vec<String> = env.into_keys().filter(|name| is_relay_variable(name)).collect();
        let location = |schema: &&str| OutboxLocation::new(schema, &schema_prefix, &given, hidden.clone());
        let locations = demo_schemas.schemas.iter().map(location).collect();
        let topics = demo_schemas.topics.iter().map(|topic| format!("{topic_prefix}{topic}")).collect();
        Self { reach, locations, topics, private: None, schemas_to_remove: 0, topics_to_remove: 0 }
    }

    /// Creates the outboxes and the topics.
    pub(super) async fn prepare(&mut self, output: &DemoOutput) -> Result<(), ServersError> {
        let mut connection = self.connect().await?;
        for (index, location) in self.locations.iter().enumerate() {
            if self.private.is_none() {
                self.schemas_to_remove = index + 1;
            }
            schema::migrate(&mut connection, &location.names, &MigrateOptions::default()).await?;
            output.say(format_args!("the outbox is migrated: {}", location.names.outbox()));
        }
        if self.private.is_some() {
            return Ok(());
        }
        for (index, topic) in self.topics.iter().enumerate() {
            // Counted first, because an interrupt may come between the creation and the cluster's answer.
            self.topics_to_remove = index + 1;
            let created = topic::create(&self.kafka_client(), topic, PARTITIONS).await;
            if created.is_err() {
                self.topics_to_remove = index;
            }
            created?;
            output.say(format_args!("the topic {topic} is created"));
        }
        Ok(())
    }

    /// Removes everything that [`Servers::prepare`] has created so far. Prints what could not be removed.
    pub(super) async fn clear_away(self, output: &DemoOutput) {
        if self.private.is_none() {
            output.say("removing what was made on your servers; the consumer groups' sessions have to run out");
            let groups: Vec<&str> = self.locations.iter().map(|location| location.names.schema_raw()).collect();
            if let Err(error) = topic::delete_groups(&self.kafka_client(), &groups, SHORTEST_SESSION).await {
                output.say(format_args!("not all of the groups {} could be removed: {error}", groups.join(", ")));
            }
        }
        for location in &self.locations[..self.schemas_to_remove] {
            if let Err(error) = self.drop_schema(location).await {
                let schema = location.names.schema();
                output.say(format_args!("the schema {schema} could not be removed, drop it by hand: {error}"));
            }
        }
        for topic in &self.topics[..self.topics_to_remove] {
            if let Err(error) = topic::delete(&self.kafka_client(), topic).await {
                output.say(format_args!("the topic {topic} could not be removed, delete it by hand: {error}"));
            }
        }
        if let Some(private) = self.private {
            private.postgres.stop().await;
        }
    }

    async fn drop_schema(&self, location: &OutboxLocation) -> Result<(), sqlx::Error> {
        let mut connection = self.connection().await?;
        let statement = format!("drop schema if exists {} cascade", location.names.schema());
        connection.execute(AssertSqlSafe(statement)).await?;
        connection.close().await
    }

    async fn connect(&self) -> Result<PgConnection, ServersError> {
        let connected = self.connection().await;
        connected.map_err(|source| ServersError::Connect { target: self.reach.target.clone(), source })
    }

    async fn connection(&self) -> Result<PgConnection, sqlx::Error> {
        let options = self.reach.database.clone().application_name(SESSION).disable_statement_logging();
        let connected = tokio::time::timeout(self.reach.connect_timeout, PgConnection::connect_with(&options)).await;
        connected.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
    }

    /// Creates a pool of at most `connections` connections, which find the tables of a location without naming the schema.
    pub(super) fn pool(&self, location: &OutboxLocation, connections: u32) -> PgPool {
        let options = self.reach.database.clone().application_name(SESSION);
        let options = options.options([("search_path", quote(location.names.schema_raw()))]);
        PgPoolOptions::new().max_connections(connections).connect_lazy_with(options)
    }

    /// Returns the settings for a consumer or an admin client.
    pub(super) fn kafka_client(&self) -> ClientConfig {
        let mut config = self.reach.kafka.clone();
        let defaults = [
            ("client.id", "outbox-relay-demo"),
            // A consumer needs a group, although it commits nothing to the group.
            ("group.id", "outbox-relay-demo"),
            ("enable.auto.commit", "false"),
            ("fetch.wait.max.ms", "50"),
            ("reconnect.backoff.max.ms", "500"),
        ];
        for (name, value) in defaults {
            if config.get(name).is_none() {
                config.set(name, value);
            }
        }
        config
    }

    /// Returns the outboxes, in the order of `DemoSchemas`.
    pub(super) fn locations(&self) -> &[OutboxLocation] {
        &self.locations
    }

    /// Returns the topics, in the order of `DemoSchemas`.
    pub(super) fn topics(&self) -> &[String] {
        &self.topics
    }

    /// Returns the settings of a consumer, among them `bootstrap.servers`.
    pub(super) fn kafka(&self) -> &ClientConfig {
        &self.reach.kafka
    }

    /// Returns true for private servers.
    pub(super) fn are_private(&self) -> bool {
        self.private.is_some()
    }

    /// Returns the environment variables that a visitor of `--serve` needs. On the user's own servers these are only schema and topic,
    /// because the user knows the addresses.
    pub(super) fn addresses(&self) -> Vec<(&'static str, String)> {
        let brokers = self.reach.kafka.get("bootstrap.servers").unwrap_or_default().to_owned();
        match &self.private {
            Some(private) => vec![(DATABASE, private.url.clone()), (BROKERS, brokers)],
            None => {
                let schema =
                    self.locations.first().map(|location| location.names.schema_raw().to_owned()).unwrap_or_default();
                vec![("RELAY_SCHEMA", schema), ("RELAY_TOPIC", self.topics.first().cloned().unwrap_or_default())]
            }
        }
    }
}

/// Returns the given settings and those of every demo's relay.
fn relay_settings(given: &[(&str, &str)]) -> toml::Table {
    let always = [("name", "demo"), ("log_format", "text"), ("status_interval", "2s")];
    given.iter().copied().chain(always).map(|(name, value)| (name.to_owned(), value.into())).collect()
}

/// Returns true for an environment variable with a setting of a relay alone. On a user's machine it is meant for another relay.
pub fn is_relay_variable(name: &str) -> bool {
    name.starts_with("RELAY_")
}

fn is_setting(name: &str) -> bool {
    is_relay_variable(name) || name.starts_with("KAFKA_") || name.starts_with(DATABASE)
}
