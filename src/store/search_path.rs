//! Fixes the search path of every statement, so that no schema of a user can replace what a statement calls.
//!
//! The first packet also sets what else the relay's statements rely on.
//!
//! A session has the path from its first packet on. A pooler may refuse that packet or drop the setting, and a setting of the session would
//! reach the pooler's other clients. So each transaction sets the path again for itself, and a statement outside of a transaction either
//! qualifies all names or begins with [`SET_LOCAL`].

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use event_outbox::names::SEARCH_PATH;

/// Sets the path until the transaction ends. The statements of a simple query are one transaction, too.
pub(crate) const SET_LOCAL: &str = "set local search_path = pg_catalog, pg_temp; ";

/// Begins a transaction with the path.
pub(crate) const BEGIN: &str = "begin; set local search_path = pg_catalog, pg_temp";

/// Begins a transaction with the path, in one round trip.
///
/// # Errors
/// Any database error.
pub(crate) async fn begin(conn: &mut PgConnection) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
    conn.begin_with(BEGIN).await
}

/// The settings that the relay's statements and comparisons rely on. Users, databases and clusters may have others.
const EXPECTED: [(&str, &str); 12] = [
    ("quote_all_identifiers", "off"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("transform_null_equals", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("enable_indexscan", "on"),
    // A relay may have nothing to do for hours.
    ("idle_session_timeout", "0"),
    ("search_path", SEARCH_PATH),
];

/// Returns options that set the path and the expected settings in the first packet. They win over settings of the user, the database and
/// the URL.
pub(crate) fn from_the_first_packet(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().options(EXPECTED)
}

/// Returns true if the options of the first packet were refused. PgBouncer answers 08P01, RDS Proxy 0A000, and a server that is too old to
/// know one of the settings 42704: without them it can be asked for its version, and be refused by it.
pub(crate) fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("08P01" | "0A000" | "42704"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_packet_overrides_the_path_of_the_url() {
        let own: PgConnectOptions = "postgres://db/app?options[search_path]=shop".parse().expect("a URL");
        let options = from_the_first_packet(&own).get_options().map(str::to_owned);
        let options = options.unwrap_or_default();
        assert!(
            options.starts_with("-c search_path=shop ") && options.ends_with(r" -c search_path=pg_catalog,\ pg_temp")
        );
    }
}
