//! Tests events that a Rust service writes and applies in its own transactions.

use anyhow::{Context, ensure};
use event_outbox::Names;
use event_outbox::consumer::{Failed, Inbox, Kind, Once};
use event_outbox::event::{EventId, NewEvent};
use event_outbox::outbox::{EmitError, Outbox};
use event_outbox::schema::{self, MigrateOptions};
use event_outbox::schemas::Schemas;
use event_outbox::transaction;
use libtest_mimic::Trial;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use uuid::Uuid;

use lab::{SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            a_second_delivery_has_no_effect,
            a_second_delivery_waits_for_the_first_and_sees_its_commit,
            a_second_delivery_waits_for_the_first_and_takes_over_what_it_rolled_back,
            a_second_delivery_under_a_stricter_isolation_is_an_error_that_a_retry_ends,
            groups_do_not_share_what_they_have_processed,
            an_effect_that_hides_a_database_error_is_an_error,
            the_statements_of_the_documents_apply_an_event_once_in_all_its_rows,
            a_batch_tells_which_of_its_events_are_new,
            batches_that_share_events_do_not_deadlock,
            an_inbox_and_an_outbox_of_other_names_are_used,
            an_event_is_written_as_it_was_built,
            an_event_that_its_schema_refuses_is_not_written;
    }
}

fn event() -> EventId {
    EventId(Uuid::new_v4())
}

async fn prepared(database: &TestDatabase) -> anyhow::Result<PgConnection> {
    let mut connection = database.connect().await?;
    connection.execute("create table effects (n bigint)").await?;
    Ok(connection)
}

async fn effects(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from effects").fetch_one(connection).await
}

/// Applies an event as a service does, in a separate task.
async fn apply(connection: &mut PgConnection, inbox: &Inbox, event: EventId) -> sqlx::Result<Once<i64>> {
    let mut tx = connection.begin().await?;
    let once = inbox
        .once(&mut tx, event, async |tx| {
            sqlx::query_scalar("insert into effects values (7) returning n").fetch_one(tx).await
        })
        .await?;
    tx.commit().await?;
    Ok(once)
}

async fn a_second_delivery_has_no_effect(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = prepared(&database).await?;
    let (inbox, event) = (Inbox::new("billing"), event());
    ensure!(apply(&mut connection, &inbox, event).await? == Once::Applied(7));
    ensure!(apply(&mut connection, &inbox, event).await? == Once::Repeated);
    ensure!(effects(&mut connection).await? == 1);
    Ok(())
}

/// Starts the other delivery; returns once it waits.
async fn second_delivery(
    database: &TestDatabase,
    event: EventId,
) -> anyhow::Result<tokio::task::JoinHandle<sqlx::Result<Once<i64>>>> {
    let mut connection = database.connect().await?;
    let second = tokio::spawn(async move { apply(&mut connection, &Inbox::new("billing"), event).await });
    let mut observer = database.connect().await?;
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let observer = tokio::sync::Mutex::new(&mut observer);
    eventually("the second delivery waits", SOON, || async {
        let mut observer = observer.lock().await;
        let waiting: i64 =
            sqlx::query_scalar(waits).fetch_one(&mut **observer).await.map_err(|error| error.to_string())?;
        if waiting == 1 { Ok(()) } else { Err("nobody waits".to_owned()) }
    })
    .await;
    Ok(second)
}

async fn a_second_delivery_waits_for_the_first_and_sees_its_commit(database: TestDatabase) -> anyhow::Result<()> {
    let (mut connection, event) = (prepared(&database).await?, event());
    let mut first = connection.begin().await?;
    ensure!(Inbox::new("billing").first(&mut first, event).await?);
    let second = second_delivery(&database, event).await?;
    first.commit().await?;
    ensure!(second.await?? == Once::Repeated);
    Ok(())
}

async fn a_second_delivery_waits_for_the_first_and_takes_over_what_it_rolled_back(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let (mut connection, event) = (prepared(&database).await?, event());
    let mut first = connection.begin().await?;
    ensure!(Inbox::new("billing").first(&mut first, event).await?);
    let second = second_delivery(&database, event).await?;
    first.rollback().await?;
    ensure!(second.await?? == Once::Applied(7));
    Ok(())
}

async fn a_second_delivery_under_a_stricter_isolation_is_an_error_that_a_retry_ends(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut connection = prepared(&database).await?;
    for level in ["repeatable read", "serializable"] {
        let default = format!("alter database {} set default_transaction_isolation = '{level}'", database.name());
        connection.execute(AssertSqlSafe(default)).await?;
        let (event, before) = (event(), effects(&mut connection).await?);
        let mut first = connection.begin().await?;
        ensure!(Inbox::new("billing").first(&mut first, event).await?);
        let second = second_delivery(&database, event).await?;
        first.commit().await?;
        let refused = second.await?.err().context("the second delivery has an answer")?;
        let code = refused.as_database_error().and_then(|error| error.code());
        ensure!(code.as_deref() == Some("40001"), "{level}: {refused}");
        // The runtime tries again after this error, as a service of its own has to.
        ensure!(Failed::from(refused).kind() == Kind::Transient);
        let mut again = database.connect().await?;
        ensure!(apply(&mut again, &Inbox::new("billing"), event).await? == Once::Repeated);
        ensure!(effects(&mut connection).await? == before, "{level}: the second delivery had an effect");
    }
    Ok(())
}

async fn groups_do_not_share_what_they_have_processed(database: TestDatabase) -> anyhow::Result<()> {
    let (mut connection, event) = (prepared(&database).await?, event());
    for group in ["billing", "shipping"] {
        ensure!(apply(&mut connection, &Inbox::new(group), event).await?.is_applied(), "{group}");
    }
    ensure!(effects(&mut connection).await? == 2);
    Ok(())
}

async fn an_effect_that_hides_a_database_error_is_an_error(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = prepared(&database).await?;
    let (inbox, event) = (Inbox::new("billing"), event());
    let aborted = |error: Option<sqlx::Error>| {
        error.is_some_and(|error| error.as_database_error().and_then(|error| error.code()).as_deref() == Some("25P02"))
    };
    let mut tx = connection.begin().await?;
    let once = inbox
        .once(&mut tx, event, async |tx| {
            let _ = tx.execute("insert into effects values (1 / 0)").await;
            Ok::<_, sqlx::Error>(())
        })
        .await;
    ensure!(aborted(once.err()), "the effect is reported as applied");
    tx.rollback().await?;
    // Without `once`: an event is marked and another is written, then an error is hidden.
    let mut tx = connection.begin().await?;
    ensure!(inbox.first(&mut tx, event).await?);
    Outbox::default().emit(&mut tx, &NewEvent::new("order", "o-1", "OrderPlaced")).await?;
    let _ = tx.execute("insert into effects values (1 / 0)").await;
    ensure!(aborted(transaction::commit(tx).await.err()), "the commit is reported as done");
    let left = "select (select count(*) from processed_events) + (select count(*) from event_outbox)";
    ensure!(sqlx::query_scalar::<_, i64>(left).fetch_one(&mut connection).await? == 0);
    ensure!(apply(&mut connection, &inbox, event).await? == Once::Applied(7));
    Ok(())
}

async fn the_statements_of_the_documents_apply_an_event_once_in_all_its_rows(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    connection.execute(include_str!("../../docs/examples/sql/orders.sql")).await?;
    connection
        .execute(
            "insert into orders (id, customer, total_cents) select 'o-' || n, 'c-7', n from generate_series(1, 5) n",
        )
        .await?;
    for (script, rows) in [
        (include_str!("../../docs/examples/sql/consume.sql"), 1),
        (include_str!("../../docs/examples/sql/consume_rows.sql"), 5),
    ] {
        let script =
            [("event_id", event().to_string()), ("order_id", "o-sql".to_owned()), ("customer", "c-7".to_owned())]
                .iter()
                .fold(script.to_owned(), |script, (name, value)| {
                    script.replace(&format!(":'{name}'"), &format!("'{value}'"))
                });
        for _ in 0..2 {
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(script.clone()))).await?;
            let parcels: i64 = sqlx::query_scalar("select count(*) from parcels").fetch_one(&mut connection).await?;
            ensure!(parcels == rows, "{parcels} instead of {rows}: {script}");
        }
        connection.execute("delete from parcels").await?;
    }
    Ok(())
}

async fn a_batch_tells_which_of_its_events_are_new(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = prepared(&database).await?;
    let inbox = Inbox::new("billing");
    let events: Vec<EventId> = std::iter::repeat_with(event).take(5).collect();
    apply(&mut connection, &inbox, events[1]).await?;
    let mut tx = connection.begin().await?;
    let given = [events[4], events[1], events[0], events[4], events[2]];
    let new = inbox.first_of(&mut tx, &given).await?;
    ensure!(new == [events[4], events[0], events[2]], "{new:?}");
    ensure!(inbox.first_of(&mut tx, &given).await?.is_empty());
    tx.rollback().await?;
    ensure!(inbox.first_of(&mut connection, &events).await?.len() == 4);
    ensure!(inbox.first_of(&mut connection, &[]).await?.is_empty());
    Ok(())
}

async fn batches_that_share_events_do_not_deadlock(database: TestDatabase) -> anyhow::Result<()> {
    let events: Vec<EventId> = std::iter::repeat_with(event).take(2_000).collect();
    let mut backwards = events.clone();
    backwards.reverse();
    let mut tasks = tokio::task::JoinSet::new();
    for ids in [events, backwards.clone(), backwards] {
        let mut connection = database.connect().await?;
        tasks.spawn(async move { Inbox::new("billing").first_of(&mut connection, &ids).await.map(|new| new.len()) });
    }
    let mut new = 0;
    while let Some(counted) = tasks.join_next().await {
        new += counted??;
    }
    ensure!(new == 2_000, "{new}");
    Ok(())
}

async fn an_inbox_and_an_outbox_of_other_names_are_used(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = prepared(&database).await?;
    let names = Names::new("my \"shop", "events out", "events in");
    schema::migrate(&mut connection, &names, &MigrateOptions::default()).await?;
    let inbox = Inbox::with_names("billing", &names);
    let event = event();
    ensure!(apply(&mut connection, &inbox, event).await?.is_applied());
    ensure!(inbox.first_of(&mut connection, &[event]).await?.is_empty());
    Outbox::new(&names).emit(&mut connection, &NewEvent::new("order", "o-1", "OrderPlaced")).await?;
    let counts = sqlx::query(
        r#"select (select count(*) from "my ""shop"."events in"), (select count(*) from "my ""shop"."events out")"#,
    )
    .fetch_one(&mut connection)
    .await?;
    ensure!((counts.get::<i64, _>(0), counts.get::<i64, _>(1)) == (1, 1));
    Ok(())
}

async fn an_event_is_written_as_it_was_built(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    let outbox = Outbox::default();
    let due = "2030-01-02T03:04:05Z".parse()?;
    let event = NewEvent::new("order", "o-1", "OrderPlaced")
        .json(&json!({"text": "it's \u{1f980}"}))?
        .version(2)
        .header("correlation-id", "req-\"1\"")
        .topic("elsewhere")
        .available_at(due);
    let id = outbox.emit(&mut connection, &event).await?;
    outbox.emit(&mut connection, &NewEvent::without_entity("file", "Stored").bytes([0, 255])).await?;
    outbox.emit(&mut connection, &NewEvent::new("order", "o-2", "OrderDeleted")).await?;
    let row: String = sqlx::query_scalar(
        "select concat_ws('|', entity_type, entity_id, event_type, event_version, payload, headers, topic, \
         available_at at time zone 'utc') from event_outbox where event_id = $1",
    )
    .bind(id.0)
    .fetch_one(&mut connection)
    .await?;
    let expected = "order|o-1|OrderPlaced|2|{\"text\": \"it's \u{1f980}\"}|{\"correlation-id\": \"req-\\\"1\\\"\"}|elsewhere|2030-01-02 03:04:05";
    ensure!(row == expected, "{row}");
    let others: Vec<(Option<String>, Option<Vec<u8>>, bool)> = sqlx::query_as(
        "select entity_id, payload_bytes, payload is null from event_outbox where event_id <> $1 order by id",
    )
    .bind(id.0)
    .fetch_all(&mut connection)
    .await?;
    ensure!(others == [(None, Some(vec![0, 255]), true), (Some("o-2".to_owned()), None, true)], "{others:?}");
    Ok(())
}

async fn an_event_that_its_schema_refuses_is_not_written(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    let schema = json!({"properties": {"totalCents": {"type": "integer"}}});
    let outbox = Outbox::default().checked_by(Schemas::default().with("OrderPlaced", 1, &schema)?);
    let event = |total| NewEvent::new("order", "o-1", "OrderPlaced").json(&json!({"totalCents": total}));
    let error = outbox.emit(&mut connection, &event("12,50")?).await.err().context("the event was written")?;
    ensure!(matches!(&error, EmitError::Invalid(invalid) if invalid.path == "/totalCents"), "{error:?}");
    // Nothing was sent to the database, so the transaction could go on.
    outbox
        .emit(&mut connection, &NewEvent::new("order", "o-1", "OrderPlaced").json(&json!({"totalCents": 1250}))?)
        .await?;
    let written: i64 = sqlx::query_scalar("select count(*) from event_outbox").fetch_one(&mut connection).await?;
    ensure!(written == 1);
    Ok(())
}
