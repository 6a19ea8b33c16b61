//! Recovers lanes whose progress in Kafka is lost. Offsets expire, groups are deleted, clusters are replaced: then nothing says which batch
//! a former owner published last. The rows of that batch are the first pending ones. Those that were published are found on their topics by
//! their event ids.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::error::KafkaError;

use crate::config::KafkaSettings;
use crate::lane::LaneRange;
use crate::lane::progress::Progress;
use crate::relay::worker::context::{CycleError, WorkerContext};
use crate::sink::reader::{Reader, header};
use crate::sink::transactions::TransactionError;
use crate::store::claim::Limits;
use crate::store::session::within;
use event_outbox::code::Code;

/// The least number of pending rows that are searched for. A batch of another relay is not larger, unless the relay is configured so.
const UNCERTAIN_ROWS: usize = 10_000;

/// The largest expected difference between the clocks of Postgres and of the brokers.
const CLOCKS_DIFFER: chrono::TimeDelta = chrono::TimeDelta::minutes(10);

/// The rows that may be on a topic: their ids by event id, and the time at which the oldest was written.
struct Uncertain {
    ids: HashMap<String, i64>,
    since: DateTime<Utc>,
}

impl WorkerContext<'_> {
    /// Returns the ids of the first pending rows of these lanes that are already on their topics.
    pub(super) async fn recover_lost_progress(
        &mut self,
        lanes: LaneRange,
        lost: &[i16],
    ) -> Result<Vec<i64>, CycleError> {
        let uncertain = self.uncertain(lanes).await?;
        let in_doubt: usize = uncertain.values().map(|topic| topic.ids.len()).sum();
        let (kafka, time) = (self.shared.options.kafka.kafka().clone(), self.shared.options.relay.publish_timeout);
        let looked = tokio::task::spawn_blocking(move || look(&kafka, uncertain, time)).await;
        let (found, all) = looked.unwrap_or(Err(KafkaError::Canceled)).map_err(TransactionError::from)?;
        tracing::warn!(
            code = %Code::ProgressLost,
            lanes = ?lost,
            group = self.shared.progress.name(),
            in_doubt,
            found_on_topics = found.len(),
            topics_read_to_the_end = all,
            consequence = if all {
                "the topics were searched for events already published; duplicates are possible this time"
            } else {
                "the topics could not be searched within RELAY_PUBLISH_TIMEOUT; expect duplicates this time"
            },
            next_step = "find out who deleted the group's offsets, or whether the relay was pointed at another cluster",
            "the exactly-once progress was lost"
        );
        Ok(found)
    }

    async fn uncertain(&mut self, lanes: LaneRange) -> Result<BTreeMap<String, Uncertain>, CycleError> {
        let (sql, options) = (&self.shared.claim, &self.shared.options);
        let limits = Limits {
            rows: UNCERTAIN_ROWS.max(options.relay.batch_size * 2),
            stored_bytes: i64::try_from(options.relay.batch_bytes.saturating_mul(4)).unwrap_or(i64::MAX),
            row_bytes: 0,
            kept_bytes: options.relay.batch_bytes.saturating_mul(4),
            heads_only: false,
            persistent: options.database.prepared_statements,
        };
        let due = within(sql.due(self.conn, lanes, limits)).await?;
        let states = within(self.shared.transaction.read_lanes(self.conn, lanes)).await?;
        let progress = states.into_iter().map(|state| state.progress).reduce(Progress::merge).unwrap_or_default();
        let pending = within(sql.claim(self.conn, &progress, lanes, i64::MAX, limits)).await?;
        let mut topics: BTreeMap<String, Uncertain> = BTreeMap::new();
        let mut scratch = String::new();
        for row in due.rows.iter().chain(&pending.rows) {
            // An event that cannot be routed was never sent.
            let Some(event) = row.head()? else { continue };
            let Ok(topic) = options.relay.topic.resolve(&event, &mut scratch) else { continue };
            let uncertain = topics
                .entry(topic.to_owned())
                .or_insert_with(|| Uncertain { ids: HashMap::new(), since: event.created_at });
            uncertain.since = uncertain.since.min(event.created_at);
            uncertain.ids.insert(event.event_id.to_string(), event.id.0);
        }
        Ok(topics)
    }
}

/// Returns the ids that are on the topics, and whether each topic was read to its end from its oldest row in doubt on.
fn look(
    kafka: &KafkaSettings,
    uncertain: BTreeMap<String, Uncertain>,
    time: Duration,
) -> Result<(Vec<i64>, bool), KafkaError> {
    let reader = Reader::new(kafka)?;
    let (mut found, mut all) = (Vec::new(), true);
    let deadline = std::time::Instant::now() + time;
    for (topic, uncertain) in uncertain {
        // A topic that does not exist holds no event.
        let Ok(partitions) = reader.partitions(&topic)? else { continue };
        let partitions: Vec<i32> = partitions.iter().map(|partition| partition.id).collect();
        let since = (uncertain.since - CLOCKS_DIFFER).timestamp_millis().max(0);
        let parts = reader.since(&topic, &partitions, since)?;
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        all &= reader.read(&topic, &parts, left, |message| {
            found.extend(header(message, "event-id").and_then(|id| uncertain.ids.get(id)));
            ControlFlow::Continue(())
        })?;
    }
    Ok((found, all))
}
