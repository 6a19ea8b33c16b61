//! Plays an application that locks, updates, moves and deletes pending rows of a history, and sets DEAD rows PENDING by hand.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use crate::script::{Action, History, Meddling};
use crate::truth::Truth;
use lab::Outbox;

/// The time between two queries for pending rows. Rows are pending for milliseconds, so the meddler queries often.
const BETWEEN_LOOKS: Duration = Duration::from_millis(4);

/// The time after which the meddler gives up an action for which there is no row.
const LOOKS_FOR: Duration = Duration::from_millis(1_500);

/// Plays the application of a history.
pub(crate) async fn play(history: &History, outbox: &Outbox, truth: &Truth) -> anyhow::Result<()> {
    let mut connection = outbox.connect().await?;
    let floor: i64 =
        sqlx::query_scalar("select coalesce(max(id), 0) from event_outbox").fetch_one(&mut connection).await?;
    for meddling in history.meddling.iter().filter(|meddling| meddling.action != Action::Revive) {
        let began = Instant::now();
        while began.elapsed() < LOOKS_FOR && !meddle(&mut connection, history, floor, *meddling, truth).await? {
            sleep(BETWEEN_LOOKS).await;
        }
    }
    Ok(())
}

/// Locks some of the newest pending rows and acts on them; returns false if there are none.
async fn meddle(
    connection: &mut PgConnection,
    history: &History,
    floor: i64,
    meddling: Meddling,
    truth: &Truth,
) -> anyhow::Result<bool> {
    connection.execute("begin").await?;
    let sql = "select event_id from event_outbox where id > $1 and status = 'PENDING' and starts_with(entity_id, $2) \
               and event_type <> 'Poison' order by id desc limit 3 for update skip locked";
    let events: Vec<Uuid> =
        sqlx::query_scalar(sql).bind(floor).bind(history.prefix()).fetch_all(&mut *connection).await?;
    if events.is_empty() {
        connection.execute("rollback").await?;
        return Ok(false);
    }
    sleep(meddling.locked).await;
    let sql = match meddling.action {
        Action::Touch => Some("update event_outbox set headers = headers || '{\"touched\": \"1\"}'"),
        Action::Move => Some("update event_outbox set entity_id = entity_id || '-moved'"),
        Action::Delete => Some("delete from event_outbox"),
        Action::Lock | Action::Revive => None,
    };
    if let Some(sql) = sql {
        let sql = format!("{sql} where event_id = any($1)");
        sqlx::query(AssertSqlSafe(sql)).bind(&events).execute(&mut *connection).await?;
    }
    connection.execute(if meddling.commits { "commit" } else { "rollback" }).await?;
    match meddling.action {
        Action::Move if meddling.commits => truth.moved(&events),
        Action::Delete if meddling.commits => truth.removed(&events),
        _ => {}
    }
    Ok(true)
}

/// Repairs the DEAD rows of a history and sets them PENDING by hand.
pub(crate) async fn revive(history: &History, outbox: &Outbox) -> anyhow::Result<u64> {
    if history.meddling.iter().all(|meddling| meddling.action != Action::Revive) {
        return Ok(0);
    }
    let sql = "update event_outbox set status = 'PENDING', headers = '{}', attempts = 0, last_error = null \
               where status = 'DEAD' and starts_with(entity_id, $1)";
    Ok(sqlx::query(sql).bind(history.prefix()).execute(&mut outbox.connect().await?).await?.rows_affected())
}
