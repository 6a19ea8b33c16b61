//! The headers that the relay adds to records that it sends again.

/// Header: the replay that has sent the record. The relay's own records have none.
pub const REPLAY_ID: &str = "replay-id";

/// The time at which a replayed event was created, as RFC 3339. The record itself has the time of the replay.
pub const EVENT_TIME: &str = "event-time";

/// Header: the redrive that has sent the dead letter back to its topic.
pub const REDRIVE_ID: &str = "redrive-id";

/// Header: an entry of the log of redrives on a dead letter topic. Its value is the state.
pub const REDRIVE_LOG: &str = "outbox-relay-redrive";
