//! Checks the clock, and whatever holds transactions open: sessions, prepared transactions, and replication slots.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Connection, PgConnection, Row};

use super::finding::Finding;
use super::rights::first;
use crate::store::activity::{self, Sessions, span};
use crate::store::read_only::read;
use event_outbox::Names;
use event_outbox::code::Code;

/// The tolerated difference of the clocks. A larger one makes latencies and the log lines of relay and server hard to compare.
const CLOCK_TOLERANCE_S: f64 = 2.0;

/// Compares the clocks. The server's time is taken as the middle of the round trip, uncertain by half of it.
pub(super) async fn clock(conn: &mut PgConnection) -> Result<Option<Finding>, sqlx::Error> {
    // Warm up the connection, because the first answer on it may be slow.
    conn.ping().await?;
    let asked = now_s();
    let server: f64 = first(conn, "select extract(epoch from clock_timestamp())::float8").await?;
    let answered = now_s();
    Ok(skewed(asked, server, answered))
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn skewed(asked: f64, server: f64, answered: f64) -> Option<Finding> {
    let ahead = (asked + answered) / 2.0 - server;
    let uncertain = (answered - asked).abs() / 2.0;
    (ahead.abs() - uncertain > CLOCK_TOLERANCE_S).then(|| {
        let direction = if ahead > 0.0 { "ahead of" } else { "behind" };
        Finding::warning(
            Code::ClockSkew,
            format!("This machine's clock is {} {direction} the database's: the times in its log and the latencies are wrong.", span(ahead.abs())),
            "synchronise the clocks of both machines: `timedatectl timesync-status` or `chronyc tracking` shows which one is wrong",
        )
    })
}

/// Reports the oldest transaction if it is older than `tolerated`. Also reports when the user may not see other sessions.
pub(super) async fn oldest_transaction(
    conn: &mut PgConnection,
    names: &Names,
    tolerated: Duration,
) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    let sessions = Sessions::find(conn, names).await?;
    if !sessions.sees_others {
        let user: String = first(conn, "select quote_ident(current_user)").await?;
        findings.push(Finding::note(
            Code::SessionsHidden,
            format!(
                "The user {user} may not see other sessions, so the holders of transactions and locks stay unknown."
            ),
            format!("let an administrator run `outbox-relay migrate --roles`, and grant {user} a role that it makes"),
        ));
    }
    if let Some(oldest) = activity::oldest_transaction(conn, &sessions).await? {
        let age = oldest.transaction_s.unwrap_or_default();
        if age > tolerated.as_secs_f64() {
            let harm = if oldest.holds_vacuum {
                "vacuum cannot remove rows that died since, and claims get slower"
            } else {
                "it may hold locks"
            };
            findings.push(Finding::warning(
                Code::TransactionOld,
                format!("A transaction has been open for {}: {}; {harm}.", span(age), oldest.describe()),
                format!(
                    "select pg_terminate_backend({}); -- ends that session, its transaction is rolled back",
                    oldest.pid
                ),
            ));
        }
    }
    Ok(findings)
}

/// Reports old prepared transactions of this database. They outlive their session, and even a restart of the server.
pub(super) async fn prepared_transactions(
    conn: &mut PgConnection,
    tolerated: Duration,
) -> Result<Option<Finding>, sqlx::Error> {
    let query = format!(
        "select gid, owner::text, extract(epoch from clock_timestamp() - prepared)::float8, count(*) over () \
         from pg_prepared_xacts where database = current_database() \
         and clock_timestamp() - prepared > make_interval(secs => {}) order by prepared limit 1",
        tolerated.as_secs_f64()
    );
    let rows = read(conn, &query).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (gid, owner, age, count): (String, String, f64, i64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    Ok(Some(Finding::warning(
        Code::TransactionPrepared,
        format!(
            "{count} prepared transaction(s) hold vacuum back and keep their locks; the oldest belongs to {owner} and is open for {}.",
            span(age)
        ),
        format!("rollback prepared {}; -- or commit prepared, ask its owner", event_outbox::names::literal(&gid)),
    )))
}

/// Reports replication slots that nobody reads or that hold vacuum back.
pub(super) async fn replication_slots(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    // A standby has no current WAL position.
    let query = "select slot_name::text, active, coalesce(age(xmin), 0)::int8, \
         coalesce(case when not pg_is_in_recovery() then pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) end, 0)::int8 \
         from pg_replication_slots where not active and restart_lsn is not null or age(xmin) > 1000000 order by 1 limit 20";
    let rows = read(conn, query).await?;
    rows.iter()
        .map(|row| {
            let (slot, active, xids, wal): (String, bool, i64, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            let reader = if active { "is read slowly" } else { "is read by nobody" };
            Ok(Finding::warning(
                Code::ReplicationSlot,
                format!(
                    "The replication slot {slot:?} {reader}: it keeps {} MiB of WAL and {xids} transactions' dead rows until the disk is full.",
                    wal / (1 << 20)
                ),
                format!("select pg_drop_replication_slot({}); -- if its reader is gone for good", event_outbox::names::literal(&slot)),
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_skew() {
        assert_eq!(skewed(1_000.0, 1_009.0, 1_010.0), None);
        assert_eq!(skewed(1_000.0, 1_001.9, 1_000.2), None);
        assert!(skewed(1_000.0, 900.0, 1_000.2).is_some_and(|finding| finding.message.contains("ahead of")));
        assert!(skewed(1_000.0, 1_100.0, 1_000.2).is_some_and(|finding| finding.message.contains("behind")));
    }
}
