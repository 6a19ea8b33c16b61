//! Finds the columns that name the entity.

use crate::store::app_table::{AppTable, Column};
use crate::text;

/// The columns that name the entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntityKey {
    pub(crate) columns: Vec<String>,
    /// True if no two rows have the same key, checked at once.
    pub(crate) unique: bool,
}

/// A reason why a table is not captured, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) fix: String,
}

fn refusal(reason: String, fix: impl Into<String>) -> Refusal {
    Refusal { reason, fix: fix.into() }
}

/// Returns the columns of `--key`, or else the primary key.
///
/// # Errors
/// The reason why these columns cannot name an entity.
pub(crate) fn entity_key(table: &AppTable, given: &[String]) -> Result<EntityKey, Refusal> {
    let columns = match (given, table.primary_key()) {
        ([], Some(primary)) => primary.columns.clone(),
        ([], None) => {
            return Err(refusal(
                "the table has no primary key, so it is unknown which columns name the entity".to_owned(),
                "--key COLUMN, or --key COLUMN,COLUMN: not null, and best unique",
            ));
        }
        (given, _) => given.to_vec(),
    };
    for (at, name) in columns.iter().enumerate() {
        let Some(column) = table.column(name) else { return Err(no_column(table, "--key", name)) };
        if columns[..at].contains(name) {
            return Err(refusal(format!("--key names the column {} twice", text::name(name)), "each column once"));
        }
        if !column.not_null {
            return Err(refusal(
                format!(
                    "the column {} of the key may be null, and an event without a key has no order",
                    text::name(name)
                ),
                "alter table … alter column … set not null, or --key with other columns",
            ));
        }
    }
    let within = table.keys.iter().filter(|key| key.columns.iter().all(|column| columns.contains(column)));
    let within: Vec<_> = within.collect();
    let unique = within.iter().any(|key| !key.deferrable);
    match within.first() {
        // Two rows may exchange their keys, and "deleted" of the one would follow "created" of the other.
        Some(key) if !unique => Err(refusal(
            format!(
                "the constraint {} is deferrable, so rows can exchange their keys and events cannot tell",
                text::name(&key.name)
            ),
            "create unique index concurrently on … with the same columns: an index is checked at once",
        )),
        _ => Ok(EntityKey { columns, unique }),
    }
}

/// Checks the columns of `--columns`, and returns them with those of the key.
///
/// # Errors
/// A column that the table does not have.
pub(crate) fn event_columns(table: &AppTable, key: &[String], given: &[String]) -> Result<Vec<String>, Refusal> {
    if let Some(name) = given.iter().find(|name| table.column(name).is_none()) {
        return Err(no_column(table, "--columns", name));
    }
    let mut columns: Vec<String> = key.to_vec();
    for name in given {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    Ok(columns)
}

fn no_column(table: &AppTable, flag: &str, name: &str) -> Refusal {
    let names: Vec<_> = table.columns.iter().map(|column| text::name(&column.name).to_string()).collect();
    refusal(
        format!("{flag} names the column {}, which the table does not have", text::name(name)),
        format!("its columns are {}", names.join(", ")),
    )
}

/// Returns the columns by which the backfill goes through the table: the primary key or another unique index whose columns are never null.
///
/// Their types are built in. For another type, such as `citext`, `order by` takes the operators of its index, and a comparison on our search
/// path takes those of another type, or none.
///
/// # Errors
/// The reason why there are none.
pub(crate) fn walked(table: &AppTable) -> Result<&[String], Refusal> {
    let all =
        |columns: &[String], is: fn(&Column) -> bool| columns.iter().all(|name| table.column(name).is_some_and(is));
    let mut set = table.keys.iter().filter(|key| all(&key.columns, |column| column.not_null)).peekable();
    if set.peek().is_none() {
        return Err(refusal(
            "it has no unique key, so its rows cannot be visited one after the other".to_owned(),
            "alter table … add primary key (…), or a unique index on columns that are not null",
        ));
    }
    set.find(|key| all(&key.columns, |column| column.built_in)).map(|key| key.columns.as_slice()).ok_or_else(|| {
        refusal(
            "each of its unique keys has a column of a type that is not built into Postgres, whose order cannot be relied on".to_owned(),
            "create a unique index on columns that are not null and of built-in types",
        )
    })
}
