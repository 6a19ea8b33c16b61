//! Reads the settings of the log.

use super::resolved::Resolved;
use super::setting;
use super::value::words;

/// The settings of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The format of a line.
    pub format: LogFormat,
    /// The checked directives for `EnvFilter`.
    pub level: String,
}

words! {
    /// The form of a log line.
    LogFormat {
        /// Text on a terminal, JSON elsewhere.
        Auto = "auto",
        /// For people.
        Text = "text",
        /// For machines.
        Json = "json",
    }
}

impl LogSettings {
    pub(super) fn read(from: &mut Resolved) -> LogSettings {
        LogSettings { format: from.get(&setting::LOG_FORMAT), level: from.get(&setting::LOG_LEVEL) }
    }
}
