//! Finds records on a topic. Their timestamp is the time the event was written, so Kafka's index by time leads there.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use rdkafka::message::Message;
use uuid::Uuid;

use super::Place;
use crate::sink::reader::{Reader, header};

const SEEK_WITHIN: Duration = Duration::from_secs(15);

/// Records that are read at the most.
const MOST_RECORDS: usize = 2_000_000;

/// The first record of each event (its id, and when it was written in milliseconds since 1970); or why that is not known, in words.
pub(super) fn seek(reader: &Reader, topic: &str, events: &[(Uuid, i64)]) -> Result<HashMap<Uuid, Place>, String> {
    let away =
        |error: rdkafka::error::KafkaError| format!("the brokers do not answer ({:?})", error.rdkafka_error_code());
    let partitions = match reader.partitions(topic).map_err(away)? {
        Ok(partitions) => partitions,
        Err(code) => return Err(crate::sink::topics::closed(code)),
    };
    let partitions: Vec<_> = partitions.iter().map(|partition| partition.id).collect();
    // The producer sends no time before 1970.
    let since = events.iter().map(|(_, written)| (*written).max(1)).min().unwrap_or(1);
    let parts = reader.since(topic, &partitions, since).map_err(away)?;
    let mut found: HashMap<Uuid, Place> = HashMap::new();
    let mut read = 0;
    let all = reader
        .read(topic, &parts, SEEK_WITHIN, |message| {
            read += 1;
            let id = header(message, "event-id").and_then(|id| id.parse().ok());
            if let Some(id) = id.filter(|id| events.iter().any(|(event, _)| event == id)) {
                let place = Place { partition: message.partition(), offset: message.offset() };
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
        return Err(format!("not among the {read} records that were read in {} s", SEEK_WITHIN.as_secs()));
    }
    Ok(found)
}
