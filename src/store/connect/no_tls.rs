//! Stands in for TLS in a build without it: every connection that asks for TLS is refused.

use std::io;

use tokio::net::TcpStream;

use crate::config::TlsSettings;

/// Refuses to encrypt.
///
/// # Errors
/// Always [`sqlx::Error::Tls`].
#[expect(clippy::unused_async, reason = "the signature is that of a build with TLS")]
pub(super) async fn encrypt(_: TcpStream, _: &TlsSettings, _: &str) -> Result<TcpStream, sqlx::Error> {
    Err(sqlx::Error::Tls(
        "this build has no TLS: build the relay with its feature `tls`, which is on by default".into(),
    ))
}

/// Returns false: no error is one of TLS.
pub(super) fn is_of_tls(_: &io::Error) -> bool {
    false
}
