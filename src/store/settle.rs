//! Settling: what becomes of claimed rows that were not published (those are marked by the statement that commits:
//! [`crate::store::session`]). Each statement changes rows by their place (ctid), which their locks keep still,
//! and tells how many it changed: another number than asked for means the rows were not ours.

use std::fmt::Write;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgConnection, PgHasArrayType, PgTypeInfo};
use sqlx::{AssertSqlSafe, Encode, Postgres, Type};

use crate::lane::LaneRange;
use crate::store::names::Names;

/// `tid` and `_tid` in `pg_type`: fixed oids (<https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat>).
const TID: Oid = Oid(27);
const TID_ARRAY: Oid = Oid(1010);

/// The place of a row, as Postgres sends it: block (4 bytes) and offset (2 bytes), big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ctid(pub(crate) [u8; 6]);

impl Ctid {
    /// Appends the place as an element of a `tid[]` literal, with a comma behind it.
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

/// A statement changed another number of rows than it was given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettleError {
    #[error("not all of {rows} rows could be changed: some are not this relay's any more")]
    NotOwned { rows: usize },
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The statements that settle, rendered once per worker.
#[derive(Debug, Clone)]
pub(crate) struct SettleSql {
    dead: String,
    held: String,
    generation: String,
}

impl SettleSql {
    pub(crate) fn new(names: &Names) -> Self {
        let outbox = names.outbox();
        // `status = 'PENDING'` keeps G6 even if a place held another row by mistake: PUBLISHED and DEAD rows stay what they are.
        let ours = "where ctid = any ($1) and status = 'PENDING'";
        Self {
            dead: format!("update {outbox} set status = 'DEAD', attempts = attempts + 1, last_error = $2 {ours}"),
            // `infinity` moves the row from the pending to the waiting index: no claim walks it until it is released.
            held: format!(
                "update {outbox} set available_at = 'infinity', attempts = attempts + $3, last_error = $2 {ours}"
            ),
            generation: format!(
                "update {} set generation = generation + 1 where lane between $1 and $2",
                names.companion("lane")
            ),
        }
    }

    /// PENDING -> DEAD, by the row's own fault.
    pub(crate) async fn mark_dead(
        &self,
        conn: &mut PgConnection,
        row: Ctid,
        error: &str,
        persistent: bool,
    ) -> Result<(), SettleError> {
        let query = sqlx::query(AssertSqlSafe(self.dead.as_str()))
            .bind([row])
            .bind(postgres_text(error))
            .persistent(persistent);
        owned(1, query.execute(conn).await?.rows_affected())
    }

    /// PENDING and claimable -> PENDING and held until released. `attempts` is added for a row's own fault only.
    pub(crate) async fn hold(
        &self,
        conn: &mut PgConnection,
        rows: &[Ctid],
        reason: &str,
        attempts: i32,
        persistent: bool,
    ) -> Result<(), SettleError> {
        let query = sqlx::query(AssertSqlSafe(self.held.as_str()))
            .bind(rows)
            .bind(postgres_text(reason))
            .bind(attempts)
            .persistent(persistent);
        owned(rows.len(), query.execute(conn).await?.rows_affected())
    }

    /// Tells the other workers that rows of these lanes were held or released; returns by how much the sum of generations grew.
    pub(crate) async fn bump_generation(
        &self,
        conn: &mut PgConnection,
        lanes: LaneRange,
        persistent: bool,
    ) -> Result<i64, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.generation.as_str()))
            .bind(lanes.first)
            .bind(lanes.last)
            .persistent(persistent);
        Ok(query.execute(conn).await?.rows_affected() as i64)
    }
}

fn owned(expected: usize, changed: u64) -> Result<(), SettleError> {
    if changed == expected as u64 { Ok(()) } else { Err(SettleError::NotOwned { rows: expected }) }
}

/// Postgres' text cannot hold NUL, and an error that quotes a client library might.
fn postgres_text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
