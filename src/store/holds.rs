//! Reads and writes the records of holds. A lane's owner writes them in the transaction that steps over the events. They are read when a
//! worker takes over lanes, or after an operator has changed them. Statements find records by their ctid; migration 0007 has the reason.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row};

use crate::lane::LaneRange;
use crate::lane::hold::{Hold, HoldKind, HoldSet, HoldValue, RecordId, TrackedHold};
use crate::store::settle::{Ctid, SettleError, owned, postgres_text};
use event_outbox::names::Names;

/// The columns of a record, in the order in which [`hold_of`] reads them.
const COLUMNS: &str =
    "lane, kind, topic, partition, partitions, entity_type, entity_id, why, reason, from_id, head_id, events";

/// Holds as rows of `v`: one array for each column, as [`bind`] binds them. The first three identify a hold in memory and its record.
const VALUES: &str = "unnest($1::int8[], $2::tid[], $3::int8[], $4::int2[], $5::text[], $6::text[], $7::text[], $8::text[], \
     $9::text[], $10::text[], $11::int8[], $12::int8[], $13::int8[], $14::int4[], $15::int4[]) \
     as v (index, row_ctid, id, lane, kind, topic, entity_type, entity_id, why, reason, from_id, head_id, events, partition, partitions)";

/// The longest reason that is stored, in characters.
const REASON_MAX: usize = 1_000;

/// The statements about holds, rendered once per relay.
#[derive(Debug, Clone)]
pub(crate) struct HoldSql {
    load: String,
    insert: String,
    update: String,
    delete: String,
}

impl HoldSql {
    pub(crate) fn new(names: &Names) -> Self {
        let table = names.companion("hold");
        Self {
            // A hold of a refused event is released when an operator decides about that event: the event is then DEAD, or its error is
            // cleared.
            load: format!(
                "select {COLUMNS}, ctid, id, why = 'poison' and not exists (select from {} head where head.id = hold.head_id \
                   and head.status = 'PENDING' and head.last_error is not null) \
                 from {table} hold where lane between $1 and $2",
                names.outbox()
            ),
            insert: format!(
                "with new as (insert into {table} ({COLUMNS}) select {COLUMNS} from {VALUES} returning {COLUMNS}, ctid, id) \
                 select * from new"
            ),
            update: format!(
                "update {table} h set why = v.why, reason = v.reason, from_id = v.from_id, head_id = v.head_id, events = v.events \
                 from {VALUES} where h.ctid = v.row_ctid and h.id = v.id returning v.index, h.ctid, h.id"
            ),
            delete: format!(
                "delete from {table} h using unnest($1::tid[], $2::int8[]) as v (row_ctid, id) where h.ctid = v.row_ctid and h.id = v.id"
            ),
        }
    }

    /// Reads the holds of a range of lanes.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn load(
        &self,
        conn: &mut PgConnection,
        lanes: LaneRange,
        persistent: bool,
    ) -> Result<HoldSet, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.load.as_str())).bind(lanes.first).bind(lanes.last);
        let mut holds = HoldSet::default();
        for row in query.persistent(persistent).fetch_all(conn).await? {
            let (lane, hold) = hold_of(&row)?;
            let is_released = row.try_get(14)?;
            holds.load(lane, Hold { released: is_released, ..hold }, record_id(&row, 12)?);
        }
        Ok(holds)
    }

    /// Writes the changed holds, in the transaction that owns the lanes. Returns the new places of the records that were written.
    ///
    /// # Errors
    /// [`SettleError::NotOwned`] if a record is not at its ctid: another session changed it without holding the lanes' locks.
    pub(crate) async fn save(
        &self,
        conn: &mut PgConnection,
        holds: &HoldSet,
        persistent: bool,
    ) -> Result<Vec<(u32, RecordId)>, SettleError> {
        let mut moved = Vec::new();
        if !holds.gone().is_empty() {
            let (ctids, ids): (Vec<_>, Vec<_>) =
                holds.gone().iter().map(|record| (Ctid(record.ctid), record.id)).unzip();
            let query = sqlx::query(AssertSqlSafe(self.delete.as_str())).bind(&ctids).bind(&ids).persistent(persistent);
            owned(ctids.len(), query.execute(&mut *conn).await?.rows_affected())?;
        }
        let (changed, new): (Vec<_>, Vec<_>) = holds.dirty().partition(|(_, held)| held.record.is_some());
        if !changed.is_empty() {
            let query = bind(&self.update, &changed).persistent(persistent);
            let rows = query.fetch_all(&mut *conn).await?;
            owned(changed.len(), rows.len() as u64)?;
            for row in &rows {
                moved.push((row.try_get::<i64, _>(0)? as u32, record_id(row, 1)?));
            }
        }
        if !new.is_empty() {
            let query = bind(&self.insert, &new).persistent(persistent);
            let rows = query.fetch_all(&mut *conn).await?;
            for row in &rows {
                let (lane, hold) = hold_of(row)?;
                if let Some(index) = holds.find(lane, &hold.value) {
                    moved.push((index, record_id(row, 12)?));
                }
            }
            owned(new.len(), rows.len() as u64)?;
        }
        Ok(moved)
    }
}

/// Binds the values of `holds` to the arrays of [`VALUES`].
fn bind<'q>(sql: &'q str, holds: &[(u32, &TrackedHold)]) -> Query<'q, Postgres, PgArguments> {
    fn column<T>(holds: &[(u32, &TrackedHold)], of: impl Fn(&TrackedHold) -> T) -> Vec<T> {
        holds.iter().map(|(_, held)| of(held)).collect()
    }
    let text = |of: fn(&HoldValue) -> Option<&str>| column(holds, |held| of(&held.hold.value).map(str::to_owned));
    sqlx::query(AssertSqlSafe(sql))
        .bind(holds.iter().map(|(index, _)| i64::from(*index)).collect::<Vec<_>>())
        .bind(column(holds, |held| held.record.map(|record| Ctid(record.ctid))))
        .bind(column(holds, |held| held.record.map(|record| record.id)))
        .bind(column(holds, |held| held.lane))
        .bind(column(holds, |held| kind_of(&held.hold.value)))
        .bind(text(|value| value.destination().map(|(topic, _)| topic)))
        .bind(text(
            |value| if let HoldValue::Entity { entity_type, .. } = value { entity_type.as_deref() } else { None },
        ))
        .bind(text(|value| if let HoldValue::Entity { entity_id, .. } = value { Some(entity_id) } else { None }))
        .bind(column(holds, |held| held.hold.kind.word()))
        .bind(column(holds, |held| short(&held.hold.reason)))
        .bind(column(holds, |held| held.hold.from_id))
        .bind(column(holds, |held| held.hold.head_id))
        .bind(column(holds, |held| held.hold.events))
        .bind(column(holds, |held| held.hold.value.destination().and_then(|(_, partition)| partition)))
        .bind(column(holds, |held| match held.hold.value {
            HoldValue::Partition { of, .. } => Some(of),
            _ => None,
        }))
}

/// Returns what a hold names, as the column `kind` has it.
fn kind_of(value: &HoldValue) -> &'static str {
    match value {
        HoldValue::Row(_) => "row",
        HoldValue::Entity { .. } => "entity",
        HoldValue::Topic(_) => "topic",
        HoldValue::Partition { .. } => "partition",
    }
}

fn short(reason: &str) -> String {
    postgres_text(reason).chars().take(REASON_MAX).collect()
}

fn hold_of(row: &PgRow) -> Result<(i16, Hold), sqlx::Error> {
    let (topic, partition, of): (Option<String>, Option<i32>, Option<i32>) =
        (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
    let (entity_type, entity_id): (_, Option<String>) = (row.try_get(5)?, row.try_get(6)?);
    let head_id: Option<i64> = row.try_get(10)?;
    let value = match row.try_get::<&str, _>(1)? {
        "row" => head_id.map(HoldValue::Row),
        "topic" => topic.map(HoldValue::Topic),
        "partition" => {
            topic.zip(partition).zip(of).map(|((topic, partition), of)| HoldValue::Partition { topic, partition, of })
        }
        _ => entity_id.map(|entity_id| HoldValue::Entity { entity_type, entity_id }),
    };
    let kind = HoldKind::parse(row.try_get(7)?);
    let (Some(value), Some(kind)) = (value, kind) else {
        return Err(sqlx::Error::Decode("a record of the table of holds is damaged".into()));
    };
    let hold = Hold {
        value,
        kind,
        reason: row.try_get(8)?,
        from_id: row.try_get(9)?,
        head_id,
        events: row.try_get(11)?,
        released: false,
    };
    Ok((row.try_get(0)?, hold))
}

fn record_id(row: &PgRow, column: usize) -> Result<RecordId, sqlx::Error> {
    Ok(RecordId { ctid: row.try_get::<Ctid, _>(column)?.0, id: row.try_get(column + 1)? })
}
