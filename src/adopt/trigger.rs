//! Writes the SQL of a trigger that turns each inserted row of a table into an event of the outbox.
//!
//! The order of ids must be the order of commits for one entity. By default the trigger is a deferred constraint trigger: the event gets its
//! id when the transaction commits, so the order is exact wherever the application locks the entity anywhere in its transaction.
//! [`Firing::Strict`] also locks the entities itself, at commit and in sorted order, so that no deadlock can arise. [`Firing::Bulk`] writes
//! the events of a statement together, for applications that lock before they insert.
//!
//! Expressions name the row of the table `r`: see [`column()`]. The functions run with the rights of their owner and with a fixed search path,
//! because the application has no rights on the outbox and may have another path.

use event_outbox::Names;
use event_outbox::names::{literal, quote};

use crate::store::app_table::dollar_quote;

/// The longest identifier of Postgres in bytes.
const LONGEST_NAME: usize = 63;

/// The time at which the trigger writes events, and the locks that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Firing {
    /// Writes events at commit, without locks of its own.
    #[default]
    Deferred,
    /// Locks the entities of the transaction at commit, in sorted order, and then writes events.
    Strict,
    /// Writes the events of a statement together, when it ends.
    Bulk,
}

/// A table with its schema, unquoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableName {
    pub(crate) schema: String,
    pub(crate) table: String,
}

impl TableName {
    /// Returns the quoted name.
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }
}

/// A function that expressions call. It is created with the trigger and dropped with it.
#[derive(Debug, Clone)]
pub(crate) struct Helper {
    /// The last part of its name, such as `json`.
    pub(crate) suffix: &'static str,
    /// The types of its arguments, such as `text, json`.
    pub(crate) arguments: &'static str,
    /// The text from the argument list on, such as `(t text) returns text …`.
    pub(crate) definition: String,
}

/// A trigger that turns rows into events.
#[derive(Debug)]
pub(crate) struct Trigger<'a> {
    pub(crate) names: &'a Names,
    pub(crate) table: &'a TableName,
    pub(crate) firing: Firing,
    /// Columns of the outbox with the expressions that fill them.
    pub(crate) values: Vec<(&'static str, String)>,
    /// The expressions of entity type and entity id, for locks.
    pub(crate) entity: (String, String),
    /// The functions that the expressions call, each after those that it calls itself.
    pub(crate) helpers: Vec<Helper>,
}

/// Returns an expression for a column of the row.
pub(crate) fn column(name: &str) -> String {
    format!("r.{}", quote(name))
}

/// Returns the quoted name of a function that belongs to the trigger of a table. Functions live in the outbox's schema.
pub(crate) fn function(names: &Names, table: &TableName, suffix: &str) -> String {
    format!("{}.{}", names.schema(), quote(&part(names, table, suffix)))
}

/// Returns an unquoted name such as `event_outbox_from_public_outbox_json`. A name that would be too long is cut, and gets a hash.
fn part(names: &Names, table: &TableName, suffix: &str) -> String {
    let base = format!("{}_from_{}_{}", names.table_raw(), table.schema, table.table);
    let tail = if suffix.is_empty() { String::new() } else { format!("_{suffix}") };
    if base.len() + tail.len() <= LONGEST_NAME {
        return base + &tail;
    }
    let tail = format!("_{:08x}{tail}", hash(&base));
    let mut cut = LONGEST_NAME - tail.len();
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{tail}", &base[..cut])
}

/// Returns the statement that keeps others from putting a function on tables of their own: the function writes the outbox with the rights of
/// its owner. Sessions that fire the trigger need no right on it.
fn revoke(function: &str) -> String {
    format!("revoke all on function {function}() from public;\n")
}

/// Returns the statements that create the function of a trigger with this body. Names and literals in the body may contain any dollar quote.
fn trigger_function(name: &str, body: &str) -> String {
    let tag = dollar_quote(body);
    format!(
        "create function {name}() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as {tag}\n\
         {body}{tag};\n{}",
        revoke(name)
    )
}

/// Hashes a name with FNV-1a.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl Trigger<'_> {
    /// Returns the quoted name of the trigger.
    pub(crate) fn name(&self) -> String {
        quote(&part(self.names, self.table, ""))
    }

    /// Returns the statements that create functions and trigger. They belong in one transaction.
    pub(crate) fn create(&self) -> String {
        let mut sql = String::new();
        for helper in &self.helpers {
            let name = function(self.names, self.table, helper.suffix);
            sql += &format!("create function {name}{}\n\n", helper.definition);
        }
        if self.firing == Firing::Strict {
            sql += &self.note();
        }
        let name = function(self.names, self.table, "");
        let (declare, write) = match self.firing {
            Firing::Bulk => ("", format!("{}\n    from inserted r;", self.insert("select"))),
            _ => ("declare\n    r alias for new;\n", format!("{});", self.insert("values ("))),
        };
        let lock = if self.firing == Firing::Strict { self.lock() } else { String::new() };
        // A relay that sleeps polls seldom.
        let wake_up = self.names.companion("wake_up");
        sql += &trigger_function(
            &name,
            &format!("{declare}begin\n{lock}    perform {wake_up}();\n    {write}\n    return null;\nend\n"),
        );
        sql += "\n";
        let (trigger, table) = (self.name(), self.table.quoted());
        sql + &match self.firing {
            Firing::Bulk => format!(
                "create trigger {trigger} after insert on {table}\n    referencing new table as inserted\n    \
                 for each statement execute function {name}();\n"
            ),
            _ => format!(
                "create constraint trigger {trigger} after insert on {table}\n    deferrable initially deferred\n    \
                 for each row execute function {name}();\n"
            ),
        }
    }

    /// Returns the one statement that undoes [`Self::create`]: triggers go with their functions.
    pub(crate) fn drop(&self) -> String {
        let of = |suffix: &str, arguments: &str| format!("{}({arguments})", function(self.names, self.table, suffix));
        let mut functions = vec![of("", "")];
        if self.firing == Firing::Strict {
            functions.push(of("note", ""));
        }
        functions.extend(self.helpers.iter().rev().map(|helper| of(helper.suffix, helper.arguments)));
        format!("drop function {} cascade;", functions.join(", "))
    }

    fn insert(&self, source: &str) -> String {
        let columns: Vec<_> = self.values.iter().map(|(column, _)| *column).collect();
        let values: Vec<_> = self.values.iter().map(|(_, value)| value.as_str()).collect();
        format!(
            "insert into {} ({})\n    {source}\n        {}",
            self.names.outbox(),
            columns.join(", "),
            values.join(",\n        ")
        )
    }

    /// Returns the setting that collects the entities of a transaction until it commits.
    fn setting(&self) -> String {
        literal(&format!("outbox_relay.t{:08x}", hash(&part(self.names, self.table, ""))))
    }

    /// Returns the trigger that notes the entities of each statement.
    fn note(&self) -> String {
        let (name, table, setting) = (function(self.names, self.table, "note"), self.table.quoted(), self.setting());
        let (entity_type, entity_id) = &self.entity;
        // The seed of the lock that `outbox_emit` takes.
        let secret = self.names.companion("secret");
        let body = format!(
            "begin\n    perform set_config({setting}, concat_ws(',', nullif(current_setting({setting}, true), ''),\n        \
             (select string_agg(distinct hashtextextended({entity_type} || '/' || ({entity_id}), (select s.entity_seed from {secret} s))::text, ',') from inserted r)), true);\n    \
             return null;\nend\n"
        );
        format!(
            "-- Notes which entities the transaction writes. The deferred trigger locks them in sorted order, before it takes the first id.\n\
             {function}\n\
             create trigger {trigger} after insert on {table}\n    referencing new table as inserted\n    \
             for each statement execute function {name}();\n\n",
            function = trigger_function(&name, &body),
            trigger = quote(&part(self.names, self.table, "note")),
        )
    }

    fn lock(&self) -> String {
        let setting = self.setting();
        format!(
            "    if current_setting({setting}, true) <> '' then\n        \
             perform pg_advisory_xact_lock(entity) from (\n            \
             select distinct entity::bigint from unnest(string_to_array(current_setting({setting}, true), ',')) entity order by 1) sorted;\n        \
             perform set_config({setting}, '', true);\n    end if;\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger<'a>(names: &'a Names, table: &'a TableName, firing: Firing) -> Trigger<'a> {
        Trigger {
            names,
            table,
            firing,
            values: vec![("entity_type", "'order'".into()), ("entity_id", column("key"))],
            entity: ("'order'".into(), column("key")),
            helpers: Vec::new(),
        }
    }

    #[test]
    fn names_of_functions_are_quoted_and_never_too_long() {
        let names = Names::new("my \"schema", "event_outbox", "processed_events");
        let long = TableName { schema: "é".repeat(30), table: "ü".repeat(31) };
        for suffix in ["", "note", "expand"] {
            assert!(part(&names, &long, suffix).len() <= LONGEST_NAME);
        }
        assert_ne!(part(&names, &long, "note"), part(&names, &long, "json"));
        let table = TableName { schema: "shop".into(), table: "Out\"box".into() };
        assert_eq!(function(&names, &table, "json"), r#""my ""schema"."event_outbox_from_shop_Out""box_json""#);
    }

    #[test]
    fn every_function_that_is_created_is_dropped() {
        let (names, table) = (Names::default(), TableName { schema: "public".into(), table: "outbox".into() });
        for firing in [Firing::Deferred, Firing::Strict, Firing::Bulk] {
            let trigger = trigger(&names, &table, firing);
            let (create, drop) = (trigger.create(), trigger.drop());
            let created = create.matches("create function ").count();
            assert_eq!(created, drop.matches("event_outbox_from_public_outbox").count(), "{create}\n{drop}");
            assert_eq!(create.contains("deferrable initially deferred"), firing != Firing::Bulk);
        }
    }
}
