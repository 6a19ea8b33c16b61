//! Implements `verify`: the [ledger](event_outbox::ledger)'s check on a live system. It needs bounded memory, and writes to neither side.
//!
//! # Steps
//! 1. Read the table by id, up to the highest id at the start. Each page is read in a short READ ONLY transaction (`table`).
//! 2. Only then ask for the end offsets of the topics, and read the topics up to these (`topic`). A row that was PUBLISHED when its page
//!    was read therefore has its record below the end offset. Without a record there, the event is `missing`.
//! 3. Sort both sides by event on disk ([`sorter`](super::sorter), `fact`) and compare them as a stream (`compare`). Records without a row are kept. Their
//!    rows are read again by `sequence`, because a transaction may commit after its page was read, and the two are compared again.
//! 4. Sort the first records of keyed events by entity and offset, and compare their order.
//!
//! # What is no violation
//! - Rows that are PENDING or DEAD when they are read, on the topic or not. They are counted as `pending` and `dead`.
//! - Rows inserted after the start, and their records (`after_start`).
//! - Duplicates, because delivery is at least once (G4). They are counted; `--exactly-once` makes them violations.
//! - Records that `replay` or `dlq redrive` sent again, marked by a header (`replayed`, `redriven`). Such a record is no duplicate and is
//!   left out of the order. Its content must equal the row, and an event with no other record on the topic is not missing.
//! - A late event whose row an operator has retried. The audit table names these events.
//! - Records whose rows retention may have deleted (`retired`): ids below the lowest PUBLISHED id, and events created before the earliest
//!   `published_at` in the table, since retention deletes by these; all of them with `RELAY_SETTLE=delete`. `--all-retained` turns this off.
//! - Events whose record the topic's own retention may have removed (`expired`): their partition begins above offset 0, and they were
//!   published no later than its first records. On a compacted topic no event is missing.
//!
//! # Memory
//! Memory does not depend on the number of rows: two sorters of at most [`CHUNK_BYTES`](super::sorter::CHUNK_BYTES) each (one is filled,
//! one is merged), the client's queue of 8 MiB, one row, one record, 100,000 ids and 20 examples of each kind. A debug build had 99 MB at
//! its peak with 200,000 events, 110 MB with 1,000,000 and 105 MB with 2,000,000. The disk (`TMPDIR`) takes 85 bytes per row and per
//! record, and 56 more per keyed event.
//!
//! # Limits
//! - If a topic got more partitions, its earlier records are where the old number of partitions put them: use `--since` the change.
//! - Rows are routed by today's RELAY_TOPIC. Records of rows that went to another topic before a change are `unknown`.
//! - A record without a row counts as `after_start` if its `sequence` is above the highest id, and as `retired` if its `sequence` is below
//!   the retained ids.

mod compare;
mod fact;
mod reading;
mod table;
mod topic;
mod topics;
mod verdict;

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sqlx::PgConnection;
use tokio::task::block_in_place;

use crate::config::{DatabaseSettings, KafkaSettings, Settle};
use crate::inspect::sorter::Sorter;
use crate::observe::progress::Progress;
use crate::resend::rate::Rate;
use crate::sink::silence::{Silence, silence};
use crate::store::connect::{self, Purpose};
use crate::store::search_path;
use crate::text;
use compare::{Comparison, Horizon, Scope, TopicScope};
use event_outbox::Names;
use event_outbox::ledger::{Example, Finding, Place, Report, Rules};
use event_outbox::route::TopicTemplate;
use event_outbox::schema::{self, SchemaError};
use fact::Fact;
use table::{Audits, Extent, TableReader};
use topic::{Beginning, Nameless, TopicExtent, TopicReader};
use topics::TopicNames;

pub(crate) use compare::Partitioner;
pub(crate) use reading::{KeyFrom, Payload, Reading};
pub(crate) use verdict::Verdict;

/// The longest expected time between the marking of a record and of a later record in the same partition. Two workers settle their
/// batches independently.
const SETTLING: Duration = Duration::from_secs(60);

/// The longest wait for the brokers before anything is read.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The number of rows that one query reads by id.
const IDS_AT_ONCE: usize = 1000;

/// The options of a verification.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) names: Names,
    pub(crate) template: TopicTemplate,
    /// The topic to verify; `None` verifies every topic that a row is routed to.
    pub(crate) topic: Option<String>,
    pub(crate) since: Option<DateTime<Utc>>,
    /// The id of the only entity to verify.
    pub(crate) key: Option<String>,
    pub(crate) rate: Option<u32>,
    pub(crate) exactly_once: bool,
    pub(crate) expect_pending: bool,
    pub(crate) all_retained: bool,
    pub(crate) settle: Settle,
    pub(crate) partitioner: Partitioner,
    pub(crate) reading: Reading,
}

/// The reason why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error("a database error")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("a Kafka error")]
    Kafka(#[from] KafkaError),
    #[error("{}", .0.reason)]
    Silent(Silence),
    #[error("librdkafka refuses the combination of the KAFKA_ settings")]
    Client,
    #[error("topic {topic}: {code}")]
    Topic { topic: String, code: RDKafkaErrorCode },
    #[error("topic {topic}: partitions {partitions:?} deliver no more records")]
    Stalled { topic: String, partitions: Vec<i32> },
    #[error("the rows are routed to more than a thousand topics")]
    TooManyTopics,
    #[error("a temporary file cannot be written or read")]
    Disk(#[from] io::Error),
}

/// Compares the table with the topics.
///
/// # Errors
/// Returns [`VerifyError`] when the table or a topic cannot be read.
pub(crate) async fn run(
    plan: &Plan,
    database: &DatabaseSettings,
    kafka: &KafkaSettings,
) -> Result<Verdict, VerifyError> {
    let mut conn = connect::connect(database, "outbox-relay verify", Purpose::Read).await?;
    // A pooler may give each statement outside a transaction to another server.
    let mut tx = search_path::begin(&mut conn).await?;
    schema::present(&mut tx, &plan.names).await?;
    tx.commit().await?;
    let reader = TopicReader::new(kafka)?;
    if let Some(silence) = silence(kafka, ANSWER_WITHIN).await? {
        return Err(VerifyError::Silent(silence));
    }
    let mut verification = Verification {
        plan,
        table: TableReader::new(&plan.names, &plan.template, &plan.reading, plan.key.as_deref(), plan.since),
        facts: Sorter::default(),
        topics: TopicNames::new(plan.topic.as_deref()),
        rate: Rate::new(plan.rate),
        report: Report {
            rules: Rules { duplicates_allowed: plan.exactly_once.then_some(0), pending_allowed: true },
            ..Report::default()
        },
        uncommitted: 0,
        notes: Vec::new(),
    };
    // Report a missing topic before reading millions of rows.
    if let Some(topic) = &plan.topic {
        block_in_place(|| reader.extent(topic, None))?;
    }
    let (extent, retained) = verification.read_table(&mut conn).await?;
    let (upto, horizon) = match plan.settle {
        Settle::Mark => (extent.upto, retained),
        // Any row may be gone, also that of the highest id.
        Settle::Delete => (i64::MAX, Horizon { lowest_id: i64::MAX, oldest: i64::MAX }),
    };
    let mut scopes = Vec::new();
    for (index, name) in verification.topics.names().to_vec().into_iter().enumerate() {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        scopes.push(verification.read_topic(&mut conn, &reader, index, name).await?);
    }
    let scope = Scope {
        upto,
        began: extent.now.timestamp_micros(),
        since: plan.since.map(|since| since.timestamp_micros()),
        expect_pending: plan.expect_pending,
        horizon: (!plan.all_retained).then_some(horizon),
        partitioner: plan.partitioner,
        topics: scopes,
    };
    verification.compare(&mut conn, &scope).await
}

struct Verification<'a> {
    plan: &'a Plan,
    table: TableReader<'a>,
    facts: Sorter<{ fact::FACT_BYTES }>,
    topics: TopicNames,
    rate: Rate,
    report: Report,
    /// The number of records that consumers with `read_committed` do not see.
    uncommitted: u64,
    notes: Vec<String>,
}

impl Verification<'_> {
    async fn read_table(&mut self, conn: &mut PgConnection) -> Result<(Extent, Horizon), VerifyError> {
        let Self { table, facts, topics, rate, plan, .. } = self;
        let extent = table.extent(conn).await?;
        let bar = Progress::new("rows by id", extent.upto.abs_diff(extent.from));
        let horizon = table
            .read(conn, extent, topics, rate, |fact, at| {
                if let Some((event, fact)) = fact {
                    facts.push(fact.encode(event))?;
                }
                bar.set(at.abs_diff(extent.from));
                Ok(())
            })
            .await?;
        drop(bar);
        if topics.too_many {
            return Err(VerifyError::TooManyTopics);
        }
        let audits = table.audits(conn, &plan.names, |event| Ok(facts.push(Fact::Audit.encode(event))?)).await?;
        if audits == Audits::Forbidden {
            self.notes.push(
                "no right to read the audit table: late events that an operator retried count as inversions".to_owned(),
            );
        }
        Ok((extent, horizon))
    }

    async fn read_topic(
        &mut self,
        conn: &mut PgConnection,
        reader: &TopicReader,
        index: u16,
        name: String,
    ) -> Result<TopicScope, VerifyError> {
        let since = self.plan.since.map(|since| since.timestamp_millis());
        let mut extent = match block_in_place(|| reader.extent(&name, since)) {
            // Rows may be routed to a topic that does not exist yet. Its PUBLISHED events are then missing.
            Err(VerifyError::Topic { code, .. }) if self.plan.topic.is_none() && is_missing(code) => {
                self.notes.push(format!("topic {name} does not exist"));
                return Ok(TopicScope { name, ..TopicScope::default() });
            }
            extent => extent?,
        };
        extent.compacted = reader.is_compacted(&name).await;
        let bar = Progress::new(&name, extent.len());
        let Self { plan, facts, rate, report, .. } = self;
        let read = block_in_place(|| {
            reader.read((index, &name), &extent, &plan.reading, plan.key.as_deref(), rate, |seen| {
                bar.add(1);
                match seen {
                    Ok((event, fact)) => facts.push(fact.encode(event))?,
                    Err(nameless) => {
                        report.records += 1;
                        let Nameless { partition, offset } = nameless;
                        let record = Some(Place { topic: name.clone(), partition, offset });
                        let note = Some(format!("no event id in the header {}", plan.reading.id_header));
                        report.add(Finding::Unknown, || Example { record, note, ..Example::default() });
                    }
                }
                Ok(())
            })
        })?;
        drop(bar);
        // On a compacted topic, gaps in the offsets do not mean uncommitted records.
        if extent.compacted != Some(true) {
            self.uncommitted += block_in_place(|| reader.uncommitted(&name, &extent, read.records, rate))?;
        }
        let truncated = self.truncated(conn, &extent, &read.beginnings).await?;
        self.note(&name, &extent);
        let compacted = extent.compacted == Some(true);
        Ok(TopicScope { name, partitions: extent.partitions, truncated, compacted })
    }

    /// Returns, by truncated partition, the latest `published_at` (microseconds since 1970) of an event whose record may be gone.
    async fn truncated(
        &self,
        conn: &mut PgConnection,
        extent: &TopicExtent,
        beginnings: &HashMap<i32, Beginning>,
    ) -> Result<HashMap<i32, i64>, VerifyError> {
        let slack = i64::try_from(SETTLING.as_micros()).unwrap_or(i64::MAX);
        let mut truncated = HashMap::new();
        for partition in &extent.truncated {
            let until = match beginnings.get(partition) {
                None => i64::MAX,
                Some(beginning) => {
                    let published = self.table.published_at(conn, &beginning.sequences).await?;
                    published.or(beginning.time).map_or(i64::MAX, |moment| moment.saturating_add(slack))
                }
            };
            truncated.insert(*partition, until);
        }
        Ok(truncated)
    }

    fn note(&mut self, name: &str, extent: &TopicExtent) {
        if !extent.truncated.is_empty() {
            self.notes.push(format!(
                "topic {name}: the first records of partitions {:?} are gone, by retention or deletion; earlier events do not count as missing",
                extent.truncated
            ));
        }
        match extent.compacted {
            Some(true) => self.notes.push(format!("topic {name} is compacted; no event counts as missing")),
            None => self.notes.push(format!(
                "topic {name}: no right to DESCRIBE_CONFIGS; if the topic is compacted, missing events are no violation"
            )),
            Some(false) => {}
        }
    }

    async fn compare(self, conn: &mut PgConnection, scope: &Scope) -> Result<Verdict, VerifyError> {
        let Self { plan, table, facts, mut topics, report, uncommitted, mut notes, .. } = self;
        let mut comparison = Comparison::new(scope, report);
        block_in_place(|| compare_all(&mut comparison, facts, "comparing"))?;
        let mut unmatched = comparison.second_round()?;
        for ids in std::mem::take(&mut unmatched.ids).chunks(IDS_AT_ONCE) {
            for (event, row) in table.again(conn, ids, &mut topics).await? {
                unmatched.add_row(event, row)?;
            }
        }
        block_in_place(|| compare_all(&mut comparison, unmatched.facts, "comparing late commits"))?;
        let (mut report, tolerated, steps) = comparison.end();
        block_in_place(|| compare::order(scope, steps, &mut report))?;
        self::name_entities(&table, conn, &mut report).await?;
        if plan.settle == Settle::Delete && tolerated.retired > 0 {
            notes.push(format!(
                "RELAY_SETTLE is delete: {} without a row any more, not compared",
                text::counted(tolerated.retired, "record")
            ));
        }
        if tolerated.repeated_ids > 0 {
            notes.push(format!(
                "{} with the event_id of another row; consumers treat their events as duplicates",
                text::counted(tolerated.repeated_ids, "row")
            ));
        }
        if let Some(key) = &plan.key
            && report.committed == 0
        {
            notes.push(format!("no row is of the entity {key}"));
        }
        let topics = scope.topics.iter().map(|topic| topic.name.clone()).collect();
        Ok(Verdict { topics, report, tolerated, uncommitted, notes })
    }
}

fn compare_all(comparison: &mut Comparison<'_>, facts: Sorter<{ fact::FACT_BYTES }>, what: &str) -> io::Result<()> {
    let bar = Progress::new(what, facts.len());
    let mut facts = facts.sorted()?;
    while let Some(entry) = facts.next()? {
        let (event, fact) = Fact::decode(&entry);
        comparison.take(event, fact)?;
        bar.add(1);
    }
    Ok(())
}

/// Adds entity names to the examples. A [`RowFact`](fact::RowFact) holds only a digest of its entity, so the names are read from the table.
async fn name_entities(
    table: &TableReader<'_>,
    conn: &mut PgConnection,
    report: &mut Report,
) -> Result<(), sqlx::Error> {
    let mut ids: Vec<i64> = report.examples.values().flatten().filter_map(|example| example.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(());
    }
    let names: HashMap<i64, String> = table.entities(conn, &ids).await?.into_iter().collect();
    for example in report.examples.values_mut().flatten() {
        example.entity = example.id.and_then(|id| names.get(&id).cloned());
    }
    Ok(())
}

fn is_missing(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
}
