//! Writes the SQL of the cut and of its undo.

use serde_json::{Value, json};

use super::flag::Flag;
use super::mapping::{Mapping, Source};
use super::role::Role;
use crate::store::app_table::{AppTable, Installed, Owner, comment, dollar_quote};
use crate::store::audit::{Author, entry_of};
use event_outbox::Names;
use event_outbox::names::{literal, quote};

/// The command, in names and comments.
pub(crate) const COMMAND: &str = "adopt";

/// Returns the statements of the cut, to be run in one transaction. The last one returns the number of rows that were moved.
pub(crate) fn adopt(names: &Names, table: &AppTable, mapping: &Mapping, owner: &Owner, author: &Author) -> Vec<String> {
    let (function, shown) = (table.function(names, COMMAND), table.quoted());
    let mut statements = vec![
        // Waits until no transaction of an application or of the loop is open on the table, also one that has only locked rows.
        format!("lock table {shown} in exclusive mode"),
        format!("create function {function}() {}", trigger_function(names, table, mapping)),
        // At commit, because an application that serialises an entity may take its lock after the insert. A row that the same transaction
        // deletes or marks is not published, as the loop would not have published it.
        format!(
            "create constraint trigger {} after insert on {shown} deferrable initially deferred for each row\n    when ({}) \
             execute function {function}()",
            names.part("adopt"),
            mapping.flag.is_pending("new"),
        ),
        format!(
            "comment on function {function}() is {}",
            literal(&format!("{}{}", comment(names, COMMAND), described(table, mapping)))
        ),
        format!("revoke all on function {function}() from public"),
    ];
    if !owner.is_self {
        statements.push(format!("alter function {function}() owner to {}", quote(&owner.outbox)));
    }
    statements.push(hand_over(names, table, mapping, author));
    statements
}

/// The command of the undo, in the audit table.
pub(super) const UNDO: &str = "adopt --undo";

/// What is read of the audit entry of an adoption or an undo.
pub(super) const ENTRY: &str = "command, at, actor, acted_by, (filter ->> 'last_id')::int8";

/// Returns the statements of the undo, to be run in one transaction. The last one writes the audit entry, with the highest id of the outbox:
/// every event of the table has at most this id. It returns [`ENTRY`].
pub(crate) fn undo(names: &Names, adopted: &Installed, author: &Author) -> Vec<String> {
    let shown = adopted.quoted();
    let triggers = adopted.triggers.iter().map(|trigger| format!("drop trigger {} on {shown}", quote(trigger)));
    let functions = adopted.functions.iter().map(|function| format!("drop function {function}()"));
    let mut statements: Vec<_> = triggers.chain(functions).collect();
    let filter = format!(
        "jsonb_build_object('table', {}, 'relation', {}, 'last_id', (select coalesce(max(id), 0) from {}))",
        literal(&shown),
        adopted.oid,
        names.outbox()
    );
    statements.push(format!("{}\nreturning {}", entry_of(names, UNDO, &filter, author, "0"), ENTRY));
    statements
}

/// Returns what the columns mean, as JSON.
pub(crate) fn described(table: &AppTable, mapping: &Mapping) -> Value {
    json!({ "table": table.quoted(), "parts": mapping.parts, "id": mapping.id, "pending": mapping.flag.column() })
}

/// Returns the statement that moves the pending rows and marks them.
fn hand_over(names: &Names, table: &AppTable, mapping: &Mapping, author: &Author) -> String {
    let shown = table.quoted();
    let (taken, id) = (mapping.flag.is_pending("t"), quote(&mapping.id));
    let take = match &mapping.flag {
        Flag::Deleted => format!("delete from {shown} t returning t.*"),
        flag => format!("update {shown} t set {} where {taken} returning t.*", flag.mark()),
    };
    let (columns, values) = event(names, mapping, "t");
    // The oid finds the entry again after the table was renamed. The SQL may be run on another server than the one that printed it.
    let filter = format!(
        "{}::jsonb || jsonb_build_object('relation', {}::regclass::oid::int8)",
        literal(&described(table, mapping).to_string()),
        literal(&shown)
    );
    let entry = entry_of(names, COMMAND, &filter, author, "(select count(*) from moved)");
    format!(
        "with taken as (\n    {take}),\nmoved as (\n    insert into {} ({columns})\n    select {values}\n      from taken t order by t.{id}\n    \
         returning 1)\n{entry}\nreturning affected",
        names.outbox()
    )
}

fn trigger_function(names: &Names, table: &AppTable, mapping: &Mapping) -> String {
    let (verb, rest) = match &mapping.flag {
        Flag::Deleted => ("delete from", String::new()),
        flag => ("update", format!(" set {}", flag.mark())),
    };
    // What follows the name of the table, for a row with this SQL name.
    let take = |row: &str| {
        let same: Vec<_> = mapping.key.iter().map(|key| format!("t.{key} = {row}.{key}", key = quote(key))).collect();
        format!(" t{rest} where {} and {} returning t.*", same.join(" and "), mapping.flag.is_pending("t"))
    };
    let (columns, values) = event(names, mapping, "taken");
    // A table that was renamed may have left its name to another one. The statement with a fixed name is planned once for each session, the
    // other one for each row.
    let body = format!(
        "
declare
    taken record;
    found_rows bigint;
begin
    if tg_table_schema = {schema} and tg_table_name = {name} then
        {verb} {table}{fixed} into taken;
    else
        execute {verb_text} || format('%I.%I', tg_table_schema, tg_table_name) || {renamed} into taken using new;
    end if;
    get diagnostics found_rows = row_count;
    if found_rows = 0 then
        return null;
    end if;
    perform {wake_up}();
    insert into {outbox} ({columns})
    values ({values});
    return null;
end
",
        schema = literal(&table.schema),
        name = literal(&table.name),
        table = table.quoted(),
        fixed = take("new"),
        verb_text = literal(&format!("{verb} ")),
        renamed = literal(&take("($1)")),
        wake_up = names.companion("wake_up"),
        outbox = names.outbox(),
    );
    let tag = dollar_quote(&body);
    // The function runs for everybody who may insert into the table, with the rights of the outbox's owner. Policies of the table must not
    // hide its rows: an event would be lost without a word.
    format!(
        "returns trigger language plpgsql volatile security definer\n    set search_path = pg_catalog, pg_temp set row_security = off as \
         {tag}{body}{tag}"
    )
}

/// Returns the columns of the event, and SQL for their values in a row of this alias.
fn event(names: &Names, mapping: &Mapping, alias: &str) -> (String, String) {
    let (mut columns, mut values) = (Vec::new(), Vec::new());
    for (role, source) in &mapping.parts {
        let (column, value) = match source {
            Source::Constant(value) => (role.name(), literal(value)),
            Source::Column { name, base, .. } => value(names, *role, base, &format!("{alias}.{}", quote(name))),
        };
        columns.push(column);
        values.push(value);
    }
    (columns.join(", "), values.join(",\n           "))
}

/// Returns a column of the outbox, and SQL for its value.
fn value(names: &Names, role: Role, base: &str, column: &str) -> (&'static str, String) {
    let value = match (role, base) {
        (Role::EventId, _) => format!("coalesce({column}, {}())", names.companion("new_id")),
        (Role::EventVersion, _) => format!("coalesce({column}, 1)"),
        (Role::Payload, "jsonb") => column.to_owned(),
        (Role::Payload, "bytea") => return ("payload_bytes", column.to_owned()),
        // Through jsonb the bytes would change.
        (Role::Payload, _) => return ("payload_bytes", format!("convert_to({column}::text, 'UTF8')")),
        // Headers are texts. Those without a value are left out.
        (Role::Headers, _) => format!(
            "coalesce((select jsonb_object_agg(h.key, h.value) from jsonb_each_text(case jsonb_typeof({column}::jsonb) when 'object' then \
             {column}::jsonb end) h where h.value is not null), '{{}}')"
        ),
        (Role::CreatedAt, "timestamp") => format!("coalesce({column} at time zone 'UTC', now())"),
        (Role::CreatedAt, _) => format!("coalesce({column}, now())"),
        _ => format!("{column}::text"),
    };
    (role.name(), value)
}
