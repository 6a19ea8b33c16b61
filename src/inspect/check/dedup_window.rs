//! Compares how far back consumers remember events with how far back they can read.

use std::collections::BTreeMap;

use rdkafka::error::KafkaError;
use sqlx::{PgConnection, Row};

use super::finding::Finding;
use super::topics::Topic;
use crate::config::KafkaSettings;
use crate::inspect::dedup_window::{self, Question, TopicRetention, Unknown, WindowViolation};
use crate::store::activity::span;
use crate::store::read_only::read;
use crate::store::sources::Source;
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::names::literal;

/// The number of rows that are searched for the oldest. The table has no index by time, but its first pages hold the first rows.
const ROWS_LOOKED_AT: u32 = 100_000;

/// The difference in seconds below which there is no finding, because a consumer may be a little behind.
const TOLERANCE_S: f64 = 3_600.0;

/// Returns the time of the oldest row of `processed_events` in milliseconds since 1970; `None` if the table is empty or may not be read.
pub(super) async fn oldest_processed_ms(conn: &mut PgConnection, names: &Names) -> Result<Option<f64>, sqlx::Error> {
    let table = names.processed();
    let readable = format!(
        "select coalesce(has_column_privilege(to_regclass({}), 'processed_at', 'select'), false)",
        literal(&table)
    );
    if !super::rights::first::<bool>(conn, &readable).await? {
        return Ok(None);
    }
    // Scan the table from its first page, because any index would give the oldest row of a group, not of the table.
    let query = format!(
        "set local enable_seqscan = on; set local synchronize_seqscans = off; \
         select extract(epoch from min(processed_at))::float8 * 1000 from (select processed_at from {table} limit {ROWS_LOOKED_AT}) first"
    );
    read(conn, &query).await?.first().map_or(Ok(None), |row| row.try_get(0))
}

/// Reports a window that lets duplicates in, even if it has not done so yet. Relays and `prune` reject such a window.
pub(super) fn too_narrow(violation: &WindowViolation) -> Finding {
    Finding::error(
        Code::ProcessedWindow,
        format!(
            "RELAY_PROCESSED_RETENTION is too short and would let duplicates in, so no row of the inbox is pruned: {violation}."
        ),
        dedup_window::FIX,
    )
}

/// Reports the topics that the groups of the inbox read and that outlast the window. Leaves out the topics in `routed` and their dead letter
/// topics, which have been reported.
pub(super) async fn of_groups(
    question: &Question<'_>,
    kafka: &KafkaSettings,
    groups: BTreeMap<String, Vec<Source>>,
    routed: &[&str],
) -> Result<Vec<Finding>, KafkaError> {
    let is_reported =
        |topic: &str| routed.iter().any(|source| *source == topic || dedup_window::is_dead_letter_topic(topic, source));
    match question.violations_of_groups(kafka, groups).await {
        Ok(violations) => {
            let news = violations.iter().filter(|one| one.topic.as_deref().is_none_or(|topic| !is_reported(topic)));
            Ok(news.map(too_narrow).collect())
        }
        Err(Unknown::Kafka(error)) => Err(error),
        Err(unknown) => Ok(vec![Finding::error(
            Code::ProcessedWindow,
            format!("No row of the inbox is pruned, because duplicates may get in: {unknown}."),
            unknown.next_step(),
        )]),
    }
}

/// Reports a topic that still holds events which consumers have forgotten.
pub(super) fn outlived(name: &str, topic: Topic, processed_ms: Option<f64>, names: &Names) -> Option<Finding> {
    let (processed, oldest) = (processed_ms?, topic.oldest_ms? as f64);
    let forgotten = (processed - oldest) / 1000.0;
    let retention = match topic.retention {
        Some(TopicRetention::For(retention)) => retention.to_string(),
        Some(TopicRetention::Forever) => "ever".to_owned(),
        None => "an unknown time".to_owned(),
    };
    (forgotten > TOLERANCE_S).then(|| {
        Finding::warning(
            Code::ProcessedWindow,
            format!(
                "The topic {name} keeps events for {retention}, {} longer than {} remembers them: a consumer group that reads the topic again applies these events twice.",
                span(forgotten),
                names.processed()
            ),
            format!("keep the rows of {} for longer than retention.ms of the topic; no action is needed if no consumer group is that old", names.processed()),
        )
    })
}
