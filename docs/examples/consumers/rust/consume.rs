//! Writes an invoice for each order with the inbox and the service's own Kafka client. `event_outbox::consumer::Consumer` does this and
//! more: see docs/tutorial/first-consumer.md.
//!
//! DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events cargo run -p event-outbox --example consume --features consumer-kafka

use std::collections::HashSet;

use event_outbox::consumer::Inbox;
use event_outbox::envelope::decode;
use event_outbox::event::EventId;
use event_outbox::transaction;
use rdkafka::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use serde::Deserialize;
use sqlx::{Connection, PgConnection};
use tokio::signal::unix::{SignalKind, signal};

const GROUP: &str = "billing-rust";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderPlaced {
    order_id: String,
    total_cents: i64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut db = PgConnection::connect(&std::env::var("DATABASE_URL")?).await?;
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", std::env::var("KAFKA_BOOTSTRAP_SERVERS")?)
        .set("group.id", GROUP)
        // The time until other members take over from a consumer that was killed.
        .set("session.timeout.ms", "10000")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()?;
    consumer.subscribe(&[&std::env::var("TOPIC")?])?;
    let (inbox, mut said) = (Inbox::new(GROUP), HashSet::new());
    loop {
        let record = tokio::select! {
            record = consumer.recv() => record,
            // Dropping the consumer leaves the group at once, not when the session has run out.
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let record = match record {
            Ok(record) => record,
            // A topic that does not exist is among the errors. The client goes on by itself.
            Err(error) => {
                say_once(&mut said, error.to_string(), "");
                continue;
            }
        };
        match read(&record) {
            Ok((event, order)) => {
                apply(&mut db, &inbox, event, &order).await?;
                println!("committed {event}");
            }
            // A real service puts an event that it should know on a dead letter topic.
            Err(foreign) => {
                let place = format!("at {}/{}", record.partition(), record.offset());
                say_once(&mut said, format!("skipped: {foreign}"), &place);
            }
        }
        // Commit the offset last. If it came first, a crash in between would lose the event.
        consumer.commit_message(&record, CommitMode::Sync)?;
    }
}

/// Returns the id and the order of an event, or why the record is no event for this consumer.
fn read(record: &BorrowedMessage<'_>) -> Result<(EventId, OrderPlaced), String> {
    let headers = record.headers();
    let event = decode(|name| headers?.iter().find(|header| header.key == name)?.value, record.payload())
        .map_err(|undecodable| undecodable.to_string())?;
    match (event.event_type.as_ref(), event.event_version) {
        ("OrderPlaced", 1) => {}
        ("OrderPlaced", version) => return Err(format!("no handler for the version {version} of OrderPlaced")),
        (event_type, _) => return Err(format!("no handler for the type {event_type:?}")),
    }
    let order = serde_json::from_slice(event.payload.as_deref().unwrap_or_default());
    order.map(|order| (event.event_id, order)).map_err(|_| "no order in an OrderPlaced".to_owned())
}

async fn apply(
    db: &mut PgConnection,
    inbox: &Inbox,
    event: EventId,
    order: &OrderPlaced,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut tx = db.begin().await?;
    inbox.once(&mut tx, event, async |tx| book(tx, order).await).await?;
    // After an error that was ignored, Postgres answers COMMIT with ROLLBACK, and sqlx does not look.
    Ok(transaction::commit(tx).await?)
}

async fn book(tx: &mut PgConnection, order: &OrderPlaced) -> Result<(), sqlx::Error> {
    sqlx::query("insert into invoices (order_id, total_cents) values ($1, $2)")
        .bind(&order.order_id)
        .bind(order.total_cents)
        .execute(tx)
        .await
        .map(drop)
}

fn say_once(said: &mut HashSet<String>, what: String, place: &str) {
    if said.insert(what.clone()) {
        eprintln!("{what} {place}");
    }
}
