//! Creates a system's own database with an outbox; the rows are the same for every system.

use std::process::Command;

use anyhow::{Context, ensure};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use crate::{Servers, Sizes};
use lab::payload;

/// The rows of one insert.
const CHUNK: u32 = 5_000;

/// The average number of events per entity.
const EVENTS_PER_ENTITY: u32 = 200;

pub(crate) struct Outbox {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) options: PgConnectOptions,
    pub(crate) conn: PgConnection,
    pub(crate) samples: Vec<String>,
    pub(crate) entities: u32,
}

impl Outbox {
    /// Creates the database `name` and migrates it with `options`.
    pub(crate) fn make(servers: &Servers, sizes: &Sizes, name: &str, options: &[&str]) -> anyhow::Result<Self> {
        let postgres = &servers.postgres;
        servers.runtime.block_on(async {
            let mut conn = postgres.connect("postgres").await?;
            conn.execute(AssertSqlSafe(format!("create database {name}"))).await?;
            conn.close().await
        })?;
        let url = postgres.url(name);
        let mut migrate = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        let migrated = migrate.arg("migrate").args(options).env("DATABASE_URL", &url).output()?;
        ensure!(migrated.status.success(), "migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        let options = postgres.connect_options(name);
        let conn = servers.runtime.block_on(options.connect())?;
        Ok(Self {
            name: name.to_owned(),
            url,
            options,
            conn,
            samples: payload::samples(payload::SAMPLES, sizes.payload as usize),
            entities: (sizes.events / EVENTS_PER_ENTITY).max(1),
        })
    }

    /// Returns entity and payload of event `number`. Consecutive events have different entities; the payload begins with the number.
    pub(crate) fn event(&self, number: u32) -> (String, String) {
        // Fibonacci hashing spreads consecutive numbers.
        let hash = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let sample = &self.samples[number as usize % self.samples.len()];
        let payload = format!("{{\"n\": {number}, {}", &sample[1..]);
        (format!("order-{}", hash % u64::from(self.entities)), payload)
    }

    /// Writes `events` events in large transactions, then runs a checkpoint, so that none runs during a measurement.
    pub(crate) fn seed_rows(&mut self, servers: &Servers, events: u32) -> anyhow::Result<()> {
        eprintln!("{}: writing {events} events", self.name);
        servers.runtime.block_on(async {
            for from in (0..events).step_by(CHUNK as usize) {
                let chunk = from..events.min(from + CHUNK);
                let (entities, payloads): (Vec<_>, Vec<_>) = chunk.map(|number| self.event(number)).unzip();
                sqlx::query(
                    "insert into event_outbox (entity_type, entity_id, event_type, payload) \
                     select 'order', entity, 'OrderPlaced', payload::jsonb \
                     from unnest($1::text[], $2::text[]) with ordinality as events (entity, payload, number) order by number",
                )
                .bind(entities)
                .bind(payloads)
                .execute(&mut self.conn)
                .await?;
            }
            self.conn.execute("analyze event_outbox").await?;
            self.conn.execute("checkpoint").await?;
            anyhow::Ok(())
        })
    }

    /// Creates the index that the table of a polling loop has.
    pub(crate) fn index_pending(&mut self, servers: &Servers) -> anyhow::Result<()> {
        let sql = "create index pending on event_outbox (id) where status = 'PENDING'";
        servers.runtime.block_on(self.conn.execute(sql))?;
        Ok(())
    }

    /// Returns true if one of the last rows is not marked.
    pub(crate) fn any_pending(&mut self, servers: &Servers) -> anyhow::Result<bool> {
        // The last rows first: this query runs often, and a drain settles the first rows first.
        let sql = "select exists (select from (select status from event_outbox order by id desc limit 10000) last \
                   where status = 'PENDING')";
        servers.runtime.block_on(sqlx::query_scalar(sql).fetch_one(&mut self.conn)).context("pending rows")
    }

    /// Polls until the query returns true.
    pub(crate) fn until(&mut self, servers: &Servers, sql: &'static str) -> anyhow::Result<()> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
        while !servers.runtime.block_on(sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut self.conn))? {
            ensure!(std::time::Instant::now() < deadline, "did not come true: {sql}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(())
    }
}
