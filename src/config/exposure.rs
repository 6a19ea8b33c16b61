//! Finds what a configuration exposes: connections that others can read or redirect, and secrets that others can see.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::database::{DatabaseSettings, Host, Server, TlsMode};
use super::kafka::KafkaSettings;
use super::layer::Target;
use super::mistake::shown_name;
use super::sources::Sources;

/// Something that a configuration exposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposure {
    /// Rows and the password's exchange can go to Postgres without TLS.
    DatabasePlaintext,
    /// Postgres is not verified: its connection can be redirected.
    DatabaseUnverified,
    /// Events go to the brokers without TLS.
    BrokerPlaintext,
    /// A password or a token goes to the brokers without TLS.
    BrokerPassword,
    /// The brokers' certificates are not verified.
    BrokerUnverified,
    /// These settings are secrets that were given on the command line.
    SecretArgument(Vec<String>),
    /// These files have secrets in them, and every user of this host may read them.
    SecretReadable(Vec<PathBuf>),
}

/// The mode bit of a file that every user may read.
const OTHERS_READ: u32 = 0o004;

/// Lists what is exposed. `secret_files` are those that values of secrets were read from.
pub(super) fn find(
    sources: &Sources,
    database: &DatabaseSettings,
    kafka: Option<&KafkaSettings>,
    secret_files: &BTreeSet<PathBuf>,
) -> Vec<Exposure> {
    let mut found = Vec::new();
    found.extend(of_database(database));
    found.extend(kafka.into_iter().flat_map(of_brokers));
    let arguments = secret_arguments(sources, database);
    if !arguments.is_empty() {
        found.push(Exposure::SecretArgument(arguments));
    }
    let keys = kafka.into_iter().flat_map(KafkaSettings::secret_files);
    let is_readable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & OTHERS_READ != 0);
    let readable: BTreeSet<_> = secret_files.iter().cloned().chain(keys).filter(is_readable).collect();
    if !readable.is_empty() {
        found.push(Exposure::SecretReadable(readable.into_iter().collect()));
    }
    found
}

fn of_database(database: &DatabaseSettings) -> Option<Exposure> {
    let is_far = |server: &Server| match (&server.host, server.address) {
        (Host::Socket(_), _) => false,
        (Host::Name(_), Some(address)) => !address.is_loopback(),
        (Host::Name(name), None) => !is_near(name),
    };
    if !database.servers.iter().any(is_far) {
        return None;
    }
    match database.tls.mode {
        TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer => Some(Exposure::DatabasePlaintext),
        TlsMode::Require if database.tls.roots.is_none() => Some(Exposure::DatabaseUnverified),
        // With a root certificate `require` verifies as `verify-ca` does, which takes any host that the root vouches for.
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => None,
    }
}

fn of_brokers(kafka: &KafkaSettings) -> Vec<Exposure> {
    if kafka.hosts().all(is_near) {
        return Vec::new();
    }
    match (kafka.is_encrypted(), kafka.sends_secret()) {
        (true, _) if kafka.is_unverified() => vec![Exposure::BrokerUnverified],
        (true, _) => Vec::new(),
        (false, true) => vec![Exposure::BrokerPlaintext, Exposure::BrokerPassword],
        (false, false) => vec![Exposure::BrokerPlaintext],
    }
}

/// Returns true for a host whose packets do not leave this one.
fn is_near(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns the names of the secrets in `--set`, which every user of this host sees in the list of processes.
fn secret_arguments(sources: &Sources, database: &DatabaseSettings) -> Vec<String> {
    let has_password = database.servers.iter().any(|server| server.password.is_some());
    let is_secret = |name: &str| match name {
        "database_url" => has_password,
        name => Target::from_key(name).is_some_and(Target::is_secret),
    };
    let names = sources.overrides.iter().map(|(name, _)| name.as_str()).filter(|name| is_secret(name));
    names.map(|name| shown_name(name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::{Needs, Settings};
    use super::*;

    fn exposures(env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Vec<Exposure> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let sources =
            Sources { file: None, env: env.iter().map(own).collect(), overrides: overrides.iter().map(own).collect() };
        Settings::load(sources, Needs::DatabaseAndKafka).unwrap().exposures().to_vec()
    }

    fn of(database_url: &str, brokers: &str, more: &[(&str, &str)]) -> Vec<Exposure> {
        let both = [("DATABASE_URL", database_url), ("KAFKA_BOOTSTRAP_SERVERS", brokers)];
        exposures(&[&both, more].concat(), &[])
    }

    const NEAR: &str = "postgres://u:p@localhost/d";

    #[test]
    fn only_connections_that_leave_the_host_are_exposed() {
        for near in
            [NEAR, "postgres://u@127.0.0.1/d", "postgres://u@[::1]/d", "postgres:///d?host=/run/postgresql&user=u"]
        {
            assert_eq!(of(near, "127.0.0.1:1,[::1]:2,localhost:3", &[]), [], "{near}");
        }
        let cases = [
            ("", Some(Exposure::DatabasePlaintext)),
            ("?sslmode=prefer", Some(Exposure::DatabasePlaintext)),
            ("?sslmode=disable", Some(Exposure::DatabasePlaintext)),
            ("?sslmode=require", Some(Exposure::DatabaseUnverified)),
            ("?sslmode=verify-full&sslrootcert=system", None),
        ];
        for (parameters, expected) in cases {
            let found = of(&format!("postgres://u@db.example.com/d{parameters}"), "localhost:1", &[]);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{parameters}");
        }
        let two = of("postgres://u@localhost,db.example.com/d", "localhost:1", &[]);
        assert_eq!(two, [Exposure::DatabasePlaintext]);
    }

    #[test]
    fn passwords_and_tokens_need_tls_on_the_way_to_brokers() {
        let far = |more: &[(&str, &str)]| of(NEAR, "localhost:1,kafka.example.com:2", more);
        let login = |protocol, mechanism| {
            let all = [
                ("KAFKA_SECURITY_PROTOCOL", protocol),
                ("KAFKA_SASL_MECHANISM", mechanism),
                ("KAFKA_SASL_USERNAME", "u"),
                ("KAFKA_SASL_PASSWORD", "p"),
            ];
            far(&all)
        };
        assert_eq!(far(&[]), [Exposure::BrokerPlaintext]);
        assert_eq!(login("sasl_plaintext", "PLAIN"), [Exposure::BrokerPlaintext, Exposure::BrokerPassword]);
        assert_eq!(login("sasl_plaintext", "SCRAM-SHA-256"), [Exposure::BrokerPlaintext]);
        assert_eq!(login("sasl_ssl", "PLAIN"), []);
        let unverified = [("KAFKA_SECURITY_PROTOCOL", "ssl"), ("KAFKA_ENABLE_SSL_CERTIFICATE_VERIFICATION", "false")];
        assert_eq!(far(&unverified), [Exposure::BrokerUnverified]);
        let unnamed = [("KAFKA_SECURITY_PROTOCOL", "ssl"), ("KAFKA_SSL_ENDPOINT_IDENTIFICATION_ALGORITHM", "none")];
        assert_eq!(far(&unnamed), [Exposure::BrokerUnverified]);
    }

    #[test]
    fn secrets_that_others_see_are_named() {
        let given = [("DATABASE_URL", NEAR), ("KAFKA_BOOTSTRAP_SERVERS", "localhost:1")];
        let found = exposures(&given, &[("batch_size", "5"), ("admin_token", "change-me-change-me")]);
        assert_eq!(found, [Exposure::SecretArgument(vec!["admin_token".to_owned()])]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"change-me-change-me\n").unwrap();
        let path = file.path().display().to_string();
        let with_file = || of(NEAR, "localhost:1", &[("RELAY_ADMIN_TOKEN_FILE", &path)]);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(with_file(), []);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(with_file(), [Exposure::SecretReadable(vec![file.path().to_owned()])]);
    }

    /// Texts show a path escaped and cut. The file behind it is looked at by its own name.
    #[test]
    fn a_configuration_file_with_a_long_or_odd_name_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a\u{1b}".repeat(30)).join("b".repeat(200)).join("relay.toml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("database_url = '{NEAR}'\nkafka_bootstrap_servers = 'localhost:1'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let sources = Sources { file: Some(path.clone()), ..Sources::default() };
        let found = Settings::load(sources, Needs::DatabaseAndKafka).unwrap();
        assert_eq!(found.exposures(), [Exposure::SecretReadable(vec![path])]);
    }
}
