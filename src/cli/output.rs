//! Writes data to stdout. `println!` would panic after a reader such as `head` has closed the pipe.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::exit::Failure;
use crate::observe::print::{prose, stdout};

/// The version of all JSON documents. A new member does not change it; a member that goes away or means something else does.
const VERSION: u32 = 1;

/// A document with the version of its form.
#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    document: &'a T,
}

impl<'a, T> Versioned<'a, T> {
    fn new(document: &'a T) -> Self {
        Self { version: VERSION, document }
    }
}

/// Writes text for people. Returns false if the reader has closed the pipe.
pub(super) fn text(text: &str) -> bool {
    prose(text)
}

/// Writes a document as JSON. Its form is a schema of docs/reference/schemas. Returns false if the reader has closed the pipe.
pub(super) fn json(document: &impl Serialize) -> Result<bool, Failure> {
    let json = serde_json::to_string_pretty(&Versioned::new(document)).map_err(failed)?;
    Ok(stdout(format_args!("{json}\n")))
}

/// Writes a document as JSON on one line. Returns false if the reader has closed the pipe.
pub(super) fn json_line(document: &impl Serialize) -> Result<bool, Failure> {
    let json = serde_json::to_string(&Versioned::new(document)).map_err(failed)?;
    Ok(stdout(format_args!("{json}\n")))
}

fn failed(error: serde_json::Error) -> Failure {
    Failure::unexpected("the answer cannot be written as JSON", error)
}

/// Shows a time in the form that `--since` and `--until` take.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}
