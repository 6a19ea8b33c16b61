//! Finds out which column means what.

use super::flag::{self, Flag};
use super::given::{Given, Refusal, refusal};
use super::mapping::{Mapping, Source};
use super::role::{Role, plain, shown};
use crate::store::app_table::{AppTable, Column};

/// Returns the column whose values have to be read before [`mapping`] can say which rows are pending: a state column.
pub(crate) fn state_column<'t>(table: &'t AppTable, given: &Given) -> Option<&'t Column> {
    let column = flag::column(table, given).ok().flatten()?;
    (!matches!(column.base.as_str(), "bool" | "timestamptz" | "timestamp")).then_some(column)
}

/// Returns what the columns mean.
///
/// # Errors
/// All reasons why the table cannot be adopted.
pub(crate) fn mapping(
    table: &AppTable,
    given: &Given,
    states: &[(Option<String>, i64)],
) -> Result<Mapping, Vec<Refusal>> {
    let mut refusals = contradictions(table, given);
    let mut used: Vec<&str> = given.map.iter().map(|(name, _)| name.as_str()).collect();
    let flag = match flag::column(table, given) {
        Ok(None) => Some(Flag::Deleted),
        Ok(Some(column)) => {
            used.push(&column.name);
            flag::flag(column, given, states).map_err(|more| refusals.extend(more)).ok()
        }
        Err(refused) => {
            refusals.push(refused);
            None
        }
    };
    let id = id(table, given).map_err(|refused| refusals.push(refused)).ok();
    let key = key(table, id).map_err(|refused| refusals.push(refused)).ok();
    let mut parts = Vec::new();
    for role in Role::PARTS {
        if let Some((_, value)) = given.constants.iter().find(|(of, _)| *of == role) {
            parts.push((role, Source::Constant(value.clone())));
        } else if let Some(column) = part(table, given, role, &used) {
            used.push(&column.name);
            let Column { name, declared, base, .. } = column;
            parts.push((role, Source::Column { name: name.clone(), declared: declared.clone(), base: base.clone() }));
        } else if let Some(missing) = missing(role) {
            refusals.push(missing);
        }
    }
    let (Some(flag), Some(id), Some(key), true) = (flag, id, key, refusals.is_empty()) else {
        return Err(refusals);
    };
    let is_used = |column: &&Column| !used.contains(&column.name.as_str()) && column.name != id.name;
    let ignored = |name: &str| given.map.iter().any(|(of, role)| of == name && *role == Role::None);
    let unused = table.columns.iter().filter(|column| is_used(column) || ignored(&column.name));
    let unused = unused.map(|column| column.name.clone()).collect();
    let notes = notes(table, &parts);
    Ok(Mapping { parts, key, id: id.name.clone(), flag, unused, notes })
}

/// Returns what in the command line does not fit the table.
fn contradictions(table: &AppTable, given: &Given) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (at, (name, role)) in given.map.iter().enumerate() {
        let Some(column) = table.column(name) else {
            let names: Vec<_> = table.columns.iter().map(|column| shown(&column.name)).collect();
            refusals.push(refusal(
                format!("--map names the column {}, which the table does not have", shown(name)),
                format!("its columns are {}", names.join(", ")),
            ));
            continue;
        };
        if !role.takes(column) {
            refusals.push(refusal(
                format!(
                    "the column {} is of the type {}, which cannot be the {}",
                    shown(name),
                    column.declared,
                    role.name()
                ),
                format!("a column of the type {}", role.taken_types()),
            ));
        }
        let again = given.map[..at].iter().any(|(of, other)| of == name || (other == role && *role != Role::None));
        let constant = given.constants.iter().any(|(of, _)| of == role);
        if again || constant {
            refusals.push(refusal(
                format!("{}={} contradicts another --map or --constant", shown(name), role.name()),
                "each column has one role, and each role one column or constant",
            ));
        }
    }
    if given.deletes && given.map.iter().any(|(_, role)| *role == Role::Pending) {
        refusals.push(refusal("--deletes and --map COLUMN=pending contradict each other", "one of the two"));
    }
    refusals
}

/// Finds the column that gives the rows their order.
fn id<'t>(table: &'t AppTable, given: &Given) -> Result<&'t Column, Refusal> {
    if let Some((name, _)) = given.map.iter().find(|(_, role)| *role == Role::Id)
        && let Some(column) = table.column(name).filter(|column| Role::Id.takes(column))
    {
        return Ok(column);
    }
    let numbered = |column: &&Column| column.numbered && Role::Id.takes(column);
    let all: Vec<_> = table.columns.iter().filter(numbered).collect();
    let primary = table.primary_key().filter(|key| key.columns.len() == 1).map(|key| key.columns[0].as_str());
    let found = all.iter().find(|column| Some(column.name.as_str()) == primary);
    match (found, all.as_slice()) {
        (Some(column), _) | (None, [column]) => Ok(column),
        (None, several) => Err(refusal(
            match several {
                [] => "no column gives the rows an order: a number that counts up (identity, serial, or a default with nextval). A random \
                       uuid or a time does not say which of two rows came first"
                    .to_owned(),
                several => format!(
                    "it is ambiguous which column gives the rows their order: {}",
                    several.iter().map(|column| shown(&column.name)).collect::<Vec<_>>().join(", ")
                ),
            },
            "--map COLUMN=id, where COLUMN is of the type bigint, integer or smallint and counts up",
        )),
    }
}

/// Returns the columns by which the trigger finds the row again.
fn key(table: &AppTable, id: Option<&Column>) -> Result<Vec<String>, Refusal> {
    let of_id = |columns: &[String]| matches!((columns, id), ([only], Some(id)) if *only == id.name);
    let key = table.primary_key().or_else(|| table.keys.iter().find(|key| of_id(&key.columns)));
    let key = key.ok_or_else(|| {
        refusal(
            "the table has no primary key, so the trigger could not find its row again",
            "alter table … add primary key (…)",
        )
    })?;
    // The trigger compares on a search path without the schemas of extensions.
    let foreign = key.columns.iter().filter_map(|name| table.column(name)).find(|column| !column.built_in);
    match foreign {
        None => Ok(key.columns.clone()),
        Some(column) => Err(refusal(
            format!(
                "the column {} of the primary key is {}, which is not built into Postgres: the trigger could not find its row again",
                shown(&column.name),
                shown(&column.declared)
            ),
            "alter table … alter column … type text, or another built-in type",
        )),
    }
}

/// Returns the column with this meaning: the one that the user has named, or the one with the most telling name.
fn part<'t>(table: &'t AppTable, given: &Given, role: Role, used: &[&str]) -> Option<&'t Column> {
    if let Some((name, _)) = given.map.iter().find(|(_, of)| *of == role) {
        return table.column(name);
    }
    let is_free = |column: &&Column| !used.contains(&column.name.as_str()) && role.takes(column);
    // Ids of events are unique in the outbox. A repeated one would make the application's transaction fail.
    let is_unique = |column: &&Column| {
        role != Role::EventId
            || table.keys.iter().any(|key| matches!(key.columns.as_slice(), [only] if *only == column.name))
    };
    let names = role.known_names().iter();
    let mut found = names.filter_map(|known| {
        let is_known = |column: &&Column| plain(&column.name) == *known;
        table.columns.iter().filter(is_known).filter(is_free).find(is_unique)
    });
    found.next()
}

fn missing(role: Role) -> Option<Refusal> {
    let (what, fix) = match role {
        Role::EntityId => (
            "no column names the entity (looked for aggregate_id, entity_id, stream_id, partition_key and the like): without it the events \
             have no key and no order",
            "--map COLUMN=entity_id",
        ),
        Role::EntityType => (
            "no column names the type of the entity (looked for aggregate_type, entity_type and the like)",
            "--map COLUMN=entity_type, or --constant entity_type=NAME for all rows",
        ),
        Role::EventType => (
            "no column names the type of the event (looked for event_type, type, event_name and the like)",
            "--map COLUMN=event_type, or --constant event_type=NAME for all rows",
        ),
        Role::Payload => {
            ("no column has the payload (looked for payload, data, body and the like)", "--map COLUMN=payload")
        }
        _ => return None,
    };
    Some(refusal(what, fix))
}

fn notes(table: &AppTable, parts: &[(Role, Source)]) -> Vec<String> {
    let mut notes = Vec::new();
    for (role, source) in parts {
        let Source::Column { name, base, .. } = source else { continue };
        let nullable = table.column(name).is_some_and(|column| !column.not_null);
        let name = shown(name);
        match role {
            Role::EntityType | Role::EventType if nullable => {
                notes.push(format!("a transaction that leaves {name} null will fail when it commits: events need it"));
            }
            Role::EntityId if nullable => notes.push(format!("rows with null in {name} have no key and no order")),
            Role::CreatedAt if base == "timestamp" => {
                notes.push(format!("{name} has no time zone; it is taken as UTC"));
            }
            Role::Payload if base != "jsonb" => {
                notes.push(format!(
                    "{name} is {base}: it is published byte by byte, without an envelope, whatever RELAY_ENVELOPE says"
                ));
            }
            _ => {}
        }
    }
    notes
}
