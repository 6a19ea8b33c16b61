//! Decides about the columns of the router: key, id, type, version and timestamp.

use event_outbox::Names;
use event_outbox::names::literal;

use super::check::Checked;
use super::placed::{At, Placed};
use super::{Identity, Reading, Routed};
use crate::adopt::debezium::columns::{Columns, Form, Kind};
use crate::adopt::debezium::report::Verdict;
use crate::adopt::debezium::sql::Functions;
use crate::adopt::trigger::{TableName, column};

impl Reading<'_> {
    pub(super) fn key(&mut self, columns: &Columns, functions: &Functions, used: &mut Vec<Checked>) -> Option<String> {
        let converter = self.converter("key")?;
        let made = self.column("table.field.event.key", columns, Kind::Text).and_then(|column| {
            if column.kind == Kind::Bytea {
                return Err("a key of bytes cannot be kept: the outbox has keys of text".to_owned());
            }
            let form = Form::new(&column, self.modes())?;
            let text = converter.text(&form, &functions.json)?;
            Ok((text, Checked::of(&column).schemas(&column, converter.shows_schema())?))
        });
        let (text, checked) =
            self.settle("table.field.event.key", "the key's bytes, and so the partition, are the same", made)?;
        used.push(checked);
        Some(text)
    }

    /// Decides about the event's id, and whether the header `id` needs a value of its own.
    pub(super) fn id(
        &mut self,
        columns: &Columns,
        names: &Names,
        table: &TableName,
        used: &mut Vec<Checked>,
    ) -> Option<Identity> {
        let made = self.column("table.field.event.id", columns, Kind::Uuid).and_then(|column_| {
            let form = Form::new(&column_, self.modes())?;
            if !(form.is_string || matches!(column_.kind, Kind::Int2 | Kind::Int4 | Kind::Int8)) || form.is_bytes() {
                return Err(format!(
                    "the column {:?} holds no id; accepted are uuid, text, varchar, char and integers",
                    column_.name
                ));
            }
            Ok((column_, form))
        });
        let (column_, form) = self.settle("table.field.event.id", "the header id is the same", made)?;
        used.push(Checked::of(&column_));
        if column_.kind == Kind::Uuid {
            let (event_id, text) = (column(&column_.name), form.text.clone());
            return Some(Identity { event_id, text, form, column: column_, is_uuid: true });
        }
        self.say(
            &format!("{}table.field.event.id ({})", self.prefix, column_.name),
            Verdict::Differs,
            "the header id is the same; the relay's own event-id is a uuid: the id itself if it has the form of one, else a uuid of version 8 from \
             the SHA-256 of table and id",
        );
        let seed = literal(&format!("{}/{}.{}/", names.table_raw(), table.schema, table.table));
        let hash = format!("encode(substr(sha256(convert_to({seed} || {}, 'UTF8')), 1, 16), 'hex')", form.text);
        let derived = format!("overlay(overlay({hash} placing '8' from 13) placing '8' from 17)::uuid");
        let event_id = format!(
            "case when {text} ~ '^[0-9A-Fa-f]{{8}}(-[0-9A-Fa-f]{{4}}){{3}}-[0-9A-Fa-f]{{12}}$' then ({text})::uuid else {derived} end",
            text = form.text
        );
        Some(Identity {
            event_id: format!("coalesce({event_id}, gen_random_uuid())"),
            text: form.text.clone(),
            form,
            column: column_,
            is_uuid: false,
        })
    }

    pub(super) fn event_type(
        &mut self,
        columns: &Columns,
        placed: &Option<Vec<Placed>>,
        route: Option<&Routed>,
        used: &mut Vec<Checked>,
    ) -> Option<String> {
        let placed = placed.as_ref()?;
        let of = |text: &str| format!("coalesce({text}, '')");
        if let Some(one) = placed.iter().find(|one| one.at == At::Header && one.alias == "event-type") {
            self.say_router(
                "table.field.event.type",
                Verdict::Kept,
                "the header event-type comes from the placed column",
            );
            return Some(of(&one.form.text));
        }
        let name = self.router("table.field.event.type").unwrap_or_default().to_owned();
        if columns.is_absent(&name) && !self.router.contains_key("table.field.event.type") {
            let routed = route.map_or("''", |route| route.value.as_str());
            self.say(
                "table.field.event.type",
                Verdict::Differs,
                "the table has no column type: the event type is the value that routes the event",
            );
            return Some(of(routed));
        }
        let made = self.column("table.field.event.type", columns, Kind::Text).and_then(|column| {
            let form = Form::new(&column, self.modes())?;
            match form.is_bytes() {
                true => Err(format!("the column {:?} is not a text", column.name)),
                false => Ok((form.text, Checked::of(&column))),
            }
        });
        let (text, checked) = self.settle("table.field.event.type", "the relay's event type", made)?;
        used.push(checked);
        Some(of(&text))
    }

    #[expect(clippy::option_option, reason = "the outer one says refused, the inner one says no column is needed")]
    pub(super) fn version(
        &mut self,
        columns: &Columns,
        placed: &Option<Vec<Placed>>,
        used: &mut Vec<Checked>,
    ) -> Option<Option<String>> {
        let whole = |form: &Form, kind: &Kind| match kind {
            Kind::Int2 | Kind::Int4 => Ok(format!("coalesce(({})::integer, 1)", form.text)),
            _ => Err("a version comes from a column of type integer or smallint".to_owned()),
        };
        if let Some(one) = placed.as_ref()?.iter().find(|one| one.at == At::Header && one.alias == "event-version") {
            let made = whole(&one.form, &one.column.kind);
            let made =
                self.settle("table.fields.additional.placement", "the columns are where the router puts them", made)?;
            return Some(Some(made));
        }
        if self.router("table.field.event.schema.version").is_none() {
            return Some(None);
        }
        let made = self.column("table.field.event.schema.version", columns, Kind::Int4).and_then(|column| {
            let form = Form::new(&column, self.modes())?;
            Ok((whole(&form, &column.kind)?, Checked::of(&column)))
        });
        let (text, checked) = self.settle("table.field.event.schema.version", "the relay's event version", made)?;
        used.push(checked);
        Some(Some(text))
    }

    #[expect(clippy::option_option, reason = "the outer one says refused, the inner one says no column is needed")]
    pub(super) fn created(&mut self, columns: &Columns, used: &mut Vec<Checked>) -> Option<Option<String>> {
        if self.router("table.field.event.timestamp").is_none() {
            self.report.add(
                "table.field.event.timestamp",
                None,
                Verdict::Differs,
                "the connector's timestamp is the time at which it read the change; RELAY_TIMESTAMP=publish, the time of sending, is nearest",
            );
            return Some(None);
        }
        let made = self.column("table.field.event.timestamp", columns, Kind::TimestampTz(6)).and_then(|found| {
            let name = column(&found.name);
            let text = match found.kind {
                Kind::TimestampTz(_) => name,
                Kind::Timestamp(_) => format!("({name} at time zone 'UTC')"),
                Kind::Int8 => format!("to_timestamp({name} / 1000.0)"),
                _ => {
                    return Err(format!(
                        "the column {:?} holds no timestamp; accepted are timestamptz, timestamp, and bigint with milliseconds since 1970",
                        found.name
                    ));
                }
            };
            Ok((format!("coalesce({text}, now())"), Checked::of(&found)))
        });
        let (text, checked) =
            self.settle("table.field.event.timestamp", "the timestamp of the record, to the millisecond", made)?;
        used.push(checked);
        Some(Some(text))
    }
}
