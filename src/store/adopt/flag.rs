//! Finds how a row of the loop's table says that it is not published yet.

use std::collections::BTreeSet;

use super::given::{Given, Refusal, refusal};
use super::role::{Role, plain, shown};
use crate::store::app_table::{AppTable, Column};
use event_outbox::names::{literal, quote};

/// Tells a pending row from a published one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flag {
    /// A boolean; pending rows have the other value than `done`, or none.
    Boolean { column: String, done: bool },
    /// A time; pending rows have none.
    Time { column: String, declared: String },
    /// A state; pending rows have one of `pending`. Rows that are handed over get `mark`; `done` leaves rows alone.
    State { column: String, declared: String, pending: Vec<String>, done: Vec<String>, mark: String },
    /// Every row is pending, and is deleted when it has been handed over.
    Deleted,
}

const DONE_BOOLEANS: [&str; 8] =
    ["published", "processed", "sent", "delivered", "dispatched", "relayed", "handled", "completed"];
const PENDING_BOOLEANS: [&str; 4] = ["pending", "unpublished", "unsent", "unprocessed"];
const STATES: [&str; 7] =
    ["status", "state", "publishstatus", "outboxstatus", "eventstatus", "deliverystatus", "processingstatus"];
const PENDING_WORDS: [&str; 11] = [
    "pending",
    "new",
    "created",
    "unpublished",
    "unsent",
    "queued",
    "ready",
    "waiting",
    "open",
    "not_published",
    "to_publish",
];
const DONE_WORDS: [&str; 10] = [
    "published",
    "sent",
    "processed",
    "done",
    "completed",
    "complete",
    "delivered",
    "dispatched",
    "success",
    "succeeded",
];

impl Flag {
    /// Returns the column, if there is one.
    pub(crate) fn column(&self) -> Option<&str> {
        match self {
            Self::Boolean { column, .. } | Self::Time { column, .. } | Self::State { column, .. } => Some(column),
            Self::Deleted => None,
        }
    }

    /// SQL that is true for a pending row of this alias.
    pub(crate) fn is_pending(&self, alias: &str) -> String {
        match self {
            Self::Boolean { column, done: true } => format!("{alias}.{} is not true", quote(column)),
            Self::Boolean { column, done: false } => format!("{alias}.{} is not false", quote(column)),
            Self::Time { column, .. } => format!("{alias}.{} is null", quote(column)),
            Self::State { column, pending, .. } => {
                let values: Vec<_> = pending.iter().map(|value| literal(value)).collect();
                format!("{alias}.{}::text in ({})", quote(column), values.join(", "))
            }
            Self::Deleted => "true".to_owned(),
        }
    }

    /// SQL that marks a row as handed over, for the `set` of an update.
    pub(crate) fn mark(&self) -> String {
        match self {
            Self::Boolean { column, done } => format!("{} = {done}", quote(column)),
            Self::Time { column, declared } => format!("{} = clock_timestamp()::{declared}", quote(column)),
            Self::State { column, declared, mark, .. } => {
                format!("{} = {}::text::{declared}", quote(column), literal(mark))
            }
            Self::Deleted => String::new(),
        }
    }

    /// Says in words which rows are pending, and what happens to them.
    pub(crate) fn described(&self) -> String {
        match self {
            Self::Boolean { done, .. } => format!("pending: not {done}, then set to {done}"),
            Self::Time { .. } => "pending: null, then set to the time".to_owned(),
            Self::State { pending, mark, .. } => format!("pending: {}, then set to {mark}", pending.join(", ")),
            Self::Deleted => "every row is pending, and is deleted when it is handed over".to_owned(),
        }
    }
}

/// Returns the column that the user has named, or the only one that looks like a flag.
pub(super) fn column<'t>(table: &'t AppTable, given: &Given) -> Result<Option<&'t Column>, Refusal> {
    let named = given.map.iter().find(|(_, role)| *role == Role::Pending).map(|(name, _)| name);
    if let Some(column) = named.and_then(|name| table.column(name)) {
        return Ok(Some(column));
    }
    if given.deletes {
        return Ok(None);
    }
    let is_free = |column: &&Column| !given.map.iter().any(|(name, _)| *name == column.name);
    let like: Vec<_> = table.columns.iter().filter(is_free).filter(|column| looks_like_a_flag(column)).collect();
    match like.as_slice() {
        [only] => Ok(Some(only)),
        [] => Err(refusal(
            "no column tells which rows the loop has not published yet (looked for published, sent, processed, published_at, sent_at, \
             processed_at, status and the like)",
            "--map COLUMN=pending; or --deletes if the loop deletes the rows that it has published",
        )),
        several => Err(refusal(
            format!(
                "it is ambiguous which column tells the rows that the loop has not published yet: {}",
                several.iter().map(|column| shown(&column.name)).collect::<Vec<_>>().join(", ")
            ),
            format!("--map {}=pending, or another of them: the column that the loop's query reads", several[0].name),
        )),
    }
}

fn looks_like_a_flag(column: &Column) -> bool {
    let name = plain(&column.name);
    let bare = name.strip_prefix("is").unwrap_or(&name);
    match column.base.as_str() {
        "bool" => DONE_BOOLEANS.contains(&bare) || PENDING_BOOLEANS.contains(&bare),
        "timestamptz" | "timestamp" => {
            let stem = ["at", "on", "date", "time"].iter().find_map(|end| name.strip_suffix(end));
            stem.is_some_and(|stem| DONE_BOOLEANS.contains(&stem))
        }
        _ => STATES.contains(&name.as_str()),
    }
}

/// Returns what the column says. `found` has the values of a state column with the number of their rows.
pub(super) fn flag(column: &Column, given: &Given, found: &[(Option<String>, i64)]) -> Result<Flag, Vec<Refusal>> {
    let name = column.name.clone();
    match column.base.as_str() {
        "bool" => {
            let plain = plain(&name);
            let bare = plain.strip_prefix("is").unwrap_or(&plain);
            let done = match (given.pending.first().map(String::as_str), PENDING_BOOLEANS.contains(&bare)) {
                (Some("true" | "t"), _) => false,
                (Some("false" | "f"), _) => true,
                (_, is_pending) => !is_pending,
            };
            Ok(Flag::Boolean { column: name, done })
        }
        "timestamptz" | "timestamp" => Ok(Flag::Time { column: name, declared: column.declared.clone() }),
        _ => state(column, given, found),
    }
}

fn state(column: &Column, given: &Given, found: &[(Option<String>, i64)]) -> Result<Flag, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let name = shown(&column.name);
    // The values that rows have, that the type allows, and that new rows get.
    let mut known: BTreeSet<String> = found.iter().filter_map(|(value, _)| value.clone()).collect();
    known.extend(column.labels.iter().cloned());
    known.extend(column.default.as_deref().and_then(constant));
    let among = |words: &[&str]| -> Vec<String> {
        known.iter().filter(|value| words.contains(&value.to_lowercase().as_str())).cloned().collect()
    };
    let pending = if given.pending.is_empty() { among(&PENDING_WORDS) } else { given.pending.clone() };
    let mut done = if given.done.is_empty() { among(&DONE_WORDS) } else { given.done.clone() };
    done.retain(|value| !pending.contains(value));
    if pending.is_empty() {
        refusals.push(refusal(
            format!("it is unknown which value of {name} means that a row is not published yet"),
            format!("--pending VALUE: one of the values of {name}; it may be given more than once"),
        ));
    }
    if done.is_empty() {
        refusals.push(refusal(
            format!("it is unknown which value of {name} means that a row is published"),
            format!("--done VALUE: the value that the loop writes into {name}"),
        ));
    }
    for (value, count) in found {
        let is_known = value.as_ref().is_some_and(|value| pending.contains(value) || done.contains(value));
        if !is_known && !pending.is_empty() {
            let value = value.as_deref();
            refusals.push(refusal(
                format!(
                    "{} in {name} of {} is neither pending nor published",
                    value.map_or("NULL".to_owned(), |v| format!("'{}'", shown(v))),
                    crate::text::counted(*count, "row")
                ),
                match value {
                    Some(value) => format!(
                        "stop the loop and let it finish them; or --pending {v} to publish them, or --done {v} to leave them (then name all \
                         values: --pending and --done replace the guess)",
                        v = crate::text::shell(value)
                    ),
                    None => format!("update these rows first: a value of {name} has to say whether they are published"),
                },
            ));
        }
    }
    match (refusals.is_empty(), done.first().cloned()) {
        (true, Some(mark)) => {
            Ok(Flag::State { column: column.name.clone(), declared: column.declared.clone(), pending, done, mark })
        }
        _ => Err(refusals),
    }
}

/// Returns the text of a default such as `'NEW'::text`.
fn constant(default: &str) -> Option<String> {
    let inside = default.strip_prefix('\'')?;
    let end = inside.find("'::").or_else(|| inside.strip_suffix('\'').map(str::len))?;
    Some(inside[..end].replace("''", "'"))
}
