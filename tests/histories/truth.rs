//! Records the sessions' knowledge: each event with its place in the order of commits, and the outcome of its transaction. The ledger
//! compares it with the table and the topic, and the times of the commits with the times of append.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use event_outbox::event::{EventId, OutboxId};
use event_outbox::ledger::{Committed, EntityKey, Fingerprint, Ledger, Report, RowStatus, Rules, TopicRecord};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use lab::book::status;
use lab::kafka::Record;
use lab::murmur2::java_partition;
use lab::outbox::data;
use lab::{Outbox, PARTITIONS};

/// The time after its commit within which an event must be on the topic, plus the time of standstills ([`Standstill`]). A relay that has
/// missed an event finds it by a sweep 0 to 5 s later. So of many missed events, some are always later than this.
pub(crate) const BOUND: Duration = Duration::from_secs(3);

/// The time within which each event should be published. Later events are counted, but do not fail the run.
const SHOULD: Duration = Duration::from_secs(1);

/// An event that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) event: Uuid,
    pub(crate) entity: String,
    /// The place among the events of its entity, drawn while the session had its turn.
    pub(crate) n: i64,
    /// Excludes the event from the checks of order and delay. The event cannot be sent, or only after a repair of its row.
    pub(crate) poison: bool,
}

/// The outcome of an event's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The transaction committed, and its answer had arrived at this time.
    Committed(Millis),
    RolledBack,
}

/// Milliseconds since 1970, as Kafka counts them.
pub(crate) type Millis = i64;

/// Returns the time by the clock that the broker uses as well.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_millis()).expect("the clock is before the year 292,000,000")
}

/// A time in which nothing could move, whatever the relay does, because the machine or a server stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standstill {
    pub(crate) from: Millis,
    pub(crate) to: Millis,
}

/// A row at the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) event_id: Uuid,
    pub(crate) entity_id: String,
    pub(crate) status: String,
    pub(crate) payload: String,
}

#[derive(Debug, Default)]
struct Known {
    counters: HashMap<String, i64>,
    written: Vec<(Written, Outcome)>,
    moved: HashSet<Uuid>,
    removed: HashSet<Uuid>,
    /// The prefixes of entity ids whose rows an application locks; their delay is not checked.
    touched: Vec<String>,
}

/// The events of a run and the outcomes of their transactions.
#[derive(Debug, Default)]
pub(crate) struct Truth(Mutex<Known>);

impl Truth {
    /// Draws the next place of an entity. Must be called while the session has its turn.
    pub(crate) fn next(&self, entity: &str) -> i64 {
        let mut known = self.known();
        let counter = known.counters.entry(entity.to_owned()).or_default();
        *counter += 1;
        *counter
    }

    /// Records the outcome of the transaction of these events.
    pub(crate) fn ended(&self, events: Vec<Written>, outcome: Outcome) {
        self.known().written.extend(events.into_iter().map(|written| (written, outcome)));
    }

    /// Records that the application gave the rows of these events another entity. They must be published, in any order.
    pub(crate) fn moved(&self, events: &[Uuid]) {
        self.known().moved.extend(events);
    }

    /// Records that the application deleted the rows of these events. They may be published or not.
    pub(crate) fn removed(&self, events: &[Uuid]) {
        self.known().removed.extend(events);
    }

    /// Records that the application locks rows of entities with that prefix.
    pub(crate) fn touched(&self, prefix: String) {
        self.known().touched.push(prefix);
    }

    /// Compares everything with the table and the topic. `standstills` extend the limit of the delay; with `None`, delays are not checked.
    pub(crate) fn compare(&self, rows: &[Row], records: &[Record], standstills: Option<&[Standstill]>) -> Verdict {
        let known = self.known();
        let report = report(&known, rows, records);
        let delays = standstills.map(|standstills| delays(&known, records, standstills)).unwrap_or_default();
        Verdict { report, delays }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().expect("nobody panics while holding the truth")
    }
}

/// Reads every row of the outbox.
pub(crate) async fn rows(outbox: &Outbox) -> anyhow::Result<Vec<Row>> {
    let mut connection: PgConnection = outbox.connect().await?;
    let sql = format!("select id, event_id, entity_id, status, payload::text from {} order by id", outbox.events());
    let rows: Vec<(i64, Uuid, String, String, String)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut connection).await?;
    let row = |(id, event_id, entity_id, status, payload)| Row { id, event_id, entity_id, status, payload };
    Ok(rows.into_iter().map(row).collect())
}

/// Feeds the ledger. The place of an event in the order of commits stands for the event's id.
fn report(known: &Known, rows: &[Row], records: &[Record]) -> Report {
    let mut ledger = Ledger::new(Rules::default());
    let rows: HashMap<Uuid, &Row> = rows.iter().map(|row| (row.event_id, row)).collect();
    let unjudged = |event: &Uuid| known.removed.contains(event);
    for (Written { event, entity, n, poison }, outcome) in &known.written {
        match outcome {
            _ if unjudged(event) => {}
            Outcome::RolledBack => ledger.rolled_back(EventId(*event)),
            Outcome::Committed(_) => {
                let (row, free) = (rows.get(event), *poison || known.moved.contains(event));
                ledger.committed(Committed {
                    id: OutboxId(row.map_or(0, |row| row.id)),
                    event_id: EventId(*event),
                    entity: (!free).then_some(EntityKey { entity_type: "order", entity_id: entity }),
                    order: *n,
                    scheduled: false,
                    fingerprint: row.filter(|_| !free).map(|row| fingerprint(row)),
                });
                if let Some(row) = row {
                    ledger.status(EventId(*event), status(&row.status).unwrap_or(RowStatus::Pending));
                }
            }
        }
    }
    for record in records {
        let event = event_of(record);
        if event.is_some_and(|event| unjudged(&event)) {
            continue;
        }
        ledger.observe(TopicRecord {
            event_id: event.map(EventId),
            topic: "topic",
            partition: record.partition,
            offset: record.offset,
            fingerprint: Some(Fingerprint::from_key_value(record.key.as_deref(), record.value.as_deref().map(data))),
            expected_partition: record.key.as_deref().map(|key| java_partition(key, PARTITIONS)),
        });
    }
    ledger.finish()
}

fn fingerprint(row: &Row) -> Fingerprint {
    Fingerprint::from_key_value(Some(row.entity_id.as_bytes()), Some(row.payload.as_bytes()))
}

fn event_of(record: &Record) -> Option<Uuid> {
    record.header("event-id").and_then(|id| id.parse().ok())
}

/// Returns the delay of each committed event on the topic, from its commit to its first append.
fn delays(known: &Known, records: &[Record], standstills: &[Standstill]) -> Delays {
    let mut appended: HashMap<Uuid, Millis> = HashMap::new();
    for record in records {
        if let (Some(event), Some(at)) = (event_of(record), record.timestamp) {
            appended.entry(event).and_modify(|first| *first = at.min(*first)).or_insert(at);
        }
    }
    let checked = |written: &Written| {
        let touched = known.touched.iter().any(|prefix| written.entity.starts_with(prefix.as_str()));
        !(written.poison || touched)
    };
    let mut delays = Delays::default();
    for (written, outcome) in &known.written {
        if let (Outcome::Committed(at), Some(appended)) = (outcome, appended.get(&written.event))
            && checked(written)
        {
            delays.record(written, *at, *appended, standstills);
        }
    }
    delays
}

/// The delays of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Delays {
    pub(crate) checked: u64,
    pub(crate) worst: Duration,
    pub(crate) above_one_second: u64,
    /// The events later than [`BOUND`], with their delays.
    pub(crate) late: Vec<(String, i64, Duration)>,
}

impl Delays {
    fn record(&mut self, written: &Written, committed: Millis, appended: Millis, standstills: &[Standstill]) {
        let delay = appended.saturating_sub(committed);
        let stood = overlap(committed, appended, standstills);
        let moving = Duration::from_millis(u64::try_from(delay - stood).unwrap_or(0));
        self.checked += 1;
        self.worst = self.worst.max(moving);
        self.above_one_second += u64::from(moving > SHOULD);
        if moving > BOUND {
            self.late.push((written.entity.clone(), written.n, moving));
        }
    }
}

/// Returns the length of standstills between `from` and `to`. Standstills may overlap.
fn overlap(from: Millis, to: Millis, standstills: &[Standstill]) -> Millis {
    let mut parts: Vec<(Millis, Millis)> = standstills
        .iter()
        .map(|standstill| (standstill.from.max(from), standstill.to.min(to)))
        .filter(|(from, to)| from < to)
        .collect();
    parts.sort_unstable();
    let (mut sum, mut end) = (0, Millis::MIN);
    for (from, to) in parts {
        sum += (to - from.max(end)).max(0);
        end = end.max(to);
    }
    sum
}

/// The result of a run.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) report: Report,
    pub(crate) delays: Delays,
}

impl Verdict {
    /// Returns true if nothing is lost, nothing is invented, every entity is in order, and nothing is late.
    pub(crate) fn is_clean(&self) -> bool {
        self.report.is_clean() && self.delays.late.is_empty()
    }

    /// Fails unless the verdict is clean.
    pub(crate) fn ensure_clean(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.is_clean(), "{self}");
        Ok(())
    }

    /// Returns the entities of the violations that the verdict shows.
    pub(crate) fn entities(&self) -> BTreeSet<String> {
        let examples = self.report.violations().filter_map(|finding| self.report.examples.get(&finding)).flatten();
        let examples = examples.filter_map(|example| example.entity.clone());
        let late = self.delays.late.iter().map(|(entity, ..)| entity.clone());
        examples.map(|entity| entity.trim_start_matches("order/").to_owned()).chain(late).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Delays { checked, worst, above_one_second, late } = &self.delays;
        writeln!(f, "{}", self.report)?;
        write!(
            f,
            "delays of {checked} events: worst {} ms, {above_one_second} above {SHOULD:?}, {} above {BOUND:?}",
            worst.as_millis(),
            late.len()
        )?;
        for (entity, n, delay) in late.iter().take(5) {
            write!(f, "; {entity} n {n}: {} ms", delay.as_millis())?;
        }
        Ok(())
    }
}
