//! What keeps an event from being published, for people who look: read from the records of holds, shown in words.

use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::lane::hold::HoldKind;
use event_outbox::names::Names;

/// Tells why events are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) kind: HoldKind,
    /// The topic, where a whole topic or a partition of it is held.
    pub(crate) topic: Option<String>,
    /// The partition, where only a partition is held.
    pub(crate) partition: Option<i32>,
    pub(crate) reason: String,
}

/// The columns of a hold `h` that [`Held::from_row`] reads.
pub(crate) const COLUMNS: &str = "h.why, h.topic, h.reason, h.partition";

/// The number of [`COLUMNS`].
pub(crate) const COLUMN_COUNT: usize = 4;

/// Joins to a table expression `o` of events the hold `h` that keeps each pending one; its columns are null where none does. `topic`: SQL
/// for the event's topic. An event that claims have
/// passed is held; the partition of its key is not computed, so with holds of several partitions it may get the other one.
pub(crate) fn join(names: &Names, topic: &str) -> String {
    format!(
        "left join lateral (select {COLUMNS} from {} h where o.status = 'PENDING' and h.lane = o.lane and h.from_id <= o.id \
           and (h.kind = 'topic' and h.topic = {topic} \
             or h.kind = 'entity' and h.entity_id = o.entity_id and (h.entity_type is null or h.entity_type = o.entity_type) \
             or h.kind = 'row' and h.head_id = o.id \
             or h.kind = 'partition' and h.topic = {topic} and o.entity_id is not null \
               and o.id <= (select l.scanned_through from {} l where l.lane = o.lane)) \
           order by h.why = 'paused', h.from_id limit 1) h on true",
        names.companion("hold"),
        names.companion("lane")
    )
}

impl Held {
    /// Reads [`COLUMNS`], the first of them at `column`; `None` where no hold was joined.
    pub(crate) fn from_row(row: &PgRow, column: usize) -> Result<Option<Self>, sqlx::Error> {
        let Some(why) = row.try_get::<Option<&str>, _>(column)? else { return Ok(None) };
        let kind = HoldKind::parse(why).ok_or_else(|| sqlx::Error::Decode(format!("no kind of hold: {why}").into()))?;
        Ok(Some(Self {
            kind,
            topic: row.try_get(column + 1)?,
            reason: row.try_get(column + 2)?,
            partition: row.try_get(column + 3)?,
        }))
    }

    /// Returns what an operator does about it.
    pub(crate) fn next_step(&self) -> &'static str {
        match self.kind {
            HoldKind::Topic if self.partition.is_some() || self.topic.is_none() => {
                "look at the partition's leader and replicas; its events are published when it takes records again"
            }
            HoldKind::Topic => "create the topic or grant WRITE on it; the relay notices within seconds",
            HoldKind::Paused => "outbox-relay resume, when the reason is gone",
            HoldKind::Locked => {
                "end the transaction of the session that has the event locked; `outbox-relay status` names it"
            }
            HoldKind::Poison => "fix the refused event's cause, then `outbox-relay dead retry` or `dead discard` it",
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = &self.reason;
        if let (HoldKind::Topic, Some(topic), Some(partition)) = (self.kind, &self.topic, self.partition) {
            return write!(f, "held partition {topic} [{partition}]: {reason}");
        }
        match (self.kind, &self.topic) {
            (HoldKind::Topic, None) => write!(f, "held event: {reason}"),
            (HoldKind::Locked, _) => write!(f, "locked: {reason}"),
            (HoldKind::Poison, _) => write!(f, "held entity: {reason}"),
            (HoldKind::Topic, topic) => write!(f, "held topic {}: {reason}", topic.as_deref().unwrap_or_default()),
            (HoldKind::Paused, Some(topic)) => write!(f, "paused topic {topic}: {reason}"),
            (HoldKind::Paused, None) => write!(f, "paused entity: {reason}"),
        }
    }
}

/// As `{"kind": "topic", "reason": "held topic order-events: it does not exist"}`.
impl Serialize for Held {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut held = serializer.serialize_struct("Held", 2)?;
        held.serialize_field("kind", self.kind.word())?;
        held.serialize_field("reason", &self.to_string())?;
        held.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_that_of_the_record_whatever_the_reason_says() {
        let held = Held { kind: HoldKind::Poison, topic: None, partition: None, reason: "paused topic x".to_owned() };
        assert_eq!(
            serde_json::to_string(&held).unwrap(),
            r#"{"kind":"poison","reason":"held entity: paused topic x"}"#
        );
        let paused = |topic: Option<&str>| Held {
            kind: HoldKind::Paused,
            topic: topic.map(str::to_owned),
            partition: None,
            reason: "maintenance".to_owned(),
        };
        assert_eq!(paused(Some("t")).to_string(), "paused topic t: maintenance");
        assert_eq!(paused(None).to_string(), "paused entity: maintenance");
    }
}
