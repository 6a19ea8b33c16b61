//! Shows the query plans of the statements that a worker runs repeatedly, by EXPLAIN under the worker's settings. A plan that does not use
//! the primary key and the index of late events would read every event that was ever published.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use crate::config::Settle;
use crate::lane::LaneRange;
use crate::lane::progress::Progress;
use crate::store::claim::ClaimSql;
use crate::store::session::{Sequence, Transaction};
use event_outbox::names::{self, Names};

/// A statement of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// The statement that looks for work.
    Probe,
    /// The statement that locks the rows of a batch.
    Claim,
}

/// Returns the lines of EXPLAIN for the outbox `names` and a worker that owns some of its lanes.
///
/// # Errors
/// Any database error. Drop the connection then: it may be inside a transaction.
pub async fn explain(conn: &mut PgConnection, names: &Names, statement: Statement) -> Result<Vec<String>, sqlx::Error> {
    let sequence = Sequence::read(conn, names).await?;
    let (sql, lanes) = (ClaimSql::new(names, &sequence), LaneRange { first: 0, last: 7 });
    let script = match statement {
        // The probe is a simple query, so it is planned each time it runs.
        Statement::Probe => {
            let progress = Progress { scanned_through: 1000, ..Progress::default() };
            let settings = Transaction::new(names, Duration::from_secs(60), false, false, Settle::Mark).settings_text();
            format!("{settings} explain {}; rollback", sql.probe_text("0", &progress, lanes, i64::MAX, false))
        }
        Statement::Claim => {
            prepared(names, sql.claim_text(), "'3', '{}', 1000, 0, 7, 2000, 9223372036854775807, 1000000, 1000000")
        }
    };
    let rows = conn.fetch_all(sqlx::raw_sql(AssertSqlSafe(script))).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Returns the first step of a plan that reads more rows than necessary, if there is one.
pub fn costly_step(plan: &[String], names: &Names) -> Option<String> {
    // The tables of lanes, counters and holds have few rows, and so has a batch.
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

/// Builds the script that explains a prepared statement. A worker's statements are prepared and have generic plans, which EXPLAIN shows
/// only for a prepared statement.
fn prepared(names: &Names, statement: &str, parameters: &str) -> String {
    let settings = Transaction::new(names, Duration::from_secs(60), false, false, Settle::Mark).settings_text();
    format!(
        "{settings} prepare outbox_relay_plan (text, text[], int8, int2, int2, int8, int8, int8, int8) as {statement}; explain execute outbox_relay_plan ({parameters}); \
         deallocate outbox_relay_plan; rollback"
    )
}
