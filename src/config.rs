//! Configuration, read once into typed settings: defaults < TOML file < environment < flags.
//!
//! | file | what lives there |
//! |---|---|
//! | `setting` | the one table of settings |
//! | `sources`, `layer`, `file`, `noise` | where values come from, and which names are known |
//! | `resolved`, `value` | the layers on top of each other, read value by value |
//! | `database`, `outbox`, `kafka`, `relay`, `retention`, `admin`, `log` | the typed settings |
//! | `producer`, `property`, `sasl`, `brokers`, `pem`, `host` | what Kafka and TLS settings must hold |
//! | `bytes`, `duration` | sizes and lengths of time as people write them |
//! | `mistake` | what is wrong, all at once and without secrets |

mod admin;
mod brokers;
mod bytes;
mod database;
mod duration;
mod file;
mod host;
mod kafka;
mod layer;
mod log;
mod mistake;
mod noise;
mod outbox;
mod pem;
mod producer;
mod property;
mod relay;
mod resolved;
mod retention;
mod sasl;
mod setting;
mod sources;
#[cfg(test)]
mod tests;
mod value;

pub use admin::AdminSettings;
pub use database::DatabaseSettings;
pub use duration::{GivenDuration, NotADuration};
pub use kafka::{KafkaSettings, PropertyValue};
pub use log::{LogFormat, LogSettings};
pub use mistake::{ConfigError, Mistake};
pub use outbox::OutboxNames;
pub use relay::{Delivery, OnPoison, RelaySettings};
pub use retention::{Retention, RetentionSettings};
pub use setting::{Kind, SETTINGS, Setting};
pub use sources::Sources;

/// What a command talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Postgres alone: Kafka's settings may be missing, and their values are not looked at.
    DatabaseOnly,
    /// Postgres and Kafka.
    DatabaseAndKafka,
}

/// The settings of one outbox and its relay.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the database.
    pub database: DatabaseSettings,
    /// What the tables are called.
    pub outbox: OutboxNames,
    /// How to reach the brokers; `Some` exactly if loaded with [`Needs::DatabaseAndKafka`].
    pub kafka: Option<KafkaSettings>,
    /// How the relay works.
    pub relay: RelaySettings,
    /// Where it answers probes.
    pub admin: AdminSettings,
    /// What is logged.
    pub log: LogSettings,
    non_defaults: Vec<(&'static str, String)>,
}

impl Settings {
    /// Reads, layers and checks everything.
    ///
    /// # Errors
    /// Every mistake there is, at once.
    pub fn load(sources: Sources, needs: Needs) -> Result<Settings, ConfigError> {
        let mut from = sources.resolve(needs);
        let database = DatabaseSettings::read(&mut from);
        let outbox = OutboxNames::read(&mut from);
        let kafka = (needs == Needs::DatabaseAndKafka).then(|| KafkaSettings::read(&mut from));
        let relay = RelaySettings::read(&mut from, &sources);
        let admin = AdminSettings::read(&mut from);
        let log = LogSettings::read(&mut from);
        match (database, relay) {
            (Some(database), Some(relay)) if from.mistakes.is_empty() => {
                Ok(Settings { database, outbox, kafka, relay, admin, log, non_defaults: from.non_defaults })
            }
            _ => Err(ConfigError(from.mistakes)),
        }
    }

    /// Reads only what the tables are called: what is needed to print the migrations.
    ///
    /// # Errors
    /// Every mistake there is but what concerns a connection.
    pub fn load_names(sources: &Sources) -> Result<OutboxNames, ConfigError> {
        let mut from = sources.resolve(Needs::DatabaseOnly);
        let names = OutboxNames::read(&mut from);
        if from.mistakes.is_empty() { Ok(names) } else { Err(ConfigError(from.mistakes)) }
    }

    /// Reads only how to reach the brokers: what is needed where no database is.
    ///
    /// # Errors
    /// Every mistake there is but what concerns the database.
    pub fn load_kafka(sources: &Sources) -> Result<(KafkaSettings, LogSettings), ConfigError> {
        let mut from = sources.resolve(Needs::DatabaseAndKafka);
        let (kafka, log) = (KafkaSettings::read(&mut from), LogSettings::read(&mut from));
        if from.mistakes.is_empty() { Ok((kafka, log)) } else { Err(ConfigError(from.mistakes)) }
    }

    /// The settings that differ from their defaults, for the start line: name and value, `set` for a secret.
    pub fn non_defaults(&self) -> Vec<(&'static str, String)> {
        self.non_defaults.clone()
    }
}
