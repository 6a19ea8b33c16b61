//! SQL for people who look: the events that claims have not met. The same rules as the claim's (ADR 10), by the progress that is stored:
//! the relay itself is up to a batch ahead of it.

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
