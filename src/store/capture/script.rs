//! Writes the SQL that sets the triggers of a captured table, and the SQL that removes them.

use serde_json::json;

use super::parts::{Function, Parts, Trigger, bits};
use super::{Change, Definition, SETTINGS};
use crate::store::app_table::{AppTable, Installed, Owner, comment};
use crate::store::audit::{Author, entry};
use event_outbox::Names;
use event_outbox::names::{literal, quote};

/// The command, in names and comments.
pub(crate) const COMMAND: &str = "capture";

/// Returns the names of the functions that [`capture`] creates.
pub(crate) fn functions(names: &Names, table: &AppTable) -> [String; 2] {
    [COMMAND, "refuse_truncate"].map(|purpose| table.function(names, purpose))
}

/// What an earlier call has set.
#[derive(Debug)]
pub(crate) struct Before<'a> {
    pub(crate) installed: Option<&'a Installed>,
    /// Those of [`functions`] that exist and belong to the outbox's owner. Others are only created: a function that another user places
    /// there in the meantime makes that fail.
    pub(crate) functions: &'a [String],
    /// True if the triggers are those that are wanted. They stay, so that a backfill still belongs to them.
    pub(crate) keeps_triggers: bool,
}

/// Returns the triggers and functions that the definition needs.
pub(crate) fn parts(names: &Names, table: &AppTable, definition: &Definition) -> Parts {
    let shown = table.quoted();
    let [function, refuse] = functions(names, table);
    let body = if definition.bulk { statement_body(names, definition) } else { row_body(names, definition) };
    let mut triggers = triggers(names, &shown, definition, &function);
    let mut functions = vec![Function { name: function, body, settings: &SETTINGS, is_definer: true }];
    if !definition.allow_truncate {
        triggers.push(Trigger {
            name: names.part_raw("refuse_truncate"),
            function: refuse.clone(),
            bits: bits::BEFORE | bits::TRUNCATE,
            is_deferred: false,
            kind: "trigger",
            event: format!("before truncate on {shown} for each statement"),
        });
        functions.push(Function { name: refuse, body: refuse_truncate(table), settings: &[], is_definer: false });
    }
    Parts { functions, triggers, comment: format!("{}{}", comment(names, COMMAND), json!(definition)) }
}

/// Returns the statements that set the triggers, to be run in one transaction.
pub(crate) fn capture(
    names: &Names,
    table: &AppTable,
    definition: &Definition,
    owner: &Owner,
    before: &Before<'_>,
    author: &Author,
) -> Vec<String> {
    let (shown, parts) = (table.quoted(), parts(names, table, definition));
    // A constraint trigger cannot be replaced.
    let old = before.installed.filter(|_| !before.keeps_triggers).map(|before| before.triggers.as_slice());
    let old = old.unwrap_or_default().iter();
    let mut statements: Vec<_> = old.map(|name| format!("drop trigger {} on {shown}", quote(name))).collect();
    for function in &parts.functions {
        let create = if before.functions.contains(&function.name) { "create or replace" } else { "create" };
        statements.push(format!("{create} function {}() {}", function.name, function.text()));
    }
    if !before.keeps_triggers {
        statements.extend(parts.triggers.iter().map(Trigger::create));
    }
    if let Some(before) = before.installed {
        let is_wanted = |name: &str| parts.functions.iter().any(|function| is_same(&function.name, name));
        let gone = before.functions.iter().filter(|name| !is_wanted(name));
        statements.extend(gone.map(|name| format!("drop function {name}()")));
    }
    let text = literal(&parts.comment);
    for Function { name, .. } in &parts.functions {
        statements.push(format!("comment on function {name}() is {text}"));
        statements.push(format!("revoke all on function {name}() from public"));
        if !owner.is_self {
            statements.push(format!("alter function {name}() owner to {}", quote(&owner.outbox)));
        }
    }
    statements.push(entry(names, COMMAND, &json!(definition), author, "0"));
    statements
}

/// Compares two quoted names, of which `quote_ident` may have left out quotes that are not needed.
fn is_same(quoted: &str, ident: &str) -> bool {
    let bare = |name: &str| name.replace('"', "");
    bare(quoted) == bare(ident)
}

/// Returns the statements that remove the triggers and their functions.
pub(crate) fn drop(names: &Names, captured: &Installed, has_backfill: bool, author: &Author) -> Vec<String> {
    let shown = captured.quoted();
    let triggers = captured.triggers.iter().map(|trigger| format!("drop trigger {} on {shown}", quote(trigger)));
    let functions = captured.functions.iter().map(|function| format!("drop function {function}()"));
    let mut statements: Vec<_> = triggers.chain(functions).collect();
    if has_backfill {
        statements.push(format!("delete from {} where relation = {}", names.companion("backfill"), captured.oid));
    }
    statements.push(entry(names, "capture --drop", &json!({ "table": shown }), author, "0"));
    statements
}

/// Returns the triggers that make events.
fn triggers(names: &Names, shown: &str, definition: &Definition, function: &str) -> Vec<Trigger> {
    let of = |change: &Change| match change {
        Change::Insert => bits::INSERT,
        Change::Update => bits::UPDATE,
        Change::Delete => bits::DELETE,
    };
    if !definition.bulk {
        let on: Vec<_> = definition.on.iter().map(|change| change.name()).collect();
        // A trigger of the application may change another row of the same statement, before that row's own event. The events of deferred
        // triggers are queued in the order of the changes.
        let (kind, when) = if definition.deferred {
            ("constraint trigger", " deferrable initially deferred")
        } else {
            ("trigger", "")
        };
        return vec![Trigger {
            name: names.first_trigger_raw(COMMAND),
            function: function.to_owned(),
            bits: definition.on.iter().map(of).fold(bits::ROW, |all, bit| all | bit),
            is_deferred: definition.deferred,
            kind,
            event: format!("after {} on {shown}{when} for each row", on.join(" or ")),
        }];
    }
    let trigger = |change: &Change| {
        let rows = match change {
            Change::Insert => "new table as new_rows",
            Change::Update => "old table as old_rows new table as new_rows",
            Change::Delete => "old table as old_rows",
        };
        Trigger {
            name: bulk_trigger(names, *change),
            function: function.to_owned(),
            bits: of(change),
            is_deferred: false,
            kind: "trigger",
            event: format!("after {} on {shown} referencing {rows}\n    for each statement", change.name()),
        }
    };
    definition.on.iter().map(trigger).collect()
}

/// Returns the name of the trigger for each statement.
pub(crate) fn bulk_trigger(names: &Names, change: Change) -> String {
    names.first_trigger_raw(&format!("{COMMAND}_{}", change.name()))
}

/// Returns the body of the trigger function that refuses TRUNCATE, which makes no events.
fn refuse_truncate(table: &AppTable) -> String {
    let shown = table.quoted();
    format!(
        "\nbegin\n    raise exception using errcode = 'object_not_in_prerequisite_state',\n        message = {},\n        hint = {};\nend\n",
        literal(&format!(
            "TRUNCATE of {shown} is refused: outbox-relay captures its changes, and TRUNCATE makes no events"
        )),
        literal(&format!(
            "Use delete from {shown}, or run outbox-relay capture again with --allow-truncate and tell the consumers yourself."
        )),
    )
}

/// SQL for the entity's id of a row that is JSON: the only column as text, or several as a JSON array. Null if a column is gone.
pub(super) fn entity_id(key: &[String], row: &str) -> String {
    match key {
        [only] => format!("{row} ->> {}", literal(only)),
        several => {
            let values: Vec<_> = several.iter().map(|column| format!("{row} -> {}", literal(column))).collect();
            let gone: Vec<_> = several.iter().map(|column| format!("{row} ->> {} is null", literal(column))).collect();
            format!("case when not ({}) then jsonb_build_array({})::text end", gone.join(" or "), values.join(", "))
        }
    }
}

/// SQL for those columns of the row that an event has. A column that is dropped later is left out.
fn shortened(definition: &Definition, row: &str) -> String {
    match &definition.columns {
        None => row.to_owned(),
        Some(columns) => {
            let columns: Vec<_> = columns.iter().map(|column| literal(column)).collect();
            format!(
                "(select jsonb_object_agg(c, {row} -> c) from unnest(array[{}]::text[]) c where {row} ? c)",
                columns.join(", ")
            )
        }
    }
}

/// The beginning of an insert of events.
pub(super) fn insert(names: &Names) -> String {
    format!("insert into {} (entity_type, entity_id, event_type, payload)", names.outbox())
}

/// SQL for the columns of [`insert`]. `before` and `after` are SQL, or `None` for null.
pub(super) fn event(
    definition: &Definition,
    (op, past): (&str, &str),
    id: &str,
    before: Option<&str>,
    after: Option<&str>,
    changed: Option<&str>,
) -> String {
    let part = |row: Option<&str>| row.map_or_else(|| "null".to_owned(), |row| shortened(definition, row));
    let changed = changed.map_or_else(String::new, |changed| format!(", 'changed', {changed}"));
    format!(
        "{}, {id}, {}, jsonb_build_object('op', {}, 'table', {}, 'before', {}, 'after', {}{changed},\n        'transaction', \
         pg_current_xact_id()::text)",
        literal(&definition.entity_type),
        literal(&definition.event_type(past)),
        literal(op),
        literal(&definition.table),
        part(before),
        part(after),
    )
}

const CREATE: (&str, &str) = ("create", "Created");
const UPDATE: (&str, &str) = ("update", "Updated");
const DELETE: (&str, &str) = ("delete", "Deleted");
pub(super) const SNAPSHOT: (&str, &str) = ("snapshot", "Snapshot");

/// SQL for the names of the columns that differ, as a JSON array. Values are compared as text: 1.0 and 1.00 differ.
fn changed(definition: &Definition, before: &str, after: &str) -> String {
    let (before, after) = (shortened(definition, before), shortened(definition, after));
    format!(
        "(select coalesce(jsonb_agg(a.key order by a.key), '[]') from jsonb_each({after}) a\n          \
         where a.value::text is distinct from ({before} -> a.key)::text)"
    )
}

/// The failure of a table whose key is gone.
fn key_is_gone(definition: &Definition) -> String {
    let columns: Vec<_> = definition.key.iter().map(|column| quote(column)).collect();
    format!(
        "raise exception using errcode = 'undefined_column',\n            message = {},\n            hint = {}",
        literal(&format!(
            "outbox-relay captures {} by {}: a column of this key is gone or null",
            definition.table,
            columns.join(", ")
        )),
        literal("Run outbox-relay capture again with --key, or with --drop."),
    )
}

/// Returns the body of the trigger for each row.
fn row_body(names: &Names, definition: &Definition) -> String {
    let (insert, wake_up) = (insert(names), names.companion("wake_up"));
    let id = |row: &str| entity_id(&definition.key, row);
    format!(
        "
declare
    before    jsonb;
    after     jsonb;
    before_id text;
    after_id  text;
    changed   jsonb;
begin
    if tg_op = 'UPDATE' then
        if old *= new then
            return null;
        end if;
    end if;
    if tg_op <> 'INSERT' then
        before := to_jsonb(old);
        before_id := {before_id};
    end if;
    if tg_op <> 'DELETE' then
        after := to_jsonb(new);
        after_id := {after_id};
    end if;
    if tg_op <> 'INSERT' and before_id is null or tg_op <> 'DELETE' and after_id is null then
        {gone};
    end if;
    if before_id = after_id then
        changed := {changed};
        if changed <> '[]' then
            perform {wake_up}();
            {insert}
            values ({updated});
        end if;
        return null;
    end if;
    perform {wake_up}();
    -- A change of the key ends one entity and begins another.
    if before_id is not null then
        {insert}
        values ({deleted});
    end if;
    if after_id is not null then
        {insert}
        values ({created});
    end if;
    return null;
end
",
        before_id = id("before"),
        after_id = id("after"),
        gone = key_is_gone(definition),
        changed = changed(definition, "before", "after"),
        updated = event(definition, UPDATE, "after_id", Some("before"), Some("after"), Some("changed")),
        deleted = event(definition, DELETE, "before_id", Some("before"), None, None),
        created = event(definition, CREATE, "after_id", None, Some("after"), None),
    )
}

/// Returns the body of the trigger for each statement. The rows before and after an update are paired by their numbers: Postgres keeps both
/// in one order. Joined by the key, changes of the key would be lost.
fn statement_body(names: &Names, definition: &Definition) -> String {
    let (insert, wake_up) = (insert(names), names.companion("wake_up"));
    let id = |row: &str| entity_id(&definition.key, row);
    let created = event(definition, CREATE, "r.id", None, Some("r.after"), None);
    let deleted = event(definition, DELETE, "r.id", Some("r.before"), None, None);
    let updated = event(definition, UPDATE, "r.id", Some("r.before"), Some("r.after"), Some("r.changed"));
    format!(
        "
declare
    gone boolean;
begin
    perform {wake_up}();
    if tg_op = 'INSERT' then
        with made as (
            {insert}
            select {created}
              from (select n.after, {new_id} as id from (select to_jsonb(n.*) as after from new_rows n) n) r
            returning entity_id)
        select coalesce(bool_or(m.entity_id is null), false) into gone from made m;
    elsif tg_op = 'DELETE' then
        with made as (
            {insert}
            select {deleted}
              from (select o.before, {old_id} as id from (select to_jsonb(o.*) as before from old_rows o) o) r
            returning entity_id)
        select coalesce(bool_or(m.entity_id is null), false) into gone from made m;
    else
        -- A change of the key ends one entity and begins another. All ends come first: a row may get the key that another one had.
        with pair as materialized (
            select o.at, o.before, n.after, {old_id} as before_id, {new_id} as after_id
              from (select row_number() over () as at, to_jsonb(o.*) as before from old_rows o) o
              join (select row_number() over () as at, to_jsonb(n.*) as after from new_rows n) n using (at)),
        ended as (
            {insert}
            select {deleted}
              from (select p.before, p.before_id as id from pair p where p.before_id is distinct from p.after_id order by p.at) r
            returning entity_id),
        all_ended as materialized (select count(*) as events from ended),
        made as (
            {insert}
            select *
              from (select {created}
                      from (select p.after, p.after_id as id from pair p, all_ended
                             where p.before_id is distinct from p.after_id order by p.at) r
                    union all
                    select {updated}
                      from (select p.before, p.after, p.after_id as id, {changed} as changed
                              from pair p where p.before_id is not distinct from p.after_id order by p.at) r
                     where r.changed <> '[]') events
            returning entity_id)
        select coalesce(bool_or(m.entity_id is null), false) into gone
          from (select e.entity_id from ended e union all select m.entity_id from made m) m;
    end if;
    if gone then
        {gone};
    end if;
    return null;
end
",
        new_id = id("n.after"),
        old_id = id("o.before"),
        gone = key_is_gone(definition),
        changed = changed(definition, "p.before", "p.after"),
    )
}
