//! Writes an invoice for each order with the inbox and the service's own Kafka client. `event_outbox::consumer::Consumer` does this and
//! more: see docs/tutorial/first-consumer.md.
//!
//! DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... TOPIC=order-events cargo run -p event-outbox --example consume --features consumer-kafka

use event_outbox::consumer::Inbox;
use event_outbox::envelope::decode;
use rdkafka::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::{Headers, Message};
use serde::Deserialize;
use sqlx::{Connection, PgConnection};

const GROUP: &str = "billing-rust";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderPlaced {
    order_id: String,
    total_cents: i64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
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
    let inbox = Inbox::new(GROUP);
    loop {
        let record = consumer.recv().await?;
        let headers = record.headers();
        let event = decode(|name| headers?.iter().find(|header| header.key == name)?.value, record.payload())?;
        let mut tx = db.begin().await?;
        inbox
            .once(&mut tx, event.event_id, async |tx| {
                let order: OrderPlaced = serde_json::from_slice(event.payload.as_deref().unwrap_or(b"null"))?;
                book(tx, &order).await?;
                Ok::<_, Box<dyn std::error::Error>>(())
            })
            .await?;
        tx.commit().await?;
        println!("committed {}", event.event_id);
        // Commit the offset last. If it came first, a crash in between would lose the event.
        consumer.commit_message(&record, CommitMode::Sync)?;
    }
}

async fn book(tx: &mut PgConnection, order: &OrderPlaced) -> Result<(), sqlx::Error> {
    sqlx::query("insert into invoices (order_id, total_cents) values ($1, $2)")
        .bind(&order.order_id)
        .bind(order.total_cents)
        .execute(tx)
        .await
        .map(drop)
}
