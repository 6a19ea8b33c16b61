//! Lists the parameters of a connection that are accepted, each with its variable and the check of its value.

use std::net::IpAddr;
use std::path::Path;

use super::url::NOT_A_HOST;
use crate::config::host;
use crate::config::mistake::nearest;
use crate::config::pem::{self, Holds};

/// The values that a parameter accepts.
#[derive(Debug, Clone, Copy)]
enum Accepts {
    Text,
    /// Host names, addresses, or directories of sockets that begin with `/`.
    Hosts,
    Addresses,
    Ports,
    Integer,
    OneOf(&'static [&'static str]),
    /// Some values of libpq. The text says what is missing for the others.
    Some(&'static [&'static str], &'static str),
    Pem(Holds),
    /// A file of certificates, or `system`.
    Roots,
    /// `-c name=value`, as many as needed.
    Options,
}

/// A parameter of a connection.
#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    /// The variable of libpq for it; empty if there is none.
    pub(super) variable: &'static str,
    accepts: Accepts,
}

const fn parameter(name: &'static str, variable: &'static str, accepts: Accepts) -> Parameter {
    Parameter { name, variable, accepts }
}

const FLAG: Accepts = Accepts::OneOf(&["0", "1"]);
const TLS_VERSIONS: Accepts = Accepts::OneOf(&["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]);

/// All parameters, with the names of libpq. Two are of sqlx: `statement-cache-capacity` and `options[name]`.
pub(super) const PARAMETERS: &[Parameter] = &[
    parameter("host", "PGHOST", Accepts::Hosts),
    parameter("hostaddr", "PGHOSTADDR", Accepts::Addresses),
    parameter("port", "PGPORT", Accepts::Ports),
    parameter("dbname", "PGDATABASE", Accepts::Text),
    parameter("user", "PGUSER", Accepts::Text),
    parameter("password", "PGPASSWORD", Accepts::Text),
    parameter("passfile", "PGPASSFILE", Accepts::Text),
    parameter("service", "PGSERVICE", Accepts::Text),
    parameter("connect_timeout", "PGCONNECT_TIMEOUT", Accepts::Integer),
    parameter(
        "target_session_attrs",
        "PGTARGETSESSIONATTRS",
        Accepts::OneOf(&["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]),
    ),
    parameter("load_balance_hosts", "PGLOADBALANCEHOSTS", Accepts::OneOf(&["disable", "random"])),
    parameter("keepalives", "", FLAG),
    parameter("keepalives_idle", "", Accepts::Integer),
    parameter("keepalives_interval", "", Accepts::Integer),
    parameter("keepalives_count", "", Accepts::Integer),
    parameter("tcp_user_timeout", "", Accepts::Integer),
    parameter(
        "sslmode",
        "PGSSLMODE",
        Accepts::OneOf(&["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
    ),
    parameter("sslrootcert", "PGSSLROOTCERT", Accepts::Roots),
    parameter("sslcert", "PGSSLCERT", Accepts::Pem(Holds::Certificates)),
    parameter("sslkey", "PGSSLKEY", Accepts::Pem(Holds::PrivateKey)),
    parameter("sslsni", "PGSSLSNI", FLAG),
    parameter("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", TLS_VERSIONS),
    parameter("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", TLS_VERSIONS),
    parameter(
        "sslnegotiation",
        "PGSSLNEGOTIATION",
        Accepts::Some(&["postgres"], "the relay does not begin with a TLS handshake"),
    ),
    parameter(
        "channel_binding",
        "PGCHANNELBINDING",
        Accepts::Some(&["disable", "prefer"], "the relay has no channel binding"),
    ),
    parameter(
        "gssencmode",
        "PGGSSENCMODE",
        Accepts::Some(&["disable", "prefer"], "the relay has no GSSAPI encryption"),
    ),
    parameter("client_encoding", "", Accepts::Some(&["UTF8", "auto"], "the relay speaks UTF-8")),
    parameter("application_name", "PGAPPNAME", Accepts::Text),
    parameter("fallback_application_name", "", Accepts::Text),
    parameter("options", "PGOPTIONS", Accepts::Options),
    parameter("statement-cache-capacity", "", Accepts::Integer),
];

/// Other names that sqlx has for some parameters.
const ALIASES: &[(&str, &str)] = &[
    ("ssl-mode", "sslmode"),
    ("ssl-root-cert", "sslrootcert"),
    ("ssl-ca", "sslrootcert"),
    ("ssl-cert", "sslcert"),
    ("ssl-key", "sslkey"),
];

impl Parameter {
    /// Finds the parameter of that name.
    pub(super) fn named(name: &str) -> Option<&'static Parameter> {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
        PARAMETERS.iter().find(|parameter| parameter.name == name)
    }

    /// Returns what is wrong with a value: "is not ...". The text never repeats the value, which may be a password in the wrong place.
    pub(super) fn problem(&self, value: &str) -> Option<String> {
        let wrong = |expected: &str| Some(format!("is not {expected}"));
        match self.accepts {
            Accepts::Hosts if value.split(',').any(str::is_empty) => Some("is empty".to_owned()),
            Accepts::Hosts if !value.split(',').all(is_host) => wrong("a host name, an address or a socket directory"),
            Accepts::Addresses if !value.split(',').all(|one| one.is_empty() || one.parse::<IpAddr>().is_ok()) => {
                wrong("an address")
            }
            Accepts::Ports
                if !value.split(',').all(|one| one.is_empty() || one.parse().is_ok_and(|port: u16| port > 0)) =>
            {
                wrong("a number from 1 to 65535")
            }
            Accepts::Integer if value.parse::<i32>().is_err() => wrong("a number"),
            Accepts::OneOf(words) if !words.contains(&value) => wrong(&format!("one of {}", words.join(", "))),
            Accepts::Some(words, why) if !words.contains(&value) => {
                wrong(&format!("one of {}: {why}", words.join(", ")))
            }
            Accepts::Pem(holds) => pem_problem(value, holds),
            Accepts::Roots if value != "system" => pem_problem(value, Holds::Certificates),
            Accepts::Options if session_options(value).is_none() => wrong("a list of -c name=value"),
            _ => None,
        }
    }
}

/// Checks the file that a parameter names. PEM text in place of a path is fine as well.
fn pem_problem(value: &str, holds: Holds) -> Option<String> {
    if is_pem(value) {
        return None;
    }
    pem::problem(Path::new(value), holds).map(|problem| format!("names the file {value:?}, which {problem}"))
}

/// Returns true for PEM text in place of a path.
pub(super) fn is_pem(value: &str) -> bool {
    value.trim_start().starts_with("-----BEGIN")
}

fn is_host(host: &str) -> bool {
    let address = host.split('%').next().unwrap_or_default();
    host.starts_with('/') || address.parse::<IpAddr>().is_ok() || host::is_name(host)
}

/// Reads `-c name=value`, `-cname=value` and `--name=value`, with a backslash before a blank that is part of a value.
pub(super) fn session_options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let end = words.len() - 1;
        match character {
            '\\' => words[end].push(characters.next()?),
            character if character.is_whitespace() => words.push(String::new()),
            character => words[end].push(character),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut pairs = Vec::new();
    while let Some(word) = words.next() {
        let pair = match word.as_str() {
            "-c" => words.next()?,
            _ => word.strip_prefix("--").or_else(|| word.strip_prefix("-c"))?.to_owned(),
        };
        let (name, value) = pair.split_once('=')?;
        pairs.push((name.to_owned(), value.to_owned()));
    }
    Some(pairs)
}

/// Returns the problem of a name that is no parameter, with the names that are.
pub(super) fn unknown(name: &str) -> String {
    let known = || PARAMETERS.iter().map(|parameter| parameter.name);
    let near = nearest(name, known()).map(|near| format!(" (did you mean {near}?)"));
    let accepted = || format!("; accepted are {}", known().collect::<Vec<_>>().join(", "));
    let tail = near.unwrap_or_else(accepted);
    match name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'-')) {
        true => format!("its parameter {name:?} is unknown{tail}"),
        false => format!("one of its parameters is unknown{tail}"),
    }
}

/// Names a wrong parameter in a way that fits the parts of a URL.
pub(super) fn described(parameter: &Parameter, problem: &str) -> String {
    match (parameter.name, problem) {
        ("host", "is empty") => "its host is empty".to_owned(),
        ("host", _) => format!("{NOT_A_HOST}, nor a socket directory (parameter host)"),
        ("port", _) => "its port is not a number from 1 to 65535".to_owned(),
        (name, problem) => format!("its parameter {name} {problem}"),
    }
}
