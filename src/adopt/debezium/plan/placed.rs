//! Decides about `table.fields.additional.placement`, and writes the headers.

use event_outbox::envelope::headers;
use event_outbox::names::literal;

use super::check::Checked;
use super::{Decided, Identity, RELAYS_OWN, Reading};
use crate::adopt::debezium::columns::{Column, Columns, Form, Kind};
use crate::adopt::debezium::name::check_name;
use crate::adopt::debezium::report::Verdict;
use crate::adopt::debezium::sql::Functions;

/// The place of an additional column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Header,
    Envelope,
    Partition,
}

/// An additional column.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) at: At,
    pub(super) alias: String,
    pub(super) column: Column,
    pub(super) form: Form,
}

impl Reading<'_> {
    /// Parses `table.fields.additional.placement`.
    pub(super) fn placements(&mut self, columns: &Columns, used: &mut Vec<Checked>) -> Option<Vec<Placed>> {
        const PLACEMENT: &str = "table.fields.additional.placement";
        let ignores = self.router("table.fields.additional.error.on.missing") == Some("false")
            || self.router("table.field.additional.missing").is_some_and(|value| value.eq_ignore_ascii_case("ignore"));
        for option in ["table.fields.additional.error.on.missing", "table.field.additional.missing"] {
            let text = if ignores { "a missing column is left out" } else { "a missing column is refused" };
            self.say_router(option, Verdict::Kept, text);
        }
        let Some(list) = self.router(PLACEMENT).map(str::to_owned) else { return Some(Vec::new()) };
        let mut placed: Vec<Placed> = Vec::new();
        for item in list.split(',') {
            match self.placement(item, columns, ignores) {
                Ok(Some(one)) => {
                    if let Some(twice) = placed
                        .iter()
                        .find(|other| other.at == one.at && (one.at == At::Partition || other.alias == one.alias))
                    {
                        let what = if one.at == At::Partition {
                            "the partition".to_owned()
                        } else {
                            format!("{:?}", twice.alias)
                        };
                        self.say_router(
                            PLACEMENT,
                            Verdict::Refused,
                            format!(
                                "two columns contradict each other: {} and {} both give {what}",
                                twice.column.name, one.column.name
                            ),
                        );
                        return None;
                    }
                    placed.push(one);
                }
                Ok(None) => {}
                Err(why) => {
                    self.say_router(PLACEMENT, Verdict::Refused, format!("{}: {why}", item.trim()));
                    return None;
                }
            }
        }
        used.extend(placed.iter().map(|one| Checked::of(&one.column)));
        self.say_router(PLACEMENT, Verdict::Kept, "the columns are where the router puts them");
        let nulls = placed.iter().any(|one| one.at == At::Header && one.column.nullable);
        if nulls {
            self.say(
                &format!("{}{PLACEMENT} (NULL)", self.prefix),
                Verdict::Differs,
                "a header from a column that is NULL is left out; the connector sends it without a value",
            );
        }
        Some(placed)
    }

    pub(super) fn placement(&self, item: &str, columns: &Columns, ignores: bool) -> Decided<Option<Placed>> {
        let parts: Vec<_> = item.split(':').map(str::trim).collect();
        let (name, at, alias) = match parts.as_slice() {
            [name, at] => (*name, *at, *name),
            [name, at, alias] => (*name, *at, *alias),
            _ => return Err("accepted is COLUMN:PLACEMENT or COLUMN:PLACEMENT:ALIAS".to_owned()),
        };
        let at = match at.to_lowercase().as_str() {
            "header" => At::Header,
            "envelope" => At::Envelope,
            "partition" => At::Partition,
            other => {
                return Err(format!(
                    "the placement {other:?} is not known; accepted are header, envelope and partition"
                ));
            }
        };
        check_name("alias", alias)?;
        if ignores && columns.is_absent(name) {
            return Ok(None);
        }
        let assumed = if at == At::Partition { Kind::Int4 } else { Kind::Text };
        let column = columns.get(name, assumed)?;
        if at == At::Partition && column.kind != Kind::Int4 {
            return Err("a partition comes from a column of type integer, and from no other".to_owned());
        }
        if at == At::Header && column.kind == Kind::Bytea {
            return Err("a header of bytes cannot be kept: headers of the outbox are texts".to_owned());
        }
        let form = Form::new(&column, self.modes())?;
        Ok(Some(Placed { at, alias: alias.to_owned(), column, form }))
    }

    /// Returns the expression of the headers; an inner `None` if the envelope's own header is enough.
    #[expect(clippy::option_option, reason = "the outer one says refused, the inner one says no column is needed")]
    pub(super) fn headers(
        &mut self,
        placed: &Option<Vec<Placed>>,
        id: Option<&Identity>,
        functions: &Functions,
        used: &mut Vec<Checked>,
    ) -> Option<Option<String>> {
        let converter = self.converter("header")?;
        let (placed, id) = (placed.as_ref()?, id?);
        let mut pairs = Vec::new();
        let mut add = |alias: &str, form: &Form| -> Decided<()> {
            pairs.push(format!("{}, {}", literal(alias), converter.text(form, &functions.json)?));
            Ok(())
        };
        let mut decided = Ok(());
        if !id.is_uuid || converter.text(&id.form, &functions.json).as_ref() != Ok(&id.text) {
            decided = add("id", &id.form);
        }
        for one in placed.iter().filter(|one| one.at == At::Header) {
            // The relay writes its own headers as plain text.
            let is_plain = converter.text(&one.form, &functions.json).as_ref() == Ok(&one.form.text);
            decided = decided.and_then(|()| match one.alias.as_str() {
                "id" => Err("the header id is the event's id; give the column another alias".to_owned()),
                // These two become columns of the outbox.
                "event-type" | "event-version" if is_plain => Ok(()),
                "event-id" if is_plain && id.is_uuid && one.form.text == id.text => Ok(()),
                alias if RELAYS_OWN.contains(&alias) || headers::is_reserved(alias) || alias == headers::PARTITION => {
                    Err(format!("the header {alias:?} is the relay's own; give the column another alias"))
                }
                alias => add(alias, &one.form),
            });
        }
        if let Err(why) = decided {
            self.say_router("table.fields.additional.placement", Verdict::Refused, why);
            return None;
        }
        if converter.shows_schema() {
            let of_headers = placed.iter().filter(|one| one.at == At::Header).map(|one| &one.column);
            for column in std::iter::once(&id.column).chain(of_headers) {
                match Checked::of(column).schemas(column, true) {
                    Ok(checked) => used.push(checked),
                    Err(why) => {
                        self.say("header.converter", Verdict::Refused, why);
                        return None;
                    }
                }
            }
        }
        if let Some(partition) = placed.iter().find(|one| one.at == At::Partition) {
            pairs.push(format!("{}, {}", literal(headers::PARTITION), partition.form.text));
        }
        self.say(
            "headers of the relay",
            Verdict::Differs,
            "each record also has event-id, event-type, event-version and sequence, and the order of headers may differ",
        );
        Some((!pairs.is_empty()).then(|| format!("jsonb_strip_nulls(jsonb_build_object({}))", pairs.join(", "))))
    }
}
