//! Parses `DATABASE_URL`. No error repeats a part of the URL that may be the password.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::host;
use super::mistake::nearest;
use super::pem::{self, Holds};
use super::resolved::Resolved;
use super::setting::{self, Kind};
use super::value::Value;

/// The connection to the database.
#[derive(Clone)]
pub struct DatabaseSettings {
    /// The options of sqlx. The field is private and `Debug` is written by hand, because sqlx's `Debug` prints the password.
    options: PgConnectOptions,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// False if a transaction-mode pooler without support for prepared statements is in between.
    pub prepared_statements: bool,
}

impl DatabaseSettings {
    pub(super) fn read(from: &mut Resolved) -> Option<DatabaseSettings> {
        let options = from.required(&setting::DATABASE_URL);
        let (connect_timeout, prepared_statements) =
            (from.get(&setting::CONNECT_TIMEOUT), from.get(&setting::PREPARED_STATEMENTS));
        Some(DatabaseSettings { options: options?, connect_timeout, prepared_statements })
    }

    /// Returns the options of sqlx with the password: never print them. Parts that the URL leaves out come from libpq's
    /// variables and password file.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Returns `host:port/database` for logs, without user and password.
    pub fn target(&self) -> String {
        let options = &self.options;
        // If the URL names no database, Postgres takes the one with the user's name.
        let database = options.get_database().unwrap_or_else(|| options.get_username());
        match options.get_socket() {
            Some(socket) => format!("{}:{}/{database}", socket.display(), options.get_port()),
            None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
        }
    }
}

impl fmt::Debug for DatabaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseSettings")
            .field("target", &self.target())
            .field("connect_timeout", &self.connect_timeout)
            .field("prepared_statements", &self.prepared_statements)
            .finish_non_exhaustive()
    }
}

const PERCENT_ENCODE: &str = "user or password holds a character with a meaning in URLs; write it percent-encoded (@ %40, : %3A, / %2F, ? %3F, # %23)";

/// The parameters that sqlx accepts. sqlx ignores others with a warning that prints their value.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

const SSL_MODES: &[&str] = &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

impl Value for PgConnectOptions {
    fn parse(_: &Kind, text: &str) -> Result<Self, String> {
        parse(text)
    }
}

fn parse(text: &str) -> Result<PgConnectOptions, String> {
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Err("expected a URL that begins with postgres:// or postgresql://".into());
    }
    let url = Url::parse(text).map_err(|error| syntax(error, text))?;
    // The text before the last `@` may be part of a password, so it must not be parsed or shown.
    if url.fragment().is_some() || url.path().contains('@') || url.query().is_some_and(|query| query.contains('@')) {
        return Err(PERCENT_ENCODE.into());
    }
    let problems = problems(&url);
    if !problems.is_empty() {
        return Err(problems.join("; "));
    }
    // The errors of sqlx repeat the URL, so they are dropped.
    text.parse().map_err(|_| "is not a URL that the database client understands".into())
}

fn syntax(error: url::ParseError, text: &str) -> String {
    // A `/` in the password ends the authority too early; the part before it then looks like a bad port or host.
    let cut = text
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once(['/', '?', '#']))
        .is_some_and(|(_, rest)| rest.contains('@'));
    match error {
        _ if cut => PERCENT_ENCODE.into(),
        url::ParseError::InvalidPort => "its port is not a number from 1 to 65535".into(),
        url::ParseError::EmptyHost => "its host is empty".into(),
        _ => "its host is not a host name or an address".into(),
    }
}

/// Lists all problems of a URL whose parts could be told apart.
fn problems(url: &Url) -> Vec<String> {
    let mut problems = Vec::new();
    let host_elsewhere = url.query_pairs().any(|(key, _)| key == "host" || key == "hostaddr");
    match url.host_str().unwrap_or_default() {
        "" if !host_elsewhere => problems.push("its host is empty".to_owned()),
        host if !host.is_empty() && !is_host(host) => problems.push("its host is not a host name or an address".into()),
        _ => {}
    }
    if url.port() == Some(0) {
        problems.push("its port is not a number from 1 to 65535".into());
    }
    for part in [Some(url.username()), url.password(), Some(url.path())].into_iter().flatten() {
        if !is_percent_encoded_text(part) {
            problems.push("it holds a % that encodes no text".into());
        }
    }
    problems.extend(url.query_pairs().filter_map(|(key, value)| parameter_problem(&key, &value)));
    problems
}

fn parameter_problem(key: &str, value: &str) -> Option<String> {
    let expected = |accepted: &str| Some(format!("its parameter {key} is not {accepted}"));
    match key {
        "sslmode" | "ssl-mode" if !SSL_MODES.contains(&value) => expected(&format!("one of {}", SSL_MODES.join(", "))),
        "sslrootcert" | "ssl-root-cert" | "ssl-ca" | "sslcert" | "ssl-cert" => {
            file_problem(key, value, Holds::Certificates)
        }
        "sslkey" | "ssl-key" => file_problem(key, value, Holds::PrivateKey),
        "statement-cache-capacity" if value.parse::<usize>().is_err() => expected("a number"),
        "host" if !value.starts_with('/') && !is_host(value) => {
            expected("a host name, an address or a socket directory")
        }
        "hostaddr" if value.parse::<std::net::IpAddr>().is_err() => expected("an address"),
        "port" if value.parse::<u16>().is_ok_and(|port| port > 0) => None,
        "port" => expected("a number from 1 to 65535"),
        _ if PARAMETERS.contains(&key) || (key.starts_with("options[") && key.ends_with(']')) => None,
        _ => Some(unknown_parameter(key)),
    }
}

fn unknown_parameter(key: &str) -> String {
    let near =
        nearest(key, PARAMETERS.iter().copied()).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
    match key.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'-')) {
        true => format!("its parameter {key:?} is unknown{near}"),
        false => format!("one of its parameters is unknown{near}"),
    }
}

/// Checks the file that a parameter names. A value that is PEM text is fine as well, because sqlx accepts it in place of a path.
fn file_problem(key: &str, value: &str, holds: Holds) -> Option<String> {
    if value.trim_start().starts_with("-----BEGIN") {
        return None;
    }
    pem::problem(Path::new(value), holds).map(|problem| format!("the file of {key}, {value:?}, {problem}"))
}

/// Returns true for a host name, an address, or a percent-encoded socket directory.
fn is_host(host: &str) -> bool {
    if host.starts_with("%2F") || host.starts_with("%2f") || host.starts_with('[') {
        return true;
    }
    host::is_name(host)
}

fn is_percent_encoded_text(part: &str) -> bool {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).filter(|_| byte == b'%');
        match hex.map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(decoded)) => {
                bytes.push(decoded);
                rest = tail.get(2..).unwrap_or_default();
            }
            Some(Err(_)) => return false,
            None if byte == b'%' => return false,
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).is_ok_and(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(url: &str) -> String {
        parse(url).err().unwrap_or_else(|| panic!("accepted"))
    }

    #[test]
    fn urls_that_libpq_takes_are_taken() {
        for url in [
            "postgres://relay:s3cret@db.internal:5432/app",
            "postgresql://relay@db/app?sslmode=require&application_name=x",
            "postgres://relay:p%40ss%2Fword@db_1",
            "postgres://[::1]:5433/app",
            "postgres://127.0.0.1/app",
            "postgres:///app?host=/var/run/postgresql",
            "postgres://relay@%2Fvar%2Frun%2Fpostgresql/app",
            "postgres://db/app?options[search_path]=shop&statement-cache-capacity=0",
        ] {
            assert!(parse(url).is_ok(), "{url}: {:?}", parse(url).err());
        }
    }

    #[test]
    fn each_mistake_is_named() {
        for (url, part) in [
            ("mysql://u:hunter2@h/d", "postgres://"),
            ("host=h password=hunter2", "postgres://"),
            ("", "postgres://"),
            ("postgres://u:hunter2@/d", "host"),
            ("postgres:///d", "host is empty"),
            ("postgres://u:hunter2@my host/d", "host"),
            ("postgres://u:hunter2@-h-/d", "host"),
            ("postgres://u:hunter2@h..x/d", "host"),
            ("postgres://u:hunter2@h:99999/d", "port"),
            ("postgres://u:hunter2@h:0/d", "port"),
            ("postgres://u:hunter2@h:abc/d", "port"),
            ("postgres://u:hun/ter2@h/d", "percent-encoded"),
            ("postgres://u:1/hunter2@h/d", "percent-encoded"),
            ("postgres://u:1?hunter2@h/d", "percent-encoded"),
            ("postgres://u:1?hunter2&x=@h/d", "percent-encoded"),
            ("postgres://u:1#hunter2@h/d", "percent-encoded"),
            ("postgres://u:hunter2%@h/d", "%"),
            ("postgres://u:hunter2%ff@h/d", "%"),
            ("postgres://u:hunter2@h/d?sslmod=require", "did you mean sslmode?"),
            ("postgres://u:hunter2@h/d?sslmode=hunter2", "verify-full"),
            ("postgres://u:hunter2@h/d?hostaddr=h", "hostaddr"),
            ("postgres://u:hunter2@h/d?port=70000", "port"),
            ("postgres://u:hunter2@h/d?statement-cache-capacity=x", "statement-cache-capacity"),
            ("postgres://u:hunter2@h/d?sslrootcert=/nonexistent/ca.pem", "/nonexistent/ca.pem"),
            ("postgres://u:hunter2@h/d?sslkey=/nonexistent/key.pem", "sslkey"),
        ] {
            let problem = problem(url);
            assert!(problem.contains(part), "{url}: {problem}");
            assert!(!problem.contains("hunter2") && !problem.contains("ter2"), "{url}: {problem}");
        }
    }

    #[test]
    fn everything_wrong_with_one_url_is_said_at_once() {
        let problem = problem("postgres://u@h:0/d?sslmode=x&colour=red");
        assert_eq!(problem.matches(';').count(), 2, "{problem}");
    }

    #[test]
    fn the_target_names_neither_user_nor_password() {
        let settings = |url: &str| DatabaseSettings {
            options: parse(url).unwrap(),
            connect_timeout: Duration::from_secs(1),
            prepared_statements: true,
        };
        let tcp = settings("postgres://alice:hunter2@db:5433/app?password=hunter3");
        assert_eq!(tcp.target(), "db:5433/app");
        let debug = format!("{tcp:?}");
        assert!(!debug.contains("hunter") && !debug.contains("alice"), "{debug}");
        assert_eq!(settings("postgres://a@h:5432/d?host=/run/pg").target(), "/run/pg:5432/d");
    }
}
