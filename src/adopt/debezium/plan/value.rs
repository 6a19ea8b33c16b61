//! Decides about the value of the record.

use event_outbox::names::literal;

use super::check::Checked;
use super::placed::{At, Placed};
use super::{Reading, Routed};
use crate::adopt::debezium::columns::{Columns, Form, Kind};
use crate::adopt::debezium::report::Verdict;
use crate::adopt::debezium::sql::{Expand, Functions, Member, Value};
use crate::adopt::trigger::{TableName, column};

impl Reading<'_> {
    pub(super) fn value(
        &mut self,
        columns: &Columns,
        functions: &Functions,
        placed: &Option<Vec<Placed>>,
        table: &TableName,
        route: Option<&Routed>,
        used: &mut Vec<Checked>,
    ) -> Option<(String, bool)> {
        let converter = self.converter("value");
        let tombstones =
            self.boolean("route.tombstone.on.empty.payload", "an empty payload becomes a tombstone, as before");
        let expands = self.boolean("table.expand.json.payload", "payloads are expanded as before");
        let nulls = self.router("table.json.payload.null.behavior").unwrap_or("ignore").to_owned();
        let nulls = match nulls.as_str() {
            "ignore" | "optional_bytes" => Ok(nulls == "optional_bytes"),
            other => Err(format!("{other:?} is not known; accepted are ignore and optional_bytes")),
        };
        let nulls = self.settle("table.json.payload.null.behavior", "null in a payload is treated as before", nulls);
        self.field_names(expands);
        let (converter, tombstones, expands, keeps_nulls) = (converter?, tombstones?, expands?, nulls?);
        let payload = self.router("table.field.event.payload").unwrap_or_default().to_owned();
        let placed = placed.as_ref()?;
        let envelope: Vec<_> = placed
            .iter()
            .filter(|one| one.at == At::Envelope)
            .map(|one| Member { alias: one.alias.clone(), form: one.form.clone() })
            .collect();
        let routed = route.map_or("''", |route| route.value.as_str()).to_owned();
        let prefix = self.connector.get("topic.prefix").unwrap_or_default();
        let name = format!(
            "{}({} || {routed} || '.Value')",
            functions.json,
            literal(&format!("{prefix}.{}.{}.", table.schema, table.table))
        );
        let has_envelope = !envelope.is_empty();
        if converter.shows_schema() {
            for one in placed.iter().filter(|one| one.at == At::Envelope) {
                match Checked::of(&one.column).schemas(&one.column, true) {
                    Ok(checked) => used.push(checked),
                    Err(why) => self.say_router("table.fields.additional.placement", Verdict::Refused, why),
                }
            }
        }
        let made = self.column("table.field.event.payload", columns, Kind::Json).and_then(|column_| {
            let form = Form::new(&column_, self.modes())?;
            let is_bytea = column_.kind == Kind::Bytea;
            if !form.is_string {
                return Err(format!(
                    "the column {:?} holds no payload; accepted are json, jsonb, text, varchar and bytea",
                    column_.name
                ));
            }
            let value = Value {
                converter: &converter,
                column: column(&column_.name),
                form,
                is_bytea,
                expand: (expands && !is_bytea).then_some(Expand { payload: &payload, keeps_nulls }),
                envelope,
                schema_name: name,
                tombstones,
            };
            let bytes = value.bytes(functions)?;
            Ok((bytes, Checked::of(&column_).schemas(&column_, converter.shows_schema())?, expands && !is_bytea))
        });
        let (bytes, checked, expands) =
            self.settle("table.field.event.payload", "the value's bytes are the same", made)?;
        used.push(checked);
        if expands {
            self.say_router(
                "table.expand.json.payload",
                Verdict::Differs,
                "payloads are expanded as before; rows at which the connector stops (whole numbers beyond 64 bits, arrays at the top, arrays of objects \
                 whose members differ in type) are sent expanded",
            );
        }
        if has_envelope && converter.shows_schema() {
            self.say(
                "value.converter.schemas.enable",
                Verdict::Differs,
                "the schema of the envelope is named after each row's own entity type; the connector names it after the first that it meets",
            );
        }
        Some((bytes, expands))
    }

    pub(super) fn field_names(&mut self, expands: Option<bool>) {
        let Some(mode) =
            self.router.get("field.name.adjustment.mode").or(self.connector.0.get("field.name.adjustment.mode"))
        else {
            return;
        };
        let of_router = self.router.contains_key("field.name.adjustment.mode");
        let verdict = if mode != "none" && expands == Some(true) { Verdict::Refused } else { Verdict::Kept };
        let text = match verdict {
            Verdict::Refused => "names of members would change; accepted is none",
            _ => "nothing to do: no names are made from columns",
        };
        let option = if of_router {
            format!("{}field.name.adjustment.mode", self.prefix)
        } else {
            "field.name.adjustment.mode".to_owned()
        };
        self.say(&option, verdict, text);
    }
}
