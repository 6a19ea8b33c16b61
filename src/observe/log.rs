//! Writes the log to stderr: as text on a terminal, as JSON elsewhere.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt, registry};

use crate::config::{LogFormat, LogSettings};
use crate::observe::print::LogWriter;

/// The target of the lines in which sqlx logs what the server reports beside its answers.
const SERVER_NOTICES: &str = "sqlx::postgres::notice";

/// Starts logging. A second call in one process changes nothing.
pub(crate) fn start(settings: &LogSettings) {
    // The configuration has checked the level. The default is for callers that construct settings by hand.
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    // sqlx logs the server's own warnings, such as one about collations, at each connection. Every WARN line has a code and a next step.
    let of_server = filter_fn(|line| *line.level() > Level::WARN || line.target() != SERVER_NOTICES);
    let lines = fmt::layer().with_writer(|| LogWriter).log_internal_errors(false);
    let started = if is_json(settings) {
        let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
        registry().with(filter).with(lines.with_filter(of_server)).try_init()
    } else {
        let lines = lines.with_ansi(std::io::stderr().is_terminal()).with_target(false);
        registry().with(filter).with(lines.with_filter(of_server)).try_init()
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
