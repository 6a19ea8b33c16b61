//! Tests a system with one writer: the open transaction is the newest of the server, and nothing else commits meanwhile.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use event_outbox::ledger::Rules;
use lab::demo::PrivatePostgres;
use libtest_mimic::Trial;
use sqlx::{Connection, Executor, PgConnection};

use lab::kafka::RealKafka;
use lab::outbox::{emit, insert};
use lab::{Outbox, options_for_tests, trials};

/// Pairs of events of one entity.
const PAIRS: i64 = 20;

/// The time for which the first event of a pair stays uncommitted, and the time from its commit to the second event.
const OPEN: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_millis(20);

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_kafka:
            the_only_writer_leaves_transactions_open,
            the_only_writer_computes_payloads_inside_the_insert;
    }
}

async fn the_only_writer_leaves_transactions_open(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    in_order("quiet-open", &kafka, async |connection, entity, pair| {
        let mut transaction = connection.begin().await?;
        if pair % 2 == 0 {
            insert(&mut transaction, entity, 1).await?;
        } else {
            emit(&mut transaction, entity, 1).await?;
        }
        // The length of the transaction is the subject of this test.
        tokio::time::sleep(OPEN).await;
        Ok(transaction.commit().await?)
    })
    .await
}

/// Postgres allocates the id first, and assigns the transaction id only with the row.
async fn the_only_writer_computes_payloads_inside_the_insert(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    in_order("quiet-computed", &kafka, async |connection, entity, _| {
        let sql = format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload) values \
             ('order', '{entity}', 'Counted', (select jsonb_build_object('n', 1) from pg_sleep(0.3)))"
        );
        connection.execute(sqlx::AssertSqlSafe(sql)).await?;
        Ok(())
    })
    .await
}

/// Checks the order of pairs; `first` writes the first event of an entity. Uses a private server, because other trials commit on a shared
/// one.
async fn in_order(
    topic: &str,
    kafka: &RealKafka,
    first: impl AsyncFn(&mut PgConnection, &str, i64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::on(&postgres, topic).await?;
    outbox.create_topic(kafka).await?;
    let _relay = outbox.relay(kafka).start_ready("quiet").await?;
    let mut connection = outbox.connect().await?;
    for pair in 0..PAIRS {
        let entity = format!("pair-{pair}");
        first(&mut connection, &entity, pair).await?;
        tokio::time::sleep(BETWEEN).await;
        insert(&mut connection, &entity, 2).await?;
    }
    outbox.until_settled().await;
    outbox.all_published().await?;
    let numbers = outbox.published_numbers(kafka).await?;
    let inverted = numbers.values().filter(|numbers| **numbers != [1, 2]).count();
    ensure!(inverted == 0, "{inverted} of {PAIRS} pairs are not in order");
    outbox.reconcile(kafka, Rules { duplicates_allowed: Some(0), pending_allowed: false }).await
}
