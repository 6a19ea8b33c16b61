//! What an operator sees: for now, the logs.
//!
//! - `code`: what each warning and error is about; docs/runbook.md has an entry for each
//! - `log`: how lines look

pub(crate) mod code;
#[cfg(feature = "relay")]
pub(crate) mod log;
