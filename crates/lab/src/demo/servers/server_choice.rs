//! Chooses the servers of the demo by two environment variables, which must be set together or not at all.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use sqlx::postgres::PgConnectOptions;

pub(super) const DATABASE: &str = "DATABASE_URL";
pub(super) const BROKERS: &str = "KAFKA_BOOTSTRAP_SERVERS";

/// The choice of the servers that the demo runs on.
#[derive(Debug, Clone)]
pub enum ServerChoice {
    /// Private servers.
    Private,
    /// The user's own servers.
    Own(Box<OwnServers>),
}

/// The connection settings of the user's servers.
#[derive(Clone)]
pub struct OwnServers {
    /// The connection options of the database.
    pub database: PgConnectOptions,
    /// The longest time to connect to the database.
    pub connect_timeout: Duration,
    /// The database without user and password, for messages.
    pub target: String,
    /// The settings of a consumer, among them `bootstrap.servers`.
    pub kafka: ClientConfig,
}

/// Shows no password.
impl fmt::Debug for OwnServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnServers").field("target", &self.target).finish_non_exhaustive()
    }
}

/// The error for an environment that names one of the two servers but not the other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given} is set and {missing} is not: the demo runs either on both of your servers or on private ones")]
pub struct HalfGiven {
    /// The variable that is set.
    pub given: &'static str,
    /// The variable that is not.
    pub missing: &'static str,
}

/// Returns true if the environment names the user's own servers: `DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS`.
///
/// # Errors
/// [`HalfGiven`] if it names one server but not the other.
pub fn names_own_servers(env: &BTreeMap<String, String>) -> Result<bool, HalfGiven> {
    let given = |name: &str| env.contains_key(name) || env.contains_key(&format!("{name}_FILE"));
    match (given(DATABASE), given(BROKERS)) {
        (false, false) => Ok(false),
        (true, true) => Ok(true),
        (true, false) => Err(HalfGiven { given: DATABASE, missing: BROKERS }),
        (false, true) => Err(HalfGiven { given: BROKERS, missing: DATABASE }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(names: &[&str]) -> Result<bool, HalfGiven> {
        let env = names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        names_own_servers(&env)
    }

    #[test]
    fn the_users_servers_are_taken_when_both_are_named() {
        assert_eq!(choice(&[]), Ok(false));
        assert_eq!(choice(&["RELAY_SCHEMA", "KAFKA_LINGER_MS"]), Ok(false));
        assert_eq!(choice(&["DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"]), Ok(true));
        assert_eq!(choice(&["DATABASE_URL_FILE", "KAFKA_BOOTSTRAP_SERVERS"]), Ok(true));
    }

    #[test]
    fn one_server_alone_is_refused_and_the_other_is_named() {
        let missing = |names: &[&str]| choice(names).map_err(|error| error.missing);
        assert_eq!(missing(&["DATABASE_URL"]), Err("KAFKA_BOOTSTRAP_SERVERS"));
        assert_eq!(missing(&["KAFKA_BOOTSTRAP_SERVERS"]), Err("DATABASE_URL"));
    }
}
