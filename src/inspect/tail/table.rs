//! Polls the rows of the outbox: new rows by their ids, followed rows by their state.

use std::collections::BTreeSet;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::now_s;
use crate::store::held::{self, Held};
use crate::store::read_only::read;
use crate::store::routes;
use event_outbox::Names;
use event_outbox::route::TopicTemplate;

/// The number of ids below the highest one that are read again. A lower id may commit later than a higher one.
const LOOK_BACK: i64 = 1_000;

/// The maximum number of rows of one query. It must be more than [`LOOK_BACK`].
const MOST_ROWS: i64 = 3_000;

/// A row as it was read.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) event_id: Uuid,
    pub(super) entity_type: String,
    pub(super) entity_id: Option<String>,
    pub(super) event_type: String,
    pub(super) topic: Option<String>,
    pub(super) status: String,
    pub(super) held: bool,
    pub(super) last_error: Option<String>,
    pub(super) created_ms: i64,
    pub(super) created_exact_ms: f64,
    pub(super) age_ms: f64,
    pub(super) published_after_ms: Option<f64>,
}

const COLUMNS: &str = "id, event_id::text, entity_type, entity_id, event_type, topic, status, lane, last_error, \
     extract(epoch from created_at)::float8 * 1000, extract(epoch from clock_timestamp() - created_at)::float8 * 1000, \
     extract(epoch from published_at - created_at)::float8 * 1000";

pub(super) struct Table<'a> {
    names: &'a Names,
    /// [`held::join`].
    join: String,
    highest: i64,
    known: BTreeSet<i64>,
}

impl<'a> Table<'a> {
    /// Starts after the current rows. Also returns by how many seconds the database's clock is ahead of this machine's.
    pub(super) async fn begin(
        conn: &mut PgConnection,
        names: &'a Names,
        topic: &TopicTemplate,
    ) -> Result<(Self, f64), sqlx::Error> {
        let query = format!(
            "select id, extract(epoch from clock_timestamp())::float8 from {} order by id desc limit {LOOK_BACK}",
            names.outbox()
        );
        let rows = read(conn, &query).await?;
        let known: BTreeSet<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let asked = now_s();
        let server = read(conn, "select extract(epoch from clock_timestamp())::float8").await?;
        let server: f64 = server.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        let ahead_s = server - (asked + now_s()) / 2.0;
        let join = held::join(names, &routes::topic_sql(topic, "o."));
        Ok((Self { names, join, highest: known.last().copied().unwrap_or(0), known }, ahead_s))
    }

    pub(super) async fn new_rows(&mut self, conn: &mut PgConnection) -> Result<Vec<Row>, sqlx::Error> {
        let query = self.query(&format!("id > {} order by id limit {MOST_ROWS}", self.highest - LOOK_BACK));
        let mut new = Vec::new();
        for found in read(conn, &query).await? {
            let row = row(&found)?;
            if self.known.insert(row.id) {
                self.highest = self.highest.max(row.id);
                new.push(row);
            }
        }
        self.known = self.known.split_off(&(self.highest - LOOK_BACK));
        Ok(new)
    }

    /// The events of `rows`, a condition and what may follow it, in the order of their ids.
    fn query(&self, rows: &str) -> String {
        format!(
            "select o.*, {} from (select {COLUMNS} from {} where {rows}) o {} order by o.id",
            held::COLUMNS,
            self.names.outbox(),
            self.join
        )
    }

    pub(super) async fn look_at(&self, conn: &mut PgConnection, ids: &[i64]) -> Result<Vec<Row>, sqlx::Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let list: Vec<_> = ids.iter().map(ToString::to_string).collect();
        let query = self.query(&format!("id = any (array[{}]::int8[])", list.join(",")));
        read(conn, &query).await?.iter().map(row).collect()
    }
}

fn row(row: &PgRow) -> Result<Row, sqlx::Error> {
    let created_exact_ms: f64 = row.try_get(9)?;
    let (last_error, held): (Option<String>, _) = (row.try_get(8)?, Held::from_row(row, 12)?);
    Ok(Row {
        id: row.try_get(0)?,
        event_id: row.try_get::<&str, _>(1)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        entity_type: row.try_get(2)?,
        entity_id: row.try_get(3)?,
        event_type: row.try_get(4)?,
        topic: row.try_get(5)?,
        status: row.try_get(6)?,
        held: held.is_some(),
        last_error: last_error.or_else(|| held.map(|held| held.to_string())),
        created_ms: created_exact_ms.floor() as i64,
        created_exact_ms,
        age_ms: row.try_get(10)?,
        published_after_ms: row.try_get(11)?,
    })
}
