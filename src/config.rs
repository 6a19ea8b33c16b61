//! Reads the configuration once into typed settings: defaults < TOML file < environment < flags.
//!
//! | file | content |
//! |---|---|
//! | `setting` | the one table of settings |
//! | `sources`, `layer`, `file`, `noise` | where values come from, and which names are known |
//! | `resolved`, `value` | the layers on top of each other, read value by value |
//! | `database`, `outbox`, `kafka`, `relay`, `retention`, `admin`, `log` | the typed settings |
//! | `producer`, `property`, `sasl`, `brokers`, `pem`, `host` | the checks of Kafka and TLS settings |
//! | `exposure` | what a configuration exposes to others |
//! | `live`, `reload` | what may change while a relay runs |
//! | `bytes`, `duration` | sizes and durations as people write them |
//! | `effective` | the settings in force with their sources, for `config show` |
//! | `mistake` | all mistakes of a configuration at once, without secrets |

mod admin;
mod brokers;
mod bytes;
mod database;
mod duration;
mod effective;
mod exposure;
mod file;
mod host;
mod kafka;
mod layer;
mod live;
mod log;
mod log_level;
mod mistake;
mod noise;
mod outbox;
mod pem;
mod producer;
mod property;
mod relay;
mod reload;
mod resolved;
mod retention;
mod sasl;
mod setting;
mod sources;
#[cfg(test)]
mod tests;
mod topic_list;
mod value;

pub use admin::AdminSettings;
pub use database::{DatabaseSettings, Host, Pem, Roots, Server, SocketSettings, TargetSession, TlsMode, TlsSettings};
pub use duration::{GivenDuration, NotADuration};
pub use effective::Effective;
pub use exposure::Exposure;
pub use kafka::{KafkaSettings, PropertyValue};
pub use layer::Source;
pub use live::{Live, Tunable};
pub use log::{LogFormat, LogSettings};
pub use mistake::{ConfigError, Mistake};
pub use outbox::OutboxNames;
pub use relay::{Delivery, OnPoison, RelaySettings, Settle, Timestamp, Waking};
pub use reload::Adopted;
pub use retention::{Retention, RetentionSettings};
pub use setting::{Kind, SETTINGS, Setting};
pub use sources::Sources;
pub use topic_list::TopicList;

/// The servers that a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Postgres only: Kafka's settings may be missing, and their values are not checked.
    DatabaseOnly,
    /// Postgres and Kafka.
    DatabaseAndKafka,
}

/// The settings of one outbox and its relay.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The connection to the database.
    pub database: DatabaseSettings,
    /// The connection on which writers wake the relay; `None` if it only polls.
    pub wake_up: Option<DatabaseSettings>,
    /// The names of the schema and the tables.
    pub outbox: OutboxNames,
    /// The connection to the brokers; `Some` exactly if loaded with [`Needs::DatabaseAndKafka`].
    pub kafka: Option<KafkaSettings>,
    /// The behaviour of the relay.
    pub relay: RelaySettings,
    /// The admin address, for probes and metrics.
    pub admin: AdminSettings,
    /// The format and the level of the log.
    pub log: LogSettings,
    non_defaults: Vec<(&'static str, String)>,
    exposures: Vec<Exposure>,
}

impl Settings {
    /// Reads, layers and checks all settings.
    ///
    /// # Errors
    /// Returns every mistake, all at once.
    pub fn load(sources: Sources, needs: Needs) -> Result<Settings, ConfigError> {
        let mut from = sources.resolve(needs);
        let database = DatabaseSettings::read(&mut from, &sources);
        let wake_up = database.as_ref().and_then(|database| database.read_wake_up(&mut from, &sources));
        let outbox = OutboxNames::read(&mut from);
        let kafka = (needs == Needs::DatabaseAndKafka).then(|| KafkaSettings::read(&mut from, &sources));
        let relay = RelaySettings::read(&mut from, &sources);
        let admin = AdminSettings::read(&mut from);
        let log = LogSettings::read(&mut from);
        match (database, relay) {
            (Some(database), Some(relay)) if from.mistakes.is_empty() => {
                let exposures = exposure::find(&sources, &database, kafka.as_ref(), &from.secret_files);
                let non_defaults = from.non_defaults;
                Ok(Settings { database, wake_up, outbox, kafka, relay, admin, log, non_defaults, exposures })
            }
            _ => Err(ConfigError(from.mistakes)),
        }
    }

    /// Reads only the names of the tables, which is enough to print the migrations.
    ///
    /// # Errors
    /// Returns every mistake except those that concern a connection.
    pub fn load_names(sources: &Sources) -> Result<OutboxNames, ConfigError> {
        let mut from = sources.resolve(Needs::DatabaseOnly);
        let names = OutboxNames::read(&mut from);
        if from.mistakes.is_empty() { Ok(names) } else { Err(ConfigError(from.mistakes)) }
    }

    /// Reads only the settings of the brokers and the log, for commands that use no database.
    ///
    /// # Errors
    /// Returns every mistake except those that concern the database.
    pub fn load_kafka(sources: &Sources) -> Result<(KafkaSettings, LogSettings), ConfigError> {
        let mut from = sources.resolve(Needs::DatabaseAndKafka);
        let (kafka, log) = (KafkaSettings::read(&mut from, sources), LogSettings::read(&mut from));
        if from.mistakes.is_empty() { Ok((kafka, log)) } else { Err(ConfigError(from.mistakes)) }
    }

    /// Lists what the configuration exposes to others.
    pub fn exposures(&self) -> &[Exposure] {
        &self.exposures
    }

    /// Lists name and value of each setting that differs from its default, for the log line at the start. A secret is shown as `set`.
    pub fn non_defaults(&self) -> Vec<(&'static str, String)> {
        self.non_defaults.clone()
    }
}
