//! Seeds an outbox inside the server: no row crosses the network, so that a million rows take seconds.

use indicatif::ProgressBar;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::bench_schema::BenchSchema;
use super::failure::BenchError;

/// The rows per transaction.
const CHUNK: u64 = 100_000;

/// The distribution of the events over entities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Events spread over N entities, in no order.
    Spread(u64),
    /// Every other event is of one entity; the rest are spread over N other entities.
    HalfOnOne(u64),
    /// Events without an entity: no key, no order.
    Unkeyed,
}

/// The status of the rows when they are inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    Pending,
    Published,
}

impl Keys {
    /// Returns the SQL for the entity of row `i`.
    fn sql(self) -> String {
        // Hash the row's number: consecutive rows have different entities, and every run has the same ones.
        let spread = |entities: u64| format!("'order-' || (hashint8(i)::bigint & 2147483647) % {}", entities.max(1));
        match self {
            Self::Spread(entities) => spread(entities),
            Self::HalfOnOne(entities) => format!("case when i % 2 = 0 then 'order-hot' else {} end", spread(entities)),
            Self::Unkeyed => "null::text".to_owned(),
        }
    }
}

/// Seeds one outbox, in one chunk or more.
pub(crate) struct RowSeeder {
    conn: PgConnection,
    insert: String,
    inserted: u64,
}

impl RowSeeder {
    /// Copies the payloads into the schema, from which the server then builds rows.
    pub(crate) async fn new(
        mut conn: PgConnection,
        schema: &BenchSchema,
        samples: &[String],
        keys: Keys,
        rows: As,
    ) -> Result<Self, BenchError> {
        // Seeding is not measured, so it need not be durable.
        conn.execute("set synchronous_commit = off").await?;
        let table = schema.table("bench_payload");
        let create = format!("create unlogged table if not exists {table} (n bigint primary key, body jsonb not null)");
        conn.execute(AssertSqlSafe(create)).await?;
        let copy = format!(
            "insert into {table} select n - 1, body::jsonb from unnest($1::text[]) with ordinality as s (body, n) on conflict do nothing"
        );
        sqlx::query(AssertSqlSafe(copy)).bind(samples).execute(&mut conn).await?;
        conn.execute(AssertSqlSafe(format!("analyze {table}"))).await?;
        let (status, published) = match rows {
            As::Pending => ("PENDING", "null"),
            // Published long enough ago for the default retention.
            As::Published => ("PUBLISHED", "now() - interval '30 days'"),
        };
        let insert = format!(
            "insert into {} (entity_type, entity_id, event_type, payload, status, published_at) \
             select 'order', {}, (array['OrderPlaced','OrderPaid','OrderShipped','OrderDelivered'])[1 + i % 4], p.body, \
                    '{status}', ({published})::timestamptz \
             from generate_series($1::bigint, $2::bigint) i join {table} p on p.n = i % {} order by i",
            schema.names.outbox(),
            keys.sql(),
            samples.len()
        );
        Ok(Self { conn, insert, inserted: 0 })
    }

    /// Adds `rows` rows in one transaction.
    pub(crate) async fn add(&mut self, rows: u64) -> Result<(), BenchError> {
        let (first, last) = (self.inserted as i64 + 1, (self.inserted + rows) as i64);
        sqlx::query(AssertSqlSafe(self.insert.as_str())).bind(first).bind(last).execute(&mut self.conn).await?;
        self.inserted += rows;
        Ok(())
    }

    /// Returns the number of rows added so far.
    pub(crate) fn inserted(&self) -> u64 {
        self.inserted
    }

    /// Adds `rows` rows in chunks.
    pub(crate) async fn seed(&mut self, rows: u64, progress: &ProgressBar) -> Result<(), BenchError> {
        let mut left = rows;
        while left > 0 {
            let chunk = left.min(CHUNK);
            self.add(chunk).await?;
            left -= chunk;
            progress.set_message(format!("seeding rows {} of {rows}", rows - left));
        }
        Ok(())
    }

    /// Runs a checkpoint, so that none runs during the measurement. Returns false if the user lacks the right.
    pub(crate) async fn checkpoint(&mut self) -> bool {
        self.conn.execute("checkpoint").await.is_ok()
    }
}
