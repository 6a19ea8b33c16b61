//! Writes the expressions and functions with which the trigger makes the connector's bytes.

use event_outbox::Names;
use event_outbox::names::literal;

use super::columns::Form;
use super::converter::{Converter, with_schema};
use crate::adopt::trigger::{Helper, TableName, function};
use crate::store::app_table::dollar_quote;

const JSON: &str = include_str!("sql/json.sql");
const NUMBER: &str = include_str!("sql/number.sql");
const SCHEMA: &str = include_str!("sql/schema.sql");
const VALUE: &str = include_str!("sql/value.sql");
const EXPAND: &str = include_str!("sql/expand.sql");

/// Quotes a text as an SQL literal.
pub(super) fn text(text: &str) -> String {
    literal(text)
}

/// The names of the functions that expressions call.
#[derive(Debug, Clone)]
pub(super) struct Functions {
    pub(super) json: String,
    number: String,
    schema: String,
    value: String,
    pub(super) expand: String,
}

impl Functions {
    pub(super) fn new(names: &Names, table: &TableName) -> Self {
        let of = |suffix| function(names, table, suffix);
        Self { json: of("json"), number: of("number"), schema: of("schema"), value: of("value"), expand: of("expand") }
    }

    /// Returns the functions that the text of expressions calls, each after those that it calls itself.
    pub(super) fn called_by(&self, expressions: &str, expand: Option<&Expand<'_>>) -> Vec<Helper> {
        let helper = |suffix, arguments, definition: String| Helper { suffix, arguments, definition };
        let mut helpers = Vec::new();
        if expand.is_some() || expressions.contains(&self.json) {
            helpers.push(helper("json", "text", JSON.trim_end().to_owned()));
        }
        if let Some(expand) = expand {
            for (suffix, arguments, definition) in [
                ("number", "text", NUMBER),
                ("schema", "text, json", SCHEMA),
                ("value", "json, json", VALUE),
                ("expand", "text, text", EXPAND),
            ] {
                helpers.push(helper(suffix, arguments, self.filled(definition, expand)));
            }
        }
        helpers
    }

    fn filled(&self, definition: &str, expand: &Expand<'_>) -> String {
        let null = if expand.keeps_nulls { "'{\"type\":\"bytes\",\"optional\":true}'" } else { "null" };
        let payload = text(expand.payload);
        let values = [
            ("{json}", self.json.as_str()),
            ("{number}", &self.number),
            ("{schema}", &self.schema),
            ("{value}", &self.value),
            ("{null}", null),
            ("{payload}", &payload),
        ];
        let [head, body, tail] = definition.trim_end().splitn(3, "$outbox$").collect::<Vec<_>>()[..] else {
            return fill(definition, &values);
        };
        let body = fill(body, &values);
        // The names may contain a dollar quote as well.
        let tag = dollar_quote(&body);
        format!("{head}{tag}{body}{tag}{tail}")
    }
}

/// Replaces placeholders in one pass: a table may be called `{schema}`.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let (mut filled, mut rest) = (String::with_capacity(template.len() * 2), template);
    while let Some(open) = rest.find('{') {
        let (before, from_open) = rest.split_at(open);
        filled += before;
        let (name, value) = values.iter().find(|(name, _)| from_open.starts_with(name)).unwrap_or(&("{", "{"));
        filled += value;
        rest = &from_open[name.len()..];
    }
    filled + rest
}

/// The options of `table.expand.json.payload`.
#[derive(Debug)]
pub(super) struct Expand<'a> {
    /// The name of the payload's column, which is the name of the schema.
    pub(super) payload: &'a str,
    /// True with `table.json.payload.null.behavior=optional_bytes`.
    pub(super) keeps_nulls: bool,
}

/// A column in the envelope.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) alias: String,
    pub(super) form: Form,
}

/// The value of the record.
#[derive(Debug)]
pub(super) struct Value<'a> {
    pub(super) converter: &'a Converter,
    /// The payload's column.
    pub(super) column: String,
    pub(super) form: Form,
    pub(super) is_bytea: bool,
    pub(super) expand: Option<Expand<'a>>,
    pub(super) envelope: Vec<Member>,
    /// An expression for the name of the envelope's schema.
    pub(super) schema_name: String,
    /// True with `route.tombstone.on.empty.payload`.
    pub(super) tombstones: bool,
}

impl Value<'_> {
    /// Returns an expression for the value's bytes; NULL is a tombstone.
    ///
    /// # Errors
    /// The form cannot be kept, with the reason.
    pub(super) fn bytes(&self, functions: &Functions) -> Result<String, String> {
        let value = self.all(functions)?;
        if !self.tombstones {
            return Ok(value);
        }
        let is_empty = match self.is_bytea {
            true => format!("{} is null", self.column),
            false => format!("coalesce({text}, '') !~ '[^\\x01-\\x20]'", text = self.form.text),
        };
        Ok(format!("case when {is_empty} then null else {value} end"))
    }

    fn all(&self, functions: &Functions) -> Result<String, String> {
        if self.envelope.is_empty() && self.form.is_bytes() && matches!(self.converter, Converter::Bytes { .. }) {
            return Ok(self.column.clone());
        }
        let utf8 = |text: &str| format!("convert_to({text}, 'UTF8')");
        let converter = self.converter.of_text()?;
        let Converter::Json { schemas } = converter else {
            if !self.envelope.is_empty() {
                return Err("StringConverter prints a Java object for a value with columns in the envelope; accepted is JsonConverter".into());
            }
            if self.expand.is_some() {
                return Err(
                    "StringConverter prints a Java object for an expanded payload; accepted is JsonConverter".into()
                );
            }
            return Ok(utf8(&converter.text(&self.form, &functions.json)?));
        };
        let expands = self.expand.is_some() && self.form.is_string && !self.form.is_bytes();
        let schema = text(&self.form.schema());
        let (of_payload, payload) = match expands {
            true => ("e.a[1]".to_owned(), "coalesce(e.a[2], 'null')".to_owned()),
            false => (schema.clone(), self.form.json(&functions.json)),
        };
        // A payload that is NULL has the schema of its column.
        let of_payload = if expands { format!("coalesce({of_payload}, {schema})") } else { of_payload };
        let body = self.in_envelope(&payload, &functions.json);
        let whole = match schemas {
            true => with_schema(&self.schema(&of_payload), &body),
            false => body,
        };
        Ok(match expands {
            true => format!(
                "(select {} from (select {}({}, {schema})) e(a))",
                utf8(&whole),
                functions.expand,
                self.form.text
            ),
            false => utf8(&whole),
        })
    }

    fn in_envelope(&self, payload: &str, json: &str) -> String {
        if self.envelope.is_empty() {
            return payload.to_owned();
        }
        let member = |member: &Member| {
            format!(" || {} || {}", text(&format!(",{}:", quoted(&member.alias))), member.form.json(json))
        };
        let members: String = self.envelope.iter().map(member).collect();
        format!("'{{\"payload\":' || {payload}{members} || '}}'")
    }

    fn schema(&self, of_payload: &str) -> String {
        if self.envelope.is_empty() {
            return of_payload.to_owned();
        }
        let member = |member: &Member| {
            let schema = member.form.schema();
            let open = schema.strip_suffix('}').unwrap_or(&schema).to_owned();
            format!(",{open},\"field\":{}}}", quoted(&member.alias))
        };
        let members: String = self.envelope.iter().map(member).collect();
        format!(
            "'{{\"type\":\"struct\",\"fields\":[' || left({of_payload}, -1) || ',\"field\":\"payload\"}}' || {} || {} || '}}'",
            text(&format!("{members}],\"optional\":false,\"name\":")),
            self.schema_name
        )
    }
}

/// Prints a name as a JSON string.
fn quoted(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}
