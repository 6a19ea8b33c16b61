//! Turns the changes of a table of the application into events, by triggers.
//!
//! - [`key`]: which columns name the entity, and whether its events have an order
//! - [`order`]: which triggers of the application would come before the events
//! - [`script`]: the SQL that sets the triggers and removes them
//! - [`parts`]: the triggers and functions, and whether they are installed already
//! - [`backfill`]: one event for each row that was there before
//!
//! The order of ids is the order of commits for an entity whose key is unique: a change of a row holds the row's lock until it commits, and
//! its event gets an id after that lock. A key that is deleted and inserted again waits for the end of the first transaction. So the trigger
//! takes no lock of its own, and is immediate. Only beside a trigger of the application that runs after each row it is deferred: that one may
//! change another row of the same statement before its first event is made.

pub(crate) mod backfill;
pub(crate) mod key;
pub(crate) mod order;
pub(crate) mod parts;
pub(crate) mod script;

use serde::{Deserialize, Serialize};

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    Insert,
    Update,
    Delete,
}

impl Change {
    /// Returns the word for SQL.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// Says what becomes of the changes of a table. It is stored as JSON in the comments of the trigger functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    /// The table's quoted name when it was captured, which the events have.
    pub(crate) table: String,
    pub(crate) on: Vec<Change>,
    /// The columns whose values are the entity's id.
    pub(crate) key: Vec<String>,
    /// True if no two rows have the same key.
    pub(crate) unique: bool,
    /// The columns of an event; all if `None`.
    pub(crate) columns: Option<Vec<String>>,
    pub(crate) entity_type: String,
    /// The type of an event, with `{op}` for what has happened.
    pub(crate) event_type: String,
    pub(crate) bulk: bool,
    /// True if the events are made when the transaction commits: the table has other triggers that run after each row.
    pub(crate) deferred: bool,
    pub(crate) allow_truncate: bool,
}

/// The placeholder in the type of an event.
pub(crate) const OP: &str = "{op}";

impl Definition {
    /// Returns the type of an event, for example of `Created`.
    pub(crate) fn event_type(&self, op: &str) -> String {
        self.event_type.replace(OP, op)
    }
}

/// Settings that shape the text of values. They are fixed for triggers and for the backfill, so that an event does not depend on the
/// session that makes the change. Policies of the table must not hide rows without a word.
pub(crate) const SETTINGS: [(&str, &str); 8] = [
    ("timezone", "UTC"),
    ("datestyle", "ISO, YMD"),
    ("intervalstyle", "iso_8601"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("lc_monetary", "C"),
    ("xmlbinary", "base64"),
    ("row_security", "off"),
];
