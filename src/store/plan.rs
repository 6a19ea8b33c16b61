//! How the planner would find work: EXPLAIN of the statements that a worker runs over and over, under the settings it runs them
//! with. A plan that leaves the key and the index of late events walks every event that was ever published.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::lane::LaneRange;
use crate::lane::progress::Progress;
use crate::store::claim::ClaimSql;
use crate::store::session::{Sequence, Transaction};
use event_outbox::names::{self, Names};

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
    let sequence = Sequence::read(conn, names).await?;
    let (sql, lanes) = (ClaimSql::new(names, &sequence), LaneRange { first: 0, last: 7 });
    let script = match statement {
        // Outside a transaction, planned each time it runs.
        Statement::Probe => {
            let progress = Progress { scanned_through: 1000, ..Progress::default() };
            let settings = Transaction::new(names, Duration::from_secs(60), false, false).settings_text();
            format!("{settings} explain {}; rollback", sql.probe_text("0", &progress, lanes, i64::MAX, false))
        }
        Statement::Claim => {
            prepared(names, sql.claim_text(), "'3', '{}', 1000, 0, 7, 2000, 9223372036854775807, 1000000, 1000000")
        }
    };
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(script))).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// The step of a plan that walks more than it has to, if there is one.
pub fn costly_step(plan: &[String], names: &Names) -> Option<String> {
    // The lanes and what operators pause are a handful of rows, and so are a batch's.
    let small = ["lane", "control", "hold"].map(|part| names.part_raw(part));
    let is_small = |line: &str| small.iter().any(|table| line.contains(&format!(" {table}")));
    let table = format!(" on {}", names.table_raw());
    let quoted = format!(" on {}", names::quote(names.table_raw()));
    let of_outbox = |line: &str| line.contains(&table) || line.contains(&quoted);
    let costly =
        |line: &&String| !is_small(line) && of_outbox(line) && (line.contains("Seq Scan") || line.contains("Bitmap"));
    let by = |suffix: &str| {
        let index = names.part_raw(suffix);
        plan.iter().any(|line| line.contains("Index") && line.contains(&index))
    };
    let shown = |line: &String| line.trim().trim_start_matches("-> ").trim().to_owned();
    match plan.iter().find(costly) {
        Some(step) => Some(shown(step)),
        None if by("late") && by("pkey") => None,
        None => plan.iter().find(|line| line.contains("Scan")).or(plan.first()).map(shown),
    }
}

/// A worker's statements are prepared and planned for any parameter, which EXPLAIN shows of a prepared statement only.
fn prepared(names: &Names, statement: &str, parameters: &str) -> String {
    let settings = Transaction::new(names, Duration::from_secs(60), false, false).settings_text();
    format!(
        "{settings} prepare outbox_relay_plan (text, text[], int8, int2, int2, int8, int8, int8, int8) as {statement}; explain execute outbox_relay_plan ({parameters}); \
         deallocate outbox_relay_plan; rollback"
    )
}
