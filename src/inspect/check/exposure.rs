//! Says what the configuration exposes: connections without TLS or verification, and secrets that others can see.

use std::path::PathBuf;

use super::finding::Finding;
use crate::config::{Exposure, Settings};
use event_outbox::code::Code;

/// The codes of these findings.
pub(super) const CODES: [Code; 7] = [
    Code::DatabasePlaintext,
    Code::DatabaseUnverified,
    Code::BrokerPlaintext,
    Code::BrokerPassword,
    Code::BrokerUnverified,
    Code::SecretArgument,
    Code::SecretReadable,
];

/// Returns a finding for each exposure of a configuration.
pub(crate) fn exposures(settings: &Settings) -> Vec<Finding> {
    settings.exposures().iter().map(|exposure| finding(exposure, settings)).collect()
}

fn finding(exposure: &Exposure, settings: &Settings) -> Finding {
    let database = settings.database.target();
    let brokers = settings.kafka.as_ref().map_or("", |kafka| kafka.brokers());
    match exposure {
        Exposure::DatabasePlaintext => Finding::warning(
            Code::DatabasePlaintext,
            format!(
                "The connection to {database} may be without TLS: whoever is on its way can read and change the events."
            ),
            "add sslmode=verify-full and sslrootcert=FILE (or sslrootcert=system) to DATABASE_URL",
        ),
        Exposure::DatabaseUnverified => Finding::warning(
            Code::DatabaseUnverified,
            format!(
                "The certificate of {database} is not verified: another server can take its place and the password."
            ),
            "set sslmode=verify-full and sslrootcert=FILE (or sslrootcert=system) in DATABASE_URL",
        ),
        Exposure::BrokerPlaintext => Finding::warning(
            Code::BrokerPlaintext,
            format!(
                "The connections to {brokers} are without TLS: whoever is on their way can read and change the events."
            ),
            "set KAFKA_SECURITY_PROTOCOL to ssl or sasl_ssl, and the brokers' listener with TLS in KAFKA_BOOTSTRAP_SERVERS",
        ),
        Exposure::BrokerPassword => Finding::warning(
            Code::BrokerPassword,
            format!("The password or token for {brokers} is sent without TLS: whoever is on its way can use it."),
            "set KAFKA_SECURITY_PROTOCOL=sasl_ssl, then change the password",
        ),
        Exposure::BrokerUnverified => Finding::warning(
            Code::BrokerUnverified,
            format!("The certificates of {brokers} are not verified: another server can take their place."),
            "remove KAFKA_ENABLE_SSL_CERTIFICATE_VERIFICATION and KAFKA_SSL_ENDPOINT_IDENTIFICATION_ALGORITHM; name a CA of your own with KAFKA_SSL_CA_LOCATION",
        ),
        Exposure::SecretArgument(names) => Finding::warning(
            Code::SecretArgument,
            format!(
                "Secrets are on the command line, where every user of this host can read them: {}.",
                names.join(", ")
            ),
            "give them by a file: NAME_FILE in the environment, or --set NAME_file=PATH",
        ),
        Exposure::SecretReadable(files) => Finding::warning(
            Code::SecretReadable,
            format!("Every user of this host can read files with secrets in them: {}.", list(files)),
            format!("chmod o-r {}; in Kubernetes set the volume's defaultMode to 0440", list(files).replace(", ", " ")),
        ),
    }
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
