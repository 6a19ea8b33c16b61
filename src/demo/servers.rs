//! Where a demo happens: on private servers that come and go with it, or on the user's own, in a schema and a topic of its own that
//! are removed at the end.

mod wanted;

use std::collections::BTreeMap;

use rand::Rng;
use rdkafka::ClientConfig;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::task::block_in_place;

use super::mock_broker::{MockBroker, MockBrokerError};
use super::narrator::Narrator;
use super::postgres::{PostgresError, PostgresOptions, PrivatePostgres};
use super::relay_process::RelaySetup;
use super::topic::{self, TopicError};
use crate::config::{ConfigError, Needs, Settings, Sources};
use crate::store::names::quote;
use crate::store::schema::{self, MigrateOptions, SchemaError};
use crate::store::{Names, session};
use wanted::{BROKERS, DATABASE};
pub use wanted::{HalfGiven, Wanted};

/// Partitions of the demo's topic.
const PARTITIONS: i32 = 6;

/// The topic on the private broker: where events of `order` go by default.
const PRIVATE_TOPIC: &str = "order-events";

/// The demo's sessions in `pg_stat_activity`.
const SESSION: &str = "outbox-relay demo";

/// Why the servers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    /// No private Postgres.
    #[error("the demo's private Postgres does not run")]
    Postgres(#[source] Box<PostgresError>),
    /// No stand-in for Kafka.
    #[error("the demo's stand-in for Kafka does not run")]
    MockBroker(#[from] MockBrokerError),
    /// The user's settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The user's database cannot be reached.
    #[error("cannot connect to {target}")]
    Connect {
        /// The database, without user and password.
        target: String,
        /// What was met.
        #[source]
        source: sqlx::Error,
    },
    /// No outbox in it.
    #[error("the demo's outbox cannot be created")]
    Schema(#[from] SchemaError),
    /// No topic on the user's brokers.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

/// The servers of a demo, ready to use once [`Servers::prepare`] has returned.
#[derive(Debug)]
pub(super) struct Servers {
    settings: Settings,
    names: Names,
    topic: String,
    setup: RelaySetup,
    private: Option<Private>,
    /// On the user's servers, what may be there to be removed.
    schema_to_remove: bool,
    topic_to_remove: bool,
}

/// Dropping them ends them.
#[derive(Debug)]
struct Private {
    postgres: PrivatePostgres,
    _broker: MockBroker,
    url: String,
}

impl Servers {
    /// Starts private servers, or reads how to reach the user's own. Changes nothing there yet.
    pub(super) async fn open(
        wanted: &Wanted,
        env: BTreeMap<String, String>,
        narrator: Narrator,
    ) -> Result<Self, ServersError> {
        match wanted {
            Wanted::Private => Self::private(env, narrator).await,
            Wanted::Own => Self::own(env),
        }
    }

    async fn private(env: BTreeMap<String, String>, narrator: Narrator) -> Result<Self, ServersError> {
        narrator.say("starting a private Postgres (downloads one if this machine has none)");
        // Nothing of it outlives the demo, so nothing has to survive a crash of the machine.
        let options = PostgresOptions { durable: false, ..PostgresOptions::default() };
        let postgres =
            PrivatePostgres::start(options).await.map_err(|error| ServersError::Postgres(Box::new(error)))?;
        narrator.say(format_args!("Postgres {} runs on 127.0.0.1:{}", postgres.major(), postgres.port()));
        let broker = block_in_place(|| MockBroker::start(PRIVATE_TOPIC, PARTITIONS))?;
        narrator.say(format_args!(
            "a stand-in for Kafka (librdkafka's mock cluster) runs on {}",
            broker.bootstrap_servers()
        ));

        let url = postgres.url("postgres");
        let given = [("database_url", url.as_str()), ("kafka_bootstrap_servers", broker.bootstrap_servers())];
        let sources = Sources {
            overrides: given.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..Sources::default()
        };
        let settings = Settings::load(sources, Needs::DatabaseAndKafka)?;
        let hidden_variables = env.into_keys().filter(|name| is_setting(name)).collect();
        let setup = RelaySetup { settings: relay_settings(&given), hidden_variables };
        let names = names(&settings);
        let private = Some(Private { postgres, _broker: broker, url });
        Ok(Self {
            settings,
            names,
            topic: PRIVATE_TOPIC.to_owned(),
            setup,
            private,
            schema_to_remove: false,
            topic_to_remove: false,
        })
    }

    /// The user's settings for Postgres and Kafka hold, those of their relay do not.
    fn own(env: BTreeMap<String, String>) -> Result<Self, ServersError> {
        let random: u32 = rand::rng().random();
        let (schema, topic) = (format!("outbox_demo_{random:08x}"), format!("outbox-demo-{random:08x}"));
        let given = [("schema", schema.as_str()), ("topic", topic.as_str())];
        let (hidden, env): (BTreeMap<_, _>, BTreeMap<_, _>) = env.into_iter().partition(|(name, _)| is_relays(name));
        let overrides = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let settings = Settings::load(Sources { file: None, env, overrides }, Needs::DatabaseAndKafka)?;
        let setup = RelaySetup { settings: relay_settings(&given), hidden_variables: hidden.into_keys().collect() };
        let names = names(&settings);
        Ok(Self { settings, names, topic, setup, private: None, schema_to_remove: false, topic_to_remove: false })
    }

    /// Creates the outbox and the topic.
    pub(super) async fn prepare(&mut self, narrator: Narrator) -> Result<(), ServersError> {
        let mut connection = self.connect().await?;
        self.schema_to_remove = self.private.is_none();
        schema::migrate(&mut connection, &self.names, &MigrateOptions::default()).await?;
        narrator.say(format_args!("the outbox is migrated: {}", self.names.outbox()));
        if self.private.is_none() {
            // Before, because an interrupt may come between the cluster's doing and its answer.
            self.topic_to_remove = true;
            let created = topic::create(&self.kafka_client(), &self.topic, PARTITIONS).await;
            self.topic_to_remove = created.is_ok();
            created?;
            narrator.say(format_args!("the topic {} is created", self.topic));
        }
        Ok(())
    }

    /// Removes what [`Servers::prepare`] has created, as far as it got; says what it could not remove.
    pub(super) async fn clear_away(self, narrator: Narrator) {
        if self.schema_to_remove
            && let Err(error) = self.drop_schema().await
        {
            let schema = self.names.schema();
            narrator.say(format_args!("the schema {schema} could not be removed, drop it by hand: {error}"));
        }
        if self.topic_to_remove
            && let Err(error) = topic::delete(&self.kafka_client(), &self.topic).await
        {
            narrator.say(format_args!("the topic {} could not be removed, delete it by hand: {error}", self.topic));
        }
        if let Some(private) = self.private {
            private.postgres.stop().await;
        }
    }

    async fn drop_schema(&self) -> Result<(), sqlx::Error> {
        let database = &self.settings.database;
        let mut connection = session::connect(&database.connect_options(), SESSION, database.connect_timeout).await?;
        let statement = format!("drop schema if exists {} cascade", self.names.schema());
        connection.execute(AssertSqlSafe(statement)).await?;
        connection.close().await
    }

    async fn connect(&self) -> Result<PgConnection, ServersError> {
        let connected =
            session::connect(&self.connect_options(), SESSION, self.settings.database.connect_timeout).await;
        connected.map_err(|source| ServersError::Connect { target: self.settings.database.target(), source })
    }

    /// Connections of at most this number, which find the demo's tables without naming the schema.
    pub(super) fn pool(&self, connections: u32) -> PgPool {
        PgPoolOptions::new().max_connections(connections).connect_lazy_with(self.connect_options())
    }

    fn connect_options(&self) -> PgConnectOptions {
        let options = self.settings.database.connect_options().application_name(SESSION);
        options.options([("search_path", quote(self.names.schema_raw()))])
    }

    /// A consumer's and an administrator's settings.
    pub(super) fn kafka_client(&self) -> ClientConfig {
        let defaults = [
            ("client.id", "outbox-relay-demo"),
            // A consumer cannot be made without; nothing is ever committed to it.
            ("group.id", "outbox-relay-demo"),
            ("enable.auto.commit", "false"),
            ("fetch.wait.max.ms", "50"),
            ("reconnect.backoff.max.ms", "500"),
        ];
        match &self.settings.kafka {
            Some(kafka) => kafka.consumer_config(&defaults),
            None => ClientConfig::new(),
        }
    }

    /// How the relay is to run here.
    pub(super) fn relay_setup(&self) -> &RelaySetup {
        &self.setup
    }

    /// Where the events go.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// What a visitor of `--serve` needs, as environment variables. The user knows their own servers.
    pub(super) fn addresses(&self) -> Vec<(&'static str, String)> {
        let brokers = self.settings.kafka.as_ref().map(|kafka| kafka.brokers().to_owned()).unwrap_or_default();
        match &self.private {
            Some(private) => vec![(DATABASE, private.url.clone()), (BROKERS, brokers)],
            None => vec![("RELAY_SCHEMA", self.names.schema_raw().to_owned()), ("RELAY_TOPIC", self.topic.clone())],
        }
    }
}

fn names(settings: &Settings) -> Names {
    let outbox = &settings.outbox;
    Names::new(&outbox.schema, &outbox.table, &outbox.processed_table)
}

/// What every demo's relay is told besides.
fn relay_settings(given: &[(&str, &str)]) -> toml::Table {
    let always = [("name", "demo"), ("log_format", "text"), ("status_interval", "2s")];
    given.iter().copied().chain(always).map(|(name, value)| (name.to_owned(), value.into())).collect()
}

fn is_relays(name: &str) -> bool {
    name.starts_with("RELAY_")
}

fn is_setting(name: &str) -> bool {
    is_relays(name) || name.starts_with("KAFKA_") || name.starts_with(DATABASE)
}
