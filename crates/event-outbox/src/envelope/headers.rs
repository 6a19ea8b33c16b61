//! The headers that the relay and the consumer runtime add to records that they send again.

/// Header: the replay that has sent the record. The relay's own records have none.
pub const REPLAY_ID: &str = "replay-id";

/// The time at which a replayed event was created, as RFC 3339. The record itself has the time of the replay.
pub const EVENT_TIME: &str = "event-time";

/// Header: the redrive that has sent the dead letter back to its topic.
pub const REDRIVE_ID: &str = "redrive-id";

/// A header of the row that names the partition of its record. It is not sent.
pub const PARTITION: &str = "outbox-partition";

/// Header: an entry of the log of redrives on a dead letter topic. Its value is the state.
pub const REDRIVE_LOG: &str = "outbox-relay-redrive";

/// The beginnings of the names of headers that only the relay and the consumer runtime may set.
const RESERVED: [&str; 2] = ["dlq-", "outbox-relay-"];

/// Returns true if an event may not bring a header of this name: consumers, `verify` and `dlq` would take its record for one that was sent
/// again, or for a dead letter.
pub fn is_reserved(name: &str) -> bool {
    [REPLAY_ID, EVENT_TIME, REDRIVE_ID].contains(&name) || RESERVED.iter().any(|beginning| name.starts_with(beginning))
}
