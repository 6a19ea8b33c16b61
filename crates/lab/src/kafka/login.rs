//! Compiles a broker's side of the login with IAM, which Amazon does not publish.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::jars;

/// The class name of the handler, for `sasl.server.callback.handler.class`.
const CLASS: &str = "SignedUrlHandler";

/// Compiles the handler into a directory, and returns its class name. It takes the signed URLs of the access key in the Java property
/// `signed.url.key` for the seconds in `signed.url.seconds`. It does not check the signature.
///
/// # Errors
/// Returns an error if there is no Java compiler.
pub fn signed_url_handler(directory: &Path) -> anyhow::Result<&'static str> {
    let output = Command::new("javac")
        .arg("-cp")
        .arg(jars::directory()?.join("*"))
        .arg("-d")
        .arg(directory)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kafka/SignedUrlHandler.java"))
        .output()
        .context("javac")?;
    ensure!(output.status.success(), "javac: {}", String::from_utf8_lossy(&output.stderr));
    Ok(CLASS)
}
