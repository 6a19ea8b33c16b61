//! Describes an outbox of a demo: its schema, and the topic of its events.

use super::relay_settings;
use event_outbox::Names;

/// The schemas and topics that a demo needs.
#[derive(Debug, Clone, Copy)]
pub(in crate::demo) struct DemoSchemas {
    /// The schemas, each with an outbox.
    pub(in crate::demo) schemas: &'static [&'static str],
    /// The topic of the outboxes' events, or a template.
    pub(in crate::demo) topic: &'static str,
    /// All topics.
    pub(in crate::demo) topics: &'static [&'static str],
}

/// An outbox, and the settings of its relay.
#[derive(Debug)]
pub(in crate::demo) struct OutboxLocation {
    pub(in crate::demo) names: Names,
    /// The settings of the relay, as in a file for `--config`.
    pub(in crate::demo) settings: toml::Table,
    /// The environment variables that the relay must not see.
    pub(in crate::demo) hidden_variables: Vec<String>,
}

impl OutboxLocation {
    /// Creates the location of an outbox. `prefix` keeps its schema apart from the user's own; it is empty on a private server.
    pub(super) fn new(schema: &str, prefix: &str, given: &[(&str, &str)], hidden_variables: Vec<String>) -> Self {
        let schema = format!("{prefix}{schema}");
        let mut settings = relay_settings(given);
        settings.insert("schema".to_owned(), schema.as_str().into());
        Self { names: Names::new(&schema, "event_outbox", "processed_events"), settings, hidden_variables }
    }
}
