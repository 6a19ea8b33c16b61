//! Which worker publishes a lane in Kafka transactions: what the lane's row says, and each change of it. The protocol these belong to
//! is in `relay/exactly_once.rs`.

use std::collections::HashMap;
use std::str::FromStr;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use crate::lane::LaneRange;
use event_outbox::Names;

/// A lane whose row names a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) lane: i16,
    /// Grows with every change of hands.
    pub(crate) epoch: i64,
    /// It may have sent something.
    pub(crate) opened: bool,
    pub(crate) transactional_id: String,
}

impl FromStr for Owner {
    type Err = sqlx::Error;

    /// As [`OWNERS`] writes it.
    fn from_str(text: &str) -> Result<Self, sqlx::Error> {
        let parse = || {
            let mut parts = text.splitn(4, ' ');
            let (lane, epoch) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let (opened, transactional_id) = (parts.next()? == "1", parts.next()?.to_owned());
            Some(Self { lane, epoch, opened, transactional_id })
        };
        parse().ok_or_else(|| sqlx::Error::Decode(format!("the owner of a lane reads {text:?}").into()))
    }
}

/// What separates two owners: no transactional id has it.
const BETWEEN: char = '\n';

/// An expression over rows of the table: the owners among them as one text; null where there are none.
const OWNERS: &str = "string_agg(lane || ' ' || epoch || ' ' || opened::int || ' ' || transactional_id, E'\\n') \
                                 filter (where transactional_id is not null)";

/// The owners of lanes as one text, for [`owners`]; null where there are none. SQL text.
pub(crate) fn owners_between(names: &Names, first: &str, last: &str) -> String {
    format!("select {OWNERS} from {} where lane between {first} and {last}", names.companion("delivery"))
}

/// The statements of exactly-once, rendered once per relay.
#[derive(Debug, Clone)]
pub(crate) struct DeliverySql {
    identity: String,
    take: String,
    open: String,
    release_lanes: String,
    epochs: String,
    events: String,
    settle: String,
}

impl DeliverySql {
    pub(crate) fn new(names: &Names) -> Self {
        let (outbox, lane) = (names.outbox(), names.companion("delivery"));
        Self {
            identity: format!("select value from {} where name = 'identity'", names.companion("control")),
            take: format!(
                "update {lane} set epoch = epoch + 1, transactional_id = $3, opened = false \
                 where lane between $1 and $2 and lane = any ($4) returning lane, epoch"
            ),
            // Only what is still ours: another worker may have taken the lane since.
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
                "update {outbox} set status = 'PUBLISHED', published_at = statement_timestamp(), due = null \
                 where id = any ($1) and lane between $2 and $3 and status = 'PENDING'"
            ),
        }
    }

    /// What tells this outbox from others on the same cluster.
    pub(crate) async fn identity(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(self.identity.as_str())).persistent(false).fetch_one(conn).await
    }

    /// Another owner, or none: returns the lanes' epochs under it.
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

    /// From here on the owner may send; returns the lanes that are still its own.
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

    /// Releases lanes of which the owner has nothing in doubt.
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

    /// The epochs of these lanes.
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

    /// The event ids of those of these rows that are in the lane, whatever their status.
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

    /// PENDING -> PUBLISHED for what a former owner has published; returns how many were pending still.
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

/// The owners in what [`OWNERS`] returns.
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
