//! Classifies SQLSTATEs, and the client's errors that have none.

use super::{Class, Fault, NotConnected, READ_ONLY, fault};
use event_outbox::code::Code;

/// SQLSTATEs with the same meaning: complete ones of five characters, or classes of two.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) states: &'static [&'static str],
    /// A few words on the cause, for the page.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page, which a test writes"))]
    pub(super) meaning: &'static str,
    pub(super) fault: Fault,
}

const fn entry(
    states: &'static [&'static str],
    meaning: &'static str,
    class: Class,
    code: Code,
    next_step: &'static str,
) -> Entry {
    Entry { states, meaning, fault: fault(class, code, next_step) }
}

/// The fault for a class that is not one of Postgres, such as one of an extension or a proxy.
const FOREIGN: Fault =
    fault(Class::ActionRequired, Code::DatabaseRefused, "see the error: the database refused a statement of the relay");

/// Classifies an error of the database.
pub(crate) fn classify_database(error: &sqlx::Error) -> Fault {
    match error.as_database_error() {
        Some(database) => classify_sqlstate(database.code().as_deref().unwrap_or_default()),
        None => classify_client_error(error),
    }
}

/// Classifies an SQLSTATE. A complete SQLSTATE takes precedence over its class.
fn classify_sqlstate(state: &str) -> Fault {
    let find = |wanted: &str| TABLE.iter().find(|entry| entry.states.contains(&wanted));
    let class = state.get(..2).unwrap_or_default();
    find(state).or_else(|| find(class)).map_or(FOREIGN, |entry| entry.fault)
}

/// Classifies an error that no server has sent.
fn classify_client_error(error: &sqlx::Error) -> Fault {
    if let Some(error) = NotConnected::within(error) {
        return error.fault;
    }
    match error {
        sqlx::Error::Tls(_) => {
            fault(Class::ActionRequired, Code::DatabaseTls, "check sslmode and sslrootcert in DATABASE_URL")
        }
        sqlx::Error::Configuration(_) => fault(Class::ActionRequired, Code::ConfigurationRefused, "check DATABASE_URL"),
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => {
            fault(Class::Outage, Code::DatabaseUnreachable, "check that the database runs and can be reached")
        }
        _ => fault(
            Class::ActionRequired,
            Code::DatabaseRefused,
            "report this: the relay does not understand the database's answer",
        ),
    }
}

/// Every class of Postgres' errcodes.txt (14 to 18), and the SQLSTATEs within them that need another fault.
pub(super) const TABLE: &[Entry] = &[
    entry(
        &["08", "57", "57P01", "57P02", "57P03", "57P05"],
        "the connection broke, or the server stops, starts or recovers",
        Class::Outage,
        Code::DatabaseUnreachable,
        "check that the database runs and can be reached",
    ),
    entry(
        &["08P01"],
        "a protocol violation; poolers report their own errors with this code",
        Class::Outage,
        Code::PoolerError,
        "see the log of the pooler between relay and database, if there is one",
    ),
    entry(
        &["57014"],
        "a statement was cancelled, or outlasted statement_timeout",
        Class::Outage,
        Code::DatabaseSlow,
        "find out what keeps the database busy: see pg_stat_activity, its disks and its locks",
    ),
    entry(
        &["57P04", "3D000", "3D"],
        "the database does not exist",
        Class::ActionRequired,
        Code::DatabaseName,
        "check the database's name in DATABASE_URL",
    ),
    Entry { states: &["25006"], meaning: "the server is read-only", fault: READ_ONLY },
    entry(
        &["25P03"],
        "the relay's transaction was idle for longer than idle_in_transaction_session_timeout",
        Class::Outage,
        Code::RelayFrozen,
        "the relay was frozen for longer than RELAY_PUBLISH_TIMEOUT: give it more CPU",
    ),
    entry(
        &["25P04"],
        "transaction_timeout ended the relay's transaction",
        Class::ActionRequired,
        Code::TransactionTimeout,
        "raise transaction_timeout of the relay's user above RELAY_PUBLISH_TIMEOUT",
    ),
    entry(
        &["40", "40001", "40P01"],
        "the transaction was rolled back: a deadlock, a serialization failure",
        Class::Outage,
        Code::DatabaseDeadlock,
        "none if it passes; else see which other session locks rows of the outbox",
    ),
    entry(
        &["55P03"],
        "another session holds a lock",
        Class::Outage,
        Code::DatabaseLocked,
        "`outbox-relay status` names the session that holds the lock: end its transaction",
    ),
    entry(
        &["53300"],
        "the server has no free connection",
        Class::Outage,
        Code::DatabaseConnections,
        "the server has no free connection: raise max_connections or stop a client",
    ),
    entry(
        &["53100"],
        "the server's disk is full",
        Class::Outage,
        Code::DatabaseFull,
        "the server's disk is full: free space",
    ),
    entry(
        &["53", "53200", "53400"],
        "the server is short of memory or another resource",
        Class::Outage,
        Code::DatabaseResources,
        "see the server's log: it is short of a resource",
    ),
    entry(
        &["58", "58030"],
        "an error outside the database, such as an I/O error",
        Class::Outage,
        Code::DatabaseResources,
        "see the server's log and its disks",
    ),
    entry(&["72"], "a snapshot was too old", Class::Outage, Code::DatabaseSlow, "none if it passes"),
    entry(
        &["0A"],
        "a feature is not supported; after `alter table`, also a cached plan that no longer fits",
        Class::Outage,
        Code::DatabaseRefused,
        "none if it passes: the relay connects again; else report it with the server's version",
    ),
    entry(
        &["28", "28000", "28P01"],
        "the server refuses the relay's login",
        Class::ActionRequired,
        Code::DatabaseLogin,
        "check the user and the password in DATABASE_URL and pg_hba.conf",
    ),
    entry(
        &["42501"],
        "a right is missing",
        Class::ActionRequired,
        Code::RightsMissing,
        "`outbox-relay check` prints the grant; `outbox-relay migrate --roles` makes roles that have all of them",
    ),
    entry(
        &["42P01", "42703", "42883", "3F000", "3F"],
        "a table, a column, a function or the schema does not exist",
        Class::ActionRequired,
        Code::SchemaMissing,
        "run `outbox-relay migrate`",
    ),
    entry(
        &["26", "26000", "42P05"],
        "a prepared statement is missing or exists already: a pooler gave the session to another client",
        Class::ActionRequired,
        Code::PoolerPreparedStatements,
        "set RELAY_PREPARED_STATEMENTS=false behind a transaction-mode pooler",
    ),
    entry(
        &["22", "23", "42", "44", "21", "27"],
        "a statement was refused: a changed column, a constraint or a trigger of the outbox",
        Class::ActionRequired,
        Code::DatabaseRefused,
        "compare the outbox with `outbox-relay migrate --print`: columns, constraints, triggers, policies",
    ),
    entry(
        &["09", "38", "39", "P0", "2F", "20"],
        "a trigger or a function of the outbox failed",
        Class::ActionRequired,
        Code::DatabaseTrigger,
        "see the error, and make the trigger on the outbox accept the relay's updates",
    ),
    entry(
        &["54", "55", "55000", "55006"],
        "a limit of the server is exceeded, or an object is in the wrong state",
        Class::ActionRequired,
        Code::DatabaseRefused,
        "see the error and the server's log",
    ),
    entry(
        &["HV"],
        "a foreign table failed: the outbox, or a partition of it, is one",
        Class::ActionRequired,
        Code::DatabaseRefused,
        "keep the outbox in tables of this server",
    ),
    entry(
        &["F0"],
        "the server's configuration is wrong",
        Class::ActionRequired,
        Code::DatabaseResources,
        "fix the server's configuration file: see its log",
    ),
    entry(
        &["XX", "XX001", "XX002"],
        "an internal error; XX001 and XX002 are damaged data",
        Class::ActionRequired,
        Code::DatabaseDamaged,
        "see the server's log; for XX001 or XX002 stop writing and restore or reindex",
    ),
    entry(
        &["00", "01", "02", "03", "0B", "0F", "0L", "0P", "0Z", "10", "24", "25", "2B", "2D", "34", "3B"],
        "an error that the relay's statements cannot cause",
        Class::ActionRequired,
        Code::DatabaseRefused,
        "report this with the log: the database refused a statement of the relay",
    ),
];

/// Returns the next step when the configured outbox is missing and the database has `others` (schema and table).
pub(crate) fn missing_outbox(others: &[(String, String)]) -> String {
    match others {
        [] => "run `outbox-relay migrate`".to_owned(),
        [(schema, table), ..] => {
            format!(
                "correct RELAY_SCHEMA and RELAY_TABLE: the outbox that is there has RELAY_SCHEMA={schema:?} RELAY_TABLE={table:?}"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The classes of src/backend/utils/errcodes.txt in Postgres 14 to 18.
    const CLASSES: &str = "00 01 02 03 08 09 0A 0B 0F 0L 0P 0Z 10 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F \
                           40 42 44 53 54 55 57 58 72 F0 HV P0 XX";

    #[test]
    fn every_class_of_postgres_is_in_the_table_so_that_no_state_falls_through() {
        for class in CLASSES.split_whitespace() {
            assert!(TABLE.iter().any(|entry| entry.states.contains(&class)), "class {class} has no entry");
            assert_ne!(classify_sqlstate(&format!("{class}ZZZ")), FOREIGN, "{class}");
        }
    }

    #[test]
    fn every_state_is_in_the_table_once_and_of_a_class_that_is_known() {
        let states: Vec<_> = TABLE.iter().flat_map(|entry| entry.states).collect();
        for state in &states {
            assert_eq!(states.iter().filter(|other| other == &state).count(), 1, "{state}");
            assert!([2, 5].contains(&state.len()), "{state}");
            assert!(CLASSES.split_whitespace().any(|class| state.starts_with(class)), "{state}");
        }
    }

    #[test]
    fn a_state_outweighs_its_class() {
        assert_eq!(classify_sqlstate("42P01").next_step, "run `outbox-relay migrate`");
        assert_eq!(classify_sqlstate("42601").class, Class::ActionRequired);
        assert_ne!(classify_sqlstate("42601"), classify_sqlstate("42P01"));
        assert_eq!(classify_sqlstate("25006").class, Class::Outage);
        assert_eq!(classify_sqlstate("25001").class, Class::ActionRequired);
    }

    #[test]
    fn what_may_heal_by_itself_is_an_outage() {
        for state in ["08006", "53300", "57P01", "57P03", "58030", "40001", "40P01", "55P03", "57014", "25P03"] {
            assert_eq!(classify_sqlstate(state).class, Class::Outage, "{state}");
        }
        let io = sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(classify_database(&io).class, Class::Outage);
    }

    #[test]
    fn a_state_of_no_postgres_is_shown_to_the_operator() {
        for state in ["ZZ001", "", "é"] {
            assert_eq!(classify_sqlstate(state), FOREIGN, "{state}");
        }
    }

    #[test]
    fn no_error_of_the_database_is_a_rows_or_a_topics_fault() {
        let classes = [Class::Outage, Class::ActionRequired];
        assert!(TABLE.iter().all(|entry| classes.contains(&entry.fault.class)));
    }
}
