//! Writes the log to stderr: as text on a terminal, as JSON elsewhere.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::Level;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt, registry, reload};

use crate::config::{LogFormat, LogSettings};
use crate::observe::print::LogWriter;
use crate::observe::terminal::Stream;
use crate::text;

/// The target of the lines in which sqlx logs what the server reports beside its answers.
const SERVER_NOTICES: &str = "sqlx::postgres::notice";

type SetFilter = dyn Fn(EnvFilter) + Send + Sync;

/// Replaces the filter of the log.
static SET_FILTER: OnceLock<Box<SetFilter>> = OnceLock::new();

/// Starts logging. A second call in one process changes nothing.
pub(crate) fn start(settings: &LogSettings) {
    // The configuration has checked the level. The default is for callers that construct settings by hand.
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    // sqlx logs the server's own warnings, such as one about collations, at each connection. Every WARN line has a code and a next step.
    let of_server = filter_fn(|line| *line.level() > Level::WARN || line.target() != SERVER_NOTICES);
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(|| LogWriter).log_internal_errors(false);
    let started = if is_json(settings) {
        let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
        registry().with(filter).with(lines.with_filter(of_server)).try_init()
    } else {
        let lines = lines.with_ansi(Stream::Err.is_coloured()).with_target(false);
        let lines = lines.fmt_fields(debug_fn(field).delimited(" "));
        registry().with(filter).with(lines.with_filter(of_server)).try_init()
    };
    // An error means that the host program has installed its own subscriber, which then writes the log.
    if started.is_ok() {
        let _ = SET_FILTER.set(Box::new(move |filter| drop(handle.reload(filter))));
    }
}

/// Sets the level of the log from now on. The configuration has checked it.
pub(crate) fn set_level(level: &str) {
    if let (Some(set_filter), Ok(filter)) = (SET_FILTER.get(), EnvFilter::try_new(level)) {
        set_filter(filter);
    }
}

/// Writes one field of a line of text. Values may come from users, so each stays on the line, escaped and cut, and cannot pass for another
/// field.
fn field(line: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    match field.name() {
        "message" => write!(line, "{}", text::sentence(&value)),
        // A text is quoted already.
        name if value.starts_with('"') || !value.contains([' ', '=', '"']) => {
            write!(line, "{name}={}", text::sentence(&value))
        }
        name => write!(line, "{name}=\"{}\"", text::sentence(&value.replace('"', "'"))),
    }
}

/// Returns true if lines are JSON.
pub(crate) fn is_json(settings: &LogSettings) -> bool {
    match settings.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::written::Written;

    #[test]
    fn a_line_of_text_stays_one_line_whatever_its_values_contain() {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        let lines = lines.fmt_fields(debug_fn(field).delimited(" ")).finish();
        let hostile = "a notice=ready\u{1b}[2J\nb\u{202e}";
        tracing::subscriber::with_default(lines, || tracing::info!(shown = %hostile, quoted = hostile, "it goes on"));
        let line = written.text();
        assert!(line.ends_with("\n") && line.lines().count() == 1, "{line:?}");
        assert!(line.contains(r#"it goes on shown="a notice=ready\u001b[2J\nb\u202e" quoted="#), "{line:?}");
        assert!(!line.contains(['\u{1b}', '\u{202e}']), "{line:?}");
    }
}
