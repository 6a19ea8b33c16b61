//! A finding: what is wrong, how bad it is, what fixes it.

use std::fmt;

use serde::Serialize;

use event_outbox::code::Code;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Worth knowing; nothing has to be done.
    Note,
    /// It works, and will hurt one day.
    Warning,
    /// Events do not go out, or a guarantee does not hold.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Its entry in docs/how-to/runbook.md.
    pub(crate) code: Code,
    /// The name of the code: for scripts, and for those who want to ignore it.
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    /// What is wrong, in one sentence.
    pub(crate) message: String,
    /// The SQL or the command that fixes it.
    pub(crate) fix: String,
}

impl Finding {
    pub(crate) fn error(code: Code, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, id: code.name(), severity: Severity::Error, message: message.into(), fix: fix.into() }
    }

    pub(crate) fn warning(code: Code, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, id: code.name(), severity: Severity::Warning, message: message.into(), fix: fix.into() }
    }

    pub(crate) fn note(code: Code, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, id: code.name(), severity: Severity::Note, message: message.into(), fix: fix.into() }
    }
}
