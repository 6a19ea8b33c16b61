//! The application that writes its own outbox table all the while, and what consumers must find on the topic in the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::ensure;
use lab::kafka::Record;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::task::JoinHandle;

/// The number of sessions that write.
const WRITERS: usize = 6;
/// The number of entities, each written by several sessions.
const ENTITIES: usize = 12;

/// The application's entities, and its user, who may do no more than it has to.
const ENTITIES_AND_USER: &str = "
    create table public.orders (id text primary key, n bigint not null default 0);
    create role app login password 'app';
    grant insert on public.outbox to app;
    grant select, update on public.orders to app";

/// The outbox table of an application.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    /// Creates it.
    pub(crate) create: &'static str,
    /// Inserts an event: entity type, entity, number.
    pub(crate) insert: &'static str,
    /// Returns id, entity and number of each event.
    pub(crate) events: &'static str,
    /// The header that the other writer has put the id into; the relay does as well.
    pub(crate) id_header: &'static str,
}

/// The table of Debezium's event router.
pub(crate) const OF_DEBEZIUM: Table = Table {
    create: "create table public.outbox (
        id uuid primary key default gen_random_uuid(), aggregatetype varchar(255) not null, aggregateid varchar(255) not null,
        type varchar(255) not null, payload jsonb not null)",
    insert: "insert into public.outbox (aggregatetype, aggregateid, type, payload) \
             values ($1, $2, 'Counted', jsonb_build_object('n', $3::bigint))",
    events: "select id::text, aggregateid, (payload->>'n')::bigint from public.outbox",
    id_header: "id",
};

/// The table of a usual polling loop.
pub(crate) const OF_A_LOOP: Table = Table {
    create: "create table public.outbox (
        id bigint generated always as identity primary key, event_uuid uuid not null unique default gen_random_uuid(),
        aggregate_type text not null, aggregate_id text not null, type text not null, payload jsonb not null,
        created_at timestamptz not null default now(), status text not null default 'NEW')",
    insert: "insert into public.outbox (aggregate_type, aggregate_id, type, payload) \
             values ($1, $2, 'Counted', jsonb_build_object('n', $3::bigint))",
    events: "select event_uuid::text, aggregate_id, (payload->>'n')::bigint from public.outbox",
    id_header: "event-id",
};

/// Creates the application's tables.
pub(crate) async fn create(owner: &mut PgConnection, table: Table) -> anyhow::Result<()> {
    owner.execute(sqlx::raw_sql(AssertSqlSafe(format!("{}; {ENTITIES_AND_USER}", table.create)))).await?;
    let fill = "insert into public.orders (id) select 'order-' || n from generate_series(1, $1) n";
    sqlx::query(fill).bind(ENTITIES as i64).execute(owner).await?;
    Ok(())
}

/// Sessions that write until they are told to stop.
pub(crate) struct Application {
    writers: Vec<JoinHandle<anyhow::Result<()>>>,
    stopped: Arc<AtomicBool>,
    /// The longest transaction in microseconds.
    longest: Arc<AtomicU64>,
}

impl Application {
    /// Starts to write events of this entity type, as the user `app` of the URL.
    pub(crate) async fn start(url: &str, table: Table, entity_type: &'static str) -> anyhow::Result<Self> {
        let (stopped, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let conn = PgConnection::connect(url).await?;
            writers.push(tokio::spawn(write(
                conn,
                writer,
                table.insert,
                entity_type,
                Arc::clone(&stopped),
                Arc::clone(&longest),
            )));
        }
        Ok(Self { writers, stopped, longest })
    }

    /// Forgets the longest transaction so far, and returns it in milliseconds.
    pub(crate) fn longest_ms(&self) -> f64 {
        self.longest.swap(0, Ordering::SeqCst) as f64 / 1_000.0
    }

    /// Ends all sessions, and returns the first error.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.stopped.store(true, Ordering::SeqCst);
        for writer in self.writers.drain(..) {
            writer.await??;
        }
        Ok(())
    }
}

async fn write(
    mut conn: PgConnection,
    writer: usize,
    insert: &'static str,
    entity_type: &str,
    stopped: Arc<AtomicBool>,
    longest: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut step = writer;
    while !stopped.load(Ordering::SeqCst) {
        step += 1;
        let entity = format!("order-{}", 1 + (step * 7 + writer) % ENTITIES);
        let began = Instant::now();
        let mut transaction = conn.begin().await?;
        let n: i64 = sqlx::query_scalar("update public.orders set n = n + 1 where id = $1 returning n")
            .bind(&entity)
            .fetch_one(&mut *transaction)
            .await?;
        sqlx::query(insert).bind(entity_type).bind(&entity).bind(n).execute(&mut *transaction).await?;
        // The rest of what the application does in the transaction, so that transactions span the cut.
        transaction.execute("select pg_sleep(0.002)").await?;
        if step.is_multiple_of(17) {
            transaction.rollback().await?
        } else {
            transaction.commit().await?
        }
        longest.fetch_max(began.elapsed().as_micros() as u64, Ordering::SeqCst);
    }
    Ok(())
}

/// Checks that the topic has each event of the application's table once, in the order of its entity and in one partition. Returns the number
/// of records of the relay, which have a `sequence`, and of the other writer.
pub(crate) async fn check(conn: &mut PgConnection, table: Table, records: &[Record]) -> anyhow::Result<(usize, usize)> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(table.events).fetch_all(conn).await?;
    let id = |record: &Record| record.header(table.id_header).unwrap_or("none").to_owned();
    let mut times: HashMap<String, u32> = HashMap::new();
    for record in records {
        *times.entry(id(record)).or_default() += 1;
    }
    let missing = rows.iter().filter(|(id, ..)| !times.contains_key(id)).count();
    let duplicates = times.values().filter(|times| **times > 1).count();
    ensure!(missing == 0 && duplicates == 0, "{missing} missing, {duplicates} duplicates of {} events", rows.len());
    ensure!(rows.len() == records.len(), "{} records of {} events", records.len(), rows.len());
    let numbers: HashMap<&str, i64> = rows.iter().map(|(id, _, n)| (id.as_str(), *n)).collect();
    let mut last: BTreeMap<&[u8], (i32, i64)> = BTreeMap::new();
    for record in records {
        let key = record.key.as_deref().unwrap_or_default();
        let n = numbers.get(id(record).as_str()).copied().unwrap_or(0);
        let (partition, before) = last.insert(key, (record.partition, n)).unwrap_or((record.partition, 0));
        ensure!(partition == record.partition, "{key:?} is in two partitions");
        ensure!(n > before, "{key:?}: {n} comes after {before}");
    }
    let relayed = records.iter().filter(|record| record.header("sequence").is_some()).count();
    Ok((relayed, records.len() - relayed))
}
