//! Tests that an event is reported as applied only if its effects are in the database.

use std::sync::Arc;

use anyhow::ensure;
use event_outbox::consumer::{Context, Failed, Reason};
use event_outbox::event::NewEvent;
use libtest_mimic::Trial;
use sqlx::{Connection, Executor};

use super::{Counted, Field, Running, counted, insert};
use lab::kafka::RealKafka;
use lab::{TestDatabase, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_database_error_that_a_handler_hides_makes_a_dead_letter_and_no_event_is_lost;
    }
}

const FAILS: &str = "insert into effects (n) values ('x'::text::bigint)";

/// Hides the error of a statement in each way that a handler has.
async fn hide(mut ctx: Context, event: Counted) -> Result<(), Failed> {
    let n = event.n;
    if n == 2 {
        let _ = ctx.tx().execute(FAILS).await;
        let _ = insert(&mut ctx, n).await;
        return Ok(());
    }
    insert(&mut ctx, n).await?;
    ctx.emit(NewEvent::new("payment", n.to_string(), "Paid").json(&event)?).await?;
    match n {
        4 => {
            let _ = ctx.tx().execute(FAILS).await;
        }
        // A NUL is no part of any jsonb, so the database refuses the event.
        5 => {
            let _ = ctx.emit(NewEvent::new("payment", "5", "Paid").header("x", "\0")).await;
        }
        6 => {
            ctx.tx().execute("rollback").await?;
        }
        7 => {
            ctx.tx().execute("commit").await?;
            ctx.tx().execute("begin").await?;
        }
        8 => {
            let mut savepoint = ctx.tx().begin().await?;
            let failed = savepoint.execute(FAILS).await;
            savepoint.rollback().await?;
            if failed.is_ok() {
                return Err(Failed::permanent("the statement did not fail"));
            }
        }
        _ => {}
    }
    Ok(())
}

async fn a_database_error_that_a_handler_hides_makes_a_dead_letter_and_no_event_is_lost(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    field.write((1..=9).map(|n| counted("a", n))).await?;
    field.publish().await?;
    let running = Running::start(field.consumer().on("Counted", 1..=1, hide));
    running.until("all nine are ended", |stats| stats.applied() + stats.dead() == 9).await;
    let stats = running.stop().await?;
    let dead: Vec<(i64, Reason)> = field
        .dead_letters()
        .await?
        .into_iter()
        .map(|(_, dead_letter)| (dead_letter.source_offset + 1, dead_letter.reason))
        .collect();
    let aborted = [2, 4, 5, 6, 7].map(|n| (n, Reason::Aborted));
    ensure!(dead == aborted && stats.applied() == 4, "{dead:?} {stats:?}");
    for (_, dead_letter) in field.dead_letters().await? {
        let hidden = !matches!(dead_letter.source_offset + 1, 6 | 7);
        ensure!(dead_letter.attempts == 1 && dead_letter.error.contains("savepoint") == hidden, "{dead_letter:?}");
    }
    // The seventh has committed its effect itself, which only the handler can prevent.
    ensure!(field.applied().await?["a"] == [1, 3, 7, 8, 9], "{:?}", field.applied().await?);
    let marked =
        "select count(*) from processed_events join event_outbox using (event_id) where event_type = 'Counted'";
    ensure!(field.outbox.number(marked).await? == 5);
    ensure!(field.outbox.number("select count(*) from event_outbox where event_type = 'Paid'").await? == 5);
    Ok(())
}
