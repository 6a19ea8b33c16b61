//! Tests a commit whose answer comes later than `handler_timeout`.

use super::*;

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            an_event_whose_commit_outlasts_the_last_attempt_is_no_dead_letter;
    }
}

/// The commit of the last attempt waits for a lock of the test, until the consumer gives the event up or looks whether it was applied.
async fn an_event_whose_commit_outlasts_the_last_attempt_is_no_dead_letter(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    for statement in [
        "create function wait() returns trigger language plpgsql as $$begin perform pg_advisory_xact_lock(4711); return null; end$$",
        "create constraint trigger waits after insert on effects deferrable initially deferred for each row execute function wait()",
    ] {
        field.outbox.execute(statement).await?;
    }
    let mut holder = field.outbox.connect().await?;
    sqlx::query("select pg_advisory_lock(4711)").execute(&mut holder).await?;
    field.write([counted("a", 1)]).await?;
    field.publish().await?;
    let running = Running::start(field.counting().retry(quick(1)).handler_timeout(Duration::from_secs(5)));
    let looks = "select count(*) from pg_locks join pg_stat_activity using (pid) \
                 where locktype = 'transactionid' and not granted and datname = current_database()";
    eventually("the consumer looks at the mark, or gives the event up", APPLIED_WITHIN, || async {
        let (looks, dead) = (field.outbox.number(looks).await, running.stats.dead());
        if dead > 0 || looks.as_ref().is_ok_and(|looks| *looks > 0) { Ok(()) } else { Err((looks, dead)) }
    })
    .await;
    sqlx::query("select pg_advisory_unlock(4711)").execute(&mut holder).await?;
    field.until_effects(1).await;
    running.until("the event is finished", |stats| stats.repeated() + stats.dead() == 1).await;
    let stats = running.stop().await?;
    ensure!(stats.dead() == 0 && field.dead_letters().await?.is_empty(), "{stats:?}");
    ensure!(field.effects().await? == 1);
    Ok(())
}
