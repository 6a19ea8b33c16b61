//! Settles claimed rows that were not published. ([`crate::store::session`] settles published rows in the statement that commits.) Each
//! statement finds rows by their ctid, which cannot change while the row is locked, and checks the number of changed rows.

use std::fmt::Write;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgConnection, PgHasArrayType, PgRow, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{AssertSqlSafe, Decode, Encode, Postgres, Row, Type};
use uuid::Uuid;

use crate::config::Settle;
use crate::lane::LaneRange;
use event_outbox::names::Names;

/// The fixed oids of `tid` and `_tid` (`tid[]`) in `pg_type`
/// (<https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat>).
const TID: Oid = Oid(27);
const TID_ARRAY: Oid = Oid(1010);

/// The ctid of a row, as Postgres sends it: block (4 bytes) and offset (2 bytes), big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ctid(pub(crate) [u8; 6]);

impl Ctid {
    /// Appends the ctid to a `tid[]` literal, followed by a comma.
    pub(crate) fn push_to(&self, list: &mut String) {
        let [a, b, c, d, e, f] = self.0;
        let number = |text: &mut String, number: u32| {
            let _ = write!(text, "{number}");
        };
        list.push_str("\"(");
        number(list, u32::from_be_bytes([a, b, c, d]));
        list.push(',');
        number(list, u16::from_be_bytes([e, f]).into());
        list.push_str(")\",");
    }

    /// Parses the text `(block,offset)`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (block, offset) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
        let (block, offset): (u32, u16) = (block.parse().ok()?, offset.parse().ok()?);
        let ([a, b, c, d], [e, f]) = (block.to_be_bytes(), offset.to_be_bytes());
        Some(Self([a, b, c, d, e, f]))
    }

    /// Parses the text of a `tid[]`.
    pub(crate) fn parse_array(text: &str) -> Option<Vec<Self>> {
        let inner = text.strip_prefix('{')?.strip_suffix('}')?;
        if inner.is_empty() {
            return Some(Vec::new());
        }
        inner.split("\",\"").map(|ctid| Self::parse(ctid.trim_matches('"'))).collect()
    }

    /// Returns the text of a `tid[]` with these ctids.
    pub(crate) fn array(ctids: &[Self]) -> String {
        let mut text = String::with_capacity(ctids.len() * 18 + 2);
        text.push('{');
        ctids.iter().for_each(|ctid| ctid.push_to(&mut text));
        if !ctids.is_empty() {
            text.pop();
        }
        text.push('}');
        text
    }
}

impl Type<Postgres> for Ctid {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TID)
    }
}

impl PgHasArrayType for Ctid {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TID_ARRAY)
    }
}

impl Encode<'_, Postgres> for Ctid {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Ctid {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => Ok(Self(value.as_bytes()?.try_into()?)),
            PgValueFormat::Text => Self::parse(value.as_str()?).ok_or_else(|| "not a ctid".into()),
        }
    }
}

/// The error of a statement that changes rows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettleError {
    #[error("the statement had to change {rows} rows, and changed a different number")]
    NotOwned { rows: usize },
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Returns the statement that settles published rows, up to its condition.
pub(super) fn published(outbox: &str, settle: Settle) -> String {
    match settle {
        Settle::Mark => {
            format!("update {outbox} set status = 'PUBLISHED', published_at = statement_timestamp(), due = null")
        }
        Settle::Delete => format!("delete from {outbox}"),
    }
}

/// A row that is locked and still pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PendingRow {
    pub(crate) id: i64,
    pub(crate) event_id: Uuid,
    pub(crate) ctid: Ctid,
}

/// The statements that settle rows without publishing them, rendered once per relay.
#[derive(Debug, Clone)]
pub(crate) struct SettleSql {
    dead: String,
    refused: String,
    unschedule: String,
    pending: String,
}

impl SettleSql {
    pub(crate) fn new(names: &Names) -> Self {
        let outbox = names.outbox();
        // `status = 'PENDING'` keeps G6 even if a wrong ctid were passed: PUBLISHED and DEAD rows never change here. The rows are not found
        // by a join: a plan cached while the table was small would walk an index.
        let change = "due = null, attempts = attempts + 1, last_error = ($2::text[])[array_position($1::tid[], ctid)] \
                      where ctid = any ($1) and status = 'PENDING'";
        Self {
            dead: format!("update {outbox} set status = 'DEAD', {change}"),
            refused: format!("update {outbox} set {change}"),
            // The trigger sets the row's `xid` to this transaction, so the row is claimed again as a late one, in the order of ids.
            unschedule: format!("update {outbox} set due = null where ctid = any ($1) and status = 'PENDING'"),
            pending: format!(
                "select id, event_id, ctid from {outbox} where id = any ($1) and status = 'PENDING' and lane between $2 and $3 for update skip locked"
            ),
        }
    }

    /// Changes rows from PENDING to DEAD because they cannot be sent by their own fault. Does not read or write their contents.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] if not all of the rows could be changed.
    pub(crate) async fn mark_dead(
        &self,
        conn: &mut PgConnection,
        rows: &[(Ctid, String)],
        persistent: bool,
    ) -> Result<(), SettleError> {
        change(&self.dead, conn, rows, persistent).await
    }

    /// Adds one attempt to refused rows, which hold their entity from now on, and stores the error.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] if not all of the rows could be changed.
    pub(crate) async fn mark_refused(
        &self,
        conn: &mut PgConnection,
        rows: &[(Ctid, String)],
        persistent: bool,
    ) -> Result<(), SettleError> {
        change(&self.refused, conn, rows, persistent).await
    }

    /// Locks the rows of these ids that are still pending, and returns them. Leaves out rows that another session has locked.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn pending(
        &self,
        conn: &mut PgConnection,
        ids: &[i64],
        lanes: LaneRange,
        persistent: bool,
    ) -> Result<Vec<PendingRow>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.pending.as_str())).bind(ids).bind(lanes.first).bind(lanes.last);
        let rows = query.persistent(persistent).fetch_all(conn).await?;
        let row =
            |row: &PgRow| Ok(PendingRow { id: row.try_get(0)?, event_id: row.try_get(1)?, ctid: row.try_get(2)? });
        rows.iter().map(row).collect()
    }

    /// Clears `due` of scheduled rows that are due but held, so that they take their place in the order of ids.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] if not all of the rows could be changed.
    pub(crate) async fn unschedule(
        &self,
        conn: &mut PgConnection,
        rows: &[Ctid],
        persistent: bool,
    ) -> Result<(), SettleError> {
        let query = sqlx::query(AssertSqlSafe(self.unschedule.as_str())).bind(rows).persistent(persistent);
        owned(rows.len(), query.execute(conn).await?.rows_affected())
    }
}

async fn change(
    sql: &str,
    conn: &mut PgConnection,
    rows: &[(Ctid, String)],
    persistent: bool,
) -> Result<(), SettleError> {
    let (ctids, errors): (Vec<_>, Vec<_>) = rows.iter().map(|(ctid, error)| (*ctid, postgres_text(error))).unzip();
    let query = sqlx::query(AssertSqlSafe(sql)).bind(&ctids).bind(&errors).persistent(persistent);
    owned(rows.len(), query.execute(conn).await?.rows_affected())
}

/// Fails unless exactly `expected` rows were changed.
pub(super) fn owned(expected: usize, changed: u64) -> Result<(), SettleError> {
    if changed == expected as u64 { Ok(()) } else { Err(SettleError::NotOwned { rows: expected }) }
}

/// Replaces NUL, which Postgres' `text` cannot store. An error that quotes a client library may contain NUL.
pub(super) fn postgres_text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ctid_is_written_as_it_is_read() {
        let ctid = Ctid::parse("(70000,258)").expect("a ctid");
        assert_eq!(ctid, Ctid([0, 1, 0x11, 0x70, 1, 2]));
        let mut list = String::new();
        ctid.push_to(&mut list);
        assert_eq!(list, "\"(70000,258)\",");
        assert_eq!(Ctid::parse_array("{\"(70000,258)\",\"(0,1)\"}"), Some(vec![ctid, Ctid([0, 0, 0, 0, 0, 1])]));
        assert_eq!(
            (Ctid::parse_array("{}"), Ctid::parse("7,1"), Ctid::parse_array("x")),
            (Some(Vec::new()), None, None)
        );
    }
}
