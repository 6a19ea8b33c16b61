//! Reads and changes the rows that name the worker of each lane that is published in Kafka transactions. The protocol is in
//! `relay/exactly_once.rs`.

use std::collections::HashMap;
use std::str::FromStr;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use uuid::Uuid;

use crate::config::Settle;
use crate::lane::LaneRange;
use crate::store::settle;
use event_outbox::Names;

/// The owner of a lane, if the lane's row names one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) lane: i16,
    /// A number that grows with every change of the owner.
    pub(crate) epoch: i64,
    /// True if the owner may have sent something.
    pub(crate) opened: bool,
    pub(crate) transactional_id: String,
}

impl FromStr for Owner {
    type Err = sqlx::Error;

    /// Parses one owner from the text that [`OWNERS`] makes.
    fn from_str(text: &str) -> Result<Self, sqlx::Error> {
        let parse = || {
            let mut parts = text.splitn(4, ' ');
            let (lane, epoch) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let (opened, transactional_id) = (parts.next()? == "1", parts.next()?.to_owned());
            Some(Self { lane, epoch, opened, transactional_id })
        };
        parse().ok_or_else(|| sqlx::Error::Decode(format!("cannot parse the owner of a lane: {text:?}").into()))
    }
}

/// The character between two owners. No transactional id contains it.
const BETWEEN: char = '\n';

/// An SQL aggregate over rows of the table: their owners as one text; null if there are none.
const OWNERS: &str = "string_agg(lane || ' ' || epoch || ' ' || opened::int || ' ' || transactional_id, E'\\n') \
                                 filter (where transactional_id is not null)";

/// Returns SQL for the owners of lanes as one text, which [`owners`] parses; null if there are none.
pub(crate) fn owners_between(names: &Names, first: &str, last: &str) -> String {
    format!("select {OWNERS} from {} where lane between {first} and {last}", names.companion("delivery"))
}

/// The statements of exactly-once delivery, rendered once per relay.
#[derive(Debug, Clone)]
pub(crate) struct DeliverySql {
    take: String,
    open: String,
    release_lanes: String,
    epochs: String,
    events: String,
    settle: String,
}

/// Returns the number that identifies this outbox among others on the same cluster.
///
/// # Errors
/// Any database error.
pub(crate) async fn identity(conn: &mut PgConnection, names: &Names) -> Result<i64, sqlx::Error> {
    // A restored copy of the database must not share the progress of the original, which may still be in use on the same cluster. 60 bits
    // are always positive.
    let sql = format!(
        "select (value operator(pg_catalog.#) system_identifier) operator(pg_catalog.&) {} \
         from {}, pg_catalog.pg_control_system() where name operator(pg_catalog.=) 'identity'",
        (1_i64 << 60) - 1,
        names.companion("control")
    );
    // Sent as text: outside a transaction, a pooler may give the parts of an extended query to two servers.
    conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?.try_get(0)
}

impl DeliverySql {
    pub(crate) fn new(names: &Names, settle: Settle) -> Self {
        let (outbox, lane) = (names.outbox(), names.companion("delivery"));
        Self {
            take: format!(
                "update {lane} set epoch = epoch + 1, transactional_id = $3, opened = false \
                 where lane between $1 and $2 and lane = any ($4) returning lane, epoch"
            ),
            // Only lanes that this worker still owns: another worker may have taken a lane meanwhile.
            open: format!(
                "update {lane} as l set opened = true \
                 from unnest($1::smallint[], $2::bigint[]) as ours (lane, epoch) \
                 where l.lane = ours.lane and l.epoch = ours.epoch and l.transactional_id = $3 returning l.lane"
            ),
            release_lanes: format!(
                "update {lane} as l set transactional_id = null, opened = false \
                 from unnest($1::smallint[], $2::bigint[]) as ours (lane, epoch) \
                 where l.lane = ours.lane and l.epoch = ours.epoch and l.transactional_id = $3"
            ),
            epochs: format!("select lane, epoch from {lane} where lane between $1 and $2"),
            events: format!("select id, event_id from {outbox} where id = any ($1) and lane = $2"),
            settle: format!(
                "{} where id = any ($1) and lane between $2 and $3 and status = 'PENDING'",
                settle::published(&outbox, settle)
            ),
        }
    }

    /// Sets another owner of the lanes, or none. Returns the lanes' new epochs.
    pub(crate) async fn take(
        &self,
        conn: &mut PgConnection,
        range: LaneRange,
        lanes: &[i16],
        transactional_id: Option<&str>,
        persistent: bool,
    ) -> Result<Vec<(i16, i64)>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.take.as_str()))
            .bind(range.first)
            .bind(range.last)
            .bind(transactional_id)
            .bind(lanes);
        let rows = query.persistent(persistent).fetch_all(conn).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Marks the lanes as opened: from now on the owner may send. Returns the lanes that the worker still owns.
    pub(crate) async fn open(
        &self,
        conn: &mut PgConnection,
        lanes: &[(i16, i64)],
        transactional_id: &str,
        persistent: bool,
    ) -> Result<Vec<i16>, sqlx::Error> {
        let (lanes, epochs): (Vec<i16>, Vec<i64>) = lanes.iter().copied().unzip();
        let query = sqlx::query_scalar(AssertSqlSafe(self.open.as_str())).bind(lanes).bind(epochs);
        query.bind(transactional_id).persistent(persistent).fetch_all(conn).await
    }

    /// Releases lanes whose batches are all settled, so that no batch of the owner is in doubt.
    pub(crate) async fn release_lanes(
        &self,
        conn: &mut PgConnection,
        lanes: &[(i16, i64)],
        transactional_id: &str,
        persistent: bool,
    ) -> Result<(), sqlx::Error> {
        let (lanes, epochs): (Vec<i16>, Vec<i64>) = lanes.iter().copied().unzip();
        let query = sqlx::query(AssertSqlSafe(self.release_lanes.as_str())).bind(lanes).bind(epochs);
        query.bind(transactional_id).persistent(persistent).execute(conn).await.map(drop)
    }

    /// Returns the epochs of these lanes.
    pub(crate) async fn epochs(
        &self,
        conn: &mut PgConnection,
        range: LaneRange,
        persistent: bool,
    ) -> Result<HashMap<i16, i64>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.epochs.as_str())).bind(range.first).bind(range.last);
        let rows = query.persistent(persistent).fetch_all(conn).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Returns the event ids of the given rows that are in the lane, whatever their status.
    pub(crate) async fn events(
        &self,
        conn: &mut PgConnection,
        ids: &[i64],
        lane: i16,
        persistent: bool,
    ) -> Result<HashMap<i64, Uuid>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.events.as_str())).bind(ids).bind(lane).persistent(persistent);
        query.fetch_all(conn).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Marks or deletes pending events that a former owner published. Returns the number of rows that were still pending.
    pub(crate) async fn settle(
        &self,
        conn: &mut PgConnection,
        range: LaneRange,
        ids: &[i64],
        persistent: bool,
    ) -> Result<u64, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(self.settle.as_str())).bind(ids).bind(range.first).bind(range.last);
        Ok(query.persistent(persistent).execute(conn).await?.rows_affected())
    }
}

/// Parses the text that [`OWNERS`] returns.
pub(crate) fn owners(text: Option<&str>) -> Result<Vec<Owner>, sqlx::Error> {
    text.map_or_else(|| Ok(Vec::new()), |text| text.split(BETWEEN).map(str::parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_as_they_are_written() {
        let owner = |lane, opened| Owner { lane, epoch: 7, opened, transactional_id: "a.b c".to_owned() };
        let found = owners(Some("3 7 1 a.b c\n-4 7 0 a.b c")).unwrap();
        assert_eq!(found, [owner(3, true), owner(-4, false)]);
        assert!(owners(None).unwrap().is_empty());
        assert!(owners(Some("3 7")).is_err());
    }
}
