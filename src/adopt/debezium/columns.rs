//! Describes the columns of the application's table, and prints their values as the connector does.

use std::collections::BTreeMap;

use super::name::check_name;
use crate::adopt::trigger::column;

/// The type of a column, as far as the connector distinguishes types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Uuid,
    Text,
    /// `character(n)`, which the connector sends with its trailing spaces.
    Char,
    Enum,
    Json,
    Bytea,
    Int2,
    Int4,
    Int8,
    Bool,
    /// A timestamp with a time zone, and its digits behind the second.
    TimestampTz(u8),
    /// A timestamp without a time zone. True if it has at most milliseconds.
    Timestamp(bool),
    Date,
    Other(String),
}

impl Kind {
    /// Parses a type as `format_type` prints it, such as `character varying(40)`.
    pub(crate) fn parse(text: &str) -> Self {
        let lower = text.trim().to_lowercase();
        let (base, modifier) = lower.split_once('(').unwrap_or((&lower, ""));
        match base.trim() {
            "uuid" => Self::Uuid,
            "text" | "character varying" | "varchar" => Self::Text,
            "character" | "char" | "bpchar" => Self::Char,
            "enum" => Self::Enum,
            "json" | "jsonb" => Self::Json,
            "bytea" => Self::Bytea,
            "smallint" | "int2" => Self::Int2,
            "integer" | "int" | "int4" => Self::Int4,
            "bigint" | "int8" => Self::Int8,
            "boolean" | "bool" => Self::Bool,
            "date" => Self::Date,
            "timestamp" | "timestamptz" | "timestamp with time zone" | "timestamp without time zone" => {
                let precision = modifier.split(')').next().and_then(|digits| digits.trim().parse::<u8>().ok());
                match lower.contains("timestamptz") || lower.contains("with time zone") {
                    true => Self::TimestampTz(precision.unwrap_or(6).min(6)),
                    false => Self::Timestamp(precision.is_some_and(|precision| precision <= 3)),
                }
            }
            _ => Self::Other(text.trim().to_owned()),
        }
    }

    /// Returns the names of `format_type` without modifiers that are of this kind, for the check in the SQL.
    pub(super) fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Uuid => &["uuid"],
            Self::Text => &["text", "character varying"],
            Self::Char => &["character"],
            Self::Enum => &["enum"],
            Self::Json => &["json", "jsonb"],
            Self::Bytea => &["bytea"],
            Self::Int2 => &["smallint"],
            Self::Int4 => &["integer"],
            Self::Int8 => &["bigint"],
            Self::Bool => &["boolean"],
            Self::TimestampTz(_) => &["timestamp with time zone"],
            Self::Timestamp(_) => &["timestamp without time zone"],
            Self::Date => &["date"],
            Self::Other(_) => &[],
        }
    }

    /// The names that `--column NAME=TYPE` takes.
    pub(crate) const ACCEPTED: &'static str = "uuid, text, varchar, char, enum, json, jsonb, bytea, smallint, integer, bigint, boolean, \
         timestamptz, timestamp, date, or absent";
}

/// A column of the application's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) nullable: bool,
    pub(crate) has_default: bool,
}

/// The columns of the table: those that the database has, or those that are assumed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Columns {
    /// True if the columns were read from the database, so that none is missing here.
    pub(crate) complete: bool,
    pub(crate) known: BTreeMap<String, Column>,
    /// The columns that the user says are not there.
    pub(crate) absent: Vec<String>,
}

impl Columns {
    /// Returns a column; without a database one of the assumed kind.
    ///
    /// # Errors
    /// The table has no such column, or one of a type that nothing is known of; or no column can be named so.
    pub(super) fn get(&self, name: &str, assumed: Kind) -> Result<Column, String> {
        check_name("column", name)?;
        let found = match self.known.get(name) {
            Some(column) => column.clone(),
            None if self.complete || self.is_absent(name) => {
                return Err(format!("the table has no column {name:?}{}", self.case_hint(name)));
            }
            None => Column { name: name.to_owned(), kind: assumed, nullable: true, has_default: false },
        };
        match &found.kind {
            Kind::Other(other) => Err(format!(
                "the column {name:?} has the type {other}, which cannot be kept; accepted are uuid, text, varchar, char, enums, json, jsonb, bytea, \
                 integers, boolean, timestamps and date"
            )),
            _ => Ok(found),
        }
    }

    pub(super) fn is_absent(&self, name: &str) -> bool {
        self.absent.iter().any(|absent| absent == name) || self.complete && !self.known.contains_key(name)
    }

    fn case_hint(&self, name: &str) -> String {
        let plain = |name: &str| name.to_lowercase().replace('_', "");
        let near = self.known.keys().find(|known| plain(known) == plain(name));
        near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"))
    }
}

/// The form that the connector gives a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    /// An expression for the value as text; NULL for NULL.
    pub(super) text: String,
    /// True if JSON has it as a string.
    pub(super) is_string: bool,
    /// The type of Connect, and the name of the schema.
    schema: (&'static str, Option<&'static str>),
    nullable: bool,
}

/// The options of the connector that change what becomes of a column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Modes<'a> {
    /// `binary.handling.mode`.
    pub(super) binary: &'a str,
    /// `time.precision.mode`.
    pub(super) time: &'a str,
}

impl Form {
    /// Returns what the connector makes of a column.
    ///
    /// # Errors
    /// The value cannot be kept, with the reason.
    pub(super) fn new(of: &Column, modes: Modes<'_>) -> Result<Self, String> {
        let name = column(&of.name);
        let adaptive = matches!(modes.time, "adaptive" | "adaptive_time_microseconds");
        if matches!(of.kind, Kind::Timestamp(_) | Kind::Date) && !adaptive {
            return Err(format!(
                "the column {:?} is kept only with time.precision.mode=adaptive or adaptive_time_microseconds",
                of.name
            ));
        }
        let plain = || format!("{name}::text");
        let (text, is_string, schema) = match &of.kind {
            Kind::Uuid => (plain(), true, ("string", Some("io.debezium.data.Uuid"))),
            Kind::Text => (plain(), true, ("string", None)),
            Kind::Char => (format!("case when {name} is not null then concat({name}) end"), true, ("string", None)),
            Kind::Enum => (plain(), true, ("string", Some("io.debezium.data.Enum"))),
            Kind::Json => (plain(), true, ("string", Some("io.debezium.data.Json"))),
            Kind::Bytea => match modes.binary {
                "bytes" => (base64(&name), true, ("bytes", None)),
                "base64" => (base64(&name), true, ("string", None)),
                "base64-url-safe" => (format!("translate({}, '+/', '-_')", base64(&name)), true, ("string", None)),
                "hex" => (format!("encode({name}, 'hex')"), true, ("string", None)),
                other => {
                    return Err(format!(
                        "binary.handling.mode={other} is not known; accepted are bytes, base64, base64-url-safe, hex"
                    ));
                }
            },
            Kind::Int2 => (plain(), false, ("int16", None)),
            Kind::Int4 => (plain(), false, ("int32", None)),
            Kind::Int8 => (plain(), false, ("int64", None)),
            Kind::Bool => (plain(), false, ("boolean", None)),
            // The connector prints as many digits behind the second as the column has.
            Kind::TimestampTz(digits) => (
                format!(
                    "to_char({name} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS{}\"Z\"')",
                    if *digits == 0 { String::new() } else { format!(".FF{digits}") }
                ),
                true,
                ("string", Some("io.debezium.time.ZonedTimestamp")),
            ),
            Kind::Timestamp(true) => (
                format!("(extract(epoch from {name}) * 1000)::bigint::text"),
                false,
                ("int64", Some("io.debezium.time.Timestamp")),
            ),
            Kind::Timestamp(false) => (
                format!("(extract(epoch from {name}) * 1000000)::bigint::text"),
                false,
                ("int64", Some("io.debezium.time.MicroTimestamp")),
            ),
            Kind::Date => {
                (format!("({name} - date '1970-01-01')::text"), false, ("int32", Some("io.debezium.time.Date")))
            }
            Kind::Other(other) => return Err(format!("the type {other} cannot be kept")),
        };
        Ok(Self { text, is_string, schema, nullable: of.nullable })
    }

    /// Returns true if the connector has bytes and no text.
    pub(super) fn is_bytes(&self) -> bool {
        self.schema.0 == "bytes"
    }

    /// Returns an expression for the JSON value without a schema; NULL becomes `null`.
    pub(super) fn json(&self, json: &str) -> String {
        let value = if self.is_string { format!("{json}({})", self.text) } else { self.text.clone() };
        format!("coalesce({value}, 'null')")
    }

    /// Returns the schema as JSON.
    pub(super) fn schema(&self) -> String {
        let (kind, name) = self.schema;
        let name = name.map_or_else(String::new, |name| format!(",\"name\":\"{name}\",\"version\":1"));
        format!("{{\"type\":\"{kind}\",\"optional\":{}{name}}}", self.nullable)
    }
}

fn base64(name: &str) -> String {
    format!("translate(encode({name}, 'base64'), E'\\n', '')")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_postgres_prints_them() {
        for (text, kind) in [
            ("character varying(40)", Kind::Text),
            ("uuid", Kind::Uuid),
            ("jsonb", Kind::Json),
            ("timestamp(3) without time zone", Kind::Timestamp(true)),
            ("timestamp without time zone", Kind::Timestamp(false)),
            ("timestamp(3) with time zone", Kind::TimestampTz(3)),
            ("timestamptz", Kind::TimestampTz(6)),
            ("timestamp with time zone", Kind::TimestampTz(6)),
            ("timestamp", Kind::Timestamp(false)),
            ("bigint", Kind::Int8),
            ("character(8)", Kind::Char),
            ("numeric(10,2)", Kind::Other("numeric(10,2)".into())),
        ] {
            assert_eq!(Kind::parse(text), kind, "{text}");
        }
    }

    #[test]
    fn a_column_that_is_missing_or_of_an_unknown_type_is_named() {
        let column = |name: &str, kind| Column { name: name.into(), kind, nullable: true, has_default: false };
        let known = [("aggregate_id", Kind::Text), ("price", Kind::Other("money".into()))];
        let known = known.map(|(name, kind)| (name.to_owned(), column(name, kind))).into();
        let columns = Columns { complete: true, known, absent: Vec::new() };
        let error = columns.get("aggregateid", Kind::Text).expect_err("missing");
        assert!(error.contains("did you mean \"aggregate_id\"?"), "{error}");
        let error = columns.get("price", Kind::Text).expect_err("money");
        assert!(error.contains("type money") && error.contains("accepted are"), "{error}");
    }
}
