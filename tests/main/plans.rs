//! Tests that the plans of the statements that find work do not depend on statistics. With wrong statistics the planner once walked every
//! event that was ever published.

use anyhow::{Context, ensure};
use event_outbox::Names;
use libtest_mimic::Trial;
use outbox_relay::store::plan::{Statement, explain};
use sqlx::{Executor, PgConnection};

use lab::{TestDatabase, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            work_is_found_by_the_key_and_the_index_of_late_events_whatever_the_statistics_and_the_backlog;
    }
}

async fn work_is_found_by_the_key_and_the_index_of_late_events_whatever_the_statistics_and_the_backlog(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let conn = &mut database.connect().await?;
    conn.execute("alter table event_outbox set (autovacuum_enabled = off)").await?;
    let (every, in_transaction) = (&[Statement::Probe, Statement::Claim], &[Statement::Claim]);
    // The probe is planned on each run; for an empty table any plan is fine.
    uses_the_indexes(conn, in_transaction, "nothing pending, no statistics").await?;
    conn.execute("analyze event_outbox").await?;
    uses_the_indexes(conn, in_transaction, "nothing pending, fresh statistics").await?;
    fill(conn, "PENDING", 1_000).await?;
    uses_the_indexes(conn, every, "1,000 pending, statistics of an empty table").await?;
    conn.execute("analyze event_outbox").await?;
    uses_the_indexes(conn, every, "1,000 pending, fresh statistics").await?;

    fill(conn, "PUBLISHED", 300_000).await?;
    uses_the_indexes(conn, every, "300,000 published, statistics that call every row pending").await?;
    conn.execute("analyze event_outbox").await?;
    uses_the_indexes(conn, every, "1,000 pending, 300,000 published, fresh statistics").await?;
    conn.execute("delete from event_outbox where status = 'PENDING'").await?;
    conn.execute("analyze event_outbox").await?;
    uses_the_indexes(conn, every, "nothing pending, 300,000 published, fresh statistics").await?;
    fill(conn, "PENDING", 1_000).await?;
    uses_the_indexes(conn, every, "1,000 pending, statistics that call no row pending").await?;

    fill(conn, "PENDING", 999_000).await?;
    uses_the_indexes(conn, every, "1,000,000 pending, statistics that call no row pending").await?;
    conn.execute("analyze event_outbox").await?;
    uses_the_indexes(conn, every, "1,000,000 pending, fresh statistics").await?;
    // Removes the statistics, as after a restore or pg_upgrade.
    conn.execute("delete from pg_statistic where starelid = 'event_outbox'::regclass").await?;
    conn.execute("update pg_class set reltuples = -1, relpages = 0 where relname like 'event\\_outbox%'").await?;
    uses_the_indexes(conn, every, "1,000,000 pending, no statistics").await
}

async fn fill(conn: &mut PgConnection, status: &str, rows: i64) -> anyhow::Result<()> {
    let sql = "insert into event_outbox (entity_type, entity_id, event_type, payload, status) \
               select 'order', (n % 5000)::text, 'X', '{}', $1 from generate_series(1, $2) n";
    sqlx::query(sql).bind(status).bind(rows).execute(conn).await?;
    Ok(())
}

async fn uses_the_indexes(conn: &mut PgConnection, statements: &[Statement], state: &str) -> anyhow::Result<()> {
    let names = Names::new("public", "event_outbox", "processed_events");
    for statement in statements {
        let context = || format!("{statement:?} with {state}");
        let plan = explain(conn, &names, *statement).await.with_context(context)?;
        let text = plan.join("\n");
        // The lanes and the counters are a handful of rows, so any plan is fine for them.
        let of_the_outbox =
            || plan.iter().filter(|line| !line.contains("event_outbox_lane") && !line.contains("event_outbox_control"));
        // Late events by their index in both arms, new events by the key; never a scan of the table.
        let late = plan.iter().filter(|line| line.contains("using event_outbox_late on")).count();
        let new = plan.iter().any(|line| line.contains("using event_outbox_pkey on"));
        let costly = of_the_outbox().any(|line| {
            line.contains("Bitmap")
                || line.contains("Seq Scan on event_outbox ")
                || line.ends_with("Seq Scan on event_outbox")
        });
        // The locked rows by their ctids.
        let by_ctid =
            *statement != Statement::Claim || plan.iter().any(|line| line.contains("Tid Scan on event_outbox"));
        ensure!(by_ctid, "{}:\n{text}", context());
        ensure!(late == 2 && new && !costly, "{}:\n{text}", context());
        // The condition on the transaction belongs to the index and is not a filter on the index's rows.
        let conditions = plan.iter().filter(|line| line.contains("Index Cond") && line.contains("xid")).count();
        ensure!(conditions == 2, "{}:\n{text}", context());
    }
    Ok(())
}
