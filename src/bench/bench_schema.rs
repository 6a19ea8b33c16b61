//! Creates a schema and a topic per measurement, so that no measurement finds dead rows of another.
//!
//! Each name is recorded before its schema and topic are created, and the list outlives every measurement. So
//! [`BenchSchemas::remove_all`] finds them after any end, be it an error or Ctrl-C.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::failure::BenchError;
use crate::config::{DatabaseSettings, KafkaSettings, Settings};
use crate::store::connect::{self, Purpose};
use event_outbox::Names;
use event_outbox::names::literal;
use event_outbox::schema::{self, MigrateOptions};

/// The time limit for an answer of a broker that is up.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// One measurement's schema and topic; both have the same name.
#[derive(Debug, Clone)]
pub(crate) struct BenchSchema {
    pub(crate) name: String,
    pub(crate) names: Names,
    pub(crate) lanes: u16,
    pub(crate) partitions: i32,
}

impl BenchSchema {
    /// Returns the name of relay `index` of this schema.
    pub(crate) fn relay_name(&self, index: usize) -> String {
        format!("{}-r{index}", self.name)
    }

    /// Returns the quoted name of one of the bench's own tables in the schema.
    pub(crate) fn table(&self, name: &str) -> String {
        format!("{}.{name}", self.names.schema())
    }
}

/// The connections to the servers, and the list of schemas and topics created there.
#[derive(Clone)]
pub(crate) struct BenchSchemas {
    database: DatabaseSettings,
    kafka: KafkaSettings,
    partitions: i32,
    wake_up_trigger: bool,
    run: String,
    made: Arc<Mutex<Vec<String>>>,
    count: Arc<Mutex<u32>>,
}

impl BenchSchemas {
    pub(crate) fn new(settings: &Settings, kafka: KafkaSettings, partitions: i32, wake_up_trigger: bool) -> Self {
        Self {
            database: settings.database.clone(),
            kafka,
            partitions,
            wake_up_trigger,
            run: format!("outbox_bench_{:08x}", rand::rng().random::<u32>()),
            made: Arc::default(),
            count: Arc::default(),
        }
    }

    /// Returns the prefix of all names of the run.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    /// Returns the relay's settings of the brokers.
    pub(crate) fn kafka(&self) -> &KafkaSettings {
        &self.kafka
    }

    /// Opens a connection for the bench, with JIT off, because JIT depends on cost estimates and would make timings vary.
    pub(crate) async fn connect(&self) -> Result<PgConnection, BenchError> {
        let mut conn = connect::connect(&self.database, &self.application_name(), Purpose::Write).await?;
        conn.execute("set jit = off").await?;
        Ok(conn)
    }

    /// Creates a schema with an outbox, and a topic.
    pub(crate) async fn make(&self) -> Result<BenchSchema, BenchError> {
        let name = {
            let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
            *count += 1;
            format!("{}_{count}", self.run)
        };
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        let names = Names::new(&name, "event_outbox", "processed_events");
        let mut conn = self.connect().await?;
        let options = MigrateOptions::default();
        schema::migrate(&mut conn, &names, &options).await?;
        schema::set_wake_up_trigger(&mut conn, &names, self.wake_up_trigger).await?;
        self.make_topic(&name).await?;
        Ok(BenchSchema { name, names, lanes: options.lanes, partitions: self.partitions })
    }

    async fn make_topic(&self, name: &str) -> Result<(), BenchError> {
        let topic = NewTopic::new(name, self.partitions, TopicReplication::Fixed(-1));
        let results = self.admin()?.create_topics([&topic], &in_time()).await?;
        check(results, |_| false)
    }

    /// Removes one measurement's schema and topic.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), BenchError> {
        let (dropped, deleted) = (self.drop_schema(name).await, self.delete_topic(name).await);
        dropped.and(deleted)?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).retain(|made| made != name);
        Ok(())
    }

    /// Removes all remaining schemas and topics. Returns the names that could not be removed, each with the reason.
    pub(crate) async fn remove_all(&self) -> Vec<(String, BenchError)> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !made.is_empty()
            && let Ok(mut conn) = self.connect().await
        {
            // End statements whose client is gone: they would run to their end, and the drop would wait for them. If one cannot be
            // ended, the drop fails, and that is reported.
            let _ = terminate(&mut conn, &format!("application_name = {}", literal(&self.application_name()))).await;
        }
        let mut left = Vec::new();
        for name in made {
            if let Err(error) = self.remove(&name).await {
                left.push((name, error));
            }
        }
        left
    }

    async fn drop_schema(&self, name: &str) -> Result<(), BenchError> {
        let mut conn = self.connect().await?;
        // The session of a killed relay may hold locks for a while.
        let relays = literal(&format!("{name}-r"));
        terminate(&mut conn, &format!("position({relays} in application_name) > 0")).await?;
        conn.execute("set lock_timeout = '30s'").await?;
        let sql = format!("drop schema if exists {} cascade", Names::new(name, "", "").schema());
        conn.execute(AssertSqlSafe(sql)).await?;
        Ok(())
    }

    async fn delete_topic(&self, name: &str) -> Result<(), BenchError> {
        let results = self.admin()?.delete_topics(&[name], &in_time()).await?;
        check(results, |code| {
            matches!(code, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
        })
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, BenchError> {
        Ok(self.kafka.consumer_config(&[("client.id", "outbox-relay-bench")]).create()?)
    }

    fn application_name(&self) -> String {
        format!("bench {}", self.run)
    }
}

/// Ends the sessions of the bench and of its relays, except this one.
async fn terminate(conn: &mut PgConnection, which: &str) -> Result<(), BenchError> {
    let sql = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity \
         where pid <> pg_backend_pid() and datname = current_database() and {which}"
    );
    conn.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

fn in_time() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}

fn check(
    results: Vec<Result<String, (String, RDKafkaErrorCode)>>,
    is_fine: impl Fn(RDKafkaErrorCode) -> bool,
) -> Result<(), BenchError> {
    for result in results {
        match result {
            Err((topic, code)) if !is_fine(code) => return Err(BenchError::Topic { topic, code }),
            _ => {}
        }
    }
    Ok(())
}
