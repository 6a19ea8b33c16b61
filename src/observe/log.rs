//! Writes the log to stderr: as text on a terminal, as JSON elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};
use crate::observe::print::LogWriter;

/// Starts logging. A second call in one process changes nothing.
pub(crate) fn start(settings: &LogSettings) {
    // The configuration has checked the level. The default is for callers that construct settings by hand.
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogWriter).log_internal_errors(false);
    let started = if is_json(settings) {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
    };
    // An error means that the host program has installed its own subscriber, which then writes the log.
    drop(started);
}

/// Returns true if lines are JSON.
pub(crate) fn is_json(settings: &LogSettings) -> bool {
    match settings.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    }
}
