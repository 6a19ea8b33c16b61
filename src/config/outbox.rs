//! What the outbox tables are called.

use super::mistake::Mistake;
use super::resolved::Resolved;

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
    pub(super) fn read(from: &mut Resolved) -> Option<OutboxNames> {
        let schema = from.required("schema", |_, text| identifier(text));
        let table = from.required("table", |_, text| identifier(text));
        let processed_table = from.required("processed_table", |_, text| identifier(text));
        let names = OutboxNames { schema: schema?, table: table?, processed_table: processed_table? };
        if names.table == names.processed_table {
            from.mistakes.push(Mistake::new("RELAY_PROCESSED_TABLE", "is the same table as RELAY_TABLE"));
        }
        Some(names)
    }
}

/// Postgres cuts longer names in silence, and two of them may become one.
fn identifier(text: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&text.len()) && !text.contains('\0');
    if fits { Ok(text.to_owned()) } else { Err(String::new()) }
}
