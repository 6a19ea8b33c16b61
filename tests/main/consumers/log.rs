//! Keeps the log lines of the consumers that run in this process, so that trials can look at them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// A log line of the library or of a handler.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) level: Level,
    fields: Fields,
    /// The fields of the span that a handler runs in.
    span: Fields,
}

#[derive(Debug, Clone, Default)]
struct Fields(BTreeMap<&'static str, String>);

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

fn lines() -> MutexGuard<'static, Vec<Line>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to keep the lines.
pub(super) fn keep() {
    // A second subscriber is refused, and then the trials that look at lines fail.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Keep));
}

/// Returns the lines about a topic or about the group of the same name, in the order in which they were written.
pub(super) fn about(topic: &str) -> Vec<Line> {
    lines()
        .iter()
        .filter(|line| line.fields.0.values().chain(line.span.0.values()).any(|value| value == topic))
        .cloned()
        .collect()
}

/// Returns the lines about a topic that have this code.
pub(super) fn with_code(topic: &str, code: event_outbox::code::Code) -> Vec<Line> {
    let code = code.to_string();
    about(topic).into_iter().filter(|line| line.get("code") == code).collect()
}

impl Line {
    /// Returns the value of a field, or an empty text.
    pub(super) fn get(&self, field: &str) -> &str {
        self.fields.0.get(field).map_or("", String::as_str)
    }

    /// Returns the value of a field of the span.
    pub(super) fn span(&self, field: &str) -> &str {
        self.span.0.get(field).map_or("", String::as_str)
    }

    /// Returns true if the line says that an incident is over.
    pub(super) fn is_resolved(&self) -> bool {
        self.get("notice") == event_outbox::notice::Notice::Resolved.to_string()
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

struct Keep;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keep {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        let target = metadata.target();
        *metadata.level() <= Level::INFO
            && (target.starts_with("event_outbox::consumer") || target.starts_with(module_path!()))
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let span = context.event_span(event).and_then(|span| span.extensions().get::<Fields>().cloned());
        lines().push(Line { level: *event.metadata().level(), fields, span: span.unwrap_or_default() });
    }
}

/// Writes a line, as a handler of a service does.
pub(super) fn write_in_handler() {
    tracing::info!(handler = true, "a handler is at work");
}
