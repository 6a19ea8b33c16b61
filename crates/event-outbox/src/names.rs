//! Derives the identifiers of one outbox from its schema and table names. All are quoted, so that they are safe in SQL text.

use crate::hash::fnv1a;

/// Postgres truncates identifiers beyond this many bytes (`NAMEDATALEN - 1`).
const MAX_IDENTIFIER_BYTES: usize = 63;

/// The search path of all SQL of this crate and of the relay. On any other path, a user with CREATE on one of its schemas can put functions,
/// operators and types there that match a call better than those of `pg_catalog`, and every session that makes the call runs them.
pub const SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// The quoted, schema-qualified names of one outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    schema: String,
    table: String,
    processed_table: String,
}

impl Default for Names {
    /// Returns the names `event_outbox` and `processed_events` in `public`.
    fn default() -> Self {
        Self::new("public", "event_outbox", "processed_events")
    }
}

impl Names {
    /// Creates the names for the outbox `table` and the inbox `processed_table` in `schema`. All three are unquoted, with 1 to 63 bytes and
    /// without NUL.
    pub fn new(schema: &str, table: &str, processed_table: &str) -> Self {
        Self { schema: schema.to_owned(), table: table.to_owned(), processed_table: processed_table.to_owned() }
    }

    /// Returns the schema, unquoted.
    pub fn schema_raw(&self) -> &str {
        &self.schema
    }

    /// Returns the outbox table, unquoted and without schema.
    pub fn table_raw(&self) -> &str {
        &self.table
    }

    /// Returns the unquoted name of the inbox table, to look it up in the catalogs.
    pub fn processed_raw(&self) -> &str {
        &self.processed_table
    }

    /// Returns the schema, quoted.
    pub fn schema(&self) -> String {
        quote(&self.schema)
    }

    /// Returns the outbox table, quoted and with its schema.
    pub fn outbox(&self) -> String {
        self.qualified(&self.table)
    }

    /// Returns the inbox table, quoted and with its schema.
    pub fn processed(&self) -> String {
        self.qualified(&self.processed_table)
    }

    /// Returns the table of the keys that consumers hold, `processed_events_held`.
    pub fn held(&self) -> String {
        self.inbox_companion("held")
    }

    /// Returns a companion of the inbox: `processed_events` and `group` give `"public"."processed_events_group"`.
    pub fn inbox_companion(&self, suffix: &str) -> String {
        self.qualified(&derive(&self.processed_table, suffix))
    }

    /// Returns a trigger or an index of the inbox, quoted but without schema.
    pub fn inbox_part(&self, suffix: &str) -> String {
        quote(&derive(&self.processed_table, suffix))
    }

    /// Returns the table of the topics that consumer groups read, `processed_events_source`.
    pub fn source(&self) -> String {
        self.inbox_companion("source")
    }

    /// Returns a companion table of the outbox: `event_outbox` and `lane` give `"public"."event_outbox_lane"`.
    pub fn companion(&self, suffix: &str) -> String {
        self.qualified(&derive(&self.table, suffix))
    }

    /// Returns an index or a constraint of the outbox table, quoted but without schema, as `create index` wants it.
    pub fn part(&self, suffix: &str) -> String {
        quote(&derive(&self.table, suffix))
    }

    /// Returns an index of the outbox table, unquoted, as `pg_class.relname` and EXPLAIN show it.
    pub fn part_raw(&self, suffix: &str) -> String {
        derive(&self.table, suffix)
    }

    /// Returns a trigger that runs before all others of its table and kind, unquoted: Postgres runs triggers in the order of their names.
    pub fn first_trigger_raw(&self, suffix: &str) -> String {
        derive(&format!("0_{}", self.table), suffix)
    }

    /// Returns a role of the outbox, quoted: `event_outbox` and `writer` give `"event_outbox_writer"`. Roles belong to the whole server;
    /// another `prefix` keeps the roles of two outboxes with the same table name apart.
    pub fn role(&self, prefix: Option<&str>, suffix: &str) -> String {
        quote(&derive(prefix.unwrap_or(&self.table), suffix))
    }

    /// Returns the function that writes an event: `outbox_emit`, or `<table>_emit` for a table of another name, so that two outboxes in one
    /// schema do not replace each other's function.
    pub fn emit(&self) -> String {
        match self.table.as_str() {
            "event_outbox" => self.qualified("outbox_emit"),
            table => self.qualified(&derive(table, "emit")),
        }
    }

    /// Returns the function that writes many events: `outbox_emit_many`, or `<table>_emit_many`.
    pub fn emit_many(&self) -> String {
        match self.table.as_str() {
            "event_outbox" => self.qualified("outbox_emit_many"),
            table => self.qualified(&derive(table, "emit_many")),
        }
    }

    /// Returns the function of the inbox: `event_once`, or `<processed table>_once` for a table of another name.
    pub fn once(&self) -> String {
        match self.processed_table.as_str() {
            "processed_events" => self.qualified("event_once"),
            table => self.qualified(&derive(table, "once")),
        }
    }

    /// Returns the first key of the advisory locks by which writers know that a relay sleeps. The second key is 0 to 7.
    pub fn wake_up_class(&self) -> i32 {
        fnv1a(format!("outbox-relay wake-up {}", self.outbox()).as_bytes()) as i32
    }

    /// Returns the channel on which writers wake a relay that sleeps.
    pub fn wake_up_channel(&self) -> String {
        format!("outbox_relay_{:016x}", fnv1a(self.outbox().as_bytes()))
    }

    fn qualified(&self, name: &str) -> String {
        format!("{}.{}", quote(&self.schema), quote(name))
    }
}

/// Quotes `name` as an SQL identifier.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes `text` as an SQL literal that does not depend on `standard_conforming_strings`.
pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Returns `<table>_<suffix>`. If the result is longer than Postgres allows, the table's part is cut and a hash of the whole table name
/// keeps two long names apart.
fn derive(table: &str, suffix: &str) -> String {
    let plain = format!("{table}_{suffix}");
    if plain.len() <= MAX_IDENTIFIER_BYTES {
        return plain;
    }
    let tail = format!("_{:08x}_{suffix}", fnv1a(table.as_bytes()) as u32);
    let mut cut = MAX_IDENTIFIER_BYTES - tail.len();
    while !table.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{tail}", &table[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_derived() {
        let names = Names::new("my \"schema", "Weird name; drop table x", "processed_events");
        assert_eq!(names.outbox(), r#""my ""schema"."Weird name; drop table x""#);
        assert_eq!(names.companion("lane"), r#""my ""schema"."Weird name; drop table x_lane""#);
        assert_eq!(names.emit(), r#""my ""schema"."Weird name; drop table x_emit""#);
        assert_eq!(names.once(), r#""my ""schema"."event_once""#);
    }

    #[test]
    fn derived_names_of_the_longest_tables_stay_within_the_limit_and_apart() {
        let one = "é".repeat(31) + "x";
        let two = "é".repeat(31) + "y";
        assert_eq!(one.len(), MAX_IDENTIFIER_BYTES);
        let (one, two) = (derive(&one, "one_payload"), derive(&two, "one_payload"));
        assert!(one.len() <= MAX_IDENTIFIER_BYTES && two.len() <= MAX_IDENTIFIER_BYTES);
        assert_ne!(one, two);
    }

    #[test]
    fn literals_survive_quotes_and_backslashes() {
        assert_eq!(literal(r"a'b\c"), r"E'a''b\\c'");
    }
}
