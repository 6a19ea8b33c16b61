//! Finds records on a topic. A record's timestamp is the time when the event was written, so Kafka's time index leads to the record.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use rdkafka::message::Message;
use uuid::Uuid;

use crate::sink::reader::{Reader, header};
use event_outbox::ledger::Place;

const SEEK_WITHIN: Duration = Duration::from_secs(15);

/// The maximum number of records that are read.
const MOST_RECORDS: usize = 2_000_000;

/// Finds the first record of each event. An event is its id and the time when it was written, in milliseconds since 1970. The error is the
/// reason, in words.
pub(super) fn seek(reader: &Reader, topic: &str, events: &[(Uuid, i64)]) -> Result<HashMap<Uuid, Place>, String> {
    let away =
        |error: rdkafka::error::KafkaError| format!("the brokers do not answer ({:?})", error.rdkafka_error_code());
    let partitions = match reader.partitions(topic).map_err(away)? {
        Ok(partitions) => partitions,
        Err(code) => return Err(crate::sink::topics::closed(code).why),
    };
    let partitions: Vec<_> = partitions.iter().map(|partition| partition.id).collect();
    // The producer sends no timestamp before 1970.
    let since = events.iter().map(|(_, written)| (*written).max(1)).min().unwrap_or(1);
    let parts = reader.since(topic, &partitions, since).map_err(away)?;
    let mut found: HashMap<Uuid, Place> = HashMap::new();
    let mut read = 0;
    let all = reader
        .read(topic, &parts, SEEK_WITHIN, |message| {
            read += 1;
            let id = header(message, "event-id").and_then(|id| id.parse().ok());
            if let Some(id) = id.filter(|id| events.iter().any(|(event, _)| event == id)) {
                let place = Place { topic: topic.to_owned(), partition: message.partition(), offset: message.offset() };
                found.entry(id).or_insert(place);
            }
            if found.len() == events.len() || read >= MOST_RECORDS {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .map_err(away)?;
    if found.is_empty() && !all {
        return Err(format!("not found in the {read} records that were read in {} s", SEEK_WITHIN.as_secs()));
    }
    Ok(found)
}
