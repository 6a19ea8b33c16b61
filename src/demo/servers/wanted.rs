//! Whose servers the demo runs on: two variables tell, together or not at all.

use std::collections::BTreeMap;

pub(super) const DATABASE: &str = "DATABASE_URL";
pub(super) const BROKERS: &str = "KAFKA_BOOTSTRAP_SERVERS";

/// Which servers the environment asks for.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Private ones.
    Private,
    /// Those of `DATABASE_URL` and `KAFKA_BOOTSTRAP_SERVERS`.
    Own,
}

/// One of the two servers is named in the environment, and the other is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given} is set and {missing} is not: the demo runs either on both of your servers or on private ones")]
pub struct HalfGiven {
    /// The variable that is set.
    pub given: &'static str,
    /// The variable that is not.
    pub missing: &'static str,
}

impl Wanted {
    /// Reads the environment.
    ///
    /// # Errors
    /// When it names one server without the other.
    pub fn from_environment(env: &BTreeMap<String, String>) -> Result<Self, HalfGiven> {
        let given = |name: &str| env.contains_key(name) || env.contains_key(&format!("{name}_FILE"));
        match (given(DATABASE), given(BROKERS)) {
            (false, false) => Ok(Self::Private),
            (true, true) => Ok(Self::Own),
            (true, false) => Err(HalfGiven { given: DATABASE, missing: BROKERS }),
            (false, true) => Err(HalfGiven { given: BROKERS, missing: DATABASE }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(names: &[&str]) -> Result<bool, HalfGiven> {
        let env = names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        Wanted::from_environment(&env).map(|wanted| matches!(wanted, Wanted::Own))
    }

    #[test]
    fn the_users_servers_are_taken_when_both_are_named() {
        assert_eq!(wanted(&[]), Ok(false));
        assert_eq!(wanted(&["RELAY_SCHEMA", "KAFKA_LINGER_MS"]), Ok(false));
        assert_eq!(wanted(&["DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"]), Ok(true));
        assert_eq!(wanted(&["DATABASE_URL_FILE", "KAFKA_BOOTSTRAP_SERVERS"]), Ok(true));
    }

    #[test]
    fn one_server_alone_is_refused_and_the_other_is_named() {
        let missing = |names: &[&str]| wanted(names).map_err(|error| error.missing);
        assert_eq!(missing(&["DATABASE_URL"]), Err("KAFKA_BOOTSTRAP_SERVERS"));
        assert_eq!(missing(&["KAFKA_BOOTSTRAP_SERVERS"]), Err("DATABASE_URL"));
    }
}
