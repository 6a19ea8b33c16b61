//! How the planner would find work: EXPLAIN of the statements that a worker runs over and over, under the settings it runs them
//! with. A plan that leaves the pending index walks every event that was ever published.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::lane::LaneRange;
use crate::store::claim::{ClaimSql, Reach};
use crate::store::names::Names;
use crate::store::session::{Sequence, Transaction};

/// Which statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// Looks whether there is work.
    Probe,
    /// Locks the rows of a batch.
    Claim,
}

/// The lines of EXPLAIN, for the outbox `names` and a worker that owns some of its lanes.
///
/// # Errors
/// Any database error. The connection must be dropped then: it may be inside a transaction.
pub async fn explain(conn: &mut PgConnection, names: &Names, statement: Statement) -> Result<Vec<String>, sqlx::Error> {
    let sequence = Sequence::of(conn, names).await?;
    let (sql, lanes) = (ClaimSql::new(names, &sequence), LaneRange { first: 0, last: 7 });
    let script = match statement {
        // Outside a transaction, planned each time it runs.
        Statement::Probe => format!("explain {}", sql.probe_text(Reach { start: 0, upto: None, lanes, around: &[] })),
        Statement::Claim => prepared(names, sql.claim_text(), "0, 0, 7, 2000, 9223372036854775807"),
    };
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(script))).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// The step of a plan that leaves the pending index, if there is one.
pub fn costly_step(plan: &[String], names: &Names) -> Option<String> {
    let (pending, lane_table) = (names.part_raw("pending"), names.part_raw("lane"));
    let by_index = plan.iter().any(|line| line.contains("Index Scan using") && line.contains(&pending));
    // The lanes are a handful of rows: any plan will do for them.
    let costly = |line: &&String| {
        let primary_key = names.part_raw("pkey");
        !line.contains(&lane_table)
            && (["Seq Scan", "Sort", "Bitmap"].iter().any(|node| line.contains(node)) || line.contains(&primary_key))
    };
    match plan.iter().find(costly) {
        Some(step) => Some(step.trim().trim_start_matches("-> ").trim().to_owned()),
        None if by_index => None,
        None => plan.iter().find(|line| line.contains("Scan")).or(plan.first()).map(|step| step.trim().to_owned()),
    }
}

/// A worker's statements are prepared and planned for any parameter, which EXPLAIN shows of a prepared statement only.
fn prepared(names: &Names, statement: &str, parameters: &str) -> String {
    let settings = Transaction::new(names, &Sequence::default(), Duration::from_secs(60), false, false).settings_text();
    format!(
        "{settings} prepare outbox_relay_plan as {statement}; explain execute outbox_relay_plan ({parameters}); \
         deallocate outbox_relay_plan; rollback"
    )
}
