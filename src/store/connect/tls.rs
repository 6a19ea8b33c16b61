//! Encrypts a connection with the rules of libpq: the named root certificates are the only ones, certificates of version 1 and certificates
//! that sign themselves are fine, and a certificate without alternative names may name the host in its subject.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;

use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::{X509, X509Ref, X509VerifyResult};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::config::{Pem, Roots, TlsMode, TlsSettings};

/// The message that asks a server for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Asks the server for TLS, and shakes hands.
///
/// # Errors
/// [`sqlx::Error::Tls`] if the server has no TLS, or the handshake or the verification fails; [`sqlx::Error::Io`] if the server does not
/// answer.
pub(super) async fn encrypt(
    mut socket: TcpStream,
    settings: &TlsSettings,
    host: &str,
) -> Result<SslStream<TcpStream>, sqlx::Error> {
    socket.write_all(&SSL_REQUEST).await?;
    match socket.read_u8().await? {
        b'S' => {}
        b'N' => return Err(failed("the server has no TLS")),
        _ => return Err(sqlx::Error::Protocol("the answer to the request for TLS is not Postgres'".to_owned())),
    }
    let (owned, name) = (settings.clone(), host.to_owned());
    // Reading the system's certificates takes tens of milliseconds.
    let ssl = tokio::task::spawn_blocking(move || session(&owned, &name)).await;
    let ssl = ssl.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    let mut stream = SslStream::new(ssl, socket).map_err(|error| failed(error.to_string()))?;
    if let Err(error) = Pin::new(&mut stream).connect().await {
        let verified = stream.ssl().verify_result();
        return Err(match verified {
            X509VerifyResult::OK => failed(format!("the TLS handshake failed: {error}")),
            _ => failed(format!("the server's certificate is not trusted: {}", verified.error_string())),
        });
    }
    if settings.mode == TlsMode::VerifyFull {
        let certificate = stream.ssl().peer_certificate().ok_or_else(|| failed("the server has no certificate"))?;
        if !names(&certificate, host) {
            return Err(failed(format!("the server's certificate does not name the host {host}")));
        }
    }
    Ok(stream)
}

/// Returns true for an alert that comes after the handshake, such as a refused certificate of ours.
pub(super) fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<openssl::ssl::Error>())
}

fn failed(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Tls(reason.into())
}

/// Makes the client's side of a handshake with `host`.
fn session(settings: &TlsSettings, host: &str) -> Result<Ssl, String> {
    let stack = |error: ErrorStack| error.to_string();
    let mut context = SslContext::builder(SslMethod::tls_client()).map_err(stack)?;
    let (lowest, highest) = &settings.versions;
    context.set_min_proto_version(version(lowest)).map_err(stack)?;
    context.set_max_proto_version(highest.as_deref().and_then(version)).map_err(stack)?;
    match &settings.roots {
        None => context.set_verify(SslVerifyMode::NONE),
        Some(roots) => {
            context.set_verify(SslVerifyMode::PEER);
            match roots {
                Roots::System => {
                    let found = openssl_probe::probe();
                    let directory = found.cert_dir.first().map(|directory| directory.as_path());
                    context.load_verify_locations(found.cert_file.as_deref(), directory).map_err(stack)?;
                }
                Roots::Only(pem) => {
                    for certificate in certificates(pem, "sslrootcert")? {
                        context.cert_store_mut().add_cert(certificate).map_err(stack)?;
                    }
                }
            }
        }
    }
    if let Some((certificate, key)) = &settings.client {
        let mut chain = certificates(certificate, "sslcert")?.into_iter();
        let own = chain.next().ok_or("the file of sslcert holds no certificate")?;
        context.set_certificate(&own).map_err(stack)?;
        for next in chain {
            context.add_extra_chain_cert(next).map_err(stack)?;
        }
        // Without an answer, OpenSSL would ask for a passphrase at the terminal.
        let key = PKey::private_key_from_pem_callback(&read(key, "sslkey")?, |_| Ok(0));
        context.set_private_key(&*key.map_err(stack)?).map_err(stack)?;
        context.check_private_key().map_err(stack)?;
    }
    let mut ssl = Ssl::new(&context.build()).map_err(stack)?;
    if settings.sends_name && host.parse::<IpAddr>().is_err() {
        ssl.set_hostname(host).map_err(stack)?;
    }
    Ok(ssl)
}

fn read(pem: &Pem, parameter: &str) -> Result<Vec<u8>, String> {
    pem.read().map_err(|error: io::Error| format!("the file of {parameter} cannot be read: {error}"))
}

fn certificates(pem: &Pem, parameter: &str) -> Result<Vec<X509>, String> {
    X509::stack_from_pem(&read(pem, parameter)?)
        .map_err(|error| format!("the certificates of {parameter} cannot be read: {error}"))
}

fn version(name: &str) -> Option<SslVersion> {
    Some(match name {
        "TLSv1" => SslVersion::TLS1,
        "TLSv1.1" => SslVersion::TLS1_1,
        "TLSv1.2" => SslVersion::TLS1_2,
        "TLSv1.3" => SslVersion::TLS1_3,
        _ => return None,
    })
}

/// Returns true if the certificate names the host. The subject counts only without an alternative name of the host's kind.
fn names(certificate: &X509Ref, host: &str) -> bool {
    let address = host.parse::<IpAddr>().ok();
    let octets = address.map(|address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    });
    let mut subject_counts = true;
    for name in certificate.subject_alt_names().iter().flatten() {
        let (dns, ip) = (name.dnsname(), name.ipaddress());
        if dns.is_some_and(|pattern| matches(pattern, host)) || (ip.is_some() && ip == octets.as_deref()) {
            return true;
        }
        if (dns.is_some() && address.is_none()) || (ip.is_some() && address.is_some()) {
            subject_counts = false;
        }
    }
    let mut subjects = certificate.subject_name().entries_by_nid(Nid::COMMONNAME);
    let subject = subjects.next().and_then(|entry| entry.data().to_string().ok());
    subject_counts && subject.is_some_and(|pattern| matches(&pattern, host))
}

/// Compares without case. `*.` at the beginning stands for one label.
fn matches(pattern: &str, host: &str) -> bool {
    let wildcard = || {
        let (suffix, (label, rest)) = (pattern.strip_prefix("*.")?, host.split_once('.')?);
        Some(!label.is_empty() && suffix.eq_ignore_ascii_case(rest))
    };
    pattern.eq_ignore_ascii_case(host) || wildcard().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (pattern, host, expected) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("d*.example.com", "db.example.com", false),
            ("*", "db", false),
        ] {
            assert_eq!(matches(pattern, host), expected, "{pattern} {host}");
        }
    }
}
