//! Writes data to stdout. `println!` would panic after a reader such as `head` has closed the pipe.

use serde::Serialize;

use super::exit::Failure;
use crate::observe::print::stdout;

/// Writes text. Returns false if the reader has closed the pipe.
pub(super) fn text(text: &str) -> bool {
    stdout(format_args!("{text}"))
}

/// Writes a document as JSON. Returns false if the reader has closed the pipe.
pub(super) fn json(document: &impl Serialize) -> Result<bool, Failure> {
    serde_json::to_string_pretty(document).map(|json| text(&(json + "\n"))).map_err(failed)
}

/// Writes a document as JSON on one line. Returns false if the reader has closed the pipe.
pub(super) fn json_line(document: &impl Serialize) -> Result<bool, Failure> {
    serde_json::to_string(document).map(|json| text(&(json + "\n"))).map_err(failed)
}

fn failed(error: serde_json::Error) -> Failure {
    Failure::unexpected("the answer cannot be written as JSON", error)
}
