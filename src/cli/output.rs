//! Data on stdout. `println!` panics when its reader has seen enough, such as `head`.

use std::io::Write;

use serde::Serialize;

use super::exit::Failure;

/// Writes text; false when nobody reads any more.
pub(super) fn text(text: &str) -> bool {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}

/// Writes a document as JSON; false when nobody reads any more.
pub(super) fn json(document: &impl Serialize) -> Result<bool, Failure> {
    serde_json::to_string_pretty(document).map(|json| text(&(json + "\n"))).map_err(failed)
}

/// Writes JSON on one line; false when nobody reads any more.
pub(super) fn json_line(document: &impl Serialize) -> Result<bool, Failure> {
    serde_json::to_string(document).map(|json| text(&(json + "\n"))).map_err(failed)
}

fn failed(error: serde_json::Error) -> Failure {
    Failure::unexpected("the answer cannot be written as JSON", error)
}
