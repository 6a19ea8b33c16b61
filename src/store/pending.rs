//! Builds SQL for people: the events that no claim has reached, and the hold that keeps an event back. It follows the rules of the claim
//! (ADR 10), but by the progress that is stored. The relay itself may be one batch ahead of the stored progress.

use crate::store::claim::ORDINARY;
use event_outbox::names::Names;

/// The most late events that a query reads. A late event belongs to a transaction that the progress's snapshot did not see.
const MOST_LATE: i64 = 1_000_000;

/// Returns a table expression with the first `limit` pending events that no claim has reached, ascending. `columns` must include `id`.
///
/// These are the events above `scanned_through` of every lane, and those at or below it that the progress's snapshot did not see.
pub(crate) fn pending(names: &Names, columns: &str, condition: &str, limit: i64) -> String {
    let (outbox, lane) = (names.outbox(), names.companion("lane"));
    let scanned = format!("(select min(scanned_through) from {lane})");
    let snapshot = |part: &str| {
        format!(
            "(select {part}(snapshot) from (select snapshot from {lane} \
               order by pg_snapshot_xmax(snapshot), pg_snapshot_xmin(snapshot) limit 1) oldest)"
        )
    };
    let (xmax, running) = (snapshot("pg_snapshot_xmax"), snapshot("pg_snapshot_xip"));
    // Orders by the column of the index of late events. Otherwise stale statistics could make the planner walk the primary key up to
    // `scanned_through`.
    let late = |transactions: &str| {
        format!(
            "(select * from (select {columns} from {outbox} where {ORDINARY} and {transactions} and {condition} \
               order by xid limit {MOST_LATE}) late where id <= {scanned} limit {limit})"
        )
    };
    format!(
        "(select * from (\
           (select {columns} from {outbox} where {ORDINARY} and id > {scanned} and {condition} order by id limit {limit}) \
           union all {} union all {}) arms order by id limit {limit})",
        late(&format!("xid >= {xmax}")),
        late(&format!("xid = any (array{running})")),
    )
}

/// SQL for the reason of a hold `h`: its kind, the object it names, its cause. [`HoldKind::parse`] reads the kind back.
pub(crate) const REASON: &str = "case h.why when 'locked' then 'locked: ' when 'poison' then 'held entity: ' \
     when 'topic' then 'held topic ' || h.topic || ': ' \
     else case h.kind when 'topic' then 'paused topic ' || h.topic || ': ' else 'paused entity: ' end end || h.reason";

/// Returns SQL for the reason of the hold that keeps the pending event `o` back; null if none does. `topic` is SQL for the event's topic.
pub(crate) fn held_by(names: &Names, topic: &str) -> String {
    format!(
        "(select {REASON} from {} h where o.status = 'PENDING' and h.lane = o.lane and h.from_id <= o.id \
           and (h.kind = 'topic' and h.topic = {topic} \
             or h.kind = 'entity' and h.entity_id = o.entity_id and (h.entity_type is null or h.entity_type = o.entity_type) \
             or h.kind = 'row' and h.head_id = o.id) \
         order by h.why = 'paused', h.from_id limit 1)",
        names.companion("hold")
    )
}

/// The kind of a hold, as its reason shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HoldKind {
    /// The event's topic cannot be written.
    Topic,
    /// An earlier event of its entity was refused.
    Entity,
    /// An operator has paused the event's topic or entity.
    Paused,
    /// Another session has locked an event of the entity.
    Locked,
}

impl HoldKind {
    /// Parses a reason that [`REASON`] made.
    pub(crate) fn parse(reason: &str) -> Self {
        if reason.starts_with("held topic ") {
            Self::Topic
        } else if reason.starts_with("paused ") {
            Self::Paused
        } else if reason.starts_with("locked: ") {
            Self::Locked
        } else {
            Self::Entity
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_hold_is_read_back_from_its_reason() {
        for (reason, kind) in [
            ("held topic t: it does not exist", HoldKind::Topic),
            ("held entity: paused topic x", HoldKind::Entity),
            ("paused topic t: maintenance", HoldKind::Paused),
            ("paused entity: maintenance", HoldKind::Paused),
            ("locked: another session", HoldKind::Locked),
        ] {
            assert_eq!(HoldKind::parse(reason), kind, "{reason}");
            let prefix = reason.split([':', ' ']).next().unwrap_or_default();
            assert!(REASON.contains(prefix), "{prefix}");
        }
    }
}
