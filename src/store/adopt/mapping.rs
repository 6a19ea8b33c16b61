//! Holds the meaning of the columns of the loop's table.

use serde::Serialize;

use super::flag::Flag;
use super::role::Role;

/// The source of a part of the event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    Column { name: String, declared: String, base: String },
    Constant(String),
}

/// The meaning of the columns.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    /// The parts of the event, in the order of [`Role::PARTS`].
    pub(crate) parts: Vec<(Role, Source)>,
    /// The columns that find a row again: the primary key.
    pub(crate) key: Vec<String>,
    /// The column by which the pending rows are moved.
    pub(crate) id: String,
    pub(crate) flag: Flag,
    /// The columns that mean nothing to the outbox.
    pub(crate) unused: Vec<String>,
    /// Notes for the user.
    pub(crate) notes: Vec<String>,
}

impl Mapping {
    /// Returns where a part comes from.
    pub(crate) fn part(&self, role: Role) -> Option<&Source> {
        self.parts.iter().find(|(found, _)| *found == role).map(|(_, source)| source)
    }
}
