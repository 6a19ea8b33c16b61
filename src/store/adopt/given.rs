//! Holds the user's words about the table, and the reasons of a refusal.

use super::role::Role;

/// The user's words about the table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    /// Columns and their meaning.
    pub(crate) map: Vec<(String, Role)>,
    /// Values that are the same for all rows.
    pub(crate) constants: Vec<(Role, String)>,
    /// Values of the state column that mean: not published yet.
    pub(crate) pending: Vec<String>,
    /// Values of the state column that mean: published, or given up. The first one marks the rows that are handed over.
    pub(crate) done: Vec<String>,
    /// True if the loop deletes the rows that it has published.
    pub(crate) deletes: bool,
}

/// A reason why the table is not adopted, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) fix: String,
}

pub(super) fn refusal(reason: impl Into<String>, fix: impl Into<String>) -> Refusal {
    Refusal { reason: reason.into(), fix: fix.into() }
}
