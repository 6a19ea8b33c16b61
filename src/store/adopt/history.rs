//! Reads from the audit table who has adopted a table last, or given it back, and when.

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::script::{COMMAND, ENTRY, UNDO};
use crate::store::app_table::AppTable;
use crate::store::read_only::read;
use crate::text;
use event_outbox::Names;
use event_outbox::names::literal;

/// An adoption or an undo.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) is_undo: bool,
    pub(crate) at: DateTime<Utc>,
    /// The user of the session.
    actor: String,
    /// The person that the user acted for.
    acted_by: Option<String>,
    /// The highest id of the outbox at the undo.
    pub(crate) last_id: Option<i64>,
}

impl Entry {
    /// Reads the columns of [`ENTRY`].
    ///
    /// # Errors
    /// Any error of decoding.
    pub(crate) fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            is_undo: row.try_get::<&str, _>(0)? == UNDO,
            at: row.try_get(1)?,
            actor: row.try_get(2)?,
            acted_by: row.try_get(3)?,
            last_id: row.try_get(4)?,
        })
    }

    /// Returns who has done it and when, for people.
    pub(crate) fn when_and_who(&self) -> String {
        let at = self.at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let by = self.acted_by.as_deref().map_or_else(String::new, |by| format!(" for {}", text::name(by)));
        format!("at {at} by {}{by}", text::name(&self.actor))
    }

    /// Returns the person, or else the user of the session.
    pub(crate) fn who(&self) -> &str {
        self.acted_by.as_deref().unwrap_or(&self.actor)
    }
}

/// Returns the last adoption or undo of the table. Entries have the oid of the table, which is the same after the table was renamed.
///
/// # Errors
/// Any database error.
pub(crate) async fn last(
    conn: &mut PgConnection,
    names: &Names,
    table: &AppTable,
) -> Result<Option<Entry>, sqlx::Error> {
    let query = format!(
        "select {ENTRY} from {} where command in ({}, {}) and case when filter -> 'relation' is null then filter ->> 'table' = {} \
         else filter ->> 'relation' = '{}' end order by id desc limit 1",
        names.companion("audit"),
        literal(COMMAND),
        literal(UNDO),
        literal(&table.quoted()),
        table.oid,
    );
    read(conn, &query).await?.first().map(Entry::from_row).transpose()
}
