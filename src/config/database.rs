//! Reads the connection to the database as libpq does: `DATABASE_URL`, its service, the `PG` variables and the password file. No error
//! repeats a part of the URL that may be the password.
//!
//! | file | content |
//! |---|---|
//! | `url` | splits the URL |
//! | `parameter` | the accepted parameters and the checks of their values |
//! | `files` | the service file and the password file |
//! | `server` | the types: servers, TLS, sockets |

mod files;
mod parameter;
mod server;
#[cfg(test)]
mod tests;
mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::resolved::Resolved;
use super::setting;
use super::{Sources, Waking};
use files::PasswordFile;
use parameter::{PARAMETERS, Parameter, described, session_options, unknown};

pub use server::{Host, Pem, Roots, Server, SocketSettings, TargetSession, TlsMode, TlsSettings};

const DEFAULT_PORT: u16 = 5432;

/// The connection to the database.
#[derive(Clone)]
pub struct DatabaseSettings {
    /// The servers to try, in this order. Never empty.
    pub servers: Vec<Server>,
    /// The servers that are accepted; `None` if the URL leaves it to the command.
    pub target_session: Option<TargetSession>,
    /// True if the servers are tried in a random order.
    pub in_random_order: bool,
    /// How the connection is encrypted.
    pub tls: TlsSettings,
    /// The settings of the socket.
    pub socket: SocketSettings,
    /// User, database and session settings. The field is private and `Debug` is written by hand, because sqlx's `Debug` prints the
    /// password.
    options: PgConnectOptions,
    database: String,
    /// The longest wait for one address of one server.
    pub connect_timeout: Duration,
    /// False if a transaction-mode pooler without support for prepared statements is in between.
    pub prepared_statements: bool,
    /// The user and the passwords, if they were read again while the relay runs. Clones share them.
    reloaded: Arc<RwLock<Option<Login>>>,
}

/// What a session logs in with.
#[derive(Clone)]
struct Login {
    options: PgConnectOptions,
    servers: Vec<Server>,
}

impl DatabaseSettings {
    pub(super) fn read(from: &mut Resolved, sources: &Sources) -> Option<DatabaseSettings> {
        let (connect_timeout, prepared_statements) =
            (from.get(&setting::CONNECT_TIMEOUT), from.get(&setting::PREPARED_STATEMENTS));
        let parsed = from.required_by(&setting::DATABASE_URL, |text| parse(text, &sources.env));
        parsed.map(|settings| DatabaseSettings {
            connect_timeout: Some(settings.connect_timeout).filter(|given| !given.is_zero()).unwrap_or(connect_timeout),
            prepared_statements,
            ..settings
        })
    }

    /// Reads the connection on which writers wake the relay; `None` if they do not.
    pub(super) fn read_wake_up(&self, from: &mut Resolved, sources: &Sources) -> Option<Self> {
        let waking: Waking = from.get(&setting::WAKE_UP);
        let direct = from.optional_by(&setting::WAKE_UP_URL, |text| parse(text, &sources.env));
        let direct = direct.map(|direct| Self {
            connect_timeout: Some(direct.connect_timeout)
                .filter(|given| !given.is_zero())
                .unwrap_or(self.connect_timeout),
            ..direct
        });
        (waking == Waking::Auto).then(|| direct.unwrap_or_else(|| self.clone()))
    }

    /// Returns the options for a session on one of the servers, with the password: never print them. They lack the address and TLS.
    pub fn session_options(&self, server: &Server) -> PgConnectOptions {
        let reloaded = self.reloaded.read().unwrap_or_else(PoisonError::into_inner).clone();
        let options = reloaded.map_or_else(|| self.options.clone(), |login| login.options);
        match self.password_of(server) {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        }
    }

    /// Takes user, passwords and session settings of settings that were read again, for the sessions to come. Returns true if user or
    /// passwords are others.
    pub(super) fn adopt(&self, fresh: &Self) -> bool {
        let shown = |settings: &Self| -> Vec<String> {
            let of_server = |server: &Server| {
                let options = settings.session_options(server);
                let password = settings.password_of(server).map(|password| password.expose_secret().to_owned());
                format!("{} {password:?}", options.get_username())
            };
            settings.servers.iter().map(of_server).collect()
        };
        let is_new = shown(self) != shown(fresh);
        let login = Login { options: fresh.options.clone(), servers: fresh.servers.clone() };
        *self.reloaded.write().unwrap_or_else(PoisonError::into_inner) = Some(login);
        is_new
    }

    fn password_of(&self, server: &Server) -> Option<SecretString> {
        let reloaded = self.reloaded.read().unwrap_or_else(PoisonError::into_inner);
        let servers = reloaded.as_ref().map_or(&self.servers, |login| &login.servers);
        servers.iter().find(|known| known.to_string() == server.to_string())?.password.clone()
    }

    /// Returns the options of the first server for clients other than the relay's own, with the password: never print them. sqlx knows one
    /// server only.
    pub fn connect_options(&self) -> PgConnectOptions {
        let Some(server) = self.servers.first() else { return self.options.clone() };
        let options = self.session_options(server).port(server.port).ssl_mode(match self.tls.mode {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Allow => PgSslMode::Allow,
            TlsMode::Prefer => PgSslMode::Prefer,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCa => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        });
        let options = match &self.tls.roots {
            Some(Roots::Only(Pem::File(path))) => options.ssl_root_cert(path),
            Some(Roots::Only(Pem::Text(text))) => options.ssl_root_cert_from_pem(text.clone().into_bytes()),
            Some(Roots::System) | None => options,
        };
        match (&server.host, server.address) {
            (Host::Socket(directory), _) => options.socket(directory),
            (Host::Name(_), Some(address)) => options.host(&address.to_string()),
            (Host::Name(name), None) => options.host(name),
        }
    }

    /// Returns `host:port,host:port/database` for logs, without user and password.
    pub fn target(&self) -> String {
        let servers: Vec<_> = self.servers.iter().map(Server::to_string).collect();
        format!("{}/{}", servers.join(","), self.database)
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

/// The values of the parameters, and the problems so far.
#[derive(Default)]
struct Parameters {
    values: BTreeMap<&'static str, String>,
    /// The session settings of `options[name]=value`.
    options: Vec<(String, String)>,
    problems: Vec<String>,
}

impl Parameters {
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn integer(&self, name: &str) -> Option<u32> {
        self.get(name).and_then(|text| text.parse().ok())
    }

    fn seconds(&self, name: &str) -> Option<Duration> {
        self.integer(name).filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Takes the parameters of the URL. The last value of a name wins.
    fn add_url(&mut self, given: Vec<(String, String)>) {
        for (name, value) in given {
            let session_option = name.strip_prefix("options[").and_then(|name| name.strip_suffix(']'));
            match (session_option, Parameter::named(&name), name.as_str(), value.as_str()) {
                (Some(option), ..) => self.options.push((option.to_owned(), value)),
                (_, Some(parameter), ..) => self.set(parameter, value, |problem| described(parameter, problem)),
                // The name and the value of JDBC, which libpq takes in URLs too.
                (_, None, "ssl", "true") => {
                    self.values.insert("sslmode", "require".to_owned());
                }
                (_, None, name, _) => self.problems.push(unknown(name)),
            }
        }
    }

    /// Takes what the URL does not say from the service.
    fn add_service(&mut self, env: &BTreeMap<String, String>) {
        let variable = env.get("PGSERVICE").map(String::as_str).filter(|value| !value.is_empty());
        let Some(service) = self.get("service").or(variable) else { return };
        match files::service(service, env) {
            Ok(given) => {
                for (name, value) in given {
                    match Parameter::named(&name) {
                        Some(known) if self.values.contains_key(known.name) => {}
                        Some(known) => {
                            self.set(known, value, |problem| format!("its service: {}", described(known, problem)))
                        }
                        None => self.problems.push(format!("its service: {}", unknown(&name))),
                    }
                }
            }
            Err(problem) => self.problems.push(problem),
        }
    }

    /// Takes from the variables what neither the URL nor the service says.
    fn add_variables(&mut self, env: &BTreeMap<String, String>) {
        for parameter in PARAMETERS.iter().filter(|parameter| !parameter.variable.is_empty()) {
            let value = env.get(parameter.variable).filter(|value| !value.is_empty());
            if let (Some(value), false) = (value, self.values.contains_key(parameter.name)) {
                let described = |problem: &str| format!("the variable {} {problem}", parameter.variable);
                self.set(parameter, value.clone(), described);
            }
        }
    }

    fn set(&mut self, parameter: &'static Parameter, value: String, described: impl Fn(&str) -> String) {
        if let Some(problem) = parameter.problem(&value) {
            self.problems.push(described(&problem));
        }
        self.values.insert(parameter.name, value);
    }
}

/// Reads a URL, and what it leaves out.
///
/// # Errors
/// Returns all problems, without the password.
fn parse(text: &str, env: &BTreeMap<String, String>) -> Result<DatabaseSettings, String> {
    let parts = url::split(text)?;
    let mut parameters = Parameters { problems: parts.problems, ..Parameters::default() };
    parameters.add_url(parts.parameters);
    parameters.add_service(env);
    parameters.add_variables(env);
    if parameters.get("host").or(parameters.get("hostaddr")).is_none() {
        let problem = "its host is empty: name a host, a socket directory (?host=/run/postgresql), or set PGHOST";
        parameters.problems.push(problem.to_owned());
    }
    if !parameters.problems.is_empty() {
        return Err(parameters.problems.join("; "));
    }
    connection(&parameters, env)
}

/// Makes the settings of parameters that are right one by one.
fn connection(parameters: &Parameters, env: &BTreeMap<String, String>) -> Result<DatabaseSettings, String> {
    let tls = tls(parameters, env)?;
    let options = base_options(parameters, env);
    let user = options.get_username().to_owned();
    // Without a database, Postgres takes the one with the user's name.
    let database = parameters.get("dbname").unwrap_or(&user).to_owned();
    let servers = servers(parameters, env, &database, &user)?;
    Ok(DatabaseSettings {
        servers,
        target_session: parameters.get("target_session_attrs").and_then(TargetSession::parse),
        in_random_order: parameters.get("load_balance_hosts") == Some("random"),
        tls,
        socket: SocketSettings {
            no_keepalives: parameters.get("keepalives") == Some("0"),
            idle: parameters.seconds("keepalives_idle"),
            interval: parameters.seconds("keepalives_interval"),
            count: parameters.integer("keepalives_count").filter(|count| *count > 0),
            user_timeout: parameters
                .integer("tcp_user_timeout")
                .filter(|milliseconds| *milliseconds > 0)
                .map(|milliseconds| Duration::from_millis(milliseconds.into())),
        },
        options,
        database,
        connect_timeout: parameters.seconds("connect_timeout").unwrap_or_default(),
        prepared_statements: true,
        reloaded: Arc::default(),
    })
}

/// Returns user, database and session settings. sqlx reads the `PG` variables first; every value that we know replaces its own.
fn base_options(parameters: &Parameters, env: &BTreeMap<String, String>) -> PgConnectOptions {
    // PgBouncer refuses this start-up parameter with its defaults, and no statement of ours reads a float as text.
    let mut options = PgConnectOptions::new_without_pgpass().extra_float_digits(None);
    if let Some(user) = parameters.get("user") {
        options = options.username(user);
    }
    if let Some(database) = parameters.get("dbname") {
        options = options.database(database);
    }
    if let Some(capacity) = parameters.integer("statement-cache-capacity") {
        options = options.statement_cache_capacity(capacity as usize);
    }
    let given = parameters.get("options").filter(|given| env.get("PGOPTIONS").map(String::as_str) != Some(given));
    let session = [given.and_then(session_options).unwrap_or_default(), parameters.options.clone()].concat();
    // Without settings the parameter must not be sent at all, because PgBouncer refuses it as well.
    if session.is_empty() { options } else { options.options(session) }
}

/// Pairs hosts, addresses and ports, and finds the password of each server.
fn servers(
    parameters: &Parameters,
    env: &BTreeMap<String, String>,
    database: &str,
    user: &str,
) -> Result<Vec<Server>, String> {
    let list = |name| parameters.get(name).map(|text| text.split(',').collect::<Vec<_>>()).unwrap_or_default();
    let (hosts, addresses, ports): (Vec<&str>, Vec<&str>, Vec<&str>) = (list("host"), list("hostaddr"), list("port"));
    let count = hosts.len().max(addresses.len());
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(format!("it has {} hosts and {} addresses (hostaddr)", hosts.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("it has {count} hosts and {} ports", ports.len()));
    }
    let given = parameters.get("password");
    let file = match given {
        Some(_) => PasswordFile::default(),
        None => PasswordFile::read(parameters.get("passfile"), env)?,
    };
    let server = |index: usize| {
        let address = addresses.get(index).and_then(|address| address.parse().ok());
        let name = hosts.get(index).or(addresses.get(index)).copied().unwrap_or_default();
        let port = ports.get(index).or(ports.first().filter(|_| ports.len() == 1));
        let port = port.and_then(|port| port.parse().ok()).unwrap_or(DEFAULT_PORT);
        let (host, names) = match name.starts_with('/') {
            true => (Host::Socket(name.into()), vec![name.to_owned(), "localhost".to_owned()]),
            false => (Host::Name(name.to_owned()), vec![name.to_owned()]),
        };
        let password = given.or_else(|| file.password(&names, port, database, user)).map(Into::into);
        Server { host, address, port, password }
    };
    Ok((0..count).map(server).collect())
}

/// Reads how the connection is encrypted. Files of libpq's default names count if they are there.
fn tls(parameters: &Parameters, env: &BTreeMap<String, String>) -> Result<TlsSettings, String> {
    let default_file = |name: &str| {
        let path = Path::new(env.get("HOME")?).join(".postgresql").join(name);
        path.is_file().then_some(Pem::File(path))
    };
    let mode = parameters.get("sslmode").and_then(TlsMode::parse);
    let (mode, roots) = match parameters.get("sslrootcert") {
        Some("system") => match mode {
            None | Some(TlsMode::VerifyFull) => (TlsMode::VerifyFull, Some(Roots::System)),
            Some(_) => return Err("its parameter sslrootcert=system needs sslmode=verify-full".to_owned()),
        },
        given => {
            let roots = given.map(Pem::new).or_else(|| default_file("root.crt")).map(Roots::Only);
            (mode.unwrap_or(TlsMode::Prefer), roots)
        }
    };
    if mode >= TlsMode::VerifyCa && roots.is_none() {
        return Err("its sslmode verifies the server, but by no certificate: add sslrootcert=FILE, or sslrootcert=system for the system's \
                    certificates"
            .to_owned());
    }
    let file = |parameter: &str, name: &str| parameters.get(parameter).map(Pem::new).or_else(|| default_file(name));
    let client = match (file("sslcert", "postgresql.crt"), file("sslkey", "postgresql.key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) => return Err("its parameter sslcert needs sslkey".to_owned()),
        (None, _) => None,
    };
    let lowest = parameters.get("ssl_min_protocol_version").unwrap_or("TLSv1.2").to_owned();
    let highest = parameters.get("ssl_max_protocol_version").map(str::to_owned);
    Ok(TlsSettings {
        mode,
        roots,
        client,
        sends_name: parameters.get("sslsni") != Some("0"),
        versions: (lowest, highest),
    })
}
