//! Reads the names of the outbox's schema and tables.

use super::mistake::Mistake;
use super::resolved::Resolved;
use super::setting;

/// The names of the schema and its tables, as Postgres stores them. Quote them in SQL, never insert them as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxNames {
    /// The name of the schema.
    pub schema: String,
    /// The name of the outbox table.
    pub table: String,
    /// The name of the inbox: the consumers' table of processed events.
    pub processed_table: String,
}

impl OutboxNames {
    pub(super) fn read(from: &mut Resolved) -> OutboxNames {
        let before = from.mistakes.len();
        let names = OutboxNames {
            schema: from.get(&setting::SCHEMA),
            table: from.get(&setting::TABLE),
            processed_table: from.get(&setting::PROCESSED_TABLE),
        };
        if names.table == names.processed_table && from.mistakes.len() == before {
            from.mistakes.push(Mistake::new("RELAY_PROCESSED_TABLE", "is the same table as RELAY_TABLE"));
        }
        names
    }
}
