//! Stands in for a log-based connector: reads the slot of a publication with `pgoutput` and publishes the inserted rows, as the outbox event
//! router does. Like a connector it can be stopped and resumed, and goes on where its slot is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::kafka::RealKafka;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sqlx::PgConnection;
use tokio::task::JoinHandle;

/// The names of Debezium's defaults.
pub(crate) const SLOT: &str = "debezium";
pub(crate) const PUBLICATION: &str = "dbz_publication";

/// The pause while the slot has nothing.
const POLL: Duration = Duration::from_millis(5);

/// A connector that runs beside the test. The file `connector.stop` tells it to stop, as a request to Kafka Connect would, and it answers with
/// the file `connector.stopped`.
pub(crate) struct Connector {
    task: Option<JoinHandle<anyhow::Result<()>>>,
    state: Arc<State>,
}

struct State {
    directory: PathBuf,
    ended: AtomicBool,
    published: AtomicU64,
}

impl Connector {
    /// Starts it. Both files are in `directory`.
    pub(crate) fn start(conn: PgConnection, kafka: &RealKafka, directory: &Path) -> anyhow::Result<Self> {
        let mut config = kafka.client();
        config.set("enable.idempotence", "true").set("partitioner", "murmur2_random");
        let producer: BaseProducer = config.create()?;
        let state = Arc::new(State {
            directory: directory.to_owned(),
            ended: AtomicBool::new(false),
            published: AtomicU64::new(0),
        });
        let task = tokio::spawn(run(conn, producer, Arc::clone(&state)));
        Ok(Self { task: Some(task), state })
    }

    /// Returns the number of records that it has published.
    pub(crate) fn published(&self) -> u64 {
        self.state.published.load(Ordering::SeqCst)
    }

    /// Ends it, and returns its error if there was one.
    pub(crate) async fn end(&mut self) -> anyhow::Result<()> {
        self.state.ended.store(true, Ordering::SeqCst);
        match self.task.take() {
            Some(task) => task.await?,
            None => Ok(()),
        }
    }
}

async fn run(mut conn: PgConnection, producer: BaseProducer, state: Arc<State>) -> anyhow::Result<()> {
    let mut relations = HashMap::new();
    let [stop, stopped] = ["connector.stop", "connector.stopped"].map(|name| state.directory.join(name));
    while !state.ended.load(Ordering::SeqCst) {
        if stop.exists() {
            std::fs::write(&stopped, "")?;
            tokio::time::sleep(POLL).await;
            continue;
        }
        // It was resumed, or has never been stopped.
        let _ = std::fs::remove_file(&stopped);
        let sql = "select data from pg_catalog.pg_logical_slot_get_binary_changes($1, null, 500, 'proto_version', '1', 'publication_names', $2)";
        // A request to Kafka Connect may have named another publication.
        let named = std::fs::read_to_string(state.directory.join("publication.name")).unwrap_or_default();
        let publication = Some(named.trim()).filter(|named| !named.is_empty()).unwrap_or(PUBLICATION);
        let changes: Vec<Vec<u8>> = sqlx::query_scalar(sql).bind(SLOT).bind(publication).fetch_all(&mut conn).await?;
        for change in &changes {
            if let Some(row) = inserted(change, &mut relations)? {
                publish(&producer, &row)?;
                state.published.fetch_add(1, Ordering::SeqCst);
            }
        }
        producer.flush(Duration::from_secs(30))?;
        if changes.is_empty() {
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

type Row = HashMap<String, Option<String>>;

/// The names of a table and of its columns.
struct Relation {
    table: String,
    columns: Vec<String>,
}

/// Returns the row that a message of `pgoutput` inserts into the outbox.
fn inserted(message: &[u8], relations: &mut HashMap<u32, Relation>) -> anyhow::Result<Option<Row>> {
    let mut fields = Fields(message);
    match fields.byte()? {
        b'R' => {
            let id = fields.number()?;
            fields.text()?;
            let table = fields.text()?;
            fields.byte()?;
            let mut columns = Vec::new();
            for _ in 0..fields.short()? {
                fields.byte()?;
                columns.push(fields.text()?);
                fields.number()?;
                fields.number()?;
            }
            relations.insert(id, Relation { table, columns });
            Ok(None)
        }
        b'I' => {
            let relation = relations.get(&fields.number()?).context("a row of an unknown relation")?;
            fields.byte()?;
            let mut row = Row::new();
            let count = fields.short()?;
            for column in relation.columns.iter().take(count.into()) {
                let value = match fields.byte()? {
                    b'n' => None,
                    b't' => {
                        let length = fields.number()?;
                        Some(String::from_utf8(fields.take(length as usize)?.to_vec())?)
                    }
                    other => bail!("a value of the kind {other}"),
                };
                row.insert(column.clone(), value);
            }
            Ok((relation.table == "outbox").then_some(row))
        }
        // Begin, commit, truncate, type and origin.
        _ => Ok(None),
    }
}

fn publish(producer: &BaseProducer, row: &Row) -> anyhow::Result<()> {
    let column = |name: &str| row.get(name).and_then(Option::as_deref).with_context(|| format!("no {name} in {row:?}"));
    let topic = format!("outbox.event.{}", column("aggregatetype")?);
    let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(column("id")?) });
    let mut record = BaseRecord::to(&topic).key(column("aggregateid")?).payload(column("payload")?).headers(headers);
    while let Err((error, again)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(rdkafka::error::RDKafkaErrorCode::QueueFull) {
            return Err(error.into());
        }
        producer.poll(Duration::from_millis(10));
        record = again;
    }
    Ok(())
}

/// Reads fields of a message one after the other.
struct Fields<'m>(&'m [u8]);

impl<'m> Fields<'m> {
    fn take(&mut self, length: usize) -> anyhow::Result<&'m [u8]> {
        let (field, rest) = self.0.split_at_checked(length).context("the message is too short")?;
        self.0 = rest;
        Ok(field)
    }

    fn byte(&mut self) -> anyhow::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn short(&mut self) -> anyhow::Result<u16> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into()?))
    }

    fn number(&mut self) -> anyhow::Result<u32> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into()?))
    }

    fn text(&mut self) -> anyhow::Result<String> {
        let end = self.0.iter().position(|byte| *byte == 0).context("a text without an end")?;
        let text = String::from_utf8(self.take(end)?.to_vec())?;
        self.take(1)?;
        Ok(text)
    }
}
