//! Defines a finding: the problem, its severity, and its fix.

use std::fmt;

use serde::Serialize;

use event_outbox::code::Code;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Information; no action is needed.
    Note,
    /// A problem that does no harm yet, but will later.
    Warning,
    /// A problem that keeps events from being published, or breaks a guarantee.
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

/// One problem that a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The code, which has an entry in docs/how-to/runbook.md.
    pub(crate) code: Code,
    /// The name of the code, for scripts and for the option that ignores findings.
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    /// The problem in one sentence.
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
