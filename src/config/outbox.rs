//! What the outbox tables are called.

use super::mistake::Mistake;
use super::resolved::Resolved;
use super::setting;

/// Names of the schema and its tables, as Postgres stores them: quote them, never splice them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxNames {
    /// The schema.
    pub schema: String,
    /// The outbox.
    pub table: String,
    /// The consumers' table of processed events.
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
