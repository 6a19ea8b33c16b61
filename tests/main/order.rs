//! Tests the order per entity: rows that other sessions have locked, transactions that stay open, schedules, takeovers.

use std::sync::Arc;

use anyhow::{Context, ensure};
use event_outbox::ledger::Rules;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use sqlx::{Connection, Executor};

use crate::guarantees::ONCE;
use lab::kafka::RealKafka;
use lab::outbox::{emit, insert};
use lab::{Outbox, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            a_row_that_another_session_has_locked_is_not_overtaken_by_its_entity,
            rows_of_an_entity_that_is_locked_again_while_it_is_released_are_found,
            an_event_of_a_transaction_that_stays_open_is_published_before_its_successor,
            events_of_many_open_transactions_are_published_before_their_successors,
            a_row_that_is_not_due_waits_and_one_that_was_due_long_ago_keeps_its_place,
            a_relay_frozen_with_a_batch_in_its_hands_changes_nothing_when_it_thaws;
        with_postgres:
            one_transaction_does_not_take_the_locks_of_all_others;
    }
}

/// The lock table belongs to the whole server: a transaction that fills it would make other sessions fail.
async fn one_transaction_does_not_take_the_locks_of_all_others(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let many = |entity: &str| {
        format!(
            "do $$ begin for n in 1..20000 loop perform outbox_emit('order', {entity}, 'X', '{{}}'); end loop; end $$"
        )
    };
    let refused =
        outbox.connect().await?.execute(sqlx::AssertSqlSafe(many("n::text"))).await.err().context("no limit")?;
    let code = refused.as_database_error().and_then(|error| error.code());
    ensure!(code.as_deref() == Some("54000") && refused.to_string().contains("too many entities"), "{refused}");
    // One entity is one lock, however many events it has.
    outbox.execute(&many("'same'")).await?;
    outbox.execute(&many("(n % 2)::text")).await?;
    ensure!(outbox.number("select count(*) from event_outbox").await? == 40_000);
    Ok(())
}

async fn a_row_that_another_session_has_locked_is_not_overtaken_by_its_entity(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    for n in 1..=3 {
        outbox.write("locked", n, 1).await?;
        outbox.write("free", n, 1).await?;
    }
    let mut other = outbox.connect().await?;
    let mut lock = other.begin().await?;
    lock.execute("select from event_outbox where entity_id = 'locked' and payload['n'] = '2' for update").await?;
    let _relay = outbox.relay(&kafka).start("locked")?;
    outbox.until_settled_of("free").await;
    // Later events have to wait as well, alone and in one claim with others.
    for n in 4..=6 {
        outbox.write("locked", n, 1).await?;
        outbox.write("free", n, 1).await?;
        outbox.until_settled_of("free").await;
    }
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["free"] == [1, 2, 3, 4, 5, 6] && numbers["locked"] == [1], "{numbers:?}");
    lock.rollback().await?;
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["locked"] == [1, 2, 3, 4, 5, 6], "{numbers:?}");
    outbox.all_published().await?;
    outbox.reconcile(&kafka, ONCE).await
}

/// The relay sees both changes at once, because it was stopped meanwhile: the first row is free, and the newest is locked.
async fn rows_of_an_entity_that_is_locked_again_while_it_is_released_are_found(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let relay = outbox.relay(&kafka).start_ready("again").await?;
    for round in 1..=6 {
        let entity = format!("round {round}");
        let last = format!("select from event_outbox where entity_id = '{entity}' order by id desc limit 1 for update");
        let (mut first, mut second) = (outbox.connect().await?, outbox.connect().await?);
        relay.signal(Signal::SIGSTOP)?;
        outbox.write(&entity, 1, 1).await?;
        let mut early = first.begin().await?;
        early.execute(sqlx::AssertSqlSafe(last.clone())).await?;
        outbox.write(&entity, 2, 4).await?;
        relay.signal(Signal::SIGCONT)?;
        // The relay has stepped over these rows.
        let held = format!("select coalesce(sum(events), 0) from event_outbox_hold where entity_id = '{entity}'");
        eventually("the entity is held", SOON, || async {
            match outbox.number(&held).await {
                Ok(4..) => Ok(()),
                other => Err(other),
            }
        })
        .await;
        relay.signal(Signal::SIGSTOP)?;
        outbox.write(&entity, 6, 1).await?;
        let mut late = second.begin().await?;
        late.execute(sqlx::AssertSqlSafe(last)).await?;
        early.rollback().await?;
        relay.signal(Signal::SIGCONT)?;
        outbox.write("beside", round, 1).await?;
        outbox.until_settled_of("beside").await;
        late.rollback().await?;
        outbox.until_settled_of(&entity).await;
    }
    outbox.reconcile(&kafka, ONCE).await
}

async fn an_event_of_a_transaction_that_stays_open_is_published_before_its_successor(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let _relay = outbox.relay(&kafka).start("open")?;
    // In the second round the relay knows that the transaction is a straggler.
    for (round, age) in [(1, "0"), (2, "3")] {
        let (mut early, mut late) = (outbox.connect().await?, outbox.connect().await?);
        let mut first = early.begin().await?;
        emit(&mut first, "slow", round * 10).await?;
        let second = tokio::spawn(async move {
            // Waits for the first transaction to end.
            let mut second = late.begin().await?;
            emit(&mut second, "slow", round * 10 + 1).await?;
            anyhow::Ok(second.commit().await?)
        });
        let mut count = 0;
        let sql = format!(
            "select count(*) from pg_stat_activity where datname = current_database() \
             and state = 'idle in transaction' and clock_timestamp() - xact_start > interval '{age} s' \
             and application_name not like 'outbox-relay %'"
        );
        while count < 20 || outbox.number(&sql).await? == 0 {
            outbox.write("quick", count, 1).await?;
            outbox.until_settled_of("quick").await;
            count += 1;
        }
        first.commit().await?;
        second.await??;
        outbox.until_settled().await;
    }
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["slow"] == [10, 11, 20, 21], "{:?}", numbers["slow"]);
    outbox.reconcile(&kafka, ONCE).await
}

/// Each session holds an early id while a hundred later ids of other sessions go by. Then it commits with its successor close behind, in
/// the middle of the relay's claims.
async fn events_of_many_open_transactions_are_published_before_their_successors(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let _relay = outbox.relay(&kafka).with("RELAY_BATCH_SIZE", 20).start("many")?;
    let mut sessions = tokio::task::JoinSet::new();
    for session in 0..8_i64 {
        let outbox = outbox.clone();
        sessions.spawn(async move {
            let mut connection = outbox.connect().await?;
            let mut observer = outbox.connect().await?;
            for round in 0..6_i64 {
                let entity = format!("e{session}");
                let mut open = connection.begin().await?;
                let id: i64 = {
                    insert(&mut open, &entity, round * 2).await?;
                    sqlx::query_scalar("select max(id) from event_outbox").fetch_one(&mut *open).await?
                };
                // Waits until rows far above have been published.
                let passed = "select count(*) from event_outbox where status = 'PUBLISHED' and id > $1";
                let mut filler = 0;
                while sqlx::query_scalar::<_, i64>(passed).bind(id).fetch_one(&mut observer).await? < 40 {
                    insert(&mut observer, &format!("filler{session}-{filler}"), 0).await?;
                    filler += 1;
                }
                open.commit().await?;
                insert(&mut connection, &entity, round * 2 + 1).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = sessions.join_next().await {
        ended??;
    }
    outbox.until_settled().await;
    outbox.all_published().await?;
    outbox.reconcile(&kafka, ONCE).await
}

async fn a_row_that_is_not_due_waits_and_one_that_was_due_long_ago_keeps_its_place(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox
        .execute(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, available_at) values \
             ('order', 'a', 'X', '{\"n\": 1}', null), \
             ('order', 'a', 'X', '{\"n\": 2}', now() - interval '1 day'), \
             ('order', 'a', 'X', '{\"n\": 3}', now() + interval '1 day'), \
             ('order', 'a', 'X', '{\"n\": 4}', now() - interval '2 days'), \
             ('order', 'a', 'X', '{\"n\": 5}', null)",
        )
        .await?;
    let _relay = outbox.relay(&kafka).start("schedule")?;
    outbox.until_published(4).await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["a"] == [1, 2, 4, 5], "{numbers:?}");
    // Moves the pending rows into the past, as if a day had gone by.
    outbox
        .execute(
            "update event_outbox set created_at = created_at - interval '2 days', \
             available_at = available_at - interval '2 days' where status = 'PENDING'",
        )
        .await?;
    outbox.until_settled().await;
    let numbers = outbox.published_numbers(&kafka).await?;
    ensure!(numbers["a"] == [1, 2, 4, 5, 3], "{numbers:?}");
    outbox.all_published().await?;
    outbox.reconcile(&kafka, ONCE).await
}

/// The session of a frozen relay lives until Postgres has waited for it for `publish_timeout` and 15 s. Then its lanes are free.
async fn a_relay_frozen_with_a_batch_in_its_hands_changes_nothing_when_it_thaws(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    outbox.write_backlog(20_000, 200).await?;
    let settings =
        outbox.relay(&kafka).with("RELAY_PUBLISH_TIMEOUT", "5s").with("RELAY_BATCH_SIZE", 200).with("RELAY_WORKERS", 2);
    let frozen = settings.start_ready("frozen").await?;
    outbox.until_published(1).await;
    eventually("the relay is frozen with a batch in its hands", SOON, || async {
        frozen.signal(Signal::SIGSTOP).map_err(|error| error.to_string())?;
        match outbox.relay_sessions_in_transaction().await {
            Ok(1..) => Ok(()),
            other => {
                frozen.signal(Signal::SIGCONT).map_err(|error| error.to_string())?;
                Err(format!("{other:?}"))
            }
        }
    })
    .await;
    let pending = outbox.number("select count(*) from event_outbox where status = 'PENDING'").await?;
    ensure!(pending > 0, "the backlog was gone before the relay was frozen");
    let _other = settings.start_ready("other").await?;
    outbox.until_settled().await;
    frozen.signal(Signal::SIGCONT)?;
    frozen.wait_for("outage_ended").await;
    // Both relays go on working.
    outbox.write("e1", 20_001, 10).await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    outbox.reconcile(&kafka, Rules { duplicates_allowed: Some(400), pending_allowed: false }).await?;
    ensure!(frozen.stop().await? == Some(0));
    Ok(())
}
