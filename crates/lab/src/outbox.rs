//! Holds the outbox of a test: a migrated database, a Kafka and a topic of its own. Writes events, and reads rows and records.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::demo::PrivatePostgres;
use anyhow::ensure;
use event_outbox::Names;
use event_outbox::schema::{self, MigrateOptions};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use uuid::Uuid;

use super::database::TestDatabase;
use super::eventually::until_nothing_is_left;
use super::kafka::{RealKafka, Record};
use super::relay::Relay;

/// The partitions of a test's topic: more than any test has relays.
pub const PARTITIONS: i32 = 6;

/// The table of events.
const EVENTS: &str = "event_outbox";

/// The longest wait until events are published, on a busy machine.
pub const PUBLISHED_WITHIN: Duration = Duration::from_secs(120);

/// The delivery state of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowState {
    /// `PENDING`, `PUBLISHED` or `DEAD`.
    pub status: String,
    /// The number of attempts of the row.
    pub attempts: i32,
    /// The reason why the last attempt failed.
    pub last_error: Option<String>,
}

/// The database and the topic of a test's events.
#[derive(Debug, Clone)]
pub struct Outbox {
    options: PgConnectOptions,
    url: String,
    /// The topic of the outbox's events.
    pub topic: String,
    /// Where the events are that relays have settled: see [`Outbox::deleting`].
    events: &'static str,
}

/// Keeps what relays delete, in a table that they do not know, and shows it beside the outbox.
const KEEP_DELETED: &str = "
create table deleted_event (like event_outbox);
create function keep_deleted() returns trigger language plpgsql security definer as $$
begin
    insert into public.deleted_event select (old).*;
    return null;
end $$;
create trigger keep_deleted after delete on event_outbox for each row execute function keep_deleted();
create view any_event as
    select id, event_id, entity_type, entity_id, event_type, status, attempts, last_error, available_at, published_at, payload, payload_bytes
    from event_outbox
    union all
    select id, event_id, entity_type, entity_id, event_type, 'PUBLISHED', attempts, last_error, available_at, published_at, payload, payload_bytes
    from deleted_event;
";

impl Outbox {
    /// Creates the outbox in a test's own database, which is a copy of the migrated template.
    pub fn from_database(database: &TestDatabase) -> Self {
        Self {
            options: database.connect_options(),
            url: database.url(),
            topic: database.name().to_owned(),
            events: EVENTS,
        }
    }

    /// Migrates the outbox in a server of the test's own.
    pub async fn on(postgres: &PrivatePostgres, topic: &str) -> anyhow::Result<Self> {
        Self::on_database(postgres, "postgres", topic).await
    }

    /// Migrates the outbox in one of the databases of a server of the test's own.
    pub async fn on_database(postgres: &PrivatePostgres, database: &str, topic: &str) -> anyhow::Result<Self> {
        let url = postgres.url(database);
        migrate(url.clone()).await?;
        Ok(Self { options: postgres.connect_options(database), url, topic: topic.to_owned(), events: EVENTS })
    }

    /// Migrates the outbox in a server of the test's own that is reached at another port of 127.0.0.1.
    pub async fn behind(postgres: &PrivatePostgres, port: u16, topic: &str) -> anyhow::Result<Self> {
        let outbox = Self::on(postgres, topic).await?;
        let (own, other) = (format!("@127.0.0.1:{}/", postgres.port()), format!("@127.0.0.1:{port}/"));
        Ok(Self { url: outbox.url.replace(&own, &other), options: outbox.options.port(port), ..outbox })
    }

    /// Returns the outbox of a server of the test's own in which it is already migrated.
    pub fn found_on(postgres: &PrivatePostgres, topic: &str) -> Self {
        Self {
            options: postgres.connect_options("postgres"),
            url: postgres.url("postgres"),
            topic: topic.to_owned(),
            events: EVENTS,
        }
    }

    /// Creates another database on the server of `beside`, with `clause` of `create database`, and migrates it with `options`. It is
    /// removed with the server.
    pub async fn in_new_database(
        beside: &TestDatabase,
        name: &str,
        clause: &str,
        options: &MigrateOptions,
    ) -> anyhow::Result<Self> {
        let mut connection = beside.connect().await?;
        connection.execute(AssertSqlSafe(format!("create database {name} {clause}"))).await?;
        connection.close().await?;
        let url = beside.url().replace(&format!("/{}?", beside.name()), &format!("/{name}?"));
        migrate_with(url.clone(), options).await?;
        Ok(Self { options: beside.connect_options().database(name), url, topic: name.to_owned(), events: EVENTS })
    }

    /// Returns the same outbox, of which relays delete the events that they have published. What they delete counts as PUBLISHED here.
    pub async fn deleting(&self) -> anyhow::Result<Self> {
        self.connect().await?.execute(KEEP_DELETED).await?;
        Ok(Self { events: "any_event", ..self.clone() })
    }

    /// Returns what to select events from, also those that relays have deleted.
    pub fn events(&self) -> &'static str {
        self.events
    }

    /// Returns true if relays delete what they have published.
    pub fn deletes(&self) -> bool {
        self.events != EVENTS
    }

    /// Returns the same outbox with another topic that some of its events go to.
    pub fn seen_by(&self, topic: &str) -> Self {
        Self { topic: topic.to_owned(), ..self.clone() }
    }

    /// Creates the test's topic.
    pub async fn create_topic(&self, kafka: &RealKafka) -> anyhow::Result<()> {
        kafka.create_topic(&self.topic, PARTITIONS, &[]).await
    }

    /// Returns a relay of this outbox that sends everything to the test's topic.
    pub fn relay(&self, kafka: &RealKafka) -> Relay {
        self.with_settings(Relay::new(&self.url, &kafka.bootstrap()))
    }

    /// Returns the same relay behind proxies in front of both servers.
    pub fn relay_through(&self, postgres: u16, kafka: u16) -> anyhow::Result<Relay> {
        let own = format!("@127.0.0.1:{}/", self.options.get_port());
        ensure!(self.url.contains(&own), "the database is not at {own}");
        let url = self.url.replace(&own, &format!("@127.0.0.1:{postgres}/"));
        Ok(self.with_settings(Relay::new(&url, &format!("127.0.0.1:{kafka}"))))
    }

    fn with_settings(&self, relay: Relay) -> Relay {
        let relay = relay.with("RELAY_TOPIC", &self.topic);
        if self.deletes() { relay.with("RELAY_SETTLE", "delete") } else { relay }
    }

    /// Returns the port of Postgres.
    pub fn postgres_port(&self) -> u16 {
        self.options.get_port()
    }

    /// Opens a connection.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(self.options.clone().connect().await?)
    }

    /// Runs a statement and returns the number of affected rows.
    pub async fn execute(&self, sql: &str) -> anyhow::Result<u64> {
        let done = self.connect().await?.execute(AssertSqlSafe(sql.to_owned())).await?;
        Ok(done.rows_affected())
    }

    /// Runs a query and returns its single number.
    pub async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let sql = format!("select ({sql})::int8");
        Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.connect().await?).await?)
    }

    /// Writes `count` events of an entity, each in its own transaction. `payload.n` counts up from `from`.
    pub async fn write(&self, entity: &str, from: i64, count: i64) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        for n in from..from + count {
            insert(&mut connection, entity, n).await?;
        }
        Ok(())
    }

    /// Writes `count` events of `entities` entities in one transaction.
    pub async fn write_backlog(&self, count: i64, entities: i64) -> anyhow::Result<()> {
        self.execute(&format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload) \
             select 'order', 'e' || (n % {entities}), 'Counted', jsonb_build_object('n', n) \
             from generate_series(1, {count}) n"
        ))
        .await
        .map(drop)
    }

    /// Reads the states of an entity's rows, in the order of ids.
    pub async fn row_states(&self, entity: &str) -> anyhow::Result<Vec<RowState>> {
        let sql = "select status, attempts, last_error from event_outbox where entity_id = $1 order by id";
        let rows = sqlx::query_as(sql).bind(entity).fetch_all(&mut self.connect().await?).await?;
        let row = |(status, attempts, last_error)| RowState { status, attempts, last_error };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Waits until no row is PENDING.
    pub async fn until_settled(&self) {
        self.until_none("no row is pending", "status = 'PENDING'").await;
    }

    /// Waits until none of an entity's rows is PENDING.
    pub async fn until_settled_of(&self, entity: &str) {
        let predicate = format!("status = 'PENDING' and entity_id = '{entity}'");
        self.until_none(&format!("no row of {entity} is pending"), &predicate).await;
    }

    /// Waits until the table has no row of which the SQL predicate is true.
    pub async fn until_none(&self, what: &str, predicate: &str) {
        let sql = format!("select count(*) from event_outbox where {predicate}");
        until_nothing_is_left(what, PUBLISHED_WITHIN, || self.number(&sql)).await;
    }

    /// Waits until at least this number of rows is PUBLISHED.
    pub async fn until_published(&self, at_least: i64) {
        let sql = format!("select {at_least} - count(*) from {} where status = 'PUBLISHED'", self.events);
        let what = format!("{at_least} rows are published");
        until_nothing_is_left(&what, PUBLISHED_WITHIN, || self.number(&sql)).await;
    }

    /// Fails unless every row is PUBLISHED and has no failed attempt.
    pub async fn all_published(&self) -> anyhow::Result<()> {
        let others = format!("select count(*) from {} where status <> 'PUBLISHED' or attempts <> 0", self.events);
        let others = self.number(&others).await?;
        ensure!(others == 0, "{others} rows are not PUBLISHED with 0 attempts");
        Ok(())
    }

    /// Reads `payload.n` per entity in the order of the topic, only the first record of each event.
    pub async fn published_numbers(&self, kafka: &RealKafka) -> anyhow::Result<BTreeMap<String, Vec<i64>>> {
        let mut seen = std::collections::HashSet::new();
        let mut numbers: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for record in kafka.read_topic(&self.topic).await? {
            if seen.insert(record.header("event-id").map(str::to_owned)) {
                numbers.entry(key(&record)).or_default().push(number(&record)?);
            }
        }
        Ok(numbers)
    }

    /// States of the relays' sessions, without the one that asks.
    pub async fn relay_sessions_in_transaction(&self) -> anyhow::Result<i64> {
        self.number(
            "select count(*) from pg_stat_activity where datname = current_database() \
             and application_name like 'outbox-relay %' and state like 'idle in transaction%'",
        )
        .await
    }
}

/// Migrates the outbox with the default names.
pub async fn migrate(url: String) -> anyhow::Result<()> {
    migrate_with(url, &MigrateOptions::default()).await
}

async fn migrate_with(url: String, options: &MigrateOptions) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&url).await?;
    let names = Names::new("public", "event_outbox", "processed_events");
    schema::migrate(&mut connection, &names, options).await?;
    Ok(connection.close().await?)
}

/// Inserts one event.
pub async fn insert(connection: &mut PgConnection, entity: &str, n: i64) -> anyhow::Result<Uuid> {
    let sql = "insert into event_outbox (entity_type, entity_id, event_type, payload) \
               values ('order', $1, 'Counted', jsonb_build_object('n', $2)) returning event_id";
    Ok(sqlx::query_scalar(sql).bind(entity).bind(n).fetch_one(connection).await?)
}

/// Writes one event with the SQL function that all languages use.
pub async fn emit(connection: &mut PgConnection, entity: &str, n: i64) -> anyhow::Result<Uuid> {
    let sql = "select outbox_emit('order', $1, 'Counted', jsonb_build_object('n', $2))";
    Ok(sqlx::query_scalar(sql).bind(entity).bind(n).fetch_one(connection).await?)
}

/// Returns the bytes of the payload in the default envelope, and the whole value in any other envelope.
pub fn data(value: &[u8]) -> &[u8] {
    const MARK: &[u8] = b",\"data\":";
    let at = value.windows(MARK.len()).position(|window| window == MARK);
    match at {
        Some(at) if value.starts_with(b"{\"eventId\":") => &value[at + MARK.len()..value.len() - 1],
        _ => value,
    }
}

fn key(record: &Record) -> String {
    String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned()
}

fn number(record: &Record) -> anyhow::Result<i64> {
    let payload: serde_json::Value = serde_json::from_slice(data(record.value.as_deref().unwrap_or_default()))?;
    payload["n"].as_i64().ok_or_else(|| anyhow::anyhow!("no number in {payload}"))
}
