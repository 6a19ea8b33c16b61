//! Writes the head of the SQL: what it is, how to run and to undo it, and the check of the table.

use event_outbox::Names;
use event_outbox::names::literal;

use crate::adopt::debezium::columns::{Column, Kind};
use crate::adopt::trigger::TableName;
use crate::store::app_table::dollar_quote;

/// A column that the SQL checks before it creates the trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checked {
    name: String,
    types: &'static [&'static str],
    /// The nullability that the form shows; `None` if it shows none.
    nullable: Option<bool>,
}

impl Checked {
    pub(super) fn of(column: &Column) -> Self {
        Self { name: column.name.clone(), types: column.kind.names(), nullable: None }
    }

    /// Adds that the form shows the column's schema, which tells whether it is nullable.
    ///
    /// # Errors
    /// The schema would show more: a default, or the values of an enum.
    pub(super) fn schemas(self, column: &Column, shows: bool) -> Result<Self, String> {
        if !shows {
            return Ok(self);
        }
        if column.has_default {
            return Err(format!(
                "the column {:?} has a default, which the connector writes into the schema; accepted is schemas.enable=false, or no default",
                column.name
            ));
        }
        if column.kind == Kind::Enum {
            return Err(format!(
                "the column {:?} is an enum, whose values the connector writes into the schema; accepted is schemas.enable=false, or a text",
                column.name
            ));
        }
        Ok(Self { nullable: Some(column.nullable), ..self })
    }
}

/// Returns the comment at the head, and the limit of waiting for locks.
pub(super) fn header(names: &Names, table: &TableName, drop: &str) -> String {
    format!(
        "-- Turns each row that is inserted into {table} into an event of {outbox}.\n\
         -- Written by `outbox-relay import debezium`. Run it in one transaction, as a user who owns the table and may write the outbox:\n\
         --   psql -v ON_ERROR_STOP=1 --single-transaction -f THIS_FILE\n\
         -- It waits at most two seconds for writers of the table. This undoes it:\n\
         --   {drop}\n\nset local lock_timeout = '2s';\n\n",
        table = table.quoted(),
        outbox = names.outbox()
    )
}

/// Returns a block that raises an error if the table is not what the trigger was written for.
pub(super) fn check(names: &Names, table: &TableName, used: &[Checked], needs_utf8: bool) -> String {
    let mut rows: Vec<String> = Vec::new();
    for one in used {
        let nullable = one.nullable.map_or("null::boolean".to_owned(), |nullable| nullable.to_string());
        let row = format!("({}, {}, {nullable})", literal(&one.name), literal(&one.types.join("|")));
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    let (outbox, table) = (literal(&names.outbox()), literal(&table.quoted()));
    let wake_up = literal(&format!("{}()", names.companion("wake_up")));
    let utf8 = match needs_utf8 {
        true => {
            "    if pg_catalog.getdatabaseencoding() <> 'UTF8' then\n        raise exception 'the encoding of the database is %, and the trigger was written for UTF8', pg_catalog.getdatabaseencoding();\n    end if;\n"
        }
        false => "",
    };
    let body = format!(
        "\ndeclare\n    wrong text;\nbegin\n    if pg_catalog.to_regclass({outbox}) is null then\n        \
         raise exception 'the outbox % does not exist', {outbox} using hint = 'run `outbox-relay migrate` first';\n    end if;\n    \
         if pg_catalog.to_regprocedure({wake_up}) is null then\n        \
         raise exception 'the outbox % has an old schema without %', {outbox}, {wake_up} using hint = 'run `outbox-relay migrate` first';\n    end if;\n    \
         if pg_catalog.to_regclass({table}) is null then\n        raise exception 'the table % does not exist', {table};\n    end if;\n{utf8}    \
         select pg_catalog.string_agg(case\n               when a.attname is null then pg_catalog.format('the column %I is missing', w.name)\n               \
         when w.nullable = a.attnotnull then pg_catalog.format('the column %I is %s', w.name, case when a.attnotnull then 'not null' else 'nullable' end)\n               \
         when w.nullable is not null and a.atthasdef then pg_catalog.format('the column %I has a default, which the connector writes into the schema', w.name)\n               \
         else pg_catalog.format('the column %I has the type %s and not %s', w.name, pg_catalog.format_type(a.atttypid, a.atttypmod), pg_catalog.replace(w.types, '|', ' or ')) end, '; ')\n      \
         into wrong\n      from (values {}) w(name, types, nullable)\n      left join pg_catalog.pg_attribute a\n        \
         on a.attrelid = {table}::pg_catalog.regclass and a.attname = w.name and a.attnum > 0 and not a.attisdropped\n      \
         left join pg_catalog.pg_type t on t.oid = a.atttypid\n     \
         where a.attname is null or w.nullable = a.attnotnull or (w.nullable is not null and a.atthasdef)\n        \
         or (case when t.typtype = 'e' then 'enum' else pg_catalog.format_type(coalesce(nullif(t.typbasetype, 0), a.atttypid), null) end) <> all (pg_catalog.string_to_array(w.types, '|'));\n    \
         if wrong is not null then\n        raise exception '%', wrong\n            \
         using hint = 'import again with DATABASE_URL set, or name the types: --column NAME=TYPE';\n    end if;\nend\n",
        rows.join(",\n                   ")
    );
    let tag = dollar_quote(&body);
    format!("do {tag}{body}{tag};\n")
}
