//! Tests one writer with nothing else on the server: the open transaction is the newest one, which no snapshot lists.

use std::sync::Arc;
use std::time::Duration;

use lab::demo::PrivatePostgres;
use libtest_mimic::Trial;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use crate::bed::{Bed, server};
use crate::truth::{Outcome, Written, now};
use lab::kafka::RealKafka;
use lab::outbox::emit;
use lab::trials;

/// The time between a commit and the next event of the same entity.
const NEXT: Duration = Duration::from_millis(20);

/// The time between two pairs.
const BETWEEN: Duration = Duration::from_millis(150);

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_kafka:
            an_event_of_the_newest_transaction_goes_out_before_the_next_of_its_entity,
            an_event_of_the_newest_transaction_is_not_late,
            an_event_whose_payload_takes_long_to_compute_goes_out_before_the_next_of_its_connection,
            an_event_whose_trigger_takes_long_goes_out_before_the_next_of_its_connection,
            one_event_a_second_of_one_writer_is_not_late;
    }
}

/// Runs on a private server; fails unless the run was clean.
async fn on_a_quiet_server<F>(
    name: &str,
    kafka: &RealKafka,
    run: impl AsyncFnOnce(&Bed, PgConnection, PgConnection) -> anyhow::Result<F>,
) -> anyhow::Result<()> {
    let postgres: PrivatePostgres = server().await?;
    let bed = Bed::open(&postgres, kafka, name).await?;
    let (writer, next) = (bed.outbox.connect().await?, bed.outbox.connect().await?);
    run(&bed, writer, next).await?;
    let verdict = bed.close(kafka, Some(Vec::new())).await?;
    eprintln!("{name}: {verdict}");
    postgres.stop().await;
    verdict.ensure_clean()
}

/// Writes an event in a transaction that stays open, and the next event of its entity right after the commit.
async fn pair(
    bed: &Bed,
    (writer, next): (&mut PgConnection, &mut PgConnection),
    (entity, emits): (&str, bool),
    stays_open: Duration,
) -> anyhow::Result<()> {
    writer.execute("begin").await?;
    let first = event(bed, writer, entity, emits).await?;
    sleep(stays_open).await;
    writer.execute("commit").await?;
    bed.truth.ended(vec![first], Outcome::Committed(now()));
    sleep(NEXT).await;
    let second = event(bed, next, entity, emits).await?;
    bed.truth.ended(vec![second], Outcome::Committed(now()));
    sleep(BETWEEN).await;
    Ok(())
}

async fn event(bed: &Bed, connection: &mut PgConnection, entity: &str, emits: bool) -> anyhow::Result<Written> {
    if !emits {
        return bed.insert_open(connection, entity).await;
    }
    let n = bed.truth.next(entity);
    let event = emit(connection, entity, n).await?;
    Ok(Written { event, entity: entity.to_owned(), n, poison: false })
}

async fn an_event_of_the_newest_transaction_goes_out_before_the_next_of_its_entity(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    on_a_quiet_server("newest-order", &kafka, async |bed, mut writer, mut next| {
        for number in 0..20 {
            let entity = format!("pair{number}");
            pair(bed, (&mut writer, &mut next), (&entity, number % 2 == 1), Duration::from_secs(1)).await?;
        }
        Ok(())
    })
    .await
}

async fn an_event_of_the_newest_transaction_is_not_late(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    on_a_quiet_server("newest-late", &kafka, async |bed, mut writer, mut next| {
        for number in 0..12 {
            let entity = format!("pair{number}");
            pair(bed, (&mut writer, &mut next), (&entity, number % 2 == 1), Duration::from_secs(2)).await?;
        }
        Ok(())
    })
    .await
}

/// Postgres allocates the id first, and assigns the transaction id with the row.
async fn an_event_whose_payload_takes_long_to_compute_goes_out_before_the_next_of_its_connection(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let payload = "'Counted', (select jsonb_build_object('n', $3) from pg_sleep(0.3))";
    slow_inserts("computed", &kafka, payload).await
}

async fn an_event_whose_trigger_takes_long_goes_out_before_the_next_of_its_connection(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    slow_inserts("triggered", &kafka, "'Slow', jsonb_build_object('n', $3, 'sleep', 0.3)").await
}

/// Writes pairs of one connection whose first insert takes a while; `values` are the pair's event type and payload.
async fn slow_inserts(name: &str, kafka: &RealKafka, values: &str) -> anyhow::Result<()> {
    let sql = format!(
        "insert into event_outbox (entity_type, entity_id, event_id, event_type, payload) values ('order', $1, $2, {values})"
    );
    on_a_quiet_server(name, kafka, async |bed, mut writer, _next| {
        for number in 0..15 {
            let entity = format!("pair{number}");
            let (n, event) = (bed.truth.next(&entity), Uuid::new_v4());
            let insert = sqlx::query(AssertSqlSafe(sql.clone())).bind(&entity).bind(event).bind(n);
            insert.execute(&mut writer).await?;
            let written = Written { event, entity: entity.clone(), n, poison: false };
            bed.truth.ended(vec![written], Outcome::Committed(now()));
            bed.insert(&mut writer, &entity).await?;
            sleep(BETWEEN).await;
        }
        Ok(())
    })
    .await
}

async fn one_event_a_second_of_one_writer_is_not_late(kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    on_a_quiet_server("one-a-second", &kafka, async |bed, mut writer, _next| {
        for _ in 0..12 {
            bed.insert(&mut writer, "lonely").await?;
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    })
    .await
}
